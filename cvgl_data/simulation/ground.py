"""The color of the bare ground at any point: streets, sidewalks, and what blocks are covered with."""

from __future__ import annotations

import numpy as np

from cvgl_data.simulation import network, plots, surfaces
from cvgl_data.simulation.kernels import (
    Color,
    Key,
    Record,
    blend,
    child,
    draw,
    inlined,
    kernel,
    mix,
    noise,
    pick,
    shade,
)
from cvgl_data.simulation.network import ARTERIAL_HALF_M, ARTERIAL_WALK_M, Block, Region
from cvgl_data.simulation.season import Conditions

HOUSES, ROWS, TOWERS, WAREHOUSE = network.HOUSES, network.ROWS, network.TOWERS, network.WAREHOUSE
SLABS, PARK, PARKING, SPORT, LAKE = network.SLABS, network.PARK, network.PARKING, network.SPORT, network.LAKE
SHORE_M = 9.0
"""Width of the bank between the road round a lake and the water."""

CARRIAGEWAY, WALK, INTERIOR, WATER = range(4)


@kernel
def ground_color(region: Region, now: Conditions, x: float, y: float, home: int) -> Color:
    """Return the lit color of the ground at Mercator meters.

    Args:
        region: Districts round the point.
        now: Season.
        x: Mercator meters.
        y: Mercator meters.
        home: Number (row by row) of the point's district where it is known to be far from the edge, else -1.
    """
    if home >= 0:
        cols = region.districts.shape[1]
        r, c, r2, c2, edge = home // cols, home % cols, home // cols, home % cols, np.inf
    else:
        r, c, r2, c2, edge = network.owner(region, x, y)
    d = region.districts[r, c]
    p, q = network.to_street_frame(d, x, y)
    on_edge = edge < ARTERIAL_HALF_M + ARTERIAL_WALK_M
    if on_edge and (edge < ARTERIAL_HALF_M or d.kind == LAKE):
        return _edge_color(d, region.districts[r2, c2], x, y, edge)
    if d.kind == LAKE:
        if edge < ARTERIAL_HALF_M + ARTERIAL_WALK_M + SHORE_M + 3.0 * noise(d.key, p / 14.0, q / 14.0):
            return surfaces.lawn(d.key, now.lawn, p, q)
        return surfaces.water(d.key, p, q)
    b = network.block_at(d, p, q)
    west, east = b.left - b.half_left, b.right - b.half_right
    south, north = b.bottom - b.half_bottom, b.top - b.half_top
    across, along = min(west, east), min(south, north)
    if across < 0.0 or along < 0.0:
        return _street_color(d, b, p, q, across, along)
    if on_edge:
        return _edge_color(d, region.districts[r2, c2], x, y, edge)
    kerb = min(across, along)
    if kerb < d.walk + d.verge:
        key = (
            network.column_key(d, b.i + (west > east))
            if across < along
            else network.row_key(d, b.i, b.j + (south > north))
        )
        t = q if across < along else p
        if kerb < 0.22:
            return (172.0 + d.tone, 170.0 + d.tone, 164.0 + d.tone)
        if kerb < d.verge and max(across, along) > 6.0:
            return surfaces.lawn(key, now.lawn, p, q)
        return surfaces.pavement(key, t, kerb, d.tone)
    key = network.block_key(d, b.i, b.j)
    inset = d.walk + d.verge
    return block_color(d, key, now, west - inset, south - inset, west + east - 2 * inset, south + north - 2 * inset)


@kernel
def _edge_color(d: Record, other: Record, x: float, y: float, edge: float) -> Color:
    # The key must be the same seen from both districts, and so must the sign of the distance.
    key = mix(d.key ^ other.key)
    sign = 1.0 if d.key < other.key else -1.0
    length = np.hypot(other.x - d.x, other.y - d.y)
    ux, uy = sign * (other.x - d.x) / length, sign * (other.y - d.y) / length
    t = ((y - (d.y + other.y) / 2) * ux - (x - (d.x + other.x) / 2) * uy) / d.scale
    if edge < ARTERIAL_HALF_M:
        return surfaces.arterial(key, t, sign * edge, ARTERIAL_HALF_M)
    if edge < ARTERIAL_HALF_M + 0.22:
        return (170.0, 168.0, 162.0)
    return surfaces.pavement(key, t, edge, 0.0)


@kernel
def _street_color(d: Record, b: Block, p: float, q: float, across: float, along: float) -> Color:
    if across < 0.0 and along < 0.0:
        key = network.column_key(d, b.i + (b.left - b.half_left > 0.0))
        return surfaces.asphalt(child(key, 77), p, q)
    if across < 0.0:
        on_left = b.left < b.half_left
        key = network.column_key(d, b.i + (not on_left))
        end = 2 * b.j + (0 if b.bottom - b.half_bottom < b.top - b.half_top else 1)
        return surfaces.carriageway(
            key, q, b.left if on_left else -b.right, b.half_left if on_left else b.half_right, along, end
        )
    on_low = b.bottom < b.half_bottom
    key = network.row_key(d, b.i, b.j + (not on_low))
    end = 2 * b.i + (0 if b.left - b.half_left < b.right - b.half_right else 1)
    return surfaces.carriageway(
        key, p, b.bottom if on_low else -b.top, b.half_bottom if on_low else b.half_top, across, end
    )


