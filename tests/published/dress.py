"""A small DReSS: seamless tiles, of which many hold no panorama."""

from __future__ import annotations

from pathlib import Path

from published.citytiles import City, city
from published.pictures import overhead, panorama, write

PLACES = {
    "Chicago": (-87.6500, 41.8800),
    "Johannesburg": (28.0490, -26.2000),
    "London": (-0.1280, 51.5070),
    "Rio": (-43.1900, -22.9100),
    "Sydney": (151.2090, -33.8680),
    "Taipei": (121.5300, 25.0400),
    "Tokyo": (139.7600, 35.6800),
    "Vancouver": (-123.1200, 49.2600),
}


def make(
    folder: Path,
    *,
    cities: tuple[str, ...] = tuple(PLACES),
    grid: int = 4,
    queries: int = 8,
    side: int = 224,
    pixels: int = 64,
    width: int = 128,
) -> dict[str, City]:
    """Write labels and images; returns the cities.

    Args:
        folder: Where.
        cities: Some of `PLACES`.
        grid: Tiles in each direction.
        queries: Panoramas in each city.
        side: Pixels of zoom 18 that a tile shows; labels are in pixels of 224 all the same.
        pixels: Side of the tile images.
        width: Of the panoramas.
    """
    made = {}
    for name in cities:
        here = made[name] = city(
            name, *PLACES[name], zoom=18, size=side, stride=side, grid=grid, queries=queries, decimals=8
        )
        tile_names = [f"satellite_{row:05d}_{lon:.8f}_{lat:.8f}.png" for row, (lon, lat) in enumerate(here.tiles)]
        panorama_names = [
            f"{name},pano-{index:03d}_{name[:2]},{lat:.6f},{lon:.6f},2021,x.jpg"
            for index, (lon, lat) in enumerate(here.panoramas)
        ]
        for file, (lon, lat) in zip(tile_names, here.tiles.tolist(), strict=True):
            write(folder / name / "satellite" / file, overhead(lon, lat, 18, side, pixels))
        for file, (lon, lat) in zip(panorama_names, here.panoramas.tolist(), strict=True):
            write(folder / name / "panorama" / file, panorama(lon, lat, width))
        lines = []
        for query, file in enumerate(panorama_names):
            parts = [file]
            for tile, place in zip(here.nearest[query].tolist(), here.uv[query] * 224 / side, strict=True):
                parts += [tile_names[tile], *(repr(round(float(axis), 1)) for axis in place)]
            lines.append(" ".join(parts) + "\n")
        to = folder / "splits_new" / name
        write(to / "satellite_list.txt", "".join(f"{file}\n" for file in tile_names))
        write(to / "pano_label_balanced.txt", "".join(lines))
        write(to / "same_area_balanced_train.txt", "".join(lines[::2]))
        write(to / "same_area_balanced_test.txt", "".join(lines[1::2]))
    return made
