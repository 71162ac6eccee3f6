"""All-pairs correlation of two feature maps, and looking it up around given places.

Shapes: B pairs, C channels, h and w of the map that asks, H and W of the map that is searched, L levels, R radius.
Places are (u, v) in cells of the searched map: (0, 0) its corner, cell centres at .5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cvgl_models.geometry.resampling import resample


def correlation_volume(query_BChw: Tensor, reference_BCHW: Tensor, *, normalize: bool = False) -> Tensor:
    """Return the (B, h, w, H, W) float32 products of every cell of one map with every cell of the other.

    Args:
        query_BChw: Features.
        reference_BCHW: Features of as many channels.
        normalize: Cosines, in [-1, 1]; otherwise what is above 0 of the plain products, as HC-Net has it.

    Source:
        HC-Net, section 3.3.
    """
    with torch.autocast(query_BChw.device.type, enabled=False):
        query_BCN, reference_BCM = query_BChw.float().flatten(2), reference_BCHW.float().flatten(2)
        if normalize:
            query_BCN, reference_BCM = F.normalize(query_BCN, dim=1), F.normalize(reference_BCM, dim=1)
        volume_BNM = query_BCN.transpose(1, 2) @ reference_BCM
    volume_BNM = volume_BNM if normalize else volume_BNM.relu()
    return volume_BNM.reshape(len(query_BChw), *query_BChw.shape[2:], *reference_BCHW.shape[2:])


def correlation_pyramid(volume_BhwHW: Tensor, num_levels: int) -> list[Tensor]:
    """Return the volume at ever coarser cells of the searched map: level l has cells 2^l times as large.

    Raises:
        ValueError: If the searched map is too small to be halved so often.
    """
    batch, h, w, height, width = volume_BhwHW.shape
    if min(height, width) < 2 ** (num_levels - 1):
        raise ValueError(f"a map of {height}x{width} cells cannot be halved {num_levels - 1} times")
    levels = [volume_BhwHW]
    for _ in range(num_levels - 1):
        coarser = F.avg_pool2d(levels[-1].flatten(0, 2)[:, None], 2)[:, 0]
        levels.append(coarser.view(batch, h, w, *coarser.shape[1:]))
    return levels


def look_up(pyramid: list[Tensor], place_Bhw2: Tensor, radius: int) -> Tensor:
    """Return the correlations around a place for every cell that asks, bilinear, 0 outside the map.

    Args:
        pyramid: From `correlation_pyramid`.
        place_Bhw2: Where each cell looks, in cells of level 0.
        radius: Of the square window, in cells of each level.

    Returns:
        (B, L * (2R + 1)^2, h, w); within a level the window is row by row.
    """
    batch, h, w = place_Bhw2.shape[:3]
    steps = torch.arange(-radius, radius + 1, dtype=place_Bhw2.dtype, device=place_Bhw2.device)
    window_KK2 = torch.stack(torch.meshgrid(steps, steps, indexing="ij")[::-1], -1)
    found = []
    for level, volume_BhwHW in enumerate(pyramid):
        place_N112 = place_Bhw2.flatten(0, 2)[:, None, None] / 2**level
        grid_NKK2 = _grid(place_N112 + window_KK2, volume_BhwHW)
        window_N1KK = resample(volume_BhwHW.flatten(0, 2)[:, None], grid_NKK2, "zeros")
        found.append(window_N1KK.reshape(batch, h, w, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2)


def sample_at(map_BCHW: Tensor, place_B2: Tensor) -> Tensor:
    """Return the (B, C) bilinear values of each map at one place; beyond the outermost cell centres the map goes on.

    Args:
        map_BCHW: One map for each item.
        place_B2: (u, v) in cells; the centre of the first cell is (.5, .5).
    """
    return resample(map_BCHW, _grid(place_B2[:, None, None], map_BCHW))[:, :, 0, 0]


def _grid(place_2: Tensor, maps_HW: Tensor) -> Tensor:
    """Return places (..., 2) in cells of maps (..., H, W) as `grid_sample` counts them, -1 to 1 from edge to edge."""
    height, width = maps_HW.shape[-2:]
    return torch.stack([place_2[..., 0] * (2 / width) - 1, place_2[..., 1] * (2 / height) - 1], -1)
