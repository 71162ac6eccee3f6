"""A small CV-Cities."""

from __future__ import annotations

from pathlib import Path

from cvgl_data.geo import lonlat_from_pixel, pixel_from_lonlat
from published.pictures import overhead, panorama, stations, write

PLACES = {
    "barcelona": (2.15, 41.39),
    "captown": (18.42, -33.93),
    "losangeles": (-118.24, 34.05),
    "maynila": (121.0, 14.62),
    "melbourne": (144.97, -37.81),
    "mexico": (-99.14, 19.43),
    "newyork": (-74.01, 40.71),
    "paris": (2.35, 48.86),
    "santiago": (-70.66, -33.45),
    "tokyo": (139.76, 35.68),
    "taipei": (121.5, 25.05),
    "singapore": (103.85, 1.29),
    "london": (-0.13, 51.51),
    "seattle": (-122.33, 47.61),
    "rio": (-43.18, -22.9),
    "sydney": (151.21, -33.87),
}


def make(
    folder: Path,
    *,
    cities: tuple[str, ...] = tuple(PLACES),
    queries: int = 6,
    reach_px: int = 900,
    pixels: int = 64,
    width: int = 128,
    nested: bool = False,
) -> dict[str, list[tuple[float, float]]]:
    """Write tables and images; returns the positions (lon, lat) of each city.

    Args:
        folder: Where.
        cities: Some of `PLACES`, by their folders.
        queries: Pairs in each city.
        reach_px: Half side of the square of each city, pixels of zoom 19.
        pixels: Side of the overhead images.
        width: Of the panoramas.
        nested: Whether cities lie in ``<city>/<city>``, as archives unpack.
    """
    made = {}
    for city in cities:
        x, y = pixel_from_lonlat(*PLACES[city], 19)
        west, north = lonlat_from_pixel(x - reach_px, y - reach_px, 19)
        east, south = lonlat_from_pixel(x + reach_px, y + reach_px, 19)
        made[city] = stations(float(west), float(south), float(east), float(north), queries)
        top = folder / city if nested else folder
        lines = []
        for number, (lon, lat) in enumerate(made[city]):
            name = f"{city}_{number:05d}"
            files = [f"{city}/sat_images/{name}.jpg", f"{city}/pano_images/{name}.jpg"]
            write(top / files[0], overhead(lon, lat, 19, 746, pixels, "jpg"))
            write(top / files[1], panorama(lon, lat, width))
            lines.append(f"{name},{lon!r},{lat!r},{city},{files[0]},{files[1]}\n")
        write(top / city / "img_info.csv", "".join(lines))
    return made
