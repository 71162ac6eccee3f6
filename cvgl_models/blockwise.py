"""All scores of queries and references, a block at a time, on the CPU: the best of each row, and how many pass a mark.

The time is that of the matrix product. Each thread has queries of its own, and computes and looks through their scores
alone, so none waits for another. It looks at slices that fit a core's cache; most need one comparison and no more.

Shapes: Q queries, R references, D embedding, K results, q rows and r columns of a slice, P pairs. All values finite.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

QUERY_BLOCK = 1024
REFERENCE_BLOCK = 4096
"""A block of scores takes 16 MiB for each thread."""
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

    def of(self, rows: Ints) -> Marks:
        """Return the marks of some queries, which are then counted from 0."""
        start, stop = (np.searchsorted(self.ignored_query_P, rows, side=side) for side in ("left", "right"))
        counts = stop - start
        at = np.repeat(start - np.concatenate([[0], counts.cumsum()[:-1]]), counts) + np.arange(counts.sum())
        query_P = np.repeat(np.arange(len(rows)), counts)
        return Marks(self.low_Q[rows], self.high_Q[rows], query_P, self.ignored_reference_P[at])


@dataclass(slots=True)
class Found:
    """What was found for one block of queries."""

    rows: Ints
    """Which they are."""
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
    """Yield what is found for each block of queries.

    Args:
        query_QD: Embeddings.
        reference_RD: Embeddings.
        k: Best references wanted per query; 0 for none.
        marks: What to count; None for nothing.
        query_block: Queries compared at a time.
        reference_block: References compared at a time.
        threads: How many blocks are computed side by side.
    """
    query_block = max(1, min(query_block, -(-len(query_QD) // threads)))
    # Queries alike in how many references will pass their marks share a slice, and what it costs.
    order = np.argsort(-marks.low_Q, kind="stable") if marks is not None else np.arange(len(query_QD))
    blocks = [order[start : start + query_block] for start in range(0, len(order), query_block)]

    def scan_block(rows: Ints) -> Found:
        return _scan_block(query_QD[rows], rows, reference_RD, k, marks, min(reference_block, len(reference_RD)))

    # the number of threads of a product is that of the thread which asks for it
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = deque(pool.submit(scan_block, rows) for rows in blocks[: 2 * threads])
        for rows in [*blocks[2 * threads :], *([None] * len(waiting))]:
            found = waiting.popleft().result()
            if rows is not None:
                waiting.append(pool.submit(scan_block, rows))
            yield found


def _scan_block(
    query_qD: Floats, rows: Ints, reference_RD: Floats, k: int, marks: Marks | None, reference_block: int
) -> Found:
    num_rows = len(rows)
    found = Found(
        rows,
        np.full((num_rows, k), -1, np.int64),
        np.full((num_rows, k), -np.inf, np.float32),
        np.zeros(num_rows, np.int64),
    )
    own = marks.of(rows) if marks is not None else None
    memory = np.empty(num_rows * reference_block, np.float32)
    step = max(1, _SLICE_BYTES // (4 * reference_block))
    for left in range(0, len(reference_RD), reference_block):
        columns = slice(left, min(left + reference_block, len(reference_RD)))
        score_qr = memory[: num_rows * (columns.stop - left)].reshape(num_rows, -1)
        torch.mm(torch.from_numpy(query_qD), torch.from_numpy(reference_RD[columns]).T, out=torch.from_numpy(score_qr))
        better = []
        for top in range(0, num_rows, step):
            part = slice(top, min(top + step, num_rows))
            near, candidates = _look(score_qr[part], part, left, found, own, k)
            if len(near.row):
                found.near.append((rows[near.row], near.column + left))
            if len(candidates.row):
                better.append(candidates)
        _merge(better, left, found, k)
    return found


def _look(score_qr: Floats, part: slice, left: int, found: Found, marks: Marks | None, k: int) -> tuple[_Hits, _Hits]:
    """Return the scores of some rows that lie between the marks, and those that may be among the best."""
    if marks is None:
        return _NOTHING, _candidates(score_qr, part, found, k) if k else _NOTHING
    inside = slice(*np.searchsorted(marks.ignored_query_P, (part.start, part.stop)))
    row, column = marks.ignored_query_P[inside] - part.start, marks.ignored_reference_P[inside] - left
    here = (column >= 0) & (column < score_qr.shape[1])
    row, column = row[here], column[here]
    low_q = marks.low_Q[part]
    worst_q = found.best_qk[part, -1] if k else np.full(len(low_q), np.inf, np.float32)
    if np.isfinite(worst_q).all() or not k:
        marked_qr = score_qr >= np.minimum(low_q, worst_q)[:, None]
        if np.count_nonzero(marked_qr) <= _SPARSE * len(score_qr):
            return _sorted_out(_hits(marked_qr, score_qr, part.start), (row, column), part, found, marks, k)
    kept = score_qr[row, column]
    score_qr[row, column] = -np.inf
    near = _count(score_qr, part, found, marks)
    score_qr[row, column] = kept
    return near, _candidates(score_qr, part, found, k) if k else _NOTHING


def _sorted_out(
    hits: _Hits, ignored: tuple[Ints, Ints], part: slice, found: Found, marks: Marks, k: int
) -> tuple[_Hits, _Hits]:
    """Return what `_look` does, given the few scores that pass the lower of both marks."""
    candidates = hits.of(hits.score > found.best_qk[hits.row, -1]) if k else _NOTHING
    row, column = ignored
    if len(row):
        hits = hits.of(~np.isin((hits.row << 32) + hits.column, ((row + part.start) << 32) + column))
    above = hits.score > marks.high_Q[hits.row]
    found.above_q[part] += np.bincount(hits.row[above] - part.start, minlength=part.stop - part.start)
    return hits.of(~above & (hits.score >= marks.low_Q[hits.row])), candidates


class _Hits(NamedTuple):
    row: Ints
    """Within the block of queries."""
    column: Ints
    """Within the block of references."""
    score: Floats

    def of(self, chosen: NDArray[np.bool_]) -> _Hits:
        """Return some of them."""
        return _Hits(self.row[chosen], self.column[chosen], self.score[chosen])


_NOTHING = _Hits(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def _hits(marked_qr: NDArray[np.bool_], score_qr: Floats, top: int) -> _Hits:
    flat = np.flatnonzero(marked_qr)
    row, column = np.divmod(flat, score_qr.shape[1])
    return _Hits(row + top, column, score_qr.reshape(-1)[flat])


def _count(score_qr: Floats, part: slice, found: Found, marks: Marks) -> _Hits:
    """Add to the counts of some rows and return the scores between the marks."""
    low_q, high_q = marks.low_Q[part], marks.high_Q[part]
    above_qr = score_qr > high_q[:, None]
    counts = np.array([np.count_nonzero(line) for line in above_qr])
    found.above_q[part] += counts
    marked_qr = score_qr >= low_q[:, None]
    if np.count_nonzero(marked_qr) == counts.sum():
        return _NOTHING
    return _hits(marked_qr & ~above_qr, score_qr, part.start)


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
