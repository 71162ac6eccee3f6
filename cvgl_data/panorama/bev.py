"""The ground round a panorama, seen from above."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from cvgl_data.panorama.sampling import Image, Map, frozen, sample


def to_bev(
    image: Image,
    size_px: int,
    *,
    meters_per_px: float | None = None,
    fov_deg: float | None = None,
    camera_height_m: float = 2.5,
    heading_deg: float = 0.0,
) -> Image:
    """Look at the ground round a panorama from above: flat ground, level camera, north up, the camera in the centre.

    What stands above the ground smears outwards; nothing above the horizon appears. The scale is given in one of two
    ways: ``meters_per_px`` on the ground (match it with the reference's), or ``fov_deg`` of a pinhole that looks
    straight down, as in the literature, which needs no camera height. The two agree where
    ``tan(fov_deg / 2) = size_px * meters_per_px / 2 / camera_height_m``.

    Args:
        image: (H, W[, C]) equirectangular panorama, W = 2 H.
        size_px: Side of the square result.
        meters_per_px: Ground metres per pixel of the result.
        fov_deg: Full angle from edge to edge, below 180.
        camera_height_m: Above the ground; unused with ``fov_deg``.
        heading_deg: Compass bearing of the centre column.

    Returns:
        (size_px, size_px[, C]) of the image's type.

    Raises:
        ValueError: Unless exactly one of ``meters_per_px`` and ``fov_deg`` is given, and in range.

    Source:
        AuxGeo's ``get_BEV_projection`` with the nadir between the middle pixels, wrap-around in azimuth and rounding.
    """
    if (meters_per_px is None) == (fov_deg is None):
        raise ValueError("give exactly one of meters_per_px and fov_deg")
    if fov_deg is not None:
        if not 0.0 < fov_deg < 180.0:
            raise ValueError(f"fov_deg must lie between 0 and 180, not {fov_deg}")
        step = math.tan(math.radians(fov_deg) / 2) * 2 / size_px
    else:
        assert meters_per_px is not None
        if not (meters_per_px > 0.0 and camera_height_m > 0.0):
            raise ValueError("meters_per_px and camera_height_m must be positive")
        step = meters_per_px / camera_height_m
    height, width = image.shape[:2]
    return sample(image, _bev_map(height, width, size_px, step, heading_deg))


@lru_cache(maxsize=16)
def _bev_map(height: int, width: int, size_px: int, step: float, heading_deg: float) -> Map:
    """Return the map for pixels whose ground distance is ``step`` camera heights."""
    offset = (np.arange(size_px) + 0.5 - size_px / 2) * step
    east, north = offset[None, :], -offset[:, None]
    azimuth = np.arctan2(east, north) - math.radians(heading_deg)
    from_nadir = np.arctan(np.hypot(east, north))
    return frozen(width * (0.5 + azimuth / (2 * np.pi)) - 0.5, height * (1.0 - from_nadir / np.pi) - 0.5)
