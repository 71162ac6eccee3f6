"""Rows with images on their way into Parquet shards of bounded size, one row group at a time."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cvgl_data import schema
from cvgl_data.errors import DatasetError
from cvgl_data.shards import image_index
from cvgl_data.shards.files import ShardFiles, temporary_index

_LARGE_BYTES = 64 * 1024
"""Images larger than this are handed to the Parquet writer one by one."""

_SMALL_AT_ONCE = 64
"""Others so many at once, counted from the first row of all: as the store's batches end, so that none is put together
from two."""

_READ_BYTES = 1024 * 1024

Ints = NDArray[np.int64]


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
        self._num_held = 0
        self._writer: pq.ParquetWriter | None = None
        self._path = Path()
        self._hash = _HashBehind(self._path)
        self._num_rows = 0
        self._lengths: list[Ints] = []
        self._num_bytes = 0

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._held.append(table)
        self._num_held += table.num_rows
        while self._num_held >= self._rows_per_group:
            held = pa.concat_tables(self._held)
            self._held = [held.slice(self._rows_per_group)]
            self._num_held -= self._rows_per_group
            self._write_group(held.slice(0, self._rows_per_group))

    def close(self) -> pa.Table:
        """Write the rest; returns all rows without their images."""
        if self._num_held:
            self._write_group(pa.concat_tables(self._held))
        self._held, self._num_held = [], 0
        self._close_shard()
        plain = schema.without_image(self._schema)
        plain = plain.with_metadata({key: value for key, value in plain.metadata.items() if key != b"huggingface"})
        return pa.concat_tables([plain.empty_table(), *(part.cast(plain) for part in self._meta)])

    def _write_group(self, group: pa.Table) -> None:
        if self._writer is None:
            self._path = self._files.new(self._table, self._split)
            self._writer = open_writer(self._path, self._schema)
            self._hash = _HashBehind(self._path)
        meta, lengths = write_group(self._writer, group, self._num_rows)
        self._hash.advance()
        self._meta.append(meta)
        self._num_rows += len(lengths)
        self._lengths.append(lengths)
        self._num_bytes += int(lengths.sum())
        if self._num_bytes >= self._shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._hash.advance()
        with temporary_index(self._path).open("wb") as file:
            index = index_of(self._path, np.concatenate(self._lengths))
            np.save(file, index, allow_pickle=False)
        self._files.add(self._table, self._split, self._path, len(index), self._hash.hexdigest())
        self._writer, self._lengths, self._num_bytes = None, [], 0


def open_writer(path: Path, columns: pa.Schema) -> pq.ParquetWriter:
    """Return a writer of rows with images: those uncompressed and PLAIN, so that each lies contiguous in the file."""
    others = [field.name for field in columns if field.name != "image"]
    return pq.ParquetWriter(
        path.absolute(),  # with a colon, a relative one would be taken for an address
        columns,
        compression={"image.bytes": "none", "image.path": "zstd"} | dict.fromkeys(others, "zstd"),
        use_dictionary=others,
        write_statistics=others,  # of images they would be images
        write_page_index=True,
    )


def write_group(writer: pq.ParquetWriter, group: pa.Table, first_row: int) -> tuple[pa.Table, Ints]:
    """Write one row group, which begins at this row of the table.

    Returns:
        The rows without images, and the lengths of these in bytes, shape (N,).
    """
    meta = group.drop_columns("image").combine_chunks()
    lengths = pc.binary_length(pc.struct_field(group["image"], "bytes")).to_numpy().astype(np.int64)
    # Where chunks end shows in the bytes, so where batches end must not: chunks of our own. Most lie within one
    # batch and are written without another copy.
    images = pa.chunked_array(_chunks(group["image"], lengths, first_row), group["image"].type)
    at = group.schema.get_field_index("image")
    writer.write_table(meta.add_column(at, group.schema.field(at), images), row_group_size=len(lengths))
    return meta, lengths


def index_of(path: Path, lengths: Ints) -> Ints:
    """Return the same as `image_index.build` of a file whose images' lengths are known; reads only page headers.

    Args:
        path: A file that `open_writer` made.
        lengths: Bytes of each image, shape (N,).

    Returns:
        Offset and length in bytes of each row's image, shape (N, 2).

    Raises:
        DatasetError: If the pages do not have room for exactly these images.
    """
    metadata = pq.read_metadata(path.absolute())
    offsets = np.zeros(len(lengths), np.int64)
    row = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number in range(metadata.num_row_groups):
            chunk = image_index._find_column(metadata.row_group(number), "image.bytes", path)
            page, end = chunk.data_page_offset, row + chunk.num_values
            while row < end:
                header, start = image_index._read_struct(data, page)
                first, num_values = image_index._values_start(data, header, start, path)
                values = lengths[row : row + num_values] + 4  # each behind its length
                offsets[row : row + num_values] = first + np.cumsum(values) - values + 4
                row += num_values
                page = start + header[image_index._PAGE_BYTES]
                values_end = first + int(values.sum())
                if page != values_end:
                    raise DatasetError(f"'{path}' does not hold the images that were written to it")
    return np.stack([offsets, lengths], axis=1)


class _HashBehind:
    """Hashes a file that grows, in a thread of its own: the writer need not wait, nor read it again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._thread = ThreadPoolExecutor(1)
        self._begun: list[Future[None]] = []

    def advance(self) -> None:
        """Hash what is in the file by now; all of it stays as it is."""
        self._begun.append(self._thread.submit(self._hash, self._path.stat().st_size))

    def hexdigest(self) -> str:
        """Return the hash of what is there, and end the thread."""
        with self._thread:
            for begun in self._begun:
                begun.result()
        return self._sha256.hexdigest()

    def _hash(self, end: int) -> None:
        buffer = memoryview(bytearray(_READ_BYTES))
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._num_bytes)
            while self._num_bytes < end:
                num = file.readinto(buffer[: end - self._num_bytes])
                if not num:
                    raise OSError(f"'{self._path}' is shorter than what was written to it")
                self._sha256.update(buffer[:num])
                self._num_bytes += num


def _chunks(images: pa.ChunkedArray, lengths: Ints, first_row: int) -> Iterator[pa.Array]:
    """Yield the images in chunks that depend on nothing but their lengths and place."""
    rows = 1 if lengths.mean() > _LARGE_BYTES else _SMALL_AT_ONCE
    start = 0
    while start < len(lengths):
        end = start + rows - (first_row + start) % rows
        parts = images.slice(start, end - start).chunks
        yield parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
        start = end


def _hub_features(columns: pa.Schema) -> bytes:
    """Return the schema metadata by which `datasets` decodes the image column."""
    features = {
        field.name: {"_type": "Image"}
        if field.name == "image"
        else {"dtype": {"double": "float64"}.get(str(field.type), str(field.type)), "_type": "Value"}
        for field in columns
    }
    return json.dumps({"info": {"features": features}}).encode()
