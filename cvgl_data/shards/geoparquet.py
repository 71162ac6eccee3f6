"""Geometry columns: what geopandas, QGIS and DuckDB need to draw the tables.

Source:
    GeoParquet 1.1.0; coordinates are OGC:CRS84 (lon, lat), its default.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cvgl_data.geo import lonlat_from_pixel

_POINT = np.dtype([("order", "u1"), ("kind", "<u4"), ("xy", "<f8", (1, 2))])
_POLYGON = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("xy", "<f8", (5, 2))])


def with_points(table: pa.Table) -> pa.Table:
    """Return the table with a ``geometry`` column of its ``lon``, ``lat``."""
    xy = np.stack([table["lon"].to_numpy(), table["lat"].to_numpy()], axis=1)[:, None]
    records = np.zeros(len(xy), _POINT)
    records["order"], records["kind"], records["xy"] = 1, 1, xy
    return _with_geometry(table, records, "Point")


def with_windows(table: pa.Table) -> pa.Table:
    """Return the table with a ``geometry`` column: the outlines of its windows, counter-clockwise."""
    x, y, size, zoom = (table[name].to_numpy() for name in ("x", "y", "size", "zoom"))
    right, down = np.array([0, 1, 1, 0, 0]), np.array([1, 1, 0, 0, 1])
    xy = np.empty((len(x), 5, 2))
    for level in np.unique(zoom):
        at = zoom == level
        corners = (x[at, None] + size[at, None] * right, y[at, None] + size[at, None] * down)
        xy[at, :, 0], xy[at, :, 1] = lonlat_from_pixel(*corners, int(level))
    records = np.zeros(len(x), _POLYGON)
    records["order"], records["kind"], records["rings"], records["points"], records["xy"] = 1, 3, 1, 5, xy
    return _with_geometry(table, records, "Polygon")


def _with_geometry(table: pa.Table, records: NDArray[np.void], kind: str) -> pa.Table:
    """Append well-known binary, which the records are byte for byte, and the file metadata that announces it."""
    wkb = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(records.itemsize), len(records), [None, pa.py_buffer(records.tobytes())]
    ).cast(pa.binary())
    column: dict[str, object] = {"encoding": "WKB", "geometry_types": [kind]}
    if len(records):
        points = records["xy"].reshape(-1, 2)
        column["bbox"] = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    metadata = {**(table.schema.metadata or {}), b"geo": json.dumps(geo).encode()}
    return table.append_column("geometry", wkb).replace_schema_metadata(metadata)
