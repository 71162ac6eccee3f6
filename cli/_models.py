"""Commands of ``cvgl-train`` that make a model of trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._options import Overwrite, note

RunDir = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def combine(
    panorama_run: Annotated[Path, typer.Argument(metavar="PANORAMA_RUN", help="A run that compares panoramas.")],
    bev_run: Annotated[Path, typer.Argument(metavar="BEV_RUN", help="A run that compares their top views.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.", show_default=False)],
    panorama_weight: Annotated[
        str,
        typer.Option(
            metavar="SHARE",
            help="Of the panorama's similarity in the sum, 0 to 1; or validation: the best on that split.",
        ),
    ] = "0.5",
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Dataset whose validation split chooses the weight.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    quiet: bool = False,
) -> None:
    """Make two trained retrievals one that is searched by both (EP-BEV)."""
    from cvgl_models.combining import combine as join

    weight = _weight(panorama_weight)
    if (weight == "validation") != (data is not None):
        raise typer.BadParameter("--panorama-weight validation and --data go together", param_hint="--data")
    join(panorama_run, bev_run, out, panorama_weight=weight, data=data, overwrite=overwrite)
    if not quiet:
        note(f"combined in {out}; `cvgl-train evaluate {out} --data DIR` measures it, and each part alone")


def _weight(text: str) -> float | str:
    if text == "validation":
        return "validation"
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:
        raise typer.BadParameter(
            f"'{text}' is neither a number in [0, 1] nor 'validation'", param_hint="--panorama-weight"
        )
    return weight


def export(
    folder: RunDir,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to.")],
    name: Annotated[
        str, typer.Option(metavar="TEXT", help="Title of the model card.", show_default="the recipe's")
    ] = "",
    licence: Annotated[
        str, typer.Option(metavar="TEXT", help="Licence of the weights, as in apache-2.0.", show_default=False)
    ] = "",
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
