"""Feature maps of street-level images laid out on flat ground around the camera.

Shapes: B maps, C channels, h x w cells of the image's map, S side of the ground grid. The ground grid is that of the
reference: right and down as there, the camera at its centre, so at index (S - 1) / 2. ``heading_deg`` is the bearing of
the image's centre column, clockwise from the grid's top. Cells have their centres at .5, in both maps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cvgl_models.geometry.resampling import resample

_NEAREST_M = 1e-6  # in front of a pinhole camera


def ground_cells(size: int, cell_size_m_B: Tensor, heading_deg_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return how far each cell's centre lies in front of the camera and to its right, metres, twice (B, S, S)."""
    center_S = torch.arange(size, device=cell_size_m_B.device, dtype=torch.float32) + 0.5 - size / 2
    across_BSS = (center_S * cell_size_m_B.float()[:, None])[:, None, :].expand(-1, size, -1)
    down_BSS = across_BSS.transpose(1, 2)
    if heading_deg_B is None:
        return -down_BSS, across_BSS
    sin_B11 = heading_deg_B.float().deg2rad().sin()[:, None, None]
    cos_B11 = heading_deg_B.float().deg2rad().cos()[:, None, None]
    return across_BSS * sin_B11 - down_BSS * cos_B11, across_BSS * cos_B11 + down_BSS * sin_B11


def panorama_places(
    size: int, cell_size_m_B: Tensor, camera_height_m: float, heading_deg_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return where in a panorama each ground cell is seen, as shares of its width and height, twice (B, S, S).

    The first share is in [0, 1): 0.5 is the centre column. The second is in (0.5, 1]: 0.5 is the horizon, 1 the nadir.

    Source:
        G2SWeakly (ECCV 2024) with any camera height.
    """
    ahead_BSS, right_BSS = ground_cells(size, cell_size_m_B, heading_deg_B)
    u_BSS = torch.remainder(0.5 + torch.atan2(right_BSS, ahead_BSS) / (2 * math.pi), 1.0)
    v_BSS = 1 - torch.atan(torch.hypot(right_BSS, ahead_BSS) / camera_height_m) / math.pi
    return u_BSS, v_BSS


def ground_from_panorama(
    map_BChw: Tensor,
    size: int,
    cell_size_m_B: Tensor,
    camera_height_m: float,
    heading_deg_B: Tensor | None = None,
) -> Tensor:
    """Return the ground around the camera as an equirectangular panorama's map shows it, (B, C, S, S).

    Sampling is bilinear and runs round the seam.

    Args:
        map_BChw: Map that covers the whole sphere, or the panorama itself.
        size: Side of the grid, cells.
        cell_size_m_B: Metres per cell.
        camera_height_m: Height of the camera above the ground.
        heading_deg_B: Bearing of the centre column; None: 0, the grid's top.
    """
    width = map_BChw.shape[-1]
    u_BSS, v_BSS = panorama_places(size, cell_size_m_B, camera_height_m, heading_deg_B)
    # One more column at each end, so that between the last column and the first one there is no edge.
    wrapped_BChv = F.pad(map_BChw, (1, 1, 0, 0), mode="circular")
    grid_BSS2 = torch.stack([2 * (u_BSS * width + 1) / (width + 2) - 1, 2 * v_BSS - 1], -1)
    return resample(wrapped_BChv, grid_BSS2)


def pinhole_places(
    camera_B33: Tensor,
    size: int,
    cell_size_m_B: Tensor,
    camera_height_m: float,
    heading_deg_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return where a level pinhole camera sees each ground cell: u and v in pixels, and whether it lies in front.

    Args:
        camera_B33: Intrinsics, pixels with (0, 0) the corner.
        size: Side of the grid, cells.
        cell_size_m_B: Metres per cell.
        camera_height_m: Height of the camera above the ground.
        heading_deg_B: Bearing of the optical axis; None: 0, the grid's top.

    Returns:
        Three times (B, S, S); the last is bool.
    """
    ahead_BSS, right_BSS = ground_cells(size, cell_size_m_B, heading_deg_B)
    in_front_BSS = ahead_BSS > _NEAREST_M
    depth_BSS = ahead_BSS.clamp(min=_NEAREST_M)
    point_B3S = torch.stack([right_BSS, torch.full_like(depth_BSS, camera_height_m), depth_BSS], 1).flatten(2)
    u_BS, v_BS, w_BS = (camera_B33.float() @ point_B3S).unbind(1)
    return (u_BS / w_BS).view_as(depth_BSS), (v_BS / w_BS).view_as(depth_BSS), in_front_BSS


def ground_from_pinhole(
    map_BChw: Tensor,
    image_size_px: tuple[int, int],
    camera_B33: Tensor,
    size: int,
    cell_size_m_B: Tensor,
    camera_height_m: float,
    heading_deg_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the ground as a level pinhole camera's map shows it, (B, C, S, S), and which cells it sees, (B, S, S).

    Cells that are not seen are 0 in both.

    Args:
        map_BChw: Map that covers the image, or the image itself.
        image_size_px: Height and width of the image that the intrinsics belong to.
        camera_B33: Intrinsics, pixels with (0, 0) the corner.
        size: Side of the grid, cells.
        cell_size_m_B: Metres per cell.
        camera_height_m: Height of the camera above the ground.
        heading_deg_B: Bearing of the optical axis; None: 0, the grid's top.
    """
    u_BSS, v_BSS, in_front_BSS = pinhole_places(camera_B33, size, cell_size_m_B, camera_height_m, heading_deg_B)
    height, width = image_size_px
    grid_BSS2 = torch.stack([2 * u_BSS / width - 1, 2 * v_BSS / height - 1], -1)
    seen_BSS = in_front_BSS & (grid_BSS2.abs() <= 1).all(-1)
    grid_BSS2 = torch.where(seen_BSS[..., None], grid_BSS2, grid_BSS2.new_full((), 2.0))
    sampled_BCSS = resample(map_BChw, grid_BSS2)
    mask_BSS = seen_BSS.to(map_BChw.dtype)
    return sampled_BCSS * mask_BSS[:, None], mask_BSS
