"""Reader of imported tables whose images stay where they were, each in a file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cvgl_data import schema
from cvgl_data.dataset import LINKED_FILE, CrossViewDataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, SchemaError
from cvgl_data.readers.layout import FolderImages, Problems, names_in, verify_images
from cvgl_data.readers.tables import QUERIES, REFERENCES

TABLES = {
    "references": REFERENCES,
    "queries": QUERIES,
    "pairs": schema.PAIRS,
    "distance_map": schema.DISTANCE_MAP,
}

FILES = pa.schema([("id", pa.string()), ("path", pa.string())])
"""Where the image of each id lies, relative to the root that the description names."""


def table_path(folder: Path, name: str) -> Path:
    """Return where a table of a linked dataset lies."""
    return folder / "tables" / f"{name}.parquet"


def read(folder: Path, *, verify: bool = False, root: str = "") -> CrossViewDataset:
    """Open a linked dataset.

    Args:
        folder: Where ``linked.json`` lies.
        verify: Look at every image, not only whether it is there.
        root: Folder of the images, if they were moved since.

    Raises:
        DatasetNotFoundError: If the folder holds none.
        DatasetError: If a table or images are missing or damaged; names the first, counts all.
        SchemaError: If it has another schema version.
    """
    described = _describe(folder)
    parts = {name: _read(table_path(folder, name), columns) for name, columns in TABLES.items()}
    files = _read(table_path(folder, "files"), FILES)
    images = FolderImages(Path(root or described["root"]), files["id"], files["path"])
    problems = Problems(images.root)
    _check_there(images.root, files, problems)
    if verify and not problems.count:
        verify_images(images, problems)
    problems.check()
    return CrossViewDataset(images=images, **parts)


def _describe(folder: Path) -> dict[str, Any]:
    path = folder / LINKED_FILE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        version, _ = described["schema_version"], described["root"]
    except FileNotFoundError:
        raise DatasetNotFoundError(f"'{folder}' has no {LINKED_FILE}; `cvgl-data import --link` makes one") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"'{path}' is damaged ({error}); import the dataset again") from None
    if version != schema.VERSION:
        raise SchemaError(
            f"'{folder}' has schema version {version}, this cvgl reads version {schema.VERSION}; import it again"
        )
    return dict(described)


def _read(path: Path, columns: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path.absolute(), partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"'{path}' cannot be read: {error}; import the dataset again") from None
    schema.check(table.schema, columns, f"'{path}'")
    return table  # with what a layout has beyond the schema


def _check_there(root: Path, files: pa.Table, problems: Problems) -> None:
    """Note every image that is gone; each folder is scanned once."""
    there: dict[str, frozenset[str]] = {}
    for path in files["path"].to_pylist():
        parent, _, name = path.rpartition("/")
        if parent not in there:
            there[parent] = names_in(root / parent)
        if name not in there[parent]:
            problems.add(path, None, "is missing; root= names the folder the images were moved to")
