"""Google's Street View Static API: metadata, perspective views, signed addresses."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from cvgl_data.geo import distance_m
from cvgl_data.simulated_providers.exchange import JPEG, Answer, Ask, Route, image_answer, json_answer
from cvgl_data.simulated_providers.faults import DATA, PICTURE
from cvgl_data.simulated_providers.ids import google_id, google_position
from cvgl_data.simulated_providers.listing import parse_numbers, parse_whole
from cvgl_data.simulated_providers.pictures import Pictures, Station, encoded
from cvgl_data.simulated_providers.settings import GOOGLE_KEY, GOOGLE_SIGNING_SECRET, Settings
from cvgl_data.simulated_providers.views import Pixels, view

NAME = "google"
"""Whose panoramas these are; the Map Tiles API shows the same."""

COPYRIGHT = "© Simulated World"
MAX_SIDE_PX = 640
_RADIUS_M = 50.0
_MAX_RADIUS_M = 10_000.0
_TEXT = "text/plain; charset=utf-8"
_GRAY = 228


class StreetViewStatic:
    """Everything below ``/google-static``."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        self._settings = settings
        self._pictures = pictures

    def routes(self, provider: str) -> Sequence[Route]:
        """Return the routes; parts of the real path may be there."""
        start = r"(?:/maps/api)?(?:/streetview)?"
        return (
            Route(re.compile(rf"{start}/metadata"), DATA, self._metadata),
            Route(re.compile(rf"{start}/?"), PICTURE, self._image),
        )

    def error_in_200(self, ask: Ask) -> Answer:
        """Return the status for errors of the server."""
        return json_answer({"status": "UNKNOWN_ERROR"})

    def not_found(self, ask: Ask) -> Answer:
        """Return the error for unknown paths."""
        return Answer(status=404, body=b"Not Found", content_type=_TEXT)

    async def _metadata(self, ask: Ask, match: re.Match[str]) -> Answer:
        refusal = self._refusal(ask)
        if refusal:
            return json_answer({"error_message": refusal, "status": "REQUEST_DENIED"})
        status, station = await asyncio.to_thread(self._find, ask.query)
        if station is None:
            return json_answer({"status": status})
        return json_answer(
            {
                "copyright": COPYRIGHT,
                "date": f"{station.captured:%Y-%m}",
                "location": {"lat": station.lat, "lng": station.lon},
                "pano_id": google_id(station.lon, station.lat),
                "status": "OK",
            }
        )

    async def _image(self, ask: Ask, match: re.Match[str]) -> Answer:
        refusal = self._refusal(ask)
        if refusal:
            return Answer(status=403, body=refusal.encode(), content_type=_TEXT)
        shows_errors = ask.query.get("return_error_code", "false").lower() == "true"
        size = _size(ask.query.get("size", ""))
        angles = [parse_numbers(ask.query.get(name, value), 1) for name, value in (("pitch", "0"), ("fov", "90"))]
        heading = parse_numbers(ask.query.get("heading", "0"), 1)
        status, station = await asyncio.to_thread(self._find, ask.query)
        if size is None or None in angles or heading is None or status in ("INVALID_REQUEST", "NOT_FOUND"):
            return _gray(size) if not shows_errors else Answer(status=400, body=b"Bad Request", content_type=_TEXT)
        if station is None:
            return _gray(size) if not shows_errors else self.not_found(ask)
        pitch_deg, fov_deg = (numbers[0] for numbers in angles if numbers is not None)
        bearing_deg = heading[0] if "heading" in ask.query else _towards(station, ask.query)
        make = partial(
            _view_jpeg,
            heading_deg=bearing_deg - station.heading_deg,
            pitch_deg=min(max(pitch_deg, -90.0), 90.0),
            fov_deg=min(max(fov_deg, 10.0), 120.0),
            size=size,
        )
        name = f"view {bearing_deg} {pitch_deg} {fov_deg} {size}"
        return image_answer(await self._pictures.derived(station, name, make), station.captured.date())

    def _find(self, query: Mapping[str, str]) -> tuple[str, Station | None]:
        """Return a metadata status and the panorama that was asked for."""
        if "pano" in query:
            station = self._pictures.station(google_position(query["pano"]), NAME)
            return ("OK", station) if station else ("ZERO_RESULTS", None)
        if not query.get("location"):
            return "INVALID_REQUEST", None
        position = parse_numbers(query["location"], 2)
        radius = parse_numbers(query.get("radius", str(_RADIUS_M)), 1)
        if position is None:
            return "NOT_FOUND", None  # an address: this world has none
        if radius is None or radius[0] < 0 or abs(position[0]) > 90 or abs(position[1]) > 180:
            return "INVALID_REQUEST", None
        station = nearest(self._pictures, position[1], position[0], radius[0])
        return ("OK", station) if station else ("ZERO_RESULTS", None)

    def _refusal(self, ask: Ask) -> str:
        """Return why a request is denied, empty if it is not."""
        if not ask.query.get("key"):
            return "You must use an API key to authenticate each request to Google Maps Platform APIs."
        if ask.query["key"] != GOOGLE_KEY:
            return "The provided API key is invalid."
        path, found, signature = ask.raw_path.partition("&signature=")
        if not found:
            return "This request must be signed." if self._settings.google_signature_required else ""
        if sign(path, GOOGLE_SIGNING_SECRET) != signature:
            return "Unable to authenticate the request. Provided 'signature' is not valid for the provided API key."
        return ""


def sign(path_and_query: str, secret: str) -> str:
    """Return Google's signature, URL-safe base64 of an HMAC-SHA1, of an encoded path with its query."""
    digest = hmac.new(
        base64.urlsafe_b64decode(secret), path_and_query.encode("utf-8", "surrogateescape"), hashlib.sha1
    ).digest()
    return base64.urlsafe_b64encode(digest).decode()


def nearest(pictures: Pictures, lon: float, lat: float, radius_m: float) -> Station | None:
    """Return the nearest panorama within a radius."""
    found = pictures.around(lon, lat, min(radius_m, _MAX_RADIUS_M), NAME) if abs(lat) <= 85.0 else []
    return pictures.station(found[0][1], NAME) if found else None


def _view_jpeg(
    panorama: Pixels, *, heading_deg: float, pitch_deg: float, fov_deg: float, size: tuple[int, int]
) -> bytes:
    # Relative to the vehicle: the panorama is taken for level, however the car stood.
    return encoded(view(panorama, heading_deg, pitch_deg, fov_deg, *size))


def _gray(size: tuple[int, int] | None) -> Answer:
    width, height = size or (MAX_SIDE_PX, MAX_SIDE_PX)
    return Answer(body=encoded(np.full((height, width, 3), _GRAY, np.uint8)), content_type=JPEG)


def _size(text: str) -> tuple[int, int] | None:
    """Return width and height, cut to what is served."""
    sides = [parse_whole(part, 1, 10**6) for part in text.lower().split("x")]
    if len(sides) != 2 or None in sides:
        return None
    width, height = (min(side, MAX_SIDE_PX) for side in sides if side is not None)
    return width, height


def _towards(station: Station, query: Mapping[str, str]) -> float:
    """Return the bearing from a panorama to the location that was asked for, its own heading without one."""
    position = parse_numbers(query.get("location", ""), 2)
    if position is None:
        return station.heading_deg
    lat, lon = position
    north_m = float(distance_m(station.lon, station.lat, station.lon, lat)) * np.sign(lat - station.lat)
    east_m = float(distance_m(station.lon, station.lat, lon, station.lat)) * np.sign(lon - station.lon)
    return float(np.degrees(np.arctan2(east_m, north_m)) % 360.0)
