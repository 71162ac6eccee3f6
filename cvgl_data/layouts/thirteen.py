"""VIGOR's and DReSS's layout, written: folders by city, lists of tiles, 13-column labels, gps dictionaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError
from cvgl_data.geo import pixel_from_lonlat
from cvgl_data.layouts.target import (
    Exported,
    areas_of,
    changed_ids,
    safe,
    window_of,
    write_gps,
    write_images,
)
from cvgl_data.readers import dress, vigor
from cvgl_data.readers.citynames import DRESS_PANORAMA, DRESS_TILE, VIGOR_PANORAMA, VIGOR_TILE, Convention, Naming
from cvgl_data.readers.citytiles import TILE_LIST
from cvgl_data.readers.protocols import CROSS_AREA, SAME_AREA, Chosen
from cvgl_data.readers.sidecar import WindowSize, write_sidecar
from cvgl_data.readers.tables import uv_from_coordinates
from cvgl_data.readers.thirteen import TILES, offsets_of, write_labels
from cvgl_data.schema import SPLITS
from cvgl_data.types import Progress

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DECIMALS = 3
"""Of the offsets; whole ones are written as published, with one."""

_NAME_TOLERANCE_DEG = 2e-6
"""Within this a position in a file name is the image's; published names of panoramas have six decimals."""


@dataclass(frozen=True, slots=True)
class _Target:
    """One of the two layouts."""

    name: str
    convention: Convention
    image_px: int
    window: WindowSize
    splits: str
    panorama_name: Naming
    tile_name: Naming
    new_panorama: Callable[[str, float, float], str]
    """Name of a panorama from a part that is its own, longitude and latitude."""
    new_tile: Callable[[str, float, float], str]
    official: Chosen
    order: tuple[str, ...]
    """Published order of the cities, which keys of gps dictionaries depend on."""


VIGOR = _Target(
    name="vigor",
    convention="vigor",
    image_px=vigor.IMAGE_PX,
    window=vigor.WINDOW,
    splits=vigor.ORIGINAL_FOLDER,
    panorama_name=VIGOR_PANORAMA,
    tile_name=VIGOR_TILE,
    new_panorama=lambda name, lon, lat: f"{name},{lat!r},{lon!r},.jpg",
    new_tile=lambda name, lon, lat: f"satellite_{lat!r}_{lon!r}.png",
    official=vigor.OFFICIAL,
    order=("NewYork", "Seattle", "SanFrancisco", "Chicago"),
)

DRESS = _Target(
    name="dress",
    convention="dress",
    image_px=dress.IMAGE_PX,
    window=dress.WINDOW,
    splits=dress.SPLITS,
    panorama_name=DRESS_PANORAMA,
    tile_name=DRESS_TILE,
    new_panorama=lambda name, lon, lat: f"pano,{name},{lat!r},{lon!r},0,0.jpg",
    new_tile=lambda name, lon, lat: f"satellite_{name.replace('_', '-')}_{lon!r}_{lat!r}.png",
    official=dress.OFFICIAL,
    order=dress.OFFICIAL.all,
)


def write_vigor(dataset: CrossViewDataset, root: Path, neighbors: int, pickles: bool, progress: Progress) -> Exported:
    """Write VIGOR's layout, ``City/{panorama,satellite}``; see `export_layout`."""
    return _write(dataset, root, VIGOR, neighbors, pickles, progress)


def write_dress(dataset: CrossViewDataset, root: Path, neighbors: int, pickles: bool, progress: Progress) -> Exported:
    """Write DReSS's layout; see `export_layout`."""
    return _write(dataset, root, DRESS, neighbors, pickles, progress)


