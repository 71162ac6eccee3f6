"""What ``cvgl-train evaluate`` does for each of the two tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from ._options import note, progress_bar, table


def evaluate_poses(
    folder: Path,
    data: Path,
    split: str,
    conditions: dict[str, Any],
    *,
    untrained: bool,
    page: bool,
    images: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Measure a localization system and print how far off it is."""
    from cvgl_models.localization.conditions import PoseConditions
    from cvgl_models.localization.evaluation import evaluate_poses as measure

    with progress_bar(quiet) as bar:
        report = measure(
            folder,
            data,
            split,
            random_init=untrained,
            conditions=PoseConditions(**conditions),
            page=page,
            page_images=images,
            progress=bar,
        )
    if json:
        typer.echo(report.to_json(), nl=False)
    else:
        table(f"{folder}{' before training' if untrained else ''} on {split} of {data}", *report.table())
        table("", ["", "value"], [list(row) for row in report.rows()])
        table("By group", *report.group_table())
    if page:
        note(f"the page is below {folder / 'eval'}")


def evaluate_retrieval(
    folder: Path,
    data: Path,
    split: str,
    conditions: dict[str, Any],
    *,
    untrained: bool,
    sheet: Path | None,
    page: bool,
    images: bool,
    legacy: bool,
    calibration: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Measure a retrieval system and print what it finds."""
    from cvgl_models.evaluation import Conditions
    from cvgl_models.evaluation import evaluate as measure
    from cvgl_models.sheets import contact_sheet

    with progress_bar(quiet) as bar:
        report = measure(
            folder,
            data,
            split,
            random_init=untrained,
            conditions=Conditions(**conditions),
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
