"""Web-Mercator and great-circle arithmetic on float64 arrays.

Global pixels: x right, y down, ``(0, 0)`` the north-west corner of the world, ``256 * 2**zoom`` pixels a side; a
pixel's centre lies at ``.5``. Longitudes are not wrapped: x keeps growing east of the antimeridian, so differences stay
meaningful.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvgl_data.types import EARTH_CIRCUMFERENCE_M, TILE_PX

EARTH_RADIUS_M = 6_371_008.8
"""Mean Earth radius of all great-circle distances."""

MAX_LAT_DEG = 85.05112877980659
"""Where the Web-Mercator square ends."""

Floats = NDArray[np.float64]


def pixel_from_lonlat(lon: ArrayLike, lat: ArrayLike, zoom: int) -> tuple[Floats, Floats]:
    """Project positions to global pixels of a zoom.

    Args:
        lon: Degrees, any shape.
        lat: Degrees, same shape; values at and beyond the poles are clamped just inside the Mercator square's reach.
        zoom: Zoom level.

    Returns:
        ``x, y`` of the same shape.
    """
    world = TILE_PX * 2.0**zoom
    sin_lat = np.sin(np.radians(np.clip(np.asarray(lat, np.float64), -89.99999, 89.99999)))
    x = world * (np.asarray(lon, np.float64) / 360.0 + 0.5)
    y = world * (0.5 - np.log((1.0 + sin_lat) / (1.0 - sin_lat)) / (4.0 * np.pi))
    return x, y


def lonlat_from_pixel(x: ArrayLike, y: ArrayLike, zoom: int) -> tuple[Floats, Floats]:
    """Invert `pixel_from_lonlat`; returns ``lon, lat`` in degrees."""
    world = TILE_PX * 2.0**zoom
    lon = np.asarray(x, np.float64) / world * 360.0 - 180.0
    lat = np.degrees(np.arctan(np.sinh(np.pi * (1.0 - 2.0 * np.asarray(y, np.float64) / world))))
    return lon, lat


def gsd_m(lat: ArrayLike, zoom: int) -> Floats:
    """Return ground metres per global pixel at a latitude, cos(lat) included (z18: 0.597 at the equator)."""
    cos_lat = np.cos(np.radians(np.asarray(lat, np.float64)))
    return np.asarray(EARTH_CIRCUMFERENCE_M * cos_lat / (TILE_PX * 2.0**zoom))


def distance_m(lon1: ArrayLike, lat1: ArrayLike, lon2: ArrayLike, lat2: ArrayLike) -> Floats:
    """Return great-circle metres (haversine, R = 6 371 008.8 m) between positions in degrees, broadcasting."""
    lam1, phi1, lam2, phi2 = (np.radians(np.asarray(degrees, np.float64)) for degrees in (lon1, lat1, lon2, lat2))
    half_chord_sq = np.sin((phi2 - phi1) / 2) ** 2 + np.cos(phi1) * np.cos(phi2) * np.sin((lam2 - lam1) / 2) ** 2
    return np.asarray(2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(half_chord_sq, 0.0, 1.0))))


def unit_sphere(lon: ArrayLike, lat: ArrayLike) -> Floats:
    """Return positions as unit vectors, shape (..., 3); chord length grows with great-circle distance."""
    lam, phi = np.radians(np.asarray(lon, np.float64)), np.radians(np.asarray(lat, np.float64))
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def meters_from_chord(chord: ArrayLike) -> Floats:
    """Return great-circle metres from the straight-line distance of two unit vectors."""
    return np.asarray(2 * EARTH_RADIUS_M * np.arcsin(np.clip(np.asarray(chord) / 2, 0.0, 1.0)))


def wrap_deg(angle: ArrayLike) -> Floats:
    """Return angles in degrees wrapped to [-180, 180)."""
    return (np.asarray(angle, np.float64) + 180.0) % 360.0 - 180.0