def _write(
    dataset: CrossViewDataset, root: Path, target: _Target, neighbors: int, pickles: bool, progress: Progress
) -> Exported:
    window = window_of(dataset, target.name)
    areas = areas_of(dataset)
    tiles = _names(dataset.references, "reference_id", target.tile_name, target.new_tile)
    kept, tile_rows, uv = labeled_pairs(dataset, window)
    queries = dataset.queries.take(pa.array(kept))
    panoramas = _names(queries, "query_id", target.panorama_name, target.new_panorama)

    reference_area, query_area = dataset.references["area"].to_pylist(), queries["area"].to_pylist()
    if strange := set(query_area) - set(areas):
        raise DatasetError(f"area '{min(strange)}' has queries but no references; the layout keeps both in one folder")
    for query, rows in enumerate(tile_rows.tolist()):
        if any(reference_area[row] != query_area[query] for row in rows):
            name = queries["query_id"][query].as_py()
            raise DatasetError(f"query '{name}' has a tile of another area, which layout '{target.name}' cannot name")
    offsets = offsets_of(uv * (target.image_px / window.size), target.convention, target.image_px)
    split = queries["split"].to_pylist()
    for area in areas:
        folder = root / target.splits / area
        folder.mkdir(parents=True)
        listed = [tiles[row] for row, name in enumerate(reference_area) if name == area]
        _write_text(folder / TILE_LIST, "".join(f"{name}\n" for name in listed))
        mine = [query for query, name in enumerate(query_area) if name == area]
        groups = {CROSS_AREA: mine}
        for name in SPLITS:
            of_split = [query for query in mine if split[query] == name]
            if of_split or name != "validation":  # published copies have no validation file
                groups[SAME_AREA.format(split=name)] = of_split
        for stem, some in groups.items():
            names = [[tiles[row] for row in tile_rows[query].tolist()] for query in some]
            text = write_labels([panoramas[query] for query in some], names, offsets[some], DECIMALS)
            _write_text(folder / f"{stem}.txt", text)

    reference_ids, query_ids = dataset.references["reference_id"].to_pylist(), queries["query_id"].to_pylist()
    tile_paths = [f"{area}/satellite/{name}" for area, name in zip(reference_area, tiles, strict=True)]
    panorama_paths = [f"{area}/panorama/{name}" for area, name in zip(query_area, panoramas, strict=True)]
    usual = [f"{area}/{name}" for area, name in zip([*reference_area, *query_area], [*tiles, *panoramas], strict=True)]
    ids, paths = [*reference_ids, *query_ids], [*tile_paths, *panorama_paths]
    write_sidecar(root, window, target.window, changed_ids(ids, usual, paths))
    _write_gps(dataset, queries, tile_rows, tiles, root, target, areas, neighbors, pickles)
    write_images(dataset, root, ids, paths, progress)
    side = window.size
    covering = ((uv >= 0) & (uv <= side)).all(axis=-1)
    return Exported(
        references=len(tiles),
        queries=len(kept),
        left_out=dataset.queries.num_rows - len(kept),
        padded=int((~covering).sum()),
        files=len(paths),
    )


def labeled_pairs(dataset: CrossViewDataset, window: WindowSize) -> tuple[Ints, Ints, Floats]:
    """Return the queries that have a positive and their four tiles: the positive, then the nearest others.

    Semi-positives come first, as they are listed; where there are fewer than three, the nearest other tiles of the
    area stand in, which do not cover the query.

    Returns:
        Rows of the queries, (N,); rows of the tiles, (N, 4); place of the query in each, (N, 4, 2), window pixels.

    Raises:
        DatasetError: If an area has fewer than four references.
    """
    positive = dataset.positives()
    kept = np.flatnonzero(positive >= 0)
    pairs = dataset.pairs
    query, reference = (pairs[name].to_numpy().astype(np.int64) for name in ("query_row", "reference_row"))
    is_positive = pc.equal(pairs["relation"], "positive").to_numpy()
    # Four that a layout listed stay in its order; of more, those that cover the query go first.
    is_long = (np.bincount(query, minlength=dataset.queries.num_rows) > TILES)[query]
    order = np.lexsort((np.arange(len(query)), is_long & ~pairs["covers"].to_numpy(), ~is_positive, query))
    start = np.searchsorted(query[order], np.arange(dataset.queries.num_rows + 1))
    rows = np.full((len(kept), TILES), -1, np.int64)
    uv = np.full((len(kept), TILES, 2), np.nan)
    place = np.stack([pairs[axis].to_numpy() for axis in "uv"], 1)
    for index, row in enumerate(kept.tolist()):
        listed = order[start[row] : start[row + 1]][:TILES]
        rows[index, : len(listed)], uv[index, : len(listed)] = reference[listed], place[listed]
    _fill_up(dataset, kept, rows, window)
    missing = np.isnan(uv[..., 0])
    if missing.any():
        at, column = np.nonzero(missing)
        uv[at, column] = uv_from_coordinates(dataset.queries, dataset.references, kept[at], rows[at, column])
    return kept, rows, uv


