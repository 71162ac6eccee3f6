"""Flat-ground projection: golden places, no seam, bearings, and a pinhole camera's wedge."""

from __future__ import annotations

import math

import pytest
import torch

from cvgl_models.geometry.bev import bev_from_panorama
from cvgl_models.geometry.ground import ground_from_panorama, ground_from_pinhole, panorama_places, pinhole_places

KITTI_K = torch.tensor([[[582.98, 0.0, 496.24], [0.0, 482.71, 125.0], [0.0, 0.0, 1.0]]])


def ones(value: float, size: int = 1) -> torch.Tensor:
    return torch.full((size,), value)


@pytest.mark.parametrize(
    ("row", "column", "u", "v"),
    [
        (0, 127, 159.8003, 82.8189),
        (128, 255, 240.1997, 82.8189),
        (255, 128, 319.8003, 82.8189),
        (127, 0, 80.1997, 82.8189),
    ],
)
def test_golden_places_of_a_panorama(row: int, column: int, u: float, v: float) -> None:
    u_BSS, v_BSS = panorama_places(256, ones(0.28312), 2.0)
    assert u_BSS[0, row, column] * 320 == pytest.approx(u, abs=1e-3)
    assert v_BSS[0, row, column] * 160 == pytest.approx(v, abs=1e-3)


@pytest.mark.parametrize(
    ("away_m", "v"), [(1, 136.3866), (2, 120.0), (5, 99.3790), (10, 90.0533), (20, 85.0761), (0, 160.0)]
)
def test_golden_rows_by_distance(away_m: float, v: float) -> None:
    _, v_BSS = panorama_places(41, ones(1.0), 2.0)
    assert v_BSS[0, 20 - int(away_m), 20] * 160 == pytest.approx(v, abs=1e-3)


def test_a_white_panorama_gives_white_ground_without_a_wedge() -> None:
    ground = ground_from_panorama(torch.ones(2, 3, 20, 46), 33, ones(0.7, 2), 2.0, torch.tensor([0.0, 37.0]))
    assert torch.allclose(ground, torch.ones(2, 3, 33, 33), atol=1e-6)


def test_it_is_smooth_across_the_seam_and_half_pixel_exact() -> None:
    width = 64
    bearing_W = ((torch.arange(width) + 0.5) / width - 0.5) * 2 * math.pi
    panorama = torch.stack([bearing_W.cos(), bearing_W.sin()]).expand(1, 2, -1)[:, :, None].expand(-1, -1, 32, -1)
    ground = ground_from_panorama(panorama, 40, ones(1.0), 2.5)
    center_S = torch.arange(40) + 0.5 - 20
    down_SS, across_SS = torch.meshgrid(center_S, center_S, indexing="ij")
    away_SS = torch.hypot(down_SS, across_SS)
    expected = torch.stack([-down_SS / away_SS, across_SS / away_SS])[None]
    assert (ground - expected).abs().max() < 2e-3  # of a linear interpolation between 64 columns


def test_a_quarter_of_heading_is_a_quarter_turn() -> None:
    torch.manual_seed(0)
    panorama = torch.rand(1, 2, 32, 64)
    north, east = (ground_from_panorama(panorama, 24, ones(0.5), 2.5, ones(heading)) for heading in (0.0, 90.0))
    assert torch.allclose(east, torch.rot90(north, -1, (-2, -1)), atol=1e-4)


def test_heading_undoes_a_roll_of_the_panorama() -> None:
    torch.manual_seed(1)
    panorama = torch.rand(1, 2, 32, 64)
    turned = panorama.roll(-8, -1)  # what was 45 degrees to the right of the centre is the centre now
    plain = ground_from_panorama(panorama, 24, ones(0.5), 2.0)
    back = ground_from_panorama(turned, 24, ones(0.5), 2.0, ones(45.0))
    assert torch.allclose(plain, back, atol=1e-4)


def test_a_bright_centre_column_is_a_ray_ahead() -> None:
    panorama = torch.zeros(1, 1, 32, 64)
    panorama[..., 31:33] = 1
    ground = ground_from_panorama(panorama, 21, ones(1.0), 2.0)[0, 0]
    assert ground[:10, 10].min() > 0.99
    assert ground[11:, 10].max() == 0
    to_the_right = ground_from_panorama(panorama, 21, ones(1.0), 2.0, ones(90.0))[0, 0]
    assert to_the_right[10, 11:].min() > 0.99