@inlined
def block_color(d: Record, key: Key, now: Conditions, x: float, y: float, width: float, height: float) -> Color:
    """Return the ground inside a block, in block coordinates (see `plots`)."""
    kind = network.block_kind(d, key)
    if kind == HOUSES:
        return _houses(key, now, x, y, width, height)
    if kind == ROWS:
        return _rows(key, now, x, y, width, height)
    if kind == TOWERS:
        return _plaza(key, now, x, y)
    if kind == WAREHOUSE:
        hall = plots.warehouse(key, width, height)
        if y < hall.y - hall.half_y - 2.0:
            return _stalls(key, x, y)
        return surfaces.pavement(key, x, y, -14.0)
    if kind == PARKING:
        return _stalls(key, x, y)
    if kind == SPORT:
        return _pitch(key, now, x, y, width, height)
    return _park(key, now, x, y, width, height, kind == SLABS)


@kernel
def _houses(key: Key, now: Conditions, x: float, y: float, width: float, height: float) -> Color:
    side = 0 if x < width / 2 else 1
    lots = plots.num_lots(key, 13.5, 21.0, height)
    size, depth = height / lots, width / 2
    k = min(max(int(y / size), 0), lots - 1)
    lot = plots.lot_key(key, side, k)
    u, v = (x if side == 0 else width - x), y - k * size
    home = plots.house(lot, size, depth)
    hard = pick(lot, 20, 105.0, 190.0) + 6.0 * noise(lot, u, v)
    if 0.5 < v < 3.4 and u < home.x + home.half_x * (1.0 if draw(lot, 21) < 0.6 else -0.6):
        return (hard + 6.0, hard, hard - 6.0)
    if abs(v - home.y) < 0.7 and u < home.x:
        return shade((hard, hard - 4.0, hard - 12.0), pick(lot, 22, -20.0, 30.0))
    back = home.x + home.half_x
    if v < 0.16 or u > depth - 0.12:
        return (104.0, 88.0, 70.0)
    if u > back:
        if u < back + pick(lot, 23, 0.0, 4.0) and abs(v - home.y) < home.half_y:
            return surfaces.pavement(lot, u, v, pick(lot, 24, -30.0, 20.0))
        feature = draw(lot, 25)
        du, dv = u - (back + depth) / 2 - 1.0, v - size * pick(lot, 26, 0.3, 0.7)
        if feature < 0.16 and (du / 2.2) ** 2 + (dv / 3.6) ** 2 < 1.0:
            return (70.0, 160.0, 188.0)
        if feature > 0.6 and abs(du) < pick(lot, 27, 1.0, 2.2) and abs(dv) < pick(lot, 28, 1.0, 3.0):
            return shade(surfaces.soil(lot, u, v), 16.0 if dv % 1.2 < 0.6 else -16.0)
        if 0.3 < feature < 0.4 and du * du + dv * dv < 3.2:
            return (50.0, 60.0, 92.0)
    elif u < 1.0 and draw(lot, 29) < 0.3:
        return shade(now.lawn, -32.0 + 12.0 * noise(lot, u / 0.4, v / 0.4))
    elif u > home.x - home.half_x - 1.3 and abs(v - home.y) < home.half_y:
        return surfaces.soil(lot, u, v)
    return surfaces.lawn(lot, now.lawn, u, v)


@kernel
def _rows(key: Key, now: Conditions, x: float, y: float, width: float, height: float) -> Color:
    side = 0 if x < width / 2 else 1
    lots = plots.num_lots(key, 5.5, 8.5, height)
    size = height / lots
    k = min(max(int(y / size), 0), lots - 1)
    lot = plots.lot_key(key, side, k)
    u, v = (x if side == 0 else width - x), y - k * size
    home = plots.terrace(lot, key, size)
    if u < home.x:
        if abs(v - size * 0.3) < 0.7:
            return surfaces.pavement(lot, u, v, 8.0)
        if draw(lot, 30) < 0.5:
            return surfaces.lawn(lot, now.lawn, u, v)
        return surfaces.pavement(lot, v, u, pick(lot, 33, -40.0, 10.0))
    if v < 0.2 or u > width / 2 - 0.4:
        return (112.0, 92.0, 78.0)
    if u < home.x + home.half_x + pick(lot, 34, 1.0, 5.0):
        return surfaces.pavement(lot, u, v, pick(lot, 35, -30.0, 10.0))
    if draw(lot, 36) < 0.2:
        return surfaces.soil(lot, u, v)
    return surfaces.lawn(lot, now.lawn, u, v)


