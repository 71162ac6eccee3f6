"""What listings of pictures have in common: boxes from text, pages, vector tiles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import mapbox_vector_tile
from shapely.geometry import Point

from cvgl_data.geo import pixel_from_lonlat
from cvgl_data.types import TILE_PX, BBox, LonLat, Tile

EXTENT = 4096
"""Units per side of a vector tile."""


def parse_box(text: str) -> BBox | None:
    """Return the box in ``west,south,east,north``, ``None`` if it is none."""
    numbers = parse_numbers(text, 4)
    if numbers is None:
        return None
    west, south, east, north = numbers
    is_on_earth = -180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90
    return BBox(west, south, east, north) if is_on_earth else None


def parse_numbers(text: str, count: int) -> list[float] | None:
    """Return so many finite numbers, separated by commas, ``None`` if the text holds anything else."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def parse_whole(text: str, low: int, high: int) -> int | None:
    """Return a whole number in a range, ``None`` if the text holds none."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if low <= number <= high else None


def tile_box(tile: Tile, buffer: float = 0.0) -> BBox:
    """Return a tile's bounds, grown on all sides by a share of its side."""
    west, south, east, north = tile.bounds
    dx, dy = (east - west) * buffer, (north - south) * buffer
    return BBox(max(west - dx, -180.0), max(south - dy, -85.0), min(east + dx, 180.0), min(north + dy, 85.0))


def vector_tile(tile: Tile, layer: str, points: Iterable[tuple[LonLat, Mapping[str, Any]]]) -> bytes:
    """Return one layer of points as a Mapbox vector tile; a tile without points is empty.

    Args:
        tile: Which one; points may lie a little outside.
        layer: Its name.
        points: Positions and properties.
    """
    features = []
    for position, properties in points:
        x, y = pixel_from_lonlat(position.lon, position.lat, tile.z)
        at = Point(
            round((float(x) / TILE_PX - tile.x) * EXTENT),
            round((float(y) / TILE_PX - tile.y) * EXTENT),
        )
        features.append({"geometry": at, "properties": dict(properties)})
    if not features:
        return b""
    encoded: bytes = mapbox_vector_tile.encode(
        [{"name": layer, "features": features}], default_options={"extents": EXTENT, "y_coord_down": True}
    )
    return encoded
