"""Published rows and fetched images, put together into a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvgl_data import pairing, schema, shards, splits
from cvgl_data.errors import DatasetError
from cvgl_data.hub import tables
from cvgl_data.hub.comparison import Row
from cvgl_data.recipe import DatasetRecipe
from cvgl_data.workspace.store import Store

_LISTS_AT_ONCE = 8192

_TOLERANCE = 1e-6
"""Of decentrality computed again: positions survive exactly, the mathematics library may differ."""


def pack(
    out: Path,
    recipe: DatasetRecipe,
    published: Path,
    manifest: Mapping[str, Any],
    *,
    references: pa.Table,
    queries: Mapping[str, pa.Table],
    rows: Sequence[Row],
    stores: Mapping[str, Store],
    allow_changed: bool,
    terms_accepted: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Pack what could be had; returns the manifest, and notes on what does not agree.

    Args:
        out: Dataset folder.
        recipe: The published recipe, with the user's own paths.
        published: Folder of what was published.
        manifest: Its manifest.
        references: Published rows.
        queries: Published rows by split.
        rows: Images that differ.
        stores: What was fetched, by ``reference`` and ``query``.
        allow_changed: Whether changed images are packed, with their new rows.
        terms_accepted: For the manifest.
    """
    no_queries = schema.without_image(schema.QUERIES).empty_table()
    all_queries = pa.concat_tables([no_queries, *queries.values()]).sort_by("query_id")
    split_of = {name: split for split, part in queries.items() for name in part["query_id"].to_pylist()}
    kept_references = _kept(references, rows, stores["reference"], "reference", allow_changed)
    kept_queries = _kept(all_queries, rows, stores["query"], "query", allow_changed)
    pairs = tables.whole(published, manifest, "pairs", schema.PAIRS)
    distance_map = tables.whole(published, manifest, "distance_map", schema.DISTANCE_MAP)
    if not distance_map["id"].combine_chunks().equals(references["reference_id"].combine_chunks()):
        raise DatasetError(f"the distance map in '{published}' is not of its references")
    notes = []
    if not rows:
        notes += _check_pairs(pairs, pairing.pair(kept_queries, kept_references))
        lost: set[str] = set()
    else:
        covered = set(pairs["query_id"].to_pylist())
        pairs = pairing.pair(kept_queries, kept_references)
        lost = covered & set(kept_queries["query_id"].to_pylist()) - set(pairs["query_id"].to_pylist())
        lost = set() if recipe.split.protocol == "none" else lost
        distance_map = _without_gone(distance_map, kept_references["reference_id"])
    ids = kept_queries["query_id"].to_pylist()
    assigned = pa.table(
        {
            "query_id": pa.array(ids, pa.string()),
            "split": pa.array(["" if name in lost else split_of[name] for name in ids], pa.string()),
            "reason": pa.array([splits.NO_REFERENCE if name in lost else "" for name in ids], pa.string()),
        }
    )
    failures = tables.whole(published, manifest, "failures", schema.FAILURES)
    quality = tables.whole(published, manifest, "quality", schema.QUALITY, keep_extra=True)
    packed = shards.pack(
        out,
        recipe,
        references=_with_images(kept_references, stores["reference"], "reference_id"),
        queries=_with_images(kept_queries, stores["query"], "query_id"),
        pairs=pairs,
        distance_map=distance_map,
        splits=assigned,
        failures=pa.concat_tables([failures, _failures(rows, references, all_queries, allow_changed)]),
        quality=quality if quality.num_rows else None,
        credits=[shards.Credit(**source) for source in manifest["sources"]],
        terms_accepted=terms_accepted,
    )
    return packed, notes


