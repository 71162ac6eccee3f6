"""What Google's two street view services share: key, URL signing, refusals, terms, the grid that discovery asks along.

Source:
    The public documentation of the Street View Static API and of the Map Tiles API.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import math
import re
from collections.abc import Coroutine, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import shapely
from pydantic import ConfigDict, Field

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.environment import Secret, needed_secret
from cvgl_data.errors import FetchError, NoPanorama, RecipeError, SourceStopped
from cvgl_data.geo import EARTH_RADIUS_M
from cvgl_data.http.answers import Model
from cvgl_data.http.responses import Response
from cvgl_data.images import image_size
from cvgl_data.redaction import redact
from cvgl_data.types import LonLat, Outcome, Terms

T = TypeVar("T")

ATTRIBUTION = "© Google"
LICENCE = "LicenseRef-Google-Maps-Platform-Terms"

TERMS = Terms(
    name="google",
    url="https://cloud.google.com/maps-platform/terms",
    summary=(
        "Google Maps Platform's terms (3.2.3) forbid to store, export or bulk-download Street View images beyond what "
        "its service-specific terms allow, and to derive content from them; accounts in the EEA have terms of their "
        "own. Whether your use is allowed is for you to find out. Images are never published with a dataset."
    ),
    redistributable=False,
    must_accept=True,
)

REFUSALS = frozenset({400, 401, 403, 404})
"""Statuses whose bodies say why; the rest is `Http`'s to retry or to report."""

_PANO_ID = r"^[!-~]{1,256}$"


class Answer(Model):
    """Base of all answers: values are not converted either."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


PanoId = Annotated[str, Field(pattern=_PANO_ID)]
Date = Annotated[str, Field(pattern=r"^([0-9]{4}(-[0-9]{2}){0,2})?$")]
"""``YYYY-MM`` in practice; empty means unknown."""


def key(who: str) -> Secret:
    """Return the API key.

    Raises:
        RecipeError: If ``CVGL_GOOGLE_KEY`` is not set.
    """
    return needed_secret("CVGL_GOOGLE_KEY", who, "make one in the Google Cloud console")


def signed(url: str, secret: str) -> str:
    """Return a URL with its signature appended.

    Args:
        url: As it will be sent: encoded, with the key.
        secret: The URL signing secret, URL-safe base64.

    Raises:
        RecipeError: If the secret is not base64.
    """
    try:
        raw = base64.b64decode(secret + "=" * (-len(secret) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise RecipeError("CVGL_GOOGLE_SIGNING_SECRET is not URL-safe base64") from None
    parts = urlsplit(url)
    digest = hmac.new(raw, f"{parts.path}?{parts.query}".encode(), hashlib.sha1).digest()
    return f"{url}&signature={base64.urlsafe_b64encode(digest).decode()}"


def check_id(pano_id: str, source: str) -> None:
    """Refuse what cannot be an id before anything is asked.

    Raises:
        NoPanorama: If the text is empty, overlong, or has blanks or characters beyond ASCII.
    """
    if not re.fullmatch(_PANO_ID[1:-1], pano_id):
        raise NoPanorama(f"{pano_id[:64]!r} is no Google panorama id", source=source, item=pano_id)


def refusal(response: Response, *, source: str, item: str, status: int | None = None) -> FetchError:
    """Return the error that one of `REFUSALS` stands for: the response's status, or the one given."""
    said = _said(response)
    status = response.status if status is None else status
    text = redact(f"HTTP {status}{f' ({said})' if said else ''}: {response.url}")
    if status in (401, 403):
        is_quota = re.search(r"(?i)quota|query.limit|rate.limit|resource.exhausted", said) is not None
        outcome = Outcome.QUOTA if is_quota else Outcome.AUTH
        return SourceStopped(text, source=source, item=item, outcome=outcome)
    if status == 404:
        return NoPanorama(text, source=source, item=item)
    if re.search(r"(?i)api.key|\bsession\b", said):  # what is wrong with either is told by a 400
        return SourceStopped(text, source=source, item=item, outcome=Outcome.AUTH)
    return FetchError(text, source=source, item=item, outcome=Outcome.NOT_FOUND)


