"""Directions of pixels, and interpolation between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]
Floats = NDArray[np.float64]


class Map(NamedTuple):
    """Where each output pixel comes from: pixel-index coordinates (centres at whole numbers) in the source."""

    x: NDArray[np.floating]
    y: NDArray[np.floating]


def angles(width: int, height: int) -> tuple[Floats, Floats]:
    """Return the azimuth of each column and the elevation of each row of a north-aligned panorama, radians."""
    azimuth = 2 * np.pi * ((np.arange(width) + 0.5) / width - 0.5)
    elevation = np.pi * (0.5 - (np.arange(height) + 0.5) / height)
    return azimuth, elevation


def directions_of(width: int, height: int) -> Floats:
    """Return the direction of each pixel of a north-aligned panorama, shape (3, height, width): east, north, up."""
    azimuth, elevation = angles(width, height)
    directions = np.empty((3, height, width))
    directions[0] = np.cos(elevation)[:, None] * np.sin(azimuth)
    directions[1] = np.cos(elevation)[:, None] * np.cos(azimuth)
    directions[2] = np.sin(elevation)[:, None]
    return directions


def basis_of(heading_deg: float, pitch_deg: float, roll_deg: float = 0.0) -> Floats:
    """Return the camera's right, forward and up axes as rows (east, north, up)."""
    heading, pitch, roll = np.radians([heading_deg, pitch_deg, roll_deg])
    forward = np.array([np.cos(pitch) * np.sin(heading), np.cos(pitch) * np.cos(heading), np.sin(pitch)])
    level = np.array([np.cos(heading), -np.sin(heading), 0.0])
    upright = np.cross(level, forward)
    right = np.cos(roll) * level - np.sin(roll) * upright
    up = np.sin(roll) * level + np.cos(roll) * upright
    return np.stack([right, forward, up])


def frozen(x: Floats, y: Floats) -> Map:
    """Protect a cached map against being changed in place."""
    x.flags.writeable = False
    y.flags.writeable = False
    return Map(x, y)


def sample(image: Image, source: Map, *, wrap: bool = True) -> Image:
    """Interpolate bilinearly, clamped in y and, unless wrapped, in x."""
    height, width = image.shape[:2]
    x = np.mod(source.x, width) if wrap else np.clip(source.x, 0, width - 1)
    y = np.clip(source.y, 0, height - 1)
    if image.dtype == np.uint8:
        if wrap:  # one more column, the first again, is all that interpolation can reach
            image = np.concatenate([image, image[:, :1]], axis=1)
        return remap(image, x.astype(np.float32, copy=False), y.astype(np.float32, copy=False))
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


def remap(image: Image, x: Image, y: Image, border: int = cv2.BORDER_REPLICATE) -> Image:
    """Interpolate uint8 pixels bilinearly by OpenCV; what lies beyond an edge is the edge, unless told otherwise."""
    sampled: Image = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border)
    return sampled
