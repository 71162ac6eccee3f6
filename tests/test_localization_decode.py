import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvgl_models.localization.decode import decode_mean, decode_peak, log_density, radius95
from cvgl_models.localization.pose import PosePrediction, center_index, uv_from_xy_m, wrap_deg, xy_m_from_uv

# satellite cells A, template cells: the maps of all published settings, and an even and an odd one by hand
SIZES = [(78, 38), (179, 89), (155, 77), (128, 51), (128, 77), (4, 1), (5, 1)]


def blob(height, width, row, column, sigma=2.0):
    """Return the log-probabilities of a Gaussian about an index, (H, W)."""
    rows, columns = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return -((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma**2)


def ncc_map(side, crop, row, column):
    """Return the correlations of one-hot-like features cut out around a place, and the index of the reference's centre.

    The template's middle is its index (crop - 1) / 2; place p of the map has it at p + (crop - 1) / 2.
    """
    size = side - crop + 1
    return blob(size, size, row - (crop - 1) / 2, column - (crop - 1) / 2), ((side - 1) / 2 - (crop - 1) / 2,) * 2


@pytest.mark.parametrize(("side", "crop"), SIZES)
@pytest.mark.parametrize("cell_m", [0.56624, 0.783314, 1.0])
def test_a_camera_at_the_centre_is_found_there(side, crop, cell_m):
    center = (side - 1) / 2
    scores, origin = ncc_map(side, crop, center, center)
    assert origin == (center_index(side - crop + 1),) * 2
    found = decode_peak(scores[None], torch.tensor([cell_m]), origin)
    assert found.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("side", "crop"), SIZES[:5])
def test_a_shift_by_cells_is_so_many_cells(side, crop):
    center = (side - 1) / 2
    for down, right in [(3, -7), (-11, 0), (5, 5)]:
        scores, origin = ncc_map(side, crop, center + down, center + right)
        found = decode_peak(scores[None], torch.tensor([0.5]), origin)
        assert found[0].tolist() == pytest.approx([0.5 * right, 0.5 * down], abs=1e-6)


def test_the_published_decoders_are_off_by_up_to_a_cell():
    """Guards the understanding of what is wrong elsewhere: VIGOR levels 1, 2 and 0, KITTI levels 1 and 2."""

    def peak(side, crop, camera):
        """Return the index at which a camera at the satellite image's middle is found."""
        begin = round((side - crop) / 2)  # of the template, halves to even
        at = (side - 1) / 2 - (camera - begin)
        size = side - crop + 1
        return float(decode_peak(blob(size, size, at, at)[None], torch.ones(1), (0.0, 0.0))[0, 0]), size

    def vigor(side, crop):
        index, size = peak(side, crop, side / 2 - 0.5)
        return index - size / 2

    def kitti(side, crop):
        index, size = peak(side, crop, side // 2)
        return index - size / 2 + 0.5

    assert [vigor(64, 25), vigor(128, 51), vigor(256, 102)] == [0.0, -1.0, -0.5]
    assert [kitti(128, 51), kitti(256, 102)] == [-1.0, -0.5]


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.8, 6.0), st.floats(-0.8, 0.8))
def test_subcell_places(du, dv, sigma, tilt):
    rows, columns = torch.meshgrid(torch.arange(21).double(), torch.arange(24).double(), indexing="ij")
    u, v = columns - 12 - du, rows - 9 - dv
    scores = -(u**2 + v**2 + 2 * tilt * u * v) / (2 * sigma**2)
    found = decode_peak(scores[None], torch.ones(1), (0.0, 0.0))[0]
    assert found.tolist() == pytest.approx([12 + du, 9 + dv], abs=2e-4)
    plain = decode_peak(scores[None], torch.ones(1), (0.0, 0.0), refine=False)[0]
    assert plain.tolist() == [round(float(plain[0])), round(float(plain[1]))]


