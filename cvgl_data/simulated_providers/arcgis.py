"""The part of ArcGIS's REST conventions that the imagery services use: formats, errors, spatial queries."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from cvgl_data.geo import lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.simulated_providers.coverage import FIELDS, Footprint
from cvgl_data.simulated_providers.exchange import Answer, Refused, html_answer, json_answer
from cvgl_data.types import EARTH_CIRCUMFERENCE_M, TILE_PX, BBox

MAX_RECORDS = 100
_MAX_OFFSET = 100_000
_DEGREES = (4326,)
_MERCATOR = (3857, 102100, 102113, 900913)
_TEXT = "text/plain;charset=utf-8"


def reply(value: Any, parameters: Mapping[str, str], status: int = 200) -> Answer:
    """Return a value in the format that ``f`` asks for; without it that is a page for people."""
    kind = parameters.get("f", "html")
    if kind == "html":
        return html_answer("ArcGIS REST Services Directory (simulated)")
    if kind == "pjson":
        body = json.dumps(value, indent=1, ensure_ascii=False).encode()
        return Answer(status=status, body=body, content_type=_TEXT)
    if kind == "json":
        return json_answer(value, status)
    return json_answer(_error(400, "Output format not supported."))


def error_answer(code: int, message: str, status: int = 200, details: tuple[str, ...] = ()) -> Answer:
    """Return an error the way these services do, by default inside a success."""
    return json_answer(_error(code, message, details), status)


def _error(code: int, message: str, details: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "details": list(details)}}


def query_box(parameters: Mapping[str, str]) -> BBox:
    """Return the geometry of a query as a box in degrees; a point is a box without extent.

    Raises:
        Refused: If there is none, or it makes no sense.
    """
    kind = parameters.get("geometryType", "esriGeometryEnvelope")
    names = {"esriGeometryPoint": ("x", "y"), "esriGeometryEnvelope": ("xmin", "ymin", "xmax", "ymax")}.get(kind)
    text = parameters.get("geometry", "").strip()
    if names is None or not text:
        raise Refused(error_answer(400, "Cannot perform query. Invalid query parameters."))
    # Without a reference system coordinates are those of the map: Mercator meters.
    wkid = _wkid(parameters.get("inSR", ""))
    try:
        if text.startswith("{"):
            value = json.loads(text)
            wkid = wkid or _wkid(value.get("spatialReference", {}))
            numbers = [float(value[name]) for name in names]
        else:
            numbers = [float(part) for part in text.split(",")]
    except (ValueError, KeyError, TypeError, AttributeError):
        numbers = []
    if len(numbers) != len(names) or not all(map(math.isfinite, numbers)):
        raise Refused(error_answer(400, "Unable to complete operation.", details=("'geometry' parameter is invalid",)))
    xmin, ymin, xmax, ymax = numbers if len(numbers) == 4 else numbers * 2
    if wkid in _DEGREES:
        return BBox(xmin, ymin, xmax, ymax)
    if wkid is not None and wkid not in _MERCATOR:
        raise Refused(error_answer(400, "Unable to complete operation.", details=("'inSR' parameter is invalid",)))
    half = EARTH_CIRCUMFERENCE_M / 2
    to_px = TILE_PX / EARTH_CIRCUMFERENCE_M
    (west, east), (south, north) = lonlat_from_pixel(
        [(xmin + half) * to_px, (xmax + half) * to_px], [(half - ymin) * to_px, (half - ymax) * to_px], 0
    )
    return BBox(float(west), float(south), float(east), float(north))


def query_answer(found: Iterable[Footprint], parameters: Mapping[str, str]) -> Answer:
    """Return footprints as the features of a layer's query, at most `MAX_RECORDS`."""
    wanted = [name.strip() for name in parameters.get("outFields", "OBJECTID").split(",") if name.strip()]
    fields = list(FIELDS) if "*" in wanted else wanted
    unknown = [name for name in fields if name not in FIELDS]
    try:
        offset = int(parameters.get("resultOffset", "0"))
        count = min(int(parameters.get("resultRecordCount", MAX_RECORDS)), MAX_RECORDS)
    except ValueError:
        offset = count = -1
    if unknown or not 0 <= offset <= _MAX_OFFSET or count < 0:
        return error_answer(400, "Failed to execute query.")
    with_geometry = parameters.get("returnGeometry", "true").lower() != "false"
    out_wkid = _wkid(parameters.get("outSR", "")) or 102100
    features = []
    for footprint in islice(found, offset, offset + count + 1):
        feature: dict[str, Any] = {"attributes": {name: footprint.attributes[name] for name in fields}}
        if with_geometry:
            feature["geometry"] = {"rings": [_ring(footprint.cell.bounds, out_wkid)]}
        features.append(feature)
    answer: dict[str, Any] = {"displayFieldName": "NICE_NAME", "fields": [{"name": name} for name in fields]}
    if with_geometry:
        answer["geometryType"] = "esriGeometryPolygon"
        answer["spatialReference"] = {"wkid": out_wkid}
    answer["features"] = features[:count]
    if len(features) > count:
        answer["exceededTransferLimit"] = True
    return reply(answer, parameters)


def _ring(box: BBox, wkid: int) -> list[list[float]]:
    """Return a box as a closed ring, clockwise."""
    corners = [
        (box.west, box.south),
        (box.west, box.north),
        (box.east, box.north),
        (box.east, box.south),
        (box.west, box.south),
    ]
    if wkid in _DEGREES:
        return [list(corner) for corner in corners]
    lon, lat = zip(*corners, strict=True)
    x, y = pixel_from_lonlat(lon, lat, 0)
    meters = EARTH_CIRCUMFERENCE_M / TILE_PX
    half = EARTH_CIRCUMFERENCE_M / 2
    return [[float(a * meters - half), float(half - b * meters)] for a, b in zip(x, y, strict=True)]


def _wkid(reference: Any) -> int | None:
    """Return the number of a reference system given as number, text or JSON object."""
    if isinstance(reference, str) and reference.strip().startswith("{"):
        try:
            reference = json.loads(reference)
        except ValueError:
            return None
    if isinstance(reference, Mapping):
        reference = reference.get("wkid")
    try:
        return int(reference)
    except (TypeError, ValueError):
        return None