def error_inside(response: Response, *, source: str, item: str) -> FetchError | None:
    """Return the error that an answer of status 200 carries in its body, ``None`` if there is none."""
    try:
        code = json.loads(response.body)["error"]["code"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    if type(code) is not int:
        return None
    if code in REFUSALS:
        return refusal(response, source=source, item=item, status=code)
    text = redact(f"error {code} in an answer of HTTP {response.status} ({_said(response)}): {response.url}")
    outcome = Outcome.RATE_LIMITED if code == 429 else Outcome.SERVER_ERROR
    return FetchError(text, source=source, item=item, outcome=outcome)


def _said(response: Response) -> str:
    """Return what a refusal says for itself, in at most 160 printable characters."""
    text = response.body[:4096].decode("utf-8", "replace")
    try:
        answer = json.loads(response.body)
        error = answer.get("error", answer)
        said = [error.get(name) for name in ("status", "message", "error_message")]
        text = ": ".join(part for part in said if isinstance(part, str))
    except (ValueError, RecursionError, AttributeError):
        if text.lstrip()[:1] in ("<", "{", "["):  # an error page says nothing in 160 characters
            text = ""
    # Masked before it is cut: half a key would not be recognized any more.
    return redact(" ".join("".join(c if c.isprintable() else " " for c in text).split()))[:160]


def size_of(response: Response, *, source: str, item: str) -> tuple[int, int]:
    """Return width and height of the image in a response; errors as for `image_size`, with source and item."""
    try:
        return image_size(response.body)
    except FetchError as error:
        error.source, error.item = source, item
        raise


def check_spacing(spacing_m: float) -> float:
    """Return the spacing of `locations` as an option gives it.

    Raises:
        RecipeError: If it is not between 1 and 1,000 m.
    """
    if not 1.0 <= spacing_m <= 1000.0:
        raise RecipeError(f"recipe key 'panoramas.options.spacing_m' must lie between 1 and 1000, not {spacing_m}")
    return float(spacing_m)


def radius_m(spacing_m: float) -> int:
    """Return the search radius at which neighboring `locations` leave no gap."""
    return math.ceil(spacing_m * math.sqrt(0.5))


def locations(area: AreaOfInterest, spacing_m: float) -> Iterator[LonLat]:
    """Yield the centers of the grid cells that touch an area, row by row from the south-west.

    Args:
        area: Also across the antimeridian.
        spacing_m: Side of a cell; within `radius_m` of some location lies every point of the area.
    """
    west, south, east, north = area.bounds
    east += 360.0 if west > east else 0.0
    lat_step = math.degrees(spacing_m / EARTH_RADIUS_M)
    for row in range(max(1, math.ceil((north - south) / lat_step))):
        lat = south + (row + 0.5) * lat_step
        # As many metres at the cell's equatorward edge, where a degree is longest.
        lon_step = lat_step / math.cos(math.radians(max(0.0, abs(lat) - lat_step / 2)))
        num = max(1, math.ceil((east - west) / lon_step))
        lon = (west + (np.arange(num) + 0.5) * lon_step + 180.0) % 360.0 - 180.0
        cells = shapely.box(lon - lon_step / 2, lat - lat_step / 2, lon + lon_step / 2, lat + lat_step / 2)
        for value in lon[shapely.intersects(area.geometry, cells)]:
            yield LonLat(float(value), lat)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of ``size``, the last one shorter."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results in order, or raise the first failure in order, which is the same whoever fails first.

    What comes after a failure is cancelled; what comes before it is waited for.
    """
    tasks = [asyncio.ensure_future(one) for one in work]

    def cancel_later(index: int, task: asyncio.Future[T]) -> None:
        if not task.cancelled() and task.exception() is not None:
            for later in tasks[index + 1 :]:
                later.cancel()

    for index, task in enumerate(tasks):
        task.add_done_callback(partial(cancel_later, index))
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
