"""What VIGOR and DReSS have in common: a folder per city, a list of tiles, and 13-column labels.

Every problem of every file is collected before anything is raised. Each folder of images is scanned once; no image is
opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.columns import column
from cvgl_data.readers.citynames import Convention, Naming
from cvgl_data.readers.layout import Problems, names_in, read_lines
from cvgl_data.readers.sidecar import restore_ids
from cvgl_data.readers.tables import QUERIES, REFERENCES, build_table, pair_table, window_columns
from cvgl_data.readers.thirteen import TILES, Labels, place_in_tile, read_labels

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TILE_LIST = "satellite_list.txt"


class Part(NamedTuple):
    """One label file and what its queries are for."""

    city: str
    file: str
    """Relative to the root."""
    split: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where one copy of such a dataset keeps what; templates take ``{city}``."""

    source: str
    panoramas: str
    tiles: str
    tile_list: str
    panorama_name: Naming
    tile_name: Naming
    convention: Convention
    image_px: int
    """Side of the tile that offsets refer to."""
    zoom: int
    size: int
    """Side of a tile in pixels of the zoom."""


class _ImagesPart(NamedTuple):
    """Images of one city that were added together."""

    city: str
    names: pa.Array
    places: Floats
    """(2, N) longitudes and latitudes."""


class Images:
    """The images of one side, city after city."""

    def __init__(self) -> None:
        self._parts: list[_ImagesPart] = []
        self._count = 0

    def add(self, city: str, names: Sequence[str], naming: Naming) -> tuple[list[int], dict[int, str]]:
        """Take in the images of a city whose names hold a position.

        Returns:
            Indices of these, and what is wrong with the others.
        """
        lon, lat, wrong = naming.positions(names)
        good = [index for index in range(len(names)) if index not in wrong]
        # Laid out at once: a builder that grows would leave as much again behind.
        kept = column([names[index] for index in good], pa.string())
        self._parts.append(_ImagesPart(city, kept, np.stack([lon, lat])[:, good]))
        self._count += len(good)
        return good, wrong

    def __len__(self) -> int:
        return self._count

    @property
    def cities(self) -> list[str]:
        """City of each."""
        return [part.city for part in self._parts for _ in range(len(part.names))]

    @property
    def lon(self) -> Floats:
        """(N,) degrees."""
        return np.concatenate([np.empty(0), *(part.places[0] for part in self._parts)])

    @property
    def lat(self) -> Floats:
        """(N,) degrees."""
        return np.concatenate([np.empty(0), *(part.places[1] for part in self._parts)])

    def ids(self) -> pa.Array:
        """Return ``city/name``: a bare name could be that of another city's image."""
        return self.paths("{city}")

    def paths(self, template: str) -> pa.Array:
        """Return where the images lie, relative to the root."""
        return pa.concat_arrays(
            [
                pa.array([], pa.string()),
                *(
                    pc.binary_join_element_wise(template.format(city=part.city), part.names, "/")
                    for part in self._parts
                ),
            ]
        )


@dataclass(frozen=True, slots=True)
class Read:
    """What the files say; Q queries."""

    tiles: Images
    panoramas: Images
    splits: list[str]
    tile_row: Ints
    """(Q, 4) rows of the tiles, the positive first."""
    uv: Floats
    """(Q, 4, 2) labeled place of the query in each, pixels of the labels' tile."""


def read_files(root: Path, layout: Layout, cities: Sequence[str], parts: Sequence[Part], problems: Problems) -> Read:
    """Read lists and labels and compare them with what lies in the folders.

    Args:
        root: Folder of the dataset.
        layout: Where what lies.
        cities: Cities whose tiles make up the gallery.
        parts: Label files, in order; of these cities.
        problems: Where everything that is wrong is noted.
    """
    folders = {city: names_in(root / layout.tiles.format(city=city), problems) for city in cities}
    tiles = Images()
    rows: dict[str, dict[str, int]] = {}
    listed_in: dict[str, tuple[str, int]] = {}
    for city in cities:
        rows[city] = _read_list(root, layout, city, folders, tiles, listed_in, problems)

    panorama_folders = {city: names_in(root / layout.panoramas.format(city=city), problems) for city in cities}
    panoramas, splits = Images(), []
    kept: list[tuple[Labels, list[int]]] = []
    seen: dict[str, tuple[str, int]] = {}
    for part in parts:
        labels = read_labels(root / part.file, rows[part.city], problems)
        listed = _first_time(labels.queries, labels.lines, part.file, seen, problems, "panorama")
        folder = panorama_folders[part.city]
        for index in listed:
            if labels.queries[index] not in folder:
                absent = _absent("panorama", labels.queries[index], part.city, panorama_folders, layout.panoramas)
                problems.add(part.file, labels.lines[index], absent)
        good, wrong = panoramas.add(part.city, [labels.queries[index] for index in listed], layout.panorama_name)
        for index, what in wrong.items():
            problems.add(part.file, labels.lines[listed[index]], what)
        in_order = np.sort(labels.tile_row, axis=1)
        for index in np.flatnonzero((in_order[:, 1:] == in_order[:, :-1]).any(axis=1)).tolist():
            problems.add(part.file, labels.lines[index], "names the same tile twice")
        splits += [part.split] * len(good)
        kept.append((labels, [listed[index] for index in good]))
    return Read(
        tiles,
        panoramas,
        splits,
        np.concatenate([np.empty((0, TILES), np.int64), *(labels.tile_row[good] for labels, good in kept)]),
        place_in_tile(
            np.concatenate([np.empty((0, TILES, 2)), *(labels.offsets[good] for labels, good in kept)]),
            layout.convention,
            layout.image_px,
        ),
    )


