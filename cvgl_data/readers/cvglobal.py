"""CVGlobal (of the EP-BEV authors): street views of unknown heading, overhead images, and maps under the same names.

As far as is known: lists without a header, the path of the overhead image and that of the street view on each line
(``splits_csv/train.csv``, ``splits/val.csv``), and street views named
``{lat},{lon}_{YYYY-MM}_{panorama id}_d{heading}_z{zoom}.jpg``. What the heading in the name refers to, and which part
of the ground an image shows, is not published: headings are null, and windows too unless ``zoom`` and ``size`` are
given.

Options: ``train``, ``test`` (list files relative to the top folder, in place of the published ones: that is how the
cross-regional and cross-temporal tests are chosen), ``maps`` (folder with a map under each overhead image's file name:
street-to-map retrieval), ``heading`` (``unknown``; ``file``: take the number in the name for the bearing of the centre
column), ``zoom`` and ``size`` (pixels of that zoom that an overhead image shows), ``validation``, ``neighbors``.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetNotFoundError, RecipeError
from cvgl_data.readers.layout import Problems, assemble, names_in, one_of, read_lines
from cvgl_data.readers.tables import QUERIES, REFERENCES, build_table, pair_table, window_columns

STREET_NAME = re.compile(
    r"(?P<lat>-?\d+\.\d+),(?P<lon>-?\d+\.\d+)_(?P<captured>\d{4}-(?:0[1-9]|1[0-2]))"
    r"_(?P<pano_id>[\w-]{22})_d(?P<heading>\d+)_z(?P<zoom>\d)\.jpg",
    re.ASCII,
)
"""Panorama ids may hold underscores and hyphens."""

TRAIN_LISTS = ("splits_csv/train.csv", "splits/train.csv")
TEST_LISTS = ("splits/val.csv", "splits_csv/val.csv")
"""Published code looks for the two lists in two folders."""

HEADINGS = ("unknown", "file")

_UNKNOWN_SIZE = 256
"""Pixels that a window of unknown extent is said to have, so that places in it can be told."""


class StreetName(NamedTuple):
    """What the name of a street view tells."""

    lat: float
    lon: float
    captured: str
    """Month, as in 2022-08."""
    pano_id: str
    heading_deg: float
    zoom: int
    """Of the tiles that the panorama was put together from."""


def parse_street_name(name: str) -> StreetName | None:
    """Return what a file name tells, None if it does not look like one."""
    match = STREET_NAME.fullmatch(name)
    if match is None:
        return None
    return StreetName(
        float(match["lat"]),
        float(match["lon"]),
        match["captured"],
        match["pano_id"],
        float(match["heading"]),
        int(match["zoom"]),
    )


def read(
    folder: Path,
    *,
    verify: bool = False,
    train: str = "",
    test: str = "",
    maps: str = "",
    heading: str = "unknown",
    zoom: int = 0,
    size: int = 0,
    validation: float = 0.0,
    neighbors: int = 0,
) -> CrossViewDataset:
    """Open CVGlobal; see the module for the options.

    Raises:
        DatasetNotFoundError: If the folder does not hold it.
        DatasetError: If files are missing, misnamed or listed twice; names the first, counts all.
        RecipeError: If options contradict each other.
        UnknownNameError: If an option has no such value.
    """
    one_of("heading", heading, HEADINGS)
    if bool(zoom) != bool(size) or min(zoom, size) < 0:
        raise RecipeError("options 'zoom' and 'size' go together: overhead images show size pixels of the zoom")
    problems = Problems(folder)
    rows, places = _Rows(), _Places(folder, problems)
    for split, file in (("train", _list(folder, train, TRAIN_LISTS)), ("test", _list(folder, test, TEST_LISTS))):
        _read_list(file, split, maps, rows, places, problems)
    problems.check()

    lon, lat = (np.array([getattr(name, axis) for name in rows.names], np.float64) for axis in ("lon", "lat"))
    common = {"source": "cvglobal", "status": "ok", "no_redistribute": True}
    first = np.array([rows.first_query[path] for path in rows.references], np.int64)
    window = (
        window_columns(lon[first], lat[first], size, zoom)
        if zoom
        else {"lon": lon[first], "lat": lat[first], "size": _UNKNOWN_SIZE}
    )
    references = build_table(
        REFERENCES,
        len(rows.references),
        {
            **common,
            **window,
            "reference_id": list(rows.references),
            "area": [rows.splits[row] for row in first.tolist()],
        },
    )
    headings = np.array([name.heading_deg for name in rows.names], np.float64)
    queries = build_table(
        QUERIES,
        len(rows.names),
        {
            **common,
            "query_id": rows.queries,
            "lon": lon,
            "lat": lat,
            "heading_deg": headings if heading == "file" else None,
            "source_heading_deg": headings,
            "pose_source": "file name",
            "resampled": False,
            "captured": [name.captured for name in rows.names],
            "area": rows.splits,
            "split": rows.splits,
        },
    )
    num = queries.num_rows
    pairs = pair_table(
        queries,
        references,
        query_row=np.arange(num),
        reference_row=np.array([rows.references[path] for path in rows.overhead], np.int64),
        positive=np.ones(num, bool),
        uv=None if zoom else np.full((num, 2), _UNKNOWN_SIZE / 2),
    )
    return assemble(
        folder,
        references=references,
        queries=queries,
        pairs=pairs,
        reference_files=list(rows.references),
        query_files=rows.queries,
        validation=validation,
        neighbors=neighbors,
        verify=verify,
    )


@dataclass(slots=True)
class _Rows:
    """What both lists say; one entry per line."""

    names: list[StreetName] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    """Paths relative to the top folder."""
    overhead: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    references: dict[str, int] = field(default_factory=dict)
    """Row of each overhead image: one may serve several street views."""
    first_query: dict[str, int] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)


class _Places:
    """Finds files that a list names by a path of another machine, relative to another folder, or properly."""

    def __init__(self, root: Path, problems: Problems) -> None:
        self._root, self._problems = root, problems
        self._folders: dict[str, str | None] = {}
        self._names: dict[str, frozenset[str]] = {}

    def find(self, path: str) -> str | None:
        """Return where a file lies, relative to the top folder if it is below it; None if it is nowhere."""
        parent, _, name = path.replace("\\", "/").rpartition("/")
        if parent not in self._folders:
            self._folders[parent] = self._folder(parent)
        folder = self._folders[parent]
        if folder is None:
            return None
        if folder not in self._names:
            self._names[folder] = names_in(self._root / folder)
        return (f"{folder}/{name}" if folder else name) if name in self._names[folder] else None

    def _folder(self, parent: str) -> str | None:
        """Return the folder itself, or the longest tail of its path that is a folder below the top one."""
        parts = PurePosixPath(parent).parts
        if parent.startswith("/") and Path(parent).is_dir():
            path = Path(parent)
            return path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else parent
        for start in range(len(parts)):
            tail = "/".join(parts[start:]).lstrip("/")
            if tail and (self._root / tail).is_dir():
                return tail
        return None if parts else ""


def _list(root: Path, given: str, published: tuple[str, ...]) -> Path:
    names = (given,) if given else published
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DatasetNotFoundError(f"'{root}' has no list {' or '.join(names)}; train= and test= name others")


def _read_list(file: Path, split: str, maps: str, rows: _Rows, places: _Places, problems: Problems) -> None:
    for number, line in read_lines(file, problems):
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if len(cells) < 2:
            problems.add(file, number, "names no pair; a line holds the overhead image's path and the street view's")
            continue
        overhead, street = cells[:2]
        if maps:
            overhead = f"{maps.rstrip('/')}/{PurePosixPath(overhead).name}"
        found = []
        for path in (overhead, street):
            place = places.find(path)
            found.append(place or path)
            if place is None:
                problems.add(file, number, f"there is no file '{path}'")
        if found[1] in rows.seen:
            problems.add(file, number, f"street view '{found[1]}' is listed in {rows.seen[found[1]]} already")
            continue
        rows.seen[found[1]] = f"{file.name}, line {number},"
        name = parse_street_name(PurePosixPath(street).name)
        if name is None:
            example = "40.75290377,-73.97958215_2022-08_ID_d62_z3.jpg"
            problems.add(file, number, f"'{PurePosixPath(street).name}' does not look like '{example}'")
            continue
        rows.references.setdefault(found[0], len(rows.references))
        rows.first_query.setdefault(found[0], len(rows.names))
        rows.names.append(name)
        rows.overhead.append(found[0])
        rows.queries.append(found[1])
        rows.splits.append(split)
