"""Squares of ground, dealt out to one side or the other as a whole."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cvgl_data.geo import gsd_m, pixel_from_lonlat

Ints = NDArray[np.int64]

Block = tuple[str, int, int]
"""Area and the place of a square in it."""

_PASSES = 20
"""Bounds the search for an even deal; it settles after three or four."""


def blocks_of(references: pa.Table, block_m: float) -> list[Block]:
    """Return the block of each reference's centre.

    Args:
        references: Columns ``lon``, ``lat``, ``area``; R rows.
        block_m: Side of a block in ground metres.
    """
    lon, lat = references["lon"].to_numpy(), references["lat"].to_numpy()
    area = references["area"].to_numpy()
    x, y = pixel_from_lonlat(lon, lat, 0)
    column, row = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
    for name in set(area.tolist()):
        at = area == name
        # One scale per area: the middle latitude, which no order of rows changes.
        side = block_m / float(gsd_m((lat[at].min() + lat[at].max()) / 2, 0))
        column[at], row[at] = np.floor(x[at] / side), np.floor(y[at] / side)
    return list(zip(area.tolist(), column.tolist(), row.tolist(), strict=True))


def deal(of_query: Sequence[Block], fraction: float, salt: str, strata: Ints | None = None) -> NDArray[np.bool_]:
    """Return which queries are dealt to a side that is to hold ``fraction`` of them in each area, by whole blocks.

    Args:
        of_query: Block of each query, (N,).
        fraction: Share of the queries.
        salt: Decides the order in which blocks are tried, and nothing else does.
        strata: Class of each query, (N,): the side is to hold that share of every class, as far as blocks allow.
    """
    num_strata = 1 if strata is None else int(strata.max(initial=0)) + 1
    counts: dict[str, dict[Block, Ints]] = defaultdict(lambda: defaultdict(lambda: np.zeros(num_strata, np.int64)))
    for index, block in enumerate(of_query):
        counts[block[0]][block][0 if strata is None else strata[index]] += 1
    chosen: set[Block] = set()
    for name in sorted(counts):
        chosen |= _choose(counts[name], fraction, salt, passes=1 if strata is None else _PASSES)
    return np.array([block in chosen for block in of_query], dtype=bool)


def _choose(counts: Mapping[Block, Ints], fraction: float, salt: str, passes: int) -> set[Block]:
    """Return blocks that together hold about ``fraction`` of every class; later passes also give blocks back."""
    total = np.sum(list(counts.values()), axis=0)
    target, held = fraction * total, np.zeros_like(total)
    chosen: set[Block] = set()
    order = sorted(counts, key=lambda block: hashlib.blake2b(f"{salt} {block}".encode()).digest())
    for number in range(passes):
        before = len(chosen), held.tolist()
        for block in order:
            if block in chosen and number == 0:
                continue
            change = -counts[block] if block in chosen else counts[block]
            if np.abs(held + change - target).sum() < np.abs(held - target).sum():
                held = held + change
                chosen ^= {block}
        if (len(chosen), held.tolist()) == before:
            break
    return chosen