def _fill_up(dataset: CrossViewDataset, kept: Ints, rows: Ints, window: WindowSize) -> None:
    """Put the nearest tiles of the area where fewer than four are listed."""
    short = np.flatnonzero((rows < 0).any(axis=1))
    if not len(short):
        return
    areas, query_area = dataset.references["area"].to_numpy(), dataset.queries["area"].to_numpy()[kept]
    for area in sorted(set(query_area[short].tolist())):
        here = np.flatnonzero(areas == area)
        if len(here) < TILES:
            raise DatasetError(f"area '{area}' has {len(here)} references; labels of this layout name {TILES}")
        lon, lat = (dataset.references[axis].to_numpy()[here] for axis in ("lon", "lat"))
        tree = cKDTree(np.stack(pixel_from_lonlat(lon, lat, window.zoom), 1))
        mine = short[query_area[short] == area]
        at_lon, at_lat = (dataset.queries[axis].to_numpy()[kept[mine]] for axis in ("lon", "lat"))
        _, near = tree.query(np.stack(pixel_from_lonlat(at_lon, at_lat, window.zoom), 1), k=min(len(here), 2 * TILES))
        for index, candidates in zip(mine.tolist(), here[near].tolist(), strict=True):
            listed = rows[index][rows[index] >= 0].tolist()
            rows[index] = (listed + [row for row in candidates if row not in listed])[:TILES]


def _names(table: pa.Table, id_name: str, naming: Naming, new: Callable[[str, float, float], str]) -> list[str]:
    """Return file names: that in the id where it is one of the layout with this very position, or a new one."""
    ids, areas = table[id_name].to_pylist(), table["area"].to_pylist()
    lon, lat = (np.asarray(table[axis].to_numpy(), np.float64) for axis in ("lon", "lat"))
    if not (np.isfinite(lon) & np.isfinite(lat)).all():
        raise DatasetError(
            f"{int((~np.isfinite(lon)).sum())} rows have no position; this layout keeps it in file names"
        )
    candidates = [name.removeprefix(f"{area}/") for name, area in zip(ids, areas, strict=True)]
    there = [index for index, name in enumerate(candidates) if "/" not in name and not any(map(str.isspace, name))]
    found_lon, found_lat, _ = naming.positions([candidates[index] for index in there])
    fits = np.zeros(len(ids), bool)
    with np.errstate(invalid="ignore"):
        near = np.maximum(np.abs(found_lon - lon[there]), np.abs(found_lat - lat[there])) < _NAME_TOLERANCE_DEG
    fits[np.array(there, np.int64)] = near
    return [
        name if fit else new(safe(identity), x, y)
        for name, fit, identity, x, y in zip(candidates, fits.tolist(), ids, lon.tolist(), lat.tolist(), strict=True)
    ]


def _write_gps(
    dataset: CrossViewDataset,
    queries: pa.Table,
    tile_rows: Ints,
    tiles: Sequence[str],
    root: Path,
    target: _Target,
    areas: Sequence[str],
    neighbors: int,
    pickles: bool,
) -> None:
    """Write the dictionaries of both protocols: neighbors among the positives of the training queries.

    A tile's key is its place in the lists of the protocol's cities, one after the other in the published order.
    """
    area = np.array(dataset.references["area"].to_pylist(), dtype=object)
    is_train = pc.equal(queries["split"], "train").to_numpy()
    query_area = np.array(queries["area"].to_pylist(), dtype=object)
    everywhere = [name for name in target.order if name in areas] or list(areas)
    everywhere += [name for name in areas if name not in everywhere]
    protocols = {"same": (everywhere, is_train)}
    if set(target.official.all) <= set(areas):
        protocols["cross"] = (list(target.official.train), np.isin(query_area, np.array(target.official.train)))
    for name, (cities, trains) in protocols.items():
        listed = np.concatenate([np.flatnonzero(area == city) for city in cities])
        key = np.full(len(area), -1, np.int64)
        key[listed] = np.arange(len(listed))
        used = np.unique(tile_rows[trains, 0])
        used = used[np.argsort(key[used], kind="stable")]
        write_gps(
            root / f"gps_dict_{name}",
            dataset.references.take(pa.array(used)),
            key[used],
            [tiles[row] for row in used.tolist()],
            neighbors,
            pickles=pickles,
        )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
