"""CosPlace's head: generalized mean of normalized features, and a linear layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.aggregators import Aggregator, require_positive
from cvgl_models.aggregators.gem import GeM


class CosPlace(Aggregator):
    """Each place of the map is normalized, then GeM, then a projection to D.

    Args:
        in_channels: C.
        grid: Not used.
        out_channels: D.
        p: Initial power of the mean.
        sign: See `GeM`.

    Raises:
        ValueError: If a number is not positive, or ``sign`` is unknown.

    Source:
        Berton et al., "Rethinking visual geo-localization for large-scale applications", section 3.
    """

    def __init__(
        self, in_channels: int, grid: tuple[int, int], out_channels: int = 512, p: float = 3.0, sign: str = "clamp"
    ) -> None:
        super().__init__()
        require_positive(out_channels=out_channels)
        self.num_features = out_channels
        self.gem = GeM(in_channels, grid, p=p, sign=sign)
        self.project = nn.Linear(in_channels, out_channels)

    def forward(self, map_BChw: Tensor, class_BC: Tensor | None = None) -> Tensor:
        """Return (B, D)."""
        pooled_BC = self.gem(F.normalize(map_BChw.float(), dim=1))
        projected: Tensor = self.project(pooled_BC)
        return projected
