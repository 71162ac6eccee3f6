"""Vector tiles as lists of what lies where: which tiles cover an area, and the points in them.

Source:
    Mapbox Vector Tile Specification 2.1; coordinates are whole steps of an integer ``extent`` per tile, y down.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import mapbox_vector_tile
import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import FetchError, SourceStopped
from cvgl_data.geo import lonlat_from_pixel
from cvgl_data.grid import TileGrid, world_px
from cvgl_data.types import TILE_PX, Outcome, PanoramaRef, Tile

AHEAD = 8
"""Tiles asked for before they are needed; hosts are protected by `Http`, memory by this."""

_REACH_TILES = 1.5
"""How far from its tile's centre a point may lie; encoders add some of the neighbors' points along the edges."""

_MALFORMED = (DecodeError, AssertionError, LookupError, ValueError, TypeError, ArithmeticError)
"""What decoding raises for bytes that are no vector tile, or that refer to what the tile does not have."""


class Point(NamedTuple):
    """One feature of a layer."""

    lon: float
    lat: float
    properties: Mapping[str, Any]
    item: str
    """``z/x/y#number``, to tell features without a readable id apart."""


def covering(area: AreaOfInterest, zoom: int) -> list[Tile]:
    """Return the tiles of a zoom that have a part of the area in them, sorted by column, then row."""
    windows = TileGrid(zoom, TILE_PX).cover(area)
    columns, rows = windows.x // TILE_PX % 2**zoom, windows.y // TILE_PX
    return sorted({Tile(x, y, zoom) for x, y in zip(columns.tolist(), rows.tolist(), strict=True)})


def points(body: bytes, tile: Tile, layer: str, *, source: str) -> list[Point | FetchError]:
    """Return the points of one layer, in the tile's order; lines and polygons are left out.

    Args:
        body: The tile; an empty one has no points.
        tile: Where it lies.
        layer: Name of the layer; a tile without it has no points.
        source: Name of the source, for errors.

    Returns:
        Points with their properties, and a ``decode_error`` for each point feature without a position.

    Raises:
        FetchError: ``decode_error`` if the body is no vector tile.
    """
    if not body:
        return []
    try:
        layers = mapbox_vector_tile.decode(body, default_options={"y_coord_down": True})
        if not layers:  # anything short enough passes for a message of unknown fields
            raise ValueError("it has no layers")
        found = layers.get(layer, {"extent": 1, "features": []})
        extent = int(found["extent"])
        if extent < 1:
            raise ValueError(f"its extent is {extent}")
        features = found["features"]
    except _MALFORMED as error:
        text = f"tile {tile} is not a vector tile ({type(error).__name__}: {str(error)[:100]})"
        raise FetchError(text, source=source, item=str(tile), outcome=Outcome.DECODE_ERROR) from None
    places: list[tuple[float, float]] = []
    owners: list[int] = []
    for number, feature in enumerate(features):
        geometry = feature["geometry"]
        if geometry["type"] in ("Point", "MultiPoint"):
            pairs = [geometry["coordinates"]] if geometry["type"] == "Point" else geometry["coordinates"]
            pairs = pairs or [(math.nan, math.nan)]
            places += pairs
            owners += [number] * len(pairs)
    steps = np.array(places, np.float64).reshape(-1, 2) / extent
    is_near = np.asarray((np.abs(steps - 0.5) <= _REACH_TILES).all(axis=1))
    steps[~is_near] = 0.0
    x, y = (steps + np.array([tile.x, tile.y])).T * TILE_PX
    lon, lat = lonlat_from_pixel(x % world_px(tile.z), y, tile.z)
    listed: list[Point | FetchError] = []
    columns = (lon.tolist(), lat.tolist(), is_near.tolist())
    for number, lon_deg, lat_deg, near in zip(owners, *columns, strict=True):
        item = f"{tile}#{number}"
        if near:
            listed.append(Point(lon_deg, lat_deg, features[number]["properties"], item))
        else:
            text = f"feature {item} has no position in or near its tile"
            listed.append(FetchError(text, source=source, item=item, outcome=Outcome.DECODE_ERROR))
    return listed


async def discover(
    area: AreaOfInterest,
    zoom: int,
    layer: str,
    *,
    source: str,
    load: Callable[[Tile], Awaitable[bytes]],
    read: Callable[[Point], PanoramaRef | None],
) -> AsyncGenerator[PanoramaRef | FetchError]:
    """Yield the panoramas that vector tiles list inside an area, tile by tile and sorted by id within a tile.

    Neighboring tiles repeat what lies on their common edge; each id is yielded once.

    Args:
        area: Where.
        zoom: Of the tiles.
        layer: Of the panoramas.
        source: Name of the source, for errors.
        load: Returns a tile's bytes, empty if there is nothing there; called for a few tiles ahead.
        read: Turns a point into a reference, or into ``None`` if it is none that is wanted; raises `FetchError` if it
            cannot be read.

    Yields:
        References, and the `FetchError` of each tile or record that could not be read.

    Raises:
        SourceStopped: As ``load`` does.
    """
    seen: set[str] = set()
    async with aclosing(_in_order(covering(area, zoom), load)) as loaded:
        async for tile, body in loaded:
            if isinstance(body, FetchError):
                yield body
                continue
            try:
                listed = points(body, tile, layer, source=source)
            except FetchError as error:
                yield error
                continue
            refs, errors = _read(listed, area, read)
            for ref in refs:
                if ref.pano_id not in seen:
                    seen.add(ref.pano_id)
                    yield ref
            for failed in errors:
                yield failed


def _read(
    listed: list[Point | FetchError], area: AreaOfInterest, read: Callable[[Point], PanoramaRef | None]
) -> tuple[list[PanoramaRef], list[FetchError]]:
    """Return the references inside the area, sorted by id, and what went wrong with the rest of the points."""
    errors = [point for point in listed if isinstance(point, FetchError)]
    placed = [point for point in listed if not isinstance(point, FetchError)]
    inside = area.contains([point.lon for point in placed], [point.lat for point in placed])
    refs = []
    for point, is_inside in zip(placed, inside.tolist(), strict=True):
        if not is_inside:
            continue
        try:
            ref = read(point)
        except FetchError as error:
            errors.append(error)
        else:
            refs += [ref] if ref is not None else []
    return sorted(refs, key=lambda ref: (ref.pano_id, ref.lon, ref.lat)), errors


async def _in_order(
    tiles: list[Tile], load: Callable[[Tile], Awaitable[bytes]]
) -> AsyncGenerator[tuple[Tile, bytes | FetchError]]:
    """Yield the tiles in their order with what loading each gave, a few loads running ahead."""
    running: deque[tuple[Tile, asyncio.Future[bytes]]] = deque()
    left = iter(tiles)
    try:
        while True:
            while len(running) < AHEAD and (tile := next(left, None)) is not None:
                running.append((tile, asyncio.ensure_future(load(tile))))
            if not running:
                return
            tile, loading = running[0]
            try:
                body: bytes | FetchError = await loading
            except SourceStopped:
                raise
            except FetchError as error:
                body = error
            running.popleft()
            yield tile, body
    finally:
        for _, loading in running:
            loading.cancel()
        await asyncio.gather(*(loading for _, loading in running), return_exceptions=True)
