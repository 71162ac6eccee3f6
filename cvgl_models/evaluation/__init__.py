"""Evaluation in two loops: embeddings to disk, then metrics from disk.

```
eval/<split>/               queries.npy (Q, D), references.npy (R, D), each with a JSON file that says which weights
                            and data it comes from; metrics.json, queries.csv (what became of each), index.html
eval/<split>-<conditions>/  the same for queries shown otherwise, for instance `test-fov90-unknown`; gallery as above
eval/<split>-untrained/     the same for the weights that training began with
eval/calibration.json       how sure to be of a result, fitted on the validation split
eval/gallery/               all references, for `cvgl_models.serving`
```
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError
from cvgl_data.types import Progress
from cvgl_models.batches import open_for_views
from cvgl_models.evaluation.calibration import calibrate, clearness, hits, reliability
from cvgl_models.evaluation.conditions import Conditions
from cvgl_models.evaluation.embeddings import Embeddings, embed, load_system
from cvgl_models.evaluation.truth import protocol, truth
from cvgl_models.legacy_metrics import legacy_metrics
from cvgl_models.metrics import Outcomes, RetrievalReport, Truth, outcomes, retrieval_report, select_covering
from cvgl_models.run_folder import run_recipe, write_text

__all__ = ["METRICS", "PAGE", "Conditions", "Embeddings", "embed", "evaluate", "load_system", "truth"]

METRICS, QUERIES, PAGE = "metrics.json", "queries.csv", "index.html"


def evaluate(
    run: Path,
    data: str | Path | CrossViewDataset,
    split: str = "test",
    *,
    random_init: bool = False,
    conditions: Conditions | None = None,
    legacy: bool = False,
    calibrated: bool = True,
    page: bool = False,
    page_images: bool = True,
    progress: Progress | None = None,
) -> RetrievalReport:
    """Measure a run on a split and write ``metrics.json`` and ``queries.csv`` beside the embeddings.

    Args:
        run: Run folder, or the folder of an exported model.
        data: Dataset folder, or an opened dataset.
        split: ``train``, ``validation`` or ``test``.
        random_init: Measure the untrained model.
        conditions: How queries are shown: field of view, heading.
        legacy: Also count as published code does.
        calibrated: Fit the confidence on the validation split, and measure it on this one.
        page: Also write ``index.html``: map, curves, failures.
        page_images: Whether the page holds small copies of images.
        progress: Told what is going on.

    Raises:
        CheckpointError: If the run has no trained weights and ``random_init`` is not set.
        DatasetError: If the split is empty, an image cannot be decoded, or no query is covered by a reference.
        RecipeError: If the model cannot take such queries.
    """
    conditions = conditions or Conditions()
    recipe = run_recipe(run)
    dataset = open_for_views(data, recipe.views, use_resized=recipe.loader.use_resized)
    part = dataset.select(split)
    if part.queries.num_rows and not (part.positives() >= 0).any():
        raise DatasetError(f"no query of split '{split}' is covered by a reference; nothing to measure")
    embedded = embed(run, dataset, split, random_init=random_init, conditions=conditions, progress=progress)
    facts = truth(embedded.dataset)
    query_QD, reference_RD = embedded.on_device()
    found = outcomes(query_QD, reference_RD, facts)
    report = retrieval_report(query_QD, reference_RD, facts, found, embedded.branches)
    setting: dict[str, Any] = {
        "recipe": recipe.name,
        "split": split,
        "protocol": protocol(dataset, split),
        "conditions": asdict(conditions),
        "weights": embedded.weights,
    }
    measured = None
    if calibrated and not random_init and conditions.is_plain and split != "validation":
        measured = _calibration(run, dataset, embedded, found, progress)
    old = _legacy(query_QD, reference_RD, facts, found) if legacy else None
    report = replace(report, setting=setting, calibration=measured, legacy=old)
    write_text(embedded.folder / METRICS, report.to_json())
    write_text(embedded.folder / QUERIES, _table(embedded.dataset, found))
    if page:
        from cvgl_models.evaluation.page import evaluation_page

        text = evaluation_page(report, found, embedded.dataset, facts, query_QD, reference_RD, with_images=page_images)
        write_text(embedded.folder / PAGE, text)
    return report


def _calibration(
    run: Path, dataset: CrossViewDataset, embedded: Embeddings, found: Outcomes, progress: Progress | None
) -> dict[str, Any] | None:
    """Return how the confidence that was fitted on validation does here, on all queries, covered or not."""
    fitted = calibrate(run, dataset, progress=progress)
    if fitted is None:
        return None
    query_QD, reference_RD = embedded.on_device()
    confidence_Q = fitted.confidence(*clearness(query_QD, reference_RD, embedded.dataset.references))
    is_hit_Q = hits(found.query_row, found.is_cover_hit, len(confidence_Q))
    fitted_on = {"num_queries": fitted.num_queries, "num_references": fitted.num_references}
    fitted_on_error = {"expected_calibration_error": fitted.expected_calibration_error}
    return {**asdict(reliability(confidence_Q, is_hit_Q)), "validation": {**fitted_on, **fitted_on_error}}


def _legacy(query_QD: torch.Tensor, reference_RD: torch.Tensor, facts: Truth, found: Outcomes) -> dict[str, float]:
    rows = found.query_row
    covering = select_covering(facts.covering, rows)
    return legacy_metrics(query_QD[rows], reference_RD, facts.positives[rows], covering)


def _table(dataset: CrossViewDataset, found: Outcomes) -> str:
    """Return one line per covered query."""
    query_ids, lon, lat = (dataset.queries[name].to_pylist() for name in ("query_id", "lon", "lat"))
    reference_ids = np.array([*dataset.references["reference_id"].to_pylist(), ""], dtype=object)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["query_id", "lon", "lat", "top_reference_id", "rank", "error_m", "covers"])
    for index, row in enumerate(found.query_row.tolist()):
        error = f"{found.error_m[index]:.3f}"
        rank, hit = int(found.rank[index]) + 1, str(bool(found.is_cover_hit[index])).lower()
        lines.writerow([query_ids[row], lon[row], lat[row], reference_ids[found.top_row[index]], rank, error, hit])
    return text.getvalue()
