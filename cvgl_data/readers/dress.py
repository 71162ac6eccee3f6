"""DReSS (SkyMap): 422,760 all but seamless tiles of eight cities at zoom 18, and 174,934 north-aligned panoramas.

Most tiles hold no panorama; they are in the gallery all the same. The three tiles that a label names after the positive
are its nearest others, which as a rule do not cover the query: such pairs have the relation ``near``.

Options: ``protocol`` (``same-area``, ``cross-area``), ``labels`` (``original``: places as labeled; ``mercator``: from
the coordinates in the file names), ``tile_px`` (pixels of zoom 18 that a tile shows: 224, or 256 shown in 224; 0: what
labels and coordinates together say), ``cities``, ``train`` and ``test`` (cities, comma-separated, in place of the
published ones), ``validation`` (share of the training queries, by spatial blocks; published: none), ``neighbors``.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import RecipeError
from cvgl_data.readers.agreement import Agreement, agreement, warn_of_disagreement
from cvgl_data.readers.citynames import DRESS_PANORAMA, DRESS_TILE
from cvgl_data.readers.citytiles import TILE_LIST, Layout, Part, Read, read_files, tables
from cvgl_data.readers.layout import Problems, assemble, names_in, one_of, require_folder
from cvgl_data.readers.protocols import PROTOCOLS, Chosen, choose_cities, stems
from cvgl_data.readers.sidecar import WindowSize, read_window

logger = logging.getLogger(__name__)

LABELS = ("original", "mercator")
OFFICIAL = Chosen(("Chicago", "London", "Sydney", "Tokyo"), ("Johannesburg", "Rio", "Taipei", "Vancouver"))

WINDOW = WindowSize(18, 224)
IMAGE_PX = 224
"""Side of the tile that labels are for."""
TILE_PX = (224, 256)
"""Sides that a tile may show; its publisher does not say whether images were resized."""

SPLITS = "splits_new"


def read(
    folder: Path,
    *,
    verify: bool = False,
    protocol: str = "same-area",
    labels: str = "original",
    tile_px: int = 0,
    cities: str = "",
    train: str = "",
    test: str = "",
    validation: float = 0.0,
    neighbors: int = 0,
) -> CrossViewDataset:
    """Open DReSS; see the module for the options.

    Raises:
        DatasetNotFoundError: If the folder does not hold it.
        DatasetError: If files are missing, misplaced, listed twice or cannot be read; names the first, counts all.
        RecipeError: If options contradict each other.
        UnknownNameError: If an option has no such value.
    """
    one_of("labels", labels, LABELS)
    layout, found = read_raw(folder, protocol=protocol, tile_px=tile_px, cities=cities, train=train, test=test)
    references, queries, pairs = tables(folder, found, layout, use_labels=labels == "original", labels=labels)
    if labels == "original":
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
    tile_px: int = 0,
    cities: str = "",
    train: str = "",
    test: str = "",
) -> tuple[Layout, Read]:
    """Return what the files say, before it becomes tables; arguments and errors as for `read`."""
    one_of("protocol", protocol, PROTOCOLS)
    if tile_px and tile_px not in TILE_PX:
        raise RecipeError(f"option 'tile_px' is {tile_px}; a tile shows {' or '.join(map(str, TILE_PX))} pixels")
    splits = require_folder(folder, SPLITS, "splits")
    there = sorted(name for name in names_in(folder / splits) if (folder / splits / name).is_dir())
    chosen = choose_cities(protocol, OFFICIAL, there, cities=cities, train=train, test=test, root=folder)
    window = read_window(folder, WINDOW)
    layout = Layout(
        source="dress",
        panoramas="{city}/panorama",
        tiles="{city}/satellite",
        tile_list=f"{splits}/{{city}}/{TILE_LIST}",
        panorama_name=DRESS_PANORAMA,
        tile_name=DRESS_TILE,
        convention="dress",
        image_px=IMAGE_PX,
        zoom=window.zoom,
        size=tile_px or window.size,
    )
    parts = [
        Part(city, f"{splits}/{city}/{stem}.txt", split)
        for city, stem, split in stems(protocol, chosen, folder / splits)
    ]
    problems = Problems(folder)
    found = read_files(folder, layout, chosen.all, parts, problems)
    problems.check()
    return (layout if tile_px or window != WINDOW else _measured(layout, found)), found


def check_all(folder: Path, **options: Any) -> list[tuple[str, Agreement]]:
    """Compare the labels with the coordinates in the file names, city by city; arguments as for `read`."""
    known = {key: value for key, value in options.items() if key in ("protocol", "cities", "train", "test")}
    layout, raw = read_raw(folder, tile_px=int(options.get("tile_px", 0)), **known)
    return [("original", city) for city in agreement(raw, layout)]


def _measured(layout: Layout, found: Read) -> Layout:
    """Return the layout with the side at which labels and coordinates agree best."""
    compared = agreement(found, layout)
    if not compared:
        return layout
    scale = float(np.average([city.scale for city in compared], weights=[city.pairs for city in compared]))
    # Where a tile shows more pixels than it has, labels are as much smaller than offsets in pixels of the zoom.
    size = min(TILE_PX, key=lambda side: abs(scale - layout.size / side))
    logger.info("tiles show %d pixels of zoom %d: there labels and coordinates agree", size, layout.zoom)
    return replace(layout, size=size)
