"""Where things are: districts, each with its own rotated and possibly bent streets, and the blocks between them.

The plane is that of Web Mercator in meters of the equator (x east, y north). It is divided into Voronoi cells, the
districts, with an arterial road along every edge. A district has its own frame: true meters at its latitude, rotated,
sheared by a sine where streets are curved; in that frame (p, q) its streets are straight lines p = const (columns)
and q = const (rows).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy import uint64
from numpy.typing import NDArray

from cvgl_data.simulation.kernels import MASK, Key, Record, child, choose, draw, entry, kernel, mix, pick
from cvgl_data.types import EARTH_CIRCUMFERENCE_M

CELLS_AROUND = 44_000
"""Whole number of district cells round the equator, so that the world closes at the antimeridian."""
CELL = EARTH_CIRCUMFERENCE_M / CELLS_AROUND
ARTERIAL_HALF_M = 8.0
ARTERIAL_WALK_M = 3.0

DOWNTOWN, TERRACES, SUBURB, INDUSTRY, ESTATE, COMMONS, LAKE = range(7)
HOUSES, ROWS, TOWERS, WAREHOUSE, SLABS, PARK, PARKING, SPORT = range(8)

_DISTRICT_SHARES = np.cumsum([0.20, 0.22, 0.26, 0.11, 0.12, 0.05, 0.04])
_BLOCK_SHARES = np.cumsum(
    [  # houses, rows, towers, warehouse, slabs, park, parking, sport
        [0.00, 0.28, 0.42, 0.03, 0.04, 0.09, 0.11, 0.03],
        [0.06, 0.66, 0.06, 0.03, 0.05, 0.06, 0.04, 0.04],
        [0.78, 0.05, 0.00, 0.02, 0.03, 0.05, 0.02, 0.05],
        [0.00, 0.04, 0.05, 0.63, 0.02, 0.04, 0.19, 0.03],
        [0.05, 0.06, 0.10, 0.03, 0.52, 0.09, 0.07, 0.08],
        [0.00, 0.00, 0.00, 0.00, 0.00, 0.93, 0.02, 0.05],
        [0.00, 0.00, 0.00, 0.00, 0.00, 1.00, 0.00, 0.00],
    ],
    axis=1,
)
_PITCH_M = np.array(  # lowest and highest spacing of columns, then of rows
    [
        [78.0, 104.0, 78.0, 128.0],
        [64.0, 80.0, 100.0, 160.0],
        [68.0, 84.0, 100.0, 165.0],
        [105.0, 140.0, 115.0, 165.0],
        [100.0, 130.0, 105.0, 140.0],
        [140.0, 190.0, 140.0, 190.0],
        [200.0, 200.0, 200.0, 200.0],
    ]
)

DISTRICT = np.dtype(
    [
        ("key", np.uint64),
        ("kind", np.int64),
        ("x", np.float64),
        ("y", np.float64),
        ("scale", np.float64),
        ("cos", np.float64),
        ("sin", np.float64),
        ("pitch_p", np.float64),
        ("pitch_q", np.float64),
        ("bend_m", np.float64),
        ("bend_rate", np.float64),
        ("staggered", np.bool_),
        ("walk", np.float64),
        ("verge", np.float64),
        ("tone", np.float64),
    ]
)


class Region(NamedTuple):
    """The districts round a place, and the frame of true meters (e, n) at its centre."""

    districts: NDArray[np.void]
    row: int
    col: int
    x: float
    y: float
    scale: float


class Block(NamedTuple):
    """Place in the street network: block, distances to the four centre lines, half widths of the four streets."""

    i: int
    j: int
    left: float
    right: float
    bottom: float
    top: float
    half_left: float
    half_right: float
    half_bottom: float
    half_top: float


def mercator(lon: float, lat: float) -> tuple[float, float]:
    """Return Mercator meters of a position in degrees."""
    radius = EARTH_CIRCUMFERENCE_M / (2 * math.pi)
    return radius * math.radians(lon), radius * math.asinh(math.tan(math.radians(lat)))


def position(x: float, y: float) -> tuple[float, float]:
    """Return lon, lat in degrees of Mercator meters."""
    radius = EARTH_CIRCUMFERENCE_M / (2 * math.pi)
    return math.degrees(x / radius), math.degrees(math.atan(math.sinh(y / radius)))


def plan_region(seed: int, x: float, y: float, reach: float) -> Region:
    """Plan the districts of the square of ``2 * reach`` Mercator meters round a point."""
    row, col = math.floor((y - reach) / CELL) - 1, math.floor((x - reach) / CELL) - 1
    rows = math.floor((y + reach) / CELL) + 2 - row
    cols = math.floor((x + reach) / CELL) + 2 - col
    districts = np.zeros((rows, cols), DISTRICT)
    _plan(uint64(seed & MASK), row, col, districts)
    return Region(districts, row, col, float(x), float(y), mercator_scale(y))


@entry
def mercator_scale(y: float) -> float:
    """Return Mercator meters per true meter: 1 / cos(lat)."""
    return float(np.cosh(y * 2.0 * np.pi / EARTH_CIRCUMFERENCE_M))


@entry
def _plan(seed: Key, row: int, col: int, districts: NDArray[np.void]) -> None:
    world = mix(seed ^ uint64(0x51D5C0DE))
    for r in range(districts.shape[0]):
        for c in range(districts.shape[1]):
            key = child(child(world, (col + c) % CELLS_AROUND), row + r)
            kind = choose(_DISTRICT_SHARES, draw(key, 0))
            x = (col + c + pick(key, 1, 0.25, 0.75)) * CELL
            y = (row + r + pick(key, 2, 0.25, 0.75)) * CELL
            angle = pick(key, 3, 0.0, np.pi / 2)
            d = districts[r, c]
            d.key, d.kind, d.x, d.y, d.scale = key, kind, x, y, mercator_scale(y)
            d.cos, d.sin = np.cos(angle), np.sin(angle)
            d.pitch_p = pick(key, 4, _PITCH_M[kind, 0], _PITCH_M[kind, 1])
            d.pitch_q = pick(key, 5, _PITCH_M[kind, 2], _PITCH_M[kind, 3])
            bent = kind == COMMONS or (kind == SUBURB and draw(key, 6) < 0.6)
            d.bend_rate = 2.0 * np.pi / pick(key, 7, 260.0, 420.0)
            d.bend_m = pick(key, 8, 0.10, 0.22) / d.bend_rate if bent else 0.0
            d.staggered = draw(key, 9) < 0.4
            d.walk = pick(key, 10, 2.0, 3.4)
            d.verge = pick(key, 11, 1.2, 2.2) if kind == SUBURB or draw(key, 12) < 0.25 else 0.0
            d.tone = pick(key, 13, -14.0, 14.0)


@kernel
def owner(region: Region, x: float, y: float) -> tuple[int, int, int, int, float]:
    """Return the district of a point, its neighbor across the nearest edge, and the true meters to that edge."""
    districts = region.districts
    row, col = int(np.floor(y / CELL)) - region.row, int(np.floor(x / CELL)) - region.col
    best, second = np.inf, np.inf
    r1, c1, r2, c2 = 0, 0, 0, 0
    for r in range(max(row - 1, 0), min(row + 2, districts.shape[0])):
        for c in range(max(col - 1, 0), min(col + 2, districts.shape[1])):
            dx, dy = districts[r, c].x - x, districts[r, c].y - y
            square = dx * dx + dy * dy
            if square < best:
                second, r2, c2 = best, r1, c1
                best, r1, c1 = square, r, c
            elif square < second:
                second, r2, c2 = square, r, c
    d, other = districts[r1, c1], districts[r2, c2]
    apart = np.hypot(d.x - other.x, d.y - other.y)
    return r1, c1, r2, c2, (second - best) / (2.0 * apart * d.scale) if apart > 0.0 else np.inf


@kernel
def to_street_frame(d: Record, x: float, y: float) -> tuple[float, float]:
    """Return (p, q) of a point in Mercator meters."""
    dx, dy = (x - d.x) / d.scale, (y - d.y) / d.scale
    q = dy * d.cos - dx * d.sin
    p = dx * d.cos + dy * d.sin
    return (p - d.bend_m * np.sin(d.bend_rate * q) if d.bend_m > 0.0 else p), q


@kernel
def from_street_frame(d: Record, p: float, q: float) -> tuple[float, float]:
    """Return the Mercator meters of (p, q)."""
    straight = p + d.bend_m * np.sin(d.bend_rate * q)
    return d.x + d.scale * (straight * d.cos - q * d.sin), d.y + d.scale * (straight * d.sin + q * d.cos)


@kernel
def column_direction(d: Record, q: float) -> tuple[float, float]:
    """Return the unit vector (east, north) along a column street, towards growing q."""
    slope = d.bend_m * d.bend_rate * np.cos(d.bend_rate * q)
    length = np.sqrt(1.0 + slope * slope)
    return (slope * d.cos - d.sin) / length, (slope * d.sin + d.cos) / length


@kernel
def column_key(d: Record, i: int) -> Key:
    """Return the key of the column street on the low-p side of the blocks (i, ...)."""
    return child(child(d.key, 101), i)


@kernel
def row_key(d: Record, i: int, j: int) -> Key:
    """Return the key of the row street on the low-q side of block (i, j); staggered rows end at the columns."""
    return child(child(child(d.key, 102), i if d.staggered else 0), j)


@kernel
def half_width(street: Key) -> float:
    """Return half the width of a carriageway; 4.5 m and more leave room for parked cars on both sides."""
    chance = draw(street, 0)
    return 3.7 if chance < 0.4 else (5.0 if chance < 0.8 else 6.6)


@kernel
def column_line(d: Record, i: int) -> float:
    """Return p of a column street's centre line."""
    return float(d.pitch_p) * (i + pick(column_key(d, i), 1, -0.12, 0.12))


