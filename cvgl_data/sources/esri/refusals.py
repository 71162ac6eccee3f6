"""What an Esri server sends instead of what was asked for: blank tiles, and errors inside HTTP 200."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cvgl_data.errors import FetchError, NoImagery, SourceStopped
from cvgl_data.http.responses import Response
from cvgl_data.redaction import beginning, redact
from cvgl_data.types import Outcome

PLACEHOLDER_BYTES = 2521
PLACEHOLDER_MD5 = "f27d9de7f80c13501f470595e327aa6d"
"""The "Map data not yet available" picture, the same everywhere and on every Esri basemap."""

TILE_STATUSES = frozenset({401, 403, 404, 498, 499})
"""Statuses of tile requests that `tile_trouble` judges."""

_MAX_TEXT = 200


class BlankTile(NoImagery):
    """A placeholder came; that is sometimes put right a moment later."""


def is_placeholder(body: bytes) -> bool:
    """Whether a body is the known placeholder."""
    return len(body) == PLACEHOLDER_BYTES and hashlib.md5(body, usedforsecurity=False).hexdigest() == PLACEHOLDER_MD5


def plain(text: Any, limit: int = _MAX_TEXT) -> str:
    """Return a string of an answer on one line, fit to be stored as UTF-8; empty for what is no string."""
    if not isinstance(text, str):
        return ""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ").split())[:limit]


def json_refusal(value: Any, *, where: str, source: str, item: str) -> FetchError | None:
    """Return the error that a JSON answer describes, or ``None`` if it is none.

    Args:
        value: Decoded JSON, ``{"error": {"code": ..., "message": ...}}`` for an error.
        where: What was asked, for the message.
        source: Name of the source.
        item: The tile or block.
    """
    if not isinstance(value, dict) or not value.get("error"):
        return None
    error = value["error"] if isinstance(value["error"], dict) else {}
    code = _integer(error.get("code"))
    named = f"the server answers with error {code}" if code is not None else "the server answers with an error"
    text = redact(f"{named} ({plain(error.get('message')) or 'no message'}): {where}")
    if code in (401, 403, 498, 499):  # 498 invalid token, 499 token required
        return SourceStopped(text, source=source, item=item, outcome=Outcome.AUTH)
    if code in (404, 422):
        return NoImagery(text, source=source, item=item)
    return FetchError(text, source=source, item=item, outcome=_outcome(code))


def tile_trouble(response: Response, *, has_token: bool, source: str, item: str) -> FetchError | None:
    """Return what is wrong with the answer to a tile request, ``None`` if it may be an image.

    Whether an image is whole and of the right size is for `cvgl_data.images` to say.

    Args:
        response: With a status below 400 or one of `TILE_STATUSES`.
        has_token: Whether a key was sent; then a refusal is about the key, and not about this tile.
        source: Name of the source.
        item: The tile.
    """
    status, body = response.status, response.body
    if status in (204, 404):
        return NoImagery(f"HTTP {status}: {response.url}", source=source, item=item)
    if status in (401, 498, 499) or (status == 403 and has_token):
        text = f"HTTP {status}, the server refuses the key or wants one: {response.url}"
        return SourceStopped(text, source=source, item=item, outcome=Outcome.AUTH)
    if status >= 400:
        return FetchError(f"HTTP {status}: {response.url}", source=source, item=item, outcome=Outcome.AUTH)
    if response.headers.get("blank-tile", "").strip().lower() == "true" or is_placeholder(body):
        return BlankTile(f"a placeholder came: {response.url}", source=source, item=item)
    if body[:64].lstrip()[:1] == b"{":
        refusal = json_refusal(_loaded(body), where=response.url, source=source, item=item)
        if refusal is not None:
            return refusal
    kind = redact(response.headers.get("Content-Type", "")).partition(";")[0].strip().lower()
    # No type, or "some bytes", says nothing; the image's own header will.
    if kind not in ("", "application/octet-stream", "binary/octet-stream") and not kind.startswith("image/"):
        text = f"the answer is {plain(kind)}, not an image (it begins with {beginning(body, 24)}): {response.url}"
        return FetchError(redact(text), source=source, item=item, outcome=Outcome.WRONG_TYPE)
    return None


def _outcome(code: int | None) -> Outcome:
    if code == 429:
        return Outcome.RATE_LIMITED
    if code is not None and (500 <= code < 600 or code in (408, 425)):
        return Outcome.SERVER_ERROR
    return Outcome.WRONG_TYPE


def _integer(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**6 else None


def _loaded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
