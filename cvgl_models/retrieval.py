"""Exact retrieval: nearest references and the rank of the true one, in bounded memory, on any device.

Shapes: Q queries, R references, D embedding, K results, q and r sizes of one block.

Embeddings are compared by their dot product, which is the cosine when they are L2-normalized. A published habit is to
count only references that score strictly higher than the positive; then an encoder that maps everything to one point,
or to NaN, has a perfect recall. Here ties and NaN count against the query.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_models import blockwise

Array = Tensor | NDArray[np.float32]
Covering = tuple[NDArray[np.signedinteger[Any]], NDArray[np.signedinteger[Any]]]
"""``(indptr, rows)``: query i is covered by the references ``rows[indptr[i]:indptr[i + 1]]``."""

Rows = Sequence[int] | NDArray[np.signedinteger[Any]] | Tensor

_CUDA_BLOCKS = (4096, 65536)
"""Queries and references of a block of scores on an accelerator: 1 GiB."""
_TIE_BAND = 1e-5
"""Scores closer than this (relative to the norms) are compared again in float64, independent of a block's shape."""
_TIE_BLOCK = 4096


def search(
    query_QD: Array,
    reference_RD: Array,
    k: int,
    *,
    query_block: int | None = None,
    reference_block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k best references of every query, best first; equal scores stand in row order.

    Args:
        query_QD: Embeddings, any float type; compared in float32.
        reference_RD: Embeddings on the same device.
        k: Results per query; with fewer references, all of them.
        query_block: Queries compared at a time; by default what suits the device.
        reference_block: References compared at a time.

    Returns:
        ``indices_QK`` (int64) and ``scores_QK`` (float32), K = min(k, R); -1 and -inf where a score is NaN.

    Raises:
        ValueError: If the shapes do not fit or k is not positive.
    """
    indices_QK, scores_QK, _ = _scan(query_QD, reference_RD, _num_results(k), None, None, query_block, reference_block)
    return indices_QK, scores_QK


def ranks(
    query_QD: Array,
    reference_RD: Array,
    positives: Rows,
    *,
    covering: Covering | None = None,
    query_block: int | None = None,
    reference_block: int | None = None,
) -> Tensor:
    """Return for every query how many references are not clearly worse than its positive; 0 means it comes first.

    A reference counts against the query when its score is higher than the positive's, equal to it, or NaN; everything
    counts when the positive's own score is NaN. Close scores are decided in float64, so the result does not depend on
    the block sizes.

    Args:
        query_QD: Embeddings, any float type.
        reference_RD: Embeddings on the same device.
        positives: Row of each query's positive, Q values.
        covering: References that do not count (the semi-positives, for the strict hit rate).
        query_block: Queries compared at a time; by default what suits the device.
        reference_block: References compared at a time.

    Raises:
        ValueError: If the shapes do not fit or a positive is not a row.
    """
    return _scan(query_QD, reference_RD, 0, positives, covering, query_block, reference_block)[2]


def search_and_rank(
    query_QD: Array,
    reference_RD: Array,
    k: int,
    positives: Rows,
    *,
    covering: Covering | None = None,
    query_block: int | None = None,
    reference_block: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `search` and `ranks` return, from scores computed once: indices_QK, scores_QK, ranks_Q."""
    return _scan(query_QD, reference_RD, _num_results(k), positives, covering, query_block, reference_block)


def _num_results(k: int) -> int:
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return k


def _scan(
    query_QD: Array,
    reference_RD: Array,
    k: int,
    positives: Rows | None,
    covering: Covering | None,
    query_block: int | None,
    reference_block: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    query_QD, reference_RD = _checked(query_QD, reference_RD)
    k = min(k, len(reference_RD))
    target = None if positives is None else _Target.of(query_QD, reference_RD, positives, covering)
    largest = query_QD.norm(dim=1).sum() * reference_RD.norm(dim=1).sum()
    if query_QD.device.type == "cpu" and bool(largest.isfinite()):
        return _scan_finite(query_QD, reference_RD, k, target, query_block, reference_block)
    default = _CUDA_BLOCKS if query_QD.is_cuda else (blockwise.QUERY_BLOCK, blockwise.REFERENCE_BLOCK)
    with _full_precision():
        return _scan_any(query_QD, reference_RD, k, target, query_block or default[0], reference_block or default[1])


@dataclass(frozen=True, slots=True)
class _Target:
    """The scores that references are compared with to count them."""

    positive_Q: Tensor
    exact_Q: Tensor
    """Float64 score of each query's positive."""
    band_Q: Tensor
    covering: Covering | None
    count_Q: Tensor
    """Grows to the ranks."""

    @staticmethod
    def of(query_QD: Tensor, reference_RD: Tensor, positives: Rows, covering: Covering | None) -> _Target:
        device = query_QD.device
        positive_Q = torch.as_tensor(positives, dtype=torch.long, device=device)
        if positive_Q.shape != (len(query_QD),):
            raise ValueError(f"{len(query_QD)} queries need as many positives, not {tuple(positive_Q.shape)}")
        if len(positive_Q) and not 0 <= int(positive_Q.min()) <= int(positive_Q.max()) < len(reference_RD):
            raise ValueError(f"positives must be rows of the {len(reference_RD)} references")
        longest = reference_RD.norm(dim=1).nan_to_num(0.0, 0.0).max()
        return _Target(
            positive_Q,
            _exact_scores(query_QD, reference_RD, torch.arange(len(query_QD)), positive_Q),
            _TIE_BAND * query_QD.norm(dim=1) * longest,
            covering,
            torch.zeros(len(query_QD), dtype=torch.long, device=device),
        )

    @property
    def marks(self) -> blockwise.Marks:
        """The same for `blockwise.scan`."""
        row, column = _ignored(slice(0, len(self.positive_Q)), self.positive_Q, self.covering)
        order = row.argsort(stable=True)
        score_Q = self.exact_Q.float()
        return blockwise.Marks(
            (score_Q - self.band_Q).numpy(), (score_Q + self.band_Q).numpy(), row[order].numpy(), column[order].numpy()
        )


def _scan_finite(
    query_QD: Tensor,
    reference_RD: Tensor,
    k: int,
    target: _Target | None,
    query_block: int | None,
    reference_block: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    indices_QK = torch.empty((len(query_QD), k), dtype=torch.long)
    scores_QK = torch.empty((len(query_QD), k))
    for found in blockwise.scan(
        query_QD.numpy(),
        reference_RD.numpy(),
        k=k,
        marks=target.marks if target is not None else None,
        query_block=query_block or blockwise.QUERY_BLOCK,
        reference_block=reference_block or blockwise.REFERENCE_BLOCK,
        threads=torch.get_num_threads(),
    ):
        indices_QK[found.rows] = torch.from_numpy(found.where_qk)
        scores_QK[found.rows] = torch.from_numpy(found.best_qk)
        if target is not None:
            target.count_Q[found.rows] += torch.from_numpy(found.above_q)
            if found.near:
                row_P, column_P = (torch.from_numpy(np.concatenate(part)) for part in zip(*found.near, strict=True))
                _count_ties(target, query_QD, reference_RD, row_P, column_P)
    return indices_QK, scores_QK, target.count_Q if target is not None else torch.empty(0, dtype=torch.long)


def _scan_any(
    query_QD: Tensor, reference_RD: Tensor, k: int, target: _Target | None, query_block: int, reference_block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same on any device and with values that are not finite."""
    indices, scores = [query_QD.new_empty((0, k), dtype=torch.long)], [query_QD.new_empty((0, k))]
    for rows in _blocks(len(query_QD), query_block):
        best_qk = query_QD.new_empty((rows.stop - rows.start, 0))
        where_qk = torch.empty_like(best_qk, dtype=torch.long)
        ignored = None if target is None else _ignored(rows, target.positive_Q, target.covering)
        for columns in _blocks(len(reference_RD), reference_block):
            score_qr = query_QD[rows] @ reference_RD[columns].T
            if target is not None and ignored is not None:
                _count_block(target, query_QD, reference_RD, score_qr, rows, columns, ignored)
            if k:
                score_qr.masked_fill_(score_qr.isnan(), -torch.inf)
                top_qk, column_qk = score_qr.topk(min(k, score_qr.shape[1]), dim=1)
                best_qk = torch.cat([best_qk, top_qk], 1)
                where_qk = torch.cat([where_qk, column_qk + columns.start], 1)
                by_row = where_qk.argsort(1)
                best_qk, where_qk = best_qk.gather(1, by_row), where_qk.gather(1, by_row)
                order = best_qk.argsort(dim=1, descending=True, stable=True)[:, :k]
                best_qk, where_qk = best_qk.gather(1, order), where_qk.gather(1, order)
        indices.append(where_qk.masked_fill(best_qk == -torch.inf, -1))
        scores.append(best_qk)
    counts = target.count_Q if target is not None else torch.empty(0, dtype=torch.long)
    return torch.cat(indices), torch.cat(scores), counts


def _count_block(
    target: _Target,
    query_QD: Tensor,
    reference_RD: Tensor,
    score_qr: Tensor,
    rows: slice,
    columns: slice,
    ignored: tuple[Tensor, Tensor],
) -> None:
    score_q1, band_q1 = target.exact_Q[rows, None].float(), target.band_Q[rows, None]
    inside = (ignored[1] >= columns.start) & (ignored[1] < columns.stop)
    drop = (ignored[0][inside], ignored[1][inside] - columns.start)
    not_better_qr = score_qr <= score_q1 + band_q1
    not_better_qr[drop] = True
    target.count_Q[rows] += (~not_better_qr).sum(1)
    near_qr = not_better_qr & ~(score_qr < score_q1 - band_q1)
    near_qr[drop] = False
    near_row, near_column = near_qr.nonzero(as_tuple=True)
    _count_ties(target, query_QD, reference_RD, near_row + rows.start, near_column + columns.start)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Compute float32 products in float32 whatever training has chosen: rounded inputs would break the tie band."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def best_covering(query_QD: Array, reference_RD: Array, covering: Covering) -> Tensor:
    """Return the highest-scoring covering reference of every query, -1 where nothing covers it or its score is NaN."""
    query_QD, reference_RD = _checked(query_QD, reference_RD)
    indptr, rows = (torch.as_tensor(np.asarray(part, np.int64)) for part in covering)
    query_P = torch.repeat_interleave(torch.arange(len(query_QD)), indptr.diff())
    score_P = _exact_scores(query_QD, reference_RD, query_P, rows)
    best_Q = torch.full((len(query_QD),), -torch.inf, dtype=torch.float64, device=query_QD.device)
    query_P, rows = query_P.to(query_QD.device), rows.to(query_QD.device)
    score_P = torch.where(score_P.isnan(), -torch.inf, score_P)
    best_Q = best_Q.scatter_reduce(0, query_P, score_P, "amax")
    is_best_P = (score_P == best_Q[query_P]) & (score_P > -torch.inf)
    first_Q = torch.full((len(query_QD),), len(reference_RD), dtype=torch.long, device=query_QD.device)
    first_Q = first_Q.scatter_reduce(0, query_P[is_best_P], rows[is_best_P], "amin")
    return first_Q.masked_fill(first_Q == len(reference_RD), -1)


def _checked(query_QD: Array, reference_RD: Array) -> tuple[Tensor, Tensor]:
    query, reference = torch.as_tensor(query_QD), torch.as_tensor(reference_RD)
    if query.ndim != 2 or reference.ndim != 2 or query.shape[1] != reference.shape[1]:
        raise ValueError(f"embeddings must be (Q, D) and (R, D), not {tuple(query.shape)} and {tuple(reference.shape)}")
    if not len(reference):
        raise ValueError("there are no references to search in")
    return query.detach().float(), reference.detach().float()


def _blocks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _ignored(rows: slice, positive_Q: Tensor, covering: Covering | None) -> tuple[Tensor, Tensor]:
    """Return (row within the block, reference) of everything that must not count against the block's queries."""
    row = torch.arange(rows.stop - rows.start, device=positive_Q.device)
    column = positive_Q[rows]
    if covering is None:
        return row, column
    indptr, references = (np.asarray(part, np.int64) for part in covering)
    counts = torch.as_tensor(np.diff(indptr[rows.start : rows.stop + 1]))
    more = torch.as_tensor(references[indptr[rows.start] : indptr[rows.stop]], device=positive_Q.device)
    more_row = torch.repeat_interleave(torch.arange(len(counts)), counts).to(positive_Q.device)
    return torch.cat([row, more_row]), torch.cat([column, more])


def _exact_scores(query_QD: Tensor, reference_RD: Tensor, query_P: Tensor, reference_P: Tensor) -> Tensor:
    """Return the float64 scores of P single pairs: equal references give bit-equal scores, whatever the blocks."""
    query_P, reference_P = query_P.to(query_QD.device), reference_P.to(query_QD.device)
    parts = [
        torch.linalg.vecdot(query_QD[query_P[part]].double(), reference_RD[reference_P[part]].double())
        for part in _blocks(len(query_P), _TIE_BLOCK)
    ]
    return torch.cat(parts) if parts else query_QD.new_empty(0, dtype=torch.float64)


def _count_ties(target: _Target, query_QD: Tensor, reference_RD: Tensor, query_P: Tensor, reference_P: Tensor) -> None:
    """Add the close pairs whose float64 score is not below that of the query's positive."""
    for part in _blocks(len(query_P), _TIE_BLOCK * 64):
        rows = query_P[part]
        against = ~(_exact_scores(query_QD, reference_RD, rows, reference_P[part]) < target.exact_Q[rows])
        target.count_Q.index_add_(0, rows, against.long())
