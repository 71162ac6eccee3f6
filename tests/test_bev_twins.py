"""The top view that datasets are built with and the one that models compute are the same picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvgl_data.panorama import bev as numpy_bev
from cvgl_data.panorama import to_bev
from cvgl_models.geometry import bev_from_panorama, bev_mask


def panorama(width: int) -> np.ndarray:
    """Return a smooth but busy picture, (width / 2, width, 3) uint8."""
    v, u = np.mgrid[0 : width // 2, 0:width] / width * 2 * np.pi
    waves = [np.sin(5 * u + phase) * np.cos(9 * v) + 0.5 * np.sin(23 * v + 3 * u) for phase in (0, 1, 2)]
    return np.clip(127 + 80 * np.stack(waves, -1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("width", "size_px", "meters_per_px"), [(512, 64, 0.9), (1024, 128, 0.45), (2048, 255, 0.15)])
def test_both_give_the_same_picture(width, size_px, meters_per_px):
    image = panorama(width)
    ours = to_bev(image, size_px, meters_per_px=meters_per_px, camera_height_m=2.5).astype(np.float64)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    theirs = bev_from_panorama(tensor, size_px, meters_per_px, 2.5)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() <= 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"fov_deg": 170.0},
        {"fov_deg": 174.252, "heading_deg": 62.0},
        {"meters_per_px": 0.4, "camera_height_m": 1.5, "oversample": 3},
        {"meters_per_px": 0.3, "camera_height_m": 1.5, "zenith_deg": (51.4, 116.9)},
        {"fov_deg": 160.0, "zenith_deg": (45.0, 135.0), "heading_deg": -100.0, "oversample": 2},
    ],
)
@pytest.mark.parametrize("channels", [0, 3])
def test_both_give_the_same_picture_of_noise(options, channels):
    """Noise shows an error of place as nothing else does; half a level is lost by rounding."""
    shape = (70, 256) if "zenith_deg" in options else (128, 256)
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels) if channels else shape, dtype=np.uint8)
    planes = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)[None].float()
    ours = to_bev(image, 65, **options)
    theirs = bev_from_panorama(planes, 65, **options)[0].permute(1, 2, 0).numpy().reshape(ours.shape)
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs).max() <= 0.51
    exact = to_bev(image.astype(np.float64), 65, **options)
    assert np.abs(exact - theirs).max() <= 0.01


def test_both_say_alike_what_is_seen():
    options = {"fov_deg": 170.0, "zenith_deg": (51.428571, 116.883117)}
    seen = numpy_bev.bev_mask(384, **options)
    assert 0 < (~seen).sum() < 4000
    assert np.array_equal(seen, bev_mask(384, **options).numpy())


def test_the_numpy_twin_refuses_what_the_other_refuses():
    with pytest.raises(ValueError, match="twice as wide"):
        to_bev(np.zeros((64, 100), np.uint8), 8, fov_deg=170.0)
    with pytest.raises(ValueError, match="below the horizon"):
        to_bev(np.zeros((64, 128), np.uint8), 8, fov_deg=170.0, zenith_deg=(0.0, 90.0))
