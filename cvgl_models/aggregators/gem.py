"""Generalized mean pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.aggregators import Aggregator, require_positive

SIGNS = ("clamp", "softplus", "abs")


class GeM(Aggregator):
    """The p-th root of the mean p-th power over the grid, D = C; p = 1 is the mean, large p the maximum.

    It was made for maps behind a ReLU. Tokens of a ViT are signed, and clamping them throws half of them away, hence
    the choice of ``sign``.

    Args:
        in_channels: C.
        grid: Not used.
        p: Initial power.
        learn_p: Whether the power is learned.
        eps: Smallest value a power is taken of.
        sign: What is done to make values positive: ``clamp`` (as published), ``softplus``, or ``abs`` (a p-norm).

    Raises:
        ValueError: If p or eps is not positive, or ``sign`` is unknown.

    Source:
        Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation", equation 3.
    """

    def __init__(
        self,
        in_channels: int,
        grid: tuple[int, int],
        p: float = 3.0,
        learn_p: bool = True,
        eps: float = 1e-6,
        sign: str = "clamp",
    ) -> None:
        super().__init__()
        require_positive(p=p, eps=eps)
        if sign not in SIGNS:
            raise ValueError(f"sign must be one of {', '.join(SIGNS)}, not '{sign}'")
        self.num_features = in_channels
        self.eps, self.sign = eps, sign
        self.p = nn.Parameter(torch.tensor([p]), requires_grad=learn_p)

    def forward(self, map_BChw: Tensor, class_BC: Tensor | None = None) -> Tensor:
        """Return (B, C)."""
        values = map_BChw.float()
        if self.sign == "softplus":
            values = F.softplus(values)
        elif self.sign == "abs":
            values = values.abs()
        return values.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)
