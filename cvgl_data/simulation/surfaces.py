"""Colors of what lies flat: carriageways with their markings, pavements, lawns, water.

Textures hold no detail finer than about 0.3 m, except painted lines, so that pictures of different scale agree.
"""

from __future__ import annotations

import numpy as np

from cvgl_data.simulation.kernels import Color, Key, blend, child, draw, kernel, noise, pick, shade

PAINT = (222.0, 222.0, 214.0)
YELLOW = (214.0, 172.0, 62.0)


@kernel
def asphalt(key: Key, t: float, x: float) -> Color:
    """Return worn asphalt, with patches, seams and manholes, at meters ``t`` along and ``x`` across."""
    tone = pick(key, 11, 72.0, 122.0) + 7.0 * noise(key, t / 0.8, x / 0.8) + 9.0 * noise(key, t / 9.0, x / 2.5)
    warm = pick(key, 12, -5.0, 6.0)
    cell = int(np.floor(t / 9.0))
    patch = child(key, cell)
    if draw(patch, 0) < 0.6:
        long, wide = pick(patch, 1, 0.6, 3.4), pick(patch, 2, 0.4, 1.7)
        at_t, at_x = (cell + 0.5) * 9.0 + pick(patch, 3, -1.0, 1.0), pick(patch, 4, -4.5, 4.5)
        if abs(t - at_t) < long and abs(x - at_x) < wide:
            tone += pick(patch, 5, -34.0, 30.0)
    if draw(patch, 6) < 0.4:
        at_x = pick(patch, 7, -4.0, 4.0) + 0.9 * noise(patch, t / 1.7, 0.5)
        if abs(x - at_x) < 0.07:
            tone -= 32.0
    if draw(patch, 8) < 0.45:
        round_t, round_x = t - (cell + pick(patch, 9, 0.1, 0.9)) * 9.0, x - pick(patch, 10, -2.6, 2.6)
        square = round_t * round_t + round_x * round_x
        if square < 0.20:
            tone = 48.0 if square < 0.14 else 140.0
    return (tone + warm, tone, tone - warm)


@kernel
def carriageway(key: Key, t: float, x: float, half: float, to_crossing: float, end: int) -> Color:
    """Return a street's surface with its markings.

    Args:
        key: Key of the street.
        t: Meters along it.
        x: Meters from the centre line.
        half: Half the width of the carriageway in meters.
        to_crossing: Meters to the kerb line of the next cross street.
        end: Number of that end of the street, so that each has its own kind of crossing.
    """
    color = asphalt(child(key, int(np.floor(t / 120.0))), t, x)
    off = abs(x)
    crossing = child(child(key, 55), end)
    if 1.2 < to_crossing < 5.2:
        kind = draw(crossing, 0)
        if kind < 0.35 and to_crossing > 1.8 and off < half - 0.3 and (x / 1.1) % 1.0 < 0.5:
            return PAINT
        if kind > 0.75 and off < half - 0.2 and (to_crossing < 1.5 or to_crossing > 4.9):
            return PAINT
        if 0.35 <= kind < 0.45 and off < half - 0.2:
            return blend(color, (176.0, 84.0, 66.0), 0.7)
        return color
    if 5.7 < to_crossing < 6.15 and draw(crossing, 1) < 0.7 and off < half - 0.3:
        return PAINT
    if to_crossing < 6.5:
        return color
    style = draw(key, 3)
    if style < 0.3:
        if off < 0.09 and t % 6.0 < 3.0:
            return PAINT
    elif style < 0.5:
        if 0.10 < off < 0.24:
            return YELLOW
    elif style < 0.62 and off < 0.10:
        return PAINT
    lane = half - 2.2 if half > 4.5 else half
    if half > 4.5 and draw(key, 4) < 0.6 and (abs(off - lane) < 0.06 or (off > lane and t % 6.0 < 0.12)):
        return PAINT
    if draw(key, 5) < 0.22 and lane - 1.3 < off < lane - 0.1:
        paint = (150.0, 74.0, 62.0) if draw(key, 6) < 0.5 else (72.0, 124.0, 92.0)
        return blend(color, paint, 0.75)
    if off > half - 0.35:
        return shade(color, -14.0)
    return color


@kernel
def arterial(key: Key, t: float, x: float, half: float) -> Color:
    """Return the surface of the four-lane road between districts."""
    off = abs(x)
    color = asphalt(child(key, int(np.floor(t / 150.0))), t, x)
    if draw(key, 3) < 0.5:
        if 0.12 < off < 0.27:
            return YELLOW
    elif off < 1.0:
        return (104.0, 118.0, 74.0) if off < 0.8 else (168.0, 166.0, 160.0)
    if abs(off - half * 0.5) < 0.08 and t % 9.0 < 4.0:
        return PAINT
    if abs(off - half + 0.45) < 0.07:
        return PAINT
    return color


@kernel
def pavement(key: Key, t: float, x: float, tone: float) -> Color:
    """Return the slabs of a sidewalk or yard."""
    light = 158.0 + tone + pick(key, 21, -20.0, 16.0) + 6.0 * noise(key, t / 1.3, x / 1.3)
    warm = pick(key, 22, -3.0, 12.0)
    size = pick(key, 23, 1.2, 3.2)
    if (t / size) % 1.0 < 0.07 / size:
        light -= 26.0
    if noise(key, t / 3.7, x / 2.1) > 0.72:
        light -= 14.0
    return (light + warm, light + 0.4 * warm, light - warm)


@kernel
def lawn(key: Key, base: Color, x: float, y: float) -> Color:
    """Return grass: the season's color, each lawn its own tone, with worn and mown spots."""
    light = pick(key, 31, -18.0, 16.0) + 7.0 * noise(key, x / 0.9, y / 0.9) + 9.0 * noise(key, x / 6.0, y / 6.0)
    color = (base[0] + light, base[1] + light, base[2] + 0.7 * light)
    if noise(key, x / 3.1, y / 2.3) > pick(key, 32, 0.45, 1.2):
        color = blend(color, (150.0, 128.0, 92.0), 0.6)
    return color


@kernel
def water(key: Key, x: float, y: float) -> Color:
    """Return open water with faint ripples."""
    light = 5.0 * noise(key, x / 2.4, y / 1.1) + 7.0 * noise(key, x / 30.0, y / 22.0)
    return (52.0 + light, 84.0 + light, 98.0 + light)


@kernel
def soil(key: Key, x: float, y: float) -> Color:
    """Return bare soil, bark or gravel."""
    light = pick(key, 41, -16.0, 22.0) + 8.0 * noise(key, x / 0.8, y / 0.8)
    return (138.0 + light, 116.0 + light, 88.0 + light)
