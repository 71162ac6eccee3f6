"""What the map draws: at most so many queries and references, outlines, and what a click shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.report.placement import Placement, placed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_OUTLINE_POINTS = 1_200


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """The map of a dataset; world units are those of `cvgl_data.report.placement`."""

    places: dict[str, Placement]
    """By area, in the order of their names."""
    query_rows: Ints
    """Queries that are drawn, sorted."""
    reference_rows: Ints
    """References that are drawn or are a drawn query's positive, sorted."""
    data: dict[str, Any]
    """For the page: ``queries`` and ``references`` by column, ``blocks`` instead of single references, or None."""


def make_map(dataset: CrossViewDataset, *, max_points: int, seed: int) -> Map:
    """Choose what to draw.

    Args:
        dataset: Tables of a dataset.
        max_points: Draw at most so many queries, chosen at random, and at most so many squares: beyond it references
            are put together in blocks.
        seed: Decides which queries.
    """
    names = sorted({name or "" for table in (dataset.queries, dataset.references) for name in _unique(table, "area")})
    places = {name: placed(dataset, name) for name in names}
    query_rows, query_x, query_y, values = _together(
        places, dataset.queries.num_rows, "query_rows", "query_x", "query_y", "decentrality"
    )
    reference_rows, west, north, side, counts = _together(
        places, dataset.references.num_rows, "reference_rows", "west", "north", "side", "num_queries"
    )
    drawn = np.arange(len(query_rows))
    if len(drawn) > max_points:
        drawn = np.sort(np.random.default_rng(seed).choice(drawn, max_points, replace=False))
    positives = dataset.positives()[query_rows[drawn]]
    blocks = None
    listed = np.arange(len(reference_rows))
    if len(reference_rows) > max_points:
        blocks = _blocks(west, north, side, counts, max_points)
        listed = np.unique(positives[positives >= 0])  # rows are places here, for every reference is placed
    place_of = np.full(dataset.references.num_rows + 1, -1)
    place_of[reference_rows[listed]] = np.arange(len(listed))
    return Map(
        places=places,
        query_rows=query_rows[drawn],
        reference_rows=reference_rows[listed],
        data={
            "queries": {
                **_positions(query_x[drawn], query_y[drawn]),
                "positive": place_of[positives].tolist(),
                "decentrality": rounded(values[drawn], 3),
                **_of_pairs(dataset, query_rows[drawn]),
                **_columns(dataset.queries, query_rows[drawn], "query_id", ("area", "split", "source", "licence")),
                **_columns(dataset.queries, query_rows[drawn], "", ("creator", "captured", "status")),
                "heading_deg": rounded(_floats(dataset.queries, "heading_deg")[query_rows[drawn]], 1),
            },
            "references": {
                **_positions(west[listed], north[listed]),
                "side": rounded(side[listed], 12),
                "queries": counts[listed].astype(int).tolist(),
                **_columns(
                    dataset.references,
                    reference_rows[listed],
                    "reference_id",
                    ("area", "source", "licence", "captured", "status"),
                ),
            },
            "blocks": blocks,
        },
    )


def outline(place: Placement, geometry: Any | None) -> list[list[list[tuple[float, float]]]]:
    """Return the outline of an area as polygons of rings of (lat, lon), as Leaflet takes them.

    Args:
        place: The area.
        geometry: Its shapely polygon in lon/lat; None: the convex hull of its windows.
    """
    import shapely

    if geometry is None:
        if not len(place.west):
            return []
        east, south = place.west + place.side, place.north + place.side
        corners = np.concatenate([np.stack(pair, 1) for pair in _corners(place.west, place.north, east, south)])
        hull = shapely.convex_hull(shapely.multipoints(corners))
        geometry = shapely.transform(hull, lonlat_from_world)
    elif len(place.west) and (place.west + place.side).max() > 1:
        geometry = shapely.transform(geometry, _eastwards)
    west, south, east, north = geometry.bounds
    step = max(east - west, north - south) / 4000
    simple = geometry.simplify(step)
    while shapely.get_num_coordinates(simple) > _OUTLINE_POINTS and step < 1:
        step *= 2
        simple = geometry.simplify(step)
    return [
        [[(round(y, 6), round(x, 6)) for x, y in ring.coords] for ring in (part.exterior, *part.interiors)]
        for part in shapely.get_parts(simple)
        if part.geom_type == "Polygon"
    ]


