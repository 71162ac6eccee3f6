"""Shares of queries that were found, and how they are written.

Shapes: Q queries, R references, D embedding.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvgl_models.outcomes import covered_by_top
from cvgl_models.retrieval import Array, Covering, ranks


def recall_at_k(ranks: ArrayLike, k: int) -> float:
    """Return the share of queries whose positive is among the first k, NaN without queries.

    Raises:
        ValueError: If k is not positive.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    rank_Q = np.asarray(ranks)
    return float((rank_Q < k).mean()) if rank_Q.size else math.nan


def recall_at_1_percent(ranks: ArrayLike, num_references: int) -> float:
    """Return `recall_at_k` with ``k = max(1, ceil(num_references / 100))``.

    Source:
        The published code floors, which makes it 0 below 100 references; see `cvgl_models.legacy_metrics`.
    """
    return recall_at_k(ranks, max(1, math.ceil(num_references / 100)))


def hit_rate_strict(query_QD: Array, reference_RD: Array, positives: ArrayLike, covering: Covering) -> float:
    """Return the share of queries for which nothing outside the covering references outranks the positive.

    Source:
        The code of VIGOR and Sample4Geo.
    """
    return recall_at_k(ranks(query_QD, reference_RD, np.asarray(positives), covering=covering).cpu(), 1)


def hit_rate_cover(query_QD: Array, reference_RD: Array, covering: Covering) -> float:
    """Return the share of queries whose top-1 reference covers them.

    Source:
        The text of VIGOR and the code of AuxGeo; never below `hit_rate_strict`.
    """
    return share(covered_by_top(query_QD, reference_RD, covering))


def share(is_true: NDArray[np.bool_]) -> float:
    """Return the share of what is true, NaN of nothing."""
    return float(is_true.mean()) if is_true.size else math.nan


def percent(share: float) -> str:
    """Return a ratio for a table."""
    return "n/a" if math.isnan(share) else f"{100 * share:.1f} %"


def meters(distance: float) -> str:
    """Return a distance for a table."""
    return f"{distance:,.1f} m" if math.isfinite(distance) else "n/a"
