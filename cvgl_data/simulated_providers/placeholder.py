"""The picture that Esri's services send where they have none, in size and headers, though not in its very bytes."""

from __future__ import annotations

import hashlib

import numpy as np
import simplejpeg

PLACEHOLDER_BYTES = 2521
"""Size of Esri's."""

PLACEHOLDER_HEADERS = {"blank-tile": "true", "ETag": '"vvvvvvvvvvvvf"', "Cache-Control": "max-age=86400"}


def _make() -> bytes:
    """Return a light gray tile with a faint frame, padded by a comment segment right after the start marker."""
    pixels = np.full((256, 256, 3), 204, np.uint8)
    pixels[[0, -1], :] = pixels[:, [0, -1]] = 192
    image = bytes(simplejpeg.encode_jpeg(pixels, quality=60, colorspace="RGB", colorsubsampling="420"))
    padding = PLACEHOLDER_BYTES - len(image) - 4
    comment = b"\xff\xfe" + (padding + 2).to_bytes(2, "big") + b" " * padding
    return image[:2] + comment + image[2:]


PLACEHOLDER = _make()
"""A valid JPEG of 256 x 256 pixels and `PLACEHOLDER_BYTES` bytes."""
PLACEHOLDER_MD5 = hashlib.md5(PLACEHOLDER, usedforsecurity=False).hexdigest()
PLACEHOLDER_SHA256 = hashlib.sha256(PLACEHOLDER).hexdigest()
