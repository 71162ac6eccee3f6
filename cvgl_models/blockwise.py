"""All scores of queries and references, a block at a time, on the CPU: the best of each row, and how many pass a mark.

The time is that of the matrix product. What is done with the scores is done on slices that fit a core's cache, by as
many threads as the product has (NumPy lets them run side by side); of most slices nothing but a comparison is needed.

Shapes: Q queries, R references, D embedding, K results, q rows and r columns of a slice, P pairs. All values finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

QUERY_BLOCK = 1024
REFERENCE_BLOCK = 16384
"""A block of scores takes 64 MiB."""
_SLICE_BYTES = 1 << 20
_FOLDS = 16
"""The best of as many columns each tell what a score must reach to be among the best of a block."""
_SPARSE = 64
"""Scores per row that are looked at one by one rather than counted."""


class Marks(NamedTuple):
    """What each query's scores are compared with, and which references do not count."""

    low_Q: Floats
    high_Q: Floats
    ignored_query_P: Ints
    """In ascending order."""
    ignored_reference_P: Ints


@dataclass(slots=True)
class Found:
    """What was found for one block of queries."""

    rows: slice
    where_qk: Ints
    """Best references, best first, the first of equals first; -1 where there are fewer than K."""
    best_qk: Floats
    above_q: Ints
    """How many scores lie above the high mark."""
    near: list[tuple[Ints, Ints]] = field(default_factory=list)
    """(query, reference) of the scores from the low mark to the high one."""


