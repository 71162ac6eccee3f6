"""Ids in each provider's form, which hide a position in units of 1e-7 degrees and give it back."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid

_SCALE = 10**7
_LON_BITS, _LAT_BITS = 32, 31
_BITS = _LON_BITS + _LAT_BITS
_GOOGLE = re.compile(r"[A-Za-z0-9_-]{22}", re.ASCII)
_NUMBER = re.compile(r"[1-9]\d{0,19}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

Position = tuple[float, float]
"""Lon and lat in degrees, multiples of 1e-7."""


def panoramax_id(lon: float, lat: float) -> str:
    """Return the UUID (version 4 in form) of a position."""
    body, check = _sealed(lon, lat, "panoramax", 122 - _BITS)
    value = body << (122 - _BITS) | check
    head, middle, tail = value >> 74, value >> 62 & 0xFFF, value & (2**62 - 1)
    return str(uuid.UUID(int=head << 80 | 4 << 76 | middle << 64 | 2 << 62 | tail))


def panoramax_position(picture_id: str) -> Position | None:
    """Return the position behind a UUID, ``None`` if it hides none."""
    if not _UUID.fullmatch(picture_id):
        return None
    value = uuid.UUID(picture_id).int
    if value >> 76 & 0xF != 4 or value >> 62 & 3 != 2:
        return None
    free = (value >> 80) << 74 | (value >> 64 & 0xFFF) << 62 | value & (2**62 - 1)
    return _opened(free >> (122 - _BITS), free & (2 ** (122 - _BITS) - 1), "panoramax", 122 - _BITS)


def google_id(lon: float, lat: float) -> str:
    """Return the panorama id, 22 characters of URL-safe base64, of a position."""
    body, check = _sealed(lon, lat, "google", 128 - _BITS)
    value = body << (128 - _BITS) | check
    return base64.urlsafe_b64encode(value.to_bytes(16, "big")).rstrip(b"=").decode()


def google_position(pano_id: str) -> Position | None:
    """Return the position behind a panorama id, ``None`` if it hides none."""
    if not _GOOGLE.fullmatch(pano_id):
        return None
    value = int.from_bytes(base64.urlsafe_b64decode(pano_id + "=="), "big")
    position = _opened(value >> (128 - _BITS), value & (2 ** (128 - _BITS) - 1), "google", 128 - _BITS)
    # The last character has four spare bits: only one spelling is an id.
    return position if position is not None and google_id(*position) == pano_id else None


def mapillary_id(lon: float, lat: float) -> str:
    """Return the decimal number, below 2**63, of a position."""
    return str(_packed(lon, lat))


def mapillary_position(image_id: str) -> Position | None:
    """Return the position behind a number, ``None`` if it hides none."""
    return _unpacked(int(image_id)) if _NUMBER.fullmatch(image_id) else None


def _packed(lon: float, lat: float) -> int:
    return (round(lon * _SCALE) + 180 * _SCALE) << _LAT_BITS | (round(lat * _SCALE) + 90 * _SCALE)


def _unpacked(value: int) -> Position | None:
    x, y = value >> _LAT_BITS, value & (2**_LAT_BITS - 1)
    if x > 360 * _SCALE or y > 180 * _SCALE:
        return None
    return (x - 180 * _SCALE) / _SCALE, (y - 90 * _SCALE) / _SCALE


def _sealed(lon: float, lat: float, realm: str, check_bits: int) -> tuple[int, int]:
    """Return the position masked by its own checksum, so that neighbors look unrelated, and the checksum."""
    value = _packed(lon, lat)
    check = _digest(f"{realm}/check/{value}", check_bits)
    return value ^ _digest(f"{realm}/mask/{check}", _BITS), check


def _opened(body: int, check: int, realm: str, check_bits: int) -> Position | None:
    value = body ^ _digest(f"{realm}/mask/{check}", _BITS)
    return _unpacked(value) if _digest(f"{realm}/check/{value}", check_bits) == check else None


def _digest(text: str, bits: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big") >> (128 - bits)
