"""What a date changes: the sun, the colors of plants, and which cars are parked."""

from __future__ import annotations

import datetime
import math
from typing import Any, NamedTuple

from numpy import uint64

from cvgl_data.simulation.kernels import Color

SOLAR_HOUR = 10.5
"""Local solar time of every picture: late morning, so that shadows point north-west of things on the northern half."""
MIN_SUN_ELEVATION_DEG = 18.0
"""The sun is not let lower than this, which bounds how far away a shadow can begin."""


class Conditions(NamedTuple):
    """Light and plants on one date at one latitude; directions are unit vectors (east, north, up)."""

    day: Any
    sun: tuple[float, float, float]
    lawn: Color
    leaf: float
    autumn: float


def conditions(date: datetime.date, lat: float) -> Conditions:
    """Return the conditions of a date at a latitude in degrees.

    Seasons are those of the hemisphere and fade out in the tropics. The sun follows its declination to about a degree.
    """
    day_of_year = date.timetuple().tm_yday
    swing = max(-1.0, min(1.0, lat / 35.0))
    after_summer = 2 * math.pi * (day_of_year - 200) / 365.25 + (math.pi if swing < 0 else 0.0)
    warmth = 1.0 - abs(swing) * (1.0 - math.cos(after_summer)) / 2
    fall = math.exp(-(((after_summer % (2 * math.pi) - 1.75) / 0.5) ** 2)) * abs(swing)
    dry = max(0.0, 0.55 - warmth)
    lawn = (88 + 55 * dry + 12 * warmth, 116 - 8 * dry, 58 + 25 * dry)
    return Conditions(
        uint64(date.toordinal()),
        sun_direction(date, lat),
        lawn,
        min(1.0, max(0.15, 2.2 * warmth - 0.2)),
        fall,
    )


def sun_direction(date: datetime.date, lat: float) -> tuple[float, float, float]:
    """Return the unit vector towards the sun (east, north, up) at `SOLAR_HOUR`."""
    day_of_year = date.timetuple().tm_yday
    declination = math.radians(-23.44 * math.cos(2 * math.pi * (day_of_year + 10) / 365.25))
    hour_angle, phi = math.radians(15.0 * (SOLAR_HOUR - 12.0)), math.radians(lat)
    east = -math.cos(declination) * math.sin(hour_angle)
    north = math.cos(phi) * math.sin(declination) - math.sin(phi) * math.cos(declination) * math.cos(hour_angle)
    up = math.sin(phi) * math.sin(declination) + math.cos(phi) * math.cos(declination) * math.cos(hour_angle)
    elevation = max(math.asin(up), math.radians(MIN_SUN_ELEVATION_DEG))
    azimuth = math.atan2(east, north)
    return (
        math.cos(elevation) * math.sin(azimuth),
        math.cos(elevation) * math.cos(azimuth),
        math.sin(elevation),
    )
