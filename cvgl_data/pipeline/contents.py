"""What a workspace holds for its recipe: of all that was ever fetched into it, what is selected, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from cvgl_data.fetch.rows import query_store, reference_store
from cvgl_data.schema import FAILURES, QUALITY
from cvgl_data.types import Outcome
from cvgl_data.workspace import Workspace
from cvgl_data.workspace.store import Store

CREDIT = ("name", "attribution", "licence")
"""What is kept of a source for the dataset card."""

_FAILED = tuple(outcome for outcome in Outcome if outcome != Outcome.OK)


class Contents:
    """The references and queries of a workspace.

    ``kind`` is ``references`` or ``queries`` throughout. The stores may hold items of an earlier, larger selection;
    what the recipe asks for now is a table of its own.

    Args:
        workspace: Open workspace.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def select(self, kind: str, ids: list[str], credit: Mapping[str, str]) -> None:
        """Keep which items the recipe asks for now, and whom to credit."""
        selected = pa.table({"id": sorted(ids)}).replace_schema_metadata({name: credit[name] for name in CREDIT})
        self._workspace.write_table(f"selected_{kind}", selected)

    def credit(self, kind: str) -> dict[str, str]:
        """Return name, attribution and licence of the source."""
        metadata = self._workspace.read_table(f"selected_{kind}").schema.metadata
        return {key.decode(): value.decode() for key, value in metadata.items()}

    def store(self, kind: str) -> Store:
        """Open the rows that were fetched."""
        return reference_store(self._workspace) if kind == "references" else query_store(self._workspace)

    def fetched(self, kind: str, store: Store) -> list[str]:
        """Return the selected items that could be had, sorted."""
        return self._keys(kind, store, Outcome.OK)

    def kept(self, kind: str, store: Store) -> list[str]:
        """Return the selected items that could be had and that no check of the quality step has taken out, sorted."""
        dropped = set(self._dropped(kind)["id"].to_pylist())
        return [key for key in self.fetched(kind, store) if key not in dropped]

    def table(self, kind: str) -> pa.Table:
        """Return the kept items without pixels."""
        with self.store(kind) as store:
            return store.table(self.kept(kind, store))

    def failures(self, kind: str, store: Store) -> pa.Table:
        """Return the selected items that could not be had or that the quality step has taken out."""
        failed = store.table(self._keys(kind, store, *_FAILED))
        dropped = self._dropped(kind)
        rows = store.table(sorted(dropped["id"].to_pylist()))
        reasons = dict(zip(dropped["id"].to_pylist(), dropped["reason"].to_pylist(), strict=True))
        return pa.concat_tables(
            [
                _failures(failed, kind, failed["status"], failed["error"]),
                _failures(
                    rows,
                    kind,
                    pa.array(["quality"] * rows.num_rows, pa.string()),
                    pa.array([reasons[key] for key in rows[0].to_pylist()], pa.string()),
                ),
            ]
        )

    def quality(self) -> pa.Table | None:
        """Return what the quality step found of both kinds, references first; ``None`` before that step."""
        names = [f"quality_{kind}" for kind in ("references", "queries")]
        if not all(map(self._workspace.has_table, names)):
            return None
        return pa.concat_tables([self._workspace.read_table(name) for name in names])

    def _keys(self, kind: str, store: Store, *outcomes: Outcome) -> list[str]:
        selected = set(self._workspace.read_table(f"selected_{kind}")["id"].to_pylist())
        return [key for key in store.keys(*outcomes) if key in selected]

    def _dropped(self, kind: str) -> pa.Table:
        if not self._workspace.has_table(f"quality_{kind}"):
            return QUALITY.empty_table()
        table = self._workspace.read_table(f"quality_{kind}")
        return table.filter(pc.invert(table["keep"]))


def _failures(rows: pa.Table, kind: str, status: pa.Array, error: pa.Array) -> pa.Table:
    columns = {
        "id": rows[0],
        "kind": pa.array([{"references": "reference", "queries": "query"}[kind]] * rows.num_rows, pa.string()),
        "area": rows["area"],
        "source": rows["source"],
        "status": status,
        "error": error,
    }
    return pa.table([columns[name] for name in FAILURES.names], schema=FAILURES)
