"""The nouns everything else is written in: positions, tiles, windows, and what a source delivers.

Positions are ``(lon, lat)`` in degrees. Global pixels are those of the Web-Mercator square of ``256 * 2**zoom`` pixels,
x right, y down, ``(0, 0)`` its north-west corner; pixel centres lie at ``.5``.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from cvgl_data.aoi import AreaOfInterest
    from cvgl_data.errors import FetchError
    from cvgl_data.http import Http

TILE_PX = 256
"""Side of one XYZ tile in global pixels, whatever the number of pixels a server sends for it."""

EARTH_CIRCUMFERENCE_M = 2 * math.pi * 6378137.0
"""Equator of the Web-Mercator sphere, which defines ground metres per pixel."""


def _lonlat(x: float, y: float, zoom: int) -> LonLat:
    """Inverse Web Mercator of one point in global pixels; `cvgl_data.geo` has the array version."""
    world = TILE_PX * 2.0**zoom
    lat = math.degrees(math.atan(math.sinh(math.pi * (1.0 - 2.0 * y / world))))
    lon = x / world * 360.0 - 180.0
    return LonLat(lon if lon <= 180.0 else lon - 360.0, lat)


def gsd_m_at(lat: float, zoom: int) -> float:
    """Ground metres per global pixel at a latitude; `cvgl_data.geo.gsd_m` has the array version."""
    return EARTH_CIRCUMFERENCE_M * math.cos(math.radians(lat)) / (TILE_PX * 2.0**zoom)


class LonLat(NamedTuple):
    """A position in degrees (WGS 84)."""

    lon: float
    lat: float


class BBox(NamedTuple):
    """A box in degrees; ``west > east`` means that it crosses the antimeridian."""

    west: float
    south: float
    east: float
    north: float


class Tile(NamedTuple):
    """One XYZ tile, the unit an imagery server serves; y grows southwards."""

    x: int
    y: int
    z: int

    @property
    def quadkey(self) -> str:
        """Bing-style key: one digit per zoom level, empty at zoom 0."""
        return "".join(str((self.x >> bit & 1) | (self.y >> bit & 1) << 1) for bit in range(self.z - 1, -1, -1))

    @property
    def bounds(self) -> BBox:
        """Outer edges in degrees."""
        return Window(self.x * TILE_PX, self.y * TILE_PX, TILE_PX, self.z).bounds

    @property
    def center(self) -> LonLat:
        """Centre of the square in Mercator pixels."""
        return Window(self.x * TILE_PX, self.y * TILE_PX, TILE_PX, self.z).center

    def __str__(self) -> str:
        """Return the usual ``z/x/y``."""
        return f"{self.z}/{self.x}/{self.y}"


class Window(NamedTuple):
    """One reference: a square of global pixels, ``(x, y)`` its north-west corner, all in pixels of ``zoom``."""

    x: int
    y: int
    size: int
    zoom: int

    @property
    def key(self) -> str:
        """Unique, sortable name, used as ``reference_id``."""
        return f"{self.zoom:02d}_{self.x:010d}_{self.y:010d}_{self.size}"

    @property
    def center(self) -> LonLat:
        """Centre of the square in Mercator pixels."""
        return _lonlat(self.x + self.size / 2, self.y + self.size / 2, self.zoom)

    @property
    def bounds(self) -> BBox:
        """Outer edges in degrees."""
        west, north = _lonlat(self.x, self.y, self.zoom)
        east, south = _lonlat(self.x + self.size, self.y + self.size, self.zoom)
        return BBox(west, south, east, north)

    @property
    def gsd_m(self) -> float:
        """Ground metres per pixel at the centre, cos(lat) included."""
        return gsd_m_at(self.center.lat, self.zoom)

    @property
    def tiles(self) -> list[Tile]:
        """The XYZ tiles that the window touches, row by row; beyond the antimeridian columns start again at 0."""
        columns = range(self.x // TILE_PX, (self.x + self.size - 1) // TILE_PX + 1)
        rows = range(self.y // TILE_PX, (self.y + self.size - 1) // TILE_PX + 1)
        return [Tile(column % 2**self.zoom, row, self.zoom) for row in rows for column in columns]


class Outcome(StrEnum):
    """What became of one item; the only words statistics are made of."""

    OK = "ok"
    NOT_FOUND = "not_found"
    NO_IMAGERY = "no_imagery"
    AUTH = "auth"
    QUOTA = "quota"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    TRUNCATED = "truncated"
    WRONG_TYPE = "wrong_type"
    WRONG_SIZE = "wrong_size"
    DECODE_ERROR = "decode_error"
    CONSTANT_TILE = "constant_tile"
    CANCELLED = "cancelled"

    @property
    def is_transient(self) -> bool:
        """Whether the next run should ask again without being told to."""
        return self in _TRANSIENT


_TRANSIENT = frozenset(
    {
        Outcome.QUOTA,
        Outcome.RATE_LIMITED,
        Outcome.SERVER_ERROR,
        Outcome.TIMEOUT,
        Outcome.CONNECTION,
        Outcome.TRUNCATED,
        Outcome.CANCELLED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """The image of one tile, as received."""

    image: bytes
    captured: str = ""
    """ISO 8601 date or time of capture, empty when the source does not say."""
    release: str = ""
    """Version of the imagery, when the source has versions."""
    release_source: str = ""
    """Release in which these bytes first appeared, when the source tells; equal ones mean equal bytes."""
    licence: str = ""
    """Licence of this very tile; empty means the source's."""
    provider: str = ""
    """Who made the image, when the source is a collection."""
    source_gsd_m: float | None = None
    """Ground metres per pixel of the original image, when the source tells."""
    upsampled_from_zoom: int | None = None
    """Zoom of the coarser tile that stands in for one that does not exist."""
    etag: str = ""
    last_modified: str = ""
    """Validators of the response, for conditional requests."""
    robots: str = ""
    """The response's ``X-Robots-Tag``."""
    sha256: str = ""
    """Digest of the image, when the source had to compute it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PanoramaRef:
    """A panorama that exists, before its pixels are fetched."""

    pano_id: str
    lon: float
    lat: float
    captured: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panorama:
    """One equirectangular panorama, as received, with its pose.

    ``heading_deg`` is the compass bearing of the centre column, clockwise from north; ``pitch_deg`` tells how far
    the centre looks above the horizon; ``roll_deg`` grows as the horizon turns counter-clockwise in the image (GPano's
    conventions).
    ``None`` means unknown, which is not 0.
    """

    pano_id: str
    image: bytes
    lon: float
    lat: float
    heading_deg: float | None = None
    pitch_deg: float | None = None
    roll_deg: float | None = None
    captured: str = ""
    licence: str = ""
    creator: str = ""
    sequence: str = ""
    """The drive or walk it was taken on, in the source's words; its images in order of time give a course."""
    pose_source: str = ""
    """Where heading, pitch and roll come from, in the source's words (``computed_rotation``, ``compass_angle``)."""
    upright: bool | None = None
    """Whether the horizon is known to be level although pitch and roll are not given."""
    etag: str = ""
    last_modified: str = ""
    robots: str = ""
    """As for `Fetched`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a source's terms of use ask of the person who fetches from it; a summary, not legal advice."""

    name: str
    """What ``--accept-terms`` takes."""
    url: str
    summary: str
    """What they restrict, in a sentence or two."""
    redistributable: bool
    """Whether images may be published with a dataset; otherwise its rows are marked ``no_redistribute``."""
    must_accept: bool
    """Whether nothing is fetched before the terms were accepted: they restrict storage or publication."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one item (tile or panorama) of a source takes, on average."""

    requests: Mapping[str, float] = field(default_factory=dict)
    """Host to requests per item."""
    bytes: float = 0.0
    """Bytes received per item."""
    usd: float | None = 0.0
    """List price per item; ``None``: not known here."""
    per_day: int | None = None
    """Items that the provider's daily quota lets through."""
    note: str = ""
    """What the figures rest on."""


