"""Panoramax: a STAC search, vector tiles of what there is, and pictures in three sizes."""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import cv2
import numpy as np

from cvgl_data.simulated_providers.exchange import MVT, Answer, Ask, Refused, Route, image_answer, json_answer
from cvgl_data.simulated_providers.faults import DATA, PICTURE
from cvgl_data.simulated_providers.ids import panoramax_id, panoramax_position
from cvgl_data.simulated_providers.listing import parse_box, parse_numbers, parse_whole, tile_box, vector_tile
from cvgl_data.simulated_providers.pictures import Pictures, Station, encoded
from cvgl_data.simulated_providers.settings import Settings
from cvgl_data.simulated_providers.views import Pixels, resized, view
from cvgl_data.types import BBox, LonLat, Tile

LICENCES = ("etalab-2.0", "CC-BY-SA-4.0", "ODbL-1.0")
"""Licences of the pictures; the producer decides."""

_NAME = "panoramax"
_SD_WIDTH, _THUMB_WIDTH = 2048, 500
_PICTURE_ZOOM = 15
_BUFFER = 64 / 4096  # pictures near an edge are in both tiles
_LIMIT, _MAX_LIMIT = 10, 1000
_FLAT_FOV_DEG = 75
_UUID = r"([0-9a-fA-F-]{36})"
_LICENCE_PAGES = {
    "etalab-2.0": "https://www.etalab.gouv.fr/licence-ouverte-open-licence/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "ODbL-1.0": "https://opendatacommons.org/licenses/odbl/1-0/",
}


