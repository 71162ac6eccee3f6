"""What a build will cost before it starts: requests, bytes, time at the polite rate, money, days of quota."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cvgl_data.types import Cost, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCost:
    """What one source will be asked for."""

    kind: str
    """``imagery`` or ``panoramas``."""
    source: str
    items: int | None
    """Tiles or panoramas; ``None``: not known before they are discovered."""
    is_bound: bool
    """Whether ``items`` is only an upper bound."""
    requests: dict[str, int] = field(default_factory=dict)
    """By host, discovery included; without the items while they are not known."""
    bytes: int = 0
    seconds: float = 0.0
    """At the given rate, which holds for each host by itself."""
    usd: float | None = 0.0
    """List price; ``None``: not known."""
    days: int | None = None
    """Over which the provider's daily quota spreads it; ``None``: there is no such quota."""
    accept_terms: str = ""
    """Name of the terms that must be accepted first."""
    note: str = ""


def estimate(
    kind: str,
    source: Any,
    items: int | None,
    *,
    is_bound: bool = False,
    discovery: Mapping[str, float] | None = None,
    rate_per_s: float = 10.0,
) -> SourceCost:
    """Return what a number of items of a source will take.

    Args:
        kind: ``imagery`` or ``panoramas``.
        source: An imagery or panorama source; without a ``cost`` method it is taken for free.
        items: How many, if that is known.
        is_bound: Whether there may be fewer.
        discovery: Host to requests that finding the items takes.
        rate_per_s: Requests per second and host; 0 means that the time is not limited by it.
    """
    cost: Cost = source.cost() if hasattr(source, "cost") else Cost()
    number = items or 0
    requests = {host: _whole(each * number) for host, each in cost.requests.items()}
    for host, count in (discovery or {}).items():
        requests[host] = requests.get(host, 0) + _whole(count)
    terms: Terms | None = getattr(source, "terms", None)
    return SourceCost(
        kind=kind,
        source=str(source.name),
        items=items,
        is_bound=is_bound,
        requests={host: count for host, count in requests.items() if count},
        bytes=round(cost.bytes * number),
        seconds=max(requests.values(), default=0) / rate_per_s if rate_per_s else 0.0,
        usd=None if cost.usd is None else round(cost.usd * number, 2),
        days=max(1, math.ceil(number / cost.per_day)) if cost.per_day else None,
        accept_terms=terms.name if terms is not None and terms.must_accept else "",
        note=cost.note,
    )


def _whole(number: float) -> int:
    """Return a number of requests rounded up, but not because of the last bits of a product: 100 times 0.07 is 7."""
    return math.ceil(round(number, 6))
