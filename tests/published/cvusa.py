"""A small CVUSA: two towns far apart, panoramas cut as the published ones are."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from published.pictures import encode, overhead, panorama, stations, write

TOWNS = ((-120.51, 46.59, -120.50, 46.60), (-89.66, 39.79, -89.65, 39.80))
WIDTH, WHOLE, ROWS = 308, 154, (44, 100)
"""A quarter of the published 1232 columns; of the 616 rows of the sphere, 176 to 400 are kept."""


class Pair(NamedTuple):
    number: int
    split: str
    lon: float
    lat: float


def make(folder: Path, *, num: int = 12) -> list[Pair]:
    """Write ``num`` pairs, every third to test; numbers have gaps, and images that no list names are there, too."""
    places = [place for town in TOWNS for place in stations(*town, (num + 3) // 2 + 1)]
    rng = np.random.default_rng(0)
    numbers = [int(number) + 1 for number in rng.permutation(len(places))]  # lists are in no order
    pairs = [
        Pair(number, "test" if index % 3 == 2 else "train", *place)
        for index, (number, place) in enumerate(zip(numbers, places, strict=True))
    ][:num]
    lists: dict[str, str] = {"train": "", "test": ""}
    for pair in pairs:
        name = f"{pair.number:07d}"
        lists[pair.split] += f"bingmap/19/{name}.jpg,streetview/panos/{name}.jpg,streetview/annotations/{name}.png\n"
        write(folder / f"bingmap/19/{name}.jpg", overhead(pair.lon, pair.lat, 19, 750, suffix="jpg"))
        write(folder / f"streetview/panos/{name}.jpg", cut(panorama(pair.lon, pair.lat, 2 * WHOLE)))
    write(folder / "splits/train-19zl.csv", lists["train"])
    write(folder / "splits/val-19zl.csv", lists["test"])
    located = dict(zip(numbers, places, strict=True))
    lines = [f"{lat:.6f},{lon:.6f},{lat:.6f},{lon:.6f},{0.0:.1f}\n" for _, (lon, lat) in sorted(located.items())]
    write(folder / "split_locations/all.csv", "".join(lines))
    return pairs


def cut(whole: bytes) -> bytes:
    """Return the rows of a whole panorama that CVUSA has."""
    with Image.open(io.BytesIO(whole)) as opened:
        return encode(np.asarray(opened)[slice(*ROWS)])
