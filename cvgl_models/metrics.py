"""How well queries are found: recall, the two hit rates, and metres.

Shapes: Q queries, R references, D embedding. Ratios lie in [0, 1]. Ties and NaN count against the query throughout:
where several references share the best score, or some have no score, the query's error is that of the farthest of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cvgl_models.outcomes import Outcomes, Truth, covered_by_top, outcomes, select_covering
from cvgl_models.retrieval import Array, Covering, ranks

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

THRESHOLDS_M = (25, 50, 100, 150)
CURVE_M = (0, 1, 2, *range(5, 305, 5), 400, 500, 750, 1000, 2000, 5000, 10000)
"""Where the error curve is evaluated."""
CURVE_K = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100)
"""Where the recall curve is evaluated, as far as there are references."""
QUARTERS = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")
"""Decentrality ranges; the last includes 1."""
AGE_GAPS = ("under 1 year", "1 to 3 years", "3 to 6 years", "6 years and more", "unknown")
"""Years between the capture of a query and of its positive, either way; the lower end belongs to the range."""
_AGE_EDGES = (1.0, 3.0, 6.0)


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
    return _share(covered_by_top(query_QD, reference_RD, covering))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The measures of some of the queries."""

    kind: str
    """``area``, ``decentrality`` or ``age gap``."""
    name: str
    num_queries: int
    num_references: int
    """Size of the gallery that these queries were searched in: an area has its own."""
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    recall_at_1_percent: float
    hit_rate_cover: float
    hit_rate_strict: float
    median_error_m: float
    recall_within_m: dict[str, float]


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
    query_QD: Array, reference_RD: Array, truth: Truth, found: Outcomes | None = None
) -> RetrievalReport:
    """Measure embeddings against the truth.

    Args:
        query_QD: Embeddings, in the order of the truth.
        reference_RD: Embeddings of the gallery.
        truth: Positions and covering references.
        found: What `outcomes` of the same returned, if it was called already.

    Raises:
        ValueError: If there are no references.
    """
    found = found or outcomes(query_QD, reference_RD, truth)
    num_references = len(reference_RD)
    quarter_Q = _quarter(truth, found)
    whole = _group("all", "", found, num_references)
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
        error_curve_m={str(limit): _share(found.error_m <= limit) for limit in CURVE_M},
        groups=(
            *_area_groups(query_QD, reference_RD, truth, found),
            *_groups("decentrality", QUARTERS, quarter_Q, found, num_references),
            *_groups("age gap", AGE_GAPS, _age(truth, found), found, num_references),
        ),
    )


def percent(share: float) -> str:
    """Return a ratio for a table."""
    return "n/a" if math.isnan(share) else f"{100 * share:.1f} %"


def meters(distance: float) -> str:
    """Return a distance for a table."""
    return f"{distance:,.1f} m" if math.isfinite(distance) else "n/a"


def _quarter(truth: Truth, found: Outcomes) -> NDArray[np.int64]:
    return np.clip(truth.decentrality[found.query_row] * 4, 0, 3).astype(np.int64)


def _age(truth: Truth, found: Outcomes) -> NDArray[np.int64]:
    """Return the place in `AGE_GAPS` of every query, -1 if nobody looked."""
    if truth.age_gap_years is None:
        return np.full(len(found.rank), -1)
    years = np.abs(truth.age_gap_years[found.query_row])
    return np.where(np.isnan(years), len(AGE_GAPS) - 1, np.searchsorted(_AGE_EDGES, years, side="right"))


def _area_groups(query_QD: Array, reference_RD: Array, truth: Truth, found: Outcomes) -> list[Group]:
    """Return one group per area, searched in that area's own gallery, as CV-Cities and VIGOR's cities are."""
    if truth.query_area is None or truth.reference_area is None:
        return []
    names = sorted(set(truth.query_area[found.query_row].tolist()))
    indptr, rows = (np.asarray(part, np.int64) for part in truth.covering)
    groups = []
    for name in names:
        queries = np.flatnonzero((truth.query_area == name) & (truth.positives >= 0))
        inside = truth.reference_area == name
        for query in queries:
            inside[rows[indptr[query] : indptr[query + 1]]] = True
        inside[truth.positives[queries]] = True
        gallery = np.flatnonzero(inside)
        if len(gallery) == len(inside):
            own = found.take(np.isin(found.query_row, queries))
        else:
            own = outcomes(
                torch.as_tensor(query_QD)[queries],
                torch.as_tensor(reference_RD)[gallery],
                _part(truth, queries, gallery),
            )
        groups.append(_group("area", name or "(no name)", own, len(gallery)))
    return groups


def _part(truth: Truth, queries: NDArray[np.int64], gallery: NDArray[np.int64]) -> Truth:
    new_row = np.full(len(truth.reference_lonlat), -1)
    new_row[gallery] = np.arange(len(gallery))
    indptr, rows = select_covering(truth.covering, queries)
    return Truth(
        positives=new_row[truth.positives[queries]],
        covering=(indptr, new_row[rows]),
        query_lonlat=truth.query_lonlat[queries],
        reference_lonlat=truth.reference_lonlat[gallery],
        decentrality=truth.decentrality[queries],
    )


def _groups(
    kind: str, names: Sequence[str], group_Q: NDArray[np.int64], found: Outcomes, num_references: int
) -> list[Group]:
    if (group_Q < 0).any():
        return []
    return [_group(kind, name, found.take(group_Q == index), num_references) for index, name in enumerate(names)]


def _group(kind: str, name: str, found: Outcomes, num_references: int) -> Group:
    return Group(
        kind=kind,
        name=name,
        num_queries=len(found.rank),
        num_references=num_references,
        recall_at_1=recall_at_k(found.rank, 1),
        recall_at_5=recall_at_k(found.rank, 5),
        recall_at_10=recall_at_k(found.rank, 10),
        recall_at_1_percent=recall_at_1_percent(found.rank, num_references),
        hit_rate_cover=_share(found.is_cover_hit),
        hit_rate_strict=_share(found.is_strict_hit),
        median_error_m=float(np.median(found.error_m)) if len(found.rank) else math.nan,
        recall_within_m={str(limit): _share(found.error_m <= limit) for limit in THRESHOLDS_M},
    )


def _share(is_true: NDArray[np.bool_]) -> float:
    return float(is_true.mean()) if is_true.size else math.nan


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
