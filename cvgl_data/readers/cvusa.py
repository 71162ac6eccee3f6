"""Reader of CVUSA: pairs of a panorama of the United States, cut above and below, and an aerial image.

The layout is ``splits/{train,val}-19zl.csv`` (aerial image, panorama, annotation; no header), ``bingmap/19``,
``streetview/panos`` and ``split_locations/all.csv`` (aerial latitude and longitude, panorama's latitude and longitude,
a fifth number; the image with the number n in line n). 35,532 pairs to train and 8,884 to test; every query has one
reference, which is centred on it. Panoramas are north-aligned.

Source: Workman, Souvenir, Jacobs, "Wide-Area Image Geolocalization with Aerial Reference Imagery"; splits of Zhai et
al., "Predicting Ground-Level Scene Layout from Aerial Imagery".
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError
from cvgl_data.readers.layout import Problems, assemble, one_of, read_lines, require_folder
from cvgl_data.readers.listing import (
    PANORAMAS,
    ZENITHS,
    Files,
    Once,
    centered_zeniths,
    first_size,
    stem_of,
)
from cvgl_data.readers.tables import REFERENCES, build_table, pair_table, window_columns

LISTS = {"train": "splits/train-19zl.csv", "test": "splits/val-19zl.csv"}
"""The official validation list is what every paper tests on."""

LOCATIONS = "split_locations/all.csv"

ZOOM, REFERENCE_PX = 19, 750

ZENITHS_DEG = {
    "auxgeo": (180 * 176 / 616, 180 * 400 / 616),
    "ep-bev": (180 * 196 / 616, 180 * 420 / 616),
    "wide": (45.0, 135.0),
}
"""Zenith angles of a panorama's upper and lower edge, by who assumes them; the dataset does not say.

