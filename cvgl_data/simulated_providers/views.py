"""Pixels from pixels: perspective views of a panorama, tiles of its levels, other sizes."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def view(panorama: Pixels, heading_deg: float, pitch_deg: float, fov_deg: float, width: int, height: int) -> Pixels:
    """Look into a panorama.

    Args:
        panorama: (H, 2 H, 3).
        heading_deg: Clockwise from the panorama's centre column.
        pitch_deg: Above the panorama's middle row.
        fov_deg: Full horizontal angle, below 180.
        width: Columns of the view.
        height: Rows of the view.

    Returns:
        (height, width, 3).
    """
    focal_px = width / 2 / math.tan(math.radians(fov_deg) / 2)
    columns = max(2 * round(math.pi * focal_px), 32)
    if columns < panorama.shape[1]:  # averaging first: sampling a finer image bilinearly would alias
        panorama = resized(panorama, columns, columns // 2)
    heading, pitch = math.radians(heading_deg), math.radians(pitch_deg)
    x = (np.arange(width) + 0.5 - width / 2) / focal_px
    up = (height / 2 - np.arange(height) - 0.5)[:, None] / focal_px
    # The view's forward and up axes, level in x, before the turn by the heading.
    ahead = math.cos(pitch) - up * math.sin(pitch)
    rise = math.sin(pitch) + up * math.cos(pitch)
    azimuth = np.arctan2(x, ahead) + heading
    elevation = np.arctan2(rise, np.hypot(x, ahead))
    rows, columns = panorama.shape[:2]
    return _sample(panorama, columns * (0.5 + azimuth / (2 * math.pi)) - 0.5, rows * (0.5 - elevation / math.pi) - 0.5)


def level_tile(panorama: Pixels, level_width: int, column: int, row: int, tile_px: int) -> Pixels:
    """Cut one tile from a panorama shown ``level_width`` pixels wide, black where the level ends.

    Args:
        panorama: (H, 2 H, 3), as wide as the level or narrower; then it is enlarged.
        level_width: Columns of the level, twice its rows.
        column: Of the tile.
        row: Of the tile.
        tile_px: Side of the tile.
    """
    left, top = column * tile_px, row * tile_px
    width, height = min(tile_px, level_width - left), min(tile_px, level_width // 2 - top)
    if panorama.shape[1] == level_width:
        part = panorama[top : top + height, left : left + width]
    else:
        scale = panorama.shape[1] / level_width
        x = (left + np.arange(width) + 0.5) * scale - 0.5
        y = (top + np.arange(height) + 0.5)[:, None] * scale - 0.5
        part = _sample(panorama, np.broadcast_to(x, (height, width)), np.broadcast_to(y, (height, width)))
    tile = np.zeros((tile_px, tile_px, 3), np.uint8)
    tile[:height, :width] = part
    return tile


def resized(image: Pixels, width: int, height: int) -> Pixels:
    """Return the image in another size: averaged where it shrinks, interpolated where it grows."""
    if image.shape[:2] == (height, width):
        return image
    how = cv2.INTER_AREA if width <= image.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)


def _sample(panorama: Pixels, x: NDArray[np.floating], y: NDArray[np.floating]) -> Pixels:
    """Interpolate bilinearly at pixel indices: round the seam in x, clamped in y."""
    rows, columns = panorama.shape[:2]
    joined = np.concatenate([panorama, panorama[:, :1]], axis=1)
    sampled = cv2.remap(
        joined,
        np.mod(x, columns).astype(np.float32),
        np.clip(y, 0, rows - 1).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(sampled, np.uint8)