def scan(
    query_QD: Floats,
    reference_RD: Floats,
    *,
    k: int = 0,
    marks: Marks | None = None,
    query_block: int = QUERY_BLOCK,
    reference_block: int = REFERENCE_BLOCK,
    threads: int = 1,
) -> Iterator[Found]:
    """Yield what is found for each block of queries, in order.

    Args:
        query_QD: Embeddings.
        reference_RD: Embeddings.
        k: Best references wanted per query; 0 for none.
        marks: What to count; None for nothing.
        query_block: Queries compared at a time.
        reference_block: References compared at a time.
        threads: Threads that look at the scores.
    """
    query_block, reference_block = min(query_block, len(query_QD)), min(reference_block, len(reference_RD))
    memory = np.empty(query_block * reference_block, np.float32)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(query_QD), query_block or 1):
            rows = slice(start, min(start + query_block, len(query_QD)))
            num_rows = rows.stop - start
            found = Found(
                rows,
                np.full((num_rows, k), -1, np.int64),
                np.full((num_rows, k), -np.inf, np.float32),
                np.zeros(num_rows, np.int64),
            )
            for left in range(0, len(reference_RD), reference_block):
                columns = slice(left, min(left + reference_block, len(reference_RD)))
                score_qr = memory[: num_rows * (columns.stop - left)].reshape(num_rows, -1)
                np.matmul(query_QD[rows], reference_RD[columns].T, out=score_qr)
                step = max(1, _SLICE_BYTES // (4 * score_qr.shape[1]))
                slices = [slice(top, min(top + step, num_rows)) for top in range(0, num_rows, step)]

                def look(
                    part: slice, score_qr: Floats = score_qr, left: int = left, found: Found = found
                ) -> tuple[_Hits, _Hits]:
                    near = _count(score_qr[part], part, left, found, marks) if marks is not None else _NOTHING
                    return near, _candidates(score_qr[part], part, found, k) if k else _NOTHING

                hits = list(pool.map(look, slices))
                for near, _ in hits:
                    if len(near.row):
                        found.near.append((near.row + start, near.column + left))
                if k:
                    _merge([better for _, better in hits if len(better.row)], left, found, k)
            yield found


class _Hits(NamedTuple):
    row: Ints
    """Within the block of queries."""
    column: Ints
    """Within the block of references."""
    score: Floats


_NOTHING = _Hits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def _hits(marked_qr: NDArray[np.bool_], score_qr: Floats, top: int) -> _Hits:
    flat = np.flatnonzero(marked_qr)
    row, column = np.divmod(flat, score_qr.shape[1])
    return _Hits(row + top, column, score_qr.reshape(-1)[flat])


def _count(score_qr: Floats, part: slice, left: int, found: Found, marks: Marks) -> _Hits:
    """Add to the counts of some rows and return the scores between the marks."""
    top = found.rows.start + part.start
    bottom = found.rows.start + part.stop
    first, last = np.searchsorted(marks.ignored_query_P, (top, bottom))
    row, column = marks.ignored_query_P[first:last] - top, marks.ignored_reference_P[first:last] - left
    inside = (column >= 0) & (column < score_qr.shape[1])
    row, column = row[inside], column[inside]
    kept = score_qr[row, column]
    score_qr[row, column] = -np.inf
    low_q, high_q = marks.low_Q[top:bottom], marks.high_Q[top:bottom]
    marked_qr = score_qr >= low_q[:, None]
    num_marked = int(np.count_nonzero(marked_qr))
    near = _NOTHING
    if 0 < num_marked <= _SPARSE * len(score_qr):
        hits = _hits(marked_qr, score_qr, part.start)
        above = hits.score > marks.high_Q[hits.row + found.rows.start]
        found.above_q[part] += np.bincount(hits.row[above] - part.start, minlength=len(score_qr))
        near = _Hits(hits.row[~above], hits.column[~above], hits.score[~above])
    elif num_marked:
        above_qr = score_qr > high_q[:, None]
        counts = np.array([np.count_nonzero(line) for line in above_qr])
        found.above_q[part] += counts
        if counts.sum() < num_marked:
            near = _hits(marked_qr & ~above_qr, score_qr, part.start)
    score_qr[row, column] = kept
    return near


def _candidates(score_qr: Floats, part: slice, found: Found, k: int) -> _Hits:
    """Return the scores of some rows that may be among the best."""
    worst_q = found.best_qk[part, -1]
    width = score_qr.shape[1] // _FOLDS
    if width >= k and not np.isfinite(worst_q).all():  # nothing to compare with yet
        folded_qw = score_qr[:, : width * _FOLDS].reshape(len(score_qr), _FOLDS, width).max(1)
        reached_q = np.partition(folded_qw, width - k, axis=1)[:, width - k]
        worst_q = np.maximum(worst_q, np.nextafter(reached_q, np.float32(-np.inf)))
    # A later reference with an equal score comes after those found before.
    marked_qr = score_qr > worst_q[:, None]
    if np.count_nonzero(marked_qr) > _SPARSE * k * len(score_qr):  # many equals, or ever better ones
        marked_qr &= _best_mask(score_qr, k)
    return _hits(marked_qr, score_qr, part.start)


def _best_mask(score_qr: Floats, k: int) -> NDArray[np.bool_]:
    """Return the k best of each row, the first of equals."""
    if k >= score_qr.shape[1]:
        return np.ones(score_qr.shape, bool)
    worst_q1 = np.partition(score_qr, -k, axis=1)[:, -k, None]
    better_qr, equal_qr = score_qr > worst_q1, score_qr == worst_q1
    chosen_qr: NDArray[np.bool_] = better_qr | (equal_qr & (equal_qr.cumsum(1) + better_qr.sum(1, keepdims=True) <= k))
    return chosen_qr


def _merge(parts: list[_Hits], left: int, found: Found, k: int) -> None:
    """Put candidates among the best of their rows."""
    if not parts:
        return
    row, column, score = (np.concatenate(values) for values in zip(*parts, strict=True))
    better = np.unique(row)
    row = np.concatenate([np.repeat(better, k), row])
    where = np.concatenate([found.where_qk[better].reshape(-1), column + left])
    score = np.concatenate([found.best_qk[better].reshape(-1), score])
    order = np.lexsort((where, -score, row))
    row, where, score = row[order], where[order], score[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    chosen = place < k
    found.where_qk[row[chosen], place[chosen]] = where[chosen]
    found.best_qk[row[chosen], place[chosen]] = score[chosen]
