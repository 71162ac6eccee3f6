"""What decentrality must look like on a regular grid of windows, if queries lie anywhere with equal probability."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvgl_data.errors import GridError
from cvgl_data.pairing import QUARTERS

Floats = NDArray[np.float64]

_FULL_SHARE = 0.8
"""Share of neighbors in a row or column that must lie one stride apart; the rest are notches and holes of an area."""


@dataclass(frozen=True, slots=True)
class Theory:
    """Distribution of the positive's decentrality for uniform queries.

    The positive is the window with the nearest centre, so the query is uniform in a square of one stride round it.

    Source:
        VIGOR's layout is stride ``L / 2``, a seamless tiling ``L``; P(D <= t) = (t L / s)^2 for the max norm.
    """

    stride_ratio: float
    """Stride by the side of a window, in (0, 1]."""

    @property
    def mean(self) -> float:
        """Mean decentrality, 2/3 of its maximum, which is the stride ratio."""
        return 2 / 3 * self.stride_ratio

    @property
    def mean_l2(self) -> float:
        """Mean Euclidean decentrality: the mean distance from a square's centre, .5411 of that of its corner."""
        return (math.sqrt(2) + math.asinh(1)) / (3 * math.sqrt(2)) * self.stride_ratio

    @property
    def quarters(self) -> tuple[float, ...]:
        """Shares of [0, .25), [.25, .5), [.5, .75), [.75, 1]."""
        return tuple(np.diff(self.cdf(QUARTERS)).tolist())

    def cdf(self, at: ArrayLike) -> Floats:
        """Return the share of queries with a decentrality of at most ``at``, any shape."""
        return np.asarray(np.clip(np.asarray(at, np.float64) / self.stride_ratio, 0.0, 1.0) ** 2)

    def cdf_l2(self, at: ArrayLike) -> Floats:
        """Return the share with a Euclidean decentrality of at most ``at``: disc and square in common, any shape."""
        # Radius in half strides: 1 touches the sides of the square, sqrt(2) its corners.
        radius = np.clip(np.asarray(at, np.float64) * math.sqrt(2) / self.stride_ratio, 0.0, math.sqrt(2))
        beyond = np.maximum(radius, 1.0)
        caps = beyond**2 * np.arccos(1 / beyond) - np.sqrt(beyond**2 - 1)
        return np.asarray(np.clip(math.pi / 4 * radius**2 - caps, 0.0, 1.0))

    def quantile(self, share: float) -> float:
        """Return the decentrality that a share of the queries does not exceed."""
        return math.sqrt(share) * self.stride_ratio


def theory(stride_ratio: float) -> Theory:
    """Return the theory of a grid.

    Args:
        stride_ratio: Stride by the side of a window; 1 - overlap.

    Raises:
        GridError: If it is not in (0, 1]; with gaps between windows a query may have no positive.
    """
    if not 0.0 < stride_ratio <= 1.0:
        raise GridError(f"the stride is {stride_ratio:g} of a window's side, it must be more than 0 and at most 1")
    return Theory(float(stride_ratio))


def stride_ratio(x: ArrayLike, y: ArrayLike, size: ArrayLike, zoom: ArrayLike) -> float | None:
    """Return the stride of a grid by the side of its windows, or None where windows are not one regular grid.

    Args:
        x: North-west corners, global pixels, shape (R,).
        y: Likewise.
        size: Sides, shape (R,).
        zoom: Zooms, shape (R,).
    """
    x, y, size, zoom = (np.asarray(column, np.int64) for column in (x, y, size, zoom))
    if len(x) < 2 or (size != size[0]).any() or (zoom != zoom[0]).any():
        return None
    found = set()
    for along, across in ((x, y), (y, x)):
        order = np.lexsort((along, across))
        steps = np.diff(along[order])[np.diff(across[order]) == 0]
        if len(steps):
            stride = int(np.gcd.reduce(np.diff(np.unique(along))))
            if not stride or (steps == stride).mean() < _FULL_SHARE:
                return None
            found.add(stride)
    ratio = found.pop() / int(size[0]) if len(found) == 1 else 0.0
    return ratio if 0.0 < ratio <= 1.0 else None
