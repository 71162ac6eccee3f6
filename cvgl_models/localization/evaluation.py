"""Evaluation of a localization system in two loops: predictions to disk, then metrics from disk.

```
eval/<split>/               predictions.npz (place, heading, radius of every pair, and what is true), with
                            predictions.json, which says of which weights, data and conditions; maps.npz (score maps of
                            the best, middle and worst pairs); metrics.json, pairs.csv, index.html
eval/<split>-<conditions>/  the same under other conditions, for instance `test-unknown`
eval/<split>-untrained/     the same for the weights that training began with
```
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import RecipeError, WorkspaceError
from cvgl_data.types import Progress, Silent
from cvgl_models.batches import open_for_views
from cvgl_models.evaluation.conditions import Conditions
from cvgl_models.evaluation.embeddings import load_system
from cvgl_models.evaluation.truth import protocol
from cvgl_models.localization.conditions import PoseConditions
from cvgl_models.localization.metrics import PoseTruth, angle_between_deg, errors_m, localization_report
from cvgl_models.localization.pose import PosePrediction
from cvgl_models.localization.predicting import Collected, Show, in_order, localize, only_pairs, truth_and_poses
from cvgl_models.localization.refining import lonlat_of
from cvgl_models.localization.report import LocalizationReport
from cvgl_models.recipe import ModelRecipe
from cvgl_models.run_folder import EVAL, run_recipe, write_text
from cvgl_models.systems import SystemModule
from cvgl_models.training import fingerprint
from cvgl_models.training.embedding import autocast
from cvgl_models.transforms import Batch

METRICS, PAIRS, PAGE = "metrics.json", "pairs.csv", "index.html"
NUM_CASES = 6
"""Pairs whose score maps are kept: so many of the best, of those about the median, and of the worst."""
_PREDICTIONS, _META, _MAPS = "predictions.npz", "predictions.json", "maps.npz"
_MAP_PX = 128  # side beyond which a kept map is shrunk

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What loop 1 leaves."""

    dataset: CrossViewDataset
    """The pairs, with the queries and references that they use."""
    values: Arrays
    """By name, see `Collected`."""
    maps: Arrays
    """``pair`` (K,), and for each K ``map<k>`` float16, ``extent_m<k>``: its side left, top, right, bottom."""
    weights: str
    folder: Path


def evaluate_poses(
    run: Path,
    data: str | Path | CrossViewDataset,
    split: str = "test",
    *,
    random_init: bool = False,
    conditions: PoseConditions | None = None,
    page: bool = False,
    page_images: bool = True,
    progress: Progress | None = None,
) -> LocalizationReport:
    """Measure a run of a localization system on a split; write ``metrics.json`` and ``pairs.csv``.

    Args:
        run: Run folder, or the folder of an exported model.
        data: Dataset folder, or an opened dataset.
        split: ``train``, ``validation`` or ``test``.
        random_init: Measure the untrained model.
        conditions: What the model is shown and told.
        page: Also write ``index.html``: numbers, curve, score maps.
        page_images: Whether the page holds small copies of images.
        progress: Told what is going on.

    Raises:
        CheckpointError: If the run has no trained weights and ``random_init`` is not set.
        DatasetError: If no query of the split is covered, or an image cannot be decoded.
        RecipeError: If it is no localization system, or the conditions do not suit it.
    """
    conditions = conditions or PoseConditions()
    recipe = run_recipe(run)
    dataset = open_for_views(data, recipe.views, use_resized=recipe.loader.use_resized)
    found = predict(run, dataset, split, random_init=random_init, conditions=conditions, progress=progress)
    truth, poses = truth_and_poses(found.dataset, found.values)
    report = replace(
        localization_report(truth, poses, noise_deg=conditions.heading_noise_deg),
        setting={
            "recipe": recipe.name,
            "split": split,
            "protocol": protocol(dataset, split),
            "conditions": asdict(conditions),
            "weights": found.weights,
        },
    )
    write_text(found.folder / METRICS, report.to_json())
    write_text(found.folder / PAIRS, _table(found, truth))
    if page:
        from cvgl_models.localization.page import localization_page

        text = localization_page(report, found.dataset, truth, poses, found.maps, with_images=page_images)
        write_text(found.folder / PAGE, text)
    return report


