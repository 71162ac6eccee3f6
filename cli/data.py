"""``cvgl-data``: build, inspect and pack cross-view datasets. Each command parses, calls one function, prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cvgl_data.recipe import DatasetRecipe

from ._bev import bev_app
from ._curate import curate_app
from ._fetch_options import Rate, Settings, takes_fetch_settings
from ._hub import hub_app
from ._layouts import layouts_app
from ._look import look_app
from ._options import (
    DryRun,
    Json,
    new_app,
    new_program,
    print_json,
    progress_bar,
    run,
    table,
    takes_verbosity,
)
from ._plan import print_plan
from ._recipe_options import takes_recipe
from ._recipes import recipes_app
from ._report import exit_if_failed, print_report
from ._simulate import simulate_app

app = new_program(
    "Build cross-view geo-localization datasets: overhead references, street-level queries, exact labels."
)
fetch_app = new_app("Fetch one kind of image into a build's workspace.")
app.add_typer(fetch_app, name="fetch")
app.add_typer(recipes_app("datasets", "dataset recipes"), name="recipes")
app.add_typer(simulate_app, name="simulate")

BuildOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="DIR", help="Folder of the dataset.", show_default="the recipe's name"),
]


@app.command()
@takes_verbosity
def cities(json: Json = False, quiet: bool = False) -> None:
    """List the city catalogue: area, source, licence, and the datasets of the literature that use each city."""
    from cvgl_data.aoi.cities import catalog

    found = catalog()
    if json:
        print_json([asdict(city) for city in found])
        return
    rows = [[city.key, city.country, ", ".join(city.datasets), city.source, city.licence] for city in found]
    table("Cities", ["city", "country", "datasets", "polygon by", "its licence"], rows)


@app.command()
@takes_recipe
@takes_verbosity
def plan(
    recipe: DatasetRecipe,
    rate: Rate = 10.0,
    discover: Annotated[
        bool, typer.Option("--discover", help="Ask the panorama source how many panoramas there are.")
    ] = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Say what a build will ask for and cost: references, requests per host, bytes, time, money, quota, terms."""
    from cvgl_data import planning

    found = planning.plan(recipe, rate_per_s=rate, discover=discover)
    if json:
        print_json(asdict(found))
    else:
        print_plan(recipe, found)


@app.command()
@takes_recipe
@takes_fetch_settings
@takes_verbosity
def build(
    recipe: DatasetRecipe,
    settings: Settings,
    out: BuildOut = None,
    dry_run: DryRun = False,
    page: Annotated[bool, typer.Option("--report/--no-report", help="Write DIR/report/index.html at the end.")] = True,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Build a dataset: fetch, quality, pair, distance map, split, pack, report. Run it again after an interruption."""
    from cvgl_data import pipeline, planning

    if dry_run:
        planned = planning.plan(recipe, rate_per_s=settings["rate_per_s"])
        if json:
            print_json(asdict(planned))
        else:
            print_plan(recipe, planned)
        return
    folder = out or Path(recipe.name)
    with progress_bar(quiet) as bar:
        report = pipeline.build(recipe, folder, progress=bar, **settings)
        if page:
            from cvgl_data.report import write_report

            bar.stage("report", None)
            write_report(folder)
    print_report(folder, report, json)


def _fetch(kind: str, recipe: DatasetRecipe, settings: Settings, out: Path | None, json: bool, quiet: bool) -> None:
    from cvgl_data import pipeline

    folder = out or Path(recipe.name)
    with (
        progress_bar(quiet) as bar,
        pipeline.start(recipe, folder, kinds=[kind], progress=bar, **settings) as begun,
    ):
        counts = begun.fetch_references() if kind == "imagery" else begun.fetch_queries()
    if json:
        print_json(counts)
    else:
        table(f"Fetched {kind}", ["outcome", "images"], [[name, f"{n:,}"] for name, n in counts.items()])
    exit_if_failed(pipeline.count_failed(counts))


@fetch_app.command("references")
@takes_recipe
@takes_fetch_settings
@takes_verbosity
def fetch_references(
    recipe: DatasetRecipe, settings: Settings, out: BuildOut = None, json: Json = False, quiet: bool = False
) -> None:
    """Fetch the overhead references of a recipe into DIR/.cvgl."""
    _fetch("imagery", recipe, settings, out, json, quiet)


@fetch_app.command("queries")
@takes_recipe
@takes_fetch_settings
@takes_verbosity
def fetch_queries(
    recipe: DatasetRecipe, settings: Settings, out: BuildOut = None, json: Json = False, quiet: bool = False
) -> None:
    """Fetch the street-level queries of a recipe into DIR/.cvgl."""
    _fetch("panoramas", recipe, settings, out, json, quiet)


app.add_typer(curate_app)
app.add_typer(look_app)
app.add_typer(bev_app)
app.add_typer(hub_app)
app.add_typer(layouts_app)


def main() -> None:
    """Entry point of ``cvgl-data``."""
    run(app, "interrupted; what was done is kept, run the same command again to go on")


if __name__ == "__main__":
    main()
