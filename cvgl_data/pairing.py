"""Which references cover which queries, and how far from their centres the queries lie.

All arithmetic is in Web-Mercator pixels of each reference's own zoom, so no latitude error enters the
decentrality.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from cvgl_data.errors import SchemaError
from cvgl_data.geo import distance_m, gsd_m, lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.schema import PAIRS
from cvgl_data.types import TILE_PX

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POSITIVE = "positive"
SEMI_POSITIVE = "semi-positive"

QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Edges of the decentrality quarters; the last one is closed."""

_QUERIES_AT_ONCE = 200_000  # bounds the memory of one join


class Decentrality(NamedTuple):
    """How far from the centre of a window points lie, three ways."""

    decentrality: Floats
    """Max norm: 0 centre, 1 edge; its square is the share of the area that lies nearer."""
    decentrality_l2: Floats
    """Euclidean: 0 centre, 1 corner."""
    iou: Floats
    """Overlap of the window with an equal one centred on the point; 0 where they do not touch."""


def decentrality(u: ArrayLike, v: ArrayLike, size: ArrayLike) -> Decentrality:
    """Return the decentrality of points in windows.

    Args:
        u: Pixels from the west edge of the window, any shape.
        v: Pixels from the north edge, same shape.
        size: Side of the window in the same pixels, broadcast.

    Source:
        VIGOR's offsets and overlaps (``(1 - |du| / L) (1 - |dv| / L)``), DReSS's decentrality.
    """
    side = np.asarray(size, np.float64)
    du = np.abs(np.asarray(u, np.float64) - side / 2)
    dv = np.abs(np.asarray(v, np.float64) - side / 2)
    overlap = np.clip(1 - du / side, 0, None) * np.clip(1 - dv / side, 0, None)
    return Decentrality(
        np.maximum(du, dv) / (side / 2), np.hypot(du, dv) / (side / np.sqrt(2)), overlap / (2 - overlap)
    )


def pair(queries: pa.Table, references: pa.Table) -> pa.Table:
    """Return every (query, reference) pair in which the reference covers the query.

    Edges belong to the windows on both sides, so a query on an edge of a seamless grid is covered. The
    positive of a query is the covering reference with the least ``decentrality_l2`` (ties: ``decentrality``,
    then ``reference_id``), whatever its zoom. Queries without a position are in no pair.

    Args:
        queries: Columns ``query_id``, ``lon``, ``lat``; Q rows.
        references: Columns ``reference_id``, ``x``, ``y``, ``size``, ``zoom``; zooms, sizes and overlaps may
            be mixed.

    Returns:
        Schema ``PAIRS``, sorted by ``query_id``, the positive first, then by decentrality. ``query_row`` and
        ``reference_row`` are rows of the given tables. ``offset_east_m`` and ``offset_north_m`` are pixels
        times the ground size of a pixel at the *reference's centre*; ``distance_m`` is the great circle
        between query and centre.

    Raises:
        SchemaError: If a column is missing or an id appears twice.
    """
    query_rank = _id_rank(queries, "query_id", "queries")
    reference_rank = _id_rank(references, "reference_id", "references")
    lon, lat = _floats(queries, "lon", "queries"), _floats(queries, "lat", "queries")
    x, y, size, zoom = (_ints(references, name) for name in ("x", "y", "size", "zoom"))

    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))]
    located = np.flatnonzero(np.isfinite(lon) & np.isfinite(lat))
    for level, side in sorted({(int(z), int(s)) for z, s in np.unique(np.stack([zoom, size], 1), axis=0)}):
        rows = np.flatnonzero((zoom == level) & (size == side))
        world = TILE_PX * 2**level
        for start in range(0, len(located), _QUERIES_AT_ONCE):
            chunk = located[start : start + _QUERIES_AT_ONCE]
            qx, qy = pixel_from_lonlat(lon[chunk], lat[chunk], level)
            for query, window, u, v in _covering(qx, qy, x[rows], y[rows], side, world):
                parts.append((chunk[query], rows[window], u, v))
    query_row, reference_row, u, v = (np.concatenate(column) for column in zip(*parts, strict=True))

    measure = decentrality(u, v, size[reference_row])
    order = np.lexsort(
        (reference_rank[reference_row], measure.decentrality, measure.decentrality_l2, query_rank[query_row])
    )
    query_row, reference_row, u, v = query_row[order], reference_row[order], u[order], v[order]
    side_px = size[reference_row]
    is_first = np.append(True, query_row[1:] != query_row[:-1])[: len(query_row)]
    center_lon, center_lat, gsd = _centers(x[reference_row], y[reference_row], side_px, zoom[reference_row])
    columns: dict[str, Any] = {
        "query_id": queries["query_id"].take(pa.array(query_row)),
        "reference_id": references["reference_id"].take(pa.array(reference_row)),
        "query_row": query_row,
        "reference_row": reference_row,
        "relation": np.where(is_first, POSITIVE, SEMI_POSITIVE),
        "u": u,
        "v": v,
        "offset_east_m": (u - side_px / 2) * gsd,
        "offset_north_m": (side_px / 2 - v) * gsd,
        "distance_m": distance_m(lon[query_row], lat[query_row], center_lon, center_lat),
        **{name: column[order] for name, column in measure._asdict().items()},
        "covers": np.ones(len(query_row), bool),
    }
    return pa.table(
        [
            column.cast(field.type) if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
            for field, column in ((field, columns[field.name]) for field in PAIRS)
        ],
        schema=PAIRS,
    )