def lonlat_from_world(world: Floats) -> Floats:
    """Return (lon, lat) of world units, shape (N, 2); x beyond 1 gives lon beyond 180."""
    lat = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * world[:, 1]))))
    return np.stack([world[:, 0] * 360 - 180, lat], 1)


def _eastwards(lonlat: Floats) -> Floats:
    """Move what lies west of Greenwich once round the world, beside what lies west of the antimeridian."""
    return np.stack([np.where(lonlat[:, 0] < 0, lonlat[:, 0] + 360, lonlat[:, 0]), lonlat[:, 1]], 1)


def rounded(values: Any, digits: int) -> list[float | None]:
    """Return numbers for JSON, None where they are not finite."""
    values = np.asarray(values, np.float64)
    return [value if ok else None for value, ok in zip(values.round(digits).tolist(), np.isfinite(values), strict=True)]


def coded(values: Sequence[str | None]) -> dict[str, Any]:
    """Return repeated texts as ``names`` and one ``codes`` entry for each."""
    names = sorted({value or "" for value in values})
    place = {name: code for code, name in enumerate(names)}
    return {"names": names, "codes": [place[value or ""] for value in values]}


def _corners(west: Floats, north: Floats, east: Floats, south: Floats) -> list[tuple[Floats, Floats]]:
    return [(west, north), (east, north), (west, south), (east, south)]


def _unique(table: pa.Table, name: str) -> list[str | None]:
    found: list[str | None] = pc.unique(table[name]).to_pylist()
    return found


def _floats(table: pa.Table, name: str) -> Floats:
    return np.asarray(pc.fill_null(table[name].cast(pa.float64()), float("nan")).to_numpy(), np.float64)


def _together(places: Mapping[str, Placement], most: int, rows: str, *names: str) -> list[Any]:
    """Return columns of all areas in the order of the dataset's rows."""
    columns = [
        np.concatenate([np.empty(0), *(getattr(place, name) for place in places.values())]) for name in (rows, *names)
    ]
    order = np.argsort(columns[0], kind="stable")
    return [columns[0][order].astype(np.int64), *(column[order] for column in columns[1:])]


def _positions(x: Floats, y: Floats) -> dict[str, Any]:
    return {"x": rounded(x, 10), "y": rounded(y, 10)}  # 1e-10 of the world: 4 mm


def _columns(table: pa.Table, rows: Ints, identity: str, names: Sequence[str]) -> dict[str, Any]:
    taken = table.select([*([identity] if identity else []), *names]).take(pa.array(rows))
    columns: dict[str, Any] = {"id": taken[identity].to_pylist()} if identity else {}
    return columns | {name: coded(taken[name].to_pylist()) for name in names}


def _of_pairs(dataset: CrossViewDataset, query_rows: Ints) -> dict[str, Any]:
    """Return of each query: number of covering references, and its place in the positive, 0 to 1."""
    covering = np.bincount(
        dataset.pairs.filter(dataset.pairs["covers"])["query_row"].to_numpy(), minlength=dataset.queries.num_rows
    )
    positive = dataset.pairs.filter(pc.equal(dataset.pairs["relation"], "positive"))
    at = positive["query_row"].to_numpy()
    size = dataset.references["size"].to_numpy()[positive["reference_row"].to_numpy()]
    columns: dict[str, Any] = {"covering": covering[query_rows].tolist()}
    for name, values, digits in (
        ("decentrality_l2", positive["decentrality_l2"].to_numpy(), 3),
        ("distance_m", positive["distance_m"].to_numpy(), 1),
        ("u", positive["u"].to_numpy() / size, 4),
        ("v", positive["v"].to_numpy() / size, 4),
    ):
        whole = np.full(dataset.queries.num_rows, np.nan)
        whole[at] = values
        columns[name] = rounded(whole[query_rows], digits)
    return columns


def _blocks(west: Floats, north: Floats, side: Floats, counts: Floats, most: int) -> dict[str, Any]:
    """Put references together in squares, at most so many: how many each holds, and their queries."""
    pitch = float(np.median(side))
    while True:
        pitch *= 2
        cells = np.stack([np.floor(west / pitch + 1e-9), np.floor(north / pitch + 1e-9)], 1)
        found, which = np.unique(cells, axis=0, return_inverse=True)
        if len(found) <= most:
            break
    which = which.reshape(-1)
    return {
        **_positions(found[:, 0] * pitch, found[:, 1] * pitch),
        "side": round(pitch, 12),
        "references": np.bincount(which).tolist(),
        "queries": np.bincount(which, counts).astype(int).tolist(),
    }
