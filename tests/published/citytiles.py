"""Tiles with panoramas in several cities: what the small copies of VIGOR and DReSS are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvgl_data.geo import lonlat_from_pixel, pixel_from_lonlat
from published.pictures import stations


@dataclass
class City:
    """Tiles on a grid and the panoramas in its middle."""

    name: str
    tiles: np.ndarray
    """(R, 2) lon, lat of the centres."""
    panoramas: np.ndarray
    """(Q, 2) lon, lat."""
    nearest: np.ndarray
    """(Q, 4) rows of the four tiles whose centres are nearest in max norm, nearest first."""
    uv: np.ndarray
    """(Q, 4, 2) where the panorama lies in them, pixels of the zoom, exact."""


def city(
    name: str,
    lon: float,
    lat: float,
    *,
    zoom: int,
    size: int,
    stride: float,
    grid: int,
    queries: int,
    decimals: int | None = None,
) -> City:
    """Lay out ``grid`` by ``grid`` tiles around a place, ``stride`` pixels apart, with panoramas that tiles cover.

    Args:
        name: Of the city.
        lon: Of the middle.
        lat: Of the middle.
        zoom: Of the tiles.
        size: Their side, pixels of the zoom.
        stride: From centre to centre.
        grid: Tiles in each direction.
        queries: At most this many panoramas.
        decimals: To which coordinates of tiles are rounded before anything is derived from them.
    """
    x0, y0 = pixel_from_lonlat(lon, lat, zoom)
    steps = (np.arange(grid) - (grid - 1) / 2) * stride
    x, y = (axis.ravel() for axis in np.meshgrid(x0 + steps, y0 + steps))
    tiles = np.stack(lonlat_from_pixel(x, y, zoom), 1)
    if decimals is not None:
        tiles = np.round(tiles, decimals)
    x, y = pixel_from_lonlat(tiles[:, 0], tiles[:, 1], zoom)
    # Half a stride inside the outer centres, so that every panorama has its four tiles.
    reach = (grid - 1) / 2 * stride - 1
    west, north = lonlat_from_pixel(x0 - reach, y0 - reach, zoom)
    east, south = lonlat_from_pixel(x0 + reach, y0 + reach, zoom)
    panoramas = np.array(stations(float(west), float(south), float(east), float(north), queries))
    qx, qy = pixel_from_lonlat(panoramas[:, 0], panoramas[:, 1], zoom)
    dx, dy = qx[:, None] - x, qy[:, None] - y
    nearest = np.argsort(np.hypot(dx, dy), axis=1, kind="stable")[:, :4]
    uv = np.stack([np.take_along_axis(delta, nearest, 1) + size / 2 for delta in (dx, dy)], -1)
    return City(name, tiles, panoramas, nearest, uv)
