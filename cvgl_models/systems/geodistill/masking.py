"""Hiding part of what a query sees.

Shapes: B queries, W columns of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fov_mask(
    size: int, width: int, kept_deg: tuple[float, float], *, wraps: bool = True, device: torch.device | None = None
) -> Tensor:
    """Return which columns of each query are kept: 1, or 0 in one gap at a random place.

    Args:
        size: B.
        width: Columns of the image.
        kept_deg: Least field of view that is kept and the one that it stays below, of 360 degrees all columns; drawn in
            whole degrees.
        wraps: Let the gap run round the seam of a panorama; else it lies inside the image.
        device: Where the mask is made, with the random numbers of that device.

    Returns:
        (B, 1, 1, W) float32.

    Source:
        GeoDistill (ICCV 2025), 3.3, whose gaps never run round the seam.
    """
    low, high = kept_deg
    kept_B = (low + (high - low) * torch.rand(size, device=device)).floor()
    hidden_B = ((1 - kept_B / 360) * width).round()
    starts_B = width if wraps else width - hidden_B + 1
    start_B = (torch.rand(size, device=device) * starts_B).floor()
    column_W = torch.arange(width, device=device)
    is_hidden_BW = torch.remainder(column_W - start_B[:, None], width) < hidden_B[:, None]
    return (~is_hidden_BW).float()[:, None, None]


def half_masks(size: int, width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return masks that keep the left and the right half of each query, twice (B, 1, 1, W)."""
    is_left_W = torch.arange(width, device=device) < width // 2
    return tuple(each.float().expand(size, 1, 1, -1) for each in (is_left_W, ~is_left_W))  # type: ignore[return-value]
