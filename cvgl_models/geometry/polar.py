"""The polar transform: an overhead image unrolled about its centre, so that it looks roughly like a panorama.

Shapes: B images, C channels, S side of the overhead image, H and W of the output.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from cvgl_models.geometry.resampling import resample

CENTERS = ("pixel", "middle", "published")

CVUSA_SIZE_PX = (112, 616)
"""Height and width of the output for CVUSA, from 750 pixels."""
VIGOR_SIZE_PX = (320, 640)
"""Height and width of the output for VIGOR, from 640 pixels."""


def polar_map(side_px: int, size_px: tuple[int, int], center: str = "pixel") -> tuple[Tensor, Tensor]:
    """Return the place in the overhead image that each pixel of the output shows.

    Columns run clockwise from south, so that the middle one looks north (the top); rows run inwards.

    Args:
        side_px: S.
        size_px: H and W.
        center: ``pixel``: rows and columns stand for their middles, as in a panorama, and the camera in the middle of
            the image; mirroring and quarter turns of the image then mirror and roll the output exactly. ``published``:
            row i has the radius of its outer edge less a whole row, column j the azimuth of its left edge, and the
            camera is half a pixel off. ``middle``: as published, but for the camera.

    Returns:
        Rows and columns, each (H, W) float64, whole numbers at the pixels' centres.

    Raises:
        ValueError: If ``center`` is unknown.

    Source:
        Shi et al., "Spatial-Aware Feature Aggregation for Image Based Cross-View Geo-Localization", equation 1.
    """
    if center not in CENTERS:
        raise ValueError(f"center must be one of {', '.join(CENTERS)}, not '{center}'")
    height, width = size_px
    half_px = 0.5 if center == "pixel" else 0.0
    origin = side_px / 2 if center == "published" else (side_px - 1) / 2
    inwards = torch.arange(height, dtype=torch.float64)
    radius_H1 = (side_px / 2 / height * (height - 1 + half_px - inwards))[:, None]
    angle_W = 2 * math.pi / width * (torch.arange(width, dtype=torch.float64) + half_px)
    return origin + radius_H1 * angle_W.cos(), origin - radius_H1 * angle_W.sin()


def polar_transform(images_BCSS: Tensor, size_px: tuple[int, int], *, center: str = "pixel") -> Tensor:
    """Return overhead images unrolled about their centre.

    Args:
        images_BCSS: North up, of any floating type.
        size_px: Height and width of the output.
        center: See `polar_map`. Beyond the image is black in ``published``, else the image's edge.

    Returns:
        (B, C, H, W), same type and device.

    Raises:
        ValueError: If the images are not square, or ``center`` is unknown.
    """
    height, width = images_BCSS.shape[-2:]
    if width != height:
        raise ValueError(f"the polar transform needs square images, these are {width}x{height}")
    grid_HW2 = polar_grid(height, size_px, center, images_BCSS.dtype == torch.float64, str(images_BCSS.device))
    return resample(images_BCSS, grid_HW2, "zeros" if center == "published" else "border")


@lru_cache(maxsize=16)
def polar_grid(side_px: int, size_px: tuple[int, int], center: str, double: bool, device: str) -> Tensor:
    """Return `polar_map` as a grid for `resample`, (H, W, 2)."""
    with torch.inference_mode(False):  # what is kept must serve training too, whoever asks first
        rows_HW, columns_HW = polar_map(side_px, size_px, center)
        grid_HW2 = (torch.stack([columns_HW, rows_HW], -1) + 0.5) * (2 / side_px) - 1
        return grid_HW2.to(device=device, dtype=torch.float64 if double else torch.float32)
