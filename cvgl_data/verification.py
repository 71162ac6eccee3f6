"""Check a packed dataset from scratch: every file, every image, every row that names another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvgl_data import schema
from cvgl_data.errors import FetchError, SchemaError
from cvgl_data.images import decode as decode_image
from cvgl_data.images import image_size
from cvgl_data.readers.packed import file_problem, read_manifest
from cvgl_data.types import Progress, Silent

_IDS = {"references": "reference_id", "queries": "query_id"}
_SCHEMAS = {
    "references": schema.REFERENCES,
    "queries": schema.QUERIES,
    "pairs": schema.PAIRS,
    "distance_map": schema.DISTANCE_MAP,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be."""

    where: str
    """File or table."""
    item: str
    """Id of the row, if it is one."""
    what: str


def verify(folder: Path, *, decode: bool = False, progress: Progress | None = None) -> list[Problem]:
    """Check every hash, size and reference of a packed dataset.

    Args:
        folder: Dataset folder.
        decode: Decode every image too, not only its outside.
        progress: Told about files and images.

    Returns:
        What is wrong, in a fixed order; nothing if the dataset is sound.

    Raises:
        DatasetNotFoundError: If there is no dataset.
        DatasetError: If its manifest is damaged.
        SchemaError: If it was written by another version.
    """
    progress = progress or Silent()
    manifest = read_manifest(folder)
    problems = []
    progress.stage("files", len(manifest["files"]))
    for name, entry in manifest["files"].items():
        what = file_problem(folder / name, entry)
        if what:
            problems.append(Problem(name, "", what))
        progress.advance()
    damaged = {problem.where for problem in problems}
    listed = {folder / name for name in manifest["files"]}
    strangers = (path for path in sorted((folder / "data").rglob("*.parquet")) if path not in listed)
    problems += [Problem(path.relative_to(folder).as_posix(), "", "is not in the manifest") for path in strangers]

    shards = {table: _shards(manifest, table) for table in _SCHEMAS}
    ids: dict[str, dict[str, list[str]]] = {"references": {}, "queries": {}}
    progress.stage("images", None)
    for table, by_split in ids.items():
        for name in shards[table]:
            try:
                by_split.setdefault(_split(name), []).extend(
                    _check_images(folder, name, table, decode, problems, progress)
                )
            except (OSError, pa.ArrowException, SchemaError) as error:
                problems.append(Problem(name, "", f"cannot be read ({error})"))
    if damaged:  # rows cannot be told right from wrong against files that are damaged themselves
        return problems
    gallery = ids["references"].get(schema.GALLERY, [])
    for table, check in (("pairs", _check_pairs), ("distance_map", _check_distance_map)):
        for name in shards[table]:
            try:
                found = pq.read_table(folder / name)
                schema.check(found.schema, _SCHEMAS[table], name)
                problems += check(name, found, ids["queries"].get(_split(name), []), gallery)
            except (OSError, pa.ArrowException, SchemaError) as error:
                problems.append(Problem(name, "", f"cannot be read ({error})"))
    return problems


def _shards(manifest: dict[str, Any], table: str) -> list[str]:
    return sorted(n for n in manifest["files"] if n.startswith(f"data/{table}/") and n.endswith(".parquet"))


def _split(name: str) -> str:
    return name.rsplit("/", 1)[1].split("-")[0]


def _check_images(
    folder: Path, name: str, table: str, decode: bool, problems: list[Problem], progress: Progress
) -> list[str]:
    """Check the rows of one shard of images; returns their ids."""
    key = _IDS[table]
    ids: list[str] = []
    with pq.ParquetFile(folder / name) as file:
        schema.check(file.schema_arrow, _SCHEMAS[table], name)
        columns = [key, "image", "sha256", "lon", "lat"]
        for batch in file.iter_batches(batch_size=64, columns=columns):
            for row in batch.to_pylist():
                problems += [Problem(name, row[key], what) for what in _image_problems(row, table, decode)]
                if ids and row[key] <= ids[-1]:
                    problems.append(Problem(name, row[key], f"comes after '{ids[-1]}'"))
                ids.append(row[key])
            progress.advance(batch.num_rows)
    return ids


def _image_problems(row: dict[str, Any], table: str, decode: bool) -> Iterator[str]:
    image = (row["image"] or {}).get("bytes") or b""
    if hashlib.sha256(image).hexdigest() != row["sha256"]:
        yield "the image is not that of its sha256"
    try:
        width, height = image_size(image)
        if table == "references" and width != height:
            yield f"the image is {width}x{height}, a reference is square"
        if decode:
            decode_image(image)
    except FetchError as error:
        yield f"{error.outcome}: {error}"
    if not (abs(row["lon"] or 0.0) <= 180.0 and abs(row["lat"] or 0.0) <= 90.0) or None in (row["lon"], row["lat"]):
        yield f"the position {row['lon']}, {row['lat']} is nowhere"


def _check_pairs(name: str, pairs: pa.Table, queries: list[str], references: list[str]) -> Iterator[Problem]:
    for kind, ids in (("query", queries), ("reference", references)):
        rows = pairs[f"{kind}_row"].to_numpy()
        named = pairs[f"{kind}_id"].to_pylist()
        for row, item in zip(rows.tolist(), named, strict=True):
            if not 0 <= row < len(ids) or ids[row] != item:
                yield Problem(name, item, f"{kind}_row {row} is not this {kind}'s row")
    positives = pairs.filter(pc.equal(pairs["relation"], "positive"))["query_id"].value_counts()
    for count in positives.to_pylist():
        if count["counts"] != 1:
            yield Problem(name, count["values"], f"has {count['counts']} positives")


def _check_distance_map(name: str, found: pa.Table, queries: list[str], references: list[str]) -> Iterator[Problem]:
    if found["id"].to_pylist() != references:
        yield Problem(name, "", "does not belong to these references in this order")
        return
    lists = found["neighbor_rows"].combine_chunks()
    rows = lists.values.to_numpy()
    owner = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    for bad in np.flatnonzero((rows < -1) | (rows >= len(references)) | (rows == owner)).tolist():
        yield Problem(name, references[owner[bad]], f"neighbor row {rows[bad]} is none of the other references'")
