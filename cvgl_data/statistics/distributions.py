"""Moments, quantiles and histograms of decentralities and distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvgl_data.pairing import QUARTERS

Floats = NDArray[np.float64]

HISTOGRAM_EDGES = np.arange(21) / 20
"""Bins of .05; the last one is closed."""

ECDF_AT = np.arange(101) / 100
"""Where the empirical distribution functions are taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Moments and quantiles of one measure; all but the count are null where there is nothing."""

    count: int
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    p05: float | None = None
    p25: float | None = None
    median: float | None = None
    p75: float | None = None
    p90: float | None = None
    p95: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How a decentrality is distributed over [0, 1]."""

    summary: Summary
    share_above_half: float | None
    quarters: tuple[int, ...]
    """Counts of [0, .25), [.25, .5), [.5, .75), [.75, 1]."""
    histogram: tuple[int, ...]
    """Counts in the bins of `HISTOGRAM_EDGES`."""
    ecdf: tuple[float, ...]
    """Share at or below each value of `ECDF_AT`; empty where there is nothing."""


def summary(values: Floats) -> Summary:
    """Summarize values, shape (N,); those that are not finite are left out and not counted."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Summary(count=0)
    low, *quantiles, high = np.quantile(values, (0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 1)).tolist()
    p05, p25, median, p75, p90, p95 = quantiles
    moments = {"mean": float(values.mean()), "std": float(values.std()), "min": low, "max": high}
    return Summary(count=len(values), p05=p05, p25=p25, median=median, p75=p75, p90=p90, p95=p95, **moments)


def distribution(values: Floats) -> Distribution:
    """Describe decentralities, shape (N,), each in [0, 1]; rounding beyond 1 counts as 1."""
    values = np.minimum(np.asarray(values, np.float64), 1.0)
    values = np.sort(values[np.isfinite(values)])
    ecdf = np.searchsorted(values, ECDF_AT, "right") / max(len(values), 1)
    return Distribution(
        summary=summary(values),
        share_above_half=float((values > 0.5).mean()) if len(values) else None,
        quarters=tuple(np.histogram(values, QUARTERS)[0].tolist()),
        histogram=tuple(np.histogram(values, HISTOGRAM_EDGES)[0].tolist()),
        ecdf=tuple(round(share, 6) for share in ecdf.tolist()) if len(values) else (),
    )
