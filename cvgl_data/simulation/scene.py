"""Everything that can be seen or cast a shadow in a square of the world, indexed by a grid of cells."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.simulation.contents import add_district
from cvgl_data.simulation.ground import ground_color
from cvgl_data.simulation.kernels import Color, entry, inlined, kernel
from cvgl_data.simulation.network import Region, owner, plan_region
from cvgl_data.simulation.season import Conditions
from cvgl_data.simulation.solids import CROWN, SOLID, Pen, hit_crown, hit_solid

FAR_FROM_EDGE_M = 40.0
"""Farther than this from a district's edge, nothing of the edge is seen on the ground."""
SHADOW_MARGIN_M = 170.0
"""How far beyond a picture's edge something may stand and still shade it: the highest roof at the lowest sun."""


class Grid(NamedTuple):
    """Which things lie over, or can shade, each cell: items[start[cell]:start[cell + 1]], solids first, then crowns.

    ``home`` is the number of the district where a cell lies far from all edges, else -1.
    """

    low: float
    cell: float
    cells: int
    over_start: NDArray[np.int64]
    over: NDArray[np.int64]
    shade_start: NDArray[np.int64]
    shade: NDArray[np.int64]
    home: NDArray[np.int64]


class Scene(NamedTuple):
    """A square of the world on one date."""

    region: Region
    now: Conditions
    solids: NDArray[np.void]
    crowns: NDArray[np.void]
    grid: Grid


def build_scene(
    seed: int,
    x: float,
    y: float,
    reach: float,
    now: Conditions,
    *,
    things: bool = True,
    margin_m: float = 0.0,
) -> Scene:
    """Gather a square.

    Args:
        seed: Seed of the world.
        x: Mercator meters of the centre.
        y: Mercator meters of the centre.
        reach: Half the side, in Mercator meters.
        now: Light and plants.
        things: Whether anything stands on the ground; false for pictures too coarse to show it.
        margin_m: True meters beyond the square from which things are gathered too.
    """
    scale = math.cosh(y / 6378137.0)
    region = plan_region(seed, x, y, reach + margin_m * scale)
    reach_m = reach / scale + margin_m
    counts = np.zeros(2, np.int64)
    solids, crowns = np.zeros(0, SOLID), np.zeros(0, CROWN)
    if things:
        _gather(region, now, solids, crowns, counts, reach_m)
        solids, crowns = np.zeros(counts[0], SOLID), np.zeros(counts[1], CROWN)
        _gather(region, now, solids, crowns, counts, reach_m)
    return Scene(region, now, solids, crowns, _build_grid(region, solids, crowns, now, reach / scale))


def _build_grid(
    region: Region, solids: NDArray[np.void], crowns: NDArray[np.void], now: Conditions, reach_m: float
) -> Grid:
    low = -reach_m
    cell = max(8.0, 2 * reach_m / 400)
    cells = max(1, math.ceil(2 * reach_m / cell))
    lists = []
    for with_shadow in (False, True):
        start = np.zeros(cells * cells + 2, np.int64)
        items = np.zeros(0, np.int64)
        _sort_into_cells(solids, crowns, now, low, cell, cells, with_shadow, start, items)
        np.cumsum(start, out=start)
        items = np.zeros(start[-1], np.int64)
        _sort_into_cells(solids, crowns, now, low, cell, cells, with_shadow, start, items)
        lists += [start[:-1], items]
    home = np.zeros(cells * cells, np.int64)
    _find_homes(region, low, cell, cells, home)
    return Grid(low, cell, cells, lists[0], lists[1], lists[2], lists[3], home)


@entry
def _find_homes(region: Region, low: float, cell: float, cells: int, home: NDArray[np.int64]) -> None:
    for j in range(cells):
        for i in range(cells):
            x = region.x + (low + (i + 0.5) * cell) * region.scale
            y = region.y + (low + (j + 0.5) * cell) * region.scale
            r, c, _, _, edge = owner(region, x, y)
            home[j * cells + i] = r * region.districts.shape[1] + c if edge > FAR_FROM_EDGE_M + cell else -1


