"""ConvAP: fewer channels, then a small grid of means."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.aggregators import Aggregator, require_positive


class ConvAP(Aggregator):
    """A 1x1 convolution and an adaptive average to a grid; D = ``out_channels * out_rows * out_columns``.

    Args:
        in_channels: C.
        grid: Not used.
        out_channels: Channels after the convolution.
        out_rows: Rows of the grid of means.
        out_columns: Its columns.

    Raises:
        ValueError: If a number is not positive.

    Source:
        Ali-bey et al., "GSV-Cities", section 4.
    """

    def __init__(
        self,
        in_channels: int,
        grid: tuple[int, int],
        out_channels: int = 512,
        out_rows: int = 2,
        out_columns: int = 2,
    ) -> None:
        super().__init__()
        require_positive(out_channels=out_channels, out_rows=out_rows, out_columns=out_columns)
        self.num_features = out_channels * out_rows * out_columns
        self.out_grid = (out_rows, out_columns)
        self.project = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, map_BChw: Tensor, class_BC: Tensor | None = None) -> Tensor:
        """Return (B, D), the channel the slowest index."""
        return F.adaptive_avg_pool2d(self.project(map_BChw).float(), self.out_grid).flatten(1)
