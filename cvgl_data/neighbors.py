"""The k nearest others of each image: the distance map that hard negatives are drawn from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from cvgl_data.errors import RecipeError, SchemaError
from cvgl_data.geo import EARTH_RADIUS_M, meters_from_chord, unit_sphere
from cvgl_data.schema import DISTANCE_MAP

IDS_KEY = b"cvgl_ids_sha256"
"""Schema metadata: hash of the ids in row order, which the neighbor rows refer to."""

ROW_IDS_KEY = b"cvgl_row_ids_sha256"
"""Schema metadata: hash of the map's own ids in row order; the same unless queries were asked for."""

K_KEY, METRIC_KEY, RADIUS_KEY = b"cvgl_k", b"cvgl_metric", b"cvgl_radius_m"
SAME_AREA_KEY, EXCLUDED_KEY = b"cvgl_same_area", b"cvgl_excluded"

LEGACY_METRIC = "order of degrees taken for radians; great-circle metres"
"""How the metric of the published scripts' order begins in the metadata."""

_TIE_M = 1e-6
"""Distances nearer than this are equal: unit vectors in float64 resolve about 1e-9 m."""

_SPARE = 32
"""Neighbors asked for beyond k, so that a tie across the k-th place is seen."""

_ROWS_AT_ONCE = 1024
"""Rows of one query of the tree: their candidates fit a core's cache."""
_ROWS_PER_CHUNK = 65_536
_ENTRIES_AT_ONCE = 1_000_000

_FAR_M = 1e9
"""Stands for the distance of a neighbor that the tree did not find; further than any on Earth."""
_LAST = np.iinfo(np.int64).max

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def distance_map(
    table: pa.Table,
    k: int = 128,
    *,
    queries: pa.Table | None = None,
    exclude: pa.Table | None = None,
    same_area: bool = False,
    radius_m: float = 0.0,
    legacy_degrees: bool = False,
) -> pa.Table:
    """Return the k nearest rows of a table for every row of it, or for every query, by great-circle distance.

    Exact, nearest first. A row is excluded from its own list by row, so co-located images keep each other.
    Equal distances are ordered by id, whatever the order of rows.

    Args:
        table: Columns ``lon``, ``lat`` and one of ``reference_id``, ``query_id``, ``id``; N rows.
        k: Neighbors per row; where there are fewer, rows are padded with -1 and distances with infinity.
        queries: Same columns, M rows: find the neighbors of these in ``table`` instead.
        exclude: Pairs, schema ``PAIRS``, of which those that cover count. References that cover a common query are no
            neighbors of each other (of queries: those that share a reference); with ``queries``, no reference is a
            neighbor of a query that it covers.
        same_area: Only rows with the same ``area`` are neighbors.
        radius_m: No neighbor lies further away (0: as far as it takes).
        legacy_degrees: Choose and order neighbors as the published scripts do, which take degrees for radians; only to
            compare with their results. Distances are the true ones all the same, so they do not grow along a list.

    Returns:
        Schema ``DISTANCE_MAP``, N or M rows in the order of ``table`` or ``queries``; ``neighbor_rows`` are rows of
        ``table``. The metadata holds k, the metric, the radius, what was excluded, and a hash of the ids.

    Raises:
        SchemaError: If a column is missing or a position is not finite.
        RecipeError: If k is below 1, or the radius is negative or combined with ``legacy_degrees``.

    Source:
        The batch-mining neighbors of Sample4Geo (``calc_distance_vigor.py``), with radians where it passes
        degrees.
    """
    if k < 1:
        raise RecipeError(f"k is {k}; a distance map needs at least one neighbor per row")
    if not 0 <= radius_m < float("inf") or (radius_m and legacy_degrees):
        reason = "does not go with the order of the published scripts" if legacy_degrees else "must be at least 0"
        raise RecipeError(f"the radius of a distance map is {radius_m} m; it {reason}")
    rows = table if queries is None else queries
    ids, row_ids = _ids(table), _ids(rows)
    points = _points(table, ids)
    row_points = points if queries is None else _points(rows, row_ids)
    search = _Search(
        points=_points(table, ids, legacy=True) if legacy_degrees else points,
        row_points=_points(rows, row_ids, legacy=True) if legacy_degrees else row_points,
        id_rank=_id_rank(ids),
        skip_self=queries is None,
        excluded=None if exclude is None else _Excluded.of(exclude, table, queries),
        k=k,
        radius_m=radius_m,
        nearest=np.full((len(row_ids), k), -1, np.int32),
        distances=np.full((len(row_ids), k), np.inf, np.float32),
    )
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        for some_rows, candidates in _groups(table, rows, same_area):
            tree = cKDTree(search.points[candidates])
            chunks = [some_rows[at : at + _ROWS_AT_ONCE] for at in range(0, len(some_rows), _ROWS_AT_ONCE)]
            for _ in pool.map(partial(search.fill, tree, candidates), chunks):
                pass
        if legacy_degrees:
            starts = range(0, len(row_ids), _ROWS_AT_ONCE)
            for _ in pool.map(partial(search.measure, points, row_points), starts):
                pass
    metric = f"great-circle metres, R = {EARTH_RADIUS_M} m"
    metadata = {
        **DISTANCE_MAP.metadata,
        K_KEY: str(k).encode(),
        METRIC_KEY: (f"{LEGACY_METRIC}, R = {EARTH_RADIUS_M} m" if legacy_degrees else metric).encode(),
        RADIUS_KEY: str(float(radius_m)).encode(),
        SAME_AREA_KEY: str(same_area).lower().encode(),
        EXCLUDED_KEY: b"" if search.excluded is None else search.excluded.what.encode(),
        IDS_KEY: ids_sha256(ids).encode(),
        ROW_IDS_KEY: ids_sha256(row_ids).encode(),
    }
    lists = [_lists(search.nearest), _lists(search.distances)]
    return pa.table([row_ids, *lists], schema=DISTANCE_MAP.with_metadata(metadata))


