"""Everything measured in one evaluation.

Shapes: Q queries, R references, D embedding.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cvgl_models.metrics.groups import (
    AGE_GAPS,
    QUARTERS,
    Group,
    age_range,
    area_groups,
    branch_groups,
    group,
    groups,
    quarter,
)
from cvgl_models.metrics.recall import meters, percent, recall_at_k, share
from cvgl_models.outcomes import Outcomes, Truth, outcomes
from cvgl_models.retrieval import Array

CURVE_M = (0, 1, 2, *range(5, 305, 5), 400, 500, 750, 1000, 2000, 5000, 10000)
"""Where the error curve is evaluated."""
CURVE_K = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100)
"""Where the recall curve is evaluated, as far as there are references."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalReport:
    """Everything measured in one evaluation; counts are of queries that some reference covers unless said otherwise."""

    num_queries: int
    num_uncovered: int
    """Queries that no reference covers; they count nowhere else."""
    num_references: int
    num_tied: int
    """Queries whose best score several references share."""
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    recall_at_1_percent: float
    hit_rate_cover: float
    hit_rate_strict: float
    median_error_m: float
    """Great-circle distance from the query to the centre of its top-1 reference; infinite where that is unknown."""
    mean_error_m: float
    recall_within_m: dict[str, float]
    """Share of queries whose error is at most so many metres."""
    recall_at_1_by_decentrality: dict[str, float]
    num_by_decentrality: dict[str, int]
    chance_recall_at_1: float
    """What guessing would give: 1 / R."""
    recall_curve: dict[str, float]
    """recall@k by k."""
    error_curve_m: dict[str, float]
    """Share of queries whose error is at most so many metres, over the whole range."""
    groups: tuple[Group, ...] = ()
    setting: dict[str, Any] = field(default_factory=dict)
    """How it was measured: split, protocol, conditions, weights."""
    calibration: dict[str, Any] | None = None
    """How far the confidences are from the truth on this split; None where there are none."""
    legacy: dict[str, float] | None = None
    """As published code counts; see `cvgl_models.legacy_metrics`."""

    def to_json(self) -> str:
        """Return the report as JSON; a value that is not finite is null."""
        return json.dumps(_finite(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"

    def rows(self) -> list[tuple[str, str]]:
        """Return (what, value) for a table."""
        rows = [
            ("queries", f"{self.num_queries:,}"),
            ("queries that no reference covers", f"{self.num_uncovered:,}"),
            ("references", f"{self.num_references:,}"),
            ("recall@1", percent(self.recall_at_1)),
            ("recall@5", percent(self.recall_at_5)),
            ("recall@10", percent(self.recall_at_10)),
            ("recall@1%", percent(self.recall_at_1_percent)),
            ("chance of recall@1", percent(self.chance_recall_at_1)),
            ("hit rate (cover)", percent(self.hit_rate_cover)),
            ("hit rate (strict)", percent(self.hit_rate_strict)),
            ("median error", meters(self.median_error_m)),
            ("mean error", meters(self.mean_error_m)),
            *((f"within {limit} m", percent(share)) for limit, share in self.recall_within_m.items()),
            *(
                (f"recall@1, decentrality {quarter}", f"{percent(share)} of {self.num_by_decentrality[quarter]:,}")
                for quarter, share in self.recall_at_1_by_decentrality.items()
            ),
        ]
        if self.num_tied:
            rows.append(("queries whose best score is a tie", f"{self.num_tied:,}"))
        if self.calibration is not None:
            error = self.calibration["expected_calibration_error"]
            rows.append(("calibration error of the confidence", percent(error)))
        return rows + [
            (f"legacy {name.replace('_', ' ')}", percent(value)) for name, value in (self.legacy or {}).items()
        ]

    def group_table(self) -> tuple[list[str], list[list[str]]]:
        """Return heads and rows of a table of all groups that have queries."""
        heads = ["", "queries", "references", "recall@1", "recall@5", "recall@10", "hit (cover)", "median error"]
        heads += [f"within {limit} m" for limit in self.recall_within_m]
        rows = [
            [f"{group.kind} {group.name}", f"{group.num_queries:,}", f"{group.num_references:,}"]
            + [percent(value) for value in (group.recall_at_1, group.recall_at_5, group.recall_at_10)]
            + [percent(group.hit_rate_cover), meters(group.median_error_m)]
            + [percent(share) for share in group.recall_within_m.values()]
            for group in self.groups
            if group.num_queries
        ]
        return heads, rows


def retrieval_report(
    query_QD: Array,
    reference_RD: Array,
    truth: Truth,
    found: Outcomes | None = None,
    branches: Mapping[str, slice] | None = None,
) -> RetrievalReport:
    """Measure embeddings against the truth.

    Args:
        query_QD: Embeddings, in the order of the truth.
        reference_RD: Embeddings of the gallery.
        truth: Positions and covering references.
        found: What `outcomes` of the same returned, if it was called already.
        branches: Parts of the embeddings that are measured alone too.

    Raises:
        ValueError: If there are no references.
    """
    found = found or outcomes(query_QD, reference_RD, truth)
    num_references = len(reference_RD)
    quarter_Q = quarter(truth, found)
    whole = group("all", "", found, num_references)
    return RetrievalReport(
        num_queries=len(found.rank),
        num_uncovered=len(truth.positives) - len(found.rank),
        num_references=num_references,
        num_tied=int((found.num_tied > 1).sum()),
        recall_at_1=whole.recall_at_1,
        recall_at_5=whole.recall_at_5,
        recall_at_10=whole.recall_at_10,
        recall_at_1_percent=whole.recall_at_1_percent,
        hit_rate_cover=whole.hit_rate_cover,
        hit_rate_strict=whole.hit_rate_strict,
        median_error_m=whole.median_error_m,
        mean_error_m=float(found.error_m.mean()) if len(found.rank) else math.nan,
        recall_within_m=whole.recall_within_m,
        recall_at_1_by_decentrality={
            name: recall_at_k(found.rank[quarter_Q == index], 1) for index, name in enumerate(QUARTERS)
        },
        num_by_decentrality={name: int((quarter_Q == index).sum()) for index, name in enumerate(QUARTERS)},
        chance_recall_at_1=1 / num_references,
        recall_curve={str(k): recall_at_k(found.rank, k) for k in CURVE_K if k <= num_references},
        error_curve_m={str(limit): share(found.error_m <= limit) for limit in CURVE_M},
        groups=(
            *branch_groups(query_QD, reference_RD, truth, branches or {}),
            *area_groups(query_QD, reference_RD, truth, found),
            *groups("decentrality", QUARTERS, quarter_Q, found, num_references),
            *groups("age gap", AGE_GAPS, age_range(truth, found), found, num_references),
        ),
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
