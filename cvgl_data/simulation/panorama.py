"""Street-level pictures: equirectangular panoramas by ray casting, on flat ground.

A pixel (u, v) looks at azimuth ``2 pi (u / W - 1/2)`` from the centre column and elevation ``pi (1/2 - v / H)`` in the
camera's frame, (0, 0) being the image's corner. ``pose`` turns that frame into (east, north, up).
"""

from __future__ import annotations

import datetime
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.simulation import network
from cvgl_data.simulation.facades import crown_color, face_normal, roof_color, shadowed, wall_color
from cvgl_data.simulation.ground import ground_color
from cvgl_data.simulation.kernels import Color, blend, entry, kernel, noise
from cvgl_data.simulation.scene import Scene, build_scene, in_shadow
from cvgl_data.simulation.season import conditions
from cvgl_data.simulation.solids import GROUND, SKY, VEGETATION, hit_crown, hit_solid

VIEW_M = 260.0
"""Half the side of the square whose things are seen; beyond it there is haze."""
HAZE_M = 900.0
SECTORS = 1024
"""Directions by which things are listed, from near to far."""


class PanoramaLayers(NamedTuple):
    """An image with the distance in meters (``inf`` for sky) and the label of what each pixel shows."""

    image: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    label: NDArray[np.uint8]


class _Sectors(NamedTuple):
    """Things by direction: those of one sector are items[start[sector]:start[sector + 1]], from near to far."""

    start: NDArray[np.int64]
    items: NDArray[np.int64]
    near: NDArray[np.float64]
    steepest: NDArray[np.float64]
    steepest_left: NDArray[np.float64]


def pose(heading_deg: float, pitch_deg: float, roll_deg: float) -> NDArray[np.float64]:
    """Return the camera's axes as rows (right, forward, up), each (east, north, up).

    The centre column has the bearing ``heading_deg``, the centre looks ``pitch_deg`` above the horizon, and growing
    ``roll_deg`` turns the horizon counter-clockwise in the image (GPano).
    """
    heading, pitch, roll = (math.radians(angle) for angle in (heading_deg, pitch_deg, roll_deg))
    forward = np.array(
        [math.cos(pitch) * math.sin(heading), math.cos(pitch) * math.cos(heading), math.sin(pitch)]
    )
    level = np.array([math.cos(heading), -math.sin(heading), 0.0])
    above = np.cross(level, forward)
    right = math.cos(roll) * level - math.sin(roll) * above
    up = math.sin(roll) * level + math.cos(roll) * above
    return np.stack([right, forward, up])


