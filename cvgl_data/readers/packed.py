"""Reader of our own shards, as `cvgl_data.shards.pack` writes them."""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import tokenize
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cvgl_data import schema
from cvgl_data.dataset import LINKED_FILE, CrossViewDataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, SchemaError

MANIFEST = "manifest.json"
INDEX_SUFFIX = ".index.npy"

_WITH_FURTHER = ("references_meta", "queries_meta")

_RESIZED = re.compile(r"(references|queries)_\d+(?:x\d+)?")
"""Tables of images at another size."""


def index_path(shard: Path) -> Path:
    """Return where the (offset, length) index of an image shard lies: beside it.

    The underscore keeps the index out of the table when a whole folder is read as Parquet.
    """
    return shard.with_name(f"_{shard.name}{INDEX_SUFFIX}")


def read(folder: str | Path, *, verify: bool = False, resized: bool = False) -> CrossViewDataset:
    """Open a packed dataset; images stay on disk.

    Args:
        folder: Where ``manifest.json`` lies.
        verify: Compare the hash of every file, not only its size.
        resized: Take images at the size for training, where one was packed; hashes in the tables remain those of the
            originals.

    Raises:
        DatasetNotFoundError: If the folder holds no dataset.
        DatasetError: If the dataset is incomplete or a file is missing, cut or changed, or no image was resized.
        SchemaError: If it has another schema version.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.get("images") is False:
        raise DatasetError(f"'{folder}' holds no images; `cvgl-data pull {folder} --out DIR` fetches them")
    check_files(folder, manifest, verify=verify)
    expected = schema.without_image(schema.REFERENCES)
    references = _read_table(folder, manifest, "references_meta", schema.GALLERY, expected)
    queries, pairs, offset = [], [], 0
    for split in schema.SPLITS:
        part = _read_table(folder, manifest, "queries_meta", split, schema.without_image(schema.QUERIES))
        queries.append(part.append_column("split", pa.array([split] * part.num_rows, pa.string())))
        of_split = _read_table(folder, manifest, "pairs", split, schema.PAIRS)
        rows = of_split["query_row"].to_numpy() + np.int32(offset)
        index = of_split.schema.get_field_index("query_row")
        pairs.append(of_split.set_column(index, of_split.schema.field(index), pa.array(rows, pa.int32())))
        offset += part.num_rows
    all_queries = pa.concat_tables(queries, promote_options="default")  # an empty split has no further columns
    tables = resized_tables(manifest) if resized else {}
    if resized and not tables:
        raise DatasetError(
            f"'{folder}' holds no resized images; set pack.panorama_size or pack.reference_size, pack again"
        )
    shards = [
        (folder / name, manifest["files"][name]["rows"])
        for table, split in [("references", schema.GALLERY), *(("queries", split) for split in schema.SPLITS)]
        for name in _files(manifest, tables.get(table, table), split)
    ]
    ids = pa.chunked_array([*references["reference_id"].chunks, *all_queries["query_id"].chunks], type=pa.string())
    return CrossViewDataset(
        references=references,
        queries=all_queries,
        pairs=pa.concat_tables(pairs),
        distance_map=_read_table(folder, manifest, "distance_map", schema.GALLERY, schema.DISTANCE_MAP),
        images=PackedImages(shards, ids),
    )


def resized_tables(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the table of resized images by the table of their originals, as ``{"queries": "queries_768x384"}``."""
    folders = sorted({name.split("/")[1] for name in manifest["files"] if name.startswith("data/")})
    found = (_RESIZED.fullmatch(folder) for folder in folders)
    return {match[1]: match[0] for match in found if match}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished dataset; raises like `read`."""
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / LINKED_FILE).is_file():
            raise DatasetError(f"'{folder}' is linked: its images lie elsewhere; import it without --link for shards")
        if (folder / "data").is_dir() or (folder / ".cvgl").is_dir():
            raise DatasetError(
                f"'{folder}' is not finished, it has no {MANIFEST}; run the same build again to complete it"
            )
        raise DatasetNotFoundError(f"'{folder}' holds no dataset; `cvgl-data build --out {folder}` makes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        complete = all(
            {"bytes", "sha256", *(["rows"] if name.endswith(".parquet") else [])} <= entry.keys()
            for name, entry in manifest["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        complete, version = False, ""
    if not complete:
        raise DatasetError(f"'{path}' is damaged; pack the dataset again or fetch it again")
    if version != schema.VERSION:
        raise SchemaError(
            f"'{folder}' has schema version {version}, this cvgl reads version {schema.VERSION}; "
            "build it again or install the cvgl that wrote it"
        )
    return dict(manifest)


def check_files(folder: Path, manifest: Mapping[str, Any], *, verify: bool = False) -> None:
    """Raise `DatasetError` unless every file of the manifest is there with its size (and hash)."""
    for name, entry in manifest["files"].items():
        problem = file_problem(folder / name, entry, verify=verify)
        if problem:
            raise DatasetError(f"'{folder / name}' {problem}; pack the dataset again or fetch it again")


def file_problem(path: Path, entry: Mapping[str, Any], *, verify: bool = True) -> str:
    """Return what is wrong with a file of the manifest, without its hash unless verified; "" if nothing is."""
    if not path.is_file():
        return "" if path.name.endswith(INDEX_SUFFIX) else "is missing"  # an index only makes random access fast
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"has {size} bytes, the manifest says {entry['bytes']}"
    if verify:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            return "is not what was packed, its sha256 differs from the manifest's"
    return ""


class PackedImages(Mapping[str, bytes]):
    """Encoded images by id, cut out of memory-mapped shards.

    Opens each shard at the first use, in each process anew: copies of this object (pickled for a worker) carry no open
    file.

    Args:
        shards: Path and number of rows of each image shard.
        ids: Ids in the order of these rows.
    """

    def __init__(self, shards: Sequence[tuple[Path, int]], ids: pa.ChunkedArray) -> None:
        self._paths = [path for path, _ in shards]
        self._starts = np.cumsum([0, *(rows for _, rows in shards)]).tolist()
        self._ids = ids
        if self._starts[-1] != len(ids):
            raise DatasetError(f"the shards hold {self._starts[-1]} images for {len(ids)} ids; pack the dataset again")
        self._rows: dict[str, int] = {}
        self._shards: dict[int, _Shard] = {}

    def __getitem__(self, key: str) -> bytes:
        return bytes(self.view(key))

    def view(self, key: str) -> memoryview:
        """Return an image without copying it; valid as long as this object lives.

        Raises:
            KeyError: If there is no image of that id.
            DatasetError: If the shard cannot be read.
        """
        if not self._rows:
            self._rows = {name: row for row, name in enumerate(self._ids.to_pylist())}
        row = self._rows[key]
        number = bisect_right(self._starts, row) - 1
        if number not in self._shards:
            self._shards[number] = _open_shard(self._paths[number])
        return self._shards[number].view(row - self._starts[number])

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids.to_pylist())

    def __len__(self) -> int:
        return len(self._ids)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": {}, "_shards": {}}


class _Shard:
    """One memory-mapped shard with its index."""

    def __init__(self, path: Path, index: NDArray[np.int64]) -> None:
        with path.open("rb") as file:
            self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._index = index
        if len(index) and int(index.sum(axis=1).max()) > len(self._data):
            raise DatasetError(f"'{index_path(path)}' points outside its shard; pack the dataset again")

    def view(self, row: int) -> memoryview:
        offset, length = self._index[row].tolist()
        return self._data[offset : offset + length]


class _ShardWithoutIndex(_Shard):
    """One shard read by row group: right, but slow at random."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pq.ParquetFile(path.absolute())
        groups = range(self._file.metadata.num_row_groups)
        self._starts = np.cumsum([0, *(self._file.metadata.row_group(group).num_rows for group in groups)]).tolist()
        self._held: tuple[int, pa.ChunkedArray] = (-1, pa.chunked_array([], pa.binary()))

    def view(self, row: int) -> memoryview:
        group = bisect_right(self._starts, row) - 1
        if self._held[0] != group:
            try:
                column = self._file.read_row_group(group, columns=["image.bytes"])["image"]
            except (pa.ArrowException, OSError) as error:
                raise DatasetError(f"'{self._path}' cannot be read: {error}") from None
            self._held = (group, column)
        return memoryview(self._held[1][row - self._starts[group]]["bytes"].as_buffer())


