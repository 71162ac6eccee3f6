"""How well queries are found: recall, the two hit rates, and metres.

Shapes: Q queries, R references, D embedding. Ratios lie in [0, 1]. Ties and NaN count against the query throughout:
where several references share the best score, or some have no score, the query's error is that of the farthest of them.
"""

from __future__ import annotations

from cvgl_models.metrics.groups import AGE_GAPS, QUARTERS, THRESHOLDS_M, Group
from cvgl_models.metrics.recall import (
    hit_rate_cover,
    hit_rate_strict,
    meters,
    percent,
    recall_at_1_percent,
    recall_at_k,
)
from cvgl_models.metrics.report import CURVE_K, CURVE_M, RetrievalReport, retrieval_report
from cvgl_models.outcomes import Outcomes, Truth, outcomes, select_covering

__all__ = [
    "AGE_GAPS",
    "CURVE_K",
    "CURVE_M",
    "QUARTERS",
    "THRESHOLDS_M",
    "Group",
    "Outcomes",
    "RetrievalReport",
    "Truth",
    "hit_rate_cover",
    "hit_rate_strict",
    "meters",
    "outcomes",
    "percent",
    "recall_at_1_percent",
    "recall_at_k",
    "retrieval_report",
    "select_covering",
]
