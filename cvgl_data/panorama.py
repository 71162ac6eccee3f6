"""Geometry of equirectangular panoramas: put them together, turn them north and upright, see the ground from above.

World frame east, north, up. A panorama of W x H pixels has its centre column at ``heading_deg``; columns run clockwise,
360 degrees over W; rows run from the zenith to the nadir, 180 degrees over H. All maps are half-pixel correct, wrap
around in azimuth and are clamped in elevation. Images are (H, W) or (H, W, C): uint8 goes through OpenCV, floats are
interpolated exactly.

Source:
    Google's GPano metadata for the signs of pitch and roll; AuxGeo and HC-Net for `to_bev`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cvgl_data.errors import FetchError
from cvgl_data.types import Outcome

Image = NDArray[Any]
Floats = NDArray[np.float64]


class View(NamedTuple):
    """A perspective image of the scene; ``fov_deg`` is the full horizontal angle."""

    image: Image
    heading_deg: float
    pitch_deg: float
    fov_deg: float


class _Map(NamedTuple):
    """Where each output pixel comes from: pixel-index coordinates (centres at whole numbers) in the source."""

    x: NDArray[np.floating]
    y: NDArray[np.floating]


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
        return _sample(image, _pose_map(width, source_width, *pose))
    # One more pixel all round, from across the seam or the edge again, is all that interpolation can reach.
    wrapped = cv2.copyMakeBorder(image, 0, 0, 1, 1, cv2.BORDER_WRAP)
    padded = cv2.copyMakeBorder(wrapped, 1, 1, 0, 0, cv2.BORDER_REPLICATE)
    return _remap(padded, *_fast_pose_map(width, source_width, *pose, margin_px=1), border=cv2.BORDER_CONSTANT)


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


def from_views(views: Sequence[View | tuple[Image, float, float, float]], width: int, height: int) -> Image:
    """Stitch perspective views into a north-aligned panorama.

    Each pixel comes from the view that sees it most centrally. Six square views of 90 degrees (four round the horizon,
    one up, one down) are the cheapest full cover.

    Args:
        views: ``(image, heading_deg, pitch_deg, fov_deg)`` each; images (h, w[, C]) of one type.
        width: Columns of the result.
        height: Rows of the result.

    Returns:
        (height, width[, C]).

    Raises:
        ValueError: If some direction is seen by no view; a panorama is never filled up with black.
    """
    shots = [View(*view) for view in views]
    if not shots:
        raise ValueError("a panorama needs at least one view")
    shapes = tuple((view.image.shape[0], view.image.shape[1]) for view in shots)
    poses = tuple((view.heading_deg, view.pitch_deg, view.fov_deg) for view in shots)
    atlas_width = max(w for _, w in shapes)
    atlas = np.concatenate([_widened(view.image, atlas_width) for view in shots])
    if atlas.dtype == np.uint8:
        # The map ends at the outermost pixels' centers, so no border is ever seen; a constant one is the fastest.
        return _remap(atlas, *_fixed_views_map(shapes, poses, width, height), border=cv2.BORDER_CONSTANT)
    return _sample(atlas, _views_map(shapes, poses, width, height), wrap=False)


def _widened(image: Image, width: int) -> Image:
    """Return an image with zeros to its right."""
    missing = width - image.shape[1]
    return np.pad(image, [(0, 0), (0, missing)] + [(0, 0)] * (image.ndim - 2)) if missing else image


def from_tiles(
    tiles: Mapping[tuple[int, int], Image],
    width: int,
    height: int,
    tile_px: int = 512,
    out_width: int | None = None,
) -> Image:
    """Put the tiles of one panorama level together.

    Args:
        tiles: ``(column, row)`` to pixels. Tiles of the last column and row may come padded to ``tile_px`` or cut.
        width: Columns of the level, from the panorama's metadata (not from the zoom: cameras differ).
        height: Rows of the level.
        tile_px: Side of a full tile.
        out_width: Resize to this width, averaging where that is smaller; default: as it is.

    Returns:
        (height, width[, C]), or (out_width / 2, out_width[, C]).

    Raises:
        FetchError: ``truncated`` if a tile is missing, ``wrong_size`` if one has another size: a provider that silently
            sends smaller tiles would otherwise fill datasets with blurred panoramas.
    """
    columns, rows = -(-width // tile_px), -(-height // tile_px)
    canvas: Image | None = None
    for row in range(rows):
        for column in range(columns):
            item = f"tile {column},{row}"
            tile = tiles.get((column, row))
            if tile is None:
                raise FetchError(f"{item} of {columns}x{rows} is missing", item=item, outcome=Outcome.TRUNCATED)
            left, top = column * tile_px, row * tile_px
            w, h = min(tile_px, width - left), min(tile_px, height - top)
            if tile.shape[0] not in (h, tile_px) or tile.shape[1] not in (w, tile_px):
                found = f"{tile.shape[1]}x{tile.shape[0]}"
                raise FetchError(
                    f"{item} is {found} pixels, not {tile_px}x{tile_px}", item=item, outcome=Outcome.WRONG_SIZE
                )
            if canvas is None:
                canvas = np.empty((height, width, *tile.shape[2:]), tile.dtype)
            canvas[top : top + h, left : left + w] = tile[:h, :w]
    if canvas is None:
        raise ValueError(f"a panorama of {width}x{height} pixels has no tiles")
    if out_width and out_width != width:
        how = cv2.INTER_AREA if out_width < width else cv2.INTER_LINEAR
        resized: Image = cv2.resize(canvas, (out_width, out_width // 2), interpolation=how)
        return resized
    return canvas


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
    return _sample(image, _bev_map(height, width, size_px, step, heading_deg))


def _angles(width: int, height: int) -> tuple[Floats, Floats]:
    """Return the azimuth of each column and the elevation of each row of a north-aligned panorama, radians."""
    azimuth = 2 * np.pi * ((np.arange(width) + 0.5) / width - 0.5)
    elevation = np.pi * (0.5 - (np.arange(height) + 0.5) / height)
    return azimuth, elevation


def _rays(width: int, height: int) -> Floats:
    """Return the direction of each pixel of a north-aligned panorama, shape (3, height, width): east, north, up."""
    azimuth, elevation = _angles(width, height)
    rays = np.empty((3, height, width))
    rays[0] = np.cos(elevation)[:, None] * np.sin(azimuth)
    rays[1] = np.cos(elevation)[:, None] * np.cos(azimuth)
    rays[2] = np.sin(elevation)[:, None]
    return rays


def _basis(heading_deg: float, pitch_deg: float, roll_deg: float = 0.0) -> Floats:
    """Return the camera's right, forward and up axes as rows (east, north, up)."""
    heading, pitch, roll = np.radians([heading_deg, pitch_deg, roll_deg])
    forward = np.array([np.cos(pitch) * np.sin(heading), np.cos(pitch) * np.cos(heading), np.sin(pitch)])
    level = np.array([np.cos(heading), -np.sin(heading), 0.0])
    upright = np.cross(level, forward)
    right = np.cos(roll) * level - np.sin(roll) * upright
    up = np.sin(roll) * level + np.cos(roll) * upright
    return np.stack([right, forward, up])


