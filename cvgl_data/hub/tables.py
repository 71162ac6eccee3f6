"""The tables without pixels of a packed dataset, as far as pushing and pulling need them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cvgl_data import schema
from cvgl_data.errors import DatasetError

_SHARD = re.compile(r"data/(\w+)/(\w+)-\d{5}-of-\d{5}\.parquet")
_GEOMETRY = "geometry"


def read(
    folder: Path, manifest: Mapping[str, Any], table: str, expected: pa.Schema, *, keep_extra: bool = False
) -> dict[str, pa.Table]:
    """Return a table's rows by split, in the manifest's order of files and the expected columns.

    Args:
        folder: Dataset folder.
        manifest: Its manifest.
        table: ``references_meta``, say.
        expected: Its schema.
        keep_extra: Whether columns beyond those of the schema stay.

    Raises:
        DatasetError: If a file is missing or damaged.
        SchemaError: If a column is missing.
    """
    parts: dict[str, list[pa.Table]] = {}
    for name in sorted(manifest["files"]):
        match = _SHARD.fullmatch(name)
        if not match or match[1] != table:
            continue
        try:
            part = pq.read_table((folder / name).absolute(), partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"'{folder / name}' cannot be read: {error}") from None
        schema.check(part.schema, expected, f"'{folder / name}'")
        metadata = {key: value for key, value in (part.schema.metadata or {}).items() if key != b"geo"}
        # Cast, because Parquet forgets what the items of lists are called, which would show in bytes written anew.
        extra = [field for field in part.schema if keep_extra and field.name not in expected.names]
        columns = pa.schema([*expected, *extra], metadata=metadata)
        parts.setdefault(match[2], []).append(part.select(columns.names).cast(columns))
    return {split: pa.concat_tables(tables) for split, tables in parts.items()}


def whole(
    folder: Path, manifest: Mapping[str, Any], table: str, expected: pa.Schema, *, keep_extra: bool = False
) -> pa.Table:
    """Return all rows of a table, its splits in their usual order; otherwise as `read`."""
    by_split = read(folder, manifest, table, expected, keep_extra=keep_extra)
    names = [*(name for name in schema.SPLITS if name in by_split), *sorted(set(by_split) - set(schema.SPLITS))]
    return pa.concat_tables([by_split[name] for name in names]) if names else expected.empty_table()


def references(folder: Path, manifest: Mapping[str, Any]) -> pa.Table:
    """Return the references without pixels."""
    return whole(folder, manifest, "references_meta", schema.without_image(schema.REFERENCES))


def queries(folder: Path, manifest: Mapping[str, Any]) -> dict[str, pa.Table]:
    """Return the queries without pixels, by split."""
    return read(folder, manifest, "queries_meta", schema.without_image(schema.QUERIES))


def holds_pixels(path: Path) -> bool:
    """Whether a Parquet file has a column that can hold an image."""
    return any(
        field.name != _GEOMETRY and (pa.types.is_struct(field.type) or _is_binary(field.type))
        for field in pq.read_schema(path.absolute())
    )


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
