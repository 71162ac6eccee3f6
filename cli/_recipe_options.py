"""The options that describe a dataset, shared by every command that takes a dataset recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cvgl_data.aoi.cities import find_city
from cvgl_data.recipe import DatasetRecipe, load_toml, resolve

from ._options import Overrides, RecipeName, graft


def dataset_recipe(
    recipe: RecipeName = None,
    city: Annotated[
        list[str] | None,
        typer.Option(
            "--city", metavar="NAME", help="A city of the catalogue (see `cities`); repeatable.", show_default=False
        ),
    ] = None,
    bbox: Annotated[
        list[str] | None,
        typer.Option("--bbox", metavar="[NAME=]W,S,E,N", help="A box in degrees; repeatable.", show_default=False),
    ] = None,
    area_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--area-file",
            metavar="FILE",
            help="A file of polygons (GeoJSON, shapefile...); repeatable.",
            show_default=False,
        ),
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(
            "--clip",
            metavar="[NAME=]W,S,E,N",
            help="Keep only this box of the city or file; repeatable, each box becomes an area.",
            show_default=False,
        ),
    ] = None,
    zoom: Annotated[
        int | None, typer.Option(metavar="N", help="Zoom of the references, 0 to 23.", show_default="18")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of a reference's side that the next one repeats.", show_default="0"),
    ] = None,
    imagery: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:LOCATION]",
            help="Imagery source: esri, esri-live, xyz:TEMPLATE, folder:PATH, simulated, simulated-map.",
            show_default="esri",
        ),
    ] = None,
    panoramas: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:LOCATION]",
            help="Panorama source: panoramax, mapillary, google, google-static, folder:PATH, simulated.",
            show_default="panoramax",
        ),
    ] = None,
    pano_ids: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of panorama ids (txt, csv, parquet) instead of discovery.", show_default=False
        ),
    ] = None,
    spacing_m: Annotated[
        float | None,
        typer.Option(metavar="METRES", help="Keep panoramas at least so far apart.", show_default=False),
    ] = None,
    max_queries: Annotated[
        int | None,
        typer.Option(metavar="N", help="At most this many panoramas per area; 0: all.", show_default=False),
    ] = None,
    captured_after: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only panoramas of this day and later.", show_default=False),
    ] = None,
    captured_before: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only panoramas before this day.", show_default=False)
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(
            metavar="DATE", help="Release of the imagery, for sources that have them.", show_default="the newest"
        ),
    ] = None,
    test_area: Annotated[
        list[str] | None,
        typer.Option(
            "--test-area",
            metavar="NAME",
            help="Area that tests while the others train; repeatable.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of every random choice.", show_default="0")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Only N references in the middle of each area and N panoramas there; 0: all.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
) -> DatasetRecipe:
    """Return the recipe that a command line describes: the named one, then the options, then ``--set``."""
    tables = load_toml(recipe, "datasets") if recipe else {}
    resolve(DatasetRecipe, {"name": "unnamed", **tables})  # what follows trusts the file's types
    described = [
        *({"city": find_city(name).key} for name in city or ()),
        *(_named(box, "bbox") for box in bbox or ()),
        *({"file": str(path)} for path in area_file or ()),
    ]
    if described:
        tables["areas"] = described
    if clip:
        tables["areas"] = _clipped(tables.get("areas", []), clip)
    if test_area:
        tables.setdefault("split", {}).update(protocol="cross-area", test_areas=test_area)
    for table, named in (("imagery", imagery), ("panoramas", panoramas)):
        if named:
            tables[table] = {**tables.get(table, {}), **source_of(named)}
    values = {
        "seed": seed,
        "limit": limit,
        "grid.zoom": zoom,
        "grid.overlap": overlap,
        "panoramas.pano_ids": str(pano_ids) if pano_ids else None,
        "panoramas.spacing_m": spacing_m,
        "panoramas.max": max_queries,
        "panoramas.captured_after": captured_after,
        "panoramas.captured_before": captured_before,
        "imagery.options.release": release,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
    tables.setdefault("name", _default_name(tables.get("areas", [])))
    return resolve(DatasetRecipe, tables, [*given, *(overrides or [])])


def source_of(text: str) -> dict[str, Any]:
    """Read ``NAME[:LOCATION]`` into the tables of a recipe."""
    name, colon, location = text.partition(":")
    return {"source": name, "options": {"location": location} if colon else {}}


def _named(text: str, key: str) -> dict[str, Any]:
    """Read ``[NAME=]W,S,E,N``."""
    name, _, numbers = text.rpartition("=")
    try:
        box = [float(number) for number in numbers.split(",")]
    except ValueError:
        box = []
    if len(box) != 4:
        raise typer.BadParameter(f"'{text}' is not [NAME=]WEST,SOUTH,EAST,NORTH in degrees", param_hint=f"--{key}")
    return {key: box, **({"name": name} if name else {})}


def _clipped(areas: list[dict[str, Any]], clips: list[str]) -> list[dict[str, Any]]:
    """Return one area per clip box, each a part of the one area given."""
    if len(areas) != 1:
        raise typer.BadParameter(f"clips one area, {len(areas)} are given", param_hint="--clip")
    base = areas[0]
    boxes = [_named(text, "clip") for text in clips]
    if len(boxes) > 1:
        stem = base.get("name") or base.get("city") or "area"
        boxes = [{"name": f"{stem}-{index}", **box} for index, box in enumerate(boxes, start=1)]
    return [{**base, **box} for box in boxes]


def _default_name(areas: list[dict[str, Any]]) -> str:
    """Name a recipe after its first area."""
    first = areas[0] if areas else {}
    return str(first.get("city") or first.get("name") or Path(first.get("file", "dataset")).stem)


def takes_recipe(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace a command's ``recipe`` parameter by the options of `dataset_recipe`."""
    return graft(command, "recipe", dataset_recipe)