def _pose_map(width: int, source_width: int, heading_deg: float, pitch_deg: float, roll_deg: float) -> _Map:
    basis = _basis(heading_deg, pitch_deg, roll_deg)
    right, forward, up = np.tensordot(basis, _rays(width, width // 2), axes=1)
    azimuth = np.arctan2(right, forward)
    elevation = np.arctan2(up, np.hypot(right, forward))
    per_radian = source_width / (2 * math.pi)
    return _Map(source_width / 2 - 0.5 + azimuth * per_radian, source_width / 4 - 0.5 - elevation * per_radian)


def _fast_pose_map(
    width: int, source_width: int, heading_deg: float, pitch_deg: float, roll_deg: float, margin_px: int = 0
) -> _Map:
    """Return `_pose_map` for a source with a margin, in float32, to about 1e-3 px, at a tenth of its cost.

    Every panorama has its own pose, so there is nothing to keep. Opposite directions differ by half a turn in azimuth
    and in the sign of elevation, which halves the work; blocks of rows stay in the processor's cache.
    """
    height = width // 2
    azimuth, elevation = _angles(width, height)
    # Each axis of the camera is, per pixel, a term of the column times one of the row plus one of the row alone.
    basis = _basis(heading_deg, pitch_deg, roll_deg)
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
    return _Map(x, y)


_BLOCK_PX = 1 << 16
"""Pixels worked on at a time: few enough for the arrays to stay in cache, enough to hide numpy's overhead."""

_ATAN = (0.9999993278352408, -0.3332637452188166, 0.19879872155709355, -0.13480405607542684, 0.08374155654505105,
         -0.03689862924624628, 0.007825482945506822)  # fmt: skip
"""``atan(t) = t * polynomial(t**2)`` on [0, 1] to 5e-7, a Chebyshev fit; numpy's arctan2 takes ten times as long."""


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


@lru_cache(maxsize=4)
def _fixed_views_map(
    shapes: tuple[tuple[int, int], ...], poses: tuple[tuple[float, float, float], ...], width: int, height: int
) -> tuple[Image, Image]:
    """Return `_views_map` in OpenCV's fixed-point form: the same views come again and again."""
    x, y = _views_map(shapes, poses, width, height)
    whole, part = cv2.convertMaps(x.astype(np.float32), y.astype(np.float32), cv2.CV_16SC2)
    whole.flags.writeable = part.flags.writeable = False
    return whole, part


def _views_map(
    shapes: tuple[tuple[int, int], ...], poses: tuple[tuple[float, float, float], ...], width: int, height: int
) -> _Map:
    """Return the map into the views stacked on top of each other."""
    rays = _rays(width, height)
    best = np.full((height, width), -np.inf)
    x, y = np.zeros((height, width)), np.zeros((height, width))
    top = 0
    for (h, w), (heading_deg, pitch_deg, fov_deg) in zip(shapes, poses, strict=True):
        right, forward, up = np.tensordot(_basis(heading_deg, pitch_deg), rays, axes=1)
        focal = w / 2 / math.tan(math.radians(fov_deg) / 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = w / 2 + focal * right / forward
            v = h / 2 - focal * up / forward
        slack = 1e-6  # directions on the very edge between two views belong to one of them
        seen = (forward > 0) & (u >= -slack) & (u <= w + slack) & (v >= -slack) & (v <= h + slack)
        owned = seen & (forward > best)
        best[owned] = forward[owned]
        x[owned] = np.clip(u[owned] - 0.5, 0, w - 1)  # never into a neighbor in the stack
        y[owned] = top + np.clip(v[owned] - 0.5, 0, h - 1)
        top += h
    if np.isinf(best).any():
        share = 100 * (1 - np.isinf(best).mean())
        raise ValueError(f"the {len(shapes)} views cover only {share:.1f} % of the panorama's pixels")
    return _Map(x, y)


@lru_cache(maxsize=16)
def _bev_map(height: int, width: int, size_px: int, step: float, heading_deg: float) -> _Map:
    """Return the map for pixels whose ground distance is ``step`` camera heights."""
    offset = (np.arange(size_px) + 0.5 - size_px / 2) * step
    east, north = offset[None, :], -offset[:, None]
    azimuth = np.arctan2(east, north) - math.radians(heading_deg)
    from_nadir = np.arctan(np.hypot(east, north))
    return _frozen(width * (0.5 + azimuth / (2 * np.pi)) - 0.5, height * (1.0 - from_nadir / np.pi) - 0.5)


def _frozen(x: Floats, y: Floats) -> _Map:
    """Protect a cached map against being changed in place."""
    x.flags.writeable = False
    y.flags.writeable = False
    return _Map(x, y)


def _sample(image: Image, source: _Map, *, wrap: bool = True) -> Image:
    """Interpolate bilinearly, clamped in y and, unless wrapped, in x."""
    height, width = image.shape[:2]
    x = np.mod(source.x, width) if wrap else np.clip(source.x, 0, width - 1)
    y = np.clip(source.y, 0, height - 1)
    if image.dtype == np.uint8:
        if wrap:  # one more column, the first again, is all that interpolation can reach
            image = np.concatenate([image, image[:, :1]], axis=1)
        return _remap(image, x.astype(np.float32, copy=False), y.astype(np.float32, copy=False))
    left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
    right_weight, bottom_weight = x - left, y - top
    if image.ndim == 3:
        right_weight, bottom_weight = right_weight[..., None], bottom_weight[..., None]
    left %= width  # np.mod of a tiny negative number may round up to the width itself
    right = (left + 1) % width if wrap else np.minimum(left + 1, width - 1)
    bottom = np.minimum(top + 1, height - 1)
    upper = image[top, left] * (1 - right_weight) + image[top, right] * right_weight
    lower = image[bottom, left] * (1 - right_weight) + image[bottom, right] * right_weight
    blended: Image = (upper * (1 - bottom_weight) + lower * bottom_weight).astype(image.dtype, copy=False)
    return blended


def _remap(image: Image, x: Image, y: Image, border: int = cv2.BORDER_REPLICATE) -> Image:
    """Interpolate uint8 pixels bilinearly by OpenCV; what lies beyond an edge is the edge, unless told otherwise."""
    sampled: Image = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border)
    return sampled
