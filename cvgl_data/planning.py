"""From a recipe to areas and windows, before anything is fetched."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from cvgl_data import splits
from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import RecipeError
from cvgl_data.geo import MAX_LAT_DEG
from cvgl_data.grid import TileGrid, Windows
from cvgl_data.recipe import AreaRecipe, DatasetRecipe
from cvgl_data.selection import read_pano_ids
from cvgl_data.sources import open_imagery, open_panoramas
from cvgl_data.types import BBox, ImagerySource


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaPlan:
    """What one area will ask for."""

    name: str
    area_km2: float
    num_references: int
    num_tiles: int
    """Distinct XYZ tiles, which is the number of imagery requests."""
    gsd_m: float
    """Mean ground metres per pixel."""


def plan(recipe: DatasetRecipe) -> list[AreaPlan]:
    """Return what each area of a recipe will ask for; nothing is fetched."""
    check(recipe)
    imagery = open_imagery(recipe.imagery.source, recipe.imagery.options, workers=1)
    with closing(imagery):
        return [
            AreaPlan(
                name=area.name,
                area_km2=area.area_km2,
                num_references=len(windows),
                num_tiles=windows.num_tiles(),
                gsd_m=float(np.mean(windows.gsd_m())) if len(windows) else 0.0,
            )
            for area in areas(recipe)
            for windows in [windows_of(recipe, area, imagery)]
        ]


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
    return windows[: recipe.limit] if recipe.limit else windows


def without_repeats(work: list[tuple[str, Windows]]) -> list[tuple[str, Windows]]:
    """Return named windows of areas, each area without the windows that an earlier one has."""
    seen: set[int] = set()
    unique = []
    for name, windows in work:
        places = (windows.x << 32) + windows.y
        fresh = np.array([place not in seen for place in places.tolist()], bool) if seen else slice(None)
        seen.update(places.tolist())
        unique.append((name, windows[fresh]))
    return unique
