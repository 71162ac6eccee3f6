"""How well queries are found: recall, the two hit rates, and metres.

Shapes: Q queries, R references, D embedding. Ratios lie in [0, 1]. Ties and NaN count against the query throughout.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cvgl_data.geo import distance_m
from cvgl_models.retrieval import Array, Covering, best_covering, ranks, search

THRESHOLDS_M = (25, 50, 100)
QUARTERS = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")
"""Decentrality ranges; the last includes 1."""


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
        The published code floors, which makes it 0 below 100 references.
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
    best_Q = best_covering(query_QD, reference_RD, covering)
    found_Q = best_Q >= 0
    if not len(best_Q):
        return math.nan
    outside = ranks(query_QD, reference_RD, best_Q.clamp(min=0), covering=covering)
    return float(((outside == 0) & found_Q).double().mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Where the queries are, and which references cover them."""

    positives: NDArray[np.int64]
    """Row of each query's positive, -1 where no reference covers it."""
    covering: Covering
    query_lonlat: NDArray[np.float64]
    """(Q, 2) degrees."""
    reference_lonlat: NDArray[np.float64]
    """(R, 2) degrees, centres."""
    decentrality: NDArray[np.float64]
    """Of each query in its positive, NaN where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalReport:
    """Everything measured in one evaluation; counts are of queries that some reference covers unless said otherwise."""

    num_queries: int
    num_uncovered: int
    """Queries that no reference covers; they count nowhere else."""
    num_references: int
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

    def to_json(self) -> str:
        """Return the report as JSON; a value that is not finite is null."""
        return json.dumps(_finite(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"

    def rows(self) -> list[tuple[str, str]]:
        """Return (what, value) for a table."""
        return [
            ("queries", f"{self.num_queries:,}"),
            ("queries that no reference covers", f"{self.num_uncovered:,}"),
            ("references", f"{self.num_references:,}"),
            ("recall@1", _percent(self.recall_at_1)),
            ("recall@5", _percent(self.recall_at_5)),
            ("recall@10", _percent(self.recall_at_10)),
            ("recall@1%", _percent(self.recall_at_1_percent)),
            ("chance of recall@1", _percent(self.chance_recall_at_1)),
            ("hit rate (cover)", _percent(self.hit_rate_cover)),
            ("hit rate (strict)", _percent(self.hit_rate_strict)),
            ("median error", f"{self.median_error_m:,.1f} m"),
            ("mean error", f"{self.mean_error_m:,.1f} m"),
            *((f"within {meters} m", _percent(share)) for meters, share in self.recall_within_m.items()),
            *(
                (f"recall@1, decentrality {quarter}", f"{_percent(share)} of {self.num_by_decentrality[quarter]:,}")
                for quarter, share in self.recall_at_1_by_decentrality.items()
            ),
        ]


def retrieval_report(query_QD: Array, reference_RD: Array, truth: Truth) -> RetrievalReport:
    """Measure embeddings against the truth.

    Args:
        query_QD: Embeddings, in the order of the truth.
        reference_RD: Embeddings of the gallery.
        truth: Positions and covering references.

    Raises:
        ValueError: If there are no references.
    """
    covered = np.flatnonzero(truth.positives >= 0)
    query_QD, reference_RD = torch.as_tensor(query_QD)[covered], torch.as_tensor(reference_RD)
    positives, covering = truth.positives[covered], _select(truth.covering, covered)
    rank_Q = ranks(query_QD, reference_RD, positives).cpu().numpy()
    top_Q = search(query_QD, reference_RD, 1)[0][:, 0].cpu().numpy()
    error_Q = distance_m(*truth.query_lonlat[covered].T, *truth.reference_lonlat[top_Q].T)
    error_Q[top_Q < 0] = np.inf
    quarter_Q = np.clip(truth.decentrality[covered] * 4, 0, 3).astype(np.int64)
    return RetrievalReport(
        num_queries=len(covered),
        num_uncovered=len(truth.positives) - len(covered),
        num_references=len(reference_RD),
        recall_at_1=recall_at_k(rank_Q, 1),
        recall_at_5=recall_at_k(rank_Q, 5),
        recall_at_10=recall_at_k(rank_Q, 10),
        recall_at_1_percent=recall_at_1_percent(rank_Q, len(reference_RD)),
        hit_rate_cover=hit_rate_cover(query_QD, reference_RD, covering),
        hit_rate_strict=hit_rate_strict(query_QD, reference_RD, positives, covering),
        median_error_m=float(np.median(error_Q)) if len(covered) else math.nan,
        mean_error_m=float(error_Q.mean()) if len(covered) else math.nan,
        recall_within_m={str(m): recall_at_k(error_Q > m, 1) for m in THRESHOLDS_M},
        recall_at_1_by_decentrality={
            name: recall_at_k(rank_Q[quarter_Q == index], 1) for index, name in enumerate(QUARTERS)
        },
        num_by_decentrality={name: int((quarter_Q == index).sum()) for index, name in enumerate(QUARTERS)},
        chance_recall_at_1=1 / len(reference_RD),
    )


def _select(covering: Covering, queries: NDArray[np.int64]) -> Covering:
    indptr, rows = (np.asarray(part, np.int64) for part in covering)
    parts = [rows[indptr[query] : indptr[query + 1]] for query in queries]
    counts = np.array([len(part) for part in parts], np.int64)
    return np.concatenate([[0], np.cumsum(counts)]), np.concatenate([*parts, np.empty(0, np.int64)])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(share: float) -> str:
    return "n/a" if math.isnan(share) else f"{100 * share:.1f} %"
