"""A small VIGOR."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from published.citytiles import City, city
from published.pictures import overhead, panorama, write

PLACES = {
    "NewYork": (-73.9855, 40.7484),
    "Seattle": (-122.3300, 47.6050),
    "SanFrancisco": (-122.4100, 37.7800),
    "Chicago": (-87.6500, 41.8800),
}

HALF_TILE_LAT_DEG = 0.000328072
"""What the original labels take for half a tile: 320 pixels of 0.114 m."""


def make(
    folder: Path,
    *,
    cities: tuple[str, ...] = tuple(PLACES),
    grid: int = 5,
    queries: int = 12,
    tree: str = "city",
    pixels: int = 64,
    width: int = 128,
    empty: bool = False,
) -> dict[str, City]:
    """Write labels of all three kinds and images; returns the cities.

    Args:
        folder: Where.
        cities: Some of `PLACES`.
        grid: Tiles in each direction, overlapping by half.
        queries: Panoramas in each city.
        tree: ``city`` for City/{panorama,satellite}, ``kind`` for {ground,satellite}/City.
        pixels: Side of the tile images.
        width: Of the panoramas.
        empty: Write empty files in place of images.
    """
    made = {}
    for name in cities:
        here = made[name] = city(
            name, *PLACES[name], zoom=20, size=640, stride=320, grid=grid, queries=queries, decimals=13
        )
        tile_names = [f"satellite_{lat!r}_{lon!r}.png" for lon, lat in here.tiles.tolist()]
        panorama_names = [
            f"pano-{index:03d}_{name[:2]},{lat:.6f},{lon:.6f},.jpg" for index, (lon, lat) in enumerate(here.panoramas)
        ]
        tiles, panoramas = (
            (f"{name}/satellite", f"{name}/panorama") if tree == "city" else (f"satellite/{name}", f"ground/{name}")
        )
        for file, (lon, lat) in zip(tile_names, here.tiles.tolist(), strict=True):
            write(folder / tiles / file, b"" if empty else overhead(lon, lat, 20, 640, pixels))
        for file, (lon, lat) in zip(panorama_names, here.panoramas.tolist(), strict=True):
            write(folder / panoramas / file, b"" if empty else panorama(lon, lat, width))
        for kind, splits, suffix in (("corrected", "splits__corrected", "__corrected"), ("original", "splits", "")):
            lines = _lines(here, panorama_names, tile_names, kind)
            to = folder / splits / name
            write(to / "satellite_list.txt", "".join(f"{file}\n" for file in tile_names))
            write(to / f"pano_label_balanced{suffix}.txt", "".join(lines))
            write(to / f"same_area_balanced_train{suffix}.txt", "".join(lines[::2]))
            write(to / f"same_area_balanced_test{suffix}.txt", "".join(lines[1::2]))
    return made


def _lines(here: City, panoramas: list[str], tiles: list[str], kind: str) -> list[str]:
    lines = []
    for query, name in enumerate(panoramas):
        parts = [name]
        for tile, (u, v) in zip(here.nearest[query].tolist(), here.uv[query].tolist(), strict=True):
            if kind == "corrected":
                north, east = v - 320, 320 - u
            else:  # degrees over what half a tile is taken for, of latitude and, at this latitude, of longitude
                lon, lat = here.tiles[tile] - here.panoramas[query]
                half_lon = HALF_TILE_LAT_DEG / np.cos(np.radians(here.tiles[tile][1]))
                north, east = lat / HALF_TILE_LAT_DEG * 320, lon / half_lon * 320
            parts += [tiles[tile], repr(float(round(north))), repr(float(round(east)))]
        lines.append(" ".join(parts) + "\n")
    return lines
