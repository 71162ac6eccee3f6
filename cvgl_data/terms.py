"""Terms of use that someone has to agree to, and the record that they did."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cvgl_data.arrow_files import replace_file
from cvgl_data.errors import RecipeError, TermsError
from cvgl_data.registry import did_you_mean
from cvgl_data.types import Terms

Accepted = dict[str, dict[str, str]]
"""Name of the terms to when they were accepted and what they said."""


def check(terms: Iterable[Terms], accepted: Sequence[str], earlier: Accepted) -> Accepted:
    """Return the record of what has been accepted, now and earlier.

    Args:
        terms: Of the sources that are about to be used.
        accepted: Names that were accepted just now.
        earlier: The record so far.

    Raises:
        TermsError: If terms that must be accepted were not.
        RecipeError: If a name belongs to none of the terms.
    """
    by_name = {item.name: item for item in terms}
    for name in accepted:
        if name not in by_name and name not in earlier:
            hint = did_you_mean(name, by_name) if by_name else "; its sources have no terms to accept"
            raise RecipeError(f"no source of this recipe has terms '{name}'{hint}")
    record = dict(earlier)
    for item in by_name.values():
        if item.name in record:
            continue
        if item.name in accepted:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            record[item.name] = {"accepted": today, "url": item.url, "summary": item.summary}
        elif item.must_accept:
            raise TermsError(
                f"the terms of '{item.name}' must be accepted first: {item.summary} ({item.url}). "
                f"If you agree to them, run again with --accept-terms {item.name}"
            )
    return record


def read(state: Path) -> Accepted:
    """Return the record in a workspace's state folder; what is damaged or missing was not accepted."""
    try:
        found: Any = json.loads((state / "terms.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict) and entry.get("accepted")}


def write(state: Path, record: Accepted) -> None:
    """Save the record."""
    if record and record != read(state):
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        replace_file(state / "terms.json", lambda part: _write(part, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
