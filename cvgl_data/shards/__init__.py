"""Writing a built dataset: Parquet shards that the Hub shows, `datasets` loads and training memory-maps.

The image column is uncompressed and PLAIN, so each image lies contiguous in its file; all else is zstd. Bytes depend on
nothing but the rows: not on how they are batched, not on time.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cvgl_data import schema
from cvgl_data.arrow_files import writing_to
from cvgl_data.errors import DatasetError, SchemaError
from cvgl_data.neighbors import IDS_KEY, ids_sha256
from cvgl_data.readers.packed import MANIFEST
from cvgl_data.recipe import DatasetRecipe, to_toml
from cvgl_data.shards import card, geoparquet
from cvgl_data.shards.exports import export_arrow, export_webdataset
from cvgl_data.shards.files import TMP, ShardFiles, entry, remove_strangers
from cvgl_data.shards.image_files import ImageWriter
from cvgl_data.shards.resizing import ResizedWriter, sizes
from cvgl_data.shards.tally import tally

__all__ = ["Credit", "export_arrow", "export_webdataset", "pack"]

REFERENCES_PER_GROUP = 1000
QUERIES_PER_GROUP = 64
RESIZED_QUERIES_PER_GROUP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Where images of a dataset come from; one row of the card's attribution table."""

    kind: str
    """``imagery`` or ``panoramas``."""
    name: str
    attribution: str
    licence: str


