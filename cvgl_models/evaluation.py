"""Evaluation in two loops: embeddings to disk, then metrics from disk.

``eval/<split>/`` of a run holds ``queries.npy`` (Q, D) and ``references.npy`` (R, D), each with a JSON file that says
which weights and data it comes from, and ``report.json``; the untrained model has ``eval/<split>-untrained/``.
Embeddings of other weights or other data are never reused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.errors import CheckpointError, DatasetError, WorkspaceError
from cvgl_data.types import Progress, Silent
from cvgl_models.batches import Views, load_views
from cvgl_models.checkpoint import BEST, EVAL, last_checkpoint, load_weights, run_recipe, write_text
from cvgl_models.metrics import RetrievalReport, Truth, retrieval_report
from cvgl_models.recipe import ModelRecipe
from cvgl_models.systems import SystemModule, create_system
from cvgl_models.training import embed_views, fingerprint

_SIDES = {"query": "queries.npy", "reference": "references.npy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The embeddings of one split, memory-mapped."""

    query_QD: NDArray[np.float32]
    reference_RD: NDArray[np.float32]
    dataset: CrossViewDataset
    """The split's queries and their gallery, in the same order."""


def load_system(run: Path, *, random_init: bool = False) -> tuple[SystemModule, ModelRecipe, str]:
    """Return the trained model of a run, its recipe, and a fingerprint of its weights.

    Args:
        run: Run folder.
        random_init: Take the weights that training began with instead.

    Raises:
        CheckpointError: If the run has no trained weights, or they do not fit.
    """
    recipe = run_recipe(run)
    path = run / BEST
    if not path.is_file() and not random_init:
        checkpoint = last_checkpoint(run)
        if checkpoint is None:
            raise CheckpointError(
                f"run '{run}' has no trained weights yet; train it first, or ask for the untrained model on purpose"
            )
        path = checkpoint / "weights.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        system = create_system(recipe)
    if random_init:
        weights = f"untrained, seed {recipe.seed}"
    else:
        load_weights(path, system)
        weights = hashlib.sha256(path.read_bytes()).hexdigest()
    return system.to(torch.device("cuda" if torch.cuda.is_available() else "cpu")).eval(), recipe, weights


def embed(
    run: Path,
    data: str | Path | CrossViewDataset,
    split: str = "test",
    *,
    random_init: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed a split's queries and gallery and keep the result in the run folder; what is there already is used.

    Args:
        run: Run folder.
        data: Dataset folder, or an opened dataset.
        split: ``train``, ``validation`` or ``test``.
        random_init: Embed with the untrained model.
        progress: Told what is going on.

    Raises:
        CheckpointError: If the run has no trained weights and ``random_init`` is not set.
        DatasetError: If the split is empty or an image cannot be decoded.
    """
    dataset = (data if isinstance(data, CrossViewDataset) else open_dataset(data)).select(split)
    if not dataset.queries.num_rows or not dataset.references.num_rows:
        raise DatasetError(f"split '{split}' has no queries; choose another split or build with another protocol")
    system, recipe, weights = load_system(run, random_init=random_init)
    folder = run / EVAL / (f"{split}-untrained" if random_init else split)
    query_QD, reference_RD = (
        _embedded(folder, side, dataset, system, recipe, weights, progress or Silent()) for side in _SIDES
    )
    return Embeddings(query_QD=query_QD, reference_RD=reference_RD, dataset=dataset)


def evaluate(
    run: Path,
    data: str | Path | CrossViewDataset,
    split: str = "test",
    *,
    random_init: bool = False,
    progress: Progress | None = None,
) -> RetrievalReport:
    """Measure a run on a split and write ``report.json`` beside the embeddings; arguments as of `embed`.

    Raises:
        DatasetError: If no query of the split is covered by a reference.
        CvglError: As `embed`.
    """
    dataset = data if isinstance(data, CrossViewDataset) else open_dataset(data)
    part = dataset.select(split)
    if part.queries.num_rows and not (part.positives() >= 0).any():
        raise DatasetError(f"no query of split '{split}' is covered by a reference; nothing to measure")
    embedded = embed(run, dataset, split, random_init=random_init, progress=progress)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    query_QD, reference_RD = (
        torch.from_numpy(np.array(side)).to(device) for side in (embedded.query_QD, embedded.reference_RD)
    )
    report = retrieval_report(query_QD, reference_RD, truth(embedded.dataset))
    folder = run / EVAL / (f"{split}-untrained" if random_init else split)
    write_text(folder / "report.json", report.to_json())
    return report


def truth(dataset: CrossViewDataset) -> Truth:
    """Return what the metrics need to know of a dataset."""
    positive = dataset.pairs.filter(pc.equal(dataset.pairs["relation"], "positive"))
    decentrality = np.full(dataset.queries.num_rows, np.nan)
    decentrality[positive["query_row"].to_numpy()] = positive["decentrality"].to_numpy()
    return Truth(
        positives=dataset.positives(),
        covering=dataset.covering(),
        query_lonlat=_lonlat(dataset.queries),
        reference_lonlat=_lonlat(dataset.references),
        decentrality=decentrality,
    )


def embed_gallery(
    run: Path, dataset: CrossViewDataset, *, progress: Progress | None = None
) -> tuple[SystemModule, ModelRecipe, NDArray[np.float32]]:
    """Return the model, its recipe, and the embeddings (R, D) of all references, kept in ``eval/gallery/``."""
    system, recipe, weights = load_system(run)
    folder = run / EVAL / "gallery"
    return system, recipe, _embedded(folder, "reference", dataset, system, recipe, weights, progress or Silent())


def _embedded(
    folder: Path,
    side: str,
    dataset: CrossViewDataset,
    system: SystemModule,
    recipe: ModelRecipe,
    weights: str,
    progress: Progress,
) -> NDArray[np.float32]:
    """Return the embeddings of one side from disk, computed first if need be."""
    path, meta = folder / _SIDES[side], folder / f"{side}.json"
    expected: dict[str, Any] = {"weights": weights, "data": fingerprint(dataset)}
    kept = _kept(path, meta, expected)
    if kept is not None:
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(f"folder '{folder}' cannot be made: {error}") from error
    meta.unlink(missing_ok=True)  # written last, so that it vouches for the embeddings
    views = Views(dataset, side, recipe.views)
    progress.stage(f"embed {_SIDES[side].removesuffix('.npy')}", len(views))
    batches = load_views(views, recipe.loader, recipe.validation.batch_size, progress.advance)
    device = next(system.parameters()).device
    embedded = embed_views(system, side, batches, recipe.optim.precision, device).numpy()
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("wb") as file:
        np.save(file, embedded)
    os.replace(partial, path)
    write_text(meta, json.dumps(expected, indent=2) + "\n")
    return _open(path)


def _kept(path: Path, meta: Path, expected: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Return embeddings of an earlier time, None if there are none, of other weights or data, or damaged."""
    try:
        same = json.loads(meta.read_text(encoding="utf-8")) == expected
        return _open(path) if same else None
    except (OSError, ValueError, EOFError):
        return None


def _open(path: Path) -> NDArray[np.float32]:
    mapped: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return mapped


def _lonlat(table: Any) -> NDArray[np.float64]:
    return np.stack([table["lon"].to_numpy(), table["lat"].to_numpy()], 1)
