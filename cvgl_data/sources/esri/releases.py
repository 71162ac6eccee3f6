"""The index of Wayback releases: dated states of World Imagery, each with a number that says nothing about its age."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from cvgl_data.errors import FetchError, RecipeError
from cvgl_data.http.answers import check
from cvgl_data.types import Outcome

_TITLE = re.compile(r"\(Wayback (\d{4}-\d{2}-\d{2})\)", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """One release; the order is that of dates."""

    date: str
    """ISO 8601 day of publication."""
    number: int
    """As in tile URLs."""
    metadata_url: str = ""
    """MapServer with the capture footprints; empty when the index does not name one."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    title: str = Field(alias="itemTitle")
    tile_url: str = Field(alias="itemURL")


def parse_index(value: Any, *, source: str, item: str = "releases") -> list[Release]:
    """Return the releases of an index, oldest first; entries that make no sense are left out.

    Args:
        value: Decoded JSON, a map of release number to entry.
        source: Name of the source, for errors.
        item: What was asked for, for errors.

    Raises:
        FetchError: ``decode_error`` if not one release is left.
    """
    entries = check(dict[str, Any], value, source=source, item=item)
    found = (_release(number, entry, source, item) for number, entry in entries.items())
    releases = sorted(release for release in found if release is not None)
    if not releases:
        text = f"the index of releases has {len(entries)} entries, none of which is a release"
        raise FetchError(text, source=source, item=item, outcome=Outcome.DECODE_ERROR)
    return releases


def choose_release(releases: Sequence[Release], wanted: str = "") -> Release:
    """Return the newest release, or the newest at or before a date.

    Args:
        releases: Oldest first, not empty.
        wanted: ISO 8601 day; empty for the newest of all.

    Raises:
        RecipeError: If all of them are newer.
    """
    until = [release for release in releases if not wanted or release.date <= wanted]
    if not until:
        raise RecipeError(
            f"recipe key 'imagery.options.release' is {wanted}, before the oldest Wayback release; "
            f"they go from {releases[0].date} to {releases[-1].date}"
        )
    return until[-1]


def checked_date(text: object) -> str:
    """Return the recipe's ``release`` as an ISO 8601 day, empty if none was given.

    Raises:
        RecipeError: If it is no date.
    """
    wanted = str(text).strip()
    if wanted and _day(wanted) is None:
        raise RecipeError(f"recipe key 'imagery.options.release' must be a date like 2024-06-27, not '{wanted}'")
    return wanted


def _day(text: str) -> datetime.date | None:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        return None  # fromisoformat also takes forms that do not sort as text
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def _release(number: str, value: Any, source: str, item: str) -> Release | None:
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        return None
    try:
        entry = check(_Entry, value, source=source, item=item)
    except FetchError:
        return None
    title = _TITLE.search(entry.title)
    # The number in the tile address is the one that counts; an entry that names another is damaged.
    if title is None or _day(title[1]) is None or f"/{number}/" not in entry.tile_url:
        return None
    return Release(title[1], int(number), _address(value.get("metadataLayerUrl")))


def _address(value: Any) -> str:
    """Return a web address without a slash at its end, empty if it is none."""
    if not isinstance(value, str) or not value.isascii():
        return ""
    try:
        parts = urlsplit(value)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return ""
    return value.rstrip("/") if is_address else ""
