"""Check a packed dataset from scratch: every file, every image, every row that names another."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvgl_data import schema
from cvgl_data.errors import FetchError, SchemaError
from cvgl_data.images import decode as decode_image
from cvgl_data.images import image_size
from cvgl_data.readers.packed import file_problem, index_path, read_manifest
from cvgl_data.shards import image_index
from cvgl_data.types import Progress, Silent

_IDS = {"references": "reference_id", "queries": "query_id"}
_SCHEMAS = {
    "references": schema.REFERENCES,
    "queries": schema.QUERIES,
    "references_meta": schema.without_image(schema.REFERENCES),
    "queries_meta": schema.without_image(schema.QUERIES),
    "pairs": schema.PAIRS,
    "distance_map": schema.DISTANCE_MAP,
}


_NO_ROW = -2
"""Stands for a null among rows; -1 pads short lists."""


class _Image(NamedTuple):
    """What other tables say of a packed image."""

    id: str
    sha256: str | None


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
    packed: dict[str, dict[str, list[_Image]]] = {"references": {}, "queries": {}}
    progress.stage("images", None)
    for table, by_split in packed.items():
        for name in shards[table]:
            so_far = by_split.setdefault(_split(name), [])
            num_rows = manifest["files"][name]["rows"]
            problems += _tried(name, _check_images(folder, name, table, num_rows, decode, so_far, progress))
    for table in packed:
        for name in (name for name in shards[table] if name not in damaged):
            problems += _check_index(folder, name)
    problems += _check_splits(shards["queries"], packed["queries"])
    if damaged:  # rows cannot be told right from wrong against files that are damaged themselves
        return problems
    for table, by_split in packed.items():
        described = {_split(name) for name in shards[f"{table}_meta"]}
        missing = (split for split, images in by_split.items() if images and split not in described)
        problems += [Problem(f"data/{table}_meta", "", f"does not describe the split '{split}'") for split in missing]
    gallery = packed["references"].get(schema.GALLERY, [])
    checks: dict[str, Callable[[str, pa.Table], Iterator[Problem]]] = {
        "references_meta": lambda name, found: _check_meta(name, found, gallery),
        "queries_meta": lambda name, found: _check_meta(name, found, packed["queries"].get(_split(name), [])),
        "pairs": lambda name, found: _check_pairs(name, found, packed["queries"].get(_split(name), []), gallery),
        "distance_map": lambda name, found: _check_distance_map(name, found, gallery),
    }
    for table, check in checks.items():
        for name in shards[table]:
            problems += _tried(name, _check_table(folder, name, table, check))
    return problems


def _tried(name: str, checks: Iterator[Problem]) -> Iterator[Problem]:
    """Yield what is found; a file that cannot be read to its end is a problem, too."""
    try:
        yield from checks
    except Exception as error:  # there is no list of what libraries raise for damaged bytes
        said = error if isinstance(error, SchemaError) else f"{type(error).__name__}: {error}"
        yield Problem(name, "", f"cannot be read ({' '.join(str(said).split())[:300]})")


def _shards(manifest: dict[str, Any], table: str) -> list[str]:
    return sorted(n for n in manifest["files"] if n.startswith(f"data/{table}/") and n.endswith(".parquet"))


def _split(name: str) -> str:
    return name.rsplit("/", 1)[1].split("-")[0]


def _check_images(
    folder: Path,
    name: str,
    table: str,
    num_rows: int,
    decode: bool,
    so_far: list[_Image],
    progress: Progress,
) -> Iterator[Problem]:
    """Check the rows of one shard of images; appends their ids and hashes to those of the shards before it."""
    with pq.ParquetFile((folder / name).absolute()) as file:
        schema.check(file.schema_arrow, _SCHEMAS[table], name)
        if file.metadata.num_rows != num_rows:
            yield Problem(name, "", f"has {file.metadata.num_rows} rows, the manifest says {num_rows}")
        columns = [_IDS[table], "image", "sha256", "lon", "lat"]
        for batch in file.iter_batches(batch_size=64, columns=columns):
            for row in batch.to_pylist():
                item = row[_IDS[table]] or ""
                for what in _image_problems(row, table, decode):
                    yield Problem(name, item, what)
                if so_far and item <= so_far[-1].id:
                    yield Problem(name, item, f"comes after '{so_far[-1].id}'")
                so_far.append(_Image(item, row["sha256"]))
            progress.advance(batch.num_rows)


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
    lon, lat = row["lon"], row["lat"]
    if lon is None or lat is None or not (abs(lon) <= 180.0 and abs(lat) <= 90.0):  # NaN is not within, either
        yield f"the position {lon}, {lat} is nowhere"


def _check_table(
    folder: Path, name: str, table: str, check: Callable[[str, pa.Table], Iterator[Problem]]
) -> Iterator[Problem]:
    found = pq.read_table((folder / name).absolute(), partitioning=None)
    schema.check(found.schema, _SCHEMAS[table], name)
    yield from check(name, found)


def _check_index(folder: Path, name: str) -> Iterator[Problem]:
    """Check the index beside a shard, by which images are read at random; it may be missing."""
    path = index_path(folder / name)
    if not path.is_file():
        return
    try:
        is_right = np.array_equal(np.load(path, allow_pickle=False), image_index.build(folder / name))
    except Exception:  # as in `_tried`
        is_right = False
    if not is_right:
        yield Problem(path.relative_to(folder).as_posix(), "", "does not lead to the images of its shard")


def _check_splits(shards: list[str], by_split: dict[str, list[_Image]]) -> Iterator[Problem]:
    """Check that no query is in two splits: what a model is tested on would be what it was trained on."""
    first: dict[str, str] = {}
    for split, images in by_split.items():
        name = next(name for name in shards if _split(name) == split)
        for image in images:
            if first.setdefault(image.id, split) != split:
                yield Problem(name, image.id, f"is in the split '{first[image.id]}' as well")


def _check_meta(name: str, found: pa.Table, images: list[_Image]) -> Iterator[Problem]:
    """Check a table without pixels against the images that it describes."""
    key = "reference_id" if "reference_id" in found.column_names else "query_id"
    if found[key].to_pylist() != [image.id for image in images]:
        yield Problem(name, "", "does not list the packed images in this order")
        return
    for image, sha256 in zip(images, found["sha256"].to_pylist(), strict=True):
        if sha256 != image.sha256:
            yield Problem(name, image.id, "has another sha256 than the packed image's row")


def _check_pairs(name: str, pairs: pa.Table, queries: list[_Image], references: list[_Image]) -> Iterator[Problem]:
    for kind, images in (("query", queries), ("reference", references)):
        named = pairs[f"{kind}_id"].to_pylist()
        for row, item in zip(pairs[f"{kind}_row"].to_pylist(), named, strict=True):
            if row is None or not 0 <= row < len(images) or images[row].id != item:
                yield Problem(name, item or "", f"{kind}_row {row} is not this {kind}'s row")
    positives = Counter(pairs.filter(pc.equal(pairs["relation"], "positive"))["query_id"].to_pylist())
    for item in dict.fromkeys(pairs["query_id"].to_pylist()):
        if positives[item] != 1:
            yield Problem(name, item or "", f"has {positives[item]} positives")


def _check_distance_map(name: str, found: pa.Table, references: list[_Image]) -> Iterator[Problem]:
    if found["id"].to_pylist() != [image.id for image in references]:
        yield Problem(name, "", "does not belong to these references in this order")
        return
    lists = found["neighbor_rows"]
    if not pc.list_value_length(lists).equals(pc.list_value_length(found["distances_m"])):
        yield Problem(name, "", "has not one distance for each neighbor")
    rows = np.array(pc.list_flatten(lists).fill_null(_NO_ROW))
    owner = np.array(pc.list_parent_indices(lists))
    for bad in np.flatnonzero((rows < -1) | (rows >= len(references)) | (rows == owner)).tolist():
        yield Problem(name, references[owner[bad]].id, f"neighbor row {rows[bad]} is none of the other references'")
