"""One request and its answer, free of any web framework, and the routes between them."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import format_datetime
from typing import Any, NamedTuple, Protocol

JSON = "application/json; charset=utf-8"
JPEG = "image/jpeg"
HTML = "text/html; charset=utf-8"
MVT = "application/vnd.mapbox-vector-tile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request to one provider."""

    provider: str
    method: str
    path: str
    """Decoded, below the provider's prefix, with a slash at its beginning."""
    raw_path: str
    """Path and query as sent, prefix included; what signatures are made of."""
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """Names compare without case."""
    body: bytes
    origin: str
    """Scheme, host and port that the client used."""

    def data(self) -> Mapping[str, Any]:
        """Return the JSON object of the body, empty if it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a provider says."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """Ends the work on a request with an answer that says why."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Route(NamedTuple):
    """Paths of one form, and who answers them."""

    pattern: re.Pattern[str]
    kind: str
    handler: Callable[[Ask, re.Match[str]], Awaitable[Answer]]
    methods: tuple[str, ...] = ("GET", "HEAD")


class Provider(Protocol):
    """One or more prefixes of the server."""

    def routes(self, provider: str) -> Sequence[Route]:
        """Return the routes below a prefix; the first that matches answers."""
        ...

    def error_in_200(self, ask: Ask) -> Answer:
        """Return what the provider would say if it put an error into a success."""
        ...

    def not_found(self, ask: Ask) -> Answer:
        """Return what it says to paths that it does not know."""
        ...


def json_answer(value: Any, status: int = 200, content_type: str = JSON, **headers: str) -> Answer:
    """Return a value as JSON."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Answer(status=status, body=body, content_type=content_type, headers=headers)


def html_answer(title: str, status: int = 200) -> Answer:
    """Return a small HTML page."""
    page = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>\n"
    return Answer(status=status, body=page.encode(), content_type=HTML)


def image_answer(image: bytes, day: datetime.date, content_type: str = JPEG, **headers: str) -> Answer:
    """Return an image with validators: its digest as ETag, the day it shows as Last-Modified."""
    midnight = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
    validators = {
        "ETag": f'"{hashlib.sha256(image).hexdigest()[:20]}"',
        "Last-Modified": format_datetime(midnight, usegmt=True),
        "Cache-Control": "max-age=86400",
    }
    return Answer(body=image, content_type=content_type, headers={**validators, **headers})


def is_unchanged(ask: Ask, answer: Answer) -> bool:
    """Whether a conditional request already has this answer."""
    tag = answer.headers.get("ETag")
    if answer.status != 200 or not tag:
        return False
    known = ask.headers.get("If-None-Match")
    if known is not None:
        return known.strip() == "*" or tag in (part.strip().removeprefix("W/") for part in known.split(","))
    return ask.headers.get("If-Modified-Since", "") == answer.headers.get("Last-Modified")
