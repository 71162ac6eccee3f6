"""Plane homographies from four corners, and what they do to places and bearings; batched and differentiable.

Shapes: B items, N points. Points are (u, v): u right, v down, any unit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-8


def homography_from_corners(source_B42: Tensor, target_B42: Tensor) -> Tensor:
    """Return the homographies that map four points onto four others.

    Solved in closed form: each four points in general position are the image of one projective basis, so the mapping
    is one basis matrix times the adjugate of the other. No linear solver runs and nothing waits for the accelerator.

    Args:
        source_B42: Four points of each item, no three of them on a line.
        target_B42: Where they go; the same order.

    Returns:
        (B, 3, 3) with 1 in the last place; float64 for float64 input, else float32. Points in degenerate position
        give a finite matrix that means nothing.

    Raises:
        ValueError: If the shapes are not (B, 4, 2) both.
    """
    if source_B42.shape != target_B42.shape or source_B42.shape[1:] != (4, 2):
        raise ValueError(f"corners must be (B, 4, 2) both, not {tuple(source_B42.shape)} and {tuple(target_B42.shape)}")
    dtype = torch.float64 if torch.float64 in (source_B42.dtype, target_B42.dtype) else torch.float32
    with torch.autocast(source_B42.device.type, enabled=False):
        to_source_B33, _ = _normalization(source_B42.to(dtype))
        to_target_B33, from_target_B33 = _normalization(target_B42.to(dtype))
        source_B33 = _basis(apply_homography(to_source_B33, source_B42.to(dtype)))
        target_B33 = _basis(apply_homography(to_target_B33, target_B42.to(dtype)))
        matrix_B33 = from_target_B33 @ target_B33 @ _adjugate(source_B33) @ to_source_B33
        return matrix_B33 / _away_from_zero(matrix_B33[:, 2:, 2:])


def apply_homography(matrix_B33: Tensor, points_BN2: Tensor) -> Tensor:
    """Return where points go, (B, N, 2), in the wider type of the two.

    A point on the horizon of the mapping goes far away, but stays finite.
    """
    with torch.autocast(points_BN2.device.type, enabled=False):
        points_BN2 = points_BN2.to(torch.promote_types(matrix_B33.dtype, points_BN2.dtype))
        matrix_B33 = matrix_B33.to(points_BN2.dtype)
        mapped_BN3 = points_BN2 @ matrix_B33[:, :, :2].transpose(1, 2) + matrix_B33[:, None, :, 2]
        return mapped_BN3[..., :2] / _away_from_zero(mapped_BN3[..., 2:])


def similarity(center_from_B2: Tensor, center_to_B2: Tensor, scale_B: Tensor, heading_deg_B: Tensor) -> Tensor:
    """Return the (B, 3, 3) matrices that turn clockwise about one point, scale, and carry that point to another.

    Args:
        center_from_B2: Fixed point of turn and scale.
        center_to_B2: Where it goes.
        scale_B: Target pixels per source pixel.
        heading_deg_B: Clockwise on the screen, so that "up" comes to lie at this bearing.
    """
    cos_B, sin_B = heading_deg_B.deg2rad().cos() * scale_B, heading_deg_B.deg2rad().sin() * scale_B
    linear_B22 = torch.stack([torch.stack([cos_B, -sin_B], 1), torch.stack([sin_B, cos_B], 1)], 1)
    # no matrix product, which autocast would round
    offset_B21 = (center_to_B2 - (linear_B22 * center_from_B2[:, None]).sum(2))[:, :, None]
    last_B13 = F.pad(linear_B22.new_ones(len(scale_B), 1, 1), (2, 0))  # made on the device: nothing is waited for
    return torch.cat([torch.cat([linear_B22, offset_B21], 2), last_B13], 1)


def heading_of(matrix_B33: Tensor, center_B2: Tensor, arm: float) -> Tensor:
    """Return the (B,) bearings, degrees clockwise from "up", at which "up" at a point lies after the mapping.

    Args:
        matrix_B33: From a top view whose "up" is looked for.
        center_B2: The point.
        arm: Length of the step upwards that is followed; matters for what is no similarity.

    Source:
        HC-Net, whose yaw is the negative of this (counter-clockwise).
    """
    up_B2 = torch.stack([center_B2[:, 0], center_B2[:, 1] - arm], 1)
    from_B2, to_B2 = apply_homography(matrix_B33, torch.stack([center_B2, up_B2], 1)).unbind(1)
    return torch.atan2(to_B2[:, 0] - from_B2[:, 0], from_B2[:, 1] - to_B2[:, 1]).rad2deg()


def square_corners(side: float, like: Tensor) -> Tensor:
    """Return the (4, 2) corners of a square from (0, 0) on: top left, top right, bottom left, bottom right."""
    index_4 = torch.arange(4, device=like.device)
    return torch.stack([index_4 % 2, index_4 // 2], 1).to(like.dtype) * side


def _normalization(points_B42: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices that bring points to the unit square's size about 0, and back: float32 needs it."""
    center_B2 = points_B42.detach().mean(1)
    scale_B = (points_B42.detach() - center_B2[:, None]).abs().amax((1, 2)).clamp(min=_TINY)
    zero_B2, none_B = torch.zeros_like(center_B2), torch.zeros_like(scale_B)
    return similarity(center_B2, zero_B2, 1 / scale_B, none_B), similarity(zero_B2, center_B2, scale_B, none_B)


def _basis(points_B42: Tensor) -> Tensor:
    """Return the matrices whose columns are the first three points, weighted so that their sum is the fourth."""
    first_B33 = torch.cat([points_B42[:, :3], torch.ones_like(points_B42[:, :3, :1])], 2).transpose(1, 2)
    fourth_B31 = torch.cat([points_B42[:, 3], torch.ones_like(points_B42[:, 3, :1])], 1)[:, :, None]
    weights_B31 = _adjugate(first_B33) @ fourth_B31  # up to the determinant, which is common to all
    return first_B33 * weights_B31.transpose(1, 2)


def _adjugate(matrix_B33: Tensor) -> Tensor:
    """Return the inverses times the determinants: the rows are cross products of the columns."""
    a_B3, b_B3, c_B3 = matrix_B33.unbind(2)
    rows = [torch.linalg.cross(b_B3, c_B3), torch.linalg.cross(c_B3, a_B3), torch.linalg.cross(a_B3, b_B3)]
    return torch.stack(rows, 1)


def _away_from_zero(values: Tensor) -> Tensor:
    return torch.where(values < 0, values.clamp(max=-_TINY), values.clamp(min=_TINY))