class Panoramax:
    """Everything below ``/panoramax``."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        self._settings = settings
        self._pictures = pictures

    def routes(self, provider: str) -> Sequence[Route]:
        """Return the routes; ``/api`` may be left out."""
        n = r"(\d{1,9})"
        return (
            Route(re.compile(r"(?:/api)?/search"), DATA, self._search),
            Route(re.compile(rf"(?:/api)?/map/{n}/{n}/{n}\.mvt"), DATA, self._map),
            Route(re.compile(rf"(?:/api)?/pictures/{_UUID}/(hd|sd|thumb)\.(jpg|webp)"), PICTURE, self._picture),
            Route(re.compile(rf"(?:/api)?/collections/{_UUID}/items/{_UUID}"), DATA, self._item),
        )

    def error_in_200(self, ask: Ask) -> Answer:
        """Return an error without the status that belongs to it."""
        return json_answer({"message": "Internal server error", "status_code": 500})

    def not_found(self, ask: Ask) -> Answer:
        """Return the error for unknown paths and pictures."""
        return json_answer({"message": "Requested URL was not found on the server", "status_code": 404}, 404)

    async def _search(self, ask: Ask, match: re.Match[str]) -> Answer:
        limit = parse_whole(ask.query.get("limit", str(_LIMIT)), 1, _MAX_LIMIT)
        if limit is None:
            raise _bad(f"limit parameter should be an integer between 1 and {_MAX_LIMIT}")
        stations = [
            station
            for station in await asyncio.to_thread(self._found, ask.query, limit)
            if _overlaps(station.captured, ask.query.get("datetime", ""))
        ]
        features = [self._feature(station, ask) for station in stations]
        if "collections" in ask.query:
            wanted = _listed(ask.query["collections"])
            features = [feature for feature in features if feature["collection"] in wanted]
        answer = {"type": "FeatureCollection", "features": features, "links": []}
        return json_answer(answer, content_type="application/geo+json")

    def _found(self, query: Mapping[str, str], limit: int) -> list[Station]:
        if "ids" in query:
            ids = _listed(query["ids"])
            stations = (self._pictures.station(panoramax_position(picture_id), _NAME) for picture_id in ids)
            return [station for station in stations if station is not None][:limit]
        if "place_position" in query:
            return self._around(query, limit)
        box = BBox(-180.0, -85.0, 180.0, 85.0)
        if "bbox" in query:
            given = parse_box(query["bbox"].strip("[] "))
            if given is None:
                raise _bad("Parameter bbox must be in format [minX, minY, maxX, maxY]")
            box = given
        return self._stations(islice(self._pictures.within(box, _NAME), limit))

    def _around(self, query: Mapping[str, str], limit: int) -> list[Station]:
        position = parse_numbers(query["place_position"], 2)
        near_m, _, far_m = query.get("place_distance", "3-15").partition("-")
        low_m, high_m = parse_numbers(near_m, 1), parse_numbers(far_m, 1)
        if position is None or abs(position[0]) > 180 or abs(position[1]) > 85:
            raise _bad("Parameter place_position must be coordinates in lat/lon format like '2.29,48.85'")
        if low_m is None or high_m is None or not 0 <= low_m[0] <= high_m[0] <= 1000:
            raise _bad("Parameter place_distance must be a range of distances in meters like '3-40'")
        lon, lat = position
        found = self._pictures.around(lon, lat, high_m[0], _NAME)
        return self._stations(at for distance_m, at in found if distance_m >= low_m[0])[:limit]

    def _stations(self, positions: Iterable[LonLat]) -> list[Station]:
        stations = (self._pictures.station(position, _NAME) for position in positions)
        return [station for station in stations if station is not None]

    async def _item(self, ask: Ask, match: re.Match[str]) -> Answer:
        station = self._pictures.station(panoramax_position(match[2]), _NAME)
        if station is None or _collection(station) != match[1]:
            return self.not_found(ask)
        return json_answer(self._feature(station, ask), content_type="application/geo+json")

    async def _map(self, ask: Ask, match: re.Match[str]) -> Answer:
        z, x, y = map(int, match.groups())
        if z > _PICTURE_ZOOM or x >= 2**z or y >= 2**z:
            raise _bad("X, Y or Z parameter is out of bounds")
        if z < _PICTURE_ZOOM:  # coarser tiles list no pictures
            return Answer(content_type=MVT)
        tile = Tile(x, y, z)

        def make() -> bytes:
            box = tile_box(tile, _BUFFER)
            stations = self._stations(self._pictures.within(box, _NAME))
            return vector_tile(
                tile, "pictures", ((station.position, self._properties(station)) for station in stations)
            )

        return Answer(body=await self._pictures.listed((_NAME, tile), make), content_type=MVT)

    def _properties(self, station: Station) -> dict[str, Any]:
        width, height = self._size(station)
        return {
            "id": panoramax_id(station.lon, station.lat),
            "account_id": str(uuid.uuid5(uuid.NAMESPACE_URL, self._producer(station))),
            "ts": f"{station.captured:%Y-%m-%dT%H:%M:%SZ}",
            "heading": int(station.heading_deg),
            "sequences": json.dumps([_collection(station)]),
            "type": "flat" if self._is_flat(station) else "equirectangular",
            "model": "Simulated Camera 1",
            "resolution": f"{width}x{height}",
        }

    def _feature(self, station: Station, ask: Ask) -> dict[str, Any]:
        picture_id, collection = panoramax_id(station.lon, station.lat), _collection(station)
        api = f"{ask.origin}/panoramax/api"
        assets = f"{api}/pictures/{picture_id}"
        licence, producer = self._licence(station), self._producer(station)
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": picture_id,
            "collection": collection,
            "bbox": [station.lon, station.lat, station.lon, station.lat],
            "geometry": {"type": "Point", "coordinates": [station.lon, station.lat]},
            "providers": [{"name": producer, "roles": ["producer"]}],
            "properties": self._stac(station, licence, producer),
            "links": [
                {"rel": "root", "href": f"{api}/", "type": "application/json"},
                {"rel": "self", "href": f"{api}/collections/{collection}/items/{picture_id}"},
                {"rel": "license", "href": _LICENCE_PAGES[licence], "title": f"License for this object ({licence})"},
            ],
            "assets": {
                "hd": {"href": f"{assets}/hd.jpg", "type": "image/jpeg", "roles": ["data"]},
                "sd": {"href": f"{assets}/sd.jpg", "type": "image/jpeg", "roles": ["visual"]},
                "thumb": {"href": f"{assets}/thumb.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
            },
            "asset_templates": {"tiles": {"href": f"{assets}/tiled/{{TileCol}}_{{TileRow}}.jpg"}},
        }

    def _stac(self, station: Station, licence: str, producer: str) -> dict[str, Any]:
        # One in ten headings has been turned once too often, one in eight pictures does not know its tilt.
        turned = 360.0 if self._settings.chance("turned", station.key) < 0.1 else 0.0
        knows_tilt = self._settings.chance("tilt", station.key) >= 0.125
        return {
            "datetime": f"{station.captured:%Y-%m-%dT%H:%M:%SZ}",
            "created": f"{station.captured + datetime.timedelta(days=9):%Y-%m-%dT%H:%M:%SZ}",
            "license": licence,
            "view:azimuth": station.heading_deg + turned,
            "pers:pitch": station.pitch_deg if knows_tilt else None,
            "pers:roll": station.roll_deg if knows_tilt else None,
            "pers:interior_orientation": {
                "field_of_view": _FLAT_FOV_DEG if self._is_flat(station) else 360,
                "camera_manufacturer": "Simulated",
                "camera_model": "Camera 1",
                "sensor_array_dimensions": list(self._size(station)),
            },
            "geovisio:producer": producer,
            "geovisio:status": "ready",
            "quality:horizontal_accuracy": 1.8,
        }

    async def _picture(self, ask: Ask, match: re.Match[str]) -> Answer:
        picture_id, size, suffix = match.groups()
        station = self._pictures.station(panoramax_position(picture_id), _NAME)
        if station is None:
            return self.not_found(ask)
        width, height = self._size(station)
        sizes = {"hd": width, "sd": _SD_WIDTH, "thumb": _THUMB_WIDTH}
        day = station.captured.date()
        is_flat = self._is_flat(station)
        if suffix == "jpg" and not is_flat and sizes[size] == width:
            return image_answer(await self._pictures.panorama(station), day)
        shape = (sizes[size], round(sizes[size] * height / width))
        make = partial(_shown, is_flat=is_flat, shape=shape, encode=_webp if suffix == "webp" else encoded)
        image = await self._pictures.derived(station, f"{is_flat} {shape} {suffix}", make)
        return image_answer(image, day, "image/webp" if suffix == "webp" else "image/jpeg")

    def _size(self, station: Station) -> tuple[int, int]:
        width = self._settings.panorama_width
        return (width, width * 3 // 4) if self._is_flat(station) else (width, width // 2)

    def _is_flat(self, station: Station) -> bool:
        return self._settings.chance("flat", _NAME, station.key) < self._settings.flat

    def _producer(self, station: Station) -> str:
        return f"Simulated City {1 + int(3 * self._settings.chance('producer', _collection(station)))}"

    def _licence(self, station: Station) -> str:
        return LICENCES[int(self._producer(station)[-1]) - 1]


def _shown(panorama: Pixels, *, is_flat: bool, shape: tuple[int, int], encode: Callable[[Pixels], bytes]) -> bytes:
    width, height = shape
    return encode(
        view(panorama, 0.0, 0.0, _FLAT_FOV_DEG, width, height) if is_flat else resized(panorama, width, height)
    )


def _webp(pixels: Pixels) -> bytes:
    _, image = cv2.imencode(".webp", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, 85])
    return bytes(image)


def _collection(station: Station) -> str:
    """Return the sequence of a picture: all of about a square kilometer."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"sequence/{station.lon:.2f}/{station.lat:.2f}"))


def _listed(text: str) -> list[str]:
    """Return the values of ``a,b`` or ``["a","b"]``."""
    return [part.strip(" \"'") for part in text.strip("[] ").split(",") if part.strip(" \"'")]


def _overlaps(captured: datetime.datetime, interval: str) -> bool:
    """Whether a moment lies in a STAC interval: ``start/end``, either may be ``..``; a moment alone means itself."""
    start, slash, end = interval.partition("/")
    bounds: list[datetime.datetime | None] = []
    for text in (start, end if slash else start):
        if text in ("", ".."):
            bounds.append(None)
            continue
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise _bad("Parameter datetime is not a valid date or interval") from None
        bounds.append(moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC))
    low, high = bounds
    return (low is None or captured >= low) and (high is None or captured <= high)


def _bad(message: str) -> Refused:
    return Refused(json_answer({"message": message, "status_code": 400}, 400))
