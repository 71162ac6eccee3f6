"""Commands that work on what a build has fetched: quality, pairs, distance map, splits, shards, other references."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ._fetch_options import Settings, takes_fetch_settings
from ._options import (
    DatasetDir,
    Json,
    Out,
    Overrides,
    Revisions,
    Workers,
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
def quality(
    directory: DatasetDir,
    workers: Workers = 0,
    overrides: Revisions = None,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Look at every fetched image and flag what is undecodable, blurred, dark, repeated, turned or too old."""
    from cvgl_data import pipeline

    with (
        progress_bar(quiet) as bar,
        pipeline.resume(directory, overrides or (), acts_on=("quality",), workers=workers, progress=bar) as begun,
    ):
        rows = [count._asdict() for count in begun.quality()]
        drop = begun.recipe.quality.drop
    if json:
        print_json(rows)
        return
    table(
        f"Quality (what fails {' or '.join(drop)} leaves the dataset)"
        if drop
        else "Quality (nothing leaves the dataset)",
        ["images", "check", "judged", "fail", "dropped"],
        [[cell(value) for value in row.values()] for row in rows],
    )
    note(f"`cvgl-data pack {directory}` packs each image's measures as data/quality")


@curate_app.command()
@takes_verbosity
def decentrality(
    directory: DatasetDir,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also draw figures of the packed dataset into this folder.", show_default=False
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="NAME", help="svg, png or pdf; repeatable.", show_default="svg, png"),
    ] = None,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Pair every query with the references that cover it, and print how far from their centres the queries lie."""
    from cvgl_data import pipeline

    if strange := set(formats or ()) - {"svg", "png", "pdf"}:
        raise typer.BadParameter(f"'{min(strange)}' is none of svg, png, pdf", param_hint="--format")
    _print_decentrality(pipeline.decentrality(directory), json)
    if figures is not None:
        from cvgl_data.dataset import open_dataset
        from cvgl_data.report.figures import write_figures

        drawn = write_figures(open_dataset(directory), figures, formats or ("svg", "png"))
        note(f"{len(drawn)} figures in {figures}")


@curate_app.command("distance-map")
@takes_verbosity
def distance_map(
    directory: DatasetDir,
    k: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Neighbors per row.", show_default="the recipe's")
    ] = None,
    of: Annotated[
        Literal["references", "queries", "queries-to-references"], typer.Option(help="Neighbors of what, among what.")
    ] = "references",
    legacy_degrees: Annotated[
        bool,
        typer.Option("--legacy-degrees", help="The order of the published scripts, which take degrees for radians."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Parquet file, instead of DIR/.cvgl.", show_default=False),
    ] = None,
    overrides: Revisions = None,
    quiet: bool = False,
) -> None:
    """Compute the nearest references of each reference, in great-circle metres; other maps go to a file."""
    from cvgl_data import pipeline

    if out is None and (of != "references" or legacy_degrees):
        raise typer.BadParameter("only the map of the references belongs to a dataset; name a file", param_hint="--out")
    revised = [*([f"distance_map.k={k}"] if k else []), *(overrides or ())]
    keep = out is None
    with (
        progress_bar(quiet) as bar,
        pipeline.resume(directory, revised, acts_on=("distance_map",), keep=keep, progress=bar) as begun,
    ):
        found = begun.distance_map(of=of, legacy_degrees=legacy_degrees, keep=keep)
        if out is not None:
            import pyarrow.parquet as pq

            from cvgl_data.arrow_files import replace_file

            out.parent.mkdir(parents=True, exist_ok=True)
            replace_file(out, lambda part: pq.write_table(found, part.absolute(), compression="zstd"))
    if out is None:
        note(f"distance map of {found.num_rows:,} references; `cvgl-data pack {directory}` packs it")
    else:
        note(f"distance map of {found.num_rows:,} rows in {out}")


@curate_app.command()
@takes_verbosity
def split(directory: DatasetDir, overrides: Revisions = None, json: Json = False, quiet: bool = False) -> None:
    """Curate the queries and divide them into train, validation and test, without a reference in common."""
    from cvgl_data import pipeline

    with pipeline.resume(directory, overrides or (), acts_on=("curation", "split")) as begun:
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
        Literal["parquet", "arrow", "webdataset"],
        typer.Option("--format", help="`parquet` packs DIR; the others export the packed dataset to --out."),
    ] = "parquet",
    pano_size: Annotated[
        str | None,
        typer.Option(metavar="WxH", help="Also pack the queries at this size, in pixels.", show_default=False),
    ] = None,
    reference_size: Annotated[
        int | None,
        typer.Option(min=0, metavar="PX", help="Also pack the references at this side, in pixels.", show_default=False),
    ] = None,
    out: Out = None,
    overrides: Revisions = None,
    quiet: bool = False,
) -> None:
    """Write the Parquet shards that the Hub, `datasets` and training read alike, or export them."""
    from cvgl_data import pipeline

    if format_ != "parquet":
        if out is None:
            raise typer.BadParameter(f"--format {format_} needs a folder to write to", param_hint="--out")
        pipeline.export(directory, out, format_)
        how = (
            "`datasets.load_from_disk` opens each of its folders"
            if format_ == "arrow"
            else "`webdataset` and `datasets` open its tar files"
        )
        note(f"exported {out}: {how}")
        return
    if out is not None:
        raise typer.BadParameter("parquet is packed into DIR itself", param_hint="--out")
    sizes = {"pack.panorama_size": pano_size, "pack.reference_size": reference_size}
    given = [f"{key}={dumps(value)}" for key, value in sizes.items() if value is not None]
    revised = [*given, *(overrides or ())]
    with progress_bar(quiet) as bar, pipeline.resume(directory, revised, acts_on=("pack",), progress=bar) as begun:
        note(f"packed {begun.pack()}")


@curate_app.command()
@takes_fetch_settings
@takes_verbosity
def reimage(
    directory: DatasetDir,
    settings: Settings,
    imagery: Annotated[str, typer.Option(metavar="NAME[:LOCATION]", help="Imagery source of the new references.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the new dataset.")],
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
