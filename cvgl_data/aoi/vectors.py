"""Polygons from vector files, brought to lon/lat and into shape: repaired, and cut at the antimeridian."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from shapely import affinity
from shapely.errors import ShapelyError
from shapely.geometry import MultiPolygon, Polygon, box

from cvgl_data.errors import AreaError

if TYPE_CHECKING:
    import geopandas

logger = logging.getLogger(__name__)

_EDGE_M = 200.0  # an edge that is straight in a projected CRS bends by less than 1 mm over this length
_MAX_PIECES = 100_000
_READ_ERRORS = (RuntimeError, ValueError, OSError, ShapelyError)


def read_lonlat(path: Path) -> list[Any]:
    """Return the geometries of all features of a vector file, in lon/lat.

    Layers without polygons are skipped. Edges are densified before they leave a projected CRS.

    Raises:
        AreaError: If the file is missing or cannot be read, has no layer with polygons, or has no CRS and no degrees.
    """
    if not path.exists():
        raise AreaError(f"no area file '{path}'; check the path")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            frames = _read_layers(path)
            geometries = [geometry for frame in frames for geometry in _to_lonlat(frame, path)]
    except AreaError:
        raise
    except _READ_ERRORS as error:
        raise AreaError(f"area file '{path}' cannot be read as vector data: {error}") from error
    for warning in caught:
        logger.warning("area file '%s': %s", path, warning.message)
    return geometries


def polygons_of(geometries: Iterable[Any], name: str) -> list[Polygon]:
    """Return the polygons in nested geometries, in two dimensions; leave out the rest with a warning.

    Raises:
        AreaError: If there are none, or if a coordinate is not a finite number.
    """
    parts = _flatten(geometries)
    found = [shapely.force_2d(part) for part in parts if isinstance(part, Polygon)]
    others = sorted({part.geom_type for part in parts if not isinstance(part, Polygon)})
    if not found:
        what = f"holds only {', '.join(others)}" if others else "is empty"
        raise AreaError(f"area '{name}' {what}; give at least one polygon")
    if others:
        logger.warning("area '%s': left out what is no polygon: %s", name, ", ".join(others))
    if not np.isfinite(shapely.get_coordinates(found)).all():
        raise AreaError(f"area '{name}' has coordinates that are not finite numbers; is its CRS right?")
    return found


def solid(geometry: Any) -> Polygon | MultiPolygon:
    """Return the part of a geometry that has an area; it may be empty."""
    parts = [part for part in _flatten([geometry]) if isinstance(part, Polygon) and part.area > 0]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def made_valid(polygon: Polygon) -> Polygon | MultiPolygon:
    """Return the valid polygon nearest to an invalid one; it may be empty.

    Shell and holes are repaired one by one: GEOS, given the whole, fills a hole that shares an edge with the shell.
    """
    shell = shapely.make_valid(Polygon(polygon.exterior))
    holes = shapely.union_all([shapely.make_valid(Polygon(ring)) for ring in polygon.interiors])
    return solid(shapely.difference(solid(shell), solid(holes)))


def well_formed(polygon: Polygon, name: str) -> Polygon | MultiPolygon:
    """Return a polygon made valid, with longitudes in [-180, 180], cut where it crosses the antimeridian.

    An edge more than 180 degrees long is read as crossing the antimeridian.

    Raises:
        AreaError: If the polygon cannot be repaired or goes round a pole.
    """
    unwrapped = _repaired(_unwrapped(polygon, name), name)
    west, _, east, _ = unwrapped.bounds
    if west >= -180.0 and east <= 180.0:
        return unwrapped
    turns = range(int(np.floor((west + 180.0) / 360.0)), int(np.ceil((east - 180.0) / 360.0)) + 1)
    pieces = [
        affinity.translate(
            shapely.intersection(unwrapped, box(360.0 * turn - 180.0, -90.0, 360.0 * turn + 180.0, 90.0)),
            xoff=-360.0 * turn,
        )
        for turn in turns
    ]
    return solid(shapely.union_all(pieces))


def _flatten(geometries: Iterable[Any]) -> list[Any]:
    """Return the single, non-empty parts of geometries, in order."""
    parts = np.asarray([part for part in geometries if part is not None], dtype=object)
    while len(parts) and (shapely.get_type_id(parts) >= shapely.GeometryType.MULTIPOINT).any():
        parts = shapely.get_parts(parts)
    return [part for part in parts if not part.is_empty]


def _read_layers(path: Path) -> list[geopandas.GeoDataFrame]:
    import geopandas  # and with it pandas: 0.2 s and 60 MB that most runs can do without

    if path.suffix.lower() in (".parquet", ".geoparquet"):
        return [geopandas.read_parquet(path)]
    layers = geopandas.list_layers(path)
    types = [kind if isinstance(kind, str) else "no geometry" for kind in layers["geometry_type"]]
    with_polygons = [
        index
        for index, kind in enumerate(types)
        if any(word in kind for word in ("Polygon", "Surface", "Collection", "Unknown"))
    ]
    if not with_polygons:
        raise AreaError(f"area file '{path}' holds no polygons, only {', '.join(sorted(set(types))) or 'nothing'}")
    if len(with_polygons) > 1:
        names = ", ".join(str(layers["name"][index]) for index in with_polygons)
        logger.warning("area file '%s': the layers %s become one area", path, names)
    return [geopandas.read_file(path, layer=index) for index in with_polygons]


def _to_lonlat(frame: Any, path: Path) -> list[Any]:
    import geopandas

    if not isinstance(frame, geopandas.GeoDataFrame) or frame.active_geometry_name is None:
        return []
    shapes = frame.geometry[~(frame.geometry.isna() | frame.geometry.is_empty)]
    if shapes.empty:
        return []
    if shapes.crs is None:
        west, south, east, north = shapes.total_bounds
        if west < -360.0 or east > 360.0 or south < -90.0 or north > 90.0:
            raise AreaError(
                f"area file '{path}' has no CRS and its coordinates are not degrees "
                f"(x {west:g} to {east:g}, y {south:g} to {north:g}); add its CRS, for a shapefile as a .prj file"
            )
        logger.warning("area file '%s' has no CRS; taken as lon/lat", path)
        return list(shapes)
    if shapes.crs.is_projected:
        shapes = shapes.segmentize(_edge_length(shapes))
    return list(shapes.to_crs(pyproj.CRS.from_epsg(4326)))


def _edge_length(shapes: geopandas.GeoSeries) -> float:
    """Return how long an edge may be, in units of the CRS, before it is bent visibly by leaving its projection."""
    unit_m = float(shapes.crs.axis_info[0].unit_conversion_factor)
    return max(_EDGE_M / unit_m, float(shapes.length.sum()) / _MAX_PIECES)


def _unwrapped(polygon: Polygon, name: str) -> Polygon:
    """Return a polygon whose longitudes run on across the antimeridian instead of jumping."""
    shell = _unwrap(shapely.get_coordinates(polygon.exterior), name)
    middle = shell[:, 0].min() + np.ptp(shell[:, 0]) / 2
    holes = []
    for ring in polygon.interiors:
        hole = _unwrap(shapely.get_coordinates(ring), name)
        hole[:, 0] += 360.0 * np.round((middle - hole[:, 0].mean()) / 360.0)
        holes.append(hole)
    return Polygon(shell, holes)


def _unwrap(ring: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    steps = np.diff(ring[:, 0])
    jumps = np.abs(steps) > 180.0
    if not jumps.any():
        return ring
    turns = np.concatenate([[0.0], np.cumsum(np.where(jumps, -360.0 * np.round(steps / 360.0), 0.0))])
    unwrapped = np.column_stack([ring[:, 0] + turns, ring[:, 1]])
    if turns[-1] == 0.0 and np.ptp(unwrapped[:, 0]) > 0.0:
        return unwrapped
    if (np.abs(steps) == 360.0).any():  # a band round the whole world, drawn from -180 to 180
        return ring
    raise AreaError(f"area '{name}' goes round a pole; Web Mercator ends at latitude 85.0511, clip it")


def _repaired(polygon: Polygon, name: str) -> Polygon | MultiPolygon:
    if polygon.is_valid:
        return polygon
    reason = shapely.is_valid_reason(polygon)
    fixed = made_valid(polygon)
    if fixed.is_empty:
        raise AreaError(f"area '{name}' has an invalid polygon without an area ({reason}); correct or remove it")
    logger.warning("area '%s' has an invalid polygon, which was repaired: %s", name, reason)
    return fixed
