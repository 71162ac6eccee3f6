"""From a published layout to our own: tables checked, distance map computed, images packed or linked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvgl_data import schema, shards
from cvgl_data.arrow_files import replace_file, writing_to
from cvgl_data.dataset import LINKED_FILE, CrossViewDataset, open_dataset
from cvgl_data.errors import DatasetError, RecipeError
from cvgl_data.layouts.checks import LabelCheck, check
from cvgl_data.locations import Location, parse
from cvgl_data.neighbors import distance_map
from cvgl_data.readers.layout import FolderImages
from cvgl_data.readers.linked import FILES, TABLES, table_path
from cvgl_data.readers.packed import MANIFEST
from cvgl_data.recipe import DatasetRecipe, DistanceMapRecipe, ImageryRecipe, PanoramaRecipe, SplitRecipe
from cvgl_data.schema import SPLITS
from cvgl_data.types import Progress, Silent

_ROWS_AT_ONCE = 64
_NOT_LAYOUTS = ("hub", "packed", "linked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import ended with."""

    folder: Path
    references: int
    queries: dict[str, int]
    """By split."""
    pairs: int
    checks: list[LabelCheck]


def import_layout(
    location: str | Path,
    out: Path,
    *,
    link: bool = False,
    verify: bool = False,
    neighbors: int = 128,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Convert a dataset in a published layout to ours.

    Args:
        location: As `open_dataset` takes it, with the reader: ``vigor:/data/VIGOR?labels=corrected``.
        out: New folder.
        link: Write tables only and leave images where they are; `open_dataset` opens the folder all the same.
        verify: Look at every image before anything is written.
        neighbors: Length of the lists of the distance map.
        overwrite: Replace what an earlier import left in the folder.
        progress: Told about stages and images.

    Raises:
        DatasetError: If something is wrong with the files, or the folder is in use.
        RecipeError: If the location names no layout.
        CvglError: As `open_dataset`.
    """
    where, told = parse(location), progress or Silent()
    if where.reader in _NOT_LAYOUTS:
        raise RecipeError(f"'{location}' names no published layout; write it like vigor:FOLDER")
    if (out / ".cvgl").exists():
        raise DatasetError(f"'{out}' holds a build, which an import does not replace; name another folder")
    if out.resolve() == Path(where.place).resolve():
        raise DatasetError(f"'{out}' is the dataset to import; name another folder")
    if any((out / name).exists() for name in (MANIFEST, LINKED_FILE)) and not overwrite:
        raise DatasetError(f"'{out}' holds a dataset already; name another folder, or overwrite it")
    if link and (out / MANIFEST).exists():
        raise DatasetError(f"'{out}' holds shards; name another folder for a linked import")
    told.stage("read", None)
    dataset = open_dataset(location, verify=verify)
    told.stage("check", None)
    checks = check(where, dataset)
    told.stage("distance map", None)
    dataset = sorted_by_id(dataset)
    dataset = _with_text(dataset, distance_map(dataset.references, neighbors))
    if link:
        _link(dataset, out, where, told)
    else:
        _pack(dataset, out, where, neighbors, told)
    counts = {name: pc.sum(pc.equal(dataset.queries["split"], name)).as_py() or 0 for name in SPLITS}
    return Imported(
        folder=out,
        references=dataset.references.num_rows,
        queries={name: count for name, count in counts.items() if count},
        pairs=dataset.pairs.num_rows,
        checks=checks,
    )


def sorted_by_id(dataset: CrossViewDataset) -> CrossViewDataset:
    """Return the same dataset with both tables in the order of ids, as packed ones are; its distance map is empty."""
    references, reference_row = _sorted(dataset.references, "reference_id")
    queries, query_row = _sorted(dataset.queries, "query_id")
    pairs = dataset.pairs
    for name, new_row in (("query_row", query_row), ("reference_row", reference_row)):
        index = pairs.schema.get_field_index(name)
        rows = pa.array(new_row[pairs[name].to_numpy()].astype(np.int32))
        pairs = pairs.set_column(index, pairs.schema.field(index), rows)
    order = np.argsort(pairs["query_row"].to_numpy(), kind="stable")
    return CrossViewDataset(
        references=references,
        queries=queries,
        pairs=pairs.take(pa.array(order)).combine_chunks(),
        distance_map=schema.DISTANCE_MAP.empty_table(),
        images=dataset.images,
    )


def _sorted(table: pa.Table, name: str) -> tuple[pa.Table, np.ndarray[Any, np.dtype[np.int64]]]:
    """Return a table in the order of ids, and where each row went."""
    order = pc.sort_indices(table[name]).to_numpy().astype(np.int64)
    new_row = np.empty(len(order), np.int64)
    new_row[order] = np.arange(len(order))
    return table.take(pa.array(order)).combine_chunks(), new_row


def _with_text(dataset: CrossViewDataset, neighbors: pa.Table) -> CrossViewDataset:
    """Return the dataset with its distance map, and unknown text empty, as built datasets have it."""
    return CrossViewDataset(
        references=_text_filled(dataset.references),
        queries=_text_filled(dataset.queries),
        pairs=dataset.pairs,
        distance_map=neighbors,
        images=dataset.images,
    )


def _text_filled(table: pa.Table) -> pa.Table:
    columns = [
        pc.fill_null(table[field.name], "") if field.type == pa.string() else table[field.name]
        for field in table.schema
    ]
    return pa.table(columns, schema=table.schema)


def _pack(dataset: CrossViewDataset, out: Path, where: Location, neighbors: int, progress: Progress) -> None:
    """Write shards; image bytes are those of the files."""
    missing = [name for name in ("x", "y", "zoom") if dataset.references[name].null_count]
    if missing:
        raise DatasetError(
            f"shards need the window of every reference, but '{where.reader}' does not know '{missing[0]}' of "
            f"{dataset.references[missing[0]].null_count:,}; give the reader's options for it, or import with --link"
        )
    progress.stage("pack", dataset.references.num_rows + dataset.queries.num_rows)
    split = dataset.queries["split"]
    shards.pack(
        out,
        _recipe(where, neighbors),
        references=_with_images(dataset.references, schema.REFERENCES, dataset, progress),
        queries=_with_images(dataset.queries, schema.QUERIES, dataset, progress),
        pairs=dataset.pairs.replace_schema_metadata(schema.PAIRS.metadata),
        distance_map=dataset.distance_map,
        splits=pa.table({"query_id": dataset.queries["query_id"], "split": split, "reason": [""] * len(split)}),
        failures=schema.FAILURES.empty_table(),
        credits=[
            shards.Credit(kind=kind, name=where.reader, attribution="the dataset's publisher", licence="")
            for kind in ("imagery", "panoramas")
        ],
    )
    # What an earlier linked import left would be opened instead.
    for path in (out / LINKED_FILE, *(table_path(out, name) for name in (*TABLES, "files"))):
        path.unlink(missing_ok=True)


def _recipe(where: Location, neighbors: int) -> DatasetRecipe:
    """Return a recipe that says what was imported and how; it builds nothing."""
    return DatasetRecipe(
        name=Path(where.place).name or where.reader,
        imagery=ImageryRecipe(source=where.reader, options=dict(where.options)),
        panoramas=PanoramaRecipe(source=where.reader, align="keep", options=dict(where.options)),
        distance_map=DistanceMapRecipe(k=neighbors),
        split=SplitRecipe(protocol="none"),
    )


def _with_images(
    table: pa.Table, columns: pa.Schema, dataset: CrossViewDataset, progress: Progress
) -> Iterator[pa.RecordBatch]:
    """Yield the rows with their images and the hashes of these."""
    columns = schema.with_further(columns, table.schema)
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        images = [dataset.images[name] for name in batch.column(0).to_pylist()]
        hashes = [hashlib.sha256(image).hexdigest() for image in images]
        added: dict[str, Any] = {"image": images, "sha256": hashes}
        if "raw_sha256" in columns.names:
            added["raw_sha256"] = hashes
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(added[field.name], pa.binary() if field.name == "image" else field.type)
                if field.name in added
                else batch.column(field.name)
                for field in columns
            ],
            names=columns.names,
        )
        progress.advance(len(batch))


def _link(dataset: CrossViewDataset, out: Path, where: Location, progress: Progress) -> None:
    """Write tables, and where each image lies."""
    images = dataset.images
    if type(images) is not FolderImages:  # a kind of it may turn or cut what it reads
        raise DatasetError(
            f"images of '{where.reader}' are made from its files when they are read and cannot be linked; "
            "import without --link, or open the layout itself"
        )
    progress.stage("link", None)
    root = images.root.resolve()
    ids = [*dataset.references["reference_id"].to_pylist(), *dataset.queries["query_id"].to_pylist()]
    paths = [images.path(name) for name in ids]
    relative = [
        path.relative_to(images.root).as_posix() if path.is_relative_to(images.root) else path.as_posix()
        for path in paths
    ]
    with writing_to(out):
        table_path(out, "files").parent.mkdir(parents=True, exist_ok=True)
        (out / LINKED_FILE).unlink(missing_ok=True)
        tables = {name: getattr(dataset, name) for name in ("references", "queries", "pairs", "distance_map")}
        tables["files"] = pa.table([ids, relative], schema=FILES)
        for name, table in tables.items():
            _write_parquet(table_path(out, name), table)
        described = {
            "schema_version": schema.VERSION,
            "location": str(where),
            "root": str(root),
            "counts": {name: table.num_rows for name, table in tables.items()},
        }
        part = out / f"{LINKED_FILE}.tmp"
        part.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8", newline="\n")
        os.replace(part, out / LINKED_FILE)  # last: where it is, all is there


def _write_parquet(path: Path, table: pa.Table) -> None:
    replace_file(path, lambda part: pq.write_table(table, part.absolute(), compression="zstd"))
