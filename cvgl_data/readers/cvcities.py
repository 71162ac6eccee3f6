"""CV-Cities: 223,736 panoramas of 16 cities, each with one overhead image centred on it, zoom 19.

``<city>/img_info.csv`` has no header: name, longitude, latitude, city, path of the overhead image, path of the
panorama, both relative to the top folder. Two folders are misspelt in the published files (captown, maynila); areas
have the names of the city catalogue.

Options: ``protocol`` (``cross-area``: ten cities train and six test, in one gallery; ``per-city``: everything of one
``city`` tests in its own gallery, as published), ``train`` and ``test`` (cities, comma-separated, in place of the
published ones), ``validation`` (share of the training queries, by spatial blocks; published: none), ``neighbors``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetNotFoundError, RecipeError
from cvgl_data.readers.layout import Problems, assemble, names_in, one_of, read_lines
from cvgl_data.readers.protocols import Chosen, choose_cities
from cvgl_data.readers.sidecar import WindowSize, read_window, restore_ids
from cvgl_data.readers.tables import QUERIES, REFERENCES, build_table, pair_table, window_columns

PROTOCOLS = ("cross-area", "per-city")

CITIES = {
    "barcelona": "barcelona",
    "cape-town": "captown",
    "los-angeles": "losangeles",
    "manila": "maynila",
    "melbourne": "melbourne",
    "mexico-city": "mexico",
    "new-york": "newyork",
    "paris": "paris",
    "santiago": "santiago",
    "tokyo": "tokyo",
    "taipei": "taipei",
    "singapore": "singapore",
    "london": "london",
    "seattle": "seattle",
    "rio-de-janeiro": "rio",
    "sydney": "sydney",
}
"""Name in the city catalogue to published folder, in the published order."""

OFFICIAL = Chosen(tuple(CITIES)[:10], tuple(CITIES)[10:])

WINDOW = WindowSize(19, 746)
"""0.002 degrees of longitude are 745.654 pixels of zoom 19; published images have 745 or 746."""

TABLE = "img_info.csv"
_TEXT = pa.string()

COLUMNS = ("name", "longitude", "latitude", "city", "path of the overhead image", "path of the panorama")


def read(
    folder: Path,
    *,
    verify: bool = False,
    protocol: str = "cross-area",
    city: str = "",
    train: str = "",
    test: str = "",
    validation: float = 0.0,
    neighbors: int = 0,
) -> CrossViewDataset:
    """Open CV-Cities; see the module for the options.

    Raises:
        DatasetNotFoundError: If the folder does not hold it.
        DatasetError: If files are missing, misplaced, listed twice or cannot be read; names the first, counts all.
        RecipeError: If options contradict each other.
        UnknownNameError: If an option has no such value.
    """
    one_of("protocol", protocol, PROTOCOLS)
    bases = _bases(folder)
    chosen = _choose(folder, bases, protocol, city, train, test)
    window = read_window(folder, WINDOW)
    problems = Problems(folder)
    rows = _Rows()
    scanned: dict[str, frozenset[str]] = {}
    for split, names in (("train", chosen.train), ("test", chosen.test)):
        for name in names:
            _read_city(folder, name, *bases[name], split, rows, scanned, problems)
    problems.check()

    num = len(rows.names)
    lon, lat = np.array(rows.lon, np.float64), np.array(rows.lat, np.float64)
    reference_files, query_files = pa.array(rows.overhead, _TEXT), pa.array(rows.panoramas, _TEXT)
    common = {"source": "cvcities", "status": "ok", "no_redistribute": True, "area": rows.areas}
    references = build_table(
        REFERENCES,
        num,
        {
            **common,
            "reference_id": restore_ids(folder, reference_files, reference_files),
            **window_columns(lon, lat, window.size, window.zoom),
        },
    )
    queries = build_table(
        QUERIES,
        num,
        {
            **common,
            "query_id": restore_ids(folder, query_files, pa.array(rows.names, _TEXT)),
            "lon": lon,
            "lat": lat,
            "heading_deg": 0.0,
            "pose_source": "inferred: north in the centre column",
            "resampled": False,
            "split": rows.splits,
        },
    )
    pairs = pair_table(
        queries,
        references,
        query_row=np.arange(num),
        reference_row=np.arange(num),
        positive=np.ones(num, bool),
        uv=np.full((num, 2), window.size / 2),
    )
    return assemble(
        folder,
        references=references,
        queries=queries,
        pairs=pairs,
        reference_files=reference_files,
        query_files=query_files,
        validation=validation,
        neighbors=neighbors,
        verify=verify,
    )


@dataclass(slots=True)
class _Rows:
    """The rows of all tables, one city after the other."""

    names: list[str] = field(default_factory=list)
    lon: list[float] = field(default_factory=list)
    lat: list[float] = field(default_factory=list)
    areas: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    overhead: list[str] = field(default_factory=list)
    panoramas: list[str] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    """Where each name and file was listed first."""


def _bases(root: Path) -> dict[str, tuple[str, str]]:
    """Return folder and prefix of paths for each city that is there, by its name in the catalogue.

    Some copies hold ``<city>/<city>``, as the archives unpack.
    """
    areas = {folder: name for name, folder in CITIES.items()}
    found = {}
    for name in sorted(names_in(root)):
        for base, prefix in ((name, ""), (f"{name}/{name}", f"{name}/")):
            if (root / base / TABLE).is_file():
                found[areas.get(name, name)] = (base, prefix)
                break
    if not found:
        raise DatasetNotFoundError(f"'{root}' has no folder with a file '{TABLE}'; is it the dataset's top folder?")
    return found


def _choose(root: Path, bases: dict[str, tuple[str, str]], protocol: str, city: str, train: str, test: str) -> Chosen:
    there = list(bases)
    if protocol == "cross-area":
        if city:
            raise RecipeError("option 'city' goes with protocol=per-city; train= and test= name those of cross-area")
        train, test = (",".join(map(_area, names.split(","))) if names else "" for names in (train, test))
        return choose_cities(protocol, OFFICIAL, there, cities="", train=train, test=test, root=root)
    if train or test:
        raise RecipeError("options 'train' and 'test' go with protocol=cross-area; city= names that of per-city")
    if not city:
        raise RecipeError(f"protocol=per-city needs the city, as in city={there[0]} (found: {', '.join(there)})")
    return Chosen((), (one_of("city", _area(city), there),))


def _area(name: str) -> str:
    """Return a city's name in the catalogue, given that or its folder."""
    return next((area for area, folder in CITIES.items() if folder == name.strip()), name.strip())


