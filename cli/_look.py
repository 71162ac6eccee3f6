"""Commands that only look at a dataset."""

from __future__ import annotations

from dataclasses import asdict
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
