"""The k nearest others of each image: the distance map that hard negatives are drawn from."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cvgl_data.errors import SchemaError
from cvgl_data.geo import EARTH_RADIUS_M, meters_from_chord, unit_sphere
from cvgl_data.schema import DISTANCE_MAP

IDS_KEY = b"cvgl_ids_sha256"
"""Schema metadata: hash of the ids in row order, which the neighbor rows refer to."""

_TIE_M = 1e-6
"""Distances nearer than this are equal: unit vectors in float64 resolve about 1e-9 m."""

_SPARE = 32
"""Neighbors asked for beyond k, so that a tie across the k-th place is seen."""

_ROWS_AT_ONCE = 8192
_ENTRIES_AT_ONCE = 2_000_000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def distance_map(table: pa.Table, k: int = 128) -> pa.Table:
    """Return the k nearest other rows of every row, by great-circle distance.

    Exact, nearest first. A row is excluded from its own list by row, so co-located images keep each other.
    Equal distances are ordered by id, whatever the order of rows.

    Args:
        table: Columns ``lon``, ``lat`` and one of ``reference_id``, ``query_id``, ``id``; N rows.
        k: Neighbors per row; where N - 1 < k, rows are padded with -1 and distances with infinity.

    Returns:
        Schema ``DISTANCE_MAP``, N rows in the order of the table; the metadata holds k, the metric and a hash
        of the ids.

    Raises:
        SchemaError: If a column is missing or a position is not finite.
        ValueError: If k is below 1.

    Source:
        The batch-mining neighbors of Sample4Geo (``calc_distance_vigor.py``), with radians where it passes
        degrees.
    """
    if k < 1:
        raise ValueError(f"k is {k}; a distance map needs at least one neighbor per row")
    ids = _ids(table)
    points = unit_sphere(_degrees(table, "lon", ids), _degrees(table, "lat", ids))
    num = len(points)
    id_rank = np.empty(num, np.int64)
    id_rank[pc.sort_indices(ids).to_numpy()] = np.arange(num)

    tree = cKDTree(points)
    lists: tuple[list[pa.Array], list[pa.Array]] = ([], [])
    for start in range(0, num, _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, num))
        nearest, distances = _nearest(tree, points, id_rank, rows, k)
        for part, values in zip(lists, (nearest, distances), strict=True):
            offsets = pa.array(np.arange(0, values.size + 1, k, dtype=np.int32))
            part.append(pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1))))
    metadata = {
        **DISTANCE_MAP.metadata,
        b"cvgl_k": str(k).encode(),
        b"cvgl_metric": f"great-circle metres, R = {EARTH_RADIUS_M} m".encode(),
        IDS_KEY: ids_sha256(ids).encode(),
    }
    columns = [
        ids,
        *(pa.chunked_array(part, type=DISTANCE_MAP.field(1 + i).type) for i, part in enumerate(lists)),
    ]
    return pa.table(columns, schema=DISTANCE_MAP.with_metadata(metadata))


def ids_sha256(ids: pa.ChunkedArray) -> str:
    """Return the hash of a list of ids, in order; it tells whether a distance map belongs to a table."""
    return hashlib.sha256("\n".join(ids.to_pylist()).encode()).hexdigest()


def _nearest(
    tree: cKDTree, points: Floats, id_rank: Ints, rows: Ints, k: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return (rows, k) neighbor rows and metres; asks for more neighbors until no tie is cut by chance."""
    num = len(points)
    nearest = np.full((len(rows), k), -1, np.int32)
    distances = np.full((len(rows), k), np.inf, np.float32)
    pending, asked = np.arange(len(rows)), min(num, k + 1 + _SPARE)
    while len(pending):
        is_cut = np.zeros(len(pending), bool)
        step = max(1, _ENTRIES_AT_ONCE // asked)
        for start in range(0, len(pending), step):
            at = pending[start : start + step]
            chord, found = tree.query(points[rows[at]], k=np.arange(1, asked + 1), workers=-1)
            meters = meters_from_chord(chord)
            tie = np.zeros(found.shape, np.int64)
            np.cumsum(np.diff(meters, axis=1) > _TIE_M, axis=1, out=tie[:, 1:])
            # Self goes last; it is absent only where more co-located rows exist than were asked for.
            is_self = found == rows[at, None]
            key = np.where(is_self, np.iinfo(np.int64).max, tie * num + id_rank[found])
            order = np.argsort(key, axis=1)[:, : min(k, num - 1)]
            width = order.shape[1]
            if width == 0:
                continue
            # Ties keep the order of ids, so noise below _TIE_M must not make the list look unsorted.
            sorted_meters = np.maximum.accumulate(np.take_along_axis(meters, order, 1), axis=1)
            nearest[at, :width] = np.take_along_axis(found, order, 1)
            distances[at, :width] = sorted_meters
            if asked < num:
                is_cut[start : start + step] = np.take_along_axis(tie, order[:, -1:], 1)[:, 0] == tie[:, -1]
        pending, asked = pending[is_cut], min(num, asked * 4)
    return nearest, distances


def _ids(table: pa.Table) -> pa.ChunkedArray:
    for name in ("reference_id", "query_id", "id"):
        if name in table.column_names:
            return table[name].cast(pa.string())
    raise SchemaError(f"the table has no id column (found: {', '.join(table.column_names)})")


def _degrees(table: pa.Table, name: str, ids: pa.ChunkedArray) -> Floats:
    if name not in table.column_names:
        raise SchemaError(f"the table has no column '{name}' (found: {', '.join(table.column_names)})")
    column = pc.fill_null(table[name].cast(pa.float64()), float("nan"))
    degrees = np.asarray(column.to_numpy(), np.float64)
    bad = np.flatnonzero(~np.isfinite(degrees))
    if len(bad):
        raise SchemaError(f"'{ids[int(bad[0])].as_py()}' has no {name}; leave out rows without a position")
    return degrees