def ids_sha256(ids: pa.ChunkedArray) -> str:
    """Return the hash of a list of ids, in order; it tells whether a distance map belongs to a table."""
    return hashlib.sha256("\n".join(ids.to_pylist()).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Excluded:
    """Which rows are no neighbors although they are near: those reached through a pair."""

    what: str
    """For the metadata."""
    to_partner: csr_array
    """Shape (rows, P): which pairs' partners a row has."""
    from_partner: csr_array | None
    """Shape (P, rows): whose partners they are; None where a partner itself is the neighbor."""

    @classmethod
    def of(cls, pairs: pa.Table, table: pa.Table, queries: pa.Table | None) -> _Excluded:
        names = ["query_id", "reference_id"]
        for name in names:
            if name not in pairs.column_names:
                raise SchemaError(f"the pairs have no column '{name}' (found: {', '.join(pairs.column_names)})")
        if "covers" in pairs.column_names:
            pairs = pairs.filter(pairs["covers"])
        if queries is not None:
            matrix = _incidence(pairs, ("query_id", _ids(queries)), ("reference_id", _ids(table)))
            return cls("references that cover the query", matrix, None)
        of_queries = "reference_id" not in table.column_names and "query_id" in table.column_names
        row, partner = names if of_queries else names[::-1]
        matrix = _incidence(pairs, (row, _ids(table)), (partner, pc.unique(pairs[partner])))
        shared = "queries that share a reference" if of_queries else "references that cover a common query"
        return cls(shared, matrix, matrix.T.tocsr())

    def keys(self, rows: Ints, num: int) -> Ints:
        """Return ``place in rows * num + excluded row``, sorted."""
        reached = self.to_partner[rows]
        if self.from_partner is not None:
            reached = reached @ self.from_partner
        owner = np.repeat(np.arange(len(rows)), np.diff(reached.indptr))
        return np.asarray(np.sort(owner * num + reached.indices), np.int64)


@dataclass(frozen=True, slots=True)
class _Search:
    """What is searched for and where the answers go; filled by several threads, each its own rows."""

    points: Floats
    row_points: Floats
    id_rank: Ints
    skip_self: bool
    excluded: _Excluded | None
    k: int
    radius_m: float
    nearest: NDArray[np.int32]
    distances: NDArray[np.float32]

    def fill(self, tree: cKDTree, candidates: Ints, rows: Ints) -> None:
        """Find the neighbors of some rows; asks for more of them until no tie is cut by chance."""
        excluded = np.empty(0, np.int64) if self.excluded is None else self.excluded.keys(rows, len(self.points))
        most = int(np.bincount(excluded // len(self.points)).max()) if len(excluded) else 0
        pending, asked = np.arange(len(rows)), min(tree.n, self.k + 1 + _SPARE + most)
        while len(pending) and asked:
            is_open = np.zeros(len(pending), bool)
            step = max(1, _ENTRIES_AT_ONCE // asked)
            for start in range(0, len(pending), step):
                at = pending[start : start + step]
                is_open[start : start + step] = self._fill(tree, candidates, rows[at], at, asked, excluded)
            pending, asked = pending[is_open], min(tree.n, asked * 4)

    def _fill(self, tree: cKDTree, candidates: Ints, rows: Ints, at: Ints, asked: int, excluded: Ints) -> Bools:
        """Fill in some rows; returns which of them need more neighbors to choose from."""
        reach = _chord(self.radius_m + 2 * _TIE_M) if self.radius_m else np.inf
        ranks: Any = asked if asked > 1 else [1]  # of a bare 1 the axis would be gone
        chord, found = tree.query(self.row_points[rows], k=ranks, distance_upper_bound=reach)
        is_missing = found == tree.n
        neighbor = candidates[np.where(is_missing, 0, found)] if self.radius_m else candidates[found]
        meters = meters_from_chord(chord)
        drop = is_missing
        if self.radius_m:
            meters[is_missing] = _FAR_M
            drop = drop | (meters > self.radius_m + _TIE_M)
        if self.skip_self:
            drop = drop | (neighbor == rows[:, None])
        if len(excluded):
            key = at[:, None] * len(self.points) + neighbor
            drop = drop | (excluded[np.minimum(np.searchsorted(excluded, key), len(excluded) - 1)] == key)
        tie = np.zeros(found.shape, np.int64)
        np.cumsum(np.diff(meters, axis=1) > _TIE_M, axis=1, out=tie[:, 1:])
        key = tie * len(self.points) + self.id_rank[neighbor]
        key[drop] = _LAST
        order = np.argsort(key, axis=1)[:, : self.k]
        is_there = np.take_along_axis(key, order, 1) < _LAST
        width = order.shape[1]
        self.nearest[rows, :width] = np.where(is_there, np.take_along_axis(neighbor, order, 1), -1)
        # Ties keep the order of ids, so noise below _TIE_M must not make the list look unsorted.
        ordered = np.maximum.accumulate(np.take_along_axis(meters, order, 1), axis=1)
        self.distances[rows, :width] = np.where(is_there, ordered, np.inf)
        if asked == tree.n:
            return np.zeros(len(rows), bool)
        is_cut = np.take_along_axis(tie, order[:, -1:], 1)[:, 0] == tie[:, -1]
        return np.asarray((is_cut | ~is_there[:, -1]) & ~is_missing[:, -1])

    def measure(self, points: Floats, row_points: Floats, start: int) -> None:
        """Replace the distances of some rows by great-circle metres between these points."""
        some = slice(start, start + _ROWS_AT_ONCE)
        near = self.nearest[some]
        chord = np.linalg.norm(points[near] - row_points[some, None], axis=-1)
        self.distances[some] = np.where(near >= 0, meters_from_chord(chord), np.inf)


def _groups(table: pa.Table, rows: pa.Table, same_area: bool) -> Iterator[tuple[Ints, Ints]]:
    """Yield rows together with the rows of the table that may be their neighbors."""
    if not same_area:
        yield np.arange(rows.num_rows), np.arange(table.num_rows)
        return
    for name in (table, rows):
        if "area" not in name.column_names:
            raise SchemaError(f"the table has no column 'area' (found: {', '.join(name.column_names)})")
    for area in pc.unique(rows["area"]):
        # An unknown area is no area: null is like nothing else.
        mine, theirs = (pc.fill_null(pc.equal(some["area"], area), False).to_numpy() for some in (rows, table))
        yield np.flatnonzero(mine), np.flatnonzero(theirs)


def _incidence(pairs: pa.Table, rows: tuple[str, Any], columns: tuple[str, Any]) -> csr_array:
    """Return which row id is paired with which column id; pairs of other ids are left out."""
    at = [pc.index_in(pairs[name], value_set=ids) for name, ids in (rows, columns)]
    known = pc.and_(*(pc.is_valid(index) for index in at))
    row, column = (index.filter(known).to_numpy().astype(np.int64) for index in at)
    shape = (len(rows[1]), len(columns[1]))
    matrix = csr_array((np.ones(len(row), np.int32), (row, column)), shape=shape)
    matrix.sum_duplicates()
    return matrix


def _lists(values: NDArray[Any]) -> pa.ChunkedArray:
    """Return the rows of a matrix as lists; in chunks, whose offsets fit 32 bits."""
    parts = []
    for start in range(0, len(values), _ROWS_PER_CHUNK):
        some = values[start : start + _ROWS_PER_CHUNK]
        offsets = pa.array(np.arange(0, some.size + 1, some.shape[1], dtype=np.int32))
        parts.append(pa.ListArray.from_arrays(offsets, pa.array(some.reshape(-1))))
    return pa.chunked_array(parts, type=pa.list_(pa.from_numpy_dtype(values.dtype)))


def _chord(meters: float) -> float:
    """Return the straight-line distance of two unit vectors; beyond half the Earth's girth, of opposite ones."""
    return float(2 * np.sin(min(meters / (2 * EARTH_RADIUS_M), np.pi / 2)))


def _id_rank(ids: pa.ChunkedArray) -> Ints:
    """Return each row's place in the order of ids."""
    if len(ids) < 2 or pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py():
        return np.arange(len(ids))
    rank = np.empty(len(ids), np.int64)
    rank[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return rank


def _ids(table: pa.Table) -> pa.ChunkedArray:
    for name in ("reference_id", "query_id", "id"):
        if name in table.column_names:
            return table[name].cast(pa.string())
    raise SchemaError(f"the table has no id column (found: {', '.join(table.column_names)})")


def _points(table: pa.Table, ids: pa.ChunkedArray, *, legacy: bool = False) -> Floats:
    """Return positions as unit vectors, shape (N, 3); ``legacy`` takes their degrees for radians."""
    lon, lat = _degrees(table, "lon", ids), _degrees(table, "lat", ids)
    return unit_sphere(np.degrees(lon), np.degrees(lat)) if legacy else unit_sphere(lon, lat)


def _degrees(table: pa.Table, name: str, ids: pa.ChunkedArray) -> Floats:
    if name not in table.column_names:
        raise SchemaError(f"the table has no column '{name}' (found: {', '.join(table.column_names)})")
    column = pc.fill_null(table[name].cast(pa.float64()), float("nan"))
    degrees = np.asarray(column.to_numpy(), np.float64)
    bad = np.flatnonzero(~np.isfinite(degrees))
    if len(bad):
        raise SchemaError(f"'{ids[int(bad[0])].as_py()}' has no {name}; leave out rows without a position")
    return degrees