@entry
def _gather(
    region: Region,
    now: Conditions,
    solids: NDArray[np.void],
    crowns: NDArray[np.void],
    counts: NDArray[np.int64],
    reach_m: float,
) -> None:
    counts[:] = 0
    for row in range(1, region.districts.shape[0] - 1):
        for col in range(1, region.districts.shape[1] - 1):
            add_district(Pen(region, row, col, solids, crowns, counts, reach_m), now, True)


@entry
def _sort_into_cells(
    solids: NDArray[np.void],
    crowns: NDArray[np.void],
    now: Conditions,
    low: float,
    cell: float,
    cells: int,
    with_shadow: bool,
    start: NDArray[np.int64],
    items: NDArray[np.int64],
) -> None:
    # Called twice: without items it counts into start[c + 2]; with them it fills, and start[c + 1] ends behind c.
    for k in range(len(solids) + len(crowns)):
        if k < len(solids):
            s = solids[k]
            e, n, reach, top = s.e, s.n, s.reach, s.eaves + s.rise
        else:
            t = crowns[k - len(solids)]
            e, n, reach, top = t.e, t.n, t.radius, t.z + t.half_z
        length = top / now.sun[2] if with_shadow else 0.0
        se, sn = -now.sun[0] * length, -now.sun[1] * length
        first_i = max(int(np.floor((min(e, e + se) - reach - low) / cell)), 0)
        last_i = min(int(np.floor((max(e, e + se) + reach - low) / cell)), cells - 1)
        first_j = max(int(np.floor((min(n, n + sn) - reach - low) / cell)), 0)
        last_j = min(int(np.floor((max(n, n + sn) + reach - low) / cell)), cells - 1)
        square = max(se * se + sn * sn, 1e-9)
        near = reach + 0.7072 * cell
        for j in range(first_j, last_j + 1):
            for i in range(first_i, last_i + 1):
                ce, cn = low + (i + 0.5) * cell - e, low + (j + 0.5) * cell - n
                along = min(max((ce * se + cn * sn) / square, 0.0), 1.0)
                de, dn = ce - along * se, cn - along * sn
                if de * de + dn * dn <= near * near:
                    at = j * cells + i
                    if len(items) == 0:
                        if at + 2 < len(start):
                            start[at + 2] += 1
                    else:
                        items[start[at + 1]] = k
                        start[at + 1] += 1


@kernel
def cell_of(grid: Grid, e: float, n: float) -> int:
    """Return the cell of a point of the region's frame, -1 outside."""
    i, j = int(np.floor((e - grid.low) / grid.cell)), int(np.floor((n - grid.low) / grid.cell))
    if i < 0 or j < 0 or i >= grid.cells or j >= grid.cells:
        return -1
    return j * grid.cells + i


@inlined
def ground_at(scene: Scene, e: float, n: float) -> Color:
    """Return the lit color of the bare ground at a point of the region's frame."""
    region = scene.region
    cell = cell_of(scene.grid, e, n)
    home = scene.grid.home[cell] if cell >= 0 else -1
    return ground_color(region, scene.now, region.x + e * region.scale, region.y + n * region.scale, home)


@kernel
def in_shadow(scene: Scene, e: float, n: float, z: float) -> bool:
    """Return whether something stands between a point and the sun."""
    cell = cell_of(scene.grid, e, n)
    if cell < 0:
        return False
    se, sn, su = scene.now.sun
    solids = scene.solids
    for at in range(scene.grid.shade_start[cell], scene.grid.shade_start[cell + 1]):
        k = scene.grid.shade[at]
        if k < len(solids):
            s = solids[k]
            if s.eaves + s.rise <= z:
                continue
            # Cheap rejection: the ray passes the bounding circle, seen from above.
            if abs((s.e - e) * sn - (s.n - n) * se) > s.reach * np.sqrt(1.0 - su * su):
                continue
            distance, _ = hit_solid(s, e, n, z, se, sn, su)
        else:
            t = scene.crowns[k - len(solids)]
            distance = hit_crown(t, e, n, z, se, sn, su)
        if distance > 1e-6:
            return True
    return False