class ImagerySource(Protocol):
    """Anything that serves overhead tiles: one method, one file in `cvgl_data.sources`.

    Optional members: ``terms: Terms``; ``is_immutable: bool`` (a tile never changes, so there is nothing to refresh);
    ``cost() -> Cost``; ``async pin(http) -> dict`` returns the options named in ``pins: tuple[str, ...]`` that fix what
    would otherwise change under a recipe (a release date), to be saved with it; ``async read_attribution(http)`` sets
    ``attribution`` to what the service says; ``check_access()`` raises `RecipeError` if a key that it cannot do without
    is not set.
    """

    name: str
    attribution: str
    licence: str
    max_zoom: int
    tile_px: int
    """Pixels per side that the server sends for one tile (256, or 512 for "@2x")."""

    async def fetch(self, tile: Tile, http: Http) -> Fetched:
        """Return the tile's image.

        Raises:
            NoImagery: If the source has no pixels there.
            FetchError: If it could not be had this time.
            SourceStopped: If nothing can be had from the source for now.
        """
        ...

    def close(self) -> None:
        """Give back processes and files; called once by whoever opened the source."""
        ...


class PanoramaSource(Protocol):
    """Anything that lists and serves panoramas.

    Optional members as for `ImagerySource`, and ``discovery(area) -> Mapping[str, float]``: host to requests that
    `discover` will send.
    """

    name: str
    attribution: str
    licence: str

    def discover(self, area: AreaOfInterest, http: Http) -> AsyncIterator[PanoramaRef | FetchError]:
        """Yield the panoramas inside the area, in an order that does not change between runs.

        What cannot be read, a page of answers or one record, is yielded as the `FetchError` it caused (``item`` names
        it), so that it ends as a failed row and the rest goes on.

        Raises:
            SourceStopped: If nothing can be had from the source for now.
        """
        ...

    async def fetch(self, pano_id: str, http: Http) -> Panorama:
        """Return the panorama.

        Raises:
            NoPanorama: If the id does not resolve.
            FetchError: If it could not be had this time.
            SourceStopped: If nothing can be had from the source for now.
        """
        ...

    def close(self) -> None:
        """Give back processes and files; called once by whoever opened the source."""
        ...


class Progress(Protocol):
    """What long work tells the person who waits for it."""

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins; ``total`` is the number of its items, if known."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """So many more items of the stage are done."""


class Silent:
    """Tell nobody."""

    def stage(self, name: str, total: int | None) -> None:
        """Do nothing."""

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Do nothing."""
