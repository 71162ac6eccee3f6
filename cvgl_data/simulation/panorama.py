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
from cvgl_data.simulation.kernels import Color, blend, constant, entry, inlined, kernel, noise
from cvgl_data.simulation.scene import Scene, build_scene, ground_at, in_shadow
from cvgl_data.simulation.season import conditions
from cvgl_data.simulation.sectors import Sectors, sector_of, sort_by_direction
from cvgl_data.simulation.solids import GROUND, SKY, VEGETATION, hit_crown, hit_solid
from cvgl_data.simulation.world import World

VIEW_M = 260.0
"""Half the side of the square whose things are seen; beyond it there is haze."""
HAZE_M = 900.0
NOTHING = constant(-1)


class PanoramaLayers(NamedTuple):
    """An image with the distance in meters (``inf`` for sky) and the label of what each pixel shows."""

    image: NDArray[np.uint8]
    depth_m: NDArray[np.float32]
    label: NDArray[np.uint8]


def pose(heading_deg: float, pitch_deg: float, roll_deg: float) -> NDArray[np.float64]:
    """Return the camera's axes as rows (right, forward, up), each (east, north, up).

    The centre column has the bearing ``heading_deg``, the centre looks ``pitch_deg`` above the horizon, and growing
    ``roll_deg`` turns the horizon counter-clockwise in the image (GPano).
    """
    heading, pitch, roll = (math.radians(angle) for angle in (heading_deg, pitch_deg, roll_deg))
    forward = np.array([math.cos(pitch) * math.sin(heading), math.cos(pitch) * math.cos(heading), math.sin(pitch)])
    level = np.array([math.cos(heading), -math.sin(heading), 0.0])
    above = np.cross(level, forward)
    right = math.cos(roll) * level - math.sin(roll) * above
    up = math.sin(roll) * level + math.cos(roll) * above
    return np.stack([right, forward, up])


def render_panorama(
    world: World,
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
) -> NDArray[np.uint8]:
    """Render what a camera sees all round.

    Args:
        world: The world.
        lon: Degrees.
        lat: Degrees.
        heading_deg: Bearing of the centre column, clockwise from north.
        pitch_deg: How far the centre looks above the horizon.
        roll_deg: How far the horizon is turned counter-clockwise in the image.
        date: Decides on sun, plants and parked cars.
        width: Pixels round the horizon, even.
        camera_height_m: Height above the ground, which is flat.
        shadows: Whether the sun casts shadows.

    Returns:
        (width / 2, width, 3) uint8, equirectangular.

    Raises:
        ValueError: If the width is odd or the camera is not above the ground.
    """
    return trace_panorama(
        world,
        lon,
        lat,
        heading_deg=heading_deg,
        pitch_deg=pitch_deg,
        roll_deg=roll_deg,
        date=date,
        width=width,
        camera_height_m=camera_height_m,
        shadows=shadows,
    ).image


def _quarter_steps(pixels: int, span: float, start: float) -> NDArray[np.float64]:
    """Return (4 * pixels + 1, 2) sines and cosines of angles at every quarter of a pixel: rays take no others."""
    angles = start + np.arange(4 * pixels + 1) * (span / (4 * pixels))
    return np.stack([np.sin(angles), np.cos(angles)], axis=1)


