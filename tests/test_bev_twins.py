"""The top view that datasets are built with and the one that models compute are the same picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvgl_data.panorama import to_bev
from cvgl_models.geometry import bev_from_panorama


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