@kernel
def _plaza(key: Key, now: Conditions, x: float, y: float) -> Color:
    first = pick(key, 40, 120.0, 190.0)
    warm, second = pick(key, 41, -4.0, 16.0), first + pick(key, 42, -46.0, 30.0)
    size = pick(key, 43, 2.0, 6.0)
    style = draw(key, 44)
    i, j = int(np.floor(x / size)), int(np.floor(y / size))
    if style < 0.4:
        light = first if (i + j) % 2 == 0 else second
    elif style < 0.7:
        light = first if i % 3 != 0 else second
    else:
        light = first + (second - first) * draw(child(child(key, i), j), 1)
    bed = child(child(child(key, 45), int(np.floor(x / 11.0))), int(np.floor(y / 11.0)))
    u, v = x % 11.0 - 5.5, y % 11.0 - 5.5
    if draw(bed, 0) < 0.3:
        reach = pick(bed, 1, 1.2, 3.0)
        inside = max(abs(u), abs(v)) if draw(bed, 2) < 0.6 else np.hypot(u, v)
        if inside < reach:
            return surfaces.lawn(bed, now.lawn, x, y) if inside < reach - 0.3 else (150.0, 146.0, 140.0)
    light += 5.0 * noise(key, x / 1.1, y / 1.1)
    return (light + warm, light, light - warm)


@kernel
def _stalls(key: Key, x: float, y: float) -> Color:
    color = surfaces.asphalt(child(key, int(np.floor(x / 40.0))), x, y % 9.0 - 4.5)
    _, into, is_stall = plots.stall_row(y)
    if is_stall:
        if x % plots.STALL_M < 0.12 or abs(into - 5.2) < 0.05 or abs(into - plots.AISLE_PERIOD_M + 5.2) < 0.05:
            return surfaces.PAINT
    elif abs(into - plots.AISLE_PERIOD_M / 2) < 0.08 and x % 4.0 < 1.6:
        return surfaces.PAINT
    return color


@kernel
def _pitch(key: Key, now: Conditions, x: float, y: float, width: float, height: float) -> Color:
    margin = pick(key, 50, 4.0, 9.0)
    inside = min(min(x, width - x), min(y, height - y)) - margin
    if inside < 0.0:
        return surfaces.lawn(key, now.lawn, x, y) if inside < -2.0 else surfaces.soil(key, x, y)
    u, v = x - width / 2, y - height / 2
    ring = np.hypot(u, v)
    if inside < 0.14 or abs(v) < 0.07 or abs(ring - 7.0) < 0.08:
        return surfaces.PAINT
    kind = draw(key, 51)
    if kind < 0.3:
        return shade((158.0, 86.0, 62.0), 6.0 * noise(key, x / 1.2, y / 1.2))
    if kind < 0.5:
        return shade((58.0, 104.0, 140.0), 5.0 * noise(key, x / 1.2, y / 1.2))
    stripe = 9.0 if (y / 5.5) % 2.0 < 1.0 else -5.0
    return shade(surfaces.lawn(key, now.lawn, x, y), stripe)


@kernel
def _park(key: Key, now: Conditions, x: float, y: float, width: float, height: float, estate: bool) -> Color:
    lake = plots.pond(key, width, height)
    if not estate and lake.half_x > 0.0:
        inside = ((x - lake.x) / lake.half_x) ** 2 + ((y - lake.y) / lake.half_y) ** 2
        inside += 0.25 * noise(key, x / 6.0, y / 6.0)
        if inside < 1.0:
            return surfaces.water(key, x, y)
        if inside < 1.25:
            return surfaces.soil(key, x, y)
    for n in range(3):
        path = child(key, 60 + n)
        swing = pick(path, 0, 2.0, 9.0) * np.sin(pick(path, 1, 0.03, 0.07) * (x if n % 2 == 0 else y) + n)
        target = height * pick(path, 2, 0.2, 0.8) if n % 2 == 0 else width * pick(path, 2, 0.2, 0.8)
        if abs((y if n % 2 == 0 else x) - target - swing) < pick(path, 3, 0.8, 1.7):
            return shade(surfaces.soil(path, x, y), 34.0)
    play = np.hypot(x - width * pick(key, 64, 0.2, 0.8), y - height * pick(key, 65, 0.2, 0.8))
    if play < 7.0 and draw(key, 66) < 0.6:
        if play < 3.2 + noise(key, x / 2.0, y / 2.0):
            return (pick(key, 67, 60.0, 190.0), pick(key, 68, 70.0, 150.0), pick(key, 69, 50.0, 180.0))
        return blend(surfaces.soil(key, x, y), (214.0, 196.0, 150.0), 0.7)
    area = child(child(child(key, 70), int(np.floor(x / 23.0))), int(np.floor(y / 19.0)))
    flower = np.hypot(x % 23.0 - 11.5, (y % 19.0 - 9.5) * pick(area, 3, 0.7, 1.6))
    if flower < pick(area, 1, 0.8, 3.0) and draw(area, 0) < 0.35:
        return (pick(area, 4, 120.0, 210.0), pick(area, 5, 60.0, 160.0), pick(area, 6, 60.0, 170.0))
    return surfaces.lawn(key, now.lawn, x, y)
