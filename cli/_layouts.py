"""Commands that bring published datasets in and write our own the way published code expects them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ._options import Json, cell, new_app, note, print_json, progress_bar, table, takes_verbosity

layouts_app = new_app("")

Neighbors = Annotated[int, typer.Option(min=1, metavar="N", help="Neighbors per image in the distance map.")]


@layouts_app.command("import")
@takes_verbosity
def import_(
    layout: Annotated[
        str, typer.Argument(metavar="LAYOUT", help="vigor, dress, cvcities, cvglobal, cvusa, cvact, kitti, ...")
    ],
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="The dataset's top folder, perhaps with options: /data/VIGOR?protocol=cross-area"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the new dataset.")],
    link: Annotated[bool, typer.Option("--link", help="Write tables only; images stay where they are.")] = False,
    check_images: Annotated[bool, typer.Option("--check-images", help="Look at every image first.")] = False,
    neighbors: Neighbors = 128,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier import.")] = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Convert a published dataset to ours: check it, compute its distance map, pack or link its images."""
    from cvgl_data.layouts import import_layout

    with progress_bar(quiet) as bar:
        done = import_layout(
            f"{layout}:{path}",
            out,
            link=link,
            verify=check_images,
            neighbors=neighbors,
            overwrite=overwrite,
            progress=bar,
        )
    if json:
        counts = {"references": done.references, "queries": done.queries, "pairs": done.pairs}
        print_json({"folder": str(done.folder), **counts, "checks": [row._asdict() for row in done.checks]})
    else:
        rows = [["references", f"{done.references:,}"], *([name, f"{n:,}"] for name, n in done.queries.items())]
        table("Imported", ["what", "images"], rows)
        if done.checks:
            columns = ["labels", "city", "pairs", "mean px", "max px", "scale", "for m/px", "is m/px", "right"]
            table(
                "Places in pixels against coordinates", columns, [[cell(value) for value in row] for row in done.checks]
            )
    for row in done.checks:
        if not row.agrees:
            note(
                f"warning: {row.labels} labels of {row.city} are {row.mean_px:.1f} px from the coordinates on average, "
                f"at {row.scale:.3f} times the distance from the tile's centre"
            )
    note(f"imported {out}; `cvgl-data show {out}` describes it")


@layouts_app.command("export")
@takes_verbosity
def export(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A dataset folder, or LAYOUT:FOLDER.")],
    layout: Annotated[Literal["vigor", "dress", "cvcities"], typer.Option(help="Whose folders, lists and labels.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="New folder.")],
    neighbors: Neighbors = 128,
    pickles: Annotated[
        bool, typer.Option("--pickle", help="Also write gps dictionaries as pickles, as published code reads them.")
    ] = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Write a dataset as published training code expects it: folders, lists, labels, gps dictionaries."""
    from dataclasses import asdict

    from cvgl_data.layouts import export_layout

    with progress_bar(quiet) as bar:
        done = export_layout(directory, out, layout, neighbors=neighbors, pickles=pickles, progress=bar)
    if json:
        print_json(asdict(done))
    if done.left_out:
        note(f"warning: {done.left_out:,} queries have no positive and are left out")
    if done.padded:
        note(f"{done.padded:,} labels name a near tile that does not cover the query: fewer than four do")
    note(f"exported {out}: {done.references:,} references, {done.queries:,} queries")
