"""Bilinear sampling at given places, in one convention for all maps of this package.

Shapes: B images, C channels, H and W of the output, h and w of the input. A grid holds (x, y) per output pixel, -1 and
1 the outer edges of the input (not the centres of its outermost pixels): ``align_corners`` is False everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resample(images_BChw: Tensor, grid_BHW2: Tensor, padding: str = "border") -> Tensor:
    """Return the images at the places of a grid.

    Args:
        images_BChw: Of any floating type.
        grid_BHW2: Of float32 or float64; (H, W, 2) serves all images alike.
        padding: What lies outside: ``border`` repeats the edge, ``reflection`` mirrors, ``zeros`` is 0.

    Returns:
        (B, C, H, W) of the images' type. Half precision is computed in float32: a place in bfloat16 would be off by
        pixels.
    """
    if grid_BHW2.ndim == 3:
        grid_BHW2 = grid_BHW2.expand(len(images_BChw), -1, -1, -1)
    kind = torch.promote_types(torch.promote_types(images_BChw.dtype, grid_BHW2.dtype), torch.float32)
    with torch.autocast(images_BChw.device.type, enabled=False):
        sampled = F.grid_sample(images_BChw.to(kind), grid_BHW2.to(kind), padding_mode=padding, align_corners=False)
    return sampled.to(images_BChw.dtype)


def pixel_centers(height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the grid that leaves an image as it is, (H, W, 2)."""
    y = (torch.arange(height, dtype=dtype) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, dtype=dtype) + 0.5) * (2 / width) - 1
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
