"""Things that stand on the ground, as two tables: solids (boxes with roofs) and crowns (ellipsoids)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.simulation import network
from cvgl_data.simulation.kernels import Color, Key, Record, constant, kernel, noise
from cvgl_data.simulation.network import Region

SKY, GROUND, BUILDING, VEGETATION, VEHICLE, FURNITURE = map(constant, range(6))
"""What a pixel shows."""

FLAT, GABLE, HIP, GABLE_ALONG = map(constant, range(4))
"""Roofs; ridges run along the longer side, those of ``GABLE_ALONG`` along columns."""

SOLID = np.dtype(
    [
        ("key", np.uint64),
        ("label", np.int64),
        ("roof", np.int64),
        *[(name, np.float64) for name in ("e", "n", "ux", "uy", "a", "b", "low", "eaves", "rise", "reach")],
        *[(name, np.float64) for name in ("wall_r", "wall_g", "wall_b", "roof_r", "roof_g", "roof_b")],
    ]
)
"""Centre (e, n) and unit vector (ux, uy) along the ridge, in the region's frame; half sizes and heights: meters."""

CROWN = np.dtype(
    [
        ("key", np.uint64),
        *[(name, np.float64) for name in ("e", "n", "z", "radius", "half_z", "r", "g", "b")],
    ]
)


class Pen(NamedTuple):
    """Where one district's things are written; ``counts`` of (solids, crowns) go on beyond the tables' ends."""

    region: Region
    row: int
    col: int
    solids: NDArray[np.void]
    crowns: NDArray[np.void]
    counts: NDArray[np.int64]
    reach_m: float


@kernel
def to_scene(region: Region, x: float, y: float) -> tuple[float, float]:
    """Return true meters (e, n) from the region's centre of a point in Mercator meters."""
    return (x - region.x) / region.scale, (y - region.y) / region.scale


@kernel
def is_free(pen: Pen, d: Record, p: float, q: float) -> bool:
    """Return whether (p, q) lies in the district itself and off the arterial round it."""
    x, y = network.from_street_frame(d, p, q)
    row, col, _, _, edge = network.owner(pen.region, x, y)
    return row == pen.row and col == pen.col and edge > network.ARTERIAL_HALF_M + network.ARTERIAL_WALK_M + 0.3


