"""Mapillary: entities and search of the graph, vector tiles, pictures behind signed addresses that expire."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import cv2
import numpy as np

from cvgl_data.simulated_providers.exchange import (
    MVT,
    Answer,
    Ask,
    Refused,
    Route,
    html_answer,
    image_answer,
    json_answer,
)
from cvgl_data.simulated_providers.faults import DATA, SIGNED
from cvgl_data.simulated_providers.ids import mapillary_id, mapillary_position
from cvgl_data.simulated_providers.listing import parse_box, parse_whole, tile_box, vector_tile
from cvgl_data.simulated_providers.pictures import Pictures, Station, encoded
from cvgl_data.simulated_providers.settings import MAPILLARY_TOKEN, Settings
from cvgl_data.simulated_providers.views import Pixels, resized, view
from cvgl_data.simulation.panorama import pose
from cvgl_data.types import LonLat, Tile

MAX_IDS = 50
MAX_ROWS = 2000
MAX_AREA = 0.01
"""Square degrees of a search box; only smaller ones are searched."""

_NAME = "mapillary"
_FLAT_FOV_DEG = 70.0
_IMAGE_ZOOM = 14
_WIDTHS = {"thumb_256_url": 256, "thumb_1024_url": 1024, "thumb_2048_url": 2048, "thumb_original_url": 0}
_OPTIONAL = ("camera_parameters", "merge_cc", "mesh", "quality_score", "sfm_cluster")
_FILTERS = ("is_pano", "start_captured_at", "end_captured_at", "organization_id", "sequence_id")


class Mapillary:
    """Everything below ``/mapillary-graph``, ``/mapillary-tiles`` and ``/mapillary-cdn``."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        self._settings = settings
        self._pictures = pictures
        self._serial = itertools.count()  # of signed addresses: each is issued once

    def routes(self, provider: str) -> Sequence[Route]:
        """Return the routes of one of the prefixes."""
        n = r"(\d{1,9})"
        if provider == "mapillary-graph":
            return (
                Route(re.compile(r"/images"), DATA, self._images),
                Route(re.compile(r"/?"), DATA, self._by_ids),
                Route(re.compile(r"/(\d{1,20})"), DATA, self._entity),
            )
        if provider == "mapillary-tiles":
            tiles = rf"(?:/maps)?(?:/vtp)?/(mly1_public|mly1_computed_public)/2/{n}/{n}/{n}"
            return (Route(re.compile(tiles), DATA, self._tile),)
        return (Route(re.compile(r"/(\d{1,20})/(thumb_(?:256|1024|2048|original)_url)\.jpg"), SIGNED, self._picture),)

    def error_in_200(self, ask: Ask) -> Answer:
        """Return an error without the status that belongs to it."""
        return json_answer(_error("An unknown error has occurred.", 1))

    def not_found(self, ask: Ask) -> Answer:
        """Return the error for unknown paths."""
        if ask.provider != "mapillary-graph":
            return html_answer("404 Not Found", 404)
        return json_answer(_error("Unknown path components", 2500), 404)

    async def _entity(self, ask: Ask, match: re.Match[str]) -> Answer:
        _authorize(ask)
        fields = _fields(ask.query)
        station = self._pictures.station(mapillary_position(match[1]), _NAME)
        if station is None:
            text = (
                f"Unsupported get request. Object with ID '{match[1]}' does not exist, cannot be loaded due to "
                "missing permissions, or does not support this operation"
            )
            return json_answer(_error(text, 100, 33), 400)
        return json_answer(self._row(station, fields, ask))

    async def _by_ids(self, ask: Ask, match: re.Match[str]) -> Answer:
        _authorize(ask)
        if "ids" not in ask.query:
            raise _bad("Unsupported get request.")
        fields = _fields(ask.query)
        return json_answer({mapillary_id(s.lon, s.lat): self._row(s, fields, ask) for s in self._named(ask, "ids")})

    def _named(self, ask: Ask, parameter: str) -> list[Station]:
        ids = list(dict.fromkeys(part.strip() for part in ask.query[parameter].split(",")))
        if len(ids) > MAX_IDS:
            raise _bad(f"Too many IDs. Maximum: {MAX_IDS}. Provided: {len(ids)}.")
        stations = (self._pictures.station(mapillary_position(image_id), _NAME) for image_id in ids)
        return [station for station in stations if station is not None]

    async def _images(self, ask: Ask, match: re.Match[str]) -> Answer:
        _authorize(ask)
        fields = _fields(ask.query)
        if "image_ids" in ask.query:
            return json_answer({"data": [self._row(station, fields, ask) for station in self._named(ask, "image_ids")]})
        limit = parse_whole(ask.query.get("limit", str(MAX_ROWS)), 1, MAX_ROWS)
        if limit is None:
            raise _bad(f"(#100) Param limit must be a number between 1 and {MAX_ROWS}")
        box = parse_box(ask.query.get("bbox", ""))
        if box is None:
            raise _bad("(#100) Param bbox must be left,bottom,right,top in degrees")
        if (box.east - box.west) * (box.north - box.south) >= MAX_AREA or box.east < box.west:
            raise _bad(f"(#100) The bounding box must be smaller than {MAX_AREA} degrees square")
        conditions = {name: ask.query[name] for name in _FILTERS if name in ask.query}

        def find() -> list[Station]:
            stations = self._stations(self._pictures.within(box, _NAME))
            return list(islice((station for station in stations if self._passes(station, conditions)), limit))

        return json_answer({"data": [self._row(s, fields, ask) for s in await asyncio.to_thread(find)]})

    def _stations(self, positions: Iterable[LonLat]) -> Iterable[Station]:
        stations = (self._pictures.station(position, _NAME) for position in positions)
        return (station for station in stations if station is not None)

    def _passes(self, station: Station, conditions: Mapping[str, str]) -> bool:
        captured = f"{station.captured:%Y-%m-%dT%H:%M:%SZ}"
        for name, value in conditions.items():
            if (
                (name == "is_pano" and (value.lower() in ("true", "1")) == self._is_flat(station))
                or (name == "start_captured_at" and captured < value)
                or (name == "end_captured_at" and captured > value)
                or (name == "organization_id")
                or (name == "sequence_id" and value != _sequence(station))
            ):
                return False
        return True

    def _row(self, station: Station, fields: Sequence[str], ask: Ask) -> dict[str, Any]:
        """Return an entity; fields without a value are left out, as the graph does it."""
        image_id = mapillary_id(station.lon, station.lat)
        values = self._values(station)
        row: dict[str, Any] = {"id": image_id}
        for name in fields:
            if name in _WIDTHS:
                row[name] = self._signed_url(image_id, name, ask.origin)
            elif name in values:
                row[name] = values[name]
        return row

    def _values(self, station: Station) -> dict[str, Any]:
        is_flat, width = self._is_flat(station), self._settings.panorama_width
        values: dict[str, Any] = {
            "altitude": 12.5,
            "atomic_scale": 1.0,
            "camera_type": "perspective" if is_flat else "spherical",
            "captured_at": round(station.captured.timestamp() * 1000),
            "compass_angle": station.heading_deg,
            "creator": {"username": f"simulated_{_sequence(station)[:4]}", "id": "700100200300"},
            "exif_orientation": 1,
            "geometry": {"type": "Point", "coordinates": [station.lon, station.lat]},
            "width": width,
            "height": width * 3 // 4 if is_flat else width // 2,
            "is_pano": not is_flat,
            "make": "Simulated",
            "model": "Camera 1",
            "sequence": _sequence(station),
        }
        if not self._is_computed(station):
            return values
        # Where there is a reconstruction, what the device itself said was worse.
        east, north, turn = (self._settings.chance(name, station.key) - 0.5 for name in ("east", "north", "turn"))
        raw = [round(station.lon + east * 4e-5, 7), round(station.lat + north * 4e-5, 7)]
        values["geometry"] = {"type": "Point", "coordinates": raw}
        values["compass_angle"] = round((station.heading_deg + 20.0 * turn) % 360.0, 3) % 360.0
        values["computed_altitude"] = 2.5
        values["computed_compass_angle"] = station.heading_deg
        values["computed_geometry"] = {"type": "Point", "coordinates": [station.lon, station.lat]}
        values["computed_rotation"] = computed_rotation(station)
        return values

    def _is_computed(self, station: Station) -> bool:
        return self._settings.chance("computed", station.key) >= 0.2

    def _is_flat(self, station: Station) -> bool:
        return self._settings.chance("flat", _NAME, station.key) < self._settings.flat

    async def _tile(self, ask: Ask, match: re.Match[str]) -> Answer:
        if ask.query.get("access_token") != MAPILLARY_TOKEN:
            return _unauthorized()
        tileset, (z, x, y) = match[1], map(int, match.groups()[1:])
        if z > _IMAGE_ZOOM or x >= 2**z or y >= 2**z:
            return self.not_found(ask)
        if z < _IMAGE_ZOOM:  # coarser tiles list no images
            return Answer(content_type=MVT)
        tile, computed_only = Tile(x, y, z), tileset == "mly1_computed_public"

        def make() -> bytes:
            points = []
            for station in self._stations(self._pictures.within(tile_box(tile), _NAME)):
                if computed_only and not self._is_computed(station):
                    continue
                values = self._values(station)
                raw, angle = LonLat(*values["geometry"]["coordinates"]), values["compass_angle"]
                properties = {
                    "id": int(mapillary_id(station.lon, station.lat)),
                    "sequence_id": values["sequence"],
                    "captured_at": values["captured_at"],
                    "compass_angle": station.heading_deg if computed_only else angle,
                    "is_pano": values["is_pano"],
                }
                points.append((station.position if computed_only else raw, properties))
            return vector_tile(tile, "image", points)

        return Answer(body=await self._pictures.listed((_NAME, tileset, tile), make), content_type=MVT)

    def _signed_url(self, image_id: str, name: str, origin: str) -> str:
        expires = int(time.time() + self._settings.url_lifetime_s)
        serial = next(self._serial)
        signature = self._signature(image_id, name, expires, serial)
        return f"{origin}/mapillary-cdn/{image_id}/{name}.jpg?_nc={serial}&oe={expires:X}&oh={signature}"

    def _signature(self, image_id: str, name: str, expires: int, serial: int) -> str:
        text = f"{image_id}/{name}/{expires}/{serial}".encode()
        return hmac.new(f"simulated cdn {self._settings.seed}".encode(), text, hashlib.sha256).hexdigest()[:32]

    async def _picture(self, ask: Ask, match: re.Match[str]) -> Answer:
        image_id, name = match.groups()
        try:
            expires, serial = int(ask.query.get("oe", ""), 16), int(ask.query.get("_nc", ""))
        except ValueError:
            return html_answer("403 Forbidden: Bad URL hash", 403)
        if self._signature(image_id, name, expires, serial) != ask.query.get("oh"):
            return html_answer("403 Forbidden: Bad URL hash", 403)
        if time.time() >= expires:
            return html_answer("403 Forbidden: URL signature expired", 403)
        station = self._pictures.station(mapillary_position(image_id), _NAME)
        if station is None:
            return html_answer("404 Not Found", 404)
        is_flat, original = self._is_flat(station), self._settings.panorama_width
        width = _WIDTHS[name] or original
        if width == original and not is_flat:
            return image_answer(await self._pictures.panorama(station), station.captured.date())
        image = await self._pictures.derived(
            station, f"{_NAME} {is_flat} {width}", partial(_shown, is_flat=is_flat, width=width)
        )
        return image_answer(image, station.captured.date())


