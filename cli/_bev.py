"""The command that makes top views of a dataset's panoramas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ._options import DatasetDir, Json, Overwrite, Workers, new_app, note, print_json, progress_bar, takes_verbosity

bev_app = new_app("")


@bev_app.command()
@takes_verbosity
def bev(
    directory: DatasetDir,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to.", show_default="DIR-bev")
    ] = None,
    size: Annotated[int, typer.Option(min=1, max=8192, metavar="PX", help="Side of a top view.")] = 384,
    fov: Annotated[
        float | None,
        typer.Option(
            metavar="DEG", help="Scale: the opening angle of a camera that looks straight down.", show_default=False
        ),
    ] = None,
    meters_per_px: Annotated[
        float | None, typer.Option(metavar="M", help="Scale: ground metres per pixel.", show_default=False)
    ] = None,
    match_references: Annotated[
        bool, typer.Option("--match-references", help="Scale: cover the ground that each query's reference covers.")
    ] = False,
    camera_height: Annotated[float, typer.Option(metavar="M", help="Height of the camera above the ground.")] = 2.5,
    zenith: Annotated[
        tuple[float, float],
        typer.Option(metavar="TOP BOTTOM", help="Angles of the panoramas' edges from the zenith, if they are cut."),
    ] = (0.0, 180.0),
    oversample: Annotated[int, typer.Option(min=1, metavar="N", help="Sample so many times denser, and average.")] = 1,
    quality: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Quality of the JPEG images.")] = 90,
    format_: Annotated[
        Literal["parquet", "files"],
        typer.Option("--format", help="`parquet`: with the queries' columns; `files`: JPEG images by id."),
    ] = "parquet",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only so many queries of each split.", show_default=False)
    ] = None,
    workers: Workers = 0,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Make the top view (bird's-eye view) of every query once; training makes its own.

    Give one of --fov, --meters-per-px, --match-references.
    """
    if [fov is not None, meters_per_px is not None, match_references].count(True) != 1:
        raise typer.BadParameter("give one of --fov, --meters-per-px, --match-references")
    from cvgl_data.top_views import TopViews, write_top_views

    how = TopViews(
        size_px=size,
        fov_deg=fov,
        meters_per_px=meters_per_px,
        match_references=match_references,
        camera_height_m=camera_height,
        zenith_deg=zenith,
        oversample=oversample,
        jpeg_quality=quality,
    )
    if out is None and ":" in str(directory) and not directory.exists():
        raise typer.BadParameter(f"'{directory}' is no folder of ours; name one to write to", param_hint="--out")
    beside = directory.resolve() if directory.name in ("", "..") else directory
    folder = out or beside.with_name(directory.resolve().name + "-bev")
    with progress_bar(quiet) as bar:
        counts = write_top_views(
            directory,
            folder,
            how,
            format_=format_,
            limit=limit,
            workers=workers,
            overwrite=overwrite,
            progress=bar,
        )
    if json:
        print_json(counts)
    else:
        note(f"{sum(counts.values()):,} top views in {folder}")
