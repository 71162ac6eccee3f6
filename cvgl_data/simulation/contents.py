"""What stands on blocks and along kerbs: buildings, trees, cars, containers, lamp posts."""

from __future__ import annotations

import numpy as np

from cvgl_data.simulation import network, plots
from cvgl_data.simulation.fixtures import (
    PAINTS,
    ROOFS,
    TOPS,
    WALLS,
    add_car,
    add_roof_units,
    add_tree,
    choose_color,
)
from cvgl_data.simulation.kernels import Key, Record, child, draw, inlined, kernel, pick
from cvgl_data.simulation.season import Conditions
from cvgl_data.simulation.solids import (
    BUILDING,
    FLAT,
    FURNITURE,
    GABLE,
    GABLE_ALONG,
    HIP,
    Pen,
    add_box,
    is_free,
)

HOUSES, ROWS, TOWERS, WAREHOUSE = network.HOUSES, network.ROWS, network.TOWERS, network.WAREHOUSE
SLABS, PARK, PARKING = network.SLABS, network.PARK, network.PARKING


@inlined
def _add_block(
    pen: Pen, now: Conditions, d: Record, key: Key, p0: float, q0: float, width: float, height: float
) -> None:
    kind = network.block_kind(d, key)
    if kind == HOUSES:
        _add_houses(pen, now, d, key, p0, q0, width, height)
    elif kind == ROWS:
        _add_rows(pen, now, d, key, p0, q0, width, height)
    elif kind in (TOWERS, SLABS):
        for n in range(4 if kind == TOWERS else 3):
            f = plots.tower(key, n, width, height) if kind == TOWERS else plots.slab(key, n, width, height)
            part = child(key, 230 + n)
            wall = choose_color(WALLS, child(part if kind == TOWERS else key, 10), 14.0)
            top = choose_color(TOPS, child(part, 12), 14.0)
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
                add_roof_units(pen, d, p0 + f.x, q0 + f.y, f, part)
        _add_grove(pen, now, d, key, p0, q0, width, height, 11.0 if kind == TOWERS else 9.0, 0.3)
    elif kind == WAREHOUSE:
        f = plots.warehouse(key, width, height)
        wall, top = choose_color(WALLS, child(key, 10), 20.0), choose_color(TOPS, child(key, 12), 22.0)
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
            add_roof_units(pen, d, p0 + f.x, q0 + f.y, f, key)
        _add_parked(pen, now, d, key, p0, q0, width, f.y - f.half_y - 2.0)
        for n in range(8):
            box = child(key, 240 + n)
            x, y = width * pick(box, 0, 0.05, 0.95), height * pick(box, 1, 0.1, 0.95)
            clear = abs(x - f.x) > f.half_x + 7.0 or abs(y - f.y) > f.half_y + 7.0
            if clear and y > f.y - f.half_y - 1.0 and draw(box, 2) < 0.7:
                paint = choose_color(PAINTS, child(box, 3), 10.0)
                add_box(pen, d, p0 + x, q0 + y, 1.25, 3.0, (0.0, 2.6, 0.0), FLAT, FURNITURE, box, paint, paint)
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
            if kind in (TOWERS, SLABS):
                for n in range(4 if kind == TOWERS else 3):
                    f = plots.tower(key, n, width, height) if kind == TOWERS else plots.slab(key, n, width, height)
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
            wall, top = choose_color(WALLS, child(lot, 52), 16.0), choose_color(ROOFS, child(lot, 54), 16.0)
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
            wall = choose_color(WALLS, child(lot if draw(key, 39) < 0.6 else key, 52), 16.0)
            top = choose_color(TOPS if flat else ROOFS, child(lot if draw(lot, 48) < 0.4 else key, 54), 16.0)
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


@inlined
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
