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

from ._options import (
    INTERRUPTED,
    Json,
    Overrides,
    Overwrite,
    new_app,
    note,
    print_json,
    progress_bar,
    run,
    table,
    takes_verbosity,
)
from ._recipes import recipes_app

# Before torch is imported: idle OpenMP threads shall sleep. Spinning, they take the cores from other processes;
# on a busy two-core machine a training was seen to take seven times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = new_app("Train and evaluate cross-view geo-localization models on datasets built by cvgl-data.")
app.add_typer(recipes_app("models", "model recipes"), name="recipes")

Data = Annotated[Path, typer.Option("--data", "-d", help="Dataset folder.", show_default=False)]
RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]


@app.command("run")
@takes_verbosity
def run_training(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a TOML file.")],
    data: Data,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder.", show_default="runs/RECIPE")] = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many steps in all.", show_default=False)
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
        note(f"interrupted; {folder} is saved, run the same command again to go on")
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
        typer.Option(help="Write a contact sheet of queries and their best references.", show_default=False),
    ] = None,
    page: Annotated[bool, typer.Option("--page", help="Write a page: map of errors, curves, worst queries.")] = False,
    images: Annotated[bool, typer.Option(help="Put small copies of images into the page.")] = True,
    fov: Annotated[float, typer.Option(min=1, max=360, help="Show only so many degrees of each query.")] = 360.0,
    heading: Annotated[
        Literal["known", "unknown"], typer.Option(help="Whether queries are turned to north, or anyhow.")
    ] = "known",
    fill: Annotated[
        Literal["zero", "crop"], typer.Option(help="Outside the field of view: black, or cut off.")
    ] = "zero",
    seed: Annotated[int, typer.Option(min=0, help="Decides where cameras look.")] = 0,
    legacy: Annotated[
        bool, typer.Option("--legacy", help="Also count as published code does: ties for the query, 1 % rounded down.")
    ] = False,
    calibration: Annotated[
        bool, typer.Option(help="Fit the confidence on the validation split, and measure it.")
    ] = True,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Measure a run on a split: recall, hit rates, metric errors; by city, decentrality and age."""
    from cvgl_models.evaluation import Conditions
    from cvgl_models.evaluation import evaluate as measure
    from cvgl_models.sheets import contact_sheet

    conditions = Conditions(fov_deg=fov, heading=heading, fill=fill, seed=seed)
    with progress_bar(quiet) as bar:
        report = measure(
            folder,
            data,
            split,
            random_init=untrained,
            conditions=conditions,
            legacy=legacy,
            calibrated=calibration,
            page=page,
            page_images=images,
            progress=bar,
        )
        if sheet is not None:
            contact_sheet(folder, data, sheet, split=split, random_init=untrained, progress=bar)
    if json:
        typer.echo(report.to_json(), nl=False)
    else:
        title = f"{folder}{' before training' if untrained else ''} on {split} of {data}"
        table(title, ["", "value"], [list(row) for row in report.rows()])
        heads, rows = report.group_table()
        if rows:
            table("By group", [str(head) for head in heads], [[str(value) for value in row] for row in rows])
    if page:
        note(f"the page is below {folder / 'eval'}")
    if sheet is not None:
        note(f"contact sheet: {sheet}")


@app.command()
@takes_verbosity
def locate(
    folder: RunDir,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Equirectangular panoramas.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Dataset whose references are searched.", show_default="the last one"),
    ] = None,
    top_k: Annotated[int, typer.Option("--top", min=1, help="Candidates per image.")] = 5,
    heading: Annotated[float, typer.Option(help="Compass bearing of the panoramas' centre column, degrees.")] = 0.0,
    near: Annotated[
        str | None,
        typer.Option(metavar="LON,LAT,METRES", help="Search only within this radius.", show_default=False),
    ] = None,
    as_geojson: Annotated[bool, typer.Option("--geojson", help="Print the result as GeoJSON.")] = False,
    json: Json = False,
    quiet: bool = False,
) -> None:
    """Say where panoramas were taken: the best references of a dataset, with scores and a confidence."""
    from cvgl_models.serving import geojson, summary
    from cvgl_models.serving import locate as find

    circle = _circle(near) if near else None
    with progress_bar(quiet) as bar:
        found = find(folder, images, data, top_k=top_k, heading_deg=heading, near=circle, progress=bar)
    if json or as_geojson:
        print_json(geojson(found) if as_geojson else [asdict(location) for location in found])
        return
    for location in found:
        rows = [
            [str(rank), f"{c.lon:.6f}", f"{c.lat:.6f}", f"{c.score:.4f}", c.reference_id]
            for rank, c in enumerate(location.candidates, start=1)
        ]
        table(summary(location), ["rank", "lon", "lat", "score", "reference"], rows)


def _circle(text: str) -> tuple[float, float, float]:
    try:
        lon, lat, radius_m = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not LON,LAT,METRES", param_hint="--near") from None
    return lon, lat, radius_m


@app.command()
@takes_verbosity
def export(
    folder: RunDir,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    name: Annotated[str, typer.Option(help="Title of the model card.", show_default="the recipe's")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights, as in apache-2.0.", show_default=False)] = "",
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write both branches as ONNX.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Push to this model repository.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
    overwrite: Overwrite = False,
    quiet: bool = False,
) -> None:
    """Write a trained model as a Hub repository: weights, recipe, model card with what was measured."""
    from cvgl_models.export import export_model, export_onnx, push_model

    note(f"exported {export_model(folder, out, name=name, licence=licence, overwrite=overwrite)}")
    if onnx:
        export_onnx(folder, out / "onnx")
    if push:
        note(f"pushed to {push_model(out, push, private=private)}")


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


def main() -> None:
    """Entry point of ``cvgl-train``."""
    run(app, "interrupted; the last checkpoint is kept, run the same command again to go on")


if __name__ == "__main__":
    main()
