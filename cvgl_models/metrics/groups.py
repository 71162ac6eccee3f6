"""Measures of some of the queries, or of a part of the embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cvgl_models.metrics.recall import recall_at_1_percent, recall_at_k, share
from cvgl_models.outcomes import Outcomes, Truth, outcomes, select_covering
from cvgl_models.retrieval import Array

THRESHOLDS_M = (25, 50, 100, 150)
QUARTERS = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")
"""Decentrality ranges; the last includes 1."""
AGE_GAPS = ("under 1 year", "1 to 3 years", "3 to 6 years", "6 years and more", "unknown")
"""Years between the capture of a query and of its positive, either way; the lower end belongs to the range."""
_AGE_EDGES = (1.0, 3.0, 6.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The measures of some of the queries, or of a branch of the embeddings."""

    kind: str
    """``branch``, ``area``, ``decentrality`` or ``age gap``."""
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


def quarter(truth: Truth, found: Outcomes) -> NDArray[np.int64]:
    """Return the place in `QUARTERS` of every query."""
    return np.clip(truth.decentrality[found.query_row] * 4, 0, 3).astype(np.int64)


def age_range(truth: Truth, found: Outcomes) -> NDArray[np.int64]:
    """Return the place in `AGE_GAPS` of every query, -1 if nobody looked."""
    if truth.age_gap_years is None:
        return np.full(len(found.rank), -1)
    years = np.abs(truth.age_gap_years[found.query_row])
    return np.where(np.isnan(years), len(AGE_GAPS) - 1, np.searchsorted(_AGE_EDGES, years, side="right"))


def branch_groups(query_QD: Array, reference_RD: Array, truth: Truth, branches: Mapping[str, slice]) -> list[Group]:
    """Return one group per part of the embeddings, searched alone."""
    parts = {
        name: (torch.as_tensor(query_QD)[:, part], torch.as_tensor(reference_RD)[:, part])
        for name, part in branches.items()
    }
    return [
        group("branch", name, outcomes(F.normalize(query), F.normalize(reference), truth), len(reference))
        for name, (query, reference) in parts.items()
    ]


def area_groups(query_QD: Array, reference_RD: Array, truth: Truth, found: Outcomes) -> list[Group]:
    """Return one group per area, searched in that area's own gallery, as CV-Cities and VIGOR's cities are."""
    if truth.query_area is None or truth.reference_area is None:
        return []
    names = sorted(set(truth.query_area[found.query_row].tolist()))
    indptr, rows = (np.asarray(part, np.int64) for part in truth.covering)
    found_groups = []
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
        found_groups.append(group("area", name or "(no name)", own, len(gallery)))
    return found_groups


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


def groups(
    kind: str, names: Sequence[str], group_Q: NDArray[np.int64], found: Outcomes, num_references: int
) -> list[Group]:
    """Return one group per name; none if a query belongs to none."""
    if (group_Q < 0).any():
        return []
    return [group(kind, name, found.take(group_Q == index), num_references) for index, name in enumerate(names)]


def group(kind: str, name: str, found: Outcomes, num_references: int) -> Group:
    """Return the measures of what was found."""
    return Group(
        kind=kind,
        name=name,
        num_queries=len(found.rank),
        num_references=num_references,
        recall_at_1=recall_at_k(found.rank, 1),
        recall_at_5=recall_at_k(found.rank, 5),
        recall_at_10=recall_at_k(found.rank, 10),
        recall_at_1_percent=recall_at_1_percent(found.rank, num_references),
        hit_rate_cover=share(found.is_cover_hit),
        hit_rate_strict=share(found.is_strict_hit),
        median_error_m=float(np.median(found.error_m)) if len(found.rank) else math.nan,
        recall_within_m={str(limit): share(found.error_m <= limit) for limit in THRESHOLDS_M},
    )