def test_it_agrees_with_the_top_view_of_whole_panoramas() -> None:
    torch.manual_seed(2)
    panorama = torch.rand(1, 3, 64, 128)
    ground = ground_from_panorama(panorama, 48, ones(0.8), 2.5)
    assert torch.allclose(ground, bev_from_panorama(panorama, 48, 0.8, 2.5), atol=2e-4)


def test_every_sample_has_its_own_cell_size() -> None:
    torch.manual_seed(3)
    panorama = torch.rand(1, 1, 32, 64).expand(2, -1, -1, -1)
    both = ground_from_panorama(panorama, 16, torch.tensor([0.4, 0.9]), 2.0)
    for index, cell in enumerate((0.4, 0.9)):
        assert torch.allclose(both[index : index + 1], ground_from_panorama(panorama[:1], 16, ones(cell), 2.0))


@pytest.mark.parametrize(
    ("ahead_m", "right_m", "u", "v"), [(10, 0, 496.242, 204.65), (10, 2, 612.838, 204.65), (20, -3, 408.795, 164.827)]
)
def test_golden_places_of_a_pinhole_camera(ahead_m: int, right_m: int, u: float, v: float) -> None:
    u_BSS, v_BSS, in_front_BSS = pinhole_places(KITTI_K, 41, ones(1.0), 1.65)
    at = 0, 20 - ahead_m, 20 + right_m
    assert in_front_BSS[at]
    assert u_BSS[at] == pytest.approx(u, abs=5e-3)  # the intrinsics are known to two digits
    assert v_BSS[at] == pytest.approx(v, abs=5e-3)


@pytest.mark.parametrize(
    ("ahead_m", "v"),
    [
        (6.127, 255.0),  # the published first ground: index 255 of the last of 256 rows, taken for a place
        (6.0799, 256.0),  # where rows have their centres at .5: the image ends at the lower edge of that row
    ],
)
def test_first_visible_ground_of_a_pinhole_camera(ahead_m: float, v: float) -> None:
    """Ground 5 cm nearer than the published number is still seen: the last row has an area, not a line."""
    _, v_BSS, in_front_BSS = pinhole_places(KITTI_K, 3, ones(ahead_m), 1.65)
    assert in_front_BSS[0, 0, 1]
    assert v_BSS[0, 0, 1] == pytest.approx(v, abs=0.01)  # half a millimetre on the ground
    for nearer_m, seen in ((0.001, v < 256), (-0.001, True)):
        cell_m = ones(ahead_m - nearer_m)
        _, mask_BSS = ground_from_pinhole(torch.ones(1, 1, 64, 256), (256, 1024), KITTI_K, 3, cell_m, 1.65)
        assert mask_BSS[0, 0, 1] == seen


def test_a_pinhole_camera_sees_a_wedge_in_front_of_it() -> None:
    seen, mask = ground_from_pinhole(torch.ones(1, 2, 64, 256), (256, 1024), KITTI_K, 81, ones(0.5), 1.65)
    assert torch.allclose(seen[0, 0], mask[0])
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask[0, 40:].max() == 0  # behind
    ahead_m = (40 - torch.arange(81)) * 0.5
    assert torch.equal(mask[0, :, 40] > 0, ahead_m > 6.08)  # 482.71 * 1.65 / (256 - 125)
    east = ground_from_pinhole(torch.ones(1, 2, 64, 256), (256, 1024), KITTI_K, 81, ones(0.5), 1.65, ones(90.0))[1]
    assert (east[0] - torch.rot90(mask[0], -1)).abs().sum() <= 8  # cells right on the wedge's edge


def test_gradients_reach_the_map() -> None:
    maps = torch.rand(1, 2, 16, 32, requires_grad=True)
    ground_from_panorama(maps, 12, ones(1.0), 2.0).sum().backward()
    assert maps.grad is not None
    assert maps.grad[..., :6, :].abs().max() == 0  # nothing above the horizon is ground
    assert maps.grad[..., 9:, :].abs().min() >= 0 < maps.grad.abs().sum()
