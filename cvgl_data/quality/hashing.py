"""Perceptual hashes: 64 bits that stay nearly the same when an image is compressed, resized or brightened."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

HASH_SIDE = 32
"""Side of the thumbnail that is transformed."""

_SCALE = 2**14

FREQUENCIES = tuple(
    sorted(((v, u) for v in range(11) for u in range(11) if 0 < u + v <= 10), key=lambda vu: (vu[0] + vu[1], vu))[:64]
)
"""Vertical and horizontal frequency of each bit, low ones first; the mean (0, 0) is left out."""

_ROWS, _COLUMNS = (np.array(index) for index in zip(*FREQUENCIES, strict=True))

_COSINES = np.array(
    [
        [
            round(_SCALE * math.cos(math.pi * (2 * place + 1) * frequency / (2 * HASH_SIDE)))
            for place in range(HASH_SIDE)
        ]
        for frequency in range(11)
    ],
    np.int64,
)
"""Integers, so that the hash is the same on every machine."""


def perceptual_hash(luma: NDArray[np.uint8]) -> int:
    """Return the hash of an image: bit i tells whether coefficient i of its cosine transform is above the median of 64.

    Args:
        luma: Shape (H, W), any size.

    Returns:
        64 bits, that of `FREQUENCIES` [0] highest; 0 for an image of one color.

    Source:
        Zauner 2010 (pHash), with 64 frequencies in place of 63 and a bit that is always set.
    """
    import cv2

    small = luma
    if luma.shape != (HASH_SIDE, HASH_SIDE):
        small = np.asarray(cv2.resize(luma, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA), np.uint8)
    coefficients = (_COSINES @ small.astype(np.int64) @ _COSINES.T)[_ROWS, _COLUMNS]
    middle = np.sort(coefficients)[31:33].sum()
    return int.from_bytes(np.packbits(2 * coefficients > middle).tobytes(), "big")


def differing_bits(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the number of bits in which hashes differ, elementwise."""
    return np.asarray(np.bitwise_count(first ^ second), np.uint8)
