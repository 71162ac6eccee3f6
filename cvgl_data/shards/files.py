"""Parquet files under way: written beside their place, named when all are there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cvgl_data.readers.packed import index_path
from cvgl_data.workspace import is_table

ROWS_PER_GROUP = 10_000
"""Row groups of tables without pixels."""

TMP = ".tmp"


@dataclass(frozen=True, slots=True)
class _Shard:
    """A finished file under its temporary name."""

    path: Path
    num_rows: int
    sha256: str


class ShardFiles:
    """The files of one packing, each under a temporary name until all are there."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._shards: dict[tuple[str, str], list[_Shard]] = {}

    def new(self, table: str, split: str) -> Path:
        """Return the temporary path of the next shard; its final name needs their number."""
        folder = self._data / table
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{split}-{len(self._shards.get((table, split), [])):05d}.parquet{TMP}"

    def add(self, table: str, split: str, path: Path, num_rows: int, sha256: str) -> None:
        """Take over a finished shard."""
        self._shards.setdefault((table, split), []).append(_Shard(path, num_rows, sha256))

    def add_table(self, table: str, split: str, content: pa.Table) -> None:
        """Write a table without pixels as one shard, unless it is empty: `datasets` loads no empty split."""
        if not content.num_rows:
            return
        path = self.new(table, split)
        # One chunk per column: where chunks end would show in the bytes.
        content = content.combine_chunks()
        with pq.ParquetWriter(path.absolute(), content.schema, compression="zstd", write_page_index=True) as writer:
            writer.write_table(content, row_group_size=ROWS_PER_GROUP)
        self.add(table, split, path, content.num_rows, entry(path)["sha256"])

    def put_in_place(self) -> dict[str, dict[str, Any]]:
        """Give every file its name; returns the manifest's entries."""
        entries = {}
        for (table, split), shards in self._shards.items():
            for number, shard in enumerate(shards):
                final = self._data / table / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
                index = temporary_index(shard.path)
                os.replace(shard.path, final)
                entries[f"data/{table}/{final.name}"] = {
                    "bytes": final.stat().st_size,
                    "sha256": shard.sha256,
                    "rows": shard.num_rows,
                }
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


def files_of_tables(data: Path) -> list[Path]:
    """Return the files in the folders of our tables; other files below ``data`` are the user's."""
    return [path for folder in _folders(data) for path in sorted(folder.glob("*")) if path.is_file()]


def remove_strangers(data: Path, ours: Collection[Path]) -> None:
    """Remove files that an earlier packing left in the folders of our tables, and folders that are empty then."""
    for path in files_of_tables(data):
        if path not in ours:
            path.unlink()
    for folder in _folders(data):
        if not any(folder.iterdir()):
            folder.rmdir()


def _folders(data: Path) -> list[Path]:
    return sorted(path for path in data.glob("*") if is_table(path.name) and path.is_dir())


def temporary_index(shard: Path) -> Path:
    """Return where the index of a shard under way lies."""
    return shard.with_name(shard.name.removesuffix(TMP) + ".index" + TMP)


def entry(path: Path) -> dict[str, Any]:
    """Return what the manifest says of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