def decentrality_summary(pairs: pa.Table, groups: Sequence[str] | pa.ChunkedArray | None = None) -> pa.Table:
    """Summarize the decentrality of pairs, once for the positives and once for all covering pairs.

    Args:
        pairs: Schema ``PAIRS``.
        groups: One label per pair, such as the area of its query; the group ``all`` is always there.

    Returns:
        Columns ``group``, ``relation`` (``positive`` or ``covering``), ``num_pairs``, ``mean``, ``median``,
        ``p90``, ``p95``, ``share_above_half``, ``mean_l2`` and the counts ``quarter_1`` ([0, .25)) to
        ``quarter_4`` ([.75, 1]). Statistics of no pairs are null.
    """
    values = _floats(pairs, "decentrality", "pairs")
    values_l2 = _floats(pairs, "decentrality_l2", "pairs")
    is_positive = pc.equal(pairs["relation"], POSITIVE).to_numpy()
    covers = pairs["covers"].to_numpy()
    members: dict[str, NDArray[np.bool_]] = {"all": np.ones(len(values), bool)}
    if groups is not None:
        labels = np.asarray(groups, dtype=object)
        members.update({str(label): labels == label for label in sorted(set(labels.tolist()))})
    rows = []
    for group, is_member in members.items():
        for relation, is_related in ((POSITIVE, is_positive), ("covering", covers)):
            chosen = is_member & is_related
            rows.append({"group": group, "relation": relation, **_statistics(values[chosen], values_l2[chosen])})
    return pa.Table.from_pylist(rows, schema=_SUMMARY)


_SUMMARY = pa.schema(
    [
        ("group", pa.string()),
        ("relation", pa.string()),
        ("num_pairs", pa.int64()),
        *((name, pa.float64()) for name in ("mean", "median", "p90", "p95", "share_above_half", "mean_l2")),
        *((f"quarter_{quarter}", pa.int64()) for quarter in (1, 2, 3, 4)),
    ]
)


def _statistics(values: Floats, values_l2: Floats) -> dict[str, Any]:
    counts = np.histogram(values, QUARTERS)[0]
    summary: dict[str, Any] = {f"quarter_{index + 1}": int(count) for index, count in enumerate(counts)}
    summary["num_pairs"] = len(values)
    if len(values):
        median, p90, p95 = np.quantile(values, (0.5, 0.9, 0.95))
        summary |= {"mean": values.mean(), "median": median, "p90": p90, "p95": p95}
        summary |= {"share_above_half": (values > 0.5).mean(), "mean_l2": values_l2.mean()}
    return summary


