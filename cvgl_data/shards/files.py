"""Parquet files under way: written beside their place, named when all are there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvgl_data import image_index, schema
from cvgl_data.readers.packed import index_path
from cvgl_data.workspace import TABLE_FOLDERS

ROWS_PER_GROUP = 10_000
"""Row groups of tables without pixels."""

TMP = ".tmp"


class ShardFiles:
    """The files of one packing, each under a temporary name until all are there."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._shards: dict[tuple[str, str], list[tuple[Path, int]]] = {}

    def new(self, table: str, split: str) -> Path:
        """Return the temporary path of the next shard; its final name needs their number."""
        folder = self._data / table
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{split}-{len(self._shards.get((table, split), [])):05d}.parquet{TMP}"

    def add(self, table: str, split: str, path: Path, num_rows: int) -> None:
        """Take over a finished shard."""
        self._shards.setdefault((table, split), []).append((path, num_rows))

    def add_table(self, table: str, split: str, content: pa.Table) -> None:
        """Write a table without pixels as one shard, unless it is empty: `datasets` loads no empty split."""
        if not content.num_rows:
            return
        path = self.new(table, split)
        # One chunk per column: where chunks end would show in the bytes.
        content = content.combine_chunks()
        with pq.ParquetWriter(path, content.schema, compression="zstd", write_page_index=True) as writer:
            writer.write_table(content, row_group_size=ROWS_PER_GROUP)
        self.add(table, split, path, content.num_rows)

    def put_in_place(self) -> dict[str, dict[str, Any]]:
        """Give every file its name; returns the manifest's entries."""
        entries = {}
        for (table, split), shards in self._shards.items():
            for number, (path, num_rows) in enumerate(shards):
                final = self._data / table / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
                index = _temporary_index(path)
                os.replace(path, final)
                entries[f"data/{table}/{final.name}"] = {**entry(final), "rows": num_rows}
                if index.is_file():
                    final_index = index_path(final)
                    os.replace(index, final_index)
                    entries[f"data/{table}/{final_index.name}"] = entry(final_index)
        return entries

    def discard(self) -> None:
        """Remove what was written here or left by an earlier packing, and is not in place."""
        for path in files_of_tables(self._data):
            if path.name.endswith(TMP):
                path.unlink()


class ImageWriter:
    """Writes rows with images to shards of bounded size, one row group at a time."""

    def __init__(
        self, files: ShardFiles, table: str, split: str, columns: pa.Schema, rows_per_group: int, shard_bytes: int
    ) -> None:
        self._files, self._table, self._split = files, table, split
        self._rows_per_group, self._shard_bytes = rows_per_group, shard_bytes
        self._schema = columns.with_metadata({**columns.metadata, b"huggingface": _hub_features(columns)})
        self._meta: list[pa.Table] = []
        self._held: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._path = Path()
        self._num_rows = 0
        self._num_bytes = 0

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._held.append(table)
        while sum(part.num_rows for part in self._held) >= self._rows_per_group:
            held = pa.concat_tables(self._held)
            self._held = [held.slice(self._rows_per_group)]
            self._write_group(held.slice(0, self._rows_per_group))

    def close(self) -> pa.Table:
        """Write the rest; returns all rows without their images."""
        if any(part.num_rows for part in self._held):
            self._write_group(pa.concat_tables(self._held))
        self._held = []
        self._close_shard()
        plain = schema.without_image(self._schema)
        plain = plain.with_metadata({key: value for key, value in plain.metadata.items() if key != b"huggingface"})
        return pa.concat_tables([plain.empty_table(), *(part.cast(plain) for part in self._meta)])

    def _write_group(self, group: pa.Table) -> None:
        if self._writer is None:
            self._path = self._files.new(self._table, self._split)
            others = [field.name for field in self._schema if field.name != "image"]
            self._writer = pq.ParquetWriter(
                self._path,
                self._schema,
                compression={"image.bytes": "none", "image.path": "zstd"} | dict.fromkeys(others, "zstd"),
                use_dictionary=others,
                write_statistics=others,  # of images they would be images
                write_page_index=True,
            )
        # One chunk per column: where batches end would show in the bytes.
        self._writer.write_table(group.combine_chunks(), row_group_size=self._rows_per_group)
        self._meta.append(group.drop_columns("image").combine_chunks())
        self._num_rows += group.num_rows
        self._num_bytes += pc.sum(pc.binary_length(pc.struct_field(group["image"], "bytes"))).as_py()
        if self._num_bytes >= self._shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        with _temporary_index(self._path).open("wb") as file:
            np.save(file, image_index.build(self._path), allow_pickle=False)
        self._files.add(self._table, self._split, self._path, self._num_rows)
        self._writer, self._num_rows, self._num_bytes = None, 0, 0


def files_of_tables(data: Path) -> list[Path]:
    """Return the files in the folders of our tables; other files below ``data`` are the user's."""
    return [path for name in TABLE_FOLDERS for path in sorted((data / name).glob("*")) if path.is_file()]


def _hub_features(columns: pa.Schema) -> bytes:
    """Return the schema metadata by which `datasets` decodes the image column."""
    features = {
        field.name: {"_type": "Image"}
        if field.name == "image"
        else {"dtype": {"double": "float64"}.get(str(field.type), str(field.type)), "_type": "Value"}
        for field in columns
    }
    return json.dumps({"info": {"features": features}}).encode()


def _temporary_index(shard: Path) -> Path:
    return shard.with_name(shard.name.removesuffix(TMP) + ".index" + TMP)


def entry(path: Path) -> dict[str, Any]:
    """Return what the manifest says of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
