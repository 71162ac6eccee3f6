"""Affine sampling.

Shapes: B images, C channels, H and W of the output, h and w of the input. An affine map (B, 2, 3) takes the output's
coordinates (x, y, 1) to the input's; -1 and 1 are the outer edges of both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cvgl_models.geometry.resampling import resample


def affine_grid(theta_B23: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Return where each output pixel looks, (B, H, W, 2), in float32 or finer."""
    kind = torch.promote_types(theta_B23.dtype, torch.float32)
    with torch.autocast(theta_B23.device.type, enabled=False):  # products of half precision are too coarse for places
        return F.affine_grid(theta_B23.to(kind), [len(theta_B23), 1, *size_px], align_corners=False)


def affine_transform(
    images_BChw: Tensor, theta_B23: Tensor, size_px: tuple[int, int], padding: str = "border"
) -> Tensor:
    """Return images moved by affine maps, at another size.

    Args:
        images_BChw: Of any floating type.
        theta_B23: From the output's coordinates to the input's.
        size_px: Height and width of the output; the identity only resizes.
        padding: ``border`` or ``zeros``.

    Returns:
        (B, C, H, W) of the images' type.
    """
    return resample(images_BChw, affine_grid(theta_B23, size_px), padding)


def compose_affine(*theta_B23: Tensor) -> Tensor:
    """Return the one map that does what sampling by several, the first one first, would do."""
    first_B23 = theta_B23[0]
    for then_B23 in theta_B23[1:]:
        with torch.autocast(first_B23.device.type, enabled=False):
            linear_B22 = first_B23[:, :, :2] @ then_B23[:, :, :2]
            offset_B2 = (first_B23[:, :, :2] @ then_B23[:, :, 2:])[:, :, 0] + first_B23[:, :, 2]
        first_B23 = torch.cat([linear_B22, offset_B2[:, :, None]], 2)
    return first_B23
