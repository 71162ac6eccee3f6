"""Commands that publish a dataset on the Hub and bring one back."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ._fetch_options import Rate
from ._options import (
    INTERRUPTED,
    PARTIAL,
    DatasetDir,
    DryRun,
    Json,
    Overrides,
    Workers,
    new_app,
    note,
    print_json,
    progress_bar,
    table,
    takes_verbosity,
    tell,
)

hub_app = new_app("")

MOST_ROWS = 30
"""Of a table of what went wrong."""


@hub_app.command()
@takes_verbosity
def push(
    directory: DatasetDir,
    repo_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="The dataset repository.")],
    with_images: Annotated[
        bool, typer.Option("--with-images", help="Push the pixels too, if every row's licence allows it.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch to push to.", show_default="main")
    ] = None,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Commit message.", show_default=False)] = "",
    keep_card: Annotated[bool, typer.Option("--keep-card", help="Leave the README.md that is on the Hub.")] = False,
    refused_to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="List the images that may not be published in this CSV file.", show_default=False
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Publish a dataset: ids, positions, hashes and labels; pixels only on request and where licences allow it."""
    from cvgl_data import hub

    try:
        with progress_bar(quiet) as bar:
            pushed = hub.push(
                directory,
                repo_id,
                with_images=with_images,
                private=private,
                dry_run=dry_run,
                revision=revision,
                message=message,
                keep_card=keep_card,
                refused_to=refused_to,
                progress=bar,
            )
    except KeyboardInterrupt:
        tell("interrupted; what was uploaded is kept, run the same command again to go on")
        os._exit(INTERRUPTED)  # a normal exit waits for the uploads of the client's threads, which may never end
    if json:
        print_json({**asdict(pushed), "bytes": pushed.num_bytes})
        return
    if dry_run:
        table("Files", ["path", "bytes"], [[file.path, f"{file.bytes:,}"] for file in pushed.files])
    said = "would push" if dry_run else "pushed"
    note(f"{said} {len(pushed.files)} files, {pushed.num_bytes / 1e6:,.1f} MB, to {pushed.url}")


@hub_app.command()
@takes_verbosity
def pull(
    origin: Annotated[str, typer.Argument(metavar="USER/NAME", help="A dataset repository, or a folder like one.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the dataset.")],
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit.", show_default="main")
    ] = None,
    overrides: Overrides = None,
    accept_terms: Annotated[
        list[str] | None,
        typer.Option("--accept-terms", metavar="NAME", help="Accept a source's terms of use.", show_default=False),
    ] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Also keep images that have changed since they were published.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again for what failed for good.")] = False,
    workers: Workers = 0,
    rate: Rate = 10.0,
    connections: Annotated[int, typer.Option(min=1, metavar="N", help="Requests in flight per host.")] = 8,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Make a published dataset in a folder: fetch every image from its source again and compare it with its hash."""
    from cvgl_data import hub

    with progress_bar(quiet) as bar:
        found = hub.pull(
            origin,
            out,
            revision=revision,
            overrides=overrides or (),
            accept_terms=accept_terms or (),
            allow_changed=allow_changed,
            retry_failed=retry_failed,
            workers=workers,
            rate_per_s=rate,
            connections=connections,
            progress=bar,
        )
    if json:
        print_json({**asdict(found), "folder": str(found.folder), "is_identical": found.is_identical})
    else:
        rows = [[row.kind, row.id, row.outcome, row.expected[:12], row.found[:12] or "-"] for row in found.rows]
        if rows:
            table("Not as published", ["kind", "id", "outcome", "published sha256", "found"], rows[:MOST_ROWS])
        if len(rows) > MOST_ROWS:
            note(f"and {len(rows) - MOST_ROWS:,} more; --json lists all")
    for line in found.notes:
        note(line)
    state = (
        "every data file is as published"
        if found.is_identical
        else f"{len(found.rows)} images and {len(found.other_files)} data files are not as published"
    )
    note(f"{found.folder}: {state}")
    if not found.is_identical:
        raise typer.Exit(PARTIAL)