def trace_panorama(
    seed: int,
    lon: float,
    lat: float,
    *,
    heading_deg: float = 0.0,
    pitch_deg: float = 0.0,
    roll_deg: float = 0.0,
    date: datetime.date,
    width: int = 2048,
    camera_height_m: float = 2.5,
    shadows: bool = True,
) -> PanoramaLayers:
    """Render a panorama with its distances and labels; see `World.render_panorama`."""
    x, y = network.mercator(lon, lat)
    scene = build_scene(seed, x, y, VIEW_M * network.mercator_scale(y), conditions(date, lat))
    count = len(scene.solids) + len(scene.crowns)
    near, steepest = np.zeros(count), np.zeros(count)
    angles = np.zeros((count, 2), np.int64)
    _measure(scene, camera_height_m, near, steepest, angles)
    order = np.argsort(near, kind="stable")
    start, none = np.zeros(SECTORS + 2, np.int64), np.zeros(0, np.int64)
    _sort_into_sectors(order, angles, start, none)
    np.cumsum(start, out=start)
    items = np.zeros(start[-1], np.int64)
    _sort_into_sectors(order, angles, start, items)
    steepest_left = np.zeros(len(items))
    _look_ahead(start, items, steepest, steepest_left)
    image = np.zeros((width // 2, width, 3), np.uint8)
    depth = np.zeros((width // 2, width), np.float32)
    label = np.zeros((width // 2, width), np.uint8)
    _paint(
        scene,
        _Sectors(start[:-1], items, near, steepest, steepest_left),
        pose(heading_deg, pitch_deg, roll_deg),
        camera_height_m,
        shadows,
        image,
        depth,
        label,
        np.zeros(depth.shape, np.int32),
        np.zeros(depth.shape, np.bool_),
    )
    return PanoramaLayers(image, depth, label)


@entry
def _measure(
    scene: Scene,
    height: float,
    near: NDArray[np.float64],
    steepest: NDArray[np.float64],
    angles: NDArray[np.int64],
) -> None:
    """Fill each thing's nearest horizontal distance, its steepest slope as seen, and its first and last sector."""
    for k in range(len(near)):
        if k < len(scene.solids):
            s = scene.solids[k]
            e, n, reach, top = s.e, s.n, s.reach, s.eaves + s.rise
        else:
            t = scene.crowns[k - len(scene.solids)]
            e, n, reach, top = t.e, t.n, t.radius, t.z + t.half_z
        distance = np.hypot(e, n)
        near[k] = max(distance - reach, 0.0)
        rise = top - height
        if distance <= reach * 1.001:
            steepest[k] = np.inf
            angles[k, 0], angles[k, 1] = 0, SECTORS - 1
        else:
            steepest[k] = rise / (near[k] if rise > 0.0 else distance + reach)
            middle, half = np.arctan2(e, n), np.arcsin(reach / distance)
            angles[k, 0] = int(np.floor((middle - half) * SECTORS / (2 * np.pi)))
            angles[k, 1] = int(np.floor((middle + half) * SECTORS / (2 * np.pi)))


@entry
def _sort_into_sectors(
    order: NDArray[np.int64], angles: NDArray[np.int64], start: NDArray[np.int64], items: NDArray[np.int64]
) -> None:
    for k in order:
        for sector in range(angles[k, 0], angles[k, 1] + 1):
            at = sector % SECTORS
            if len(items) == 0:
                start[at + 2] += 1
            else:
                items[start[at + 1]] = k
                start[at + 1] += 1


@entry
def _look_ahead(
    start: NDArray[np.int64],
    items: NDArray[np.int64],
    steepest: NDArray[np.float64],
    steepest_left: NDArray[np.float64],
) -> None:
    """Fill the steepest slope of each thing and all behind it in its sector: a ray above that meets none of them."""
    for sector in range(SECTORS):
        highest = -np.inf
        for at in range(start[sector + 1] - 1, start[sector] - 1, -1):
            highest = max(highest, steepest[items[at]])
            steepest_left[at] = highest


@kernel
def _sky(scene: Scene, de: float, dn: float, du: float) -> Color:
    up = max(du, 0.0)
    color = blend((206.0, 216.0, 226.0), (92.0, 142.0, 204.0), min(1.0, 1.5 * up) ** 0.7)
    if up > 0.02:
        x, y = de / (up + 0.15), dn / (up + 0.15)
        key = scene.now.day
        clouds = noise(key, x * 0.9, y * 0.9) + 0.5 * noise(key, x * 2.1, y * 2.1) + 0.25 * noise(key, x * 4.7, y * 4.7)
        color = blend(color, (240.0, 240.0, 240.0), min(max(clouds * 0.7 - 0.1, 0.0), 0.85) * min(1.0, up * 6.0))
    sun = scene.now.sun
    glow = max(0.0, de * sun[0] + dn * sun[1] + du * sun[2])
    color = blend(color, (255.0, 246.0, 220.0), 0.6 * glow**24)
    return (255.0, 253.0, 240.0) if glow > 0.9993 else color


@kernel
def _cast(
    scene: Scene, sectors: _Sectors, height: float, shadows: bool, de: float, dn: float, du: float, footprint: float
) -> tuple[float, float, float, float, int, int]:
    """Return color, distance, label, and number of the thing that a ray from the camera meets."""
    flat = max(np.sqrt(de * de + dn * dn), 1e-12)
    slope = du / flat
    best = height / -du if du < 0.0 else np.inf
    hit, face = -1, -1
    sector = int(np.floor(np.arctan2(de, dn) * SECTORS / (2 * np.pi))) % SECTORS
    for at in range(sectors.start[sector], sectors.start[sector + 1]):
        k = sectors.items[at]
        if sectors.near[k] > best * flat:
            break
        if slope > sectors.steepest_left[at]:
            break
        if slope > sectors.steepest[k]:
            continue
        if k < len(scene.solids):
            distance, side = hit_solid(scene.solids[k], 0.0, 0.0, height, de, dn, du)
        else:
            distance, side = hit_crown(scene.crowns[k - len(scene.solids)], 0.0, 0.0, height, de, dn, du), 0
        if 0.0 < distance < best:
            best, hit, face = distance, k, side
    haze = 1.0 - np.exp(-best / HAZE_M) if best > 30.0 else 0.0
    horizon = _sky(scene, de, dn, max(du, 0.0)) if hit < 0 and du >= 0.0 else (198.0, 206.0, 214.0)
    if hit < 0 and (du >= 0.0 or best > 4.0 * VIEW_M):
        return horizon[0], horizon[1], horizon[2], np.inf if du >= 0.0 else best, SKY if du >= 0.0 else GROUND, -1
    e, n, z = best * de, best * dn, max(height + best * du, 0.0)
    if hit < 0:
        color = _ground(scene, e, n, footprint * best * best / height, de / flat, dn / flat)
        if shadows and in_shadow(scene, e, n, 0.01):
            color = shadowed(color)
        label = GROUND
    elif hit < len(scene.solids):
        s = scene.solids[hit]
        label = s.label
        normal = face_normal(s, min(face, 8))
        facing = normal[0] * scene.now.sun[0] + normal[1] * scene.now.sun[1] + normal[2] * scene.now.sun[2]
        step = 0.02
        lit = facing > 0.0 and not (
            shadows and in_shadow(scene, e + step * normal[0], n + step * normal[1], z + step * normal[2])
        )
        if face < 4:
            color = wall_color(s, face, e, n, z, scene.now.sun, lit)
        elif face == 9:
            color = (s.wall_r * 0.3, s.wall_g * 0.3, s.wall_b * 0.3)
        else:
            color = roof_color(s, face, e, n, 1.0, scene.now.sun)
            if shadows and not lit:
                color = shadowed(color)
    else:
        label = VEGETATION
        color = crown_color(scene.crowns[hit - len(scene.solids)], e, n, z, scene.now.sun, True)
    color = blend(color, horizon, haze)
    return color[0], color[1], color[2], best, label, hit


@kernel
def _ground(scene: Scene, e: float, n: float, length: float, ue: float, un: float) -> Color:
    # A far pixel covers meters of ground along the line of sight: average over its length.
    region = scene.region
    count = min(max(int(length / 0.35), 1), 4)
    red, green, blue = 0.0, 0.0, 0.0
    for k in range(count):
        off = ((k + 0.5) / count - 0.5) * length
        x, y = region.x + (e + off * ue) * region.scale, region.y + (n + off * un) * region.scale
        color = ground_color(region, scene.now, x, y)
        red, green, blue = red + color[0], green + color[1], blue + color[2]
    return (red / count, green / count, blue / count)


@entry
def _paint(
    scene: Scene,
    sectors: _Sectors,
    axes: NDArray[np.float64],
    height: float,
    shadows: bool,
    image: NDArray[np.uint8],
    depth: NDArray[np.float32],
    label: NDArray[np.uint8],
    things: NDArray[np.int32],
    rough: NDArray[np.bool_],
) -> None:
    rows, cols = depth.shape
    for v in range(rows):
        for u in range(cols):
            _paint_pixel(scene, sectors, axes, height, shadows, u, v, 1, image, depth, label, things)
    # Smooth only where it shows: outlines of things and hard contrasts.
    for v in range(rows):
        for u in range(cols):
            right, below = (u + 1) % cols, min(v + 1, rows - 1)
            for other_v, other_u in ((v, right), (below, u)):
                contrast = 0
                for channel in range(3):
                    contrast += abs(int(image[v, u, channel]) - int(image[other_v, other_u, channel]))
                if contrast > 60 or things[v, u] != things[other_v, other_u]:
                    rough[v, u] = True
                    rough[other_v, other_u] = True
    for v in range(rows):
        for u in range(cols):
            if rough[v, u]:
                _paint_pixel(scene, sectors, axes, height, shadows, u, v, 2, image, depth, label, things)


@kernel
def _paint_pixel(
    scene: Scene,
    sectors: _Sectors,
    axes: NDArray[np.float64],
    height: float,
    shadows: bool,
    u: int,
    v: int,
    samples: int,
    image: NDArray[np.uint8],
    depth: NDArray[np.float32],
    label: NDArray[np.uint8],
    things: NDArray[np.int32],
) -> None:
    rows, cols = depth.shape
    red, green, blue = 0.0, 0.0, 0.0
    for sv in range(samples):
        elevation = np.pi * (0.5 - (v + (sv + 0.5) / samples) / rows)
        flat, rise = np.cos(elevation), np.sin(elevation)
        for su in range(samples):
            azimuth = 2.0 * np.pi * ((u + (su + 0.5) / samples) / cols - 0.5)
            a, b = flat * np.sin(azimuth), flat * np.cos(azimuth)
            de = a * axes[0, 0] + b * axes[1, 0] + rise * axes[2, 0]
            dn = a * axes[0, 1] + b * axes[1, 1] + rise * axes[2, 1]
            du = a * axes[0, 2] + b * axes[1, 2] + rise * axes[2, 2]
            r, g, b_, distance, what, thing = _cast(
                scene, sectors, height, shadows, de, dn, du, np.pi / rows / samples
            )
            red, green, blue = red + r, green + g, blue + b_
            if sv == 0 and su == 0 and samples == 1:
                depth[v, u], label[v, u], things[v, u] = distance, what, thing
    share = 1.0 / (samples * samples)
    image[v, u, 0] = np.uint8(min(max(red * share + 0.5, 0.0), 255.0))
    image[v, u, 1] = np.uint8(min(max(green * share + 0.5, 0.0), 255.0))
    image[v, u, 2] = np.uint8(min(max(blue * share + 0.5, 0.0), 255.0))
