"""Images that repeat others: found by position and hash, never by comparing all with all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cvgl_data.geo import EARTH_RADIUS_M, unit_sphere
from cvgl_data.quality.hashing import differing_bits

_ENTRIES_AT_ONCE = 4_000_000
_ROWS_AT_ONCE = 20_000
_CROWD = 2_000
"""Where more lie near one another, such as at a default position, those that look alike are found first."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]
Mask = NDArray[np.bool_]


def repeated_nearby(lon: Floats, lat: Floats, hashes: Hashes, is_hashed: Mask, within_m: float, bits: int) -> Ints:
    """Return the pairs of rows that lie near each other and look the same.

    Args:
        lon: Degrees; rows without a position are in no pair, shape (N,) like all that follow.
        lat: Degrees.
        hashes: Perceptual hashes.
        is_hashed: Which rows have one.
        within_m: Great-circle metres.
        bits: Most bits in which the hashes may differ.

    Returns:
        Shape (P, 2), the lower row first.
    """
    from scipy.spatial import cKDTree

    rows = np.flatnonzero(is_hashed & np.isfinite(lon) & np.isfinite(lat))
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    points, hashes = unit_sphere(lon[rows], lat[rows]), hashes[rows]
    chord = 2 * np.sin(min(within_m / (2 * EARTH_RADIUS_M), np.pi / 2))
    tree = cKDTree(points)
    if tree.query_ball_point(points, chord, return_length=True).max() > _CROWD:
        first, second = _alike(hashes, bits)
        near = np.linalg.norm(points[first] - points[second], axis=1) <= chord
        return np.unique(np.sort(rows[np.stack([first[near], second[near]], 1)], axis=1), axis=0)
    found = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        chunk = np.arange(start, min(start + _ROWS_AT_ONCE, len(rows)))
        counts = tree.query_ball_point(points[chunk], chord, return_length=True)
        # Few rows at a time where many lie in one place.
        for part in np.split(chunk, np.flatnonzero(np.diff(np.cumsum(counts) // _ENTRIES_AT_ONCE)) + 1):
            near = tree.query_ball_point(points[part], chord, return_sorted=False)
            total = sum(map(len, near))
            second = np.fromiter(itertools.chain.from_iterable(near), np.int64, total)
            first = np.repeat(part, [len(neighbors) for neighbors in near])
            later = first < second
            first, second = first[later], second[later]
            same = differing_bits(hashes[first], hashes[second]) <= bits
            found.append(np.stack([rows[first[same]], rows[second[same]]], 1))
    return np.concatenate(found)


def repeated_anywhere(hashes: Hashes, is_hashed: Mask, bits: int) -> Ints:
    """Return the pairs of rows that look the same, wherever they lie; otherwise as `repeated_nearby`.

    Of rows with one hash only the first is paired with all that look like it: thousands of tiles of one placeholder are
    no millions of pairs.
    """
    rows = np.flatnonzero(is_hashed)
    if len(rows) < 2:
        return np.empty((0, 2), np.int64)
    unique, group, counts = np.unique(hashes[rows], return_inverse=True, return_counts=True)
    by_group = rows[np.argsort(group, kind="stable")]
    starts = np.cumsum(counts) - counts
    alike, itself = np.stack(_alike(unique, bits), 1), np.arange(len(unique))
    one, other = np.unique(np.concatenate([np.stack([itself, itself], 1), alike, alike[:, ::-1]]), axis=0).T
    within = np.arange(counts[other].sum()) - np.repeat(np.cumsum(counts[other]) - counts[other], counts[other])
    first = by_group[np.repeat(starts[one], counts[other])]
    second = by_group[np.repeat(starts[other], counts[other]) + within]
    pairs = np.sort(np.stack([first, second], 1), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def originals(pairs: Ints, order: Ints, num: int) -> Ints:
    """Return for each row the row that it repeats, -1 for none.

    Rows are gone through by ``order``; one that looks the same as an earlier row that repeats none repeats the earliest
    of these. So whatever is named repeats nothing itself, and without the repeating rows each image is there once.

    Args:
        pairs: Rows that look the same, shape (P, 2).
        order: Rank of each row, shape (N,); ranks of ids make the answer independent of the rows' order.
        num: Number of rows, N.
    """
    by_order = np.argsort(order, kind="stable")
    ranked = np.sort(order[pairs], axis=1)
    ranked = ranked[np.lexsort((ranked[:, 0], ranked[:, 1]))]
    repeats: dict[int, int] = {}
    for earlier, later in ranked.tolist():
        if later not in repeats and earlier not in repeats:
            repeats[later] = earlier
    found = np.full(num, -1, np.int64)
    if repeats:
        found[by_order[list(repeats)]] = by_order[list(repeats.values())]
    return found


def first_of_equal(keys: list[str | None], order: Ints) -> Ints:
    """Return for each row the first row, by ``order``, with an equal key; itself where the key is missing."""
    first: dict[str, int] = {}
    found = np.arange(len(keys), dtype=np.int64)
    for row in np.argsort(order, kind="stable").tolist():
        key = keys[row]
        if key:
            found[row] = first.setdefault(key, row)
    return found


def _alike(hashes: Hashes, bits: int) -> tuple[Ints, Ints]:
    """Return all pairs of places whose hashes differ in at most so many bits, some of them more than once.

    Such hashes agree in one of ``bits + 1`` parts at least, so only hashes that share a part are compared.
    """
    found = [np.empty((2, 0), np.int64)]
    edges = np.linspace(0, 64, bits + 2).round().astype(int)
    for low, high in itertools.pairwise(edges.tolist()):
        part = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        for first, second in _equal(part):
            same = differing_bits(hashes[first], hashes[second]) <= bits
            found.append(np.stack([first[same], second[same]]))
    first, second = np.concatenate(found, axis=1)
    return first, second


def _equal(keys: Hashes) -> Iterator[tuple[Ints, Ints]]:
    """Yield all pairs of places with equal keys, those n apart in the order of keys at a time."""
    by_key = np.argsort(keys, kind="stable")
    in_order = keys[by_key]
    first = np.arange(len(keys) - 1)
    for apart in itertools.count(1):
        first = first[first + apart < len(keys)]
        first = first[in_order[first] == in_order[first + apart]]
        if not len(first):
            return
        yield by_key[first], by_key[first + apart]
