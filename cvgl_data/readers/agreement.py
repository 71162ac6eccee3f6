"""Whether labels in pixels agree with the coordinates of the same pairs; VIGOR's original ones do not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cvgl_data.geo import gsd_m, pixel_from_lonlat
from cvgl_data.readers.citytiles import Layout, Read
from cvgl_data.readers.thirteen import TILES

logger = logging.getLogger(__name__)

SCALE_TOLERANCE = 0.005
"""VIGOR's corrected labels are 0.998 times the coordinates' offsets, its original ones 0.992 (New York) to 0.88."""


class Agreement(NamedTuple):
    """How labels of one city compare with the coordinates of the same pairs."""

    city: str
    pairs: int
    mean_px: float
    """Mean distance between labeled place and that from coordinates, pixels of the labels' tile."""
    max_px: float
    scale: float
    """Labeled offset from the centre as a multiple of that from coordinates, by least squares; 1 is right."""
    gsd_m: float
    """Ground metres per pixel that the tiles have."""

    @property
    def labeled_gsd_m(self) -> float | None:
        """Ground metres per pixel for which the labels would be right; None where no resolution makes them so."""
        return self.gsd_m / self.scale if self.scale > 0 else None

    @property
    def agrees(self) -> bool:
        """Whether the labels are for the ground resolution that the tiles have."""
        return abs(self.scale - 1) <= SCALE_TOLERANCE


def agreement(read: Read, layout: Layout) -> list[Agreement]:
    """Compare the labels with the coordinates, city by city; all four tiles of every query."""
    query_row, tile_row = np.repeat(np.arange(len(read.splits)), TILES), read.tile_row.reshape(-1)
    tile_lat = read.tiles.lat
    tile_x, tile_y = pixel_from_lonlat(read.tiles.lon, tile_lat, layout.zoom)
    x, y = pixel_from_lonlat(read.panoramas.lon, read.panoramas.lat, layout.zoom)
    ratio = layout.image_px / layout.size
    ours = np.stack([x[query_row] - tile_x[tile_row], y[query_row] - tile_y[tile_row]], 1) * ratio
    theirs = read.uv.reshape(-1, 2) - layout.image_px / 2
    away = np.hypot(*(ours - theirs).T)
    tile_gsd_m = gsd_m(tile_lat[tile_row], layout.zoom) / ratio
    city_of = np.repeat(np.array(read.panoramas.cities, dtype=object), TILES)
    found = []
    for city in dict.fromkeys(read.panoramas.cities):
        at = city_of == city
        squares = float((ours[at] ** 2).sum())
        scale = float((ours[at] * theirs[at]).sum() / squares) if squares else 1.0
        found.append(
            Agreement(
                city, int(at.sum()), float(away[at].mean()), float(away[at].max()), scale, float(tile_gsd_m[at].mean())
            )
        )
    return found


def warn_of_disagreement(found: Sequence[Agreement], labels: str) -> None:
    """Log each city whose labels are for another ground resolution."""
    for city in found:
        if not city.agrees:
            meant = f"{city.labeled_gsd_m:.4f} m/px" if city.labeled_gsd_m else "no resolution"
            logger.warning(
                "%s labels of %s disagree with the coordinates by %.1f px on average: they are for %s, the tiles have "
                "%.4f m/px; labels=mercator takes places from the coordinates",
                labels,
                city.city,
                city.mean_px,
                meant,
                city.gsd_m,
            )