def _open_shard(path: Path) -> _Shard:
    index = index_path(path)
    try:
        if not index.is_file():
            return _ShardWithoutIndex(path)
        return _Shard(path, np.load(index, allow_pickle=False))
    except (pa.ArrowException, OSError, ValueError, SyntaxError, tokenize.TokenError) as error:  # np.load parses text
        raise DatasetError(f"'{path}' cannot be read: {error}") from None


def _files(manifest: Mapping[str, Any], table: str, split: str) -> list[str]:
    prefix = f"data/{table}/{split}-"
    return sorted(name for name in manifest["files"] if name.startswith(prefix) and name.endswith(".parquet"))


def _read_table(folder: Path, manifest: Mapping[str, Any], table: str, split: str, expected: pa.Schema) -> pa.Table:
    """Return a table in the expected column order; one without files is empty."""
    parts = []
    for name in _files(manifest, table, split):
        try:
            part = pq.read_table((folder / name).absolute(), partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"'{folder / name}' cannot be read: {error}") from None
        schema.check(part.schema, expected, f"'{folder / name}'")
        metadata = {key: value for key, value in (part.schema.metadata or {}).items() if key != b"geo"}
        names = schema.with_further(expected, part.schema).names if table in _WITH_FURTHER else expected.names
        parts.append(part.select(names).replace_schema_metadata(metadata))
    return pa.concat_tables(parts) if parts else expected.empty_table()