@kernel
def add_box(
    pen: Pen,
    d: Record,
    p: float,
    q: float,
    half_p: float,
    half_q: float,
    heights: tuple[float, float, float],
    roof: int,
    label: int,
    key: Key,
    wall: Color,
    top: Color,
) -> bool:
    """Add a box, aligned with the columns at its centre, unless a corner would stand outside the district.

    Args:
        pen: Tables to write to.
        d: The district.
        p: Street-frame centre.
        q: Street-frame centre.
        half_p: Half size across columns in meters.
        half_q: Half size along columns in meters.
        heights: Bottom, eaves, and rise of the roof above the eaves in meters.
        roof: One of FLAT, GABLE, HIP, GABLE_ALONG.
        label: What it is.
        key: Key of its facade.
        wall: Color of the walls.
        top: Color of the roof.

    Returns:
        Whether it stands.
    """
    if half_p <= 0.0 or half_q <= 0.0:
        return False
    for corner in range(4):
        if not is_free(pen, d, p + half_p * (1 - 2 * (corner % 2)), q + half_q * (1 - 2 * (corner // 2))):
            return False
    x, y = network.from_street_frame(d, p, q)
    e, n = to_scene(pen.region, x, y)
    # A district's meters differ from the region's by the change of cos(lat) between their centres.
    fit = d.scale / pen.region.scale
    half_p, half_q = half_p * fit, half_q * fit
    reach = np.hypot(half_p, half_q)
    if max(abs(e), abs(n)) > pen.reach_m + reach:
        return True
    at = pen.counts[0]
    pen.counts[0] += 1
    if at >= len(pen.solids):
        return True
    along_e, along_n = network.column_direction(d, q)
    s = pen.solids[at]
    s.key, s.label, s.e, s.n, s.reach = key, label, e, n, reach
    s.roof = GABLE if roof == GABLE_ALONG else roof
    if half_p >= half_q and roof != GABLE_ALONG:
        s.ux, s.uy, s.a, s.b = along_n, -along_e, half_p, half_q
    else:
        s.ux, s.uy, s.a, s.b = along_e, along_n, half_q, half_p
    s.low, s.eaves, s.rise = heights
    s.wall_r, s.wall_g, s.wall_b = wall
    s.roof_r, s.roof_g, s.roof_b = top
    return True


@kernel
def add_crown(
    pen: Pen, d: Record, p: float, q: float, z: float, radius: float, half_z: float, key: Key, color: Color
) -> bool:
    """Add an ellipsoid of leaves; returns whether it stands."""
    if not is_free(pen, d, p, q):
        return False
    x, y = network.from_street_frame(d, p, q)
    e, n = to_scene(pen.region, x, y)
    if max(abs(e), abs(n)) > pen.reach_m + radius:
        return True
    at = pen.counts[1]
    pen.counts[1] += 1
    if at < len(pen.crowns):
        t = pen.crowns[at]
        t.key, t.e, t.n, t.z, t.radius, t.half_z = key, e, n, z, radius, half_z
        t.r, t.g, t.b = color
    return True


@kernel
def hit_solid(s: Record, e: float, n: float, z: float, de: float, dn: float, dz: float) -> tuple[float, int]:
    """Return the distance along a ray at which it enters a solid, and the face; negative distance: it does not.

    Faces: 0 to 3 the walls (+x, -x, +y, -y of the solid's own axes), 4 a flat top, 5 to 8 the slopes above
    these walls, 9 the bottom. The origin must lie outside.
    """
    x, y = (e - s.e) * s.ux + (n - s.n) * s.uy, (n - s.n) * s.ux - (e - s.e) * s.uy
    dx, dy = de * s.ux + dn * s.uy, dn * s.ux - de * s.uy
    enter, leave, face = 0.0, np.inf, -1
    pitch = s.rise / s.b
    for plane in range(10):
        if plane < 2:
            sign = 1.0 - 2.0 * plane
            speed, room = sign * dx, s.a - sign * x
        elif plane < 4:
            sign = 5.0 - 2.0 * plane
            speed, room = sign * dy, s.b - sign * y
        elif plane == 4:
            if s.roof != FLAT:
                continue
            speed, room = dz, s.eaves - z
        elif plane < 7:
            if s.roof != HIP:
                continue
            sign = 11.0 - 2.0 * plane
            speed, room = dz + pitch * sign * dx, s.eaves + pitch * (s.a - sign * x) - z
        elif plane < 9:
            if s.roof == FLAT:
                continue
            sign = 15.0 - 2.0 * plane
            speed, room = dz + pitch * sign * dy, s.eaves + pitch * (s.b - sign * y) - z
        else:
            speed, room = -dz, z - s.low
        if speed < 0.0:
            if room / speed > enter:
                enter, face = room / speed, plane
        elif speed > 0.0:
            leave = min(leave, room / speed)
        elif room < 0.0:
            return -1.0, -1
        if enter > leave:
            return -1.0, -1
    return (enter, face) if face >= 0 else (-1.0, -1)


@kernel
def hit_crown(t: Record, e: float, n: float, z: float, de: float, dn: float, dz: float) -> float:
    """Return the distance along a ray at which it enters a crown; negative: it does not, or starts inside."""
    x, y, h = (e - t.e) / t.radius, (n - t.n) / t.radius, (z - t.z) / t.half_z
    dx, dy, dh = de / t.radius, dn / t.radius, dz / t.half_z
    square, half, rest = dx * dx + dy * dy + dh * dh, x * dx + y * dy + h * dh, x * x + y * y + h * h - 1.0
    root = half * half - square * rest
    if root < 0.0 or rest < 0.0 or half > 0.0:
        return -1.0
    distance = (-half - np.sqrt(root)) / square
    # Near the outline rays slip between the leaves.
    u, v, w = x + distance * dx, y + distance * dy, h + distance * dh
    clumps = noise(t.key, 11.0 * u + 7.0 * w, 11.0 * v - 8.0 * w)
    return distance if root / square > 0.06 + 0.10 * clumps else -1.0


@kernel
def top_of(s: Record, e: float, n: float) -> tuple[float, int, float]:
    """Return height and face of a solid's top above a point and the meters to its outline; height < 0: not above it."""
    x, y = (e - s.e) * s.ux + (n - s.n) * s.uy, (n - s.n) * s.ux - (e - s.e) * s.uy
    in_x, in_y = s.a - abs(x), s.b - abs(y)
    if in_x < 0.0 or in_y < 0.0:
        return -1.0, -1, 0.0
    if s.roof == FLAT:
        return s.eaves, 4, min(in_x, in_y)
    if s.roof == HIP and in_x < in_y:
        return s.eaves + s.rise / s.b * in_x, 5 if x > 0.0 else 6, in_x
    return s.eaves + s.rise / s.b * in_y, 7 if y > 0.0 else 8, in_y
