"""How a block is divided: lots, building footprints, parking stalls.

Both the ground and the things that stand on it are drawn from these functions, so a driveway always leads to its house.
Block coordinates are meters: x in [0, width] towards growing p, y in [0, height] towards growing q.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvgl_data.simulation.kernels import Key, child, draw, kernel, pick

STALL_M = 2.7
AISLE_PERIOD_M = 17.0
"""Two rows of stalls (5.2 m each) and the aisle between them."""


class Footprint(NamedTuple):
    """A rectangle in block coordinates with the height of its eaves; ``half_x <= 0`` means there is none."""

    x: float
    y: float
    half_x: float
    half_y: float
    height: float


@kernel
def num_lots(key: Key, kind_low: float, kind_high: float, length: float) -> int:
    """Return into how many lots a side of the given length is divided."""
    return max(1, int(length / pick(key, 1, kind_low, kind_high)))


@kernel
def lot_key(key: Key, side: int, k: int) -> Key:
    """Return the key of the k-th lot on a side (0: low x, 1: high x) of a block."""
    return child(child(child(key, 104), side), k)


@kernel
def house(lot: Key, width: float, depth: float) -> Footprint:
    """Return the house on a lot, in lot coordinates: x from the street inwards, y along the street.

    The first 3.6 m along the street are the driveway.
    """
    half_y = min(pick(lot, 2, 7.5, 11.5), width - 4.6) / 2
    half_x = min(pick(lot, 3, 8.0, 12.0), depth - 8.0) / 2
    slack = width - 4.2 - 2 * half_y
    x = pick(lot, 1, 4.0, 7.5) + half_x
    return Footprint(x, 3.8 + half_y + slack * draw(lot, 4), half_x, half_y, 5.8 if draw(lot, 5) < 0.45 else 3.1)


@kernel
def terrace(lot: Key, block: Key, width: float) -> Footprint:
    """Return one house of a row, in lot coordinates; all of a block share front line and depth."""
    front = pick(block, 31, 0.4, 3.6)
    half_x = pick(block, 32, 4.5, 6.0)
    floors = 2 + int(3.0 * draw(block, 33)) + (1 if draw(lot, 6) < 0.2 else 0)
    return Footprint(front + half_x, width / 2, half_x, width / 2, 3.1 * floors)


@kernel
def tower(key: Key, n: int, width: float, height: float) -> Footprint:
    """Return the n-th (0 to 3) tower of a downtown block: one in each quarter, or none."""
    part = child(key, 210 + n)
    if draw(part, 0) < 0.12:
        return Footprint(0.0, 0.0, 0.0, 0.0, 0.0)
    half_x, half_y = width * pick(part, 1, 0.13, 0.21), height * pick(part, 2, 0.12, 0.21)
    x = width * (0.25 + 0.5 * (n % 2) + pick(part, 3, -0.03, 0.03))
    y = height * (0.25 + 0.5 * (n // 2) + pick(part, 4, -0.03, 0.03))
    share = draw(part, 5)
    return Footprint(x, y, half_x, half_y, 9.0 + 41.0 * share * share)


@kernel
def warehouse(key: Key, width: float, height: float) -> Footprint:
    """Return the hall of an industrial block; the yard and stalls lie on its low-y side."""
    half_x, half_y = width * pick(key, 2, 0.28, 0.42), height * pick(key, 3, 0.22, 0.34)
    x = width / 2 + (width / 2 - half_x - 3.0) * pick(key, 4, -1.0, 1.0)
    return Footprint(x, height - half_y - pick(key, 5, 3.0, 9.0), half_x, half_y, pick(key, 6, 5.5, 11.0))


@kernel
def slab(key: Key, n: int, width: float, height: float) -> Footprint:
    """Return the n-th (0 to 2) long building of a housing estate."""
    along_x = draw(key, 2) < 0.5
    part = child(key, 220 + n)
    long, at = pick(part, 1, 0.26, 0.42), (n + 0.5) / 3.0 + pick(part, 2, -0.05, 0.05)
    shift = pick(part, 4, -1.0, 1.0) * (0.44 - long)
    tall = 3.0 * (3 + int(6.0 * draw(part, 3)))
    if along_x:
        return Footprint(width * (0.5 + shift), height * at, width * long, 5.8, tall)
    return Footprint(width * at, height * (0.5 + shift), 5.8, height * long, tall)


@kernel
def pond(key: Key, width: float, height: float) -> Footprint:
    """Return the ellipse of a park's pond, by its half axes."""
    if draw(key, 7) > 0.45:
        return Footprint(0.0, 0.0, 0.0, 0.0, 0.0)
    half_x, half_y = width * pick(key, 8, 0.1, 0.2), height * pick(key, 9, 0.1, 0.2)
    return Footprint(width * pick(key, 10, 0.3, 0.7), height * pick(key, 11, 0.3, 0.7), half_x, half_y, 0.0)


@kernel
def stall_row(y: float) -> tuple[int, float, bool]:
    """Return (number of the double row, meters into its period, whether that is a stall and not the aisle)."""
    row = int(np.floor(y / AISLE_PERIOD_M))
    into = y - row * AISLE_PERIOD_M
    return row, into, into < 5.2 or into >= AISLE_PERIOD_M - 5.2
