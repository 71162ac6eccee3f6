"""The world itself, and where in it a camera car drives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.simulation import network
from cvgl_data.simulation.kernels import child, draw, entry, inlined, kernel, pick
from cvgl_data.simulation.network import ARTERIAL_HALF_M, CELL, Region
from cvgl_data.types import EARTH_CIRCUMFERENCE_M, BBox

_CHUNK = EARTH_CIRCUMFERENCE_M / 2**15
"""Side of the squares in which stations are listed, so that memory does not grow with the area."""
_ID_SCALE = 1e7


@dataclass(frozen=True, slots=True)
class World:
    """A procedural city that covers the whole Mercator plane; all of it follows from the seed, nothing is stored.

    Args:
        seed: Any integer; worlds of different seeds have nothing in common.
    """

    seed: int = 0

    def lane_heading_deg(self, lon: float, lat: float) -> float | None:
        """Return the driving direction (clockwise from north) of the lane at a position, ``None`` off the lanes.

        Traffic keeps to the right. Kerb lanes where cars park are no lanes.
        """
        x, y = network.mercator(lon, lat)
        heading = _lane_heading(network.plan_region(self.seed, x, y, 1.0), x, y)
        return None if math.isnan(heading) else heading

    def stations(self, bounds: BBox, every_m: float) -> Iterator[tuple[float, float]]:
        """Yield lon, lat of a camera car's pictures, ``every_m`` meters apart along all streets in a box.

        Positions are rounded to 1e-7 degrees and yielded once. The order does not depend on where the box begins.
        """
        if every_m <= 0.0:
            raise ValueError(f"every_m is {every_m:g}; it must be above 0")
        east = bounds.east + (360.0 if bounds.east < bounds.west else 0.0)
        west_x, south_y = network.mercator(bounds.west, bounds.south)
        east_x, north_y = network.mercator(east, bounds.north)
        for row in range(math.floor(north_y / _CHUNK), math.floor(south_y / _CHUNK) - 1, -1):
            for col in range(math.floor(west_x / _CHUNK), math.floor(east_x / _CHUNK) + 1):
                for lon, lat in self._chunk_stations(row, col, every_m):
                    if bounds.west <= lon <= east and bounds.south <= lat <= bounds.north:
                        yield (lon + 180.0) % 360.0 - 180.0, lat

    def _chunk_stations(self, row: int, col: int, every_m: float) -> Iterator[tuple[float, float]]:
        region = network.plan_region(self.seed, (col + 0.5) * _CHUNK, (row + 0.5) * _CHUNK, _CHUNK / 2)
        found = np.zeros((0, 2))
        count = _list_stations(region, _CHUNK / 2, every_m, found)
        found = np.zeros((count, 2))
        _list_stations(region, _CHUNK / 2, every_m, found)
        degrees = np.array([network.position(x, y) for x, y in found.tolist()]).reshape(-1, 2)
        for lon, lat in (np.unique(np.rint(degrees * _ID_SCALE), axis=0) / _ID_SCALE).tolist():
            if not math.isnan(_lane_heading(region, *network.mercator(lon, lat))):
                yield lon, lat


class _Lane(NamedTuple):
    """A point's place on a street: direction, meters right of the centre line, half width without parked cars."""

    along_e: float
    along_n: float
    right: float
    free: float


@kernel
def _free_half(half: float) -> float:
    # Cars park within 2.2 m of the kerb of wide streets; elsewhere keep off the kerb itself.
    return half - 2.7 if half > 4.5 else half - 0.9


@kernel
def _lane_at(region: Region, x: float, y: float) -> _Lane:
    r, c, r2, c2, edge = network.owner(region, x, y)
    d, other = region.districts[r, c], region.districts[r2, c2]
    if edge < ARTERIAL_HALF_M:
        length = np.hypot(other.x - d.x, other.y - d.y)
        # Seen from the own side the centre line lies towards the other district, so traffic on the right runs this way.
        return _Lane((other.y - d.y) / -length, (other.x - d.x) / length, edge, ARTERIAL_HALF_M - 0.9)
    if d.kind == network.LAKE:
        return _Lane(0.0, 1.0, 1.0, -1.0)
    p, q = network.to_street_frame(d, x, y)
    b = network.block_at(d, p, q)
    if min(b.left - b.half_left, b.right - b.half_right) < 0.0:
        along_e, along_n = network.column_direction(d, q)
        on_left = b.left < b.half_left
        half = b.half_left if on_left else b.half_right
        return _Lane(along_e, along_n, b.left if on_left else -b.right, _free_half(half))
    on_low = b.bottom < b.half_bottom
    right, half = (-b.bottom, b.half_bottom) if on_low else (b.top, b.half_top)
    return _Lane(d.cos, d.sin, right, _free_half(half))


