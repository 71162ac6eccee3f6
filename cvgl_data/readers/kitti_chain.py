"""Geometry of the KITTI localization protocol: where a camera lies in its cut, shifted and turned overhead image.

An overhead image is north-up and centred on the vehicle's antenna. The protocol (1) turns it so that the vehicle drives
to the right, (2) moves the camera to the centre, (3) shifts it at random, (4) turns it at random, (5) cuts the middle
out. Here all five are one affine map, so pixels are interpolated once and not three times.

A frame's noise is three shares in [-1, 1]: of the shift ahead and to the left of the driving direction at which the
camera lies from the centre, and of the counter-clockwise turn. Pixel coordinates are continuous, (0, 0) the corner of
an image. N frames.

Source: protocol of Shi and Li, "Beyond Cross-view Image Retrieval: Highly Accurate Vehicle Localization".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from cvgl_data.types import gsd_m_at

Floats = NDArray[np.float64]

CROP_PX = 512
SATMAP_PX = 1280
"""Side of the overhead images: zoom 18 at twice the pixels, which is zoom 19."""
ZOOM = 19
GSD_M = gsd_m_at(49.015, ZOOM)
"""Ground metres per pixel of all overhead images, 0.1958285; the protocol takes one latitude for all of them."""

CAMERA_AHEAD_M = 1.08
CAMERA_RIGHT_M = 0.26
"""Where the left color camera is, seen from the antenna that positions refer to."""
CAMERA_HEIGHT_M = 1.65
"""Of the cameras above the ground."""

SHIFT_M = 20.0
ROTATION_DEG = 10.0
"""Noise of the protocol, either way."""


class Noise(NamedTuple):
    """Noise of N frames, shares in [-1, 1] as the protocol's lists have them."""

    ahead: Floats
    """Camera's offset from the centre along its driving direction (``gt_x``)."""
    left: Floats
    """Camera's offset to the left of it (``gt_y``)."""
    turn: Floats
    """Counter-clockwise turn of the overhead image (``theta``)."""


class Place(NamedTuple):
    """Where cameras are in their references, each (N,)."""

    u: Floats
    v: Floats
    heading_deg: Floats
    """Viewing direction, clockwise from the top of the reference, in [0, 360)."""


class Statistics(NamedTuple):
    """What the noise of a list of frames amounts to, for a guess that knows nothing."""

    mean_error_m: float
    """Of the guess that the camera is at the centre."""
    median_error_m: float
    mean_turn_deg: float
    lateral_below_1m: float
    """Share of the guesses of the centre that are nearer than 1 m across the driving direction."""
    longitudinal_below_1m: float
    """The same along it."""


def draw_noise(frames: Sequence[str], seed: int = 0) -> Noise:
    """Return noise that depends on the seed and each frame's name only, uniform in [-1, 1)."""
    words = [hashlib.blake2b(f"{seed}:{frame}".encode(), digest_size=24).digest() for frame in frames]
    numbers = np.frombuffer(b"".join(words), "<u8").reshape(-1, 3)
    shares: Floats = (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0  # 53 bits are what float64 holds
    return Noise(shares[:, 0], shares[:, 1], shares[:, 2])


def place(noise: Noise, *, shift_m: float = SHIFT_M, rotation_deg: float = ROTATION_DEG) -> Place:
    """Return where the cameras are in the cut images.

    Before the turn a camera lies ``ahead`` to the right of the centre and ``left`` above it, and looks to the right.
    """
    ahead_px, left_px = noise.ahead * shift_m / GSD_M, noise.left * shift_m / GSD_M
    turn = np.radians(noise.turn * rotation_deg)
    right_px = ahead_px * np.cos(turn) - left_px * np.sin(turn)
    up_px = ahead_px * np.sin(turn) + left_px * np.cos(turn)
    heading_deg = (90.0 - noise.turn * rotation_deg) % 360.0
    return Place(CROP_PX / 2 + right_px, CROP_PX / 2 - up_px, heading_deg)


def heading_from_yaw(yaw_rad: ArrayLike) -> Floats:
    """Return the compass bearing of a yaw that is 0 in the east and grows counter-clockwise, in [0, 360)."""
    return np.asarray((90.0 - np.degrees(np.asarray(yaw_rad, np.float64))) % 360.0)


def camera_offset_m(bearing_deg: ArrayLike) -> tuple[Floats, Floats]:
    """Return how far east and north of the antenna the camera is, for a vehicle of that compass bearing."""
    bearing = np.radians(np.asarray(bearing_deg, np.float64))
    east_m = CAMERA_AHEAD_M * np.sin(bearing) + CAMERA_RIGHT_M * np.cos(bearing)
    north_m = CAMERA_AHEAD_M * np.cos(bearing) - CAMERA_RIGHT_M * np.sin(bearing)
    return east_m, north_m


def top_bearing(bearing_deg: ArrayLike, heading_deg: ArrayLike) -> Floats:
    """Return the compass bearing of the cut images' tops: camera's bearing less its heading in the image."""
    return np.asarray((np.asarray(bearing_deg, np.float64) - np.asarray(heading_deg, np.float64)) % 360.0)


def crop_map(camera: Place, bearing_deg: ArrayLike) -> Floats:
    """Return the affine maps from cut images to their sources.

    The cut image is the source turned by the bearing of its top and moved so that the camera comes to lie at its place;
    nothing else is needed to know.

    Args:
        camera: Places of N cameras in the cut images.
        bearing_deg: Compass bearings of the cameras, (N,).

    Returns:
        (N, 2, 3): ``(x, y)`` in the source is the matrix times ``(u, v, 1)``; (0, 0) is the corner in both.
    """
    top = np.radians(top_bearing(bearing_deg, camera.heading_deg))
    east_m, north_m = camera_offset_m(bearing_deg)
    camera_x, camera_y = SATMAP_PX / 2 + east_m / GSD_M, SATMAP_PX / 2 - north_m / GSD_M
    # One pixel to the right in the cut image goes towards the bearing top + 90 degrees, one down towards top + 180.
    right_x, right_y = np.cos(top), np.sin(top)
    down_x, down_y = -np.sin(top), np.cos(top)
    shift_x = camera_x - right_x * camera.u - down_x * camera.v
    shift_y = camera_y - right_y * camera.u - down_y * camera.v
    return np.stack([np.stack([right_x, down_x, shift_x], -1), np.stack([right_y, down_y, shift_y], -1)], -2)


def cut(satmap: Image.Image, crop: Floats) -> Image.Image:
    """Return the cut image, `CROP_PX` square, interpolated bilinearly.

    Args:
        satmap: Overhead image, `SATMAP_PX` square.
        crop: One of the maps of `crop_map`, (2, 3).
    """
    data = tuple(crop.reshape(-1).tolist())
    return satmap.transform((CROP_PX, CROP_PX), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def statistics(noise: Noise, *, shift_m: float = SHIFT_M, rotation_deg: float = ROTATION_DEG) -> Statistics:
    """Return what the noise amounts to; of the official test lists: 15.33 m on average, half below 16.03 m."""
    error_m = np.hypot(noise.ahead, noise.left) * shift_m
    return Statistics(
        mean_error_m=float(error_m.mean()),
        median_error_m=float(np.median(error_m)),
        mean_turn_deg=float(np.abs(noise.turn).mean() * rotation_deg),
        lateral_below_1m=float((np.abs(noise.left) * shift_m < 1.0).mean()),
        longitudinal_below_1m=float((np.abs(noise.ahead) * shift_m < 1.0).mean()),
    )
