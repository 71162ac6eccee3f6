"""Spatial attention: several weighted sums over the map, with weights that depend on where things are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.aggregators import Aggregator, require_positive

_INIT_STD, _INIT_BIAS = 0.005, 0.1


class SpatialAttention(Aggregator):
    """Each head weighs the n places of the map by two linear layers on its channel-wise maximum; D = C * ``heads``.

    There is no non-linearity between the layers, and a weight may be negative. The layers are made for one number of
    places. A map of another grid, such as that of the second view of a shared encoder, is resampled to ``grid`` first.

    Args:
        in_channels: C.
        grid: Height and width of the map the layers are made for.
        heads: Number of weighted sums.

    Raises:
        ValueError: If ``heads`` is not positive.

    Source:
        Shi et al., "Spatial-Aware Feature Aggregation for Image Based Cross-View Geo-Localization", section 3.3. With
        a grid of 14 x 77 and 8 heads it has 9.3 million parameters.
    """

    def __init__(self, in_channels: int, grid: tuple[int, int], heads: int = 8) -> None:
        super().__init__()
        require_positive(heads=heads)
        self.grid = grid
        self.num_features = in_channels * heads
        num_places = grid[0] * grid[1]
        hidden = max(1, num_places // 2)
        self.down = nn.Parameter(torch.empty(heads, num_places, hidden).normal_(std=_INIT_STD))
        self.down_bias = nn.Parameter(torch.full((heads, 1, hidden), _INIT_BIAS))
        self.up = nn.Parameter(torch.empty(heads, hidden, num_places).normal_(std=_INIT_STD))
        self.up_bias = nn.Parameter(torch.full((heads, 1, num_places), _INIT_BIAS))

    def forward(self, map_BChw: Tensor, class_BC: Tensor | None = None) -> Tensor:
        """Return (B, D), the head the slowest index."""
        map_BChw = map_BChw.float()
        if tuple(map_BChw.shape[2:]) != self.grid:
            map_BChw = F.interpolate(map_BChw, self.grid, mode="bilinear", align_corners=False, antialias=True)
        features_BCn = map_BChw.flatten(2)
        strongest_Bn = features_BCn.amax(1)
        weight_KBn = (strongest_Bn @ self.down + self.down_bias) @ self.up + self.up_bias
        with torch.autocast(features_BCn.device.type, enabled=False):  # a sum over a thousand places
            summed_BKC = weight_KBn.float().transpose(0, 1) @ features_BCn.transpose(1, 2)
        return summed_BKC.flatten(1)
