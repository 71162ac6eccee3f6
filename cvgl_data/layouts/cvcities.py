"""CV-Cities' layout, written: ``img_info.csv`` of each city, one overhead image centred on each panorama."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError
from cvgl_data.layouts.target import Exported, areas_of, changed_ids, safe, window_of, write_gps, write_images
from cvgl_data.readers.cvcities import CITIES, TABLE, WINDOW
from cvgl_data.readers.sidecar import write_sidecar
from cvgl_data.types import Progress

_CENTERED_PX = 1.0
"""How far a query may lie from the centre of its reference: the layout has one position for both."""


def write(dataset: CrossViewDataset, root: Path, neighbors: int, pickles: bool, progress: Progress) -> Exported:
    """Write CV-Cities' layout; see `cvgl_data.layouts.export_layout`.

    Raises:
        DatasetError: If references serve several queries or are not centred on theirs.
    """
    window = window_of(dataset, "cvcities")
    positive = dataset.positives()
    kept = np.flatnonzero(positive >= 0)
    queries, references = dataset.queries.take(pa.array(kept)), dataset.references.take(pa.array(positive[kept]))
    _check_centered(dataset, positive[kept], window.size)

    areas = areas_of(dataset)
    order = [name for name in CITIES if name in areas] + sorted(set(areas) - set(CITIES))
    query_ids, reference_ids = queries["query_id"].to_pylist(), references["reference_id"].to_pylist()
    area = queries["area"].to_pylist()
    folders = [CITIES.get(name, name) for name in area]
    names = [safe(name.removeprefix(f"{folder}/")) for name, folder in zip(query_ids, folders, strict=True)]
    overhead = [
        reference if reference.startswith(f"{folder}/sat_images/") else f"{folder}/sat_images/{name}.jpg"
        for reference, folder, name in zip(reference_ids, folders, names, strict=True)
    ]
    panoramas = [f"{folder}/pano_images/{name}.jpg" for folder, name in zip(folders, names, strict=True)]
    lon, lat = (queries[axis].to_pylist() for axis in ("lon", "lat"))

    rows_in_order: list[int] = []
    for city in order:
        mine = [row for row, name in enumerate(area) if name == city]
        if not mine:
            continue
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [names[row], repr(lon[row]), repr(lat[row]), folders[row], overhead[row], panoramas[row]] for row in mine
        )
        folder = root / folders[mine[0]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TABLE).write_text(text.getvalue(), encoding="utf-8", newline="\n")
        rows_in_order += mine

    usual = [f"{folder}/{name}" for folder, name in zip(folders, names, strict=True)]
    ids, paths = [*reference_ids, *query_ids], [*overhead, *panoramas]
    write_sidecar(root, window, WINDOW, changed_ids(ids, [*overhead, *usual], paths))
    _write_gps(queries, rows_in_order, usual, root, neighbors, pickles)
    write_images(dataset, root, ids, paths, progress)
    return Exported(
        references=len(overhead),
        queries=len(kept),
        left_out=dataset.queries.num_rows - len(kept),
        padded=0,
        files=len(paths),
    )


def _check_centered(dataset: CrossViewDataset, positive: np.ndarray, size: int) -> None:
    if len(np.unique(positive)) < len(positive):
        raise DatasetError("CV-Cities' layout has one overhead image for each panorama; here several queries share one")
    pairs = dataset.pairs.filter(pc.equal(dataset.pairs["relation"], "positive"))
    away = np.max(np.abs(np.stack([pairs[axis].to_numpy() for axis in "uv"]) - size / 2), axis=0)
    if (away > _CENTERED_PX).any():
        raise DatasetError(
            f"CV-Cities' layout has one position for a panorama and its overhead image; here {int((away > 1).sum()):,} "
            f"queries lie up to {away.max():.0f} px from their reference's centre; layouts vigor and dress can say that"
        )


def _write_gps(
    queries: pa.Table, rows_in_order: list[int], names: list[str], root: Path, neighbors: int, pickles: bool
) -> None:
    """Write the dictionary of the training cities: keys are lines of their tables, one after the other."""
    split, area = queries["split"].to_pylist(), queries["area"].to_pylist()
    cities = {area[row] for row in rows_in_order if split[row] == "train"}
    lines = [row for row in rows_in_order if area[row] in cities]
    keys = np.array([key for key, row in enumerate(lines) if split[row] == "train"], np.int64)
    rows = [lines[key] for key in keys.tolist()]
    write_gps(
        root / f"gps_dict_{len(cities)}_cities",
        queries.take(pa.array(rows, pa.int64())),
        keys,
        [names[row] for row in rows],
        neighbors,
        pickles=pickles,
    )
