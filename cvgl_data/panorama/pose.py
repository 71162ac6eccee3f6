"""Turn a panorama north and upright."""

from __future__ import annotations

import math

import cv2
import numpy as np

from cvgl_data.panorama.sampling import Image, Map, angles, basis_of, directions_of, remap, sample

_BLOCK_PX = 1 << 16
"""Pixels worked on at a time: few enough for the arrays to stay in cache, enough to hide numpy's overhead."""

_ATAN = (0.9999993278352408, -0.3332637452188166, 0.19879872155709355, -0.13480405607542684, 0.08374155654505105,
         -0.03689862924624628, 0.007825482945506822)  # fmt: skip
"""``atan(t) = t * polynomial(t**2)`` on [0, 1] to 5e-7, a Chebyshev fit; numpy's arctan2 takes ten times as long."""


def north_align(
    image: Image,
    heading_deg: float,
    pitch_deg: float = 0.0,
    roll_deg: float = 0.0,
    width: int | None = None,
) -> Image:
    """Re-render a panorama with north in the centre column and the horizon level.

    A turn by whole columns without pitch and roll only moves pixels, bit for bit; all else is resampled, sub-pixel.

    Args:
        image: (H, W[, C]) with W = 2 H.
        heading_deg: Compass bearing of the centre column.
        pitch_deg: Degrees of the image centre above the horizon.
        roll_deg: Growing roll turns the horizon counter-clockwise in the image.
        width: Width of the result, its height is half of it; default: as it is.

    Raises:
        ValueError: If the image is not twice as wide as high, or ``width`` is odd.
    """
    height, source_width = image.shape[:2]
    if source_width != 2 * height:
        raise ValueError(f"a full panorama is twice as wide as high, this is {source_width}x{height}")
    width = width or source_width
    if width < 2 or width % 2:
        raise ValueError(f"the width of a panorama must be even, not {width}")
    if width < source_width:  # averaging first: sampling a larger image bilinearly would alias
        image = cv2.resize(image, (width, width // 2), interpolation=cv2.INTER_AREA)
        source_width = width
    shift = source_width * heading_deg / 360.0
    if pitch_deg == 0.0 and roll_deg == 0.0 and width == source_width:
        return _turn(image, shift)
    pose = (heading_deg, pitch_deg, roll_deg)
    if image.dtype != np.uint8:
        return sample(image, _pose_map(width, source_width, *pose))
    # One more pixel all round, from across the seam or the edge again, is all that interpolation can reach.
    wrapped = cv2.copyMakeBorder(image, 0, 0, 1, 1, cv2.BORDER_WRAP)
    padded = cv2.copyMakeBorder(wrapped, 1, 1, 0, 0, cv2.BORDER_REPLICATE)
    return remap(padded, *_fast_pose_map(width, source_width, *pose, margin_px=1), border=cv2.BORDER_CONSTANT)


def _turn(image: Image, shift: float) -> Image:
    """Move the columns of a level panorama to the right, round the seam; linear between whole columns."""
    whole = round(shift)
    if abs(shift - whole) < 1e-9:
        return np.roll(image, whole, axis=1)
    whole = math.floor(shift)
    part = shift - whole
    near, far = np.roll(image, whole, axis=1), np.roll(image, whole + 1, axis=1)
    if image.dtype == np.uint8:
        return np.asarray(cv2.addWeighted(near, 1.0 - part, far, part, 0.0))
    return near * (1.0 - part) + far * part


def _pose_map(width: int, source_width: int, heading_deg: float, pitch_deg: float, roll_deg: float) -> Map:
    basis = basis_of(heading_deg, pitch_deg, roll_deg)
    right, forward, up = np.tensordot(basis, directions_of(width, width // 2), axes=1)
    azimuth = np.arctan2(right, forward)
    elevation = np.arctan2(up, np.hypot(right, forward))
    per_radian = source_width / (2 * math.pi)
    return Map(source_width / 2 - 0.5 + azimuth * per_radian, source_width / 4 - 0.5 - elevation * per_radian)


def _fast_pose_map(
    width: int, source_width: int, heading_deg: float, pitch_deg: float, roll_deg: float, margin_px: int = 0
) -> Map:
    """Return `_pose_map` for a source with a margin, in float32, to about 1e-3 px, at a tenth of its cost.

    Every panorama has its own pose, so there is nothing to keep. Opposite directions differ by half a turn in azimuth
    and in the sign of elevation, which halves the work; blocks of rows stay in the processor's cache.
    """
    height = width // 2
    azimuth, elevation = angles(width, height)
    # Each axis of the camera is, per pixel, a term of the column times one of the row plus one of the row alone.
    basis = basis_of(heading_deg, pitch_deg, roll_deg)
    columns = (basis[:, :1] * np.sin(azimuth) + basis[:, 1:2] * np.cos(azimuth)).astype(np.float32)
    cos_rows = np.cos(elevation).astype(np.float32)[:, None]
    sin_rows = (basis[:, 2:] * np.sin(elevation)).astype(np.float32)[..., None]
    per_radian = np.float32(source_width / (2 * math.pi))
    center_x = np.float32(source_width / 2 - 0.5 + margin_px)
    center_y = np.float32(source_width / 4 - 0.5 + margin_px)
    x, y = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    half_turn = np.float32(source_width / 2)
    step = max(1, _BLOCK_PX // width)
    upper = (height + 1) // 2
    for start in range(0, upper, step):
        rows = slice(start, min(start + step, upper))
        right, forward, up = (cos_rows[rows] * columns[axis] + sin_rows[axis, rows] for axis in range(3))
        x_block = _atan2(right, forward) * per_radian
        y_block = _atan2(up, np.sqrt(right * right + forward * forward)) * per_radian
        np.add(x_block, center_x, out=x[rows])
        np.subtract(center_y, y_block, out=y[rows])
        opposite = slice(height - rows.stop, height - rows.start)
        x_block += center_x - np.copysign(half_turn, x_block)
        y_block += center_y
        x[opposite] = np.roll(x_block, width // 2, axis=1)[::-1]
        y[opposite] = np.roll(y_block, width // 2, axis=1)[::-1]
    return Map(x, y)


def _atan2(y: Image, x: Image) -> Image:
    """Return the angle of float32 points to 1e-6 radians."""
    across, along = np.abs(y), np.abs(x)
    ratio = np.maximum(across, along)
    ratio += np.float32(1e-30)
    np.divide(np.minimum(across, along), ratio, out=ratio)
    square = ratio * ratio
    angle = square * np.float32(_ATAN[-1])
    for coefficient in _ATAN[-2:0:-1]:
        angle += np.float32(coefficient)
        angle *= square
    angle += np.float32(_ATAN[0])
    angle *= ratio
    angle = np.where(across > along, np.float32(np.pi / 2) - angle, angle)
    if x.min() < 0:
        angle = np.where(x < 0, np.float32(np.pi) - angle, angle)
    return np.copysign(angle, y)