def pack(
    out: Path,
    recipe: DatasetRecipe,
    *,
    references: Iterable[pa.RecordBatch],
    queries: Iterable[pa.RecordBatch],
    pairs: pa.Table,
    distance_map: pa.Table,
    splits: pa.Table,
    failures: pa.Table,
    quality: pa.Table | None = None,
    credits: Sequence[Credit] = (),
    terms_accepted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a dataset folder and return its manifest.

    Everything is written beside its place first; an earlier dataset in the folder stays whole until all shards are
    there. The manifest is taken away before the first file is replaced and written last, so its existence means
    complete. Where the recipe asks for other sizes, images are packed at these as well, see
    `cvgl_data.shards.resizing`.

    Args:
        out: Dataset folder; the folders of its tables below ``data`` hold nothing else afterwards.
        recipe: The resolved recipe; saved beside the data.
        references: Batches of schema ``REFERENCES`` sorted by id, perhaps with columns of `schema.FURTHER`; others are
            ignored. ``image`` is the Hub struct or plain binary. Only one row group is held in memory.
        queries: Batches of schema ``QUERIES`` likewise.
        pairs: Schema ``PAIRS``; rows are found anew by id. Pairs of queries that are in no split are left out.
        distance_map: Schema ``DISTANCE_MAP`` of these references in this order.
        splits: ``query_id``, ``split``, ``reason`` of every query, as `cvgl_data.splits.split` gives them.
        failures: Schema ``FAILURES``; the queries in no split are added.
        quality: Schema ``QUALITY``, of references and queries, those that were left out as well; extra columns stay.
        credits: Sources, for the card and the manifest.
        terms_accepted: Terms of use that the user accepted, and when, for the manifest.

    Raises:
        SchemaError: If ids are not sorted and unique, or the tables do not belong together.
        DatasetError: If a row has no image, or one that is to be resized cannot be decoded.
    """
    with writing_to(out):
        data = out / "data"
        files = ShardFiles(data)
        files.discard()
        try:
            counts, releases = _write_tables(files, recipe, references, queries, pairs, distance_map, splits, failures)
            if quality is not None:
                _write_quality(files, quality)
        except BaseException:
            files.discard()
            raise
        (out / MANIFEST).unlink(missing_ok=True)
        entries = files.put_in_place()
        remove_strangers(data, {out / name for name in entries})

        text = card.render(
            recipe.name,
            entries,
            counts,
            [asdict(credit) for credit in credits],
            counted=tally(out, entries),
        )
        _write_atomically(out / "README.md", text)  # not in the manifest: its author may add to it
        _write_atomically(out / "recipe.toml", to_toml(recipe))
        entries["recipe.toml"] = entry(out / "recipe.toml")
        manifest = {
            "schema_version": schema.VERSION,
            "name": recipe.name,
            "counts": counts,
            "sources": [asdict(credit) for credit in credits],
            "releases": releases,
            "terms_accepted": dict(terms_accepted or {}),
            "files": dict(sorted(entries.items())),
        }
        _write_atomically(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        return manifest


def _write_tables(
    files: ShardFiles,
    recipe: DatasetRecipe,
    references: Iterable[pa.RecordBatch],
    queries: Iterable[pa.RecordBatch],
    pairs: pa.Table,
    distance_map: pa.Table,
    splits: pa.Table,
    failures: pa.Table,
) -> tuple[dict[str, Any], list[str]]:
    """Write the shards beside their place; returns counts, and the releases of the references."""
    shard_bytes = int(recipe.pack.shard_mb * 1_000_000)
    resized = sizes(recipe.pack)

    def writer(table: str, split: str, columns: pa.Schema, per_group: int, resized_per_group: int) -> ResizedWriter:
        originals = ImageWriter(files, table, split, columns, per_group, shard_bytes)
        if table not in resized:
            return ResizedWriter(originals)
        size = resized[table]
        smaller = ImageWriter(files, size.name, split, size.columns, resized_per_group, shard_bytes)
        return ResizedWriter(originals, smaller, size)

    references, reference_columns = _with_further(references, schema.REFERENCES)
    queries, query_columns = _with_further(queries, schema.QUERIES)
    gallery = writer("references", schema.GALLERY, reference_columns, REFERENCES_PER_GROUP, REFERENCES_PER_GROUP)
    for table in _sorted(references, reference_columns):
        gallery.write(table)
    reference_meta = gallery.close()
    reference_ids = reference_meta["reference_id"]
    _check_distance_map(distance_map, reference_ids)

    writers = {
        split: writer("queries", split, query_columns, QUERIES_PER_GROUP, RESIZED_QUERIES_PER_GROUP)
        for split in schema.SPLITS
    }
    failures = pa.concat_tables([failures, *_deal_out(_sorted(queries, query_columns), splits, writers)])
    query_metas = {split: writer.close() for split, writer in writers.items()}

    counts: dict[str, Any] = {"references": len(reference_ids), "queries": {}, "pairs": {}}
    files.add_table("references_meta", schema.GALLERY, geoparquet.with_windows(reference_meta))
    files.add_table("distance_map", schema.GALLERY, distance_map)
    for split, meta in query_metas.items():
        if _first_common(meta["query_id"], reference_ids) is not None:
            raise SchemaError(f"'{_first_common(meta['query_id'], reference_ids)}' names both a query and a reference")
        if meta.num_rows:
            of_split = _pairs_of(pairs, meta["query_id"], reference_ids)
            files.add_table("queries_meta", split, geoparquet.with_points(meta))
            files.add_table("pairs", split, of_split)
            counts["queries"][split] = meta.num_rows
            counts["pairs"][split] = of_split.num_rows
    failures = failures.select(schema.FAILURES.names).cast(schema.FAILURES)
    failures = failures.sort_by([("kind", "ascending"), ("id", "ascending"), ("status", "ascending")])
    files.add_table("failures", "items", failures)
    counts["failures"] = dict(sorted(Counter(failures["status"].to_pylist()).items()))
    return counts, sorted(filter(None, pc.unique(reference_meta["release"]).to_pylist()))


def _write_quality(files: ShardFiles, quality: pa.Table) -> None:
    """Write the quality table, one split for each kind of image."""
    schema.check(quality.schema, schema.QUALITY, "the quality table")
    for kind, split in (("reference", "references"), ("query", "queries")):
        of_kind = quality.filter(pc.equal(quality["kind"], kind)).sort_by("id")
        metadata = {**(quality.schema.metadata or {}), **schema.QUALITY.metadata}
        files.add_table("quality", split, of_kind.replace_schema_metadata(metadata))


def _check_distance_map(distance_map: pa.Table, reference_ids: pa.ChunkedArray) -> None:
    """Raise unless a distance map is of these references, and its rows are theirs."""
    is_of_these = distance_map["id"].combine_chunks().equals(reference_ids.combine_chunks())
    hash_of_table = (distance_map.schema.metadata or {}).get(IDS_KEY)
    if not is_of_these or (hash_of_table and hash_of_table.decode() != ids_sha256(reference_ids)):
        raise SchemaError("the distance map is not of these references in this order; compute it again")


def _with_further(batches: Iterable[pa.RecordBatch], columns: pa.Schema) -> tuple[Iterable[pa.RecordBatch], pa.Schema]:
    """Return the batches, and the columns to be packed: those of `schema.FURTHER` too that the first batch has."""
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        return (), columns
    return chain([first], rest), schema.with_further(columns, first.schema)


def _sorted(batches: Iterable[pa.RecordBatch], columns: pa.Schema) -> Iterable[pa.Table]:
    """Yield the batches in the schema's columns; raises unless ids are strictly increasing and images are there."""
    id_name = columns.names[0]
    last = None
    for batch in batches:
        table = _conform(batch, columns)
        ids = table[id_name].to_pylist()
        for name in ids:
            if name is None or (last is not None and name <= last):
                raise SchemaError(f"{id_name} '{name}' comes after '{last}'; rows must be sorted by id, each id once")
            last = name
        image = pc.struct_field(table["image"], "bytes")
        if image.null_count:
            raise DatasetError(f"{id_name} '{ids[pc.index(pc.is_null(image), True).as_py()]}' has no image")
        yield table


def _conform(batch: pa.RecordBatch, columns: pa.Schema) -> pa.Table:
    arrays = []
    for field in columns:
        index = batch.schema.get_field_index(field.name)
        if index < 0:
            raise SchemaError(f"rows to pack have no column '{field.name}' (found: {', '.join(batch.schema.names)})")
        array = batch.column(index)
        if field.name == "image" and not pa.types.is_struct(array.type):
            paths = pa.nulls(len(array), pa.string())
            array = pa.StructArray.from_arrays([array.cast(pa.binary()), paths], fields=list(schema.IMAGE))
        arrays.append(array.cast(field.type))
    return pa.table(arrays, schema=columns)


def _deal_out(queries: Iterable[pa.Table], splits: pa.Table, writers: Mapping[str, ResizedWriter]) -> list[pa.Table]:
    """Write each query to the shards of its split; returns those in none as failures."""
    left_out = []
    for table in queries:
        rows = pc.index_in(table["query_id"], value_set=splits["query_id"])
        if rows.null_count:
            missing = table["query_id"][pc.index(pc.is_null(rows), True).as_py()]
            raise SchemaError(f"query '{missing}' has no row in the split table; split the queries again")
        split, reason = splits["split"].take(rows), splits["reason"].take(rows)
        for name, writer in writers.items():
            writer.write(table.filter(pc.equal(split, name)))
        mask = pc.equal(split, "")
        gone = table.filter(mask)
        left_out.append(
            pa.table(
                [
                    gone["query_id"],
                    pa.array(["query"] * gone.num_rows, pa.string()),
                    gone["area"],
                    gone["source"],
                    reason.filter(mask),
                    pa.array([""] * gone.num_rows, pa.string()),
                ],
                schema=schema.FAILURES,
            )
        )
    return left_out


def _pairs_of(pairs: pa.Table, query_ids: pa.ChunkedArray, reference_ids: pa.ChunkedArray) -> pa.Table:
    """Return the pairs of these queries, with rows in these lists of ids."""
    query_row = pc.index_in(pairs["query_id"], value_set=query_ids)
    mine = pc.is_valid(query_row)
    pairs, query_row = pairs.filter(mine), query_row.filter(mine)
    reference_row = pc.index_in(pairs["reference_id"], value_set=reference_ids)
    if reference_row.null_count:
        missing = pairs["reference_id"][pc.index(pc.is_null(reference_row), True).as_py()]
        raise SchemaError(f"pairs name reference '{missing}', which is not packed; pair the queries again")
    rows = {"query_row": query_row, "reference_row": reference_row}
    return pa.table([rows.get(name, pairs[name]) for name in schema.PAIRS.names], schema=schema.PAIRS)


def _first_common(ids: pa.ChunkedArray, others: pa.ChunkedArray) -> str | None:
    at = pc.index(pc.is_in(ids, value_set=others), True).as_py()
    return None if at < 0 else str(ids[at].as_py())


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(path.name + TMP)
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)