def computed_rotation(station: Station) -> list[float]:
    """Return the turn from the world (east, north, up) into the camera (right, down, forward) as axis times angle."""
    right, forward, up = pose(station.heading_deg, station.pitch_deg, station.roll_deg)
    vector, _ = cv2.Rodrigues(np.stack([right, -up, forward]))
    return [float(value) for value in vector.ravel()]


def _shown(panorama: Pixels, *, is_flat: bool, width: int) -> bytes:
    return encoded(
        view(panorama, 0.0, 0.0, _FLAT_FOV_DEG, width, width * 3 // 4)
        if is_flat
        else resized(panorama, width, width // 2)
    )


def _sequence(station: Station) -> str:
    """Return the sequence of an image, 22 characters: all of about a square kilometer."""
    return hashlib.sha256(f"{station.lon:.2f}/{station.lat:.2f}".encode()).hexdigest()[:22]


def _fields(query: Mapping[str, str]) -> list[str]:
    fields = [name.strip() for name in query.get("fields", "").split(",") if name.strip()]
    for name in fields:
        if name not in _KNOWN:
            raise _bad(f"(#100) Tried accessing nonexisting field ({name})")
    return fields


_KNOWN = {
    *("id", "altitude", "atomic_scale", "camera_type", "captured_at", "compass_angle", "computed_altitude"),
    *("computed_compass_angle", "computed_geometry", "computed_rotation", "creator", "exif_orientation", "geometry"),
    *("height", "width", "is_pano", "make", "model", "sequence"),
    *_OPTIONAL,
    *_WIDTHS,
}


def _authorize(ask: Ask) -> None:
    header = ask.headers.get("Authorization", "")
    token = header.removeprefix("OAuth ") if header.startswith("OAuth ") else ask.query.get("access_token")
    if token != MAPILLARY_TOKEN:
        raise Refused(_unauthorized())


def _unauthorized() -> Answer:
    return json_answer(
        _error("Invalid OAuth access token - Cannot parse access token", 190, kind="OAuthException"), 401
    )


def _bad(message: str) -> Refused:
    return Refused(json_answer(_error(message, 100), 400))


def _error(message: str, code: int, subcode: int | None = None, kind: str = "MLYApiException") -> dict[str, Any]:
    error: dict[str, Any] = {"message": message, "type": kind, "code": code, "fbtrace_id": "Simulated0"}
    if subcode is not None:
        error["error_subcode"] = subcode
    return {"error": error}