def _read_list(
    root: Path,
    layout: Layout,
    city: str,
    folders: Mapping[str, frozenset[str]],
    tiles: Images,
    seen: dict[str, tuple[str, int]],
    problems: Problems,
) -> dict[str, int]:
    """Take in the tiles of a city; returns their rows by name."""
    file = layout.tile_list.format(city=city)
    lines = read_lines(root / file, problems)
    names, numbers = [line.text.split()[0] for line in lines], [line.number for line in lines]
    listed = _first_time(names, numbers, file, seen, problems, "tile")
    for index in listed:
        if names[index] not in folders[city]:
            problems.add(file, numbers[index], _absent("tile", names[index], city, folders, layout.tiles))
    start, known = len(tiles), [names[index] for index in listed]
    good, wrong = tiles.add(city, known, layout.tile_name)
    for index, what in wrong.items():
        problems.add(file, numbers[listed[index]], what)
    return {known[index]: row for row, index in enumerate(good, start)}


def _first_time(
    names: Sequence[str],
    numbers: Sequence[int],
    file: str,
    seen: dict[str, tuple[str, int]],
    problems: Problems,
    kind: str,
) -> list[int]:
    """Return the indices of names not seen before; the others are problems, also those of another city."""
    new = []
    for index, name in enumerate(names):
        first = seen.setdefault(name, (file, numbers[index]))
        if first[1] == numbers[index] and first[0] == file:
            new.append(index)
        else:
            problems.add(file, numbers[index], f"{kind} '{name}' is listed in {first[0]}, line {first[1]}, already")
    return new


def _absent(kind: str, name: str, city: str, folders: Mapping[str, frozenset[str]], template: str) -> str:
    other = next((other for other, names in folders.items() if name in names), "")
    if other:
        return f"{kind} '{name}' lies in {template.format(city=other)}, not in {template.format(city=city)}"
    return f"{kind} '{name}' is not in {template.format(city=city)}"


def tables(
    root: Path, read: Read, layout: Layout, *, use_labels: bool, labels: str
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return references, queries and pairs.

    Args:
        root: Folder of the dataset.
        read: What the files say.
        layout: Zoom and size of the tiles.
        use_labels: Take places from the labels; otherwise from the coordinates, which are exact.
        labels: What the places are called, for the metadata of the pairs.
    """
    tiles, panoramas = read.tiles, read.panoramas
    common = {"source": layout.source, "status": "ok", "no_redistribute": True}
    references = build_table(
        REFERENCES,
        len(tiles),
        {
            **common,
            "reference_id": restore_ids(root, tiles.paths(layout.tiles), tiles.ids()),
            **window_columns(tiles.lon, tiles.lat, layout.size, layout.zoom),
            "area": tiles.cities,
        },
    )
    queries = build_table(
        QUERIES,
        len(panoramas),
        {
            **common,
            "query_id": restore_ids(root, panoramas.paths(layout.panoramas), panoramas.ids()),
            "lon": panoramas.lon,
            "lat": panoramas.lat,
            "heading_deg": 0.0,
            "upright": True,
            "pose_source": "the layout: north in the centre column",
            "resampled": False,
            "area": panoramas.cities,
            "split": read.splits,
        },
    )
    query_row = np.repeat(np.arange(queries.num_rows), TILES)
    pairs = pair_table(
        queries,
        references,
        query_row=query_row,
        reference_row=read.tile_row.reshape(-1),
        positive=np.tile(np.arange(TILES) == 0, queries.num_rows),
        uv=read.uv.reshape(-1, 2) * (layout.size / layout.image_px) if use_labels else None,
        is_ordered=True,
    )
    metadata = {**(pairs.schema.metadata or {}), b"cvgl_labels": labels.encode()}
    return references, queries, pairs.replace_schema_metadata(metadata)
