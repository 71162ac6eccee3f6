"""``cvgl-train``: train, evaluate and use models on built datasets. Each command parses, calls one function, prints."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer

from cvgl_data.errors import CvglError

from ._evaluating import evaluate_poses, evaluate_retrieval
from ._models import RunDir, combine, export
from ._options import (
    FAILED,
    INTERRUPTED,
    PARTIAL,
    RECIPE_HELP,
    Json,
    Overrides,
    Overwrite,
    new_program,
    note,
    print_json,
    progress_bar,
    run,
    table,
    takes_verbosity,
    tell,
    tell_error,
)
from ._recipes import recipes_app

# Before torch is imported: idle OpenMP threads shall sleep. Spinning, they take the cores from other processes;
# on a busy two-core machine a training was seen to take seven times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = new_program("Train and evaluate cross-view geo-localization models on datasets built by cvgl-data.")
app.add_typer(recipes_app("models", "model recipes"), name="recipes")

Data = Annotated[
    Path, typer.Option("--data", "-d", metavar="DIR", help="Dataset folder, or LAYOUT:FOLDER.", show_default=False)
]
Split = Annotated[str, typer.Option(metavar="NAME", help="train, validation or test.")]


@app.command("run")
@takes_verbosity
def run_training(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE_HELP)],
    data: Data,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run folder.", show_default="runs/RECIPE")
    ] = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    max_steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after so many steps in all.", show_default=False)
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Stop after this time.", show_default=False)
    ] = None,
    quiet: bool = False,
) -> None:
    """Train a model, or go on with a run that was interrupted."""
    from cvgl_models.recipe import load_recipe
    from cvgl_models.training import train

    resolved = load_recipe(recipe, overrides or ())
    folder = out or Path("runs") / resolved.name
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, one talks
    with progress_bar(quiet or not is_first) as bar, _stop_on_signal() as stopped:
        train(
            resolved,
            data,
            folder,
            max_steps=max_steps,
            time_limit_s=time_limit,
            should_stop=lambda: bool(stopped),
            overwrite=overwrite,
            progress=bar,
        )
    if stopped:
        tell(f"interrupted; {folder} is saved, run the same command again to go on")
        raise typer.Exit(INTERRUPTED)
    if is_first:
        note(f"trained {folder}; `cvgl-train evaluate {folder} --data {data}` measures it")


@app.command()
@takes_verbosity
def evaluate(
    folder: RunDir,
    data: Data,
    split: Split = "test",
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Measure the weights that training began with, for comparison.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a contact sheet of queries and their best references.", show_default=False
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="Write a page: map of errors, curves, worst queries.")] = False,
    images: Annotated[bool, typer.Option(help="Put small copies of images into the page.")] = True,
    fov: Annotated[
        float, typer.Option(min=1, max=360, metavar="DEG", help="Show only so many degrees of each query.")
    ] = 360.0,
    heading: Annotated[
        Literal["known", "unknown"], typer.Option(help="Whether queries are turned to north, or anyhow.")
    ] = "known",
    heading_noise: Annotated[
        float | None,
        typer.Option(
            min=0, max=180, metavar="DEG", help="Localization: headings are known to so many degrees.", show_default="0"
        ),
    ] = None,
    pairs: Annotated[
        Literal["positive", "covering"],
        typer.Option(help="Localization: look in each query's positive, or in every reference that covers it."),
    ] = "positive",
    fill: Annotated[
        Literal["zero", "crop"], typer.Option(help="Outside the field of view: black, or cut off.")
    ] = "zero",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Decides where cameras look.")] = 0,
    legacy: Annotated[
        bool, typer.Option("--legacy", help="Also count as published code does: ties for the query, 1 % rounded down.")
    ] = False,
    calibration: Annotated[
        bool, typer.Option(help="Fit the confidence on the validation split, and measure it.")
    ] = True,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Measure a run on a split: recall and hit rates, or metres and degrees; by city, decentrality and age."""
    from cvgl_models.run_folder import run_recipe
    from cvgl_models.systems import task_of

    if sheet is not None and sheet.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise typer.BadParameter(f"'{sheet}' is no name of a picture; end it in .png", param_hint="--sheet")
    if task_of(run_recipe(folder)) == "localization":
        if sheet is not None or legacy or fill != "zero":
            raise typer.BadParameter("--sheet, --legacy and --fill are for runs of retrieval systems")
        if heading == "unknown" and heading_noise is not None:
            raise typer.BadParameter("--heading unknown is --heading-noise 180; give one of the two")
        noise = 180.0 if heading == "unknown" else heading_noise or 0.0
        conditions = {"heading_noise_deg": noise, "fov_deg": fov, "pairs": pairs, "seed": seed}
        evaluate_poses(
            folder, data, split, conditions, untrained=untrained, page=page, images=images, json=json, quiet=quiet
        )
        return
    if heading_noise is not None or pairs != "positive":
        raise typer.BadParameter("--heading-noise and --pairs are for runs of localization systems")
    evaluate_retrieval(
        folder,
        data,
        split,
        {"fov_deg": fov, "heading": heading, "fill": fill, "seed": seed},
        untrained=untrained,
        sheet=sheet,
        page=page,
        images=images,
        legacy=legacy,
        calibration=calibration,
        json=json,
        quiet=quiet,
    )


