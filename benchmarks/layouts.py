"""Open a VIGOR as large as the published one: 90,618 references and 105,214 queries, image files empty.

    .venv/bin/python benchmarks/layouts.py            # at most 3 s and 500 MB are promised

Label files and empty image files are made once in a temporary folder (some 400 MB of directory entries and text);
each protocol is then opened in a process of its own, which reports its time and largest resident size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Counts of the published lists; those of the tiles by city are in proportion.
TILES = {"NewYork": 23_279, "Seattle": 20_776, "SanFrancisco": 25_005, "Chicago": 21_558}
TEST = {"NewYork": 13_884, "Seattle": 11_875, "SanFrancisco": 14_107, "Chicago": 12_739}
TRAIN_TOTAL = 52_609
PLACES = {
    "NewYork": (-73.9855, 40.7484),
    "Seattle": (-122.3300, 47.6050),
    "SanFrancisco": (-122.4100, 37.7800),
    "Chicago": (-87.6500, 41.8800),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="Where to make it, and to leave it; default: a temporary folder.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--open", dest="location", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.location:
        print(json.dumps(measure(arguments.location)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "VIGOR"
        if not folder.is_dir():
            make(folder)
        for options in ("", "?labels=corrected", "?protocol=cross-area"):
            for _ in range(arguments.repeats):
                command = [sys.executable, __file__, "--open", f"vigor:{folder}{options}"]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(f"vigor{options}: {found}", flush=True)


def measure(location: str) -> dict[str, float]:
    from cvgl_data.dataset import open_dataset

    started, of_processor = time.perf_counter(), time.process_time()
    dataset = open_dataset(location)
    seconds, of_processor = time.perf_counter() - started, time.process_time() - of_processor
    counts = {"references": dataset.references.num_rows, "queries": dataset.queries.num_rows}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    times = {"seconds": round(seconds, 2), "processor_seconds": round(of_processor, 2)}
    return {**counts, "pairs": dataset.pairs.num_rows, **times, "peak_mb": round(peak_mb, 1)}


def make(folder: Path) -> None:
    """Write lists, labels and empty images."""
    from cvgl_data.geo import lonlat_from_pixel, pixel_from_lonlat

    random = np.random.default_rng(0)
    train = dict(zip(TEST, np.diff([0, *np.round(np.cumsum(list(TEST.values())) * TRAIN_TOTAL / 52_605)]), strict=True))
    for city, (lon, lat) in PLACES.items():
        columns = int(np.sqrt(TILES[city]))
        number = np.arange(TILES[city])
        x0, y0 = pixel_from_lonlat(lon, lat, 20)
        tile_lon, tile_lat = lonlat_from_pixel(x0 + number % columns * 320.0, y0 + number // columns * 320.0, 20)
        tiles = [f"satellite_{a!r}_{b!r}.png" for a, b in zip(tile_lat.tolist(), tile_lon.tolist(), strict=True)]
        num = int(train[city]) + TEST[city]
        # Anywhere between four tiles that exist.
        column, row = random.integers(0, columns - 1, num), random.integers(0, len(number) // columns - 1, num)
        share = random.uniform(0, 1, (num, 2))
        query_lon, query_lat = lonlat_from_pixel(x0 + (column + share[:, 0]) * 320, y0 + (row + share[:, 1]) * 320, 20)
        names = [
            f"{index:022d},{a:.6f},{b:.6f},.jpg"
            for index, (a, b) in enumerate(zip(query_lat.tolist(), query_lon.tolist(), strict=True))
        ]
        lines = []
        for index, name in enumerate(names):
            near = [(dx, dy) for dy in (0, 1) for dx in (0, 1)]
            near.sort(key=lambda step, at=share[index]: (step[0] - at[0]) ** 2 + (step[1] - at[1]) ** 2)
            parts = [name]
            for dx, dy in near:
                tile = tiles[(row[index] + dy) * columns + column[index] + dx]
                north, east = (share[index, 1] - dy) * 320, (dx - share[index, 0]) * 320
                parts += [tile, str(float(round(north))), str(float(round(east)))]
            lines.append(" ".join(parts) + "\n")
        labels = folder / "splits__corrected" / city
        labels.mkdir(parents=True)
        (labels / "satellite_list.txt").write_text("".join(f"{name}\n" for name in tiles))
        (labels / "pano_label_balanced__corrected.txt").write_text("".join(lines))
        (labels / "same_area_balanced_train__corrected.txt").write_text("".join(lines[TEST[city] :]))
        (labels / "same_area_balanced_test__corrected.txt").write_text("".join(lines[: TEST[city]]))
        for kind, files in (("satellite", tiles), ("panorama", names)):
            (folder / city / kind).mkdir(parents=True)
            for name in files:
                (folder / city / kind / name).touch()


if __name__ == "__main__":
    main()
