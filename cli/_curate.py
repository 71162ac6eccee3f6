"""Commands that work on what a build has fetched: quality, pairs, distance map, splits, shards, other references."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from ._fetch_options import Settings, takes_fetch_settings
from ._options import (
    DatasetDir,
    Json,
    Out,
    Overrides,
    Revisions,
    cell,
    new_app,
    note,
    print_json,
    progress_bar,
    table,
    takes_verbosity,
)
from ._recipe_options import source_of
from ._report import print_report

curate_app = new_app("")


@curate_app.command()
@takes_verbosity
def decentrality(directory: DatasetDir, json: Json = False, quiet: bool = False) -> None:
    """Pair every query with the references that cover it, and print how far from their centres the queries lie."""
    from cvgl_data import pipeline

    _print_decentrality(pipeline.decentrality(directory), json)


@curate_app.command("distance-map")
@takes_verbosity
def distance_map(
    directory: DatasetDir,
    k: Annotated[int | None, typer.Option(min=1, help="Neighbors per reference.", show_default="the recipe's")] = None,
    overrides: Revisions = None,
    quiet: bool = False,
) -> None:
    """Compute the nearest references of each reference, in great-circle metres."""
    from cvgl_data import pipeline

    with pipeline.resume(directory, overrides or ()) as begun:
        found = begun.distance_map(k)
    note(f"distance map of {found.num_rows} references in {directory}/.cvgl; `cvgl-data pack {directory}` packs it")


@curate_app.command()
@takes_verbosity
def split(directory: DatasetDir, overrides: Revisions = None, json: Json = False, quiet: bool = False) -> None:
    """Curate the queries and divide them into train, validation and test, without a reference in common."""
    from cvgl_data import pipeline

    with pipeline.resume(directory, overrides or ()) as begun:
        counts = begun.split()
    if json:
        print_json(counts)
    else:
        table(
            "Splits",
            ["split", "queries"],
            [[name or "left out", str(count)] for name, count in counts.items()],
        )


@curate_app.command()
@takes_verbosity
def pack(
    directory: DatasetDir,
    format_: Annotated[
        str,
        typer.Option("--format", help="`parquet` packs DIR; `arrow` exports it to --out for `load_from_disk`."),
    ] = "parquet",
    out: Out = None,
    overrides: Revisions = None,
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
        with progress_bar(quiet) as bar, pipeline.resume(directory, overrides or (), progress=bar) as begun:
            note(f"packed {begun.pack()}")
    else:
        raise typer.BadParameter(f"'{format_}' is neither parquet nor arrow", param_hint="--format")


@curate_app.command()
@takes_fetch_settings
@takes_verbosity
def reimage(
    directory: DatasetDir,
    settings: Settings,
    imagery: Annotated[str, typer.Option(metavar="NAME[:LOCATION]", help="Imagery source of the new references.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new dataset.")],
    release: Annotated[
        str | None, typer.Option(metavar="DATE", help="Release of the imagery.", show_default="the newest")
    ] = None,
    overrides: Overrides = None,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Build DIR again with references of another source, all else the same: map tiles give street-to-map retrieval."""
    from cvgl_data import pipeline
    from cvgl_data.recipe import ImageryRecipe, resolve

    given = [f"options.release={dumps(release)}", *(overrides or [])] if release else overrides or []
    source = resolve(ImageryRecipe, source_of(imagery), given)
    with progress_bar(quiet) as bar:
        report = pipeline.reimage(directory, out, source, progress=bar, **settings)
    print_report(out, report, json)


def _print_decentrality(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(rows)
        return
    statistics = ["mean", "median", "p90", "p95", "share_above_half"]
    quarters = ["quarter_1", "quarter_2", "quarter_3", "quarter_4"]
    columns = ["group", "queries", "mean", "median", "p90", "p95", "> .5", "0-.25", ".25-.5", ".5-.75", ".75-1"]
    cells = [[cell(row[key]) for key in ("group", "num_pairs", *statistics, *quarters)] for row in rows]
    table("Decentrality of the positives (0 centre, 1 edge)", columns, cells)
