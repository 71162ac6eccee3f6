"""Retrieval metrics as published code counts them, to compare with published numbers and for nothing else.

Shapes: Q queries, R references, D embedding. Differences from `cvgl_models.metrics`: only references that score
strictly higher count against a query, so ties, NaN and collapsed embeddings look perfect; 1 % of the gallery is
rounded down.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cvgl_models.retrieval import Array, Covering

_BLOCK = 1000


def legacy_metrics(query_QD: Array, reference_RD: Array, positives: ArrayLike, covering: Covering) -> dict[str, float]:
    """Return the measures of the published code; NaN without queries.

    Args:
        query_QD: Embeddings of queries that some reference covers.
        reference_RD: Embeddings of the gallery, on the same device.
        positives: Row of each query's positive.
        covering: All covering references of each query.

    Returns:
        ``recall_at_1``, ``_5``, ``_10``; ``recall_at_1_percent`` with ``k = R // 100`` (Sample4Geo, CV-Cities) and
        ``recall_at_1_percent_vigor`` with ``k = int(0.01 R) + 1``; ``hit_rate`` (VIGOR, Sample4Geo: nothing outside
        the covering references scores higher than the positive) and ``hit_rate_top_1`` (AuxGeo: the first reference
        of the highest score covers the query).

    Source:
        The evaluation code of VIGOR, Sample4Geo, CV-Cities and AuxGeo.
    """
    query, reference = torch.as_tensor(query_QD).float(), torch.as_tensor(reference_RD).float()
    positive_Q = torch.as_tensor(np.asarray(positives, np.int64), device=query.device)
    indptr, rows = (np.asarray(part, np.int64) for part in covering)
    rank = np.empty(len(query), np.int64)
    outside, top = rank.copy(), rank.copy()
    for start in range(0, len(query), _BLOCK):
        part = slice(start, min(start + _BLOCK, len(query)))
        score_qR = query[part] @ reference.T
        higher_qR = score_qR > score_qR.gather(1, positive_Q[part, None])
        rank[part] = higher_qR.sum(1).cpu().numpy()
        top[part] = score_qR.argmax(1).cpu().numpy()
        covers = np.repeat(np.arange(part.stop - start), np.diff(indptr[start : part.stop + 1]))
        higher_qR[torch.as_tensor(covers), torch.as_tensor(rows[indptr[start] : indptr[part.stop]])] = False
        outside[part] = higher_qR.sum(1).cpu().numpy()
    is_covered = [top[i] in rows[indptr[i] : indptr[i + 1]] for i in range(len(query))]
    num = len(reference)
    return {
        **{f"recall_at_{k}": _share(rank < k) for k in (1, 5, 10)},
        "recall_at_1_percent": _share(rank < num // 100),
        "recall_at_1_percent_vigor": _share(rank < int(0.01 * num) + 1),
        "hit_rate": _share(outside < 1),
        "hit_rate_top_1": _share(np.array(is_covered, dtype=bool)),
    }


def _share(is_true: NDArray[np.bool_]) -> float:
    return float(is_true.mean()) if is_true.size else math.nan
