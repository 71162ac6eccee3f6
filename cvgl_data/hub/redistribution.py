"""May these images be published? Decided row by row, from what the rows say."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pyarrow as pa

from cvgl_data.arrow_files import replace_file
from cvgl_data.errors import RedistributionError
from cvgl_data.shards.licences import Standing, standing

RESTRICTED = "no_redistribute"
"""Reason: the source's terms forbid to publish its images, whatever licence the row names."""

_TEXTS = {
    RESTRICTED: "the source's terms forbid it",
    Standing.NO_DERIVATIVES.value: "the licence forbids changed copies",
    Standing.UNKNOWN.value: "the licence is not known to be open",
    Standing.NONE.value: "no licence is known",
}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """An image that may not be published."""

    id: str
    kind: str
    """``reference`` or ``query``."""
    source: str
    licence: str
    reason: str
    """``no_redistribute`` or a `cvgl_data.shards.licences.Standing`."""


def refusals(references: pa.Table, queries: Iterable[pa.Table]) -> list[Refusal]:
    """Return the rows whose images may not be published, references first, in the order of the tables.

    Args:
        references: Columns ``reference_id``, ``source``, ``licence``, ``no_redistribute``.
        queries: The same of queries, with ``query_id``.
    """
    found = []
    for kind, table in [("reference", references), *(("query", part) for part in queries)]:
        columns = [table[name].to_pylist() for name in (f"{kind}_id", "source", "licence", RESTRICTED)]
        by_licence: dict[str | None, Standing] = {}
        for item, source, licence, is_restricted in zip(*columns, strict=True):
            if licence not in by_licence:
                by_licence[licence] = standing(licence)
            reason = RESTRICTED if is_restricted else by_licence[licence].value
            if reason != Standing.OPEN.value:
                found.append(Refusal(item, kind, source or "", licence or "", reason))
    return found


def check(references: pa.Table, queries: Iterable[pa.Table]) -> None:
    """Raise `RedistributionError` unless every image may be published; arguments as for `refusals`."""
    found = refusals(references, queries)
    if found:
        raise RedistributionError(describe(found), found)


def describe(found: Sequence[Refusal]) -> str:
    """Return one line: how many images of which kind for which reasons, and the first few."""
    counts = Counter((row.reason, row.kind, row.source) for row in found)
    reasons = "; ".join(
        f"{count:,} {_plural(kind, count)} of '{source}': {_TEXTS[reason]} ({reason})"
        for (reason, kind, source), count in sorted(counts.items())
    )
    shown = ", ".join(f"{row.id}{f' ({row.licence})' if row.licence else ''}" for row in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    return (
        f"these images may not be published, nothing was uploaded: {reasons}. First: {shown}{more}. "
        "Push without images: whoever pulls the dataset fetches them from their source"
    )


def write(path: Path, rows: Sequence[Refusal]) -> None:
    """Write all rows as CSV."""

    def write_csv(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(field.name for field in fields(Refusal))
            lines.writerows(astuple(row) for row in rows)

    replace_file(path, write_csv)


def counts_by_reason(rows: Iterable[Refusal]) -> Mapping[str, int]:
    """Return how many rows have each reason, sorted by it."""
    return dict(sorted(Counter(row.reason for row in rows).items()))


def _plural(kind: str, count: int) -> str:
    return kind if count == 1 else {"reference": "references", "query": "queries"}[kind]