def _read_city(
    root: Path,
    area: str,
    base: str,
    prefix: str,
    split: str,
    rows: _Rows,
    scanned: dict[str, frozenset[str]],
    problems: Problems,
) -> None:
    """Take in the table of one city; every problem of it is noted with its line."""
    file = f"{base}/{TABLE}"
    folder = base.rpartition("/")[2]
    for number, line in read_lines(root / file, problems):
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if len(cells) != len(COLUMNS):
            problems.add(file, number, f"has {len(cells)} columns, not {len(COLUMNS)} ({', '.join(COLUMNS)})")
            continue
        name, lon_text, lat_text, city, overhead, panorama = cells
        try:
            lon, lat = float(lon_text), float(lat_text)
        except ValueError:
            problems.add(file, number, f"'{lon_text}', '{lat_text}' is no position")
            continue
        if not (abs(lon) <= 180 and abs(lat) <= 85):
            problems.add(file, number, f"lies at longitude {lon:g}, latitude {lat:g}, which is nowhere")
            continue
        if _area(city) != area and city.lower() != folder.lower():
            problems.add(file, number, f"is of city '{city}', but lies in the folder of '{folder}'")
        where = f"{file}, line {number},"
        paths = [prefix + path.replace("\\", "/").removeprefix("./") for path in (overhead, panorama)]
        for kind, what in (("name", f"{folder}/{name}"), *(("file", path) for path in paths)):
            if what in rows.seen:
                problems.add(file, number, f"{kind} '{what}' is listed in {rows.seen[what]} already")
            rows.seen[what] = where
        for path in paths:
            parent, _, file_name = path.rpartition("/")
            if parent not in scanned:
                scanned[parent] = names_in(root / parent, problems)
            if file_name not in scanned[parent]:
                problems.add(file, number, f"there is no file '{path}'")
        rows.names.append(f"{folder}/{name}")
        rows.lon.append(lon)
        rows.lat.append(lat)
        rows.areas.append(area)
        rows.splits.append(split)
        rows.overhead.append(paths[0])
        rows.panoramas.append(paths[1])