def predict(
    run: Path,
    dataset: CrossViewDataset,
    split: str,
    *,
    random_init: bool = False,
    conditions: PoseConditions,
    progress: Progress | None = None,
) -> Predictions:
    """Return the predictions for all pairs of a split; what is there of the same weights, data and conditions is used.

    Raises:
        CheckpointError: If the run has no trained weights and ``random_init`` is not set.
        DatasetError: If no query of the split is covered, or an image cannot be decoded.
        WorkspaceError: If the folder cannot be made.
    """
    progress = progress or Silent()
    pairs = only_pairs(dataset.select(split), conditions.pairs)
    system, recipe, weights = load_system(run, random_init=random_init)
    if system.task != "localization":
        raise RecipeError(f"'{run}' is a run of a retrieval system ('{recipe.system}'); name a localization run")
    name = "-".join(part for part in (split, "untrained" if random_init else "", conditions.name) if part)
    folder = run / EVAL / name
    data = {**fingerprint(pairs), "labels": _labels(pairs)}
    expected: dict[str, Any] = {"weights": weights, "data": data, "conditions": asdict(conditions)}
    kept = _kept(folder, expected)
    if kept is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkspaceError(f"folder '{folder}' cannot be made: {error}") from error
        (folder / _META).unlink(missing_ok=True)  # written last, so that it vouches for the rest
        kept = _computed(system, recipe, pairs, conditions, progress)
        for name, arrays in zip((_PREDICTIONS, _MAPS), kept, strict=True):
            _save(folder / name, arrays)
        write_text(folder / _META, json.dumps(expected, indent=2) + "\n")
    return Predictions(dataset=pairs, values=kept[0], maps=kept[1], weights=weights, folder=folder)


