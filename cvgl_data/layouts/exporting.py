"""From our datasets to the folders, lists and labels that published training code reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cvgl_data.arrow_files import writing_to
from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.errors import DatasetError, UnknownNameError
from cvgl_data.layouts import cvcities, thirteen
from cvgl_data.layouts.target import Exported
from cvgl_data.registry import did_you_mean
from cvgl_data.types import Progress, Silent

LAYOUTS = ("cvcities", "dress", "vigor")
"""What can be exported."""


def export_layout(
    location: str | Path,
    out: Path,
    layout: str,
    *,
    neighbors: int = 128,
    pickles: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a dataset as a published layout; image bytes stay as they are.

    What the layout has no place for (ids, zoom and size of the references) goes to two small files beside it that our
    readers use and published code does not look at, so importing the folder gives the same tables again.

    Args:
        location: As `open_dataset` takes it.
        out: New folder.
        layout: One of `LAYOUTS`.
        neighbors: Length of the lists of the gps dictionaries; published: 128.
        pickles: Also write these as pickles, which is what published code reads.
        progress: Told about stages and images.

    Raises:
        DatasetError: If the folder exists, or the layout cannot hold the dataset; says why.
        UnknownNameError: If there is no such layout.
        CvglError: As `open_dataset`.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError(f"unknown layout '{layout}'{did_you_mean(layout, LAYOUTS)}")
    if out.exists():
        raise DatasetError(f"'{out}' exists already; name another folder for the export")
    dataset = open_dataset(location)
    with _new_folder(out) as part:
        written = _WRITERS[layout](dataset, part, neighbors, pickles, progress or Silent())
    return written


_WRITERS: dict[str, Callable[[CrossViewDataset, Path, int, bool, Progress], Exported]] = {
    "cvcities": cvcities.write,
    "dress": thirteen.write_dress,
    "vigor": thirteen.write_vigor,
}


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that gets its name when all is written."""
    part = out.with_name(out.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with writing_to(out):
            part.mkdir(parents=True)
            yield part
            os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