@app.command()
@takes_verbosity
def locate(
    folder: RunDir,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Equirectangular panoramas.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", "-d", metavar="DIR", help="Dataset whose references are searched.", show_default="the last one"
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Candidates per image.")] = 5,
    heading: Annotated[
        float,
        typer.Option(
            min=-360, max=360, metavar="DEG", help="Compass bearing of the panoramas' centre column, degrees."
        ),
    ] = 0.0,
    near: Annotated[
        str | None,
        typer.Option(metavar="LON,LAT,METRES", help="Search only within this radius.", show_default=False),
    ] = None,
    refine: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A localization run: say where in the best reference, and the heading.",
            show_default=False,
        ),
    ] = None,
    refine_top: Annotated[
        int, typer.Option(min=1, metavar="N", help="Refine in so many candidates; the one that fits best counts.")
    ] = 1,
    heading_noise: Annotated[
        float,
        typer.Option(min=0, max=180, metavar="DEG", help="How far off --heading may be, for --refine; 180: unknown."),
    ] = 0.0,
    as_geojson: Annotated[bool, typer.Option("--geojson", help="Print the result as GeoJSON.")] = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Say where panoramas were taken: the best references of a dataset, with scores and a confidence."""
    from cvgl_models.serving import geojson, summary
    from cvgl_models.serving import locate as find

    circle = _circle(near) if near else None
    failed: list[CvglError] = []
    if refine is None and (refine_top != 1 or heading_noise):
        raise typer.BadParameter("--refine-top and --heading-noise are for --refine")
    with progress_bar(quiet) as bar:
        found = find(
            folder,
            images,
            data,
            top_k=top_k,
            heading_deg=heading,
            near=circle,
            refine=refine,
            refine_top=refine_top,
            heading_noise_deg=heading_noise,
            on_error=failed.append if len(images) > 1 else None,
            progress=bar,
        )
    if json or as_geojson:
        print_json(geojson(found) if as_geojson else [asdict(location) for location in found])
    else:
        for location in found:
            rows = [
                [str(rank), f"{c.lon:.6f}", f"{c.lat:.6f}", f"{c.score:.4f}", c.reference_id]
                for rank, c in enumerate(location.candidates, start=1)
            ]
            table(summary(location), ["rank", "lon", "lat", "score", "reference"], rows)
    for error in failed:
        tell_error(error)
    if failed:
        raise typer.Exit(PARTIAL if found else FAILED)


def _circle(text: str) -> tuple[float, float, float]:
    try:
        lon, lat, radius_m = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not LON,LAT,METRES", param_hint="--near") from None
    return lon, lat, radius_m


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """Yield a list that the first SIGINT or SIGTERM makes true; a second one ends the program at once."""
    stopped: list[int] = []

    def first(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        signal.signal(number, signal.default_int_handler)
        note("stopping after this step")

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


app.command()(takes_verbosity(combine))
app.command()(takes_verbosity(export))


def main() -> None:
    """Entry point of ``cvgl-train``."""
    run(app, "interrupted; the last checkpoint is kept, run the same command again to go on")


if __name__ == "__main__":
    main()
