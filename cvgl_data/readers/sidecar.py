"""What a published layout has no place for, in two small files beside it that published code does not look at.

``cvgl.json`` holds zoom and size of the references, ``cvgl_ids.csv`` the ids that images had before they were exported
under the layout's file names.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cvgl_data.errors import DatasetError

WINDOW_FILE, IDS_FILE = "cvgl.json", "cvgl_ids.csv"


class WindowSize(NamedTuple):
    """Which part of the Mercator plane every reference shows."""

    zoom: int
    size: int
    """Side in pixels of the zoom."""


def read_window(root: Path, published: WindowSize) -> WindowSize:
    """Return zoom and size of the references of a copy: the published ones unless the file beside it differs.

    Raises:
        DatasetError: If the file is damaged.
    """
    path = root / WINDOW_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return WindowSize(int(found["zoom"]), int(found["size"]))
    except FileNotFoundError:
        return published
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"'{path}' is damaged ({error}); export the dataset again") from None


def restore_ids(root: Path, paths: pa.Array, ids: pa.Array) -> pa.Array:
    """Return the ids that images had before they were exported; those given where nothing is known.

    Args:
        root: Folder of the dataset.
        paths: (N,) paths of the images relative to it.
        ids: (N,) ids by the layout's own names.

    Raises:
        DatasetError: If the file is damaged.
    """
    path = root / IDS_FILE
    if not path.is_file():
        return ids
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        files, known = [file for file, _ in rows], [name for _, name in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"'{path}' is damaged ({error}); export the dataset again") from None
    found = pc.index_in(paths, value_set=pa.array(files, pa.string()))
    return pc.coalesce(pa.array(known, pa.string()).take(found), ids)


def write_sidecar(root: Path, window: WindowSize, published: WindowSize, ids: Mapping[str, str]) -> None:
    """Write what a copy cannot hold; nothing where it can.

    Args:
        root: Folder of the copy.
        window: Of its references.
        published: What is read without a file.
        ids: Id by path, of the images whose id does not follow from their path.
    """
    if window != published:
        (root / WINDOW_FILE).write_text(json.dumps(window._asdict()) + "\n", encoding="utf-8", newline="\n")
    if ids:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(sorted(ids.items()))
        (root / IDS_FILE).write_text(text.getvalue(), encoding="utf-8", newline="\n")
