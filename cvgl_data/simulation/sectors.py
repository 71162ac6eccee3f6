"""Which things a ray from the camera can meet: lists by direction, from near to far."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.simulation.kernels import entry, kernel
from cvgl_data.simulation.scene import Scene

SECTORS = 1024
"""Number of directions."""


class Sectors(NamedTuple):
    """Things by direction: those of one sector are items[start[sector]:start[sector + 1]], from near to far."""

    start: NDArray[np.int64]
    items: NDArray[np.int64]
    near: NDArray[np.float64]
    steepest: NDArray[np.float64]
    steepest_left: NDArray[np.float64]


def sort_by_direction(scene: Scene, height: float) -> Sectors:
    """Sort a scene's things by direction, seen from its centre.

    Args:
        scene: The scene.
        height: Meters of the camera above the ground.
    """
    count = len(scene.solids) + len(scene.crowns)
    near, steepest = np.zeros(count), np.zeros(count)
    span = np.zeros((count, 2), np.int64)
    _measure(scene, float(height), near, steepest, span)
    order = np.argsort(near, kind="stable")
    start = np.zeros(SECTORS + 2, np.int64)
    _sort_into_sectors(order, span, start, np.zeros(0, np.int64))
    np.cumsum(start, out=start)
    items = np.zeros(start[-1], np.int64)
    _sort_into_sectors(order, span, start, items)
    steepest_left = np.zeros(len(items))
    _look_ahead(start, items, steepest, steepest_left)
    return Sectors(start[:-1], items, near, steepest, steepest_left)


@kernel
def sector_of(e: float, n: float) -> int:
    """Return the sector of a direction."""
    # Grows with the bearing as an angle does, at a fraction of the cost.
    share = e / max(abs(e) + abs(n), 1e-300)
    turn = 1.0 + share if n >= 0.0 else 3.0 - share
    return min(int(turn * (SECTORS / 4)), SECTORS - 1)


@entry
def _measure(
    scene: Scene,
    height: float,
    near: NDArray[np.float64],
    steepest: NDArray[np.float64],
    span: NDArray[np.int64],
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
            span[k, 0], span[k, 1] = 0, SECTORS - 1
        else:
            steepest[k] = rise / (near[k] if rise > 0.0 else distance + reach)
            middle, half = np.arctan2(e, n), np.arcsin(reach / distance)
            span[k, 0] = sector_of(np.sin(middle - half), np.cos(middle - half))
            span[k, 1] = sector_of(np.sin(middle + half), np.cos(middle + half))
            if span[k, 1] < span[k, 0]:
                span[k, 1] += SECTORS


@entry
def _sort_into_sectors(
    order: NDArray[np.int64], span: NDArray[np.int64], start: NDArray[np.int64], items: NDArray[np.int64]
) -> None:
    for k in order:
        for sector in range(span[k, 0], span[k, 1] + 1):
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
