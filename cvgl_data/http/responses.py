"""Answers of servers: what a status means, and whether to ask again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from cvgl_data.redaction import redact
from cvgl_data.types import Outcome

_STATUS_OUTCOMES = {
    401: Outcome.AUTH,
    402: Outcome.QUOTA,
    403: Outcome.AUTH,
    407: Outcome.AUTH,
    408: Outcome.TIMEOUT,
    425: Outcome.RATE_LIMITED,
    429: Outcome.RATE_LIMITED,
}
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class Response:
    """A complete answer, with a status below 400 unless another was accepted."""

    __slots__ = ("_url", "body", "headers", "status")

    def __init__(self, url: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._url = url
        self.status = status
        self.headers = headers
        """Names compare without regard to case."""
        self.body = body

    @property
    def url(self) -> str:
        """As asked for, secrets blanked out."""
        return redact(self._url)

    @property
    def validators(self) -> dict[str, Any]:
        """What `Fetched` and `Panorama` keep of an image's response: ``etag``, ``last_modified``, ``robots``."""
        etag = self.headers.get("ETag", "")
        return {
            "etag": etag if etag.isprintable() else "",  # it could not be sent back
            "last_modified": _printable(self.headers.get("Last-Modified", "")),
            "robots": _printable(self.headers.get("X-Robots-Tag", "")),
        }


class Failure(Exception):  # noqa: N818 - never leaves `Http`
    """One attempt that failed."""

    def __init__(
        self, message: str, outcome: Outcome, *, retry: bool, pause_s: float = 0.0, refuses: bool = False
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry = retry
        self.pause_s = pause_s
        self.refuses = refuses


def failure_of(status: int, headers: Mapping[str, str]) -> Failure:
    """Return what an answer with a status of 400 or more means."""
    default = Outcome.SERVER_ERROR if status >= 500 else Outcome.NOT_FOUND
    pause_s = retry_after_s(headers.get("Retry-After", "")) if status in (429, 503) else 0.0
    return Failure(
        f"HTTP {status}",
        _STATUS_OUTCOMES.get(status, default),
        retry=status in _RETRIED_STATUSES,
        pause_s=pause_s,
        refuses=status in (429, 503),
    )


def _printable(value: str) -> str:
    """Return a header without control characters and bytes that are not UTF-8, which no table can hold."""
    return value if value.isprintable() else "".join(filter(str.isprintable, value))


def retry_after_s(value: str) -> float:
    """Return what a Retry-After header asks for, a number or an HTTP date; 0 for a past date or nonsense."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
