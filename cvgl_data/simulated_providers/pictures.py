"""What the world shows to all providers: tiles, panoramas with their poses, and where there are any."""

from __future__ import annotations

import asyncio
import datetime
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import simplejpeg

from cvgl_data.geo import distance_m, pixel_from_lonlat
from cvgl_data.images import decode
from cvgl_data.simulated_providers.cache import Cache
from cvgl_data.simulated_providers.settings import Settings
from cvgl_data.simulated_providers.views import Pixels
from cvgl_data.simulation import World, render_panorama, render_tile
from cvgl_data.simulation.workers import Workers
from cvgl_data.sources.simulated import pano_id_at, pose_at
from cvgl_data.types import TILE_PX, BBox, LonLat, Tile

MAX_ZOOM = 22
TILE_QUALITY = 90
_SCALE = 1e7
_CELL_ZOOM = 15  # the squares in which the world lists its stations
_MAX_CELLS = 1024  # that a listing looks at, about 30 km squared
_BYTES = 256 * 1024 * 1024
_PIXEL_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Station:
    """One panorama: where, and how the camera stood (conventions of `cvgl_data.types.Panorama`)."""

    lon: float
    lat: float
    heading_deg: float
    pitch_deg: float
    roll_deg: float
    captured: datetime.datetime

    @property
    def position(self) -> LonLat:
        """Where."""
        return LonLat(self.lon, self.lat)

    @property
    def key(self) -> str:
        """Its id in `cvgl_data.sources.simulated`."""
        return pano_id_at(self.lon, self.lat)