@pytest.mark.parametrize("sigma", [0.9, 1.5, 4.0])
def test_subcell_places_of_probabilities_and_of_sampled_peaks(sigma):
    for du in np.linspace(-0.5, 0.5, 9):
        peak = blob(15, 15, 7, 7 + du, sigma).exp()
        found = decode_peak(peak[None], torch.ones(1), (7.0, 7.0))[0]
        assert abs(float(found[0]) - du) < 0.05 * (2 if sigma < 1 else 1)
        assert float(found[1]) == 0.0


def test_the_edge_of_the_map():
    found = decode_peak(blob(9, 9, -3.0, 4.2)[None], torch.ones(1), (0.0, 0.0))[0]
    assert found.tolist() == pytest.approx([4.2, 0.0], abs=1e-6)  # along the edge, but not beyond it
    corner = decode_peak(blob(9, 9, 12.0, -5.0)[None], torch.ones(1), (0.0, 0.0))[0]
    assert corner.tolist() == [0.0, 8.0]


def test_scores_of_sixteen_bits():
    """Their peaks are plateaus; the first cell of each lies to the top left."""
    places = np.random.default_rng(0).uniform(-0.5, 0.5, (200, 2))
    maps = torch.stack([blob(25, 25, 12 + dv, 12 + du, 4.0) + 20 for du, dv in places]).bfloat16()
    found = decode_peak(maps, torch.ones(200), (12.0, 12.0)).numpy() - places
    first = torch.stack([maps.flatten(1).argmax(1) % 25, maps.flatten(1).argmax(1) // 25], 1).numpy() - 12 - places
    assert first.mean(0).max() < -0.4
    assert np.abs(found.mean(0)).max() < 0.05
    assert np.abs(found).mean() < 0.3


def test_equal_cells_side_by_side():
    scores = torch.zeros(2, 9, 9)
    scores[0, 2:5, 3:6] = 1.0
    scores[1, 4, 5:7] = 1.0
    scores[1, 8, 0] = 1.0  # far away, and later
    assert decode_peak(scores, torch.ones(2), (0.0, 0.0)).tolist() == [[4.0, 3.0], [5.5, 4.0]]


def test_nan_and_impossible_places_do_not_win():
    scores = blob(9, 9, 4.0, 4.0)
    scores[0, 0] = math.nan
    scores[4, 6] = -math.inf
    pair = torch.stack([scores, torch.full((9, 9), math.nan)])
    found = decode_peak(pair, torch.ones(2), (4.0, 4.0))
    assert found[0].tolist() == [0.0, 0.0]
    assert found[1].isnan().all()
    assert decode_mean(pair, torch.ones(2), (4.0, 4.0))[1].isnan().all()
    radius = radius95(pair, torch.ones(2), (4.0, 4.0), found)
    assert radius[0] > 0
    assert radius[1].isnan()
    assert log_density(pair, torch.ones(2), (4.0, 4.0), torch.zeros(2, 2))[1] == -math.inf


def test_the_mean_place():
    scores = blob(31, 40, 12.3, 21.7, 1.5)
    found = decode_mean(scores[None], torch.tensor([2.0]), (12.3, 21.7))
    assert found.tolist() == [pytest.approx([0.0, 0.0], abs=1e-4)]
    two = torch.maximum(blob(31, 51, 15, 12), blob(31, 51, 15, 42) - 0.1)
    near = decode_mean(two[None], torch.ones(1), (15.0, 12.0), radius_cells=10)
    assert near[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-3)
    far = decode_mean(two[None], torch.ones(1), (15.0, 12.0))
    assert far[0, 0] > 10
    scores = scores.float()[None].requires_grad_()
    decode_mean(scores, torch.ones(1), (0.0, 0.0)).sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad.abs().sum() > 0


@pytest.mark.parametrize("sigma_m", [1.0, 3.0, 7.0])
def test_radius95_of_a_gaussian(sigma_m):
    # the 95 % quantile of the Rayleigh distribution
    cell = 0.25
    scores = blob(301, 301, 150.2, 149.7, sigma_m / cell)
    found = decode_peak(scores[None], torch.tensor([cell]), (150.0, 150.0))
    radius = float(radius95(scores[None], torch.tensor([cell]), (150.0, 150.0), found))
    expected = sigma_m * math.sqrt(-2 * math.log(0.05))
    assert expected - 0.01 <= radius <= expected + cell / 2


def test_radius95_against_sorting():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 12, 17, generator=generator) * 2
    xy = torch.tensor([[0.3, -2.0], [9.0, 3.0], [0.0, 0.0]])
    cells = torch.tensor([1.0, 0.5, 2.0])
    found = radius95(scores, cells, (5.5, 8.0), xy)
    for index in range(3):
        rows, columns = torch.meshgrid(torch.arange(12) - 5.5, torch.arange(17) - 8.0, indexing="ij")
        away = torch.hypot(columns * cells[index] - xy[index, 0], rows * cells[index] - xy[index, 1]).flatten()
        order = away.argsort()
        mass = scores[index].flatten().softmax(0)[order].cumsum(0)
        exact = float(away[order][(mass < 0.95).sum()])
        assert exact - 1e-3 <= float(found[index]) <= exact + float(cells[index]) / 4 + 1e-3


def test_radius95_of_one_cell():
    scores = torch.full((1, 5, 5), -math.inf)
    scores[0, 2, 3] = 0.0
    found = decode_peak(scores, torch.tensor([2.0]), (2.0, 2.0))
    assert found.tolist() == [[2.0, 0.0]]
    # a disc of .95 of the cell's area
    expected = 2.0 * math.sqrt(0.95 / math.pi)
    assert float(radius95(scores, torch.tensor([2.0]), (2.0, 2.0), found)) == pytest.approx(expected)


def test_density():
    scores = torch.zeros(1, 10, 20)
    cell = torch.tensor([0.5])
    inside = log_density(scores, cell, (4.5, 9.5), torch.tensor([[0.0, 0.0]]))
    assert float(inside) == pytest.approx(-math.log(10 * 20 * 0.25))
    edge = [[-4.999, 2.499], [-5.001, 0.0], [0.0, 2.501]]
    found = [float(log_density(scores, cell, (4.5, 9.5), torch.tensor([place]))) for place in edge]
    assert found[0] == pytest.approx(float(inside))
    assert found[1:] == [-math.inf, -math.inf]
    sharp = blob(41, 41, 20, 20, 4.0)[None]
    density = math.exp(float(log_density(sharp, torch.tensor([0.25]), (20.0, 20.0), torch.zeros(1, 2))))
    assert density == pytest.approx(1 / (2 * math.pi * 1.0**2), rel=1e-3)


def test_pose_of_scores():
    found = PosePrediction.of_scores(blob(8, 8, 3.5, 5.5)[None], torch.tensor([0.5]), yaw_deg_B=torch.tensor([350.0]))
    assert found.origin == (3.5, 3.5)
    assert found.xy_m_B2.tolist() == [[1.0, 0.0]]
    assert found.yaw_deg_B.tolist() == [-10.0]
    assert found.score_map_BHW.dtype == torch.float32
    assert wrap_deg(torch.tensor([180.0, -180.0, 181.0, 540.0, 0.0])).tolist() == [180.0, 180.0, -179.0, 180.0, 0.0]


def test_pixels_and_metres():
    uv = torch.tensor([[0.0, 0.0], [256.0, 256.0], [512.0, 128.0]])
    gsd = torch.full((3,), 0.5)
    xy = xy_m_from_uv(uv, gsd, 512)
    assert xy.tolist() == [[-128.0, -128.0], [0.0, 0.0], [128.0, -64.0]]
    assert torch.equal(uv_from_xy_m(xy, gsd, 512), uv)
