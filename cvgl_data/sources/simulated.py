"""The simulated world as a source of imagery, maps and panoramas: no network, no key, exact ground truth."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import math
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cvgl_data.errors import NoImagery, NoPanorama, RecipeError
from cvgl_data.simulation import World, render_map, render_panorama, render_tile
from cvgl_data.simulation.workers import Workers
from cvgl_data.types import BBox, Fetched, Panorama, PanoramaRef, Tile

if TYPE_CHECKING:
    from cvgl_data.aoi import AreaOfInterest
    from cvgl_data.http import Http

ATTRIBUTION = "cvgl simulated world"
LICENCE = "CC0-1.0"
_PANO_ID = re.compile(r"(-?\d{1,10})_(-?\d{1,9})", re.ASCII)
_ID_SCALE = 1e7
_BATCH = 512


class Pose(NamedTuple):
    """How the camera of a simulated panorama stood, in the conventions of `cvgl_data.types.Panorama`."""

    heading_deg: float
    pitch_deg: float
    roll_deg: float


def pano_id_at(lon: float, lat: float) -> str:
    """Return the id of the panorama at a position in degrees: the position in units of 1e-7 degrees."""
    return f"{round(lon * _ID_SCALE)}_{round(lat * _ID_SCALE)}"


def pose_at(world: World, lon: float, lat: float, tilt_deg: float) -> Pose | None:
    """Return how the camera car stands at a position, ``None`` if that is not on a lane.

    Args:
        world: Where the lanes are; its seed decides on the sway, too.
        lon: Degrees.
        lat: Degrees.
        tilt_deg: Largest pitch and roll.
    """
    lane_deg = world.lane_heading_deg(lon, lat)
    if lane_deg is None:
        return None
    sway, pitch, roll = _chances(f"{world.seed}/{pano_id_at(lon, lat)}")
    return Pose(
        heading_deg=round((lane_deg + 8.0 * (sway - 0.5)) % 360.0, 3) % 360.0,
        pitch_deg=round(tilt_deg * (2.0 * pitch - 1.0), 3) + 0.0,
        roll_deg=round(tilt_deg * (2.0 * roll - 1.0), 3) + 0.0,
    )


class SimulatedImagery:
    """Overhead imagery of the simulated world.

    Args:
        seed: Seed of the world.
        date: Day of capture, ISO 8601: decides on sun, plants and parked cars.
        tile_px: Pixels per side of one tile.
        quality: JPEG quality, 1 to 100.
        shadows: Whether the sun casts shadows.
        workers: Processes that render; 0 means one per processor, 1 a thread of this process.

    Raises:
        RecipeError: If an option is out of range.
    """

    name = "simulated"
    attribution = ATTRIBUTION
    licence = LICENCE
    max_zoom = 22

    def __init__(
        self,
        seed: int = 0,
        date: str | datetime.date = "2023-06-15",
        tile_px: int = 256,
        quality: int = 90,
        shadows: bool = True,
        workers: int = 0,
    ) -> None:
        self.tile_px = _within("tile_px", tile_px, 16, 4096)
        self._date = _as_date(date)
        self._quality = _within("quality", quality, 1, 100)
        self._shadows = shadows
        self._world = World(_within("seed", seed, -(2**63), 2**63 - 1))
        self._workers = Workers(_within("workers", workers, 0, 1024))

    async def fetch(self, tile: Tile, http: Http | None = None) -> Fetched:
        """Render the tile.

        Raises:
            NoImagery: If the tile does not exist, or is finer than ``max_zoom``.
            FetchError: If the process that rendered it died.
        """
        bounds = _tile_bounds(tile, self.max_zoom, self.name)
        render = partial(_tile_jpeg, self._world, bounds, self.tile_px, self._date, self._shadows, self._quality)
        return Fetched(image=await self._workers.run(render, self.name, str(tile)), captured=self._date.isoformat())

    def close(self) -> None:
        """End the processes."""
        self._workers.close()


class SimulatedMap:
    """Street map of the simulated world, for street-to-map retrieval; arguments as for `SimulatedImagery`."""

    name = "simulated-map"
    attribution = ATTRIBUTION
    licence = LICENCE
    max_zoom = 22

    def __init__(self, seed: int = 0, tile_px: int = 256, quality: int = 92, workers: int = 0) -> None:
        self.tile_px = _within("tile_px", tile_px, 16, 4096)
        self._quality = _within("quality", quality, 1, 100)
        self._world = World(_within("seed", seed, -(2**63), 2**63 - 1))
        self._workers = Workers(_within("workers", workers, 0, 1024))

    async def fetch(self, tile: Tile, http: Http | None = None) -> Fetched:
        """Render the tile; errors as for `SimulatedImagery.fetch`."""
        bounds = _tile_bounds(tile, self.max_zoom, self.name)
        render = partial(_map_jpeg, self._world, bounds, self.tile_px, self._quality)
        return Fetched(image=await self._workers.run(render, self.name, str(tile)))

    def close(self) -> None:
        """End the processes."""
        self._workers.close()


class SimulatedPanoramas:
    """Panoramas from a car that drives along every street of the simulated world.

    The id of a panorama is its position in units of 1e-7 degrees, ``lon_lat``; everything else follows from it and the
    options. The centre column looks where the car goes, give or take a few degrees.

    Args:
        seed: Seed of the world.
        date: Day of capture, ISO 8601.
        width: Pixels round the horizon, even; the height is half of it.
        camera_height_m: Height above the ground.
        tilt_deg: Largest pitch and roll; each panorama has its own.
        every_m: Meters between panoramas along a street.
        quality: JPEG quality, 1 to 100.
        shadows: Whether the sun casts shadows.
        workers: Processes that render; 0 means one per processor, 1 a thread of this process.

    Raises:
        RecipeError: If an option is out of range.
    """

    name = "simulated"
    attribution = ATTRIBUTION
    licence = LICENCE

    def __init__(
        self,
        seed: int = 0,
        date: str | datetime.date = "2023-06-15",
        width: int = 2048,
        camera_height_m: float = 2.5,
        tilt_deg: float = 0.0,
        every_m: float = 10.0,
        quality: int = 90,
        shadows: bool = True,
        workers: int = 0,
    ) -> None:
        self._width = _within("width", width, 32, 16384)
        if width % 2:
            raise RecipeError(f"option 'width' is {width}; it must be even")
        self._camera_height_m = _within("camera_height_m", camera_height_m, 0.1, 100.0)
        self._tilt_deg = _within("tilt_deg", tilt_deg, 0.0, 45.0)
        self._every_m = _within("every_m", every_m, 0.5, 1000.0)
        self._quality = _within("quality", quality, 1, 100)
        self._date = _as_date(date)
        self._shadows = shadows
        self._world = World(_within("seed", seed, -(2**63), 2**63 - 1))
        self._workers = Workers(_within("workers", workers, 0, 1024))

    async def discover(self, area: AreaOfInterest, http: Http | None = None) -> AsyncIterator[PanoramaRef]:
        """Yield the panoramas inside the area, from north to south in bands, the same in every run."""
        found = self._world.stations(BBox(*area.bounds), self._every_m)
        while batch := await asyncio.to_thread(_take, found, _BATCH):
            lon, lat = (np.array(column) for column in zip(*batch, strict=True))
            for (at_lon, at_lat), inside in zip(batch, area.contains(lon, lat), strict=True):
                if inside:
                    yield PanoramaRef(
                        pano_id=pano_id_at(at_lon, at_lat),
                        lon=at_lon,
                        lat=at_lat,
                        captured=self._date.isoformat(),
                    )

    async def fetch(self, pano_id: str, http: Http | None = None) -> Panorama:
        """Render the panorama.

        Raises:
            NoPanorama: If the id is no position, or that is not on a lane.
            FetchError: If the process that rendered it died.
        """
        lon, lat = self._position(pano_id)
        pose = pose_at(self._world, lon, lat, self._tilt_deg)
        if pose is None:
            raise NoPanorama(
                f"no panorama '{pano_id}': {lat:.7f}, {lon:.7f} is not on a lane",
                source=self.name,
                item=pano_id,
            )
        render = partial(
            _panorama_jpeg,
            self._world,
            lon,
            lat,
            self._quality,
            date=self._date,
            width=self._width,
            camera_height_m=self._camera_height_m,
            shadows=self._shadows,
            **pose._asdict(),
        )
        return Panorama(
            pano_id=pano_id,
            image=await self._workers.run(render, self.name, pano_id),
            lon=lon,
            lat=lat,
            captured=self._date.isoformat(),
            licence=self.licence,
            creator=self.attribution,
            pose_source="exact",
            **pose._asdict(),
        )

    def close(self) -> None:
        """End the processes."""
        self._workers.close()

    def _position(self, pano_id: str) -> tuple[float, float]:
        match = _PANO_ID.fullmatch(pano_id)
        lon, lat = (int(part) / _ID_SCALE for part in match.groups()) if match else (math.nan, math.nan)
        # The second test refuses other spellings of the same number, such as leading zeros.
        if not (abs(lon) <= 180.0 and abs(lat) <= 85.0) or pano_id_at(lon, lat) != pano_id:
            raise NoPanorama(
                f"no panorama '{pano_id}': ids are lon_lat in units of 1e-7 degrees",
                source=self.name,
                item=pano_id,
            )
        return lon, lat


def _tile_jpeg(world: World, bounds: BBox, size_px: int, date: datetime.date, shadows: bool, quality: int) -> bytes:
    return _jpeg(render_tile(world, bounds, size_px, date=date, shadows=shadows), quality)


def _map_jpeg(world: World, bounds: BBox, size_px: int, quality: int) -> bytes:
    return _jpeg(render_map(world, bounds, size_px), quality)


def _panorama_jpeg(
    world: World,
    lon: float,
    lat: float,
    quality: int,
    *,
    date: datetime.date,
    width: int,
    camera_height_m: float,
    shadows: bool,
    heading_deg: float,
    pitch_deg: float,
    roll_deg: float,
) -> bytes:
    image = render_panorama(
        world,
        lon,
        lat,
        heading_deg=heading_deg,
        pitch_deg=pitch_deg,
        roll_deg=roll_deg,
        date=date,
        width=width,
        camera_height_m=camera_height_m,
        shadows=shadows,
    )
    return _jpeg(image, quality)


def _jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420"))


def _tile_bounds(tile: Tile, max_zoom: int, source: str) -> BBox:
    if not 0 <= tile.z <= max_zoom:
        raise NoImagery(f"no tile {tile}: the simulated world has zoom 0 to {max_zoom}", source=source, item=str(tile))
    if not (0 <= tile.x < 2**tile.z and 0 <= tile.y < 2**tile.z):
        raise NoImagery(f"no tile {tile}: it lies outside the world", source=source, item=str(tile))
    return tile.bounds


def _chances(name: str) -> list[float]:
    """Return three numbers in [0, 1) that follow from a name alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return [int.from_bytes(digest[start : start + 6], "big") / 2**48 for start in (0, 6, 12)]


def _take(items: Iterator[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    return [item for item, _ in zip(items, range(count), strict=False)]


N = TypeVar("N", int, float)


def _within(name: str, value: N, low: N, high: N) -> N:
    kind = int if isinstance(low, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        number = "a whole number" if kind is int else "a number"
        raise RecipeError(f"option '{name}' is {value!r}; it must be {number} from {low} to {high}")
    return value


def _as_date(date: str | datetime.date) -> datetime.date:
    try:
        return date if isinstance(date, datetime.date) else datetime.date.fromisoformat(date)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"option 'date' is {date!r}; write it like 2023-06-15") from error
