"""Tables of a published layout from columns, null where a layout says nothing, and its pairs from places in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from cvgl_data import schema
from cvgl_data.errors import UnknownNameError
from cvgl_data.geo import distance_m, gsd_m, pixel_from_lonlat
from cvgl_data.pairing import POSITIVE, SEMI_POSITIVE, decentrality
from cvgl_data.registry import did_you_mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

QUERIES = schema.without_image(schema.QUERIES).append(pa.field("split", pa.string()))
REFERENCES = schema.without_image(schema.REFERENCES)

NEAR = "near"
"""Relation of a pair that a layout lists as a semi-positive although the reference does not cover the query."""


def build_table(columns: pa.Schema, num_rows: int, values: Mapping[str, Any]) -> pa.Table:
    """Return a table of a schema, nulls where no values are given.

    Args:
        columns: ``REFERENCES``, ``QUERIES`` of this module, ``schema.PAIRS`` or the like.
        num_rows: N.
        values: By column: (N,) values, or one value for all rows. NaN in a column of floats is null.

    Raises:
        UnknownNameError: If a name is no column.
    """
    if strange := values.keys() - set(columns.names):
        raise UnknownNameError(f"no column '{min(strange)}'{did_you_mean(min(strange), columns.names)}")
    arrays = []
    for field in columns:
        value = values.get(field.name)
        if value is None:
            array = pa.nulls(num_rows, field.type)
        elif isinstance(value, str | bool | int | float):
            array = pa.repeat(pa.scalar(value, field.type), num_rows)
        elif isinstance(value, pa.ChunkedArray | pa.Array):
            array = value.cast(field.type)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            array = pa.array(value, from_pandas=True).cast(field.type)  # NaN is null
        else:
            array = pa.array(value, field.type)
        arrays.append(array)
    return pa.table(arrays, schema=columns)


def window_columns(lon: ArrayLike, lat: ArrayLike, size: int, zoom: int) -> dict[str, Any]:
    """Return the columns x, y, size, zoom, lon, lat, gsd_m of references given by their centres.

    Centres of published images lie anywhere between pixels; ``x`` and ``y`` are the nearest whole corner, while ``lon``
    and ``lat`` stay as given.
    """
    center_x, center_y = pixel_from_lonlat(lon, lat, zoom)
    return {
        "x": np.rint(center_x - size / 2).astype(np.int64),
        "y": np.rint(center_y - size / 2).astype(np.int64),
        "size": size,
        "zoom": zoom,
        "lon": np.asarray(lon, np.float64),
        "lat": np.asarray(lat, np.float64),
        "gsd_m": gsd_m(lat, zoom),
    }


def uv_from_coordinates(queries: pa.Table, references: pa.Table, query_row: Ints, reference_row: Ints) -> Floats:
    """Return where queries lie in references by their coordinates alone, window pixels, (P, 2).

    Exact for the references' ``lon`` and ``lat``; all of them have one zoom and size.
    """
    zoom, size = references["zoom"][0].as_py(), references["size"].to_numpy()[reference_row]
    x, y = pixel_from_lonlat(_taken(queries, "lon", query_row), _taken(queries, "lat", query_row), zoom)
    center_x, center_y = pixel_from_lonlat(
        _taken(references, "lon", reference_row), _taken(references, "lat", reference_row), zoom
    )
    return np.stack([x - center_x + size / 2, y - center_y + size / 2], 1)


def pair_table(
    queries: pa.Table,
    references: pa.Table,
    *,
    query_row: ArrayLike,
    reference_row: ArrayLike,
    positive: ArrayLike,
    uv: ArrayLike | None = None,
    is_ordered: bool = False,
) -> pa.Table:
    """Return the pairs of a layout, sorted by query row, the positive first, then as they stand or by decentrality.

    A reference covers a query that lies inside it; the positive is what the layout says it is. A null position gives
    null measures.

    Args:
        queries: Columns ``query_id``, ``lon``, ``lat``.
        references: Columns ``reference_id``, ``size``, ``zoom``, ``lon``, ``lat``, ``gsd_m``; of one zoom.
        query_row: (P,) rows of the queries.
        reference_row: (P,) rows of the references.
        positive: (P,) whether each pair is its query's positive; others are semi-positives where they cover the query.
        uv: (P, 2) place of the query, window pixels; default: from the coordinates.
        is_ordered: Whether the pairs of each query stand in an order of the layout's own, to be kept.
    """
    query, reference = np.asarray(query_row, np.int64), np.asarray(reference_row, np.int64)
    is_positive = np.asarray(positive, bool)
    place = uv_from_coordinates(queries, references, query, reference) if uv is None else np.asarray(uv, np.float64)
    sides = references["size"].to_numpy().astype(np.float64)
    if not is_ordered:
        with np.errstate(invalid="ignore"):
            off_center = np.hypot(*(place - sides[reference][:, None] / 2).T) / sides[reference]
        order = np.lexsort((reference, off_center, ~is_positive, query))
        query, reference, is_positive, place = query[order], reference[order], is_positive[order], place[order]

    u, v, side = place[:, 0], place[:, 1], sides[reference]
    with np.errstate(invalid="ignore"):
        measure = decentrality(u, v, side)
        covers = (u >= 0) & (u <= side) & (v >= 0) & (v <= side)
    gsd = _taken(references, "gsd_m", reference)
    relations = pa.array([POSITIVE, SEMI_POSITIVE, NEAR])
    number = np.where(is_positive, 0, np.where(covers, 1, 2))
    return build_table(
        schema.PAIRS,
        len(query),
        {
            "query_id": queries["query_id"].take(pa.array(query)),
            "reference_id": references["reference_id"].take(pa.array(reference)),
            "query_row": query,
            "reference_row": reference,
            "relation": relations.take(pa.array(number)),
            "u": u,
            "v": v,
            "offset_east_m": (u - side / 2) * gsd,
            "offset_north_m": (side / 2 - v) * gsd,
            "distance_m": distance_m(
                _taken(queries, "lon", query),
                _taken(queries, "lat", query),
                _taken(references, "lon", reference),
                _taken(references, "lat", reference),
            ),
            **measure._asdict(),
            "covers": covers,
        },
    )


def _taken(table: pa.Table, name: str, rows: Ints) -> Floats:
    """Return values of a column of floats at some rows, null as NaN."""
    return np.asarray(table[name].to_numpy(), np.float64)[rows]
