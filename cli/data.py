"""``cvgl-data``: build, inspect and pack cross-view datasets. Each command parses, calls one function, prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvgl_data.recipe import DatasetRecipe

from ._fetch_options import Rate, Settings, takes_fetch_settings
from ._options import (
    PARTIAL,
    DatasetDir,
    DryRun,
    Json,
    Out,
    new_app,
    note,
    print_json,
    progress_bar,
    run,
    table,
    takes_verbosity,
)
from ._plan import print_plan
from ._recipe_options import takes_recipe
from ._recipes import recipes_app
from ._simulate import simulate_app

if TYPE_CHECKING:
    from cvgl_data.pipeline import Report

app = new_app("Build cross-view geo-localization datasets: overhead references, street-level queries, exact labels.")
fetch_app = new_app("Fetch one kind of image into a build's workspace.")
app.add_typer(fetch_app, name="fetch")
app.add_typer(recipes_app("datasets", "dataset recipes"), name="recipes")
app.add_typer(simulate_app, name="simulate")


@app.command()
@takes_verbosity
def cities(json: Json = False, quiet: bool = False) -> None:
    """List the city catalogue: area, source, licence, and the datasets of the literature that use each city."""
    from cvgl_data.cities import catalog

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
    out: Out = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Build a dataset: plan, fetch, pair, distance map, split, pack. Run it again to go on after an interruption."""
    from cvgl_data import pipeline, planning

    if dry_run:
        print_plan(recipe, planning.plan(recipe, rate_per_s=settings["rate_per_s"]))
        return
    folder = out or Path(recipe.name)
    with progress_bar(quiet) as bar:
        report = pipeline.build(recipe, folder, progress=bar, **settings)
    _finish(folder, report, json)


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
    _exit_if_failed(pipeline.count_failed(counts))


@fetch_app.command("references")
@takes_recipe
@takes_fetch_settings
@takes_verbosity
def fetch_references(
    recipe: DatasetRecipe, settings: Settings, out: Out = None, json: Json = False, quiet: bool = False
) -> None:
    """Fetch the overhead references of a recipe into DIR/.cvgl."""
    _fetch("imagery", recipe, settings, out, json, quiet)


@fetch_app.command("queries")
@takes_recipe
@takes_fetch_settings
@takes_verbosity
def fetch_queries(
    recipe: DatasetRecipe, settings: Settings, out: Out = None, json: Json = False, quiet: bool = False
) -> None:
    """Fetch the street-level queries of a recipe into DIR/.cvgl."""
    _fetch("panoramas", recipe, settings, out, json, quiet)


@app.command()
@takes_verbosity
def decentrality(directory: DatasetDir, json: Json = False, quiet: bool = False) -> None:
    """Pair every query with the references that cover it, and print how far from their centres the queries lie."""
    from cvgl_data import pipeline

    _print_decentrality(pipeline.decentrality(directory), json)


@app.command("distance-map")
@takes_verbosity
def distance_map(
    directory: DatasetDir,
    k: Annotated[int | None, typer.Option(min=1, help="Neighbors per reference.", show_default="the recipe's")] = None,
    quiet: bool = False,
) -> None:
    """Compute the nearest references of each reference, in great-circle metres."""
    from cvgl_data import pipeline

    with pipeline.resume(directory) as begun:
        found = begun.distance_map(k)
    note(f"distance map of {found.num_rows} references in {directory}/.cvgl; `cvgl-data pack {directory}` packs it")


@app.command()
@takes_verbosity
def split(directory: DatasetDir, json: Json = False, quiet: bool = False) -> None:
    """Divide the queries into train, validation and test, without a reference in common."""
    from cvgl_data import pipeline

    with pipeline.resume(directory) as begun:
        counts = begun.split()
    if json:
        print_json(counts)
    else:
        table(
            "Splits",
            ["split", "queries"],
            [[name or "left out", str(count)] for name, count in counts.items()],
        )


