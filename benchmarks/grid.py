"""One million windows of a real city polygon.

Run: python benchmarks/grid.py
Peer: mercantile.tiles over the bounding box, which has no polygon, at the same number of tiles.
"""

from __future__ import annotations

import itertools
import time

import mercantile

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.grid import TileGrid


def main() -> None:
    area = AreaOfInterest.from_city("los-angeles")
    grid = TileGrid(21, 256, 0.0)
    best, windows = float("inf"), None
    for _ in range(3):
        started = time.perf_counter()
        windows = grid.cover(area)
        best = min(best, time.perf_counter() - started)
    started = time.perf_counter()
    peer = sum(1 for _ in itertools.islice(mercantile.tiles(*area.bounds, zooms=21), len(windows)))
    theirs = time.perf_counter() - started
    print(f"TileGrid.cover: {len(windows):,} windows in {best:.2f} s ({len(windows) / best:,.0f}/s)")
    print(f"mercantile.tiles, bounding box only: {peer:,} in {theirs:.2f} s, {theirs / best:.1f} times as long")


if __name__ == "__main__":
    main()
