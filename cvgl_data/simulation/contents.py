"""What stands on blocks and along kerbs: buildings, trees, cars, containers, lamp posts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvgl_data.simulation import network, plots
from cvgl_data.simulation.kernels import Color, Key, Record, child, draw, kernel, pick, shade
from cvgl_data.simulation.season import Conditions
from cvgl_data.simulation.solids import (
    BUILDING,
    FLAT,
    FURNITURE,
    GABLE,
    GABLE_ALONG,
    HIP,
    VEGETATION,
    VEHICLE,
    Pen,
    add_box,
    add_crown,
    is_free,
)

HOUSES, ROWS, TOWERS, WAREHOUSE = network.HOUSES, network.ROWS, network.TOWERS, network.WAREHOUSE
SLABS, PARK, PARKING = network.SLABS, network.PARK, network.PARKING

_WALLS = np.array(
    [
        *[(150, 82, 62), (172, 108, 78), (128, 70, 58), (198, 186, 160), (222, 212, 190), (206, 170, 128)],
        *[
            (176, 180, 178),
            (146, 150, 152),
            (214, 200, 132),
            (188, 148, 140),
            (132, 150, 168),
            (228, 226, 220),
        ],
        *[(150, 164, 140), (104, 108, 116)],
    ],
    np.float64,
)
_ROOFS = np.array(
    [
        *[(152, 78, 58), (170, 96, 66), (118, 62, 52), (92, 92, 98), (70, 72, 78), (120, 112, 104)],
        *[(136, 104, 80), (104, 82, 68), (88, 104, 92)],
    ],
    np.float64,
)
_TOPS = np.array(
    [
        (168, 164, 156),
        (142, 140, 136),
        (208, 206, 200),
        (108, 106, 104),
        (128, 118, 108),
        (118, 134, 96),
        (184, 172, 150),
    ],
    np.float64,
)
_PAINTS = np.array(
    [
        *[(228, 228, 226), (198, 200, 204), (150, 152, 158), (44, 46, 52), (62, 66, 76), (140, 32, 34)],
        *[(44, 70, 124), (98, 116, 142), (96, 84, 66), (42, 84, 64), (204, 168, 56)],
    ],
    np.float64,
)


@kernel
def _choose(palette: NDArray[np.float64], key: Key, spread: float) -> Color:
    row = int(draw(key, 0) * len(palette))
    light = pick(key, 1, -spread, spread)
    return (palette[row, 0] + light, palette[row, 1] + light, palette[row, 2] + light)


@kernel
def add_tree(pen: Pen, now: Conditions, d: Record, p: float, q: float, key: Key, size: float) -> None:
    """Add a tree of about ``size`` times 3 m crown radius; its lowest leaves hang above 2.7 m."""
    radius = size * pick(key, 1, 2.0, 3.4)
    half_z = radius * pick(key, 2, 0.8, 1.35)
    bottom = pick(key, 3, 2.8, 3.6)
    evergreen = draw(key, 4) < 0.22
    light = pick(key, 5, -16.0, 18.0)
    green = (66.0 + light + 18.0 * draw(key, 6), 98.0 + light, 50.0 + 0.6 * light)
    if evergreen:
        green = (46.0 + 0.5 * light, 78.0 + 0.5 * light, 56.0 + 0.5 * light)
    else:
        gold = (196.0 + light, 132.0 + light - 50.0 * draw(key, 7), 48.0)
        share = now.autumn * pick(key, 8, 0.3, 1.0)
        twigs = (118.0 + light, 104.0 + light, 88.0 + light)
        bare = 1.0 - now.leaf
        green = (
            (green[0] * (1.0 - share) + gold[0] * share) * (1.0 - bare) + twigs[0] * bare,
            (green[1] * (1.0 - share) + gold[1] * share) * (1.0 - bare) + twigs[1] * bare,
            (green[2] * (1.0 - share) + gold[2] * share) * (1.0 - bare) + twigs[2] * bare,
        )
    if add_crown(pen, d, p, q, bottom + half_z, radius, half_z, key, green):
        bark = (92.0, 76.0, 62.0)
        trunk = 0.09 + 0.05 * radius
        add_box(pen, d, p, q, trunk, trunk, (0.0, bottom + half_z, 0.0), FLAT, VEGETATION, key, bark, bark)


@kernel
def add_car(pen: Pen, d: Record, p: float, q: float, along_q: bool, key: Key) -> None:
    """Add a parked car, along columns or across them."""
    paint = _choose(_PAINTS, child(key, 1), 8.0)
    long, tall, back = pick(key, 3, 1.95, 2.35), pick(key, 4, 1.4, 1.75), pick(key, 5, -0.3, 0.3)
    half_p, half_q = (0.9, long) if along_q else (long, 0.9)
    if add_box(pen, d, p, q, half_p, half_q, (0.22, 0.85, 0.0), FLAT, VEHICLE, key, paint, paint):
        half_p, half_q = (0.78, 0.58 * long) if along_q else (0.58 * long, 0.78)
        at_p, at_q = (p, q + back) if along_q else (p + back, q)
        glass = (46.0, 54.0, 62.0)
        add_box(
            pen,
            d,
            at_p,
            at_q,
            half_p,
            half_q,
            (0.85, tall, 0.0),
            FLAT,
            VEHICLE,
            key,
            glass,
            shade(paint, 6.0),
        )


@kernel
def _add_roof_units(pen: Pen, d: Record, p: float, q: float, f: plots.Footprint, key: Key) -> None:
    for n in range(int(pick(key, 61, 1.0, 5.0))):
        unit = child(key, 300 + n)
        half_p, half_q = pick(unit, 0, 0.7, 2.6), pick(unit, 1, 0.7, 2.6)
        if half_p < 0.4 * f.half_x and half_q < 0.4 * f.half_y:
            at_p = p + pick(unit, 2, -1.0, 1.0) * (f.half_x - half_p - 1.0)
            at_q = q + pick(unit, 3, -1.0, 1.0) * (f.half_y - half_q - 1.0)
            grey = pick(unit, 4, 90.0, 215.0)
            heights = (f.height, f.height + pick(unit, 5, 0.8, 2.6), 0.0)
            color = (grey, grey, grey + 4.0)
            add_box(pen, d, at_p, at_q, half_p, half_q, heights, FLAT, BUILDING, child(key, 1), color, color)


@kernel
def _add_block(
    pen: Pen, now: Conditions, d: Record, key: Key, p0: float, q0: float, width: float, height: float
) -> None:
    kind = network.block_kind(d, key)
    if kind == HOUSES:
        _add_houses(pen, now, d, key, p0, q0, width, height)
    elif kind == ROWS:
        _add_rows(pen, now, d, key, p0, q0, width, height)
    elif kind == TOWERS or kind == SLABS:
        for n in range(4 if kind == TOWERS else 3):
            f = plots.tower(key, n, width, height) if kind == TOWERS else plots.slab(key, n, width, height)
            part = child(key, 230 + n)
            wall = _choose(_WALLS, child(part if kind == TOWERS else key, 10), 14.0)
            top = _choose(_TOPS, child(part, 12), 14.0)
            if add_box(
                pen,
                d,
                p0 + f.x,
                q0 + f.y,
                f.half_x,
                f.half_y,
                (0.0, f.height, 0.0),
                FLAT,
                BUILDING,
                part,
                wall,
                top,
            ):
                _add_roof_units(pen, d, p0 + f.x, q0 + f.y, f, part)
        _add_grove(pen, now, d, key, p0, q0, width, height, 11.0 if kind == TOWERS else 9.0, 0.3)
    elif kind == WAREHOUSE:
        f = plots.warehouse(key, width, height)
        wall, top = _choose(_WALLS, child(key, 10), 20.0), _choose(_TOPS, child(key, 12), 22.0)
        if add_box(
            pen,
            d,
            p0 + f.x,
            q0 + f.y,
            f.half_x,
            f.half_y,
            (0.0, f.height, 0.0),
            FLAT,
            BUILDING,
            key,
            wall,
            top,
        ):
            _add_roof_units(pen, d, p0 + f.x, q0 + f.y, f, key)
        _add_parked(pen, now, d, key, p0, q0, width, f.y - f.half_y - 2.0)
        for n in range(8):
            box = child(key, 240 + n)
            x, y = width * pick(box, 0, 0.05, 0.95), height * pick(box, 1, 0.1, 0.95)
            clear = abs(x - f.x) > f.half_x + 7.0 or abs(y - f.y) > f.half_y + 7.0
            if clear and y > f.y - f.half_y - 1.0 and draw(box, 2) < 0.7:
                paint = _choose(_PAINTS, child(box, 3), 10.0)
                add_box(
                    pen, d, p0 + x, q0 + y, 1.25, 3.0, (0.0, 2.6, 0.0), FLAT, FURNITURE, box, paint, paint
                )
    elif kind == PARKING:
        _add_parked(pen, now, d, key, p0, q0, width, height)
    elif kind == PARK:
        _add_grove(pen, now, d, key, p0, q0, width, height, 8.5, pick(key, 71, 0.25, 0.75))


@kernel
def _add_grove(
    pen: Pen,
    now: Conditions,
    d: Record,
    key: Key,
    p0: float,
    q0: float,
    width: float,
    height: float,
    step: float,
    share: float,
) -> None:
    kind = network.block_kind(d, key)
    lake = plots.pond(key, width, height)
    for i in range(int(width / step)):
        for j in range(int(height / step)):
            tree = child(child(child(key, 72), i), j)
            x, y = (i + pick(tree, 10, 0.2, 0.8)) * step, (j + pick(tree, 11, 0.2, 0.8)) * step
            if draw(tree, 12) > share * (1.6 if (i // 3 + j // 3) % 2 == 0 else 0.5):
                continue
            clear = True
            if kind == TOWERS or kind == SLABS:
                for n in range(4 if kind == TOWERS else 3):
                    f = (
                        plots.tower(key, n, width, height)
                        if kind == TOWERS
                        else plots.slab(key, n, width, height)
                    )
                    if abs(x - f.x) < f.half_x + 3.5 and abs(y - f.y) < f.half_y + 3.5:
                        clear = False
            elif lake.half_x > 0.0:
                clear = ((x - lake.x) / lake.half_x) ** 2 + ((y - lake.y) / lake.half_y) ** 2 > 1.6
            if clear:
                add_tree(pen, now, d, p0 + x, q0 + y, tree, pick(tree, 13, 0.7, 1.5))


@kernel
def _add_parked(
    pen: Pen, now: Conditions, d: Record, key: Key, p0: float, q0: float, width: float, height: float
) -> None:
    share = pick(key, 73, 0.2, 0.8)
    for i in range(int(width / plots.STALL_M) - 1):
        for j in range(2 * int(height / plots.AISLE_PERIOD_M) + 1):
            y = (j // 2) * plots.AISLE_PERIOD_M + (2.6 if j % 2 == 0 else plots.AISLE_PERIOD_M - 2.6)
            stall = child(child(child(child(key, 74), i), j), now.day)
            if y < height - 3.0 and draw(stall, 0) < share:
                add_car(pen, d, p0 + (i + 0.5) * plots.STALL_M + 0.06, q0 + y, True, stall)


@kernel
def _add_houses(
    pen: Pen, now: Conditions, d: Record, key: Key, p0: float, q0: float, width: float, height: float
) -> None:
    lots = plots.num_lots(key, 13.5, 21.0, height)
    size, depth = height / lots, width / 2
    for side in range(2):
        for k in range(lots):
            lot = plots.lot_key(key, side, k)
            home = plots.house(lot, size, depth)
            inward = 1.0 if side == 0 else -1.0
            street = p0 if side == 0 else p0 + width
            q = q0 + k * size
            roof = GABLE if draw(lot, 50) < 0.6 else HIP
            rise = min(home.half_x, home.half_y) * pick(lot, 51, 0.45, 0.85)
            wall, top = _choose(_WALLS, child(lot, 52), 16.0), _choose(_ROOFS, child(lot, 54), 16.0)
            if add_box(
                pen, d, street + inward * home.x, q + home.y, home.half_x, home.half_y,
                (0.0, home.height, rise), roof, BUILDING, lot, wall, top,
            ):  # fmt: skip
                chimney = (140.0, 84.0, 66.0)
                at = home.height + rise
                add_box(
                    pen, d, street + inward * (home.x + 0.4 * home.half_x), q + home.y, 0.4, 0.4,
                    (home.height, at + 0.7, 0.0), FLAT, BUILDING, child(lot, 1), chimney, chimney,
                )  # fmt: skip
            if draw(child(lot, now.day), 56) < 0.4:
                add_car(pen, d, street + inward * 2.8, q + 1.95, False, child(child(lot, now.day), 57))
            for n in range(3):
                tree = child(lot, 58 + n)
                if draw(tree, 20) < (0.5 if n == 0 else 0.6):
                    back = home.x + home.half_x
                    u = 2.0 if n == 0 else pick(tree, 21, back + 2.5, max(back + 2.6, depth - 1.0))
                    v = size * pick(tree, 22, 0.4, 0.9)
                    add_tree(
                        pen,
                        now,
                        d,
                        street + inward * u,
                        q + v,
                        tree,
                        0.7 if n == 0 else pick(tree, 23, 0.6, 1.4),
                    )


@kernel
def _add_rows(
    pen: Pen, now: Conditions, d: Record, key: Key, p0: float, q0: float, width: float, height: float
) -> None:
    lots = plots.num_lots(key, 5.5, 8.5, height)
    size = height / lots
    flat = draw(key, 37) < 0.3
    for side in range(2):
        for k in range(lots):
            lot = plots.lot_key(key, side, k)
            home = plots.terrace(lot, key, size)
            if 2 * home.x > width - 6.0 or draw(lot, 38) < 0.04:
                continue
            p = p0 + home.x if side == 0 else p0 + width - home.x
            q = q0 + (k + 0.5) * size
            wall = _choose(_WALLS, child(lot if draw(key, 39) < 0.6 else key, 52), 16.0)
            top = _choose(_TOPS if flat else _ROOFS, child(lot if draw(lot, 48) < 0.4 else key, 54), 16.0)
            heights = (0.0, home.height, 0.0 if flat else 2.4)
            roof = FLAT if flat else GABLE_ALONG
            stands = add_box(pen, d, p, q, home.half_x, home.half_y, heights, roof, BUILDING, lot, wall, top)
            if stands and not flat and draw(lot, 49) < 0.7:
                brick = (126.0, 78.0, 62.0)
                stack = (home.height, home.height + 2.2, 0.0)
                add_box(
                    pen,
                    d,
                    p,
                    q + home.half_y - 0.5,
                    0.7,
                    0.3,
                    stack,
                    FLAT,
                    BUILDING,
                    child(lot, 1),
                    brick,
                    brick,
                )
            tree = child(lot, 58)
            room = width / 2 - home.x - home.half_x
            if room > 5.0 and draw(tree, 20) < 0.35:
                away = home.x + home.half_x + room * pick(tree, 21, 0.5, 0.9)
                add_tree(
                    pen,
                    now,
                    d,
                    p0 + away if side == 0 else p0 + width - away,
                    q,
                    tree,
                    pick(tree, 23, 0.5, 1.1),
                )


@kernel
def _add_kerb(
    pen: Pen,
    now: Conditions,
    d: Record,
    street: Key,
    block: Key,
    side: int,
    half: float,
    kerb: float,
    start: float,
    stop: float,
) -> None:
    outward = -1.0 if side % 2 == 0 else 1.0
    along_q = side < 2
    busy, green = pick(street, 7, 0.15, 0.85), draw(street, 8)
    step = pick(street, 9, 7.5, 12.0)
    if half > 4.5:
        for k in range(int((stop - start - 16.0) / 6.0)):
            slot = child(child(child(child(block, 80), side), k), now.day)
            if draw(slot, 0) < busy:
                t, off = start + 8.0 + 6.0 * (k + 0.5), kerb + outward * 1.1
                if along_q:
                    add_car(pen, d, off, t, True, slot)
                else:
                    add_car(pen, d, t, off, False, slot)
    for k in range(int((stop - start - 8.0) / step)):
        post = child(child(child(block, 81), side), k)
        t, off = start + 4.0 + (k + 0.5) * step, kerb - outward * 0.85
        p, q = (off, t) if along_q else (t, off)
        if green < 0.7 and draw(post, 0) < 0.75:
            add_tree(pen, now, d, p, q, post, 0.85)
        elif k % 3 == 1 and is_free(pen, d, p, q):
            metal = (92.0, 96.0, 98.0)
            add_box(pen, d, p, q, 0.09, 0.09, (0.0, 6.5, 0.0), FLAT, FURNITURE, post, metal, metal)


@kernel
def add_district(pen: Pen, now: Conditions, along_kerbs: bool) -> None:
    """Add all that a district has within the pen's reach."""
    d = pen.region.districts[pen.row, pen.col]
    if d.kind == network.LAKE:
        return
    reach = pen.reach_m * pen.region.scale
    low_p, high_p, low_q, high_q = np.inf, -np.inf, np.inf, -np.inf
    for corner in range(4):
        x = pen.region.x + reach * (1 - 2 * (corner % 2))
        y = pen.region.y + reach * (1 - 2 * (corner // 2))
        p, q = network.to_street_frame(d, x, y)
        low_p, high_p = min(low_p, p), max(high_p, p)
        low_q, high_q = min(low_q, q), max(high_q, q)
    # No point of a Voronoi cell lies farther from its site than 1.1 cells.
    far = 1.1 * network.CELL / d.scale
    low_p, high_p = max(low_p - 2 * d.bend_m, -far), min(high_p + 2 * d.bend_m, far)
    low_q, high_q = max(low_q, -far), min(high_q, far)
    inset = d.walk + d.verge
    for i in range(int(np.floor(low_p / d.pitch_p)) - 1, int(np.floor(high_p / d.pitch_p)) + 2):
        left, right = network.column_line(d, i), network.column_line(d, i + 1)
        west, east = network.column_key(d, i), network.column_key(d, i + 1)
        for j in range(int(np.floor(low_q / d.pitch_q)) - 2, int(np.floor(high_q / d.pitch_q)) + 2):
            bottom, top = network.row_line(d, i, j), network.row_line(d, i, j + 1)
            x, y = network.from_street_frame(d, (left + right) / 2, (bottom + top) / 2)
            _, _, _, _, edge = network.owner(pen.region, x, y)
            size = np.hypot(right - left, top - bottom) / 2 + d.bend_m
            beyond = max(abs(x - pen.region.x), abs(y - pen.region.y)) / d.scale > pen.reach_m * 1.01 + size
            if beyond or (edge > size and not is_free(pen, d, (left + right) / 2, (bottom + top) / 2)):
                continue
            south, north = network.row_key(d, i, j), network.row_key(d, i, j + 1)
            halves = (
                network.half_width(west),
                network.half_width(east),
                network.half_width(south),
                network.half_width(north),
            )
            p0, p1, q0, q1 = left + halves[0], right - halves[1], bottom + halves[2], top - halves[3]
            key = network.block_key(d, i, j)
            _add_block(pen, now, d, key, p0 + inset, q0 + inset, p1 - p0 - 2 * inset, q1 - q0 - 2 * inset)
            if along_kerbs:
                streets, kerbs = (west, east, south, north), (p0, p1, q0, q1)
                for side in range(4):
                    start, stop = (q0, q1) if side < 2 else (p0, p1)
                    _add_kerb(pen, now, d, streets[side], key, side, halves[side], kerbs[side], start, stop)
