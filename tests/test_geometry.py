import itertools
import math

import numpy as np
import pytest
import torch

from cvgl_models.geometry import (
    bev_from_panorama,
    bev_mask,
    fov_deg_from_side,
    matched_meters_per_px,
    meters_per_px_from_fov,
)

HEIGHT_M = 2.5


def texture(east, north):
    return np.sin(2 * np.pi * east / 6) * np.cos(2 * np.pi * north / 8)


def ground_panorama(height):
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(2 * height) + 0.5, indexing="ij")
    azimuth = (columns / (2 * height) - 0.5) * 2 * np.pi
    down = (rows / height - 0.5) * np.pi
    away = np.where(down > 0, HEIGHT_M / np.tan(np.maximum(down, 1e-9)), 0)
    ground = np.where(down > 0, texture(away * np.sin(azimuth), away * np.cos(azimuth)), 0)
    return torch.from_numpy(ground)[None, None]


def test_scale_of_the_published_field_of_view():
    assert meters_per_px_from_fov(384, 170.0, 1.0) == pytest.approx(0.0595315, abs=1e-7)
    assert 384 / 2 * meters_per_px_from_fov(384, 170.0, 1.0) == pytest.approx(11.43005, abs=1e-5)
    # a focal length in pixels is camera heights over the side of a pixel
    assert 2.5 / meters_per_px_from_fov(384, 170.0, 2.5) == pytest.approx(16.79782, abs=5e-6)
    assert 1 / meters_per_px_from_fov(512, 170.0, 1.0) == pytest.approx(22.3971, abs=5e-5)
    assert 384 / 2 * meters_per_px_from_fov(384, 170.0, 2.5) == pytest.approx(28.6, abs=0.05)
    fov = fov_deg_from_side(99.6, 2.5)
    assert fov == pytest.approx(174.252, abs=1e-3)
    assert fov_deg_from_side(71.14, 2.5) == pytest.approx(171.96, abs=5e-3)
    assert 384 * meters_per_px_from_fov(384, fov, 2.5) == pytest.approx(99.6)


def test_where_single_pixels_look():
    # 385 pixels at the published scale: the outermost centres lie at 85 degrees from straight down.
    scale = 2 * math.tan(math.radians(85)) / 384
    height = 720
    v = (torch.arange(height, dtype=torch.float64) + 0.5) / height
    u = (torch.arange(2 * height, dtype=torch.float64) + 0.5) / (2 * height)
    bev_v = bev_from_panorama(v[:, None].expand(1, 1, height, 2 * height), 385, scale, 1.0)[0, 0]
    bev_u = bev_from_panorama(u.expand(1, 1, height, 2 * height), 385, scale, 1.0)[0, 0]
    assert bev_v[0, 192].item() == pytest.approx(0.527778, abs=1e-6)
    assert bev_u[0, 192].item() == pytest.approx(0.5, abs=1e-12)
    assert bev_u[192, 0].item() == pytest.approx(0.25, abs=1e-12)
    assert bev_u[192, 384].item() == pytest.approx(0.75, abs=1e-12)
    assert bev_v[192, 192].item() == pytest.approx(1.0, abs=1 / height)


@pytest.mark.parametrize(("height", "bounds"), [(1024, (1e-4, 5e-4, 2e-3, 1e-2)), (512, (1.2e-4, 1e-3, 4.4e-3, 2e-2))])
def test_flat_ground_comes_back(height, bounds):
    bev = bev_from_panorama(ground_panorama(height), 256, 0.15, HEIGHT_M)[0, 0].numpy()
    center = (np.arange(256) + 0.5 - 128) * 0.15
    east, north = np.meshgrid(center, -center)
    error, away = np.abs(bev - texture(east, north)), np.hypot(east, north)
    for radius, bound in zip((5, 10, 15, 25), bounds, strict=True):
        assert error[away < radius].mean() <= bound


