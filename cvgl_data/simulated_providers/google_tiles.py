"""Google's Map Tiles API for Street View: sessions, ids at locations, metadata with poses, tiles of every level."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import re
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from cvgl_data.simulated_providers.exchange import Answer, Ask, Refused, Route, image_answer, json_answer
from cvgl_data.simulated_providers.faults import DATA, PICTURE
from cvgl_data.simulated_providers.google_static import COPYRIGHT, NAME, nearest
from cvgl_data.simulated_providers.ids import google_id, google_position
from cvgl_data.simulated_providers.listing import parse_numbers, parse_whole
from cvgl_data.simulated_providers.pictures import Pictures, Station, encoded
from cvgl_data.simulated_providers.settings import GOOGLE_KEY, Settings
from cvgl_data.simulated_providers.views import Pixels, level_tile, resized, view

MAX_LOCATIONS = 100
TILE_PX = 512
_RADIUS_M = 50.0
_LINK_M = 15.0
_THUMBNAIL_FOV_DEG = 90.0
_CAMERAS = ((0.5, 13312), (0.95, 16384), (1.0, 3328))
"""Cumulated shares and widths of the cameras."""


class StreetViewTiles:
    """Everything below ``/google-tiles``."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        self._settings = settings
        self._pictures = pictures
        self._sessions: dict[str, float] = {}  # token to the end of its life, seconds since 1970
        self._serial = itertools.count()

    def routes(self, provider: str) -> Sequence[Route]:
        """Return the routes; ``/v1`` may be left out."""
        tile = r"(?:/v1)?/streetview/tiles/(\d{1,2})/(\d{1,6})/(\d{1,6})"
        return (
            Route(re.compile(r"(?:/v1)?/createSession"), DATA, self._create_session, ("POST",)),
            Route(re.compile(r"(?:/v1)?/streetview/panoIds"), DATA, self._pano_ids, ("POST",)),
            Route(re.compile(r"(?:/v1)?/streetview/metadata"), DATA, self._metadata),
            Route(re.compile(tile), PICTURE, self._tile),
            Route(re.compile(r"(?:/v1)?/streetview/thumbnail"), PICTURE, self._thumbnail),
        )

    def error_in_200(self, ask: Ask) -> Answer:
        """Return an error without the status that belongs to it."""
        return json_answer(_error(500, "Internal error encountered.", "INTERNAL"))

    def not_found(self, ask: Ask) -> Answer:
        """Return the error for what is not there."""
        return json_answer(_error(404, "Requested entity was not found.", "NOT_FOUND"), 404)

    async def _create_session(self, ask: Ask, match: re.Match[str]) -> Answer:
        _check_key(ask)
        data = ask.data()
        if data.get("mapType") != "streetview" or not all(
            isinstance(data.get(name), str) and data[name] for name in ("language", "region")
        ):
            raise _bad("Request contains an invalid argument: mapType, language and region are required.")
        name = f"session {self._settings.seed} {next(self._serial)}"
        token = hashlib.sha256(name.encode()).hexdigest()[:40]
        expiry = int(time.time() + self._settings.session_lifetime_s)
        self._sessions[token] = expiry
        return json_answer(
            {
                "session": token,
                "expiry": str(expiry),
                "tileWidth": TILE_PX,
                "tileHeight": TILE_PX,
                "imageFormat": "jpeg",
            }
        )

    async def _pano_ids(self, ask: Ask, match: re.Match[str]) -> Answer:
        self._check_session(ask)
        data = ask.data()
        locations, radius = data.get("locations"), data.get("radius", _RADIUS_M)
        if not isinstance(locations, list) or not 0 < len(locations) <= MAX_LOCATIONS:
            raise _bad(f"locations: between 1 and {MAX_LOCATIONS} are required.")
        positions = [_position(location) for location in locations]
        radius_m = parse_numbers(str(radius), 1)
        if radius_m is None or radius_m[0] < 0:
            raise _bad("radius: must be a number of meters.")

        def find() -> list[str]:
            stations = [nearest(self._pictures, lon, lat, radius_m[0]) for lon, lat in positions]
            return [google_id(station.lon, station.lat) if station else "" for station in stations]

        return json_answer({"panoIds": await asyncio.to_thread(find)})

    async def _metadata(self, ask: Ask, match: re.Match[str]) -> Answer:
        self._check_session(ask)
        if "panoId" in ask.query:
            station = self._pictures.station(google_position(ask.query["panoId"]), NAME)
        else:
            lon, lat = _position({"lat": ask.query.get("lat"), "lng": ask.query.get("lng")})
            radius = parse_numbers(ask.query.get("radius", str(_RADIUS_M)), 1)
            if radius is None or radius[0] < 0:
                raise _bad("radius: must be a number of meters.")
            station = await asyncio.to_thread(nearest, self._pictures, lon, lat, radius[0])
        if station is None:
            return self.not_found(ask)
        return json_answer(await asyncio.to_thread(self._described, station))

    def _described(self, station: Station) -> dict[str, Any]:
        pano_id, width = google_id(station.lon, station.lat), self._width(station)
        links = []
        for meters, (lon, lat) in self._pictures.around(station.lon, station.lat, _LINK_M, NAME):
            if meters > 0.0:
                east, north = (lon - station.lon) * math.cos(math.radians(lat)), lat - station.lat
                heading_deg = round(math.degrees(math.atan2(east, north)) % 360.0, 2)
                links.append({"panoId": google_id(lon, lat), "heading": heading_deg, "text": "Simulated Street"})
        return {
            "panoId": pano_id,
            "imageWidth": width,
            "imageHeight": width // 2,
            "tileWidth": TILE_PX,
            "tileHeight": TILE_PX,
            "lat": station.lat,
            "lng": station.lon,
            "originalLat": round(station.lat, 4),
            "originalLng": round(station.lon, 4),
            "originalElevationAboveEgm96": 2.5,
            "heading": station.heading_deg,
            "tilt": 90.0 - station.pitch_deg,  # 90 is level, less looks up
            "roll": station.roll_deg,
            "imageryType": "outdoor",
            "date": f"{station.captured:%Y-%m}",
            "copyright": COPYRIGHT,
            "reportProblemLink": f"https://cbks0.google.com/cbk?cb_client=simulated&panoid={pano_id}",
            "addressComponents": [],
            "links": links,
        }

    async def _tile(self, ask: Ask, match: re.Match[str]) -> Answer:
        station = self._wanted(ask)
        if station is None:
            return self.not_found(ask)
        level, column, row = map(int, match.groups())
        width = self._width(station)
        deepest = math.ceil(math.log2(width / TILE_PX))
        level_width = width >> max(deepest - level, 0)
        if level > deepest or column * TILE_PX >= level_width or row * TILE_PX >= level_width // 2:
            return self.not_found(ask)
        small = min(level_width, self._settings.panorama_width)
        pixels = await self._pictures.derived_pixels(
            station, f"width {small}", partial(resized, width=small, height=small // 2)
        )

        def make() -> bytes:
            return encoded(level_tile(pixels, level_width, column, row, TILE_PX))

        name = (NAME, station.key, level_width, column, row)
        return image_answer(await self._pictures.listed(name, make), station.captured.date())

    async def _thumbnail(self, ask: Ask, match: re.Match[str]) -> Answer:
        station = self._wanted(ask)
        width = parse_whole(ask.query.get("width", "400"), 16, 600)
        height = parse_whole(ask.query.get("height", "250"), 16, 600)
        if width is None or height is None or min(width, height) > 250:
            raise _bad("width and height: must be between 16x16 and 250x600.")
        if station is None:
            return self.not_found(ask)
        make = partial(_thumbnail_jpeg, width=width, height=height)
        image = await self._pictures.derived(station, f"thumbnail {width} {height}", make)
        return image_answer(image, station.captured.date())

    def _wanted(self, ask: Ask) -> Station | None:
        self._check_session(ask)
        if "panoId" not in ask.query:
            raise _bad("panoId: is required.")
        return self._pictures.station(google_position(ask.query["panoId"]), NAME)

    def _width(self, station: Station) -> int:
        chance = self._settings.chance("camera", station.key)
        return next(width for share, width in _CAMERAS if chance < share)

    def _check_session(self, ask: Ask) -> None:
        _check_key(ask)
        expiry = self._sessions.get(ask.query.get("session", ""))
        if expiry is None:
            raise _bad("session: The session token is missing or not valid.")
        if time.time() >= expiry:
            raise _bad("session: The session token has expired.")


def _thumbnail_jpeg(panorama: Pixels, *, width: int, height: int) -> bytes:
    return encoded(view(panorama, 0.0, 0.0, _THUMBNAIL_FOV_DEG, width, height))


def _check_key(ask: Ask) -> None:
    key = ask.query.get("key") or ask.headers.get("X-Goog-Api-Key")
    if not key:
        text = "Method doesn't allow unregistered callers. Please use API Key to call this API."
        raise Refused(json_answer(_error(403, text, "PERMISSION_DENIED"), 403))
    if key != GOOGLE_KEY:
        raise _bad("API key not valid. Please pass a valid API key.")


def _position(location: Any) -> tuple[float, float]:
    """Return lon and lat of ``{"lat": ..., "lng": ...}``."""
    if isinstance(location, dict):
        numbers = parse_numbers(f"{location.get('lat')},{location.get('lng')}", 2)
        if numbers is not None and abs(numbers[0]) <= 90 and abs(numbers[1]) <= 180:
            return numbers[1], numbers[0]
    raise _bad("Every location needs lat and lng in degrees.")


def _bad(message: str) -> Refused:
    return Refused(json_answer(_error(400, message, "INVALID_ARGUMENT"), 400))


def _error(code: int, message: str, status: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status}}
