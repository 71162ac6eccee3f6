"""How fast the simulated world renders, on one core, after compilation.

Run: python benchmarks/simulation.py
Limits to stay under: a 2048 x 1024 panorama 1 s, a 256 px tile 0.1 s.
"""

from __future__ import annotations

import datetime
import time

import numpy as np

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.grid import TileGrid
from cvgl_data.simulation import World, render_map, render_panorama, render_tile
from cvgl_data.types import BBox

DATE = datetime.date(2023, 6, 15)
NUM = 24


def main() -> None:
    world = World(0)
    bounds = BBox(-122.3250, 47.6100, -122.3110, 47.6195)
    stations = list(world.stations(bounds, 10.0))
    chosen = [stations[i] for i in np.random.default_rng(0).choice(len(stations), NUM, replace=False)]
    tiles = [window.bounds for window in TileGrid(18).cover(AreaOfInterest.from_bbox(*bounds))][:NUM]
    jobs = {
        "panorama 2048x1024": [lambda at=at: render_panorama(world, *at, date=DATE, width=2048) for at in chosen],
        "panorama 1024x512": [lambda at=at: render_panorama(world, *at, date=DATE, width=1024) for at in chosen],
        "tile 256 px, zoom 18": [lambda box=box: render_tile(world, box, 256, date=DATE) for box in tiles],
        "map tile 256 px, zoom 18": [lambda box=box: render_map(world, box, 256) for box in tiles],
    }
    for name, calls in jobs.items():
        calls[0]()
        took = []
        for call in calls:
            started = time.process_time()
            call()
            took.append(time.process_time() - started)
        print(f"{name}: median {np.median(took):.3f} CPU s, worst of {NUM} {max(took):.3f}")


if __name__ == "__main__":
    main()
