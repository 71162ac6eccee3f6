"""Which overhead tiles exist, in which release they last changed, and the footprints that say when they were taken."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cvgl_data.geo import pixel_from_lonlat
from cvgl_data.simulated_providers.settings import Settings
from cvgl_data.types import TILE_PX, BBox, Tile

MAX_ZOOM = 22

_CELL_ZOOM = 14
_OVERVIEW_ZOOM = 5
_BANDS = ((0, _CELL_ZOOM - 1), (_CELL_ZOOM, 19), (20, MAX_ZOOM + 1))  # zooms that show the same captures
_MAX_CELLS = 100_000  # that a query looks at
_OVERVIEW_AGE = datetime.timedelta(days=400)
_MAX_LAT = 85.0511287
_SENSORS = (
    ("WV03", "Simulated Vivid Advanced", "Simulated Satellites", 0.3),
    ("GE01", "Simulated Vivid", "Simulated Satellites", 0.5),
    ("Aerial", "Simulated Ortho", "Simulated Survey", 0.15),
)


@dataclass(frozen=True, slots=True)
class Release:
    """One Wayback release."""

    number: int
    day: datetime.date
    name: str
    """Year and running number within it, ``2022_r01``."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """An area of one capture, and the levels that show it."""

    cell: Tile
    attributes: dict[str, Any]


class Coverage:
    """Tiles and footprints of the live imagery (release ``None``) and of every release, by its index in time.

    Zooms below 14 show an overview with its own dates. Everything within one cell, a tile of zoom 14 (or of zoom 5 for
    the overview), was taken on one day.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._holes = settings.holes
        years: dict[int, int] = {}
        releases = []
        for date, number in sorted(settings.releases):
            day = datetime.date.fromisoformat(date)
            years[day.year] = years.get(day.year, 0) + 1
            releases.append(Release(number, day, f"{day.year}_r{years[day.year]:02d}"))
        self.releases = tuple(releases)

    def index(self, number: int) -> int | None:
        """Return the place in time of a release number."""
        return next((at for at, release in enumerate(self.releases) if release.number == number), None)

    def holder(self, tile: Tile, release: int) -> int | None:
        """Return the release in which a tile, as seen in a release, last changed; ``None`` if it does not exist."""
        if not self._is_tile(tile) or self._is_hole(tile):
            return None
        holder = self._changed(_cell(tile), release)
        is_late = holder == 0 and len(self.releases) > 1 and self._settings.chance("late", tile) < self._holes
        return None if is_late else holder

    def exists(self, tile: Tile, release: int | None) -> bool:
        """Whether a tile exists."""
        if release is None:
            return self._is_tile(tile) and not self._is_hole(tile)
        return self.holder(tile, release) is not None

    def day(self, tile: Tile, release: int | None) -> datetime.date:
        """Return the day that a tile shows."""
        return self._day(_cell(tile), release)

    def footprints(self, box: BBox, release: int | None, zooms: range) -> Iterator[Footprint]:
        """Yield the footprints that a box touches: overviews first, then by rows from the north.

        Args:
            box: May be a point. A cell owns its west and north edge.
            release: Index of the release, ``None`` for the live imagery.
            zooms: Only footprints that are shown at some of these.
        """
        bands = [band for band in _BANDS if band[0] < zooms.stop and zooms.start <= band[1]]
        if bands[:1] == [_BANDS[0]]:
            overview = bands.pop(0)
            for cell in _cells(box, _OVERVIEW_ZOOM):
                yield self._footprint(cell, release, *overview)
        for cell in islice(_cells(box, _CELL_ZOOM), _MAX_CELLS if bands else 0):
            if self._settings.chance("no footprint", cell) < self._holes:
                continue
            for band in bands:
                yield self._footprint(cell, release, *band)

    def _is_tile(self, tile: Tile) -> bool:
        return 0 <= tile.z <= MAX_ZOOM and 0 <= tile.x < 2**tile.z and 0 <= tile.y < 2**tile.z

    def _is_hole(self, tile: Tile) -> bool:
        # Drawn for every tile alone: real coverage is not monotonic in zoom either.
        return self._holes > 0.0 and self._settings.chance("hole", tile) < self._holes

    def _changed(self, cell: Tile, release: int) -> int:
        for at in range(release, 0, -1):
            if self._settings.chance("changed", self.releases[at].number, cell) < 0.5:
                return at
        return 0

    def _day(self, cell: Tile, release: int | None) -> datetime.date:
        if release is not None:
            return self.releases[self._changed(cell, release)].day
        return self._settings.day - (_OVERVIEW_AGE if cell.z < _CELL_ZOOM else datetime.timedelta(0))

    def _footprint(self, cell: Tile, release: int | None, first: int, last: int) -> Footprint:
        day = self._day(cell, release)
        midnight = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
        chances = [self._settings.chance(name, cell, first) for name in ("sensor", "acc", "samp")]
        sensor, product, maker, gsd_m = _SENSORS[int(chances[0] * len(_SENSORS))]
        attributes = {
            "OBJECTID": (cell.y << cell.z | cell.x) * 4 + (0 if first == 0 else 1 if first == _CELL_ZOOM else 2) + 1,
            "SRC_DATE": int(day.strftime("%Y%m%d")),
            "SRC_DATE2": int(midnight.timestamp()) * 1000,
            "SRC_RES": 15.0 if first == 0 else gsd_m,
            "SRC_ACC": None if chances[1] < 0.1 else 5,
            "SAMP_RES": None if chances[2] < 0.1 else (15.0 if first == 0 else gsd_m),
            "SRC_DESC": sensor,
            "NICE_NAME": product,
            "NICE_DESC": maker,
            "MinMapLevel": first,
            "MaxMapLevel": last,
        }
        return Footprint(cell, attributes)


FIELDS = (
    "OBJECTID",
    "SRC_DATE",
    "SRC_DATE2",
    "SRC_RES",
    "SRC_ACC",
    "SAMP_RES",
    "SRC_DESC",
    "NICE_NAME",
    "NICE_DESC",
    "MinMapLevel",
    "MaxMapLevel",
)


def _cell(tile: Tile) -> Tile:
    zoom = _CELL_ZOOM if tile.z >= _CELL_ZOOM else min(tile.z, _OVERVIEW_ZOOM)
    shift = tile.z - zoom
    return Tile(tile.x >> shift, tile.y >> shift, zoom)


def _cells(box: BBox, zoom: int) -> Iterator[Tile]:
    last = 2**zoom - 1
    xs, ys = pixel_from_lonlat([box.west, box.east], [min(box.north, _MAX_LAT), max(box.south, -_MAX_LAT)], zoom)
    for y in range(max(int(ys[0] // TILE_PX), 0), min(int(ys[1] // TILE_PX), last) + 1):
        for x in range(max(int(xs[0] // TILE_PX), 0), min(int(xs[1] // TILE_PX), last) + 1):
            yield Tile(x, y, zoom)
