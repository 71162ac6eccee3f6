"""How hard each host may be asked: rate, connections, pauses, and the quotas of its provider."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """Requests that a provider allows to one group of its endpoints, over all runs of this user."""

    name: str
    per_minute: int | None = None
    per_day: int | None = None
