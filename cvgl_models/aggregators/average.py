"""The mean of the map."""

from __future__ import annotations

import torch
from torch import Tensor

from cvgl_models.aggregators import Aggregator


class Average(Aggregator):
    """Mean over the grid, D = C; with the class token before it, D = 2 C.

    Args:
        in_channels: C.
        grid: Not used.
        class_token: Put the backbone's class token before the mean.

    Source:
        DINOv2, linear evaluation, for the pair of class token and mean.
    """

    def __init__(self, in_channels: int, grid: tuple[int, int], class_token: bool = False) -> None:
        super().__init__()
        self.uses_class_token = class_token
        self.num_features = in_channels * (1 + class_token)

    def forward(self, map_BChw: Tensor, class_BC: Tensor | None = None) -> Tensor:
        """Return (B, D)."""
        mean_BC = map_BChw.float().mean((2, 3))
        if not self.uses_class_token:
            return mean_BC
        if class_BC is None:
            raise ValueError("this head needs a class token")
        return torch.cat([class_BC.float(), mean_BC], 1)
