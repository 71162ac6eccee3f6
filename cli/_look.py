"""Commands that only look at a dataset."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ._options import (
    PARTIAL,
    DatasetDir,
    Json,
    new_app,
    note,
    print_json,
    progress_bar,
    rows_table,
    table,
    takes_verbosity,
)

look_app = new_app("")


@look_app.command()
@takes_verbosity
def show(directory: DatasetDir, json: Json = False, quiet: bool = False) -> None:
    """Show what a dataset holds: counts by split and area, sources, licences, failures."""
    from cvgl_data.dataset import open_dataset
    from cvgl_data.summary import describe

    summary = describe(open_dataset(directory), directory)
    if json:
        print_json(summary)
    else:
        for name, rows in summary.items():
            rows_table(name, rows)


@look_app.command()
@takes_verbosity
def verify(
    directory: DatasetDir,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every image as well.")] = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Check every hash, size and reference of a dataset again, and say what is wrong."""
    from cvgl_data.shards import verification

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


@look_app.command()
@takes_verbosity
def stats(directory: DatasetDir, json: Json = False, quiet: bool = False) -> None:
    """Print what a paper's table asks for: decentrality, queries per reference, dates, sources, licences, quality."""
    from cvgl_data.dataset import open_dataset
    from cvgl_data.statistics import read_extras, statistics, tables

    failures, quality = read_extras(directory)
    found = statistics(open_dataset(directory), failures=failures, quality=quality)
    if json:
        print_json(tables(found))
        return
    for name, rows in tables(found).items():
        rows_table(name, rows)


@look_app.command()
@takes_verbosity
def report(
    directory: DatasetDir,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The page to write.", show_default="DIR/report/index.html"),
    ] = None,
    images: Annotated[bool, typer.Option(help="Put small copies of images into the page.")] = True,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Chooses the samples.")] = 0,
    quiet: bool = False,
) -> None:
    """Write one HTML page about a dataset: map, pairs, figures, dates, sources, failures, samples. Needs no network."""
    from cvgl_data.report import write_report

    note(f"wrote {write_report(directory, out, seed=seed, with_images=images)}")
