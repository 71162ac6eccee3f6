"""Areas of interest: which part of the world a dataset is about.

An area is a polygon in lon/lat (WGS 84) whose edges are straight lines in lon/lat, as GeoJSON defines them. Longitudes
lie in [-180, 180]; an area across the antimeridian is cut in two there (RFC 7946, section 3.1.9).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely.geometry import MultiPolygon, Polygon, box

from cvgl_data.aoi.cities import find_city
from cvgl_data.aoi.vectors import polygons_of, read_lonlat, solid, well_formed
from cvgl_data.errors import AreaError
from cvgl_data.geo import MAX_LAT_DEG
from cvgl_data.types import BBox

_EQUAL_AREA = pyproj.Proj("+proj=cea +ellps=WGS84 +over")  # no geodesics: they fail on areas beyond a hemisphere
_LAT_SLACK_DEG = 1e-9  # tile bounds computed elsewhere may exceed the Mercator square by rounding


@dataclass(frozen=True, slots=True)
class AreaOfInterest:
    """A named polygon with its origin; make one with a ``from_...`` method, which checks and repairs.

    Args:
        name: What tables say in their ``area`` column.
        geometry: Valid polygon or multipolygon, lon/lat, cut at the antimeridian.
        source: Who published the polygon.
        licence: Licence of the polygon.
    """

    name: str
    geometry: Polygon | MultiPolygon
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        shapely.prepare(self.geometry)

    @classmethod
    def from_geometry(cls, geometry: Any, name: str, *, source: str = "", licence: str = "") -> AreaOfInterest:
        """Make an area of a shapely polygon or a collection that holds polygons, in lon/lat.

        An edge more than 180 degrees long is read as crossing the antimeridian, and longitudes beyond 180 are wrapped.
        Invalid polygons are repaired and parts that are not polygons are left out, both with a warning in the log.

        Raises:
            AreaError: If nothing with an area is left, if a coordinate is no finite number of degrees, or if the area
                reaches beyond latitude 85.0511, where the Mercator square ends.
        """
        polygons = polygons_of([geometry], name)
        _check_range(polygons, name)
        whole = solid(shapely.union_all([well_formed(polygon, name) for polygon in polygons]))
        if whole.is_empty:
            raise AreaError(f"area '{name}' is empty; give at least one polygon with an area")
        return cls(name, whole, source, licence)

    @classmethod
    def from_city(cls, name: str) -> AreaOfInterest:
        """Return a city of the catalogue (`cvgl_data.aoi.cities.catalog`) under its catalogue key.

        Raises:
            UnknownNameError: If no city has that name; the message suggests the nearest.
        """
        city = find_city(name)
        features = shapely.from_geojson(city.geojson)
        return cls.from_geometry(features, city.key, source=city.source, licence=city.licence)

    @classmethod
    def from_bbox(cls, west: float, south: float, east: float, north: float, name: str = "bbox") -> AreaOfInterest:
        """Return a box in degrees; ``west > east`` means that it crosses the antimeridian.

        Raises:
            AreaError: If the box is empty or reaches beyond [-180, 180] or the Mercator range.
        """
        limits = BBox(west, south, east, north)
        if not all(map(math.isfinite, limits)) or south >= north or west == east:
            raise AreaError(f"area '{name}' is empty ({_spelled(limits)}); the order is west, south, east, north")
        if max(abs(west), abs(east)) > 180.0:
            raise AreaError(
                f"area '{name}' has a longitude beyond 180 ({_spelled(limits)}); write a box across the antimeridian "
                "with west > east"
            )
        unwrapped = box(west, south, east + 360.0 if west > east else east, north)
        # Short edges, because a longer one than 180 degrees would be taken the other way round the world.
        return cls.from_geometry(shapely.segmentize(unwrapped, 90.0), name)

    @classmethod
    def from_file(cls, path: str | Path, name: str = "") -> AreaOfInterest:
        """Read a vector file: anything geopandas reads, in any CRS; all its polygons become one area.

        Args:
            path: GeoJSON, GeoPackage, shapefile (file, folder or .zip), KML, GeoParquet, ...
            name: Name of the area; default: the file's name without its ending.

        Raises:
            AreaError: If there is no such file, if it cannot be read, if it has no CRS and its coordinates are not
                degrees, or for the reasons of `from_geometry`.
        """
        path = Path(path)
        features = read_lonlat(path)
        return cls.from_geometry(shapely.GeometryCollection(features), name or path.stem, source=path.name)

    @property
    def bounds(self) -> BBox:
        """Smallest box round the area; ``west > east`` when the area crosses the antimeridian."""
        west, south, east, north = self.geometry.bounds
        if west <= -180.0 and east >= 180.0:
            gap, reach = (0.0, west, east), west
            for start, _, end, _ in sorted(part.bounds for part in shapely.get_parts(self.geometry)):
                gap = max(gap, (start - reach, start, reach))
                reach = max(reach, end)
            _, west, east = gap
        return BBox(west, south, east, north)

    @property
    def area_km2(self) -> float:
        """Area on the WGS 84 ellipsoid."""
        # Short pieces, because edges are straight in lon/lat and the projection bends them.
        pieces = shapely.segmentize(self.geometry, 0.1)
        return float(shapely.transform(pieces, _EQUAL_AREA, interleaved=False).area) / 1e6

    def contains(self, lon: ArrayLike, lat: ArrayLike) -> NDArray[np.bool_]:
        """Return which positions lie in the area, its edge included.

        Args:
            lon: Degrees, any shape; values beyond 180 are wrapped.
            lat: Degrees, same shape.
        """
        lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
        wrapped = np.where(np.abs(lon) <= 180.0, lon, (lon + 180.0) % 360.0 - 180.0)
        return np.asarray(shapely.intersects_xy(self.geometry, wrapped, lat))

    def clip(self, bbox: BBox, name: str = "") -> AreaOfInterest:
        """Return the part of the area inside a box, under a new name if one is given.

        Raises:
            AreaError: If they have no area in common, or if the box is empty.
        """
        west, south, east, north = bbox
        frame = AreaOfInterest.from_bbox(west, max(south, -MAX_LAT_DEG), east, min(north, MAX_LAT_DEG), name="clip")
        kept = solid(shapely.intersection(self.geometry, frame.geometry))
        if kept.is_empty:
            raise AreaError(
                f"area '{self.name}' ({_spelled(self.bounds)}) has nothing inside the clip box ({_spelled(bbox)})"
            )
        return AreaOfInterest(name or self.name, kept, self.source, self.licence)


def _check_range(polygons: list[Polygon], name: str) -> None:
    west, south, east, north = shapely.total_bounds(polygons)
    if west < -360.0 or east > 360.0 or south < -90.0 or north > 90.0:
        raise AreaError(
            f"area '{name}' has coordinates that are not degrees (x {west:g} to {east:g}, y {south:g} to {north:g}); "
            "is its CRS right?"
        )
    farthest = south if -south > north else north
    if abs(farthest) > MAX_LAT_DEG + _LAT_SLACK_DEG:
        raise AreaError(
            f"area '{name}' reaches latitude {farthest:.4f}, but Web Mercator ends at {MAX_LAT_DEG:.4f}; clip it"
        )


def _spelled(bbox: BBox) -> str:
    return ", ".join(f"{side} {value:.6g}" for side, value in zip(BBox._fields, bbox, strict=True))
