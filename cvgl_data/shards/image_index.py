"""Where each image lies inside a Parquet file, so that a memory-mapped shard gives random access without a second copy.

An uncompressed, PLAIN-encoded byte column holds each value contiguously behind its 4-byte length. Walking the page
headers once gives ``(offset, length)`` of every row.

Source:
    parquet-format's ``parquet.thrift`` (``PageHeader``) and the Thrift compact protocol.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cvgl_data.errors import DatasetError

_DATA_PAGE, _INDEX_PAGE, _DATA_PAGE_V2 = 0, 1, 3
_PLAIN = 0

# Fields of PageHeader and of its two data page headers.
_TYPE, _PAGE_BYTES, _HEADER, _HEADER_V2 = 1, 3, 5, 8
_NUM_VALUES = 1
_ENCODING, _ENCODING_V2 = 2, 4
_DEFINITION_BYTES, _REPETITION_BYTES = 5, 6


def build(path: Path, column: str = "image.bytes") -> NDArray[np.int64]:
    """Return offset and length in bytes of each row's image.

    Args:
        path: A Parquet file whose image column is uncompressed and PLAIN, with an image in every row.
        column: Dotted path of the binary column.

    Returns:
        Shape (N, 2), rows in file order.

    Raises:
        DatasetError: If the column is compressed or encoded, a row has no image, or the pages do not add up.
    """
    metadata = pq.read_metadata(path.absolute())
    entries: list[tuple[int, int]] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for group in range(metadata.num_row_groups):
            _walk_chunk(data, _find_column(metadata.row_group(group), column, path), entries, path)
    if len(entries) != metadata.num_rows:
        raise DatasetError(f"{path} holds {len(entries)} images in {metadata.num_rows} rows")
    return np.array(entries, np.int64).reshape(-1, 2)


def _find_column(group: Any, column: str, path: Path) -> Any:
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema == column:
            break
    else:
        raise DatasetError(f"{path} has no column '{column}'")
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
        encodings = "/".join(chunk.encodings)
        raise DatasetError(f"{path}: column '{column}' is {chunk.compression} {encodings}, expected UNCOMPRESSED PLAIN")
    return chunk


def _walk_chunk(data: mmap.mmap, chunk: Any, entries: list[tuple[int, int]], path: Path) -> None:
    """Append the entries of one column chunk."""
    offset, left = chunk.data_page_offset, chunk.num_values
    end = offset + chunk.total_compressed_size
    while left > 0:
        if not 0 <= offset < end <= len(data):
            raise DatasetError(f"{path}: a column chunk ends before its last page")
        header, start = _read_struct(data, offset)
        page_end = start + header[_PAGE_BYTES]
        if header[_TYPE] == _INDEX_PAGE:
            offset = page_end
            continue
        values, num_values = _values_start(data, header, start, path)
        before = len(entries)
        while values < page_end:
            length = int.from_bytes(data[values : values + 4], "little")
            entries.append((values + 4, length))
            values += 4 + length
        if values != page_end or len(entries) - before != num_values:
            raise DatasetError(f"{path}: the page at byte {offset} does not hold one image per row")
        left -= num_values
        offset = page_end


def _values_start(data: mmap.mmap, header: dict[int, Any], start: int, path: Path) -> tuple[int, int]:
    """Return where the values of a data page begin and how many rows it has."""
    if header[_TYPE] == _DATA_PAGE:
        page = header[_HEADER]
        # An optional column that is not repeated has definition levels only, behind their length.
        start += 4 + int.from_bytes(data[start : start + 4], "little")
        encoding = page[_ENCODING]
    elif header[_TYPE] == _DATA_PAGE_V2:
        page = header[_HEADER_V2]
        start += page[_DEFINITION_BYTES] + page[_REPETITION_BYTES]
        encoding = page[_ENCODING_V2]
    else:
        raise DatasetError(f"{path}: unexpected page type {header[_TYPE]} among the images")
    if encoding != _PLAIN:
        raise DatasetError(f"{path}: a page of images has encoding {encoding}, expected PLAIN")
    return start, int(page[_NUM_VALUES])


def _read_struct(data: mmap.mmap, at: int) -> tuple[dict[int, Any], int]:
    """Read one compact-protocol struct; returns its fields by number and the byte after it."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head = data[at]
        at += 1
        if head == 0:
            return fields, at
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        fields[number], at = _read_value(data, at, head & 0x0F)


def _read_value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    match kind:
        case 1 | 2:  # a field's boolean is its type
            return kind == 1, at
        case 3:
            return data[at], at + 1
        case 4 | 5 | 6:
            return _read_integer(data, at)
        case 7:
            return None, at + 8  # double: none in a page header
        case 8:
            length, at = _read_varint(data, at)
            return data[at : at + length], at + length
        case 12:
            return _read_struct(data, at)
        case _:
            raise DatasetError(f"unexpected Thrift type {kind} in a page header at byte {at}")


def _read_integer(data: mmap.mmap, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at  # zigzag


def _read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
