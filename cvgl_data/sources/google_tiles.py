"""Google street view by the Map Tiles API: the tiles of a panorama's level, put together."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote, urlsplit

from pydantic import Field

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.environment import Secret, base_url
from cvgl_data.errors import FetchError, SourceStopped
from cvgl_data.http import Http, answers
from cvgl_data.http.hosts import Quota
from cvgl_data.http.responses import Response
from cvgl_data.images import Pixels, decode, encode_jpeg
from cvgl_data.panorama import from_tiles
from cvgl_data.sources import google
from cvgl_data.types import Cost, LonLat, Outcome, Panorama, PanoramaRef

WIDTH_PX = 2048
"""Of the panoramas that are delivered."""

MAX_LOCATIONS = 100
"""Locations per request for ids."""

RENEW_BEFORE_S = 60.0
"""A session is not used any more this long before it expires."""

_TOKEN_CHARS = 16
"""A shorter token is no secret, and masking it would blank out words."""

_TILES_PER_DAY = 15_000
_TILES_PER_PANORAMA = 8
_TILES = Quota("google-tiles", per_minute=6_000, per_day=_TILES_PER_DAY)
_METADATA = Quota("google-metadata", per_minute=6_000)


class _Session(google.Answer):
    session: Annotated[answers.Text, Field(min_length=1)]
    expiry: Annotated[str, Field(pattern=r"^[0-9]{1,12}$")] | Annotated[int, Field(ge=0, lt=10**12)]


class _PanoIds(google.Answer):
    panoIds: list[google.PanoId | Annotated[str, Field(max_length=0)]]


Degrees = Annotated[float, Field(ge=-360.0, le=360.0)]
Pixel = Annotated[int, Field(ge=1, le=65_536)]


class _Metadata(google.Answer):
    panoId: google.PanoId
    imageWidth: Pixel
    imageHeight: Pixel
    tileWidth: Annotated[int, Field(ge=256, le=2048)]
    tileHeight: Annotated[int, Field(ge=256, le=2048)]
    lat: answers.Lat
    lng: answers.Lon
    heading: Degrees | None = None
    tilt: Annotated[float, Field(ge=0.0, le=180.0)] | None = None
    roll: Degrees | None = None
    date: google.Date | None = None
    copyright: answers.Text | None = None


class Level(NamedTuple):
    """One resolution of a panorama: its zoom, its size in pixels, the side of its tiles."""

    zoom: int
    width: int
    height: int
    tile_px: int

    @property
    def grid(self) -> list[tuple[int, int]]:
        """Column and row of every tile."""
        columns, rows = -(-self.width // self.tile_px), -(-self.height // self.tile_px)
        return [(column, row) for row in range(rows) for column in range(columns)]


def level_for(width: int, height: int, tile_px: int = 512, at_least: int = WIDTH_PX) -> Level:
    """Return the smallest level that is wide enough, or the full one.

    The full size lies at the zoom where one tile has grown to it by doublings: 5 for 13,312 as for 16,384 pixels, 3 for
    3,328. Each zoom below halves it, so levels of equal zoom differ from camera to camera.

    Args:
        width: Of the full panorama, from its metadata.
        height: Of the full panorama.
        tile_px: Side of a tile.
        at_least: Wanted width.
    """
    full = max(0, math.ceil(math.log2(width / tile_px)))
    zoom = min((z for z in range(full + 1) if -(-width >> full - z) >= at_least), default=full)
    return Level(zoom, -(-width >> full - zoom), -(-height >> full - zoom), tile_px)


class GoogleTilesPanoramas:
    """Panoramas from the Map Tiles API; needs ``CVGL_GOOGLE_KEY``.

    Pose: heading as told, ``pitch_deg = 90 - tilt``, roll as told. The signs of pitch and roll have not been calibrated
    on a real panorama; ``pose_source`` says ``map-tiles``, so that such rows can be found.

    Args:
        spacing_m: Grid that discovery asks along. Per location it finds one panorama.
        language: Of the session (BCP 47).
        region: Of the session (CLDR).
    """

    name = "google"
    attribution = google.ATTRIBUTION
    licence = google.LICENCE
    terms = google.TERMS

    def __init__(self, spacing_m: float = 25.0, language: str = "en-US", region: str = "US") -> None:
        self._spacing_m = google.check_spacing(spacing_m)
        self._base = base_url("CVGL_GOOGLE_TILES_URL", "https://tile.googleapis.com/v1")
        self._session_of = {"mapType": "streetview", "language": language, "region": region}
        self._token = ""
        self._renew_at_s = 0.0
        self._opening: asyncio.Task[str] | None = None

    def cost(self) -> Cost:
        """Return what a panorama takes."""
        return Cost(
            requests={urlsplit(self._base).netloc: _TILES_PER_PANORAMA + 1.0},
            bytes=_TILES_PER_PANORAMA * 50_000.0,
            usd=None,
            per_day=_TILES_PER_DAY // _TILES_PER_PANORAMA,
            note="8 tiles and 1 metadata request, for cameras of 16,384 pixels; those of 13,312 take 28 tiles, which "
            "makes 535 panoramas a day; the price of these tiles is not known here, see Google's price page; bytes "
            "are a guess of 50 kB per tile",
        )

    def check_access(self) -> None:
        """Raise `RecipeError` if there is no key."""
        google.key(self.name)

    def discovery(self, area: AreaOfInterest) -> dict[str, float]:
        """Return host to requests that `discover` sends at most.

        A session, one request per batch of locations, and the metadata of each panorama found, of which there is at
        most one per location.
        """
        num = sum(1 for _ in google.locations(area, self._spacing_m))
        return {urlsplit(self._base).netloc: 1.0 + math.ceil(num / MAX_LOCATIONS) + num}

    async def discover(self, area: AreaOfInterest, http: Http) -> AsyncIterator[PanoramaRef | FetchError]:
        """Yield the panoramas found from the locations of a grid; see `PanoramaSource.discover`."""
        seen: set[str] = set()
        for some in google.batches(google.locations(area, self._spacing_m), MAX_LOCATIONS):
            try:
                found = await self._pano_ids(some, http)
            except SourceStopped:
                raise
            except FetchError as error:
                yield error
                continue
            new = list(dict.fromkeys(pano_id for pano_id in found if pano_id and pano_id not in seen))
            seen.update(new)
            for ref in await google.together(self._ref(pano_id, http) for pano_id in new):
                if isinstance(ref, FetchError) or area.contains(ref.lon, ref.lat):
                    yield ref

    async def fetch(self, pano_id: str, http: Http) -> Panorama:
        """Return the panorama, 2048x1024; see `PanoramaSource.fetch`."""
        google.check_id(pano_id, self.name)
        found = await self._metadata(pano_id, http)
        level = level_for(found.imageWidth, found.imageHeight, found.tileWidth)
        responses = await google.together(self._tile(found.panoId, level, tile, http, pano_id) for tile in level.grid)
        tiles = {tile: response.body for tile, response in zip(level.grid, responses, strict=True)}
        try:
            image = await asyncio.to_thread(stitched, tiles, level)
        except FetchError as error:
            error.source, error.item = self.name, pano_id
            raise
        return Panorama(
            pano_id=pano_id,
            image=image,
            lon=found.lng,
            lat=found.lat,
            heading_deg=None if found.heading is None else found.heading % 360.0,
            pitch_deg=None if found.tilt is None else 90.0 - found.tilt,
            roll_deg=found.roll,
            captured=found.date or "",
            licence=self.licence,
            creator=found.copyright or "",
            pose_source="map-tiles",
            robots=responses[0].validators["robots"],
        )

    def close(self) -> None:
        """Do nothing; the connections belong to the `Http`."""

    async def _ref(self, pano_id: str, http: Http) -> PanoramaRef | FetchError:
        try:
            found = await self._metadata(pano_id, http)
        except SourceStopped:
            raise
        except FetchError as error:
            return error
        return PanoramaRef(pano_id=pano_id, lon=found.lng, lat=found.lat, captured=found.date or "")

    async def _pano_ids(self, some: list[LonLat], http: Http) -> list[str]:
        """Return one id per location, empty where there is none."""
        item = f"{len(some)} locations from {some[0].lat:.5f},{some[0].lon:.5f}"
        where = [{"lat": round(lat, 7), "lng": round(lon, 7)} for lon, lat in some]
        body = {"locations": where, "radius": google.radius_m(self._spacing_m)}
        response = await self._ask(http, "POST", "streetview/panoIds", {}, _TILES, item, body)
        found = answers.read(_PanoIds, response, source=self.name, item=item).panoIds
        if len(found) != len(some):
            text = f"unexpected answer: {len(found)} ids for {len(some)} locations"
            raise FetchError(text, source=self.name, item=item, outcome=Outcome.DECODE_ERROR)
        return found

    async def _metadata(self, pano_id: str, http: Http) -> _Metadata:
        response = await self._ask(http, "GET", "streetview/metadata", {"panoId": pano_id}, _METADATA, pano_id)
        found = answers.read(_Metadata, response, source=self.name, item=pano_id)
        if found.imageWidth != 2 * found.imageHeight or found.tileWidth != found.tileHeight:
            text = (
                f"a full panorama of square tiles was expected, this is {found.imageWidth}x{found.imageHeight} "
                f"in tiles of {found.tileWidth}x{found.tileHeight}"
            )
            raise FetchError(text, source=self.name, item=pano_id, outcome=Outcome.WRONG_SIZE)
        return found

    async def _tile(self, found_id: str, level: Level, tile: tuple[int, int], http: Http, item: str) -> Response:
        """Return a tile, once its size has been seen to be right: a wrong one spares the others."""
        column, row = tile
        path = f"streetview/tiles/{level.zoom}/{column}/{row}"
        response = await self._ask(http, "GET", path, {"panoId": found_id}, _TILES, item)
        width, height = google.size_of(response, source=self.name, item=item)
        cut = (level.width - column * level.tile_px, level.height - row * level.tile_px)
        if width not in (level.tile_px, cut[0]) or height not in (level.tile_px, cut[1]):
            text = f"tile {level.zoom}/{column}/{row} is {width}x{height} pixels, not {level.tile_px}x{level.tile_px}"
            raise FetchError(text, source=self.name, item=item, outcome=Outcome.WRONG_SIZE)
        return response

    async def _ask(
        self, http: Http, method: str, path: str, params: Mapping[str, str], quota: Quota, item: str, json: Any = None
    ) -> Response:
        """Send a request within the session; one that is refused is tried once more in a new session."""
        is_renewed = False
        while True:
            token = await self._session(http, item)
            response = await self._send(http, method, path, {**params, "session": token}, quota, item, json)
            error = _error(response, self.name, item)
            if error is None:
                return response
            if is_renewed or error.outcome is not Outcome.AUTH:
                raise error
            is_renewed = True
            if self._token == token:  # otherwise another request has renewed it already
                self._token = ""

    async def _send(
        self, http: Http, method: str, path: str, params: Mapping[str, str], quota: Quota, item: str, json: Any
    ) -> Response:
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in params.items())
        key = quote(google.key(self.name).reveal(), safe="")
        url = f"{self._base}/{path}?{f'{query}&' if query else ''}key={key}"
        return await http.request(
            method, url, json=json, accept=google.REFUSALS, quota=quota, source=self.name, item=item
        )

    async def _session(self, http: Http, item: str) -> str:
        """Return the token of a session that is valid for a while; whoever comes first opens it for all."""
        if self._token and time.time() < self._renew_at_s:
            return self._token
        opening = self._opening
        if opening is None or opening.done() or opening.get_loop() is not asyncio.get_running_loop():
            opening = self._opening = asyncio.ensure_future(self._open(http))
            opening.add_done_callback(_retrieved)
        try:
            return await asyncio.shield(opening)
        except FetchError as error:  # one for each who waited
            kind = SourceStopped if isinstance(error, SourceStopped) else FetchError
            raise kind(str(error), source=self.name, item=item, outcome=error.outcome) from None

    async def _open(self, http: Http) -> str:
        response = await self._send(http, "POST", "createSession", {}, _METADATA, "", self._session_of)
        error = _error(response, self.name, "")
        if error is not None:
            if error.outcome.is_transient and not isinstance(error, SourceStopped):
                raise error
            # Nothing in the request depends on an item, so no other fares better.
            outcome = error.outcome if isinstance(error, SourceStopped) else Outcome.AUTH
            raise SourceStopped(str(error), source=self.name, outcome=outcome)
        try:
            opened = answers.read(_Session, response, source=self.name, item="")
        except FetchError as unread:  # whose text may repeat the token
            text = f"createSession gives no session ({unread.outcome}): {response.url}"
            raise FetchError(text, source=self.name, outcome=unread.outcome) from None
        if len(opened.session) >= _TOKEN_CHARS:
            Secret("session", opened.session)  # masked in messages from now on
        renew_at_s = int(opened.expiry) - RENEW_BEFORE_S
        # A session that seems over as it begins tells that this clock is wrong; the service will say when it is over.
        self._renew_at_s = renew_at_s if renew_at_s > time.time() else math.inf
        self._token = opened.session
        return opened.session


def _error(response: Response, source: str, item: str) -> FetchError | None:
    """Return the error that a response stands for, by its status or in its body."""
    if response.status >= 400:
        return google.refusal(response, source=source, item=item)
    if response.body[:1] in (b"{", b" ", b"\n"):
        return google.error_inside(response, source=source, item=item)
    return None


def _retrieved(task: asyncio.Task[str]) -> None:
    """Look at a task's end, lest asyncio complain when everyone who waited for it was cancelled."""
    if not task.cancelled():
        task.exception()


class _Decoded(Mapping[tuple[int, int], Pixels]):
    """Tiles that are decoded when they are looked at, so that only one lies in memory."""

    def __init__(self, tiles: Mapping[tuple[int, int], bytes]) -> None:
        self._tiles = tiles

    def __getitem__(self, tile: tuple[int, int]) -> Pixels:
        return decode(self._tiles[tile])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._tiles)

    def __len__(self) -> int:
        return len(self._tiles)


def stitched(tiles: Mapping[tuple[int, int], bytes], level: Level) -> bytes:
    """Return the panorama of a level's encoded tiles, by column and row, as a JPEG of 2048x1024 pixels.

    Raises:
        FetchError: If a tile is missing, damaged or of another size, or if the whole shows nothing.
    """
    pixels = from_tiles(_Decoded(tiles), level.width, level.height, level.tile_px, out_width=WIDTH_PX)
    if not (pixels != pixels[0, 0]).any():
        raise FetchError("the panorama shows nothing: it is all of one color", outcome=Outcome.CONSTANT_TILE)
    return encode_jpeg(pixels)
