"""A small CVGlobal, with maps."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from published.pictures import overhead, panorama, stations, write

HEADING_DEG = 62


def make(
    folder: Path,
    *,
    train: int = 8,
    test: int = 6,
    pixels: int = 64,
    width: int = 128,
    prefix: str = "",
    zoom: int = 19,
    size: int = 256,
) -> dict[str, list[tuple[float, float]]]:
    """Write lists and images; returns the positions (lon, lat) of each split.

    Args:
        folder: Where.
        train: Pairs that train.
        test: Pairs that test.
        pixels: Side of the overhead images.
        width: Of the street views.
        prefix: What stands before each path in the lists, as on the machine where they were made.
        zoom: Of the overhead images.
        size: Pixels of the zoom that they show.
    """
    made = {
        "train": stations(-73.985, 40.748, -73.975, 40.756, train),
        "val": stations(2.34, 48.85, 2.36, 48.86, test),
    }
    for split, positions in made.items():
        lines = []
        for number, (lon, lat) in enumerate(positions):
            # 22 characters of base64url, an underscore at a fixed place
            pano_id = base64.urlsafe_b64encode(hashlib.md5(f"{split}{number}".encode()).digest()).decode()[:22]
            name = f"{lat:.8f},{lon:.8f}_2022-08_{pano_id[:4]}_{pano_id[5:]}_d{HEADING_DEG}_z3.jpg"
            write(folder / "satellite" / name, overhead(lon, lat, zoom, size, pixels, "jpg"))
            write(folder / "map" / name, overhead(lon, lat, zoom, size, pixels, "jpg", map_=True))
            write(folder / "street" / name, panorama(lon, lat, width, HEADING_DEG))
            lines.append(f'"{prefix}satellite/{name}","{prefix}street/{name}"\n')
        write(folder / ("splits_csv" if split == "train" else "splits") / f"{split}.csv", "".join(lines))
    return made