def _kept(published: pa.Table, rows: Sequence[Row], store: Store, kind: str, allow_changed: bool) -> pa.Table:
    """Return the rows to pack: as published where the image is, and new ones where it has changed, if allowed."""
    key = f"{kind}_id"
    differing = [row for row in rows if row.kind == kind]
    if not differing:
        return published
    mask = pc.is_in(published[key], value_set=pa.array([row.id for row in differing], pa.string()))
    kept = published.filter(pc.invert(mask))
    changed = [row.id for row in differing if row.found] if allow_changed else []
    if not changed:
        return kept
    fresh = store.table(changed)
    areas = dict(zip(published[key].to_pylist(), published["area"].to_pylist(), strict=True))
    columns = {name: fresh[name] for name in published.column_names}
    columns["area"] = pa.array([areas[name] for name in changed], pa.string())
    added = pa.table([columns[name] for name in published.column_names], schema=published.schema)
    return pa.concat_tables([kept, added]).sort_by(key)


def _with_images(rows: pa.Table, store: Store, key: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows with their fetched images."""
    start = 0
    for batch in store.batches(rows[key].to_pylist()):
        part = rows.slice(start, batch.num_rows).append_column("image", pa.chunked_array([batch["image"]]))
        start += batch.num_rows
        yield from part.combine_chunks().to_batches()


def _failures(rows: Sequence[Row], references: pa.Table, queries: pa.Table, allow_changed: bool) -> pa.Table:
    """Return one row for each image that is not packed."""
    where: dict[tuple[str, str], tuple[str, str]] = {}
    for kind, table in (("reference", references), ("query", queries)):
        columns = [table[name].to_pylist() for name in (f"{kind}_id", "area", "source")]
        where.update({(kind, name): (area, source) for name, area, source in zip(*columns, strict=True)})
    found = []
    for row in rows:
        if row.found and allow_changed:
            continue
        area, source = where[row.kind, row.id]
        found.append((row.id, row.kind, area, source, row.outcome, row.error))
    columns = list(zip(*found, strict=True)) if found else [()] * len(schema.FAILURES)
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=schema.FAILURES)


def _without_gone(distance_map: pa.Table, ids: pa.ChunkedArray) -> pa.Table:
    """Return the lists of the references that are left, in terms of their rows, padded where neighbors are gone."""
    kept = pc.index_in(ids, value_set=distance_map["id"].combine_chunks()).to_numpy()
    new_row = np.full(distance_map.num_rows + 1, -1, np.int64)  # the last serves row -1
    new_row[kept] = np.arange(len(kept))
    # The ids are others now, so the hashes of them are not carried over.
    metadata = {
        key: value for key, value in (distance_map.schema.metadata or {}).items() if not key.endswith(b"ids_sha256")
    }
    columns = schema.DISTANCE_MAP.with_metadata(metadata)
    parts = []
    for batch in distance_map.take(pa.array(kept)).to_batches(max_chunksize=_LISTS_AT_ONCE):
        lists = batch["neighbor_rows"]
        lengths = np.unique(pc.list_value_length(lists).to_numpy())
        if len(lengths) > 1:
            raise DatasetError(f"the lists of the distance map have lengths {lengths.tolist()}, expected one")
        rows = new_row[lists.flatten().to_numpy()].reshape(len(batch), -1)
        meters = batch["distances_m"].flatten().to_numpy().reshape(rows.shape)
        order = np.argsort(rows < 0, axis=1, kind="stable")
        rows = np.take_along_axis(rows, order, 1).astype(np.int32)
        meters = np.where(rows < 0, np.float32("inf"), np.take_along_axis(meters, order, 1))
        offsets = pa.array(np.arange(len(batch) + 1, dtype=np.int32) * rows.shape[1])
        moved = [pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1))) for values in (rows, meters)]
        parts.append(pa.RecordBatch.from_arrays([batch["id"], *moved], schema=columns))
    return pa.Table.from_batches(parts, columns)


def _check_pairs(published: pa.Table, computed: pa.Table) -> list[str]:
    """Return a note if the published pairs do not follow from the positions."""
    keys = ("query_id", "reference_id", "relation")
    before, after = (
        {row[:2]: row[2:] for row in zip(*(table[name].to_pylist() for name in (*keys, "decentrality")), strict=True)}
        for table in (published, computed)
    )
    other = sum(
        key not in before
        or key not in after
        or before[key][0] != after[key][0]
        or abs(before[key][1] - after[key][1]) > _TOLERANCE
        for key in {*before, *after}
    )
    return [f"{other:,} of the published pairs are not those that the positions give"] if other else []
