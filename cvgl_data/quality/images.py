"""What one image shows of its quality: brightness, sharpness, blank parts, the seam of a panorama.

Everything is measured on a copy of fixed size, so that images of any size compare and a large panorama costs little
more than its entropy decoding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from cvgl_data.errors import FetchError
from cvgl_data.images import Pixels, decode, image_size
from cvgl_data.quality.hashing import perceptual_hash

QUERY_PX = 1024
"""Longer side of the copy of a query that is measured; smaller images are measured as they are."""

REFERENCE_PX = 256
"""The same for references."""

DARK, BRIGHT = 10, 250
"""Luma up to which a pixel counts as clipped dark, and from which as clipped bright."""

_BAND = (1 / 4, 5 / 8)
"""Rows of a panorama in which brightness and sharpness count: 45 degrees above the horizon to 22.5 below. The sky may
be white and the nadir covered in any good panorama."""

_FLAT_STD = 6.0
"""Below this standard deviation of luma there is too little detail to tell a blurred image from a sharp one."""

_REBLUR_PX = 1.5
_NOISE_FLOOR = 0.25
"""Added to the variance that is left after blurring: JPEG blocks of a smooth image would otherwise pass for detail."""

_BLANK_STEP = 1
_BLANK_ROW_SHARE = 0.6
_BLANK_CAP_SHARE = 0.6
_SEAM_SHAPE = (512, 256)
_SEAM_BANDS = 16
_SEAM_FLOOR = 0.5

_FILL_PX = 8
_WATER_PX = 16
_WATER_STD, _WATER_LUMA, _WATER_TINT = 6.0, 140.0, 6.0

Luma = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Measures(NamedTuple):
    """What was measured on one image; ``None`` where a measure does not apply."""

    width: int | None = None
    height: int | None = None
    luma_mean: float | None = None
    luma_std: float | None = None
    dark_share: float | None = None
    bright_share: float | None = None
    sharpness: float | None = None
    nadir_blank_deg: float | None = None
    seam_ratio: float | None = None
    fill_share: float | None = None
    water_share: float | None = None
    hash: int | None = None
    is_decoded: bool = False


def measure_query(image: bytes | None) -> Measures:
    """Measure an encoded street-level image; nadir and seam only if it is a full panorama, twice as wide as high."""
    try:
        pixels, width, height = reduced(image, QUERY_PX)
    except FetchError:
        return Measures()
    luma = _luma(pixels)
    is_panorama = width == 2 * height
    rows = slice(*(round(edge * len(luma)) for edge in _BAND)) if is_panorama else slice(None)
    seen = luma[rows]
    return Measures(
        width,
        height,
        *_brightness(seen),
        sharpness=sharpness(seen),
        nadir_blank_deg=nadir_blank_deg(luma) if is_panorama else None,
        seam_ratio=seam_ratio(luma) if is_panorama else None,
        hash=perceptual_hash(seen),
        is_decoded=True,
    )


def measure_reference(image: bytes | None) -> Measures:
    """Measure an encoded overhead image; brightness is that of the part that is not filled with black or white."""
    try:
        pixels, width, height = reduced(image, REFERENCE_PX)
    except FetchError:
        return Measures()
    luma = _luma(pixels)
    is_fill = _fill(pixels)
    seen = luma[~is_fill] if is_fill.any() and not is_fill.all() else luma
    return Measures(
        width,
        height,
        *_brightness(seen),
        sharpness=sharpness(luma),
        fill_share=float(is_fill.mean()),
        water_share=water_share(pixels, luma),
        hash=perceptual_hash(luma),
        is_decoded=True,
    )


def reduced(image: bytes | None, side_px: int) -> tuple[Pixels, int, int]:
    """Return RGB pixels whose longer side is at most ``side_px``, and the width and height of the full image.

    All of the file is read, so a damaged one is found out at any scale.

    Raises:
        FetchError: If it cannot be decoded in full.
    """
    import cv2

    width, height = image_size(image or b"")
    assert image is not None
    scale = min(1.0, side_px / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if image[:2] == b"\xff\xd8":
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(image, "RGB", min_width=size[0], min_height=size[1])
        except ValueError as error:
            raise FetchError(f"undecodable image: {error}") from None
    else:
        pixels = decode(image)
    if pixels.shape[1::-1] != size:
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return pixels, width, height


def sharpness(luma: Luma) -> float | None:
    """Return how many times as much variance the Laplacian has as after a blur of 1.5 pixels.

    A sharp image loses nearly all of it, a blurred one has little to lose. Unlike the variance of the Laplacian alone,
    the ratio hardly depends on contrast and content.

    Args:
        luma: Shape (H, W), at the scale at which sharpness is to be judged.

    Returns:
        1 and more; ``None`` where there is too little contrast to tell.

    Source:
        Pech-Pacheco et al. 2000 (variance of the Laplacian), Crété-Roffet et al. 2007 (blurring again).
    """
    import cv2

    if min(luma.shape) < 8 or cv2.meanStdDev(luma)[1].item() < _FLAT_STD:
        return None
    detail = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))[1].item() ** 2
    blurred = cv2.GaussianBlur(luma.astype(np.float32), (0, 0), _REBLUR_PX)
    left = cv2.meanStdDev(cv2.Laplacian(blurred, cv2.CV_32F))[1].item() ** 2
    return float(detail / (left + _NOISE_FLOOR))


def nadir_blank_deg(luma: Luma) -> float:
    """Return the radius in degrees of the cap around the nadir that is black, or painted in one color.

    A row counts while most of it is black or of the cap's most frequent brightness; a logo in other colors may take up
    to two fifths of the rows.

    Args:
        luma: Shape (H, 2 H) of a full panorama.
    """
    height = len(luma)
    cap = luma[-max(1, height // 32) :]
    usual = int(np.bincount(cap.ravel(), minlength=256).argmax())
    lower = luma[height // 2 :][::-1]
    is_blank = (lower <= DARK) | (np.abs(lower.astype(np.int16) - usual) <= _BLANK_STEP)
    is_row = is_blank.mean(1) >= _BLANK_ROW_SHARE
    share = np.cumsum(is_row) / np.arange(1, len(is_row) + 1)
    rows = np.flatnonzero(is_row & (share >= _BLANK_CAP_SHARE))
    return float(rows[-1] + 1) / height * 180.0 if len(rows) else 0.0


def seam_ratio(luma: Luma) -> float | None:
    """Return how far the last column of a panorama is from continuing in the first.

    The step between the two is compared, in each of 16 bands of rows, with the steps between columns that lie side by
    side: 0 is their median, 1 their 99th percentile. The median of the bands is returned. An edge that happens to stand
    at the border differs in some bands, a panorama that does not close in most of them.

    Args:
        luma: Shape (H, 2 H).

    Returns:
        About 0 for a closed panorama; ``None`` for an image too small to tell.
    """
    import cv2

    if len(luma) < 2 * _SEAM_BANDS:
        return None
    if len(luma) > _SEAM_SHAPE[1]:
        luma = np.asarray(cv2.resize(luma, _SEAM_SHAPE, interpolation=cv2.INTER_AREA), np.uint8)
    columns = luma[: len(luma) // _SEAM_BANDS * _SEAM_BANDS].astype(np.int16)
    steps = np.abs(np.diff(columns, axis=1, append=columns[:, :1]))
    bands = steps.reshape(_SEAM_BANDS, -1, steps.shape[1]).mean(1)
    usual, largest = np.quantile(bands, (0.5, 0.99), axis=1)
    return float(np.median((bands[:, -1] - usual) / (largest - usual + _SEAM_FLOOR)))


def water_share(pixels: Pixels, luma: Luma) -> float:
    """Return the share of blocks of 16 x 16 pixels that are smooth, not bright, and bluer and greener than red."""
    if min(luma.shape) < _WATER_PX:
        return 0.0
    gray = luma.astype(np.float32)
    mean = _block_means(gray, _WATER_PX)
    variance = _block_means(gray**2, _WATER_PX) - mean**2
    color = _block_means(pixels.astype(np.float32), _WATER_PX)
    is_water = (variance <= _WATER_STD**2) & (mean <= _WATER_LUMA)
    is_water &= np.minimum(color[..., 1], color[..., 2]) >= color[..., 0] + _WATER_TINT
    return float(is_water.mean())


def _fill(pixels: Pixels) -> NDArray[np.bool_]:
    """Return which pixels, (H, W), lie in blocks of pure black or pure white."""
    import cv2

    is_fill = np.zeros(pixels.shape[:2], bool)
    if min(is_fill.shape) < _FILL_PX:
        return is_fill
    is_white = cv2.inRange(pixels, (BRIGHT,) * 3, (255,) * 3)
    is_black = cv2.inRange(pixels, (0,) * 3, (255 - BRIGHT,) * 3)
    blocks = _block_means(np.asarray(cv2.bitwise_or(is_white, is_black), np.float32), _FILL_PX) == 255
    rows, columns = (count * _FILL_PX for count in blocks.shape)
    is_fill[:rows, :columns] = blocks.repeat(_FILL_PX, 0).repeat(_FILL_PX, 1)
    # What is left of an image that is no multiple of the block goes with its neighbor.
    is_fill[rows:] = is_fill[rows - 1]
    is_fill[:, columns:] = is_fill[:, columns - 1 : columns]
    return is_fill


def _block_means(plane: Floats, side: int) -> Floats:
    """Return the means of blocks, (H // side, W // side), with a third axis if the plane has one."""
    import cv2

    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    cropped = plane[: rows * side, : columns * side]
    return np.asarray(cv2.resize(cropped, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _luma(pixels: Pixels) -> Luma:
    import cv2

    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)


def _brightness(luma: Luma) -> tuple[float, float, float, float]:
    """Return mean, standard deviation, and the shares of clipped dark and bright pixels; exact integer sums."""
    counts = np.bincount(luma.ravel(), minlength=256)
    levels, total = np.arange(256), counts.sum()
    mean = float(counts @ levels / total)
    variance = float(counts @ levels**2 / total) - mean**2
    dark, bright = counts[: DARK + 1].sum() / total, counts[BRIGHT:].sum() / total
    return mean, max(variance, 0.0) ** 0.5, float(dark), float(bright)
