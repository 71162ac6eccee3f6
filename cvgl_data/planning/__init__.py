"""From a recipe to areas and windows, before anything is fetched."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvgl_data import splits
from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import RecipeError
from cvgl_data.fetch import Discovered, discover_queries
from cvgl_data.geo import MAX_LAT_DEG, lonlat_from_pixel
from cvgl_data.grid import TileGrid, Windows, world_px
from cvgl_data.http import Http
from cvgl_data.http.running import run
from cvgl_data.planning.costs import SourceCost, estimate
from cvgl_data.recipe import AreaRecipe, DatasetRecipe
from cvgl_data.selection import read_pano_ids
from cvgl_data.sources import open_imagery, open_panoramas
from cvgl_data.types import BBox, ImagerySource, PanoramaSource


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaPlan:
    """What one area will ask for."""

    name: str
    area_km2: float
    num_references: int
    """Without those of an earlier area."""
    num_tiles: int
    """Distinct XYZ tiles, which is the number of imagery requests."""
    gsd_m: float
    """Mean ground metres per pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a build will ask for."""

    areas: list[AreaPlan]
    costs: list[SourceCost]


def plan(recipe: DatasetRecipe, *, rate_per_s: float = 10.0, discover: bool = False) -> Plan:
    """Return what a recipe will ask for; nothing is fetched.

    Args:
        recipe: What would be built.
        rate_per_s: Requests per second and host, for the time it takes.
        discover: Ask the panorama source what there is, where only that tells how many panoramas there are.
    """
    check(recipe)
    imagery = open_imagery(recipe.imagery.source, recipe.imagery.options, workers=1)
    panoramas = open_panoramas(recipe.panoramas.source, recipe.panoramas.options, workers=1)
    with closing(imagery), closing(panoramas):
        found = areas(recipe)
        work = without_repeats([(area.name, windows_of(recipe, area, imagery)) for area in found])
        planned = [
            AreaPlan(
                name=area.name,
                area_km2=area.area_km2,
                num_references=len(windows),
                num_tiles=windows.num_tiles(),
                gsd_m=float(np.mean(windows.gsd_m())) if len(windows) else 0.0,
            )
            for area, (_, windows) in zip(found, work, strict=True)
        ]
        num_tiles = sum(area.num_tiles for area in planned)
        number, is_bound = _num_panoramas(recipe, found, panoramas, rate_per_s, discover)
        listing: Counter[str] = Counter()
        # Without an area nothing bounds the listing, and counting its tiles would take as long as fetching them.
        if recipe.areas and not recipe.panoramas.pano_ids and hasattr(panoramas, "discovery"):
            for area in found:
                listing.update(panoramas.discovery(_searched(recipe, area)))
        costs = [
            estimate("imagery", imagery, num_tiles, rate_per_s=rate_per_s),
            estimate("panoramas", panoramas, number, is_bound=is_bound, discovery=listing, rate_per_s=rate_per_s),
        ]
    return Plan(areas=planned, costs=costs)


def most_panoramas(recipe: DatasetRecipe, index: int) -> int:
    """Return at most how many panoramas the area of that index may have; 0 means no limit."""
    most = (recipe.areas[index].max if recipe.areas else 0) or recipe.panoramas.max
    return min(most, recipe.limit) if most and recipe.limit else most or recipe.limit


async def discover(
    recipe: DatasetRecipe, found: list[AreaOfInterest], source: PanoramaSource, http: Http
) -> list[Discovered]:
    """Return the panoramas to fetch in each area; one that lies in two areas belongs to the first."""
    seen: set[str] = set()
    result = []
    for index, area in enumerate(found):
        there = await discover_queries(
            source,
            _searched(recipe, area),
            http,
            spacing_m=recipe.panoramas.spacing_m,
            limit=most_panoramas(recipe, index),
            captured_after=recipe.panoramas.captured_after,
            captured_before=recipe.panoramas.captured_before,
            seed=recipe.seed,
        )
        pano_ids = [pano_id for pano_id in there.pano_ids if pano_id not in seen]
        errors = [error for error in there.errors if error.item not in seen]
        result.append(Discovered(pano_ids, errors))
        seen.update(there.pano_ids, (error.item for error in there.errors))
    return result


def _num_panoramas(
    recipe: DatasetRecipe, found: list[AreaOfInterest], source: PanoramaSource, rate_per_s: float, ask: bool
) -> tuple[int | None, bool]:
    """Return how many panoramas there will be, if that can be told, and whether there may be fewer."""
    if recipe.panoramas.pano_ids:
        number = len(read_pano_ids(recipe.panoramas.pano_ids))
        most = most_panoramas(recipe, 0)
        return min(number, most) if most else number, False
    if ask:

        async def count(http: Http, cancel: asyncio.Event) -> int:
            return sum(len(there.pano_ids) for there in await discover(recipe, found, source, http))

        return run(count, late_s=0.0, rate_per_s=rate_per_s), False
    bounds = [most_panoramas(recipe, index) for index in range(len(found))]
    return (sum(bounds), True) if all(bounds) else (None, False)


def check(recipe: DatasetRecipe) -> None:
    """Raise now what would otherwise end a build after hours: unknown names, missing files, impossible areas.

    Raises:
        CvglError: Naming what is wrong.
    """
    found = areas(recipe)
    splits.check(recipe.split, {area.name for area in found})
    if recipe.panoramas.pano_ids:
        read_pano_ids(recipe.panoramas.pano_ids)
    imagery = open_imagery(recipe.imagery.source, recipe.imagery.options, workers=1)
    with closing(imagery):
        TileGrid(recipe.grid.zoom, recipe.grid.size, recipe.grid.overlap)
        if not recipe.areas:
            windows_of(recipe, found[0], imagery)
        elif recipe.grid.zoom > imagery.max_zoom:
            deepest = f"imagery source '{imagery.name}' ends at {imagery.max_zoom}"
            raise RecipeError(f"recipe key 'grid.zoom' is {recipe.grid.zoom}, {deepest}")
    open_panoramas(recipe.panoramas.source, recipe.panoramas.options, workers=1).close()


def areas(recipe: DatasetRecipe) -> list[AreaOfInterest]:
    """Return the areas of interest of a recipe; the whole world if it names none.

    Raises:
        AreaError: If one is empty, invalid or polar.
        RecipeError: If one is described twice or not at all, or two have the same name.
    """
    if not recipe.areas:
        return [AreaOfInterest.from_bbox(-180.0, -MAX_LAT_DEG, 180.0, MAX_LAT_DEG, name=recipe.name)]
    found = [_area(area, f"areas.{index}") for index, area in enumerate(recipe.areas)]
    for name, count in Counter(area.name for area in found).items():
        if count > 1:
            raise RecipeError(f"two areas are named '{name}'; give each its own 'name'")
    return found


def _area(recipe: AreaRecipe, path: str) -> AreaOfInterest:
    given = [key for key in ("city", "bbox", "file") if getattr(recipe, key)]
    if len(given) != 1:
        raise RecipeError(f"recipe key '{path}' needs exactly one of city, bbox, file (found: {given or 'none'})")
    if recipe.city:
        area = AreaOfInterest.from_city(recipe.city)
    elif recipe.bbox:
        area = AreaOfInterest.from_bbox(*recipe.bbox)
    else:
        area = AreaOfInterest.from_file(recipe.file)
    if recipe.clip:
        area = area.clip(BBox(*recipe.clip))
    return replace(area, name=recipe.name) if recipe.name else area


def windows_of(recipe: DatasetRecipe, area: AreaOfInterest, imagery: ImagerySource) -> Windows:
    """Return the reference windows of one area, at most ``limit`` of them.

    A recipe without areas takes what a local source lists (`FolderImagery.windows`).

    Raises:
        RecipeError: If the recipe has no area and the source cannot list its tiles.
    """
    if recipe.areas:
        grid = recipe.grid
        windows = TileGrid(grid.zoom, grid.size, grid.overlap).cover(area)
    else:
        listed = getattr(imagery, "windows", None)
        if listed is None:
            raise RecipeError("the recipe has no area; pass --city, --bbox or --area-file, or set 'areas'")
        windows = listed()
    return _middle(windows, recipe.limit) if recipe.limit else windows


def _middle(windows: Windows, limit: int) -> Windows:
    """Return the windows nearest to the middle of all, in their order: a patch that queries may lie in, no strip."""
    half = windows.size / 2
    away = np.hypot(windows.x + half - np.mean(windows.x + half), windows.y + half - np.mean(windows.y + half))
    return windows[np.sort(np.argsort(away, kind="stable")[:limit])]


def _searched(recipe: DatasetRecipe, area: AreaOfInterest) -> AreaOfInterest:
    """Return where to look for panoramas: the whole area, or with a limit the box of the windows that it leaves."""
    if not (recipe.limit and recipe.areas):
        return area
    grid = recipe.grid
    windows = _middle(TileGrid(grid.zoom, grid.size, grid.overlap).cover(area), recipe.limit)
    west, north, east, south = (
        int(edge) for edge in (*windows.bounds_px()[:, :2].min(0), *windows.bounds_px()[:, 2:].max(0))
    )
    if west < 0 or east > world_px(grid.zoom):
        return area
    lon, lat = lonlat_from_pixel(np.array([west, east]), np.array([south, north]), grid.zoom)
    return area.clip(BBox(float(lon[0]), float(lat[0]), float(lon[1]), float(lat[1])))


def without_repeats(work: Sequence[tuple[str, Windows]]) -> list[tuple[str, Windows]]:
    """Return named windows of areas, each area without the windows that an earlier one has."""
    seen: set[int] = set()
    unique = []
    for name, windows in work:
        places = (windows.x << 32) + windows.y
        fresh = np.array([place not in seen for place in places.tolist()], bool) if seen else slice(None)
        seen.update(places.tolist())
        unique.append((name, windows[fresh]))
    return unique


def windows_by_area(references: pa.Table) -> list[tuple[str, Windows]]:
    """Return the windows of a dataset's references, columns ``area``, ``x``, ``y``, ``size``, ``zoom``, by area."""
    keys = references.select(["area", "size", "zoom"]).group_by(["area", "size", "zoom"]).aggregate([])
    found = []
    for key in keys.sort_by([(name, "ascending") for name in keys.column_names]).to_pylist():
        rows = references
        for name, value in key.items():
            rows = rows.filter(pc.equal(rows[name], value))
        x, y = (rows[name].to_numpy().astype(np.int64) for name in ("x", "y"))
        found.append((key["area"], Windows(x, y, key["size"], key["zoom"])))
    return found