@app.command()
@takes_verbosity
def pack(
    directory: DatasetDir,
    format_: Annotated[
        str,
        typer.Option("--format", help="`parquet` packs DIR; `arrow` exports it to --out for `load_from_disk`."),
    ] = "parquet",
    out: Out = None,
    quiet: bool = False,
) -> None:
    """Write the Parquet shards that the Hub, `datasets` and training read alike."""
    from cvgl_data import pipeline

    if format_ == "arrow":
        if out is None:
            raise typer.BadParameter("--format arrow needs a folder to write to", param_hint="--out")
        pipeline.export(directory, out)
        note(f"exported {out}; `datasets.load_from_disk` opens each of its folders")
    elif format_ == "parquet":
        if out is not None:
            raise typer.BadParameter("parquet is packed into DIR itself", param_hint="--out")
        with progress_bar(quiet) as bar, pipeline.resume(directory, progress=bar) as begun:
            note(f"packed {begun.pack()}")
    else:
        raise typer.BadParameter(f"'{format_}' is neither parquet nor arrow", param_hint="--format")


@app.command()
@takes_verbosity
def show(directory: DatasetDir, json: Json = False, quiet: bool = False) -> None:
    """Show what a dataset holds: counts by split and area, sources, licences, failures."""
    from cvgl_data.dataset import open_dataset
    from cvgl_data.summary import describe

    summary = describe(open_dataset(directory), directory)
    if json:
        print_json(summary)
    else:
        _print_summary(summary)


@app.command()
@takes_verbosity
def verify(
    directory: DatasetDir,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image as well.")] = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Check every hash, size and reference of a dataset again, and say what is wrong."""
    from cvgl_data import verification

    with progress_bar(quiet) as bar:
        problems = verification.verify(directory, decode=decode, progress=bar)
    if json:
        print_json([asdict(problem) for problem in problems])
    elif problems:
        table("Problems", ["where", "item", "what"], [[item.where, item.item, item.what] for item in problems])
    else:
        note(f"{directory} is sound")
    if problems:
        note(f"{len(problems)} problems")
        raise typer.Exit(PARTIAL)


def _finish(folder: Path, report: Report, json: bool) -> None:
    """Print what a build ended with, and exit with 3 when some items failed."""
    if json:
        print_json({**asdict(report), "manifest": str(report.manifest)})
    else:
        rows = [[kind, name, f"{n:,}"] for kind, counts in report.outcomes.items() for name, n in counts.items()]
        table("Fetched", ["kind", "outcome", "images"], rows)
        rows = [[name or "left out", f"{n:,}"] for name, n in report.splits.items()]
        table("Queries", ["split", "queries"], rows)
    if report.num_constant:
        note(
            f"warning: {report.num_constant} references share their bytes with others: open water, or a placeholder; "
            "their status is constant_tile"
        )
    num_queries = report.outcomes["queries"].get("ok", 0)
    if num_queries and not report.num_covered:
        note(f"warning: none of the {num_queries} queries is covered by any reference: there are no pairs")
    elif report.num_covered < num_queries:
        note(f"warning: {num_queries - report.num_covered} of {num_queries} queries are covered by no reference")
    note(f"built {folder}; `cvgl-data show {folder}` describes it")
    _exit_if_failed(report.num_failed)


def _exit_if_failed(num_failed: int) -> None:
    if num_failed:
        note(f"{num_failed} items failed; the same command asks again for those that may heal, --retry-failed for all")
        raise typer.Exit(PARTIAL)


def _print_decentrality(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(rows)
        return
    statistics = ["mean", "median", "p90", "p95", "share_above_half"]
    quarters = ["quarter_1", "quarter_2", "quarter_3", "quarter_4"]
    columns = ["group", "queries", "mean", "median", "p90", "p95", "> .5", "0-.25", ".25-.5", ".5-.75", ".75-1"]
    cells = [[_cell(row[key]) for key in ("group", "num_pairs", *statistics, *quarters)] for row in rows]
    table("Decentrality of the positives (0 centre, 1 edge)", columns, cells)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _print_summary(summary: dict[str, Any]) -> None:
    for name, rows in summary.items():
        if isinstance(rows, list) and rows:
            table(name, list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])


def main() -> None:
    """Entry point of ``cvgl-data``."""
    run(app, "interrupted; what was fetched is kept, run the same command again to go on")


if __name__ == "__main__":
    main()