@entry
def _lane_heading(region: Region, x: float, y: float) -> float:
    lane = _lane_at(region, x, y)
    if abs(lane.right) > lane.free:
        return np.nan
    sign = 1.0 if lane.right >= 0.0 else -1.0
    return float(np.degrees(np.arctan2(sign * lane.along_e, sign * lane.along_n)) % 360.0)


@kernel
def _keep(region: Region, reach: float, x: float, y: float, found: NDArray[np.float64], count: int) -> int:
    # Half open, so that neighboring chunks share no station.
    if not (region.x - reach <= x < region.x + reach and region.y - reach <= y < region.y + reach):
        return count
    if count < len(found):
        found[count, 0], found[count, 1] = x, y
    return count + 1


@entry
def _list_stations(region: Region, reach: float, every_m: float, found: NDArray[np.float64]) -> int:
    """Write candidate stations in Mercator meters, as many as fit; return how many there are."""
    count = 0
    rows, cols = region.districts.shape
    for row in range(1, rows - 1):
        for col in range(1, cols - 1):
            d = region.districts[row, col]
            if d.kind != network.LAKE:
                count = _list_streets(region, row, col, reach, every_m, found, count)
            for r in range(max(row - 2, 0), min(row + 3, rows)):
                for c in range(max(col - 2, 0), min(col + 3, cols)):
                    if (r != row or c != col) and d.key < region.districts[r, c].key:
                        count = _list_arterial(region, row, col, r, c, reach, every_m, found, count)
    return count


@inlined
def _list_arterial(
    region: Region,
    row: int,
    col: int,
    r: int,
    c: int,
    reach: float,
    every_m: float,
    found: NDArray[np.float64],
    count: int,
) -> int:
    d, other = region.districts[row, col], region.districts[r, c]
    length = np.hypot(other.x - d.x, other.y - d.y)
    ux, uy = (other.x - d.x) / length, (other.y - d.y) / length
    steps = int(1.2 * CELL / d.scale / every_m)
    for k in range(-steps, steps + 1):
        side = 1.0 if draw(child(d.key ^ other.key, k), 0) < 0.5 else -1.0
        along, across = k * every_m * d.scale, side * 3.4 * d.scale
        x = (d.x + other.x) / 2 + along * -uy + across * ux
        y = (d.y + other.y) / 2 + along * ux + across * uy
        r1, c1, r2, c2, edge = network.owner(region, x, y)
        mine = (r1 == row and c1 == col and r2 == r and c2 == c) or (r1 == r and c1 == c and r2 == row and c2 == col)
        if mine and edge < ARTERIAL_HALF_M:
            count = _keep(region, reach, x, y, found, count)
    return count


@inlined
def _list_streets(
    region: Region, row: int, col: int, reach: float, every_m: float, found: NDArray[np.float64], count: int
) -> int:
    d = region.districts[row, col]
    far = 1.1 * CELL / d.scale
    for i in range(int(-far / d.pitch_p) - 2, int(far / d.pitch_p) + 2):
        left, right = network.column_line(d, i), network.column_line(d, i + 1)
        for j in range(int(-far / d.pitch_q) - 2, int(far / d.pitch_q) + 2):
            bottom, top = network.row_line(d, i, j), network.row_line(d, i, j + 1)
            for axis in range(2):
                street = network.column_key(d, i) if axis == 0 else network.row_key(d, i, j)
                free = _free_half(network.half_width(street))
                start, stop = (bottom, top) if axis == 0 else (left, right)
                if axis == 1:
                    start += network.half_width(network.column_key(d, i))
                    stop -= network.half_width(network.column_key(d, i + 1))
                for k in range(int(np.ceil(start / every_m)), int(np.ceil(stop / every_m))):
                    station = child(child(child(street, 90), k), i if axis == 1 else 0)
                    side = 1.0 if draw(station, 0) < 0.5 else -1.0
                    off = side * free * pick(station, 1, 0.35, 0.9)
                    p, q = (left + off, k * every_m) if axis == 0 else (k * every_m, bottom + off)
                    x, y = network.from_street_frame(d, p, q)
                    r1, c1, _, _, edge = network.owner(region, x, y)
                    if r1 == row and c1 == col and edge > ARTERIAL_HALF_M + 1.0:
                        count = _keep(region, reach, x, y, found, count)
    return count
