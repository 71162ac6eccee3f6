"""What was fetched against what was published, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cvgl_data.types import Outcome
from cvgl_data.workspace.store import Store

CHANGED = "changed"
"""Outcome: the source has other bytes now."""

RERENDERED = "rerendered"
"""Outcome: the source's image is the same, but turned north it differs: another pose, or other versions of the
libraries that resample and encode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An image that is not what was published."""

    id: str
    kind: str
    """``reference`` or ``query``."""
    expected: str
    """Published sha256."""
    found: str
    """sha256 of what was fetched; "" if nothing was."""
    outcome: str
    """``changed``, ``rerendered``, or the `Outcome` for which it could not be had."""
    error: str = ""

    @property
    def is_transient(self) -> bool:
        """Whether the next pull asks for it again."""
        return not self.found and Outcome(self.outcome).is_transient


def compare(published: pa.Table, store: Store, kind: str) -> list[Row]:
    """Return the rows whose image is not the published one, in the order of the published table.

    Args:
        published: ``<kind>_id``, ``sha256``, and of queries ``raw_sha256``.
        store: What was fetched; what it lacks was not reached.
        kind: ``reference`` or ``query``.
    """
    key = f"{kind}_id"
    ids = published[key].to_pylist()
    fetched = store.table([name for name in ids if name in store])
    names = [name for name in (key, "sha256", "raw_sha256", "status", "error") if name in fetched.column_names]
    found = {row[key]: row for row in fetched.select(names).to_pylist()}
    raw = published["raw_sha256"].to_pylist() if "raw_sha256" in published.column_names else [None] * len(ids)
    rows = []
    for name, expected, raw_expected in zip(ids, published["sha256"].to_pylist(), raw, strict=True):
        row = found.get(name)
        if row is None or row["status"] != Outcome.OK.value:
            outcome, error = (row["status"], row["error"]) if row else (Outcome.CANCELLED.value, "not reached")
            rows.append(Row(id=name, kind=kind, expected=expected, found="", outcome=outcome, error=error or ""))
        elif row["sha256"] != expected:
            is_same_raw = raw_expected is not None and row.get("raw_sha256") == raw_expected
            rows.append(
                Row(
                    id=name,
                    kind=kind,
                    expected=expected,
                    found=row["sha256"],
                    outcome=RERENDERED if is_same_raw else CHANGED,
                    error=_TEXTS[RERENDERED if is_same_raw else CHANGED],
                )
            )
    return rows


_TEXTS = {
    CHANGED: "the source has another image now",
    RERENDERED: "the source has the same image, turned north it differs (another pose, or other library versions)",
}
