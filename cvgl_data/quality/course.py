"""Headings against the course over ground of the drive or walk that an image belongs to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.geo import distance_m, wrap_deg

LEAST_IMAGES = 5
"""Images with a heading and a course that a sequence needs before its usual offset is known."""

_MOST_STEPS = 20
"""Images that are passed over, on either side, until one is far enough away for a course."""

_MOST_TURN_DEG = 60.0
"""Where the course changes by more, the camera turns at this very image and has no course."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Headings(NamedTuple):
    """What the course over ground says about headings, in degrees, -180 to 180; NaN where unknown."""

    offset_deg: Floats
    """Heading minus course that is usual in the sequence: how the camera is mounted."""
    error_deg: Floats
    """Heading minus course minus offset, of this image."""


def check_headings(
    sequence: Ints, time_s: Floats, lon: Floats, lat: Floats, heading_deg: Floats, *, min_m: float, max_m: float
) -> Headings:
    """Compare headings with the course over ground.

    Args:
        sequence: Number of the drive or walk, -1 for none, shape (N,) like all that follow.
        time_s: When the image was taken, in seconds of any origin; NaN: unknown.
        lon: Degrees.
        lat: Degrees.
        heading_deg: Bearing of the image's centre as received; NaN: unknown.
        min_m: A course is taken between images at least this far apart, and ...
        max_m: ... at most this far.

    Returns:
        The same for any order of the rows.
    """
    offset, error = (np.full(len(sequence), np.nan) for _ in range(2))
    usable = np.flatnonzero((sequence >= 0) & np.isfinite(time_s) & np.isfinite(lon) & np.isfinite(lat))
    usable = usable[np.lexsort((lat[usable], lon[usable], time_s[usable], sequence[usable]))]
    course = course_deg(sequence[usable], time_s[usable], lon[usable], lat[usable], min_m=min_m, max_m=max_m)
    deviation = wrap_deg(heading_deg[usable] - course)
    members = sequence[usable]
    for rows in np.split(np.arange(len(usable)), np.flatnonzero(np.diff(members)) + 1):
        known = rows[np.isfinite(deviation[rows])]
        if len(known) >= LEAST_IMAGES:
            usual = circular_median_deg(deviation[known])
            offset[usable[rows]] = usual
            error[usable[known]] = wrap_deg(deviation[known] - usual)
    return Headings(offset, error)


def course_deg(sequence: Ints, time_s: Floats, lon: Floats, lat: Floats, *, min_m: float, max_m: float) -> Floats:
    """Return the course over ground at each image, clockwise from north; NaN where standing still, turning, or alone.

    It is the mean of the bearings from the nearest earlier image that is far enough away and to the nearest such later
    one. Images of the same time tell nothing about each other.

    Args:
        sequence: As for `check_headings`; rows sorted by sequence and time, shape (N,).
        time_s: Not NaN.
        lon: Degrees.
        lat: Degrees.
        min_m: As for `check_headings`.
        max_m: As for `check_headings`.
    """
    bearings = []
    for sign in (-1, 1):
        bearing = np.full(len(sequence), np.nan)
        pending = np.arange(len(sequence))
        for step in range(1, _MOST_STEPS + 1):
            other = pending + sign * step
            pending = pending[(other >= 0) & (other < len(sequence))]
            pending = pending[sequence[pending + sign * step] == sequence[pending]]
            other = pending + sign * step
            away_m = distance_m(lon[pending], lat[pending], lon[other], lat[other])
            is_found = (away_m >= min_m) & (time_s[other] != time_s[pending])
            near = pending[is_found & (away_m <= max_m)]
            start, end = (near - step, near) if sign < 0 else (near, near + step)
            bearing[near] = bearing_deg(lon[start], lat[start], lon[end], lat[end])
            pending = pending[~is_found]
        bearings.append(bearing)
    into, out = bearings
    turn = wrap_deg(out - into)
    both = np.where(np.abs(turn) <= _MOST_TURN_DEG, into + turn / 2, np.nan)
    course = np.where(np.isnan(into), out, np.where(np.isnan(out), into, both))
    return np.asarray(course % 360.0)


def bearing_deg(lon1: Floats, lat1: Floats, lon2: Floats, lat2: Floats) -> Floats:
    """Return the initial bearing of the great circle from the first positions to the second, 0 to 360 from north."""
    lam, phi1, phi2 = np.radians(lon2 - lon1), np.radians(lat1), np.radians(lat2)
    east = np.sin(lam) * np.cos(phi2)
    north = np.cos(phi1) * np.sin(phi2) - np.sin(phi1) * np.cos(phi2) * np.cos(lam)
    return np.asarray(np.degrees(np.arctan2(east, north)) % 360.0)


def circular_median_deg(angles_deg: Floats) -> float:
    """Return the median of angles on a circle, -180 to 180, cut opposite to where most of them lie.

    Args:
        angles_deg: At least one, no NaN.
    """
    bins = np.bincount((np.asarray(angles_deg) % 360.0 // 10.0).astype(np.int64) % 36, minlength=36)
    crowd = bins + np.roll(bins, 1) + np.roll(bins, -1)
    center = float(crowd.argmax()) * 10.0 + 5.0
    return float(wrap_deg(center + np.median(wrap_deg(angles_deg - center))))
