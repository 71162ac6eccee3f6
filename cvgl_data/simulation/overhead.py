"""Pictures from straight above: imagery and maps of any square, at any scale."""

from __future__ import annotations

import datetime
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.simulation import network, plots
from cvgl_data.simulation.facades import crown_color, roof_color, shadowed
from cvgl_data.simulation.ground import SHORE_M
from cvgl_data.simulation.kernels import MASK, Color, Key, child, entry, inlined, kernel, mix, noise, pick
from cvgl_data.simulation.network import Region
from cvgl_data.simulation.scene import SHADOW_MARGIN_M, Scene, build_scene, cell_of, ground_at, in_shadow
from cvgl_data.simulation.season import conditions
from cvgl_data.simulation.solids import BUILDING, GROUND, VEGETATION, top_of
from cvgl_data.simulation.world import World
from cvgl_data.types import EARTH_CIRCUMFERENCE_M, BBox

COARSE_M = 7.0
"""Nothing stands in pictures of coarser pixels than this."""
SMOOTH_M = 400.0
"""Pixels coarser than this show the mean color of a district."""
SAMPLES = 2
"""Samples per pixel along each axis."""


class OverheadLayers(NamedTuple):
    """An image with what each pixel shows; where samples disagree, the label is that of the highest thing."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]


def render_tile(
    world: World, bounds: BBox, size_px: int = 256, *, date: datetime.date, shadows: bool = True
) -> NDArray[np.uint8]:
    """Render a square seen from straight above.

    Args:
        world: The world.
        bounds: Edges in degrees of a square in Web Mercator, as of a `Tile` or `Window`.
        size_px: Side of the image.
        date: Decides on sun, plants and parked cars.
        shadows: Whether the sun casts shadows.

    Returns:
        (size_px, size_px, 3) uint8, north up.

    Raises:
        ValueError: If the bounds are no square.
    """
    return trace_tile(world, bounds, size_px, date=date, shadows=shadows).image


def trace_tile(
    world: World, bounds: BBox, size_px: int = 256, *, date: datetime.date, shadows: bool = True
) -> OverheadLayers:
    """Render as `render_tile` does, with labels."""
    x, y, reach, lat = _square(bounds)
    now = conditions(date, lat)
    image, label = np.zeros((size_px, size_px, 3), np.uint8), np.zeros((size_px, size_px), np.uint8)
    pixel_m = 2 * reach / size_px / network.mercator_scale(y)
    if pixel_m > SMOOTH_M:
        _paint_districts(np.uint64(world.seed & MASK), x - reach, y + reach, 2 * reach / size_px, image)
        return OverheadLayers(image, np.full_like(label, GROUND))
    things = pixel_m < COARSE_M
    scene = build_scene(world.seed, x, y, reach, now, things=things, margin_m=SHADOW_MARGIN_M if things else 0.0)
    _paint_tile(scene, 2 * reach / size_px, shadows, SAMPLES, image, label)
    return OverheadLayers(image, label)


def render_map(world: World, bounds: BBox, size_px: int = 256) -> NDArray[np.uint8]:
    """Render a square as a street map: roads, buildings, parks, water, land use; no labels.

    Arguments, shape and errors are those of `render_tile`.
    """
    x, y, reach, lat = _square(bounds)
    image = np.zeros((size_px, size_px, 3), np.uint8)
    pixel_m = 2 * reach / size_px / network.mercator_scale(y)
    if pixel_m > SMOOTH_M:
        image[:] = (242, 239, 233)
        return image
    now = conditions(datetime.date(2000, 7, 1), lat)  # a map knows no date
    scene = build_scene(world.seed, x, y, reach, now, things=pixel_m < COARSE_M, margin_m=2.0)
    _paint_map(scene, 2 * reach / size_px, SAMPLES, image)
    return image


def _square(bounds: BBox) -> tuple[float, float, float, float]:
    """Return the centre and half side in Mercator meters, and the latitude of the centre."""
    west, south = network.mercator(bounds.west, bounds.south)
    east, north = network.mercator(bounds.east, bounds.north)
    if east < west:
        east += EARTH_CIRCUMFERENCE_M
    x, y = (west + east) / 2, (south + north) / 2
    if not math.isclose(east - west, north - south, rel_tol=1e-4) or east <= west:
        raise ValueError(f"bounds {tuple(bounds)} are no square in Web Mercator; take those of a tile or window")
    return x, y, (east - west) / 2, network.position(x, y)[1]


@kernel
def highest_at(scene: Scene, e: float, n: float, buildings_only: bool) -> tuple[int, float, int, float]:
    """Return (number, height, face, meters to the outline) of the top thing above a point; number -1: the ground."""
    cell = cell_of(scene.grid, e, n)
    best, height, best_face, best_edge = -1, 0.0, -1, 0.0
    if cell < 0:
        return best, height, best_face, best_edge
    for at in range(scene.grid.over_start[cell], scene.grid.over_start[cell + 1]):
        k = scene.grid.over[at]
        if k < len(scene.solids):
            s = scene.solids[k]
            if buildings_only and (s.label != BUILDING or s.low > 0.0):
                continue
            z, face, to_edge = top_of(s, e, n)
        elif buildings_only:
            continue
        else:
            t = scene.crowns[k - len(scene.solids)]
            square = ((e - t.e) ** 2 + (n - t.n) ** 2) / (t.radius * t.radius)
            if square >= 0.75 and square >= 0.9 + 0.16 * noise(t.key, (e - t.e) / 0.6, (n - t.n) / 0.6):
                continue
            z, face, to_edge = t.z + t.half_z * np.sqrt(max(1.0 - square, 0.0)), 4, 0.0
        if z > height:
            best, height, best_face, best_edge = k, z, face, to_edge
    return best, height, best_face, best_edge


@inlined
def _overhead_color(scene: Scene, e: float, n: float, shadows: bool) -> tuple[float, float, float, int]:
    k, z, face, to_edge = highest_at(scene, e, n, False)
    dark = shadows and in_shadow(scene, e, n, z + 0.01)
    label = GROUND
    if k < 0:
        color = ground_at(scene, e, n)
    elif k < len(scene.solids):
        label = scene.solids[k].label
        color = roof_color(scene.solids[k], face, e, n, to_edge, scene.now.sun)
    else:
        label = VEGETATION
        color = crown_color(scene.crowns[k - len(scene.solids)], e, n, z, scene.now.sun, not dark)
        dark = False
    if dark:
        color = shadowed(color)
    return color[0], color[1], color[2], label


@entry
def _paint_tile(
    scene: Scene,
    pixel: float,
    shadows: bool,
    samples: int,
    image: NDArray[np.uint8],
    label: NDArray[np.uint8],
) -> None:
    size = image.shape[0]
    step = pixel / scene.region.scale
    for v in range(size):
        for u in range(size):
            red, green, blue, kind = 0.0, 0.0, 0.0, 0
            for sv in range(samples):
                for su in range(samples):
                    e = (u + (su + 0.5) / samples - size / 2) * step
                    n = (size / 2 - v - (sv + 0.5) / samples) * step
                    r, g, b, what = _overhead_color(scene, e, n, shadows)
                    red, green, blue, kind = red + r, green + g, blue + b, max(kind, what)
            share = 1.0 / (samples * samples)
            image[v, u, 0] = np.uint8(min(max(red * share + 0.5, 0.0), 255.0))
            image[v, u, 1] = np.uint8(min(max(green * share + 0.5, 0.0), 255.0))
            image[v, u, 2] = np.uint8(min(max(blue * share + 0.5, 0.0), 255.0))
            label[v, u] = kind


@entry
def _paint_districts(seed: Key, west: float, north: float, pixel: float, image: NDArray[np.uint8]) -> None:
    # Single districts are smaller than these pixels, so each shows a fixed draw around the city's mean color.
    world = mix(seed)
    for v in range(image.shape[0]):
        for u in range(image.shape[1]):
            cell = child(world, int(np.floor((west + u * pixel) / network.CELL)) % network.CELLS_AROUND)
            light = pick(child(cell, int(np.floor((north - v * pixel) / network.CELL))), 0, -6.0, 6.0)
            image[v, u, 0] = np.uint8(124.0 + light)
            image[v, u, 1] = np.uint8(122.0 + light)
            image[v, u, 2] = np.uint8(108.0 + light)


@kernel
def _map_color(region: Region, x: float, y: float) -> Color:
    r, c, _, _, edge = network.owner(region, x, y)
    d = region.districts[r, c]
    p, q = network.to_street_frame(d, x, y)
    if edge < network.ARTERIAL_HALF_M:
        return (250.0, 214.0, 140.0) if edge < network.ARTERIAL_HALF_M - 1.0 else (220.0, 170.0, 90.0)
    if d.kind == network.LAKE:
        return (170.0, 211.0, 223.0) if edge > network.ARTERIAL_HALF_M + 3.0 + SHORE_M else (200.0, 228.0, 180.0)
    b = network.block_at(d, p, q)
    kerb = min(min(b.left - b.half_left, b.right - b.half_right), min(b.bottom - b.half_bottom, b.top - b.half_top))
    if kerb < 0.0:
        return (255.0, 255.0, 255.0)
    if kerb < 0.8:
        return (204.0, 200.0, 196.0)
    kind = network.block_kind(d, network.block_key(d, b.i, b.j))
    inset = d.walk + d.verge
    if kerb < inset:
        return (238.0, 236.0, 232.0)
    if kind == network.PARK:
        key = network.block_key(d, b.i, b.j)
        width = b.left + b.right - b.half_left - b.half_right - 2 * inset
        height = b.bottom + b.top - b.half_bottom - b.half_top - 2 * inset
        lake = plots.pond(key, width, height)
        u, v = b.left - b.half_left - inset - lake.x, b.bottom - b.half_bottom - inset - lake.y
        if lake.half_x > 0.0 and (u / lake.half_x) ** 2 + (v / lake.half_y) ** 2 < 1.0:
            return (170.0, 211.0, 223.0)
        return (200.0, 228.0, 180.0)
    if kind == network.SPORT:
        return (170.0, 224.0, 203.0)
    if kind == network.PARKING:
        return (238.0, 238.0, 222.0)
    if kind == network.WAREHOUSE:
        return (235.0, 219.0, 232.0)
    if kind == network.TOWERS:
        return (240.0, 226.0, 216.0)
    return (224.0, 223.0, 223.0) if kind == network.HOUSES or kind == network.ROWS else (218.0, 226.0, 206.0)


@entry
def _paint_map(scene: Scene, pixel: float, samples: int, image: NDArray[np.uint8]) -> None:
    size = image.shape[0]
    region = scene.region
    step = pixel / region.scale
    for v in range(size):
        for u in range(size):
            red, green, blue = 0.0, 0.0, 0.0
            for sv in range(samples):
                for su in range(samples):
                    e = (u + (su + 0.5) / samples - size / 2) * step
                    n = (size / 2 - v - (sv + 0.5) / samples) * step
                    k, _, _, to_edge = highest_at(scene, e, n, True)
                    if k >= 0:
                        color = (217.0, 208.0, 201.0) if to_edge > 0.7 * step else (190.0, 176.0, 166.0)
                    else:
                        color = _map_color(region, region.x + e * region.scale, region.y + n * region.scale)
                    red, green, blue = red + color[0], green + color[1], blue + color[2]
            share = 1.0 / (samples * samples)
            image[v, u, 0] = np.uint8(red * share + 0.5)
            image[v, u, 1] = np.uint8(green * share + 0.5)
            image[v, u, 2] = np.uint8(blue * share + 0.5)
