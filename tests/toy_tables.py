"""Small tables with real JPEGs, for tests of everything behind fetching."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cvgl_data import schema, shards
from cvgl_data.geo import gsd_m, lonlat_from_pixel
from cvgl_data.neighbors import distance_map
from cvgl_data.pairing import pair
from cvgl_data.recipe import DatasetRecipe, PackRecipe, SplitRecipe
from cvgl_data.splits import split
from cvgl_data.types import Window

ORIGIN_X, ORIGIN_Y, ZOOM = 10_748_928, 23_436_032, 18  # multiples of 256, in Seattle


@cache
def jpeg(seed: int, width: int = 48, height: int = 48) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=60 + seed % 30)
    return buffer.getvalue()


def windows(
    columns: int, rows: int, stride: int = 256, size: int = 256, x: int = ORIGIN_X, y: int = ORIGIN_Y
) -> list[Window]:
    return [Window(x + i * stride, y + j * stride, size, ZOOM) for i in range(columns) for j in range(rows)]


def references(layout: list[Window], area: str = "seattle") -> pa.Table:
    rows: list[dict[str, Any]] = []
    for index, window in enumerate(sorted(layout, key=lambda window: window.key)):
        image = jpeg(index % 50)
        rows.append(
            {
                "reference_id": window.key,
                "image": {"bytes": image, "path": None},
                **window._asdict(),
                "lon": window.center.lon,
                "lat": window.center.lat,
                "gsd_m": float(gsd_m(window.center.lat, window.zoom)),
                "area": area,
                "source": "toy",
                "release": "",
                "captured": "2024-06-01",
                "licence": "CC0-1.0",
                "sha256": hashlib.sha256(image).hexdigest(),
                "status": "ok",
            }
        )
    return pa.Table.from_pylist(rows, schema=schema.REFERENCES)


def queries(x: np.ndarray, y: np.ndarray, area: str = "seattle", prefix: str = "pano") -> pa.Table:
    lon, lat = lonlat_from_pixel(x, y, ZOOM)
    rows = []
    for index in range(len(x)):
        image = jpeg(100 + index % 50, 96, 48)
        rows.append(
            {
                "query_id": f"{prefix}_{index:05d}",
                "image": {"bytes": image, "path": None},
                "lon": float(lon[index]),
                "lat": float(lat[index]),
                "heading_deg": 0.0 if index % 3 else None,
                "pitch_deg": None,
                "roll_deg": None,
                "upright": None,
                "captured": "2024-07-01",
                "area": area,
                "source": "toy",
                "licence": "CC0-1.0",
                "creator": "nobody",
                "sha256": hashlib.sha256(image).hexdigest(),
                "status": "ok",
            }
        )
    return pa.Table.from_pylist(rows, schema=schema.QUERIES)


def scattered(
    num: int, columns: int, rows: int, seed: int = 0, area: str = "seattle", prefix: str = "pano"
) -> pa.Table:
    """Queries spread evenly over a block of 256 px windows."""
    random = np.random.default_rng(seed)
    x, y = random.uniform(0, columns * 256, num), random.uniform(0, rows * 256, num)
    return queries(ORIGIN_X + x, ORIGIN_Y + y, area, prefix)


def batches(table: pa.Table, size: int) -> Iterator[pa.RecordBatch]:
    yield from table.to_batches(max_chunksize=size)


def pack(
    out: Path, refs: pa.Table, quers: pa.Table, *, batch: int = 37, recipe: DatasetRecipe | None = None
) -> dict[str, Any]:
    """Pair, split and pack two tables into a dataset folder."""
    recipe = recipe or DatasetRecipe(name="toy", split=SplitRecipe(block_m=150), pack=PackRecipe())
    pairs = pair(quers, refs)
    return shards.pack(
        out,
        recipe,
        references=batches(refs, batch),
        queries=batches(quers, batch),
        pairs=pairs,
        distance_map=distance_map(refs, 8),
        splits=split(quers, pairs, refs, recipe.split, recipe.seed),
        failures=schema.FAILURES.empty_table(),
        credits=[shards.Credit(kind="imagery", name="toy", attribution="Nobody | nowhere", licence="CC0-1.0")],
    )