class Pictures:
    """Renders, outside the event loop, and remembers what was asked for last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._world = World(settings.seed)
        self._workers = Workers(settings.workers)
        self._encoded: Cache[bytes] = Cache(_BYTES, len)
        self._pixels: Cache[Pixels] = Cache(_PIXEL_BYTES, lambda pixels: int(pixels.nbytes))
        self._cell = lru_cache(maxsize=256)(self._list_cell)

    async def close(self) -> None:
        """End the processes and forget everything."""
        await self._encoded.close()
        await self._pixels.close()
        self._workers.close()

    async def tile(self, tile: Tile, day: datetime.date) -> bytes:
        """Return an overhead tile as it looks on a day, JPEG; the bytes of `SimulatedImagery`."""
        render = partial(_tile_jpeg, self._world, tile.bounds, day)
        return await self._encoded.get(("tile", tile, day), lambda: self._workers.run(render, "tile", str(tile)))

    async def panorama(self, station: Station) -> bytes:
        """Return a panorama as rendered, JPEG; the bytes of `SimulatedPanoramas`."""
        render = partial(_panorama_jpeg, self._world, station, self._settings.panorama_width, self._settings.day)
        return await self._encoded.get(
            ("panorama", station.key), lambda: self._workers.run(render, "panorama", station.key)
        )

    async def pixels(self, station: Station) -> Pixels:
        """Return a panorama's decoded pixels, (H, 2 H, 3)."""

        async def make() -> Pixels:
            return await asyncio.to_thread(decode, await self.panorama(station))

        return await self._pixels.get(station.key, make)

    async def derived_pixels(self, station: Station, what: str, make: Callable[[Pixels], Pixels]) -> Pixels:
        """Return pixels made from a panorama's; ``what`` names them."""

        async def run() -> Pixels:
            return await asyncio.to_thread(make, await self.pixels(station))

        return await self._pixels.get((station.key, what), run)

    async def derived(self, station: Station, what: str, make: Callable[[Pixels], bytes]) -> bytes:
        """Return an encoded image made from a panorama's pixels; ``what`` names it."""

        async def run() -> bytes:
            return await asyncio.to_thread(make, await self.pixels(station))

        return await self._encoded.get((station.key, what), run)

    async def listed(self, key: object, make: Callable[[], bytes]) -> bytes:
        """Return the bytes of a listing that takes time to make; ``key`` names it."""
        return await self._encoded.get(("listed", key), lambda: asyncio.to_thread(make))

    def station(self, position: tuple[float, float] | None, provider: str) -> Station | None:
        """Return a provider's panorama at a position, ``None`` if it has none: off the lanes, or a hole."""
        if position is None or abs(position[1]) > 85.0 or not self._has(provider, *position):
            return None
        lon, lat = position
        pose = pose_at(self._world, lon, lat, self._settings.tilt_deg)
        if pose is None:
            return None
        seconds = 9 * 3600 + int(8 * 3600 * self._settings.chance("time", pano_id_at(lon, lat)))
        midnight = datetime.datetime.combine(self._settings.day, datetime.time(), datetime.UTC)
        return Station(lon, lat, *pose, midnight + datetime.timedelta(seconds=seconds))

    def within(self, bounds: BBox, provider: str) -> Iterator[LonLat]:
        """Yield the positions of a provider's panoramas in a box; the order is that of a map, north to south."""
        east = bounds.east + (360.0 if bounds.east < bounds.west else 0.0)
        world = TILE_PX * 2.0**_CELL_ZOOM
        xs, ys = pixel_from_lonlat(
            np.array([bounds.west, bounds.east]), np.clip([bounds.north, bounds.south], -85.0, 85.0), _CELL_ZOOM
        )
        first, last = int(xs[0] // TILE_PX), int((xs[1] + (world if east != bounds.east else 0.0)) // TILE_PX)
        cells = 0
        for row in range(int(ys[0] // TILE_PX), int(ys[1] // TILE_PX) + 1):
            for column in range(first, last + 1):
                cells += 1
                if cells > _MAX_CELLS:
                    return
                for lon, lat in self._cell(column % 2**_CELL_ZOOM, row):
                    inside = bounds.west <= lon <= east or bounds.west <= lon + 360.0 <= east
                    if inside and bounds.south <= lat <= bounds.north and self._has(provider, lon, lat):
                        yield LonLat(lon, lat)

    def around(self, lon: float, lat: float, radius_m: float, provider: str) -> list[tuple[float, LonLat]]:
        """Return meters to and positions of a provider's panoramas within a radius, the nearest first."""
        reach_lat = radius_m / 111_000.0
        reach_lon = reach_lat / max(math.cos(math.radians(lat)), 0.01)
        box = BBox(lon - reach_lon, max(lat - reach_lat, -85.0), lon + reach_lon, min(lat + reach_lat, 85.0))
        found = list(self.within(box, provider))
        if not found:
            return []
        lons, lats = np.array(found).T
        distances_m = distance_m(lon, lat, lons, lats).tolist()
        return sorted((meters, at) for meters, at in zip(distances_m, found, strict=True) if meters <= radius_m)

    def _has(self, provider: str, lon: float, lat: float) -> bool:
        holes = self._settings.holes
        return (
            holes == 0.0 or self._settings.chance("gone", provider, round(lon * _SCALE), round(lat * _SCALE)) >= holes
        )

    def _list_cell(self, column: int, row: int) -> tuple[tuple[float, float], ...]:
        if not 0 <= row < 2**_CELL_ZOOM:
            return ()
        # Edges are inclusive: a station on one would be listed by two cells.
        west, south, east, north = Tile(column, row, _CELL_ZOOM).bounds
        stations = self._world.stations(BBox(west, south, east, north), self._settings.every_m)
        return tuple((lon, lat) for lon, lat in stations if lon < east and lat > south)


def encoded(pixels: Pixels, quality: int = TILE_QUALITY) -> bytes:
    """Return pixels as a JPEG; equal pixels give equal bytes."""
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420")
    )


def _tile_jpeg(world: World, bounds: BBox, day: datetime.date) -> bytes:
    return encoded(render_tile(world, bounds, TILE_PX, date=day, shadows=True))


def _panorama_jpeg(world: World, station: Station, width: int, day: datetime.date) -> bytes:
    return encoded(
        render_panorama(
            world,
            station.lon,
            station.lat,
            heading_deg=station.heading_deg,
            pitch_deg=station.pitch_deg,
            roll_deg=station.roll_deg,
            date=day,
            width=width,
        )
    )
