"""VIGOR: 90,618 overlapping tiles of four cities at zoom 20, and 105,214 north-aligned panoramas.

Options: ``protocol`` (``same-area``, ``cross-area``), ``labels`` (``mercator``: places from the coordinates, the only
exact ones; ``corrected``: those of SliceMatch; ``original``: for a constant 0.114 m/px, so wrong by up to 12 %),
``splits`` (folder of the label files), ``cities``, ``train`` and ``test`` (cities, comma-separated, in place of the
published ones), ``validation`` (share of the training queries, by spatial blocks; published: none), ``neighbors``.

Published scripts expect either ``City/{panorama,satellite}`` or ``{ground,satellite}/City``; both are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetNotFoundError
from cvgl_data.readers.agreement import Agreement, agreement, warn_of_disagreement
from cvgl_data.readers.citynames import VIGOR_PANORAMA, VIGOR_TILE
from cvgl_data.readers.citytiles import TILE_LIST, Layout, Part, Read, read_files, tables
from cvgl_data.readers.layout import Problems, assemble, names_in, one_of
from cvgl_data.readers.protocols import PROTOCOLS, Chosen, choose_cities, stems
from cvgl_data.readers.sidecar import WindowSize, read_window

LABELS = ("mercator", "corrected", "original")
OFFICIAL = Chosen(("NewYork", "Seattle"), ("SanFrancisco", "Chicago"))

WINDOW = WindowSize(20, 640)
IMAGE_PX = 640
"""Side of the tile that labels are for."""

CORRECTED_FOLDERS = ("splits__corrected", "splits_corrected", "splits_new")
ORIGINAL_FOLDER = "splits"

_CORRECTED = "__corrected"
"""How corrected label files may end."""


def read(
    folder: Path,
    *,
    verify: bool = False,
    protocol: str = "same-area",
    labels: str = "mercator",
    splits: str = "",
    cities: str = "",
    train: str = "",
    test: str = "",
    validation: float = 0.0,
    neighbors: int = 0,
) -> CrossViewDataset:
    """Open VIGOR; see the module for the options.

    Raises:
        DatasetNotFoundError: If the folder does not hold it.
        DatasetError: If files are missing, misplaced, listed twice or cannot be read; names the first, counts all.
        RecipeError: If options contradict each other.
        UnknownNameError: If an option has no such value.
    """
    layout, found = read_raw(
        folder, protocol=protocol, labels=labels, splits=splits, cities=cities, train=train, test=test
    )
    references, queries, pairs = tables(folder, found, layout, use_labels=labels != "mercator", labels=labels)
    if labels != "mercator":
        warn_of_disagreement(agreement(found, layout), labels)
    return assemble(
        folder,
        references=references,
        queries=queries,
        pairs=pairs,
        reference_files=found.tiles.paths(layout.tiles),
        query_files=found.panoramas.paths(layout.panoramas),
        validation=validation,
        neighbors=neighbors,
        verify=verify,
    )


def read_raw(
    folder: Path,
    *,
    protocol: str = "same-area",
    labels: str = "mercator",
    splits: str = "",
    cities: str = "",
    train: str = "",
    test: str = "",
) -> tuple[Layout, Read]:
    """Return what the files say, before it becomes tables; arguments and errors as for `read`."""
    one_of("protocol", protocol, PROTOCOLS)
    one_of("labels", labels, LABELS)
    splits = _splits_folder(folder, labels, splits)
    there = sorted(name for name in names_in(folder / splits) if (folder / splits / name).is_dir())
    chosen = choose_cities(protocol, OFFICIAL, there, cities=cities, train=train, test=test, root=folder)
    layout = _layout(folder, splits, chosen.all)
    parts = [
        Part(city, _label_file(folder / splits / city, splits, stem, labels), split)
        for city, stem, split in stems(protocol, chosen, folder / splits)
    ]
    problems = Problems(folder)
    found = read_files(folder, layout, chosen.all, parts, problems)
    problems.check()
    return layout, found


def check_all(folder: Path, *, labels: str = "", **options: Any) -> list[tuple[str, Agreement]]:
    """Compare every set of label files that is there with the coordinates in the file names, city by city.

    Args:
        folder: Top folder.
        labels: Ignored, so that the options of `read` can be passed as they are.
        options: As for `read_raw`; others are ignored.

    Returns:
        Name of the set, and what was found; cities in the order of the protocol.
    """
    known = {key: value for key, value in options.items() if key in ("protocol", "splits", "cities", "train", "test")}
    found = []
    for kind in ("corrected", "original") if "splits" not in known else ("original",):
        try:
            layout, raw = read_raw(folder, labels=kind, **known)
        except DatasetNotFoundError:
            continue
        found += [(known.get("splits", kind), city) for city in agreement(raw, layout)]
    return found


def _label_file(folder: Path, splits: str, stem: str, labels: str) -> str:
    names = [f"{stem}{_CORRECTED}.txt", f"{stem}.txt"]
    if labels == "original":
        names.reverse()
    name = next((name for name in names if (folder / name).is_file()), f"{stem}.txt")
    return f"{splits}/{folder.name}/{name}"


def _splits_folder(root: Path, labels: str, splits: str) -> str:
    """Return the folder of label files of a kind."""
    there = [name for name in (*CORRECTED_FOLDERS, ORIGINAL_FOLDER) if (root / name).is_dir()]
    if splits:
        if not (root / splits).is_dir():
            raise DatasetNotFoundError(f"'{root}' has no folder '{splits}' (found: {', '.join(there) or 'none'})")
        return splits
    if not there:
        raise DatasetNotFoundError(
            f"'{root}' has no folder of label files ({', '.join((*CORRECTED_FOLDERS, ORIGINAL_FOLDER))}); "
            "is it the dataset's top folder?"
        )
    if labels == "mercator":
        return there[0]
    wanted = [name for name in there if (name == ORIGINAL_FOLDER) == (labels == "original")]
    if not wanted:
        raise DatasetNotFoundError(
            f"'{root}' has no {labels} labels (found: {', '.join(there)}); name their folder with splits=, or take "
            "places from the coordinates with labels=mercator"
        )
    return wanted[0]


def _layout(root: Path, splits: str, cities: tuple[str, ...]) -> Layout:
    tree = [("{city}/panorama", "{city}/satellite"), ("ground/{city}", "satellite/{city}")]
    panoramas, tiles = next(
        (pair for pair in tree if any((root / pair[1].format(city=city)).is_dir() for city in cities)), tree[0]
    )
    window = read_window(root, WINDOW)
    return Layout(
        source="vigor",
        panoramas=panoramas,
        tiles=tiles,
        tile_list=f"{splits}/{{city}}/{TILE_LIST}",
        panorama_name=VIGOR_PANORAMA,
        tile_name=VIGOR_TILE,
        convention="vigor",
        image_px=IMAGE_PX,
        zoom=window.zoom,
        size=window.size,
    )
