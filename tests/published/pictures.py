"""Encoded pictures of the simulated world, and where its camera car stood, near any place on Earth."""

from __future__ import annotations

import datetime
import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from cvgl_data.geo import lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.simulation import World, render_map, render_panorama, render_tile
from cvgl_data.types import BBox

DATE = datetime.date(2023, 6, 15)
WORLD = World(0)


def encode(pixels: np.ndarray, suffix: str = "jpg") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, {"jpg": "JPEG", "png": "PNG"}[suffix], quality=90)
    return stream.getvalue()


def square(lon: float, lat: float, zoom: int, side_px: float) -> BBox:
    """Edges of the square of ``side_px`` global pixels around a position, which need not lie on the pixel grid."""
    x, y = pixel_from_lonlat(lon, lat, zoom)
    half = side_px / 2
    west, north = lonlat_from_pixel(x - half, y - half, zoom)
    east, south = lonlat_from_pixel(x + half, y + half, zoom)
    return BBox(float(west), float(south), float(east), float(north))


@cache
def overhead(
    lon: float, lat: float, zoom: int, side_px: float, size_px: int = 64, suffix: str = "png", map_: bool = False
) -> bytes:
    """Picture from above of the square of ``side_px`` global pixels around a position, ``size_px`` pixels a side."""
    bounds = square(lon, lat, zoom, side_px)
    pixels = render_map(WORLD, bounds, size_px) if map_ else render_tile(WORLD, bounds, size_px, date=DATE)
    return encode(pixels, suffix)


@cache
def panorama(lon: float, lat: float, width: int = 128, heading_deg: float = 0.0) -> bytes:
    """Panorama, JPEG, ``width`` by ``width / 2`` pixels; ``heading_deg`` is the bearing of its centre column."""
    return encode(render_panorama(WORLD, lon, lat, heading_deg=heading_deg, date=DATE, width=width))


@cache
def stations(west: float, south: float, east: float, north: float, num: int, every_m: float = 10.0) -> list:
    """Return up to ``num`` positions (lon, lat) of the camera car in a box, spread over it, rounded to 1e-6 degrees."""
    found = sorted(
        {(round(lon, 6), round(lat, 6)) for lon, lat in WORLD.stations(BBox(west, south, east, north), every_m)}
    )
    chosen = np.linspace(0, len(found) - 1, min(num, len(found))).round().astype(int)
    return [found[index] for index in chosen]


def write(path: Path, content: str | bytes) -> None:
    """Write a file and the folders above it; text as it is, without changes to line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
