"""Changes of viewpoint as batched, differentiable sampling.

Shapes: B images, C channels, H and W of the panorama, S side of the output. Angles: azimuth clockwise from north.
A panorama's columns run clockwise, its centre column looks north, its middle row is the horizon.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


def meters_per_px_from_fov(size_px: int, fov_deg: float, camera_height_m: float) -> float:
    """Return the scale of a top view that a pinhole camera looking straight down with this opening angle would have.

    Example:
        >>> round(meters_per_px_from_fov(384, 170.0, 1.0), 7)
        0.0595315

    Source:
        HC-Net and AuxGeo, which give a field of view instead of a scale.
    """
    return 2 * camera_height_m * math.tan(math.radians(fov_deg) / 2) / size_px


def bev_from_panorama(
    pano_BCHW: Tensor,
    size_px: int,
    meters_per_px: float,
    camera_height_m: float,
    *,
    oversample: int = 1,
) -> Tensor:
    """Return the top view of the ground around the camera, north up, as if everything stood at ground level.

    Only rows below the horizon are read. Sampling is bilinear, half-pixel exact, and runs round the seam at the
    panorama's edge.

    Args:
        pano_BCHW: Upright, north-aligned equirectangular panoramas of any floating type; W = 2H.
        size_px: Side of the output; the camera stands at its centre.
        meters_per_px: Ground metres per output pixel.
        camera_height_m: Height of the camera above the ground.
        oversample: Sample this many times denser in each direction and average, against aliasing.

    Returns:
        (B, C, S, S), same type and device.

    Raises:
        ValueError: If the panorama is not twice as wide as high, or not of a floating type.
    """
    height, width = pano_BCHW.shape[-2:]
    if width != 2 * height:
        raise ValueError(f"an equirectangular panorama is twice as wide as high, this one is {width}x{height}")
    if not pano_BCHW.is_floating_point():
        raise ValueError(f"panoramas must be of a floating type, not {pano_BCHW.dtype}")
    first_row = max(0, height // 2 - 2)
    ground_BCHW = F.pad(pano_BCHW[..., first_row:, :], (1, 1, 0, 0), mode="circular")
    grid_SS2 = _bev_grid(
        height,
        first_row,
        size_px * oversample,
        meters_per_px / oversample / camera_height_m,
        pano_BCHW.dtype,
        str(pano_BCHW.device),
    )
    grid_BSS2 = grid_SS2.expand(len(pano_BCHW), -1, -1, -1)
    bev_BCSS = F.grid_sample(ground_BCHW, grid_BSS2, padding_mode="border", align_corners=False)
    return F.avg_pool2d(bev_BCSS, oversample) if oversample > 1 else bev_BCSS


@lru_cache(maxsize=16)
def _bev_grid(
    height: int, first_row: int, size_px: int, heights_per_px: float, dtype: torch.dtype, device: str
) -> Tensor:
    """Return where each output pixel looks, in `grid_sample` coordinates of the padded lower part, (S, S, 2)."""
    center = (torch.arange(size_px, dtype=torch.float64) + 0.5 - size_px / 2) * heights_per_px
    south, east = torch.meshgrid(center, center, indexing="ij")
    u = 0.5 + torch.atan2(east, -south) / (2 * math.pi)
    v = 1.0 - torch.atan(torch.hypot(east, south)) / math.pi
    width, rows = 2 * height, height - first_row
    grid_x = 2 * (u * width + 1) / (width + 2) - 1
    grid_y = 2 * (v * height - first_row) / rows - 1
    return torch.stack([grid_x, grid_y], -1).to(device=device, dtype=dtype)