def trace_panorama(
    world: World,
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
    """Render as `render_panorama` does, with distances and labels."""
    if width < 2 or width % 2:
        raise ValueError(f"width is {width}; a panorama needs an even number of pixels")
    if not camera_height_m > 0.0:
        raise ValueError(f"camera_height_m is {camera_height_m:g}; it must be above 0")
    x, y = network.mercator(lon, lat)
    scene = build_scene(world.seed, x, y, VIEW_M * network.mercator_scale(y), conditions(date, lat))
    sectors = sort_by_direction(scene, camera_height_m)
    image = np.zeros((width // 2, width, 3), np.uint8)
    depth = np.zeros((width // 2, width), np.float32)
    label = np.zeros((width // 2, width), np.uint8)
    _paint(
        scene,
        sectors,
        pose(heading_deg, pitch_deg, roll_deg),
        _quarter_steps(width, 2 * math.pi, -math.pi),
        _quarter_steps(width // 2, -math.pi, math.pi / 2),
        float(camera_height_m),
        shadows,
        image,
        depth,
        label,
        np.zeros(depth.shape, np.int32),
        np.zeros(depth.shape, np.bool_),
    )
    return PanoramaLayers(image, depth, label)


@kernel
def _sky(scene: Scene, de: float, dn: float, du: float) -> Color:
    up = max(du, 0.0)
    color = blend((206.0, 216.0, 226.0), (92.0, 142.0, 204.0), np.sqrt(min(1.0, 1.5 * up)))
    if up > 0.02:
        x, y = de / (up + 0.15), dn / (up + 0.15)
        key = scene.now.day
        clouds = noise(key, x * 0.9, y * 0.9) + 0.5 * noise(key, x * 2.6, y * 2.6)
        color = blend(color, (240.0, 240.0, 240.0), min(max(clouds * 0.7 - 0.1, 0.0), 0.85) * min(1.0, up * 6.0))
    sun = scene.now.sun
    glow = max(0.0, de * sun[0] + dn * sun[1] + du * sun[2])
    color = blend(color, (255.0, 246.0, 220.0), 0.6 * glow**24)
    return (255.0, 253.0, 240.0) if glow > 0.9993 else color


@inlined
def _cast(
    scene: Scene,
    sectors: Sectors,
    height: float,
    shadows: bool,
    de: float,
    dn: float,
    du: float,
    footprint: float,
) -> tuple[Color, float, int, int]:
    """Return color, distance, label, and number of the thing that a ray from the camera meets."""
    flat = max(np.sqrt(de * de + dn * dn), 1e-12)
    slope = du / flat
    best = height / -du if du < 0.0 else np.inf
    hit, face = NOTHING, NOTHING
    sector = sector_of(de, dn)
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
        return horizon, np.inf if du >= 0.0 else best, SKY if du >= 0.0 else GROUND, -1
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
    return blend(color, horizon, haze), best, label, hit


@kernel
def _ground(scene: Scene, e: float, n: float, length: float, along_e: float, along_n: float) -> Color:
    # A far pixel covers meters of ground along the line of sight: average over its length.
    count = min(max(int(length / 0.35), 1), 4)
    red, green, blue = 0.0, 0.0, 0.0
    for k in range(count):
        off = ((k + 0.5) / count - 0.5) * length
        color = ground_at(scene, e + off * along_e, n + off * along_n)
        red, green, blue = red + color[0], green + color[1], blue + color[2]
    return (red / count, green / count, blue / count)


@entry
def _paint(
    scene: Scene,
    sectors: Sectors,
    axes: NDArray[np.float64],
    azimuths: NDArray[np.float64],
    elevations: NDArray[np.float64],
    height: float,
    shadows: bool,
    image: NDArray[np.uint8],
    depth: NDArray[np.float32],
    label: NDArray[np.uint8],
    things: NDArray[np.int32],
    rough: NDArray[np.bool_],
) -> None:
    # Second pass: smooth only where it shows, at outlines of things and hard contrasts.
    rows, cols = depth.shape
    for smooth in range(2):
        for v in range(rows):
            wide = _pixels_per_ray(v, rows)
            for u in range(0, cols, wide):
                if smooth == 0 or rough[v, u]:
                    last = min(u + wide, cols)
                    _paint_pixel(
                        scene, sectors, axes, azimuths, elevations, height, shadows, smooth, v, u, last,
                        image, depth, label, things,
                    )  # fmt: skip
        if smooth == 0:
            _find_rough(image, things, rough)


@kernel
def _pixels_per_ray(v: int, rows: int) -> int:
    # Towards the poles pixels get narrow; one ray for several keeps them about square.
    across = np.cos(np.pi * (0.5 - (v + 0.5) / rows))
    return 1 if across > 0.5 else (2 if across > 0.25 else (4 if across > 0.125 else 8))


@kernel
def _find_rough(image: NDArray[np.uint8], things: NDArray[np.int32], rough: NDArray[np.bool_]) -> None:
    rows, cols = things.shape
    for v in range(rows):
        wide, below = _pixels_per_ray(v, rows), min(v + 1, rows - 1)
        for u in range(0, cols, wide):
            right = (u + wide) % cols
            for k in range(2):
                other_v, other_u = (v, right) if k == 0 else (below, u)
                contrast = 0
                for channel in range(3):
                    contrast += abs(int(image[v, u, channel]) - int(image[other_v, other_u, channel]))
                if contrast > 70 or things[v, u] != things[other_v, other_u]:
                    rough[v, u] = True
                    rough[other_v, other_u - other_u % _pixels_per_ray(other_v, rows)] = True


@inlined
def _paint_pixel(
    scene: Scene,
    sectors: Sectors,
    axes: NDArray[np.float64],
    azimuths: NDArray[np.float64],
    elevations: NDArray[np.float64],
    height: float,
    shadows: bool,
    smooth: int,
    v: int,
    first: int,
    last: int,
    image: NDArray[np.uint8],
    depth: NDArray[np.float32],
    label: NDArray[np.uint8],
    things: NDArray[np.int32],
) -> None:
    """Paint the pixels first to last - 1 of a row: by a ray through their centre, or add two more around it."""
    rows = depth.shape[0]
    red, green, blue = 0.0, 0.0, 0.0
    if smooth == 1:
        red, green, blue = float(image[v, first, 0]), float(image[v, first, 1]), float(image[v, first, 2])
    for k in range(smooth + 1):
        off = (2 * k - 1) * smooth
        at_u, at_v = 2 * (first + last) + off * (last - first), 4 * v + 2 + off
        rise, flat = elevations[at_v, 0], elevations[at_v, 1]
        a, b = flat * azimuths[at_u, 0], flat * azimuths[at_u, 1]
        de = a * axes[0, 0] + b * axes[1, 0] + rise * axes[2, 0]
        dn = a * axes[0, 1] + b * axes[1, 1] + rise * axes[2, 1]
        du = a * axes[0, 2] + b * axes[1, 2] + rise * axes[2, 2]
        color, distance, what, thing = _cast(scene, sectors, height, shadows, de, dn, du, np.pi / rows)
        red, green, blue = red + color[0], green + color[1], blue + color[2]
        if smooth == 0:
            depth[v, first:last] = distance
            label[v, first:last] = what
            things[v, first:last] = thing
    share = 1.0 / (1 + 2 * smooth)
    for u in range(first, last):
        image[v, u, 0] = np.uint8(min(max(red * share + 0.5, 0.0), 255.0))
        image[v, u, 1] = np.uint8(min(max(green * share + 0.5, 0.0), 255.0))
        image[v, u, 2] = np.uint8(min(max(blue * share + 0.5, 0.0), 255.0))
