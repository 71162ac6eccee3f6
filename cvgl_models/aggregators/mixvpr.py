"""MixVPR: perceptrons that mix the places of the map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.aggregators import Aggregator, require_positive


class Mixer(nn.Module):
    """A two-layer perceptron over the n places of each channel, added to its input."""

    def __init__(self, num_places: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = max(1, int(num_places * mlp_ratio))
        self.mix = nn.Sequential(
            nn.LayerNorm(num_places), nn.Linear(num_places, hidden), nn.ReLU(), nn.Linear(hidden, num_places)
        )
        for layer in self.mix:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, map_BCn: Tensor) -> Tensor:
        """Return (B, C, n)."""
        mixed: Tensor = map_BCn + self.mix(map_BCn)
        return mixed


class MixVPR(Aggregator):
    """Mixers over the places, then fewer channels and fewer rows; D = ``out_channels * out_rows``.

    The mixers are made for one number of places. A map of another grid, such as that of the second view of a shared
    encoder, is resampled to ``grid`` first.

    Args:
        in_channels: C.
        grid: Height and width of the map the mixers are made for.
        out_channels: Channels of the result.
        out_rows: Rows of the result.
        mix_depth: Number of mixers.
        mlp_ratio: Hidden size of a mixer over the number of places.

    Raises:
        ValueError: If a number is not positive.

    Source:
        Ali-bey et al., "MixVPR: feature mixing for visual place recognition", section 3. With C = 768, a grid of
        32 x 32 and the defaults it has the 4,994,052 parameters of CV-Cities.
    """

    def __init__(
        self,
        in_channels: int,
        grid: tuple[int, int],
        out_channels: int = 1024,
        out_rows: int = 4,
        mix_depth: int = 2,
        mlp_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        require_positive(out_channels=out_channels, out_rows=out_rows, mix_depth=mix_depth, mlp_ratio=mlp_ratio)
        self.grid = grid
        num_places = grid[0] * grid[1]
        self.num_features = out_channels * out_rows
        self.mixers = nn.Sequential(*[Mixer(num_places, mlp_ratio) for _ in range(mix_depth)])
        self.project_channels = nn.Linear(in_channels, out_channels)
        self.project_rows = nn.Linear(num_places, out_rows)

    def forward(self, map_BChw: Tensor, class_BC: Tensor | None = None) -> Tensor:
        """Return (B, D); channel d and row r are at index ``d * out_rows + r``."""
        if tuple(map_BChw.shape[2:]) != self.grid:  # in float32: CUDA cannot resample bfloat16 with antialiasing
            map_BChw = F.interpolate(
                map_BChw.float(), self.grid, mode="bilinear", align_corners=False, antialias=True
            ).to(map_BChw.dtype)
        mixed_BCn = self.mixers(map_BChw.flatten(2))
        channels_Bdn = self.project_channels(mixed_BCn.transpose(1, 2)).transpose(1, 2)
        rows_Bdr: Tensor = self.project_rows(channels_Bdn)
        return torch.flatten(rows_Bdr, 1)
