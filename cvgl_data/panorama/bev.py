"""The ground round a panorama, seen from above.

`cvgl_models.geometry.bev_from_panorama` gives the same picture of a batch, on any device and differentiable.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.panorama.sampling import Floats, Image, Map, frozen, sample

WHOLE_SPHERE = (0.0, 180.0)


def to_bev(
    image: Image,
    size_px: int,
    *,
    meters_per_px: float | None = None,
    fov_deg: float | None = None,
    camera_height_m: float = 2.5,
    heading_deg: float = 0.0,
    zenith_deg: tuple[float, float] = WHOLE_SPHERE,
    oversample: int = 1,
) -> Image:
    """Look at the ground round a panorama from above: flat ground, level camera, north up, the camera in the centre.

    What stands above the ground smears outwards; nothing above the horizon appears. The scale is given in one of two
    ways: ``meters_per_px`` on the ground (match it with the reference's: its side in metres over ``size_px``), or
    ``fov_deg`` of a pinhole that looks straight down, as in the literature, which needs no camera height. The two agree
    where ``tan(fov_deg / 2) = size_px * meters_per_px / 2 / camera_height_m``. Where the panorama does not reach
    (`bev_mask`), the picture has the mean color of the rest.

    Args:
        image: (H, W[, C]) equirectangular panorama.
        size_px: Side of the square result.
        meters_per_px: Ground metres per pixel of the result.
        fov_deg: Full angle from edge to edge, below 180.
        camera_height_m: Above the ground; unused with ``fov_deg``.
        heading_deg: Compass bearing of the centre column.
        zenith_deg: Angle between the zenith and the image's top edge, and its bottom edge.
        oversample: Sample this many times denser in each direction and average, against aliasing.

    Returns:
        (size_px, size_px[, C]) of the image's type.

    Raises:
        ValueError: If a panorama of the whole sphere is not twice as wide as high; unless exactly one of
            ``meters_per_px`` and ``fov_deg`` is given; if a value is out of range.

    Source:
        AuxGeo's ``get_BEV_projection`` with the nadir between the middle pixels, wrap-around in azimuth and rounding.
    """
    height, width = image.shape[:2]
    if zenith_deg == WHOLE_SPHERE and width != 2 * height:
        raise ValueError(f"a panorama of the whole sphere is twice as wide as high, this one is {width}x{height}")
    step = _heights_per_px(size_px, meters_per_px, fov_deg, camera_height_m)
    side = size_px * oversample
    look = (height, width, side, step / oversample, heading_deg, *_checked(zenith_deg))
    if image.dtype == np.uint8:
        fine = _blended(image, _taps(*look)).reshape(side, side, *image.shape[2:])
    else:
        fine = sample(image, _bev_map(*look))
    if not (zenith_deg[0] <= 90.0 and zenith_deg[1] >= 180.0):
        seen = _seen(side, step / oversample, zenith_deg)
        fine[~seen] = fine[seen].mean(0) if seen.any() else 0
    if oversample > 1:
        fine = fine.reshape(size_px, oversample, size_px, oversample, *image.shape[2:]).mean((1, 3))
    return np.rint(fine).astype(np.uint8) if image.dtype == np.uint8 else fine.astype(image.dtype, copy=False)


def bev_mask(
    size_px: int,
    *,
    meters_per_px: float | None = None,
    fov_deg: float | None = None,
    camera_height_m: float = 2.5,
    zenith_deg: tuple[float, float] = WHOLE_SPHERE,
) -> NDArray[np.bool_]:
    """Return where a top view shows what the panorama shows, (size_px, size_px); arguments as of `to_bev`."""
    return _seen(size_px, _heights_per_px(size_px, meters_per_px, fov_deg, camera_height_m), _checked(zenith_deg))


class _Taps(NamedTuple):
    """The four pixels that each output pixel is mixed of, by place in H * W, and their shares; both (4, S * S)."""

    place: NDArray[np.int32]
    share: NDArray[np.float32]


def _blended(image: Image, taps: _Taps) -> NDArray[np.float32]:
    """Return interpolated pixels, (S * S[, C]) float32.

    OpenCV's own interpolation would be faster still, but before version 5 it knows places to 1/32 of a pixel only.
    """
    flat = image.reshape(-1, *image.shape[2:])
    one_each = (slice(None), *[None] * (image.ndim - 2))
    blended: NDArray[np.float32] = np.take(flat, taps.place[0], 0) * taps.share[0][one_each]
    for place, share in zip(taps.place[1:], taps.share[1:], strict=True):
        blended += np.take(flat, place, 0) * share[one_each]
    return blended


@lru_cache(maxsize=4)
def _taps(
    height: int, width: int, size_px: int, step: float, heading_deg: float, top_deg: float, bottom_deg: float
) -> _Taps:
    source = _bev_map(height, width, size_px, step, heading_deg, top_deg, bottom_deg)
    x, y = np.mod(source.x, width).ravel(), np.clip(source.y, 0, height - 1).ravel()
    left, top = np.floor(x), np.floor(y)
    right_share, bottom_share = x - left, y - top
    columns = [(left + beside) % width for beside in (0, 1)]
    rows = [top, np.minimum(top + 1, height - 1)]
    shares = [[1 - bottom_share, bottom_share], [1 - right_share, right_share]]
    taps = _Taps(
        np.stack([(row * width + column).astype(np.int32) for row in rows for column in columns]),
        np.stack([(row * column).astype(np.float32) for row in shares[0] for column in shares[1]]),
    )
    taps.place.flags.writeable = taps.share.flags.writeable = False
    return taps


@lru_cache(maxsize=8)
def _bev_map(
    height: int, width: int, size_px: int, step: float, heading_deg: float, top_deg: float, bottom_deg: float
) -> Map:
    """Return the map for pixels whose ground distance is ``step`` camera heights."""
    azimuth, zenith = _directions(size_px, step)
    v = (np.degrees(zenith) - top_deg) / (bottom_deg - top_deg)
    return frozen(width * (0.5 + azimuth / (2 * np.pi) - heading_deg / 360.0) - 0.5, height * v - 0.5)


@lru_cache(maxsize=4)
def _directions(size_px: int, step: float) -> tuple[Floats, Floats]:
    """Return azimuth and angle from the zenith of each output pixel, radians."""
    offset = (np.arange(size_px) + 0.5 - size_px / 2) * step
    east, north = offset[None, :], -offset[:, None]
    return np.arctan2(east, north), np.pi - np.arctan(np.hypot(east, north))


def _seen(size_px: int, step: float, zenith_deg: tuple[float, float]) -> NDArray[np.bool_]:
    _, zenith = _directions(size_px, step)
    seen: NDArray[np.bool_] = (zenith >= math.radians(zenith_deg[0])) & (zenith <= math.radians(zenith_deg[1]))
    return seen


def _heights_per_px(size_px: int, meters_per_px: float | None, fov_deg: float | None, camera_height_m: float) -> float:
    if (meters_per_px is None) == (fov_deg is None):
        raise ValueError("give exactly one of meters_per_px and fov_deg")
    if fov_deg is not None:
        if not 0.0 < fov_deg < 180.0:
            raise ValueError(f"fov_deg must lie between 0 and 180, not {fov_deg}")
        return math.tan(math.radians(fov_deg) / 2) * 2 / size_px
    assert meters_per_px is not None
    if not (meters_per_px > 0.0 and camera_height_m > 0.0):
        raise ValueError("meters_per_px and camera_height_m must be positive")
    return meters_per_px / camera_height_m


def _checked(zenith_deg: tuple[float, float]) -> tuple[float, float]:
    top_deg, bottom_deg = zenith_deg
    if not (0.0 <= top_deg < bottom_deg <= 180.0 and bottom_deg > 90.0):
        raise ValueError(
            "zenith_deg must be two growing angles in [0, 180], the second one below the horizon (90), not "
            f"({top_deg}, {bottom_deg})"
        )
    return top_deg, bottom_deg
