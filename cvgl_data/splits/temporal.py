"""The same places at other dates: early queries train, late ones test."""

from __future__ import annotations

import datetime

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def days(captured: list[str | None]) -> tuple[Ints, Ints]:
    """Return the first and the last possible day of capture as ordinals, (N,) each; 0 where the date is unknown.

    Args:
        captured: ISO 8601: a year, a month, a day or a time, or nothing.
    """
    spans = [_span(text or "") for text in captured]
    return np.array([first for first, _ in spans], np.int64), np.array([last for _, last in spans], np.int64)


def _span(text: str) -> tuple[int, int]:
    parts = text[:10].split("-")
    try:
        year, month, day = (int(part) for part in (*parts, *("1",) * (3 - len(parts))))
        first = datetime.date(year, month, day).toordinal()
        if len(parts) == 1:
            return first, datetime.date(year, 12, 31).toordinal()
        if len(parts) == 2:
            following = datetime.date(year + month // 12, month % 12 + 1, 1)
            return first, following.toordinal() - 1
    except ValueError:
        return 0, 0
    return first, first


def nearest_gap_days(first: Ints, last: Ints, place: Ints, early: Bools, late: Bools) -> Ints:
    """Return how many days at least lie between each late query and the early ones of its place, (N,).

    -1 where a place has no early query or the query is not late.

    Args:
        first: First possible day of each query, (N,).
        last: Last possible day.
        place: Row of its positive.
        early: Which queries train.
        late: Which queries may test.
    """
    gap = np.full(len(place), -1, np.int64)
    latest = np.full(int(place.max(initial=-1)) + 1, -1, np.int64)
    np.maximum.at(latest, place[early], last[early])
    has_early = late & (place >= 0)
    has_early[has_early] = latest[place[has_early]] >= 0
    gap[has_early] = first[has_early] - latest[place[has_early]]
    return gap