def cases(error_P: NDArray[np.float64], num: int = NUM_CASES) -> dict[str, NDArray[np.int64]]:
    """Return the pairs of the least errors, those about the median, and of the greatest, disjoint, in that order."""
    order = np.argsort(error_P, kind="stable")
    num = min(num, len(order) // 3) if len(order) >= 3 else len(order)
    middle = (len(order) - num) // 2
    if num == len(order):
        return {"best": order, "median": order[:0], "worst": order[:0]}
    return {"best": order[:num], "median": order[middle : middle + num], "worst": order[::-1][:num]}


def _labels(pairs: CrossViewDataset) -> str:
    """Return a hash of what is true of the pairs: the same images may come with corrected places."""
    digest = hashlib.sha256()
    for table, name in (
        (pairs.pairs, "u"),
        (pairs.pairs, "v"),
        (pairs.queries, "heading_deg"),
        (pairs.references, "gsd_m"),
    ):
        digest.update(table[name].to_numpy().astype(np.float64).tobytes())
    return digest.hexdigest()


def _computed(
    system: SystemModule,
    recipe: ModelRecipe,
    pairs: CrossViewDataset,
    conditions: PoseConditions,
    progress: Progress,
) -> tuple[Arrays, Arrays]:
    """Return what was found of all pairs, and the score maps of the most telling ones, which are computed again."""
    device = next(system.parameters()).device
    context = functools.partial(autocast, recipe.optim.precision, device)
    size, num = recipe.validation.batch_size, pairs.pairs.num_rows
    collected, maps = Collected(), dict[str, NDArray[Any]]()
    progress.stage("localize", num)
    with Show(pairs, recipe, conditions, limit=_limit(conditions, recipe)) as show:
        for one in show.batches(in_order(num, size)):
            collected.add(one, localize(system, one.batch, device, context))
            progress.advance(len(one.index))
        values = collected.arrays()
        truth, poses = truth_and_poses(pairs, values)
        maps["pair"] = np.concatenate(list(cases(errors_m(truth, poses.xy_m)).values()))
        for one in show.batches([maps["pair"][part] for part in in_order(len(maps["pair"]), size)]):
            found = localize(system, one.batch, device, context)
            for place in range(len(one.index)):
                number = (len(maps) - 1) // 2
                maps[f"map{number}"], maps[f"extent_m{number}"] = _small_map(found, place)
    return dict(values), maps


def _limit(conditions: PoseConditions, recipe: ModelRecipe) -> Callable[[Batch], Batch] | None:
    """Return what blackens the part of queries that is not seen, None if all is."""
    if conditions.fov_deg == 360:
        return None
    centered = Conditions(fov_deg=conditions.fov_deg, heading="unknown")

    def limit(batch: Batch) -> Batch:
        kinds = {"query": recipe.views.query, **({"bev": "bev"} if len(batch.bev) else {})}
        ids = [""] * len(batch.query)
        return replace(
            batch,
            **{name: next(centered.limited(iter([getattr(batch, name)]), ids, kind)) for name, kind in kinds.items()},
        )

    return limit


def _small_map(found: PosePrediction, place: int) -> tuple[NDArray[np.float16], NDArray[np.float64]]:
    """Return the log-probabilities of one pair, relative to the highest, and where the map lies in metres."""
    map_HW, cell_m = found.score_map_BHW[place].float(), float(found.cell_size_m_B[place])
    height, width = map_HW.shape
    left, top = -(found.origin[1] + 0.5) * cell_m, -(found.origin[0] + 0.5) * cell_m
    extent = np.array([left, top, left + width * cell_m, top + height * cell_m])
    known = torch.where(map_HW.isfinite(), map_HW, torch.full_like(map_HW, -1e4))
    factor = -(-max(height, width) // _MAP_PX)
    small = torch.nn.functional.max_pool2d(known[None], factor, ceil_mode=True)[0] if factor > 1 else known
    small = (small - small.max()).clamp(min=-6e4)
    if factor > 1:  # the last cells may reach beyond the map
        extent[2:] = left + small.shape[1] * factor * cell_m, top + small.shape[0] * factor * cell_m
    return small.cpu().numpy().astype(np.float16), extent


def _table(found: Predictions, truth: PoseTruth) -> str:
    """Return one line per pair: where it is, where it was found, and how far off that is."""
    rows = {side: found.dataset.pairs[f"{side}_row"].to_numpy() for side in ("query", "reference")}
    values, references = found.values, found.dataset.references
    query_ids = found.dataset.queries["query_id"].take(rows["query"]).to_pylist()
    reference_ids = references["reference_id"].take(rows["reference"]).to_pylist()
    lon, lat = lonlat_of(references, rows["reference"], values["xy_m"])
    columns = {
        "query_id": query_ids,
        "reference_id": reference_ids,
        "lon": [f"{value:.7f}" for value in lon],
        "lat": [f"{value:.7f}" for value in lat],
        "heading_deg": [f"{value:.2f}" for value in values["yaw_deg"]],
        "radius95_m": [f"{value:.2f}" for value in values["radius95_m"]],
        "error_m": [f"{value:.3f}" for value in errors_m(truth, values["xy_m"])],
        "yaw_error_deg": [f"{value:.2f}" for value in angle_between_deg(values["yaw_deg"], truth.yaw_deg)],
    }
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _kept(folder: Path, expected: Mapping[str, Any]) -> tuple[Arrays, Arrays] | None:
    """Return predictions of an earlier time, None if there are none, of something else, or damaged."""
    try:
        if json.loads((folder / _META).read_text(encoding="utf-8")) != expected:
            return None
        return _load(folder / _PREDICTIONS), _load(folder / _MAPS)
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None


def _load(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _save(path: Path, arrays: Arrays) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)