@pytest.mark.parametrize("size", [32, 64])
def test_rolling_is_turning_and_flipping_is_flipping(size):
    pano = torch.rand(2, 3, 64, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bev = bev_from_panorama(pano, size, 0.5, HEIGHT_M)
    turned = bev_from_panorama(pano.roll(-32, -1), size, 0.5, HEIGHT_M)
    torch.testing.assert_close(turned, torch.rot90(bev, 1, (2, 3)), atol=1e-11, rtol=0)
    torch.testing.assert_close(bev_from_panorama(pano.flip(-1), size, 0.5, HEIGHT_M), bev.flip(-1), atol=1e-11, rtol=0)


def test_no_seam_in_the_south():
    assert torch.equal(
        bev_from_panorama(torch.ones(1, 3, 64, 128), 64, 0.5, HEIGHT_M, oversample=2), torch.ones(1, 3, 64, 64)
    )


def test_the_sky_is_never_seen():
    pano = torch.zeros(1, 1, 128, 256)
    pano[:, :, : 128 // 2 - 1] = 1
    assert bev_from_panorama(pano, 256, 10.0, HEIGHT_M).max() == 0


def test_only_the_ratio_of_scale_and_height_matters():
    pano = torch.rand(1, 3, 64, 128)
    torch.testing.assert_close(bev_from_panorama(pano, 32, 0.5, 2.5), bev_from_panorama(pano, 32, 1.0, 5.0))


def test_oversampling_averages():
    pano = torch.rand(1, 3, 64, 128, dtype=torch.float64)
    dense = bev_from_panorama(pano, 64, 0.25, HEIGHT_M)
    expected = dense.reshape(1, 3, 32, 2, 32, 2).mean((3, 5))
    torch.testing.assert_close(bev_from_panorama(pano, 32, 0.5, HEIGHT_M, oversample=2), expected)


def test_gradients_reach_the_panorama():
    pano = torch.rand(1, 1, 8, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: bev_from_panorama(image, 6, 1.0, HEIGHT_M), pano)


def test_wrong_panoramas():
    with pytest.raises(ValueError, match="twice as wide"):
        bev_from_panorama(torch.rand(1, 3, 64, 100), 32, 0.5, HEIGHT_M)
    with pytest.raises(ValueError, match="floating"):
        bev_from_panorama(torch.zeros(1, 3, 64, 128, dtype=torch.uint8), 32, 0.5, HEIGHT_M)


def ramps(height, width):
    """Return a panorama of two channels: its own u and v in pixels, (1, 2, H, W) float64."""
    u = (torch.arange(width, dtype=torch.float64) + 0.5).expand(height, -1)
    v = (torch.arange(height, dtype=torch.float64) + 0.5)[:, None].expand(-1, width)
    return torch.stack([u, v])[None]


@pytest.mark.parametrize(
    ("height", "row", "column", "u", "v"),
    [
        (832, 0, 0, 624.0, 434.2943),
        (832, 0, 511, 1040.0, 434.2943),
        (832, 511, 0, 208.0, 434.2943),
        (832, 511, 511, 1456.0, 434.2943),
        (832, 255, 256, 1040.0, 824.5114),
        (832, 256, 256, 1456.0, 824.5114),
        (832, 100, 400, 1030.2938, 447.0470),
        (832, 0, 256, 832.5183, 441.8310),
        (832, 256, 511, 1248.5183, 441.8310),
        (832, 511, 256, 1663.4817, 441.8310),
        (616, 0, 0, 462.0, 321.5448),
        (616, 100, 400, 762.8137, 330.9867),
        (616, 256, 256, 1078.0, 610.4555),
    ],
)
def test_places_of_the_published_scale_and_height(height, row, column, u, v):
    looked = bev_from_panorama(ramps(height, 2 * height), 512, 0.06, 1.5)[0, :, row, column]
    if 0.5 <= u <= 2 * height - 0.5:  # on the seam a ramp of u means nothing
        assert looked[0].item() == pytest.approx(u, abs=1e-3)
    assert looked[1].item() == pytest.approx(v, abs=1e-3)


@pytest.mark.parametrize(("away_m", "v"), [(0.5, 746.7896), (1.5, 624.0), (3, 538.7896), (5, 493.1876), (10, 455.4311)])
def test_row_of_a_distance(away_m, v):
    looked = bev_from_panorama(ramps(832, 1664), 3, away_m, 1.5)[0, 1]
    assert looked[1, 2].item() == pytest.approx(v, abs=1e-3)  # the pixel to the right of the camera's


def test_rows_fall_from_the_nadir_to_the_horizon():
    """832 straight down and 416 infinitely far; a picture ends half a pixel before its edge."""
    looked = bev_from_panorama(ramps(832, 1664), 401, 0.05, 1.5)[0, 1]
    rightwards = looked[200, 200:].tolist()
    assert rightwards[0] == pytest.approx(831.5, abs=1e-9)
    assert all(near > far for near, far in itertools.pairwise(rightwards))
    assert looked.min() > 416
    far = bev_from_panorama(ramps(832, 1664), 3, 1e6, 1.5)[0, 1, 1, 2].item()
    assert far == pytest.approx(416, abs=1e-3)


def test_a_ring_stays_a_ring_and_a_meridian_becomes_a_ray():
    pano = torch.zeros(1, 2, 832, 1664, dtype=torch.float64)
    pano[0, 0, 622:627] = 1  # v = 624.5, 1.5 m away
    pano[0, 1, :, 1038:1042] = 1  # u = 1040, the north-east
    ring, ray = bev_from_panorama(pano, 512, 0.06, 1.5)[0]
    offset = torch.arange(512) + 0.5 - 256
    away_px = torch.hypot(offset[:, None], offset)
    weighted = (ring * away_px).sum() / ring.sum()
    assert weighted.item() == pytest.approx(25, abs=1)
    assert away_px[ring > 0.5].min() > 24
    assert away_px[ring > 0.5].max() < 26
    rows, columns = (ray > 0.5).nonzero(as_tuple=True)
    assert (columns - (511 - rows)).abs().max() <= 4  # four columns are 5 px wide in the corner
    assert len(rows) >= 250


def test_an_image_of_each_sample_is_that_of_its_own_numbers():
    pano = torch.rand(3, 2, 32, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale, high = torch.tensor([0.2, 0.5, 1.3]), torch.tensor([1.5, 2.5, 2.0])
    heading = torch.tensor([0.0, 62.0, -200.0])
    together = bev_from_panorama(pano, 24, scale, high, heading_deg=heading)
    for row in range(3):
        alone = bev_from_panorama(
            pano[row : row + 1], 24, scale[row].item(), high[row].item(), heading_deg=heading[row].item()
        )
        torch.testing.assert_close(together[row], alone[0], atol=2e-6, rtol=0)  # these numbers are float32
    constant = bev_from_panorama(torch.ones_like(pano), 24, scale, high, heading_deg=heading)
    torch.testing.assert_close(constant, torch.ones_like(constant), atol=1e-12, rtol=0)


def test_a_heading_turns_the_panorama():
    pano = torch.rand(1, 3, 32, 64, dtype=torch.float64)
    rolled = pano.roll(16, -1)  # 64 columns: a quarter
    for heading in (90.0, torch.tensor([90.0])):
        turned = bev_from_panorama(pano, 20, 0.5, HEIGHT_M, heading_deg=heading)
        torch.testing.assert_close(turned, bev_from_panorama(rolled, 20, 0.5, HEIGHT_M), atol=1e-9, rtol=0)
    whole = bev_from_panorama(pano, 20, 0.5, HEIGHT_M, heading_deg=360.0 + 62.0)
    torch.testing.assert_close(whole, bev_from_panorama(pano, 20, 0.5, HEIGHT_M, heading_deg=62.0), atol=1e-9, rtol=0)


def test_a_heading_is_the_published_number_of_half_turns():
    looked = bev_from_panorama(ramps(832, 1664), 512, 0.06, 1.5, heading_deg=62.0)[0, 0, 0, 511]
    assert looked.item() == pytest.approx((math.pi / 4 + math.pi - 0.344444 * math.pi) / (2 * math.pi) * 1664, abs=2e-3)


def test_lines_on_the_ground_stay_straight():
    """Edges of stripes 2 m wide, in a panorama whose pixels are means of nine, less than 8 m away."""
    height, scale = 1024, 0.15
    rows = (torch.arange(3 * height // 2) + 0.5) / (3 * height)
    azimuth = ((torch.arange(6 * height) + 0.5) / (6 * height) - 0.5) * 2 * math.pi
    east = (HEIGHT_M / torch.tan(rows * math.pi))[:, None] * azimuth.sin()
    stripes = (east / 2).floor().remainder(2)[None, None]
    pano = torch.nn.functional.pad(torch.nn.functional.avg_pool2d(stripes, 3), (0, 0, height // 2, 0))
    bev = bev_from_panorama(pano.double(), 128, scale, HEIGHT_M)[0, 0]
    offset_m = (torch.arange(128) + 0.5 - 64) * scale
    residuals = []
    for row, south_m in enumerate(offset_m.tolist()):
        for left in ((bev[row, :-1] - 0.5) * (bev[row, 1:] - 0.5) < 0).nonzero()[:, 0].tolist():
            part = ((0.5 - bev[row, left]) / (bev[row, left + 1] - bev[row, left])).item()
            edge_m = offset_m[left].item() + part * scale
            if math.hypot(edge_m, south_m) < 8:
                residuals.append(abs(edge_m - 2 * round(edge_m / 2)) / scale)
    assert len(residuals) > 500
    assert max(residuals) < 0.5


def test_a_field_of_view_is_a_scale():
    pano = torch.rand(1, 3, 32, 64, dtype=torch.float64)
    scale = meters_per_px_from_fov(24, 170.0, 2.5)
    torch.testing.assert_close(bev_from_panorama(pano, 24, fov_deg=170.0), bev_from_panorama(pano, 24, scale, 2.5))


def test_a_matched_view_covers_the_ground_of_its_reference():
    gsd_m = torch.tensor([0.597, 0.402])
    scale = matched_meters_per_px(gsd_m, 640, 384)
    torch.testing.assert_close(scale * 384, gsd_m * 640)
    assert matched_meters_per_px(0.5, 200, 100) == 1.0


CVUSA_DEG = (51.428571, 116.883117)  # rows 176 to 399 of 616
PADDED_DEG = (196 / 616 * 180, 420 / 616 * 180)  # in the middle


def test_the_hole_of_a_cut_panorama():
    hole_px = ((~bev_mask(384, fov_deg=170.0, zenith_deg=CVUSA_DEG)).sum() / math.pi).sqrt().item()
    assert hole_px == pytest.approx(33.1, abs=0.2)
    hole_px = ((~bev_mask(512, 0.06, 1.5, zenith_deg=PADDED_DEG)).sum() / math.pi).sqrt().item()
    assert hole_px == pytest.approx(38.9, abs=0.1)
    hole_px = ((~bev_mask(512, 0.06, 1.5, zenith_deg=(45.0, 135.0))).sum() / math.pi).sqrt().item()
    assert hole_px == pytest.approx(25.0, abs=0.1)
    # the published code loses one more row, because it takes an index for an edge
    seen = bev_mask(512, 0.06, 1.5, zenith_deg=(PADDED_DEG[0], 419 / 616 * 180)).double().mean().item()
    assert seen == pytest.approx(0.9814, abs=1e-4)
    assert bev_mask(64, 0.5).all()
    assert bev_mask(64, torch.tensor([0.1, 0.5]), 2.0, zenith_deg=(45.0, 135.0)).sum((1, 2)).diff() > 0


def test_a_cut_panorama_shows_what_the_whole_one_shows():
    whole = torch.rand(2, 3, 616, 1232, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cut = whole[:, :, 196:420]
    seen = bev_mask(128, 0.24, 1.5, zenith_deg=(PADDED_DEG[0], 419.4 / 616 * 180))  # no row below would be mixed in
    expected = bev_from_panorama(whole, 128, 0.24, 1.5)
    found = bev_from_panorama(cut, 128, 0.24, 1.5, zenith_deg=PADDED_DEG)
    torch.testing.assert_close(found[:, :, seen], expected[:, :, seen], atol=1e-9, rtol=0)
    hole = ~bev_mask(128, 0.24, 1.5, zenith_deg=PADDED_DEG)
    shown = bev_mask(128, 0.24, 1.5, zenith_deg=PADDED_DEG)
    mean = found[:, :, shown].mean(-1)
    torch.testing.assert_close(found[:, :, hole], mean[:, :, None].expand(-1, -1, int(hole.sum())))
    tensors = bev_from_panorama(cut, 128, torch.full((2,), 0.24, dtype=torch.float64), 1.5, zenith_deg=PADDED_DEG)
    torch.testing.assert_close(tensors, found, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_looks_at_the_same_places(kind):
    pano = torch.rand(1, 3, 512, 1024, generator=torch.Generator().manual_seed(0)).to(kind)
    bev = bev_from_panorama(pano, 64, fov_deg=170.0)
    assert bev.dtype == kind
    torch.testing.assert_close(bev, bev_from_panorama(pano.float(), 64, fov_deg=170.0).to(kind))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bev, bev_from_panorama(pano, 64, fov_deg=170.0))


def test_a_grid_first_used_in_evaluation_serves_training():
    pano = torch.rand(1, 1, 34, 68)
    with torch.inference_mode():
        bev_from_panorama(pano, 9, 0.7, 2.0)
    pano.requires_grad_()
    bev_from_panorama(pano, 9, 0.7, 2.0).sum().backward()
    assert pano.grad is not None


def test_gradients_of_scale_and_heading():
    pano = torch.rand(2, 1, 8, 16, dtype=torch.float64)
    scale = torch.tensor([0.7, 1.1], dtype=torch.float64, requires_grad=True)
    heading = torch.tensor([3.0, 100.0], dtype=torch.float64, requires_grad=True)
    look = lambda scale, heading: bev_from_panorama(pano, 4, scale, 2.0, heading_deg=heading)  # noqa: E731
    assert torch.autograd.gradcheck(look, (scale, heading))


def test_wrong_arguments():
    pano = torch.rand(1, 3, 32, 64)
    for wrong in ({}, {"meters_per_px": 0.5, "fov_deg": 170.0}):
        with pytest.raises(ValueError, match="exactly one"):
            bev_from_panorama(pano, 8, **wrong)
    with pytest.raises(ValueError, match="between 0 and 180"):
        bev_from_panorama(pano, 8, fov_deg=180.0)
    with pytest.raises(ValueError, match="must be positive"):
        bev_from_panorama(pano, 8, 0.5, 0.0)
    with pytest.raises(ValueError, match="below the horizon"):
        bev_from_panorama(pano, 8, 0.5, zenith_deg=(10.0, 80.0))
