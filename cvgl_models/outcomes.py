"""What became of each query: its rank, whether it was a hit, and how far off its top-1 lies.

Shapes: Q queries, R references, D embedding, K candidates. Ties and NaN count against the query throughout.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.geo import distance_m
from cvgl_models.retrieval import Array, Covering, best_covering, ranks, search

_NEAR = 1e-5
_TIE_BLOCK = 256
_CLOSE_AT_MOST = 1000


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
    query_area: NDArray[np.str_] | None = None
    """Names, (Q,); None: all is one area."""
    reference_area: NDArray[np.str_] | None = None
    age_gap_years: NDArray[np.float64] | None = None
    """Years between the captures of each query and its positive, NaN where unknown; None: not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What became of each query that some reference covers; all arrays have one entry for each."""

    query_row: NDArray[np.int64]
    """Row in the truth."""
    rank: NDArray[np.int64]
    """References that are not clearly worse than the positive; 0 means it comes first."""
    is_cover_hit: NDArray[np.bool_]
    is_strict_hit: NDArray[np.bool_]
    top_row: NDArray[np.int64]
    """Top-1 reference, of equal ones the farthest from the query; -1 where no score is a number."""
    num_tied: NDArray[np.int64]
    """References that share the best score or have none; 1 is usual."""
    error_m: NDArray[np.float64]
    """Great-circle distance from the query to the centre of ``top_row``, infinite where there is none."""

    def take(self, chosen: NDArray[np.bool_]) -> Outcomes:
        """Return the outcomes of some queries."""
        return Outcomes(**{item.name: getattr(self, item.name)[chosen] for item in dataclasses.fields(self)})


def outcomes(query_QD: Array, reference_RD: Array, truth: Truth) -> Outcomes:
    """Search every covered query in the gallery.

    Args:
        query_QD: Embeddings, in the order of the truth.
        reference_RD: Embeddings of the gallery, on the same device.
        truth: Positions and covering references.

    Raises:
        ValueError: If there are no references.
    """
    query_row = np.flatnonzero(truth.positives >= 0)
    query_QD, reference_RD = torch.as_tensor(query_QD)[query_row], torch.as_tensor(reference_RD)
    positives, covering = truth.positives[query_row], select_covering(truth.covering, query_row)
    top_row, num_tied = _top(query_QD, reference_RD, truth.query_lonlat[query_row], truth.reference_lonlat)
    error_m = distance_m(*truth.query_lonlat[query_row].T, *truth.reference_lonlat[top_row].T)
    error_m[top_row < 0] = np.inf
    return Outcomes(
        query_row=query_row,
        rank=ranks(query_QD, reference_RD, positives).cpu().numpy(),
        is_cover_hit=covered_by_top(query_QD, reference_RD, covering),
        is_strict_hit=ranks(query_QD, reference_RD, positives, covering=covering).cpu().numpy() == 0,
        top_row=top_row,
        num_tied=num_tied,
        error_m=error_m,
    )


def select_covering(covering: Covering, queries: NDArray[np.int64]) -> Covering:
    """Return the covering references of some queries."""
    indptr, rows = (np.asarray(part, np.int64) for part in covering)
    parts = [rows[indptr[query] : indptr[query + 1]] for query in queries]
    counts = np.array([len(part) for part in parts], np.int64)
    return np.concatenate([[0], np.cumsum(counts)]), np.concatenate([*parts, np.empty(0, np.int64)])


def covered_by_top(query_QD: Array, reference_RD: Array, covering: Covering) -> NDArray[np.bool_]:
    """Return for every query whether the top-1 reference covers it."""
    best_Q = best_covering(query_QD, reference_RD, covering)
    outside_Q = ranks(query_QD, reference_RD, best_Q.clamp(min=0), covering=covering)
    hit: NDArray[np.bool_] = ((outside_Q == 0) & (best_Q >= 0)).cpu().numpy()
    return hit


def _top(
    query_QD: Tensor, reference_RD: Tensor, query_lonlat: NDArray[np.float64], reference_lonlat: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the top-1 reference, of equal ones the farthest, and how many are equal."""
    indices_QK, scores_QK = (part.cpu() for part in search(query_QD, reference_RD, 2))
    top_Q, num_tied_Q = indices_QK[:, 0].numpy().copy(), np.ones(len(indices_QK), np.int64)
    if scores_QK.shape[1] < 2:
        return top_Q, num_tied_Q
    norm_Q = query_QD.float().norm(dim=1).cpu() * float(reference_RD.float().norm(dim=1).nan_to_num(0.0, 0.0).max())
    # Not only equal float32 scores: those of equal references may differ by rounding, as blocks differ in shape.
    near_Q = (scores_QK[:, 1] >= scores_QK[:, 0] - _NEAR * norm_Q) & (indices_QK[:, 1] >= 0)
    broken = (~reference_RD.isfinite().all(1)).nonzero()[:, 0].cpu().numpy()  # they count as well as the best one
    if len(broken):
        near_Q = indices_QK[:, 0] >= 0
    for part in near_Q.nonzero()[:, 0].split(_TIE_BLOCK):
        score_qR = query_QD[part].float() @ reference_RD.float().T
        close_qR = score_qR >= (scores_QK[part, :1] - _NEAR * norm_Q[part, None]).to(score_qR.device)
        for row, close_R in zip(part.tolist(), close_qR, strict=True):
            best = np.union1d(_equals(query_QD[row], reference_RD, close_R.nonzero()[:, 0]), broken)
            away_m = distance_m(*query_lonlat[row], *reference_lonlat[best].T)
            top_Q[row], num_tied_Q[row] = best[int(np.argmax(away_m))], len(best)
    return top_Q, num_tied_Q


def _equals(query_D: Tensor, reference_RD: Tensor, close: Tensor) -> NDArray[np.int64]:
    """Return which of some close references share the best score: all, if so many that the encoder has collapsed."""
    if len(close) <= _CLOSE_AT_MOST:
        exact = reference_RD[close].double() @ query_D.double()
        close = close[exact >= exact.max() - 1e-12 * exact.abs().max()]
    best: NDArray[np.int64] = close.cpu().numpy()
    return best