@kernel
def row_line(d: Record, i: int, j: int) -> float:
    """Return q of a row street's centre line."""
    shift = draw(column_key(d, i), 2) if d.staggered else 0.0
    return float(d.pitch_q) * (j + shift + pick(row_key(d, i, j), 1, -0.12, 0.12))


@kernel
def block_at(d: Record, p: float, q: float) -> Block:
    """Return the block whose share of the plane, up to the centre lines round it, holds (p, q)."""
    i = int(np.floor(p / d.pitch_p))
    low, high = column_line(d, i), column_line(d, i + 1)
    if p < low:
        i, high = i - 1, low
        low = column_line(d, i)
    elif p >= high:
        i, low = i + 1, high
        high = column_line(d, i + 1)
    shift = draw(column_key(d, i), 2) if d.staggered else 0.0
    j = int(np.floor(q / d.pitch_q - shift))
    start, end = row_line(d, i, j), row_line(d, i, j + 1)
    if q < start:
        j, end = j - 1, start
        start = row_line(d, i, j)
    elif q >= end:
        j, start = j + 1, end
        end = row_line(d, i, j + 1)
    return Block(
        i,
        j,
        p - low,
        high - p,
        q - start,
        end - q,
        half_width(column_key(d, i)),
        half_width(column_key(d, i + 1)),
        half_width(row_key(d, i, j)),
        half_width(row_key(d, i, j + 1)),
    )


@kernel
def block_key(d: Record, i: int, j: int) -> Key:
    """Return the key of the block (i, j) of a district."""
    return child(child(child(d.key, 103), i), j)


@kernel
def block_kind(d: Record, key: Key) -> int:
    """Return what a block is used for."""
    return choose(_BLOCK_SHARES[d.kind], draw(key, 0))
