import math

import numpy as np
import pytest
import torch

from cvgl_models.geometry import bev_from_panorama, meters_per_px_from_fov

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
    fov = math.degrees(2 * math.atan(99.6 / (2 * 2.5)))
    assert fov == pytest.approx(174.252, abs=1e-3)
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
