"""Single things and their colors: trees, cars, roof units."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvgl_data.simulation import plots
from cvgl_data.simulation.kernels import Color, Key, Record, child, draw, kernel, pick, shade
from cvgl_data.simulation.season import Conditions
from cvgl_data.simulation.solids import BUILDING, FLAT, VEGETATION, VEHICLE, Pen, add_box, add_crown

WALLS = np.array(
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
ROOFS = np.array(
    [
        *[(152, 78, 58), (170, 96, 66), (118, 62, 52), (92, 92, 98), (70, 72, 78), (120, 112, 104)],
        *[(136, 104, 80), (104, 82, 68), (88, 104, 92)],
    ],
    np.float64,
)
TOPS = np.array(
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
PAINTS = np.array(
    [
        *[(228, 228, 226), (198, 200, 204), (150, 152, 158), (44, 46, 52), (62, 66, 76), (140, 32, 34)],
        *[(44, 70, 124), (98, 116, 142), (96, 84, 66), (42, 84, 64), (204, 168, 56)],
    ],
    np.float64,
)


@kernel
def choose_color(palette: NDArray[np.float64], key: Key, spread: float) -> Color:
    """Return one of a palette's colors, made lighter or darker by up to ``spread``."""
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
    paint = choose_color(PAINTS, child(key, 1), 8.0)
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
def add_roof_units(pen: Pen, d: Record, p: float, q: float, f: plots.Footprint, key: Key) -> None:
    """Add air conditioners and stair heads on a flat roof."""
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