``auxgeo`` places the 224 rows at 176 to 400 of the 616 that the whole sphere would have, which puts the horizon below
the middle; ``ep-bev`` places them in the middle; ``wide`` takes them for the middle half of the sphere.
"""

_PARTIAL_ASPECT = 1232 / 224
_NUMBER = re.compile(r"\d+$")
_SEARCHED = (("bingmap/19", "bingmap/18", "bingmap"), ("streetview/panos", "streetview"))


class Row(NamedTuple):
    """One line of a list."""

    split: str
    number: int
    aerial: str
    pano: str


def read(
    folder: Path,
    *,
    vertical: str = "auxgeo",
    locations: bool = True,
    validation: float = 0.0,
    neighbors: int = 0,
    verify: bool = False,
) -> CrossViewDataset:
    """Open CVUSA.

    Args:
        folder: Holds ``splits``, ``bingmap``, ``streetview`` and ``split_locations``.
        vertical: Which part of the sphere the panoramas show, see `ZENITHS_DEG`; written to `ZENITHS`. Whole
            panoramas are recognized by their shape.
        locations: Whether to read ``split_locations/all.csv``; without it there are no positions, thus no distance map.
        validation: Share of the training queries to hold out; 0 as published.
        neighbors: Length of the lists of the distance map; 0 for none.
        verify: Look at every image.

    Raises:
        DatasetNotFoundError: If this is not the folder of the dataset.
        DatasetError: If files are missing, misplaced, listed twice or unreadable; names the first, counts all.
    """
    one_of("vertical", vertical, ZENITHS_DEG)
    require_folder(folder, "splits")
    problems = Problems(folder)
    rows = _rows(folder, problems)
    degrees = _locations(folder, rows, problems) if locations else np.full((len(rows), 4), np.nan)
    size = first_size(folder, [row.pano for row in rows[:1]], problems)
    problems.check()

    areas = [f"cvusa-{row.split}" for row in rows]
    queries = build_table(
        PANORAMAS,
        len(rows),
        {
            "query_id": [f"panos-{row.number:07d}" for row in rows],
            "lon": degrees[:, 3],
            "lat": degrees[:, 2],
            "heading_deg": 0.0,
            "area": areas,
            "source": "cvusa",
            "no_redistribute": True,
            "status": "ok",
            "split": [row.split for row in rows],
            **dict(zip(ZENITHS, _zeniths(size, vertical), strict=True)),
        },
    )
    references = build_table(
        REFERENCES,
        len(rows),
        {
            "reference_id": [f"bingmap-{row.number:07d}" for row in rows],
            **(window_columns(degrees[:, 1], degrees[:, 0], REFERENCE_PX, ZOOM) if locations else _unplaced()),
            "area": areas,
            "source": "bing",
            "no_redistribute": True,
            "status": "ok",
        },
    )
    every = np.arange(len(rows))
    center = np.full((len(rows), 2), REFERENCE_PX / 2)
    return assemble(
        folder,
        references=references,
        queries=queries,
        pairs=pair_table(
            queries, references, query_row=every, reference_row=every, positive=np.ones(len(rows), bool), uv=center
        ),
        reference_files=[row.aerial for row in rows],
        query_files=[row.pano for row in rows],
        validation=validation,
        neighbors=neighbors,
        verify=verify,
    )


def _unplaced() -> dict[str, int]:
    return {"size": REFERENCE_PX, "zoom": ZOOM}


def _zeniths(size: tuple[int, int] | None, vertical: str) -> tuple[float, float]:
    """Return what the panoramas show, by the size of one: the known cut, a whole sphere, or another cut."""
    if size is None or math.isclose(size[0] / size[1], _PARTIAL_ASPECT, rel_tol=0.02):
        return ZENITHS_DEG[vertical]
    return centered_zeniths(*size)


def _rows(folder: Path, problems: Problems) -> list[Row]:
    """Return the lines of both lists whose files are there."""
    files, seen, rows = Files(folder, problems), Once(problems), []
    for split, list_name in LISTS.items():
        path = folder / list_name
        for line in read_lines(path, problems):
            columns = [text.strip() for text in line.text.split(",")]
            if len(columns) < 2 or not all(columns[:2]):
                problems.add(path, line.number, "has no two columns (aerial image, panorama)")
                continue
            aerial, pano = columns[:2]
            numbers = [_NUMBER.search(stem_of(column)) for column in (aerial, pano)]
            if numbers[0] is None or numbers[1] is None:
                problems.add(path, line.number, f"'{aerial}' or '{pano}' has no number in its name")
                continue
            number = int(numbers[0][0])
            if number != int(numbers[1][0]):
                problems.add(path, line.number, f"'{aerial}' and '{pano}' are not one place, their numbers differ")
                continue
            listed = zip((aerial, pano), _SEARCHED, strict=True)
            there = [files.require(name, path, line.number, searched) for name, searched in listed]
            if all(there) and seen.see(f"{number}", path, line.number, f"{number:07d}"):
                rows.append(Row(split, number, aerial, pano))
    if not rows and not problems.count:
        problems.add(folder / LISTS["train"], None, "lists nothing")
    return rows


def _locations(folder: Path, rows: list[Row], problems: Problems) -> NDArray[np.float64]:
    """Return aerial latitude and longitude, panorama's latitude and longitude of each row, (N, 4)."""
    path = folder / LOCATIONS
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        problems.add(path, None, "is missing; `?locations=false` opens the dataset without positions")
        return np.empty((0, 4))
    except (OSError, UnicodeDecodeError) as error:
        problems.add(path, None, f"cannot be read: {error}")
        return np.empty((0, 4))
    degrees = np.full((len(rows), 4), np.nan)
    for at, row in enumerate(rows):
        if not 1 <= row.number <= len(lines):
            problems.add(path, None, f"has {len(lines):,} lines, none for image {row.number:07d}")
            continue
        try:
            degrees[at] = _position(lines[row.number - 1])
        except (ValueError, DatasetError) as error:
            problems.add(path, row.number, f"is no position: {error}")
    return degrees


def _position(line: str) -> list[float]:
    values = [float(text) for text in line.split(",")[:4]]
    if len(values) < 4:
        raise DatasetError(f"{len(values)} numbers, 4 are needed")
    for lat, lon in (values[:2], values[2:]):
        if not (-90 <= lat <= 90 and -180 <= lon <= 180):  # false for NaN, too
            raise DatasetError(f"latitude {lat:g}, longitude {lon:g}")
    return values
