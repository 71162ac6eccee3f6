"""What a validation says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Measured:
    """How well weights do."""

    score: tuple[float, float]
    """More is better, the first number first; NaN where there was nothing to measure."""
    values: dict[str, float] = field(default_factory=dict)
    """What is logged."""


NOTHING = Measured((math.nan, math.nan))
