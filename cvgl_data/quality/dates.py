"""Times of capture, as sources write them: a year, a month, a day, or a moment."""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime

_DATE = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2})(?!\d))?)?(?!\d)", re.ASCII)


def year_of(captured: str | None) -> float | None:
    """Return a time of capture in years: ``"2021-07"`` is the middle of that month; ``None`` if it is not a date."""
    match = _DATE.match(captured or "")
    if match is None:
        return None
    year, month, day = (int(part) if part else None for part in match.groups())
    if not year or not (month is None or 1 <= month <= 12):
        return None
    days = 366 if calendar.isleap(year) else 365
    if month is None:
        return year + 0.5
    before = sum(calendar.monthrange(year, earlier)[1] for earlier in range(1, month))
    length = calendar.monthrange(year, month)[1]
    if day is None:
        return year + (before + length / 2) / days
    return year + (before + day - 0.5) / days if 1 <= day <= length else None


def seconds_of(captured: str | None) -> float | None:
    """Return a time of capture in seconds since 1970, UTC if no zone is given; ``None`` without a time of day."""
    if not captured or len(captured) <= len("2021-07-28"):
        return None
    try:
        moment = datetime.fromisoformat(captured)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
