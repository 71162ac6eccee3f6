"""When, by whom and how finely imagery was captured: polygons of a metadata layer, joined to positions."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import shapely
from pydantic import BaseModel, ConfigDict
from shapely.geometry.base import BaseGeometry

from cvgl_data.errors import FetchError
from cvgl_data.http.answers import check
from cvgl_data.sources.esri.refusals import json_refusal, plain
from cvgl_data.types import BBox, LonLat

MAX_FEATURES = 100
"""An answer with so many features may lack some: it is the services' ``maxRecordCount``."""

_EPOCH = datetime.datetime(1970, 1, 1)
_YEARS = range(1900, 2200)


@dataclass(frozen=True, slots=True)
class Capture:
    """What is known of the imagery at one place."""

    captured: str = ""
    """ISO 8601 day, UTC."""
    provider: str = ""
    gsd_m: float | None = None
    """Ground metres per pixel of the original."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The area in which a `Capture` holds, and the zooms at which it is shown."""

    capture: Capture
    area: BaseGeometry
    """Polygons in degrees."""
    min_zoom: int = 0
    max_zoom: int = 99


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    features: list[Any]
    exceededTransferLimit: bool | None = None


class _Geometry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    rings: list[list[list[float]]]


class _Feature(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    attributes: dict[str, Any]
    geometry: _Geometry


def parse_footprints(
    value: Any, bounds: BBox, *, gsd_field: str, source: str, item: str
) -> tuple[list[Footprint], bool]:
    """Return the footprints of a query's answer, and whether there may be more than it could hold.

    Features without a usable area are left out; a field that is missing, null or senseless is unknown.

    Args:
        value: Decoded JSON.
        bounds: The envelope asked for; areas are cut to it.
        gsd_field: ``SRC_RES`` or ``SAMP_RES``.
        source: Name of the source, for errors.
        item: The block, for errors.

    Raises:
        FetchError: If it is no answer, or the error in its place.
    """
    refusal = json_refusal(value, where=item, source=source, item=item)
    if refusal is not None:
        raise refusal
    answer = check(_Answer, value, source=source, item=item)
    is_full = bool(answer.exceededTransferLimit) or len(answer.features) >= MAX_FEATURES
    found = (_footprint(feature, bounds, gsd_field, source, item) for feature in answer.features)
    return [footprint for footprint in found if footprint is not None], is_full


class Footprints:
    """Footprints that can be asked what holds at a position."""

    def __init__(self, footprints: Sequence[Footprint] = ()) -> None:
        self._footprints = list(footprints)
        self._areas = [footprint.area for footprint in self._footprints]
        shapely.prepare(self._areas)
        self._tree = shapely.STRtree(self._areas)

    def at(self, position: LonLat, zoom: int | None = None) -> Capture:
        """Return the capture at a position.

        Where several footprints overlap, the finest counts, since finer imagery is shown above coarser; among equals
        the newest. One of unknown resolution counts as the coarsest.

        Args:
            position: Where.
            zoom: Only footprints that are shown at this zoom; ``None`` for all.
        """
        point = shapely.Point(position)
        inside: list[Capture] = [
            footprint.capture
            for footprint in (self._footprints[index] for index in self._tree.query(point))
            if (zoom is None or footprint.min_zoom <= zoom <= footprint.max_zoom)
            and shapely.intersects(footprint.area, point)
        ]
        if not inside:
            return Capture()
        finest_m = min(_coarseness(capture) for capture in inside)
        finest = (capture for capture in inside if _coarseness(capture) == finest_m)
        return max(finest, key=lambda capture: (capture.captured, capture.provider))


def _coarseness(capture: Capture) -> float:
    return math.inf if capture.gsd_m is None else capture.gsd_m


def _footprint(value: Any, bounds: BBox, gsd_field: str, source: str, item: str) -> Footprint | None:
    try:
        feature = check(_Feature, value, source=source, item=item)
    except FetchError:
        return None
    area = _area(feature.geometry.rings, bounds)
    if area is None:
        return None
    fields = feature.attributes
    gsd_m = _number(fields.get(gsd_field))
    levels = (_number(fields.get("MinMapLevel")), _number(fields.get("MaxMapLevel")))
    return Footprint(
        Capture(
            captured=_day_of_milliseconds(fields.get("SRC_DATE2")) or _day_of_digits(fields.get("SRC_DATE")),
            provider=plain(fields.get("NICE_DESC")),
            gsd_m=gsd_m if gsd_m is not None and 0 < gsd_m < 1e6 else None,
        ),
        area,
        min_zoom=0 if levels[0] is None else math.ceil(levels[0]),
        max_zoom=99 if levels[1] is None else math.floor(levels[1]),
    )


def _area(rings: list[list[list[float]]], bounds: BBox) -> BaseGeometry | None:
    """Return what the rings enclose inside the bounds, ``None`` if that is nothing or nonsense.

    Esri lists outer rings and holes in one list, told apart by their sense. Here whatever lies inside an odd number of
    rings is inside, which is the same for areas that do not overlap themselves, and holds with the sense wrong too.
    """
    kept = [ring for ring in rings if len(ring) >= 4]
    if not kept or not all(_is_position(position) for ring in kept for position in ring):
        return None
    flat = [[(position[0], position[1]) for position in ring] for ring in kept]
    try:
        polygon = shapely.Polygon(flat[0], flat[1:])
        area = shapely.intersection(
            shapely.make_valid(polygon),
            shapely.box(*bounds),
        )
    except (shapely.errors.ShapelyError, ValueError):
        return None
    return None if area.is_empty or area.area == 0 else area


def _is_position(values: list[float]) -> bool:
    if len(values) < 2 or not (math.isfinite(values[0]) and math.isfinite(values[1])):
        return False
    return abs(values[0]) <= 360.0 and abs(values[1]) <= 90.0


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 and math.isfinite(value) else None


def _day_of_milliseconds(value: Any) -> str:
    number = _number(value)
    if number is None or abs(number) > 1e13:
        return ""
    day = (_EPOCH + datetime.timedelta(milliseconds=number)).date()
    return day.isoformat() if day.year in _YEARS else ""


def _day_of_digits(value: Any) -> str:
    number = _number(value)
    if number is None or number != int(number) or not 1e7 <= number < 1e8:
        return ""
    text = str(int(number))
    try:
        day = datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return ""
    return day.isoformat() if day.year in _YEARS else ""