def _covering(
    qx: Floats, qy: Floats, x: Ints, y: Ints, size: int, world: int
) -> Iterator[tuple[Ints, Ints, Floats, Floats]]:
    """Yield (query, window, u, v) of all covered queries; windows of one size at one zoom.

    Windows are sorted into square cells as large as themselves: the corner of a covering window lies in the
    query's own cell or in the one before it, in x and in y. That holds for any overlap and for irregular
    layouts alike.
    """
    x = np.mod(x, world)
    qx = np.mod(qx, world)
    # A window may reach over the antimeridian: its queries are seen again one world further east.
    again = np.flatnonzero((qx <= size) & (size < world))
    query = np.concatenate([np.arange(len(qx)), again])
    qx, qy = np.concatenate([qx, qx[again] + world]), np.concatenate([qy, qy[again]])

    columns = world // size + 3
    window_cell = x // size + columns * (y // size + 1)
    by_cell = np.argsort(window_cell, kind="stable")
    sorted_cells = window_cell[by_cell]
    cell_x, cell_y = np.floor(qx / size).astype(np.int64), np.floor(qy / size).astype(np.int64)
    for step_x in (-1, 0):
        for step_y in (-1, 0):
            cell = cell_x + step_x + columns * (cell_y + step_y + 1)
            # The cell west of the first column would be read as the last one of the row above.
            cell[cell_x + step_x < 0] = -1
            first = np.searchsorted(sorted_cells, cell, "left")
            count = np.searchsorted(sorted_cells, cell, "right") - first
            point = np.repeat(np.arange(len(query)), count)
            within = np.arange(len(point)) - np.repeat(np.cumsum(count) - count, count)
            window = by_cell[np.repeat(first, count) + within]
            u, v = qx[point] - x[window], qy[point] - y[window]
            hit = (u >= 0) & (u <= size) & (v >= 0) & (v <= size)
            yield query[point[hit]], window[hit], u[hit], v[hit]


def _centers(x: Ints, y: Ints, size: Ints, zoom: Ints) -> tuple[Floats, Floats, Floats]:
    """Return lon, lat and ground metres per pixel of window centres; zooms may be mixed."""
    lon, lat, gsd = (np.empty(len(x)) for _ in range(3))
    for level in np.unique(zoom):
        at = zoom == level
        lon[at], lat[at] = lonlat_from_pixel((x + size / 2)[at], (y + size / 2)[at], int(level))
        gsd[at] = gsd_m(lat[at], int(level))
    return lon, lat, gsd


def _column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise SchemaError(f"{where} have no column '{name}' (found: {', '.join(table.column_names)})")
    return table[name]


def _floats(table: pa.Table, name: str, where: str) -> Floats:
    """Return a column as float64, null as NaN."""
    column = pc.fill_null(_column(table, name, where).cast(pa.float64()), float("nan"))
    return np.asarray(column.to_numpy(), np.float64)


def _ints(references: pa.Table, name: str) -> Ints:
    return np.asarray(_column(references, name, "references").to_numpy(), np.int64)


def _id_rank(table: pa.Table, name: str, where: str) -> Ints:
    """Return each row's place in the order of ids, so that ties are broken by id and not by row."""
    ids = _column(table, name, where)
    order = pc.sort_indices(ids).to_numpy().astype(np.int64)
    in_order = ids.take(pa.array(order))
    if len(ids) > 1:
        twice = pc.index(pc.equal(in_order[1:], in_order[:-1]), True).as_py()
        if twice >= 0:
            raise SchemaError(f"{where}: {name} '{in_order[twice].as_py()}' appears more than once")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank
