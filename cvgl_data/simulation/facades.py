"""Colors of the faces of things: walls with windows, roofs, car bodies, leaves."""

from __future__ import annotations

import numpy as np

from cvgl_data.simulation.kernels import Color, Record, blend, child, draw, kernel, noise, pick, scale, shade
from cvgl_data.simulation.solids import BUILDING, FLAT, FURNITURE, VEHICLE

SHADOW = (0.50, 0.53, 0.60)
"""What a cast shadow leaves of each channel: sunlight is warmer than the sky."""


@kernel
def shadowed(color: Color) -> Color:
    """Return a color without direct sun."""
    return (color[0] * SHADOW[0], color[1] * SHADOW[1], color[2] * SHADOW[2])


@kernel
def face_normal(s: Record, face: int) -> tuple[float, float, float]:
    """Return the outward unit vector (east, north, up) of a solid's face, numbered as `solids.hit_solid` does."""
    if face == 4:
        return (0.0, 0.0, 1.0)
    side = face if face < 4 else face - 5
    sign = 1.0 - 2.0 * (side % 2)
    e, n = (s.ux, s.uy) if side < 2 else (-s.uy, s.ux)
    if face < 4:
        return (sign * e, sign * n, 0.0)
    slope = s.rise / s.b
    length = np.sqrt(1.0 + slope * slope)
    return (sign * e * slope / length, sign * n * slope / length, 1.0 / length)


@kernel
def roof_color(s: Record, face: int, e: float, n: float, to_edge: float, sun: tuple[float, float, float]) -> Color:
    """Return the sunlit color of a top face at a point of the region's frame."""
    color = (s.roof_r, s.roof_g, s.roof_b)
    x, y = (e - s.e) * s.ux + (n - s.n) * s.uy, (n - s.n) * s.ux - (e - s.e) * s.uy
    if s.label != BUILDING:
        ribs = 8.0 if s.label == FURNITURE and (x / 0.6) % 1.0 < 0.5 else 0.0
        return shade(color, ribs)
    if s.roof == FLAT:
        if s.a > 3.0 and to_edge < 0.45:
            return shade(color, 26.0)
        seam = -12.0 if s.a > 3.0 and (x / pick(s.key, 70, 3.0, 9.0)) % 1.0 < 0.03 else 0.0
        return shade(color, seam + 7.0 * noise(s.key, x / 0.9, y / 0.9) + 12.0 * noise(s.key, x / 7.0, y / 5.0))
    normal = face_normal(s, face)
    facing = (normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2]) / sun[2]
    tiles = 5.0 if ((x if face < 7 else y) / 0.7) % 1.0 < 0.5 else -5.0
    light = min(max(0.45 + 0.55 * facing, 0.45), 1.3)
    return scale(shade(color, tiles + 6.0 * noise(s.key, x / 1.5, y / 1.5)), light)


@kernel
def wall_color(s: Record, face: int, e: float, n: float, z: float, sun: tuple[float, float, float], lit: bool) -> Color:
    """Return the color of a wall at a point, with its share of sunlight."""
    normal = face_normal(s, face)
    facing = max(0.0, normal[0] * sun[0] + normal[1] * sun[1]) if lit else 0.0
    light = 0.60 + 0.55 * facing
    color = (s.wall_r, s.wall_g, s.wall_b)
    x, y = (e - s.e) * s.ux + (n - s.n) * s.uy, (n - s.n) * s.ux - (e - s.e) * s.uy
    long = face >= 2
    u, half = (x, s.a) if long else (y, s.b)
    if s.label == VEHICLE:
        if s.low < 0.3:
            if z < 0.42:
                return (30.0, 30.0, 32.0)
            if not long:
                return (225.0, 215.0, 190.0) if abs(abs(u) - 0.62) < 0.16 and z > 0.55 else scale(color, light)
        return scale(color, light)
    if s.label == FURNITURE and s.a > 1.0:
        return scale(shade(color, -14.0 if (u / 0.4) % 1.0 < 0.4 else 0.0), light)
    if s.label != BUILDING or s.a < 2.0 or s.low > 0.0:
        return scale(color, light)
    return _facade(s, face, color, u, half, z, light)


@kernel
def _facade(s: Record, face: int, color: Color, u: float, half: float, z: float, light: float) -> Color:
    if z > s.eaves:
        return scale(color, light * 0.95)
    key = s.key
    storey = 3.0 + 0.2 * draw(key, 80)
    floors = max(1, int(s.eaves / storey))
    storey = s.eaves / floors
    floor = min(int(z / storey), floors - 1)
    style = draw(key, 81)
    bays = max(1, int(2 * half / pick(key, 82, 1.9, 3.6)))
    pitch = 2 * half / bays
    bay = min(max(int((u + half) / pitch), 0), bays - 1)
    across, up = (u + half) / pitch - bay, z / storey - floor
    pane = child(child(child(key, 83 + face), floor), bay)
    sky = pick(pane, 0, 0.0, 0.5)
    glass = blend((54.0, 64.0, 78.0), (150.0, 176.0, 200.0), sky)
    wall = shade(color, 6.0 * noise(key, u / 1.5, z / 1.5))
    if z < 0.5:
        return scale(wall, light * 0.72)
    if floor == 0 and floors > 2 and draw(key, 84) < 0.55:
        sign = child(child(key, 90 + face), bay // 2)
        if up > 0.78:
            return scale((pick(sign, 1, 40.0, 220.0), pick(sign, 2, 40.0, 190.0), pick(sign, 3, 40.0, 200.0)), light)
        return scale(glass, 0.8 + 0.2 * light) if 0.05 < across < 0.95 else scale(shade(wall, -30.0), light)
    if floor == 0 and bay == bays // 2 and abs(across - 0.5) * pitch < 0.55 and up * storey < 2.1:
        return scale((pick(key, 85, 50.0, 170.0), pick(key, 86, 40.0, 110.0), pick(key, 87, 40.0, 120.0)), light)
    if style < 0.12 and floors > 3:
        if up < 0.1 or across < 0.06:
            return scale(shade(wall, -40.0), light)
        return scale(glass, 0.75 + 0.3 * light)
    if style < 0.3 and floors > 2:
        return scale(glass, 0.7 + 0.3 * light) if 0.35 < up < 0.82 else scale(wall, light)
    wide, low, high = pick(key, 88, 0.18, 0.34), pick(key, 89, 0.22, 0.36), pick(key, 79, 0.74, 0.86)
    off = abs(across - 0.5)
    if off < wide and low < up < high:
        frame = min(wide - off, 1.0) * pitch < 0.09 or (high - up) * storey < 0.09 or off * pitch < 0.04
        return scale((224.0, 222.0, 216.0), light) if frame else scale(glass, 0.75 + 0.25 * light)
    if style > 0.75 and off < wide + 0.1 and low < up < high:
        return scale((pick(key, 78, 60.0, 150.0), pick(key, 77, 70.0, 140.0), pick(key, 76, 60.0, 140.0)), light)
    return scale(shade(wall, 14.0 if up < 0.06 and floor > 0 else 0.0), light)


@kernel
def crown_color(t: Record, e: float, n: float, z: float, sun: tuple[float, float, float], lit: bool) -> Color:
    """Return the color of a tree's leaves at a point of its surface."""
    x, y, h = e - t.e, n - t.n, z - t.z
    facing = (x * sun[0] + y * sun[1]) / t.radius + h / t.half_z * sun[2] if lit else -0.3
    clumps = noise(t.key, (x + 0.7 * h) / 0.8, (y - 0.6 * h) / 0.8)
    leaves = noise(t.key, (x - 0.5 * y + 0.4 * h) / 0.22, (0.8 * h + 0.5 * y) / 0.22)
    light = 0.76 + 0.30 * facing + 0.22 * clumps + 0.16 * leaves
    return scale((t.r, t.g, t.b), max(light, 0.3))
