"""Loop 1: embeddings of a split's queries and gallery on disk, never of other weights, data or conditions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import CheckpointError, DatasetError, RecipeError, WorkspaceError
from cvgl_data.types import Progress, Silent
from cvgl_models.batches import Views, load_views, open_for_views
from cvgl_models.checkpoint import last_checkpoint, load_weights
from cvgl_models.evaluation.conditions import Conditions
from cvgl_models.recipe import ModelRecipe
from cvgl_models.run_folder import BEST, EVAL, run_recipe, write_text
from cvgl_models.systems import RetrievalModule, SystemModule, create_system
from cvgl_models.training import embed_views, fingerprint
from cvgl_models.transforms import Batch

EXPORTED = "model.safetensors"
"""Weights of a model that was exported."""

_SIDES = {"query": "queries.npy", "reference": "references.npy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The embeddings of one split, memory-mapped."""

    query_QD: NDArray[np.float32]
    reference_RD: NDArray[np.float32]
    dataset: CrossViewDataset
    """The split's queries and their gallery, in the same order."""
    weights: str
    """Fingerprint of the weights."""
    folder: Path
    """Where the queries' embeddings lie."""
    branches: Mapping[str, slice] = field(default_factory=dict)
    """Parts of the embeddings that can be searched alone."""

    def on_device(self) -> tuple[Tensor, Tensor]:
        """Return both as tensors, on the accelerator if there is one."""
        query_QD, reference_RD = (
            torch.from_numpy(np.array(side)).to(device()) for side in (self.query_QD, self.reference_RD)
        )
        return query_QD, reference_RD


def device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_system(run: Path, *, random_init: bool = False) -> tuple[SystemModule, ModelRecipe, str]:
    """Return the trained model of a run or of an exported model, its recipe, and a fingerprint of its weights.

    Args:
        run: Run folder, or the folder of an exported model.
        random_init: Take the weights that training began with instead.

    Raises:
        CheckpointError: If the run has no trained weights, or they do not fit.
    """
    recipe = run_recipe(run)
    path = None if random_init else weights_file(run)
    # Weights that are replaced at once need not be downloaded first.
    built = recipe if path is None else replace(recipe, encoder=replace(recipe.encoder, pretrained=False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        system = create_system(built)
    if path is None:
        weights = f"untrained, seed {recipe.seed}"
    else:
        load_weights(path, system)
        weights = hashlib.sha256(path.read_bytes()).hexdigest()
    return system.to(device()).eval(), recipe, weights


def load_retrieval_system(run: Path, *, random_init: bool = False) -> tuple[RetrievalModule, ModelRecipe, str]:
    """Do what `load_system` does for a system that embeds.

    Raises:
        CheckpointError: Likewise, and if the run is one of a localization system.
    """
    system, recipe, weights = load_system(run, random_init=random_init)
    if not isinstance(system, RetrievalModule):
        raise CheckpointError(
            f"run '{run}' is one of '{recipe.system}', which locates queries inside a reference and cannot search a "
            "gallery; use a run of a retrieval system"
        )
    return system, recipe, weights


def weights_file(run: Path) -> Path:
    """Return the file of the best weights of a run; of one that was stopped before it had any, the last ones.

    Raises:
        CheckpointError: If there is none.
    """
    for name in (BEST, EXPORTED):
        if (run / name).is_file():
            return run / name
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        raise CheckpointError(
            f"run '{run}' has no trained weights yet; train it first, or ask for the untrained model on purpose"
        )
    return checkpoint / "weights.safetensors"


def embed(
    run: Path,
    data: str | Path | CrossViewDataset,
    split: str = "test",
    *,
    random_init: bool = False,
    conditions: Conditions | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed a split's queries and gallery and keep the result in the run folder; what is there already is used.

    Args:
        run: Run folder.
        data: Dataset folder, or an opened dataset.
        split: ``train``, ``validation`` or ``test``.
        random_init: Embed with the untrained model.
        conditions: How queries are shown.
        progress: Told what is going on.

    Raises:
        CheckpointError: If the run has no trained weights and ``random_init`` is not set.
        DatasetError: If the split is empty or an image cannot be decoded.
        RecipeError: If the model cannot take such queries.
    """
    conditions = conditions or Conditions()
    recipe = run_recipe(run)
    dataset = open_for_views(data, recipe.views, use_resized=recipe.loader.use_resized).select(split)
    if not dataset.queries.num_rows or not dataset.references.num_rows:
        raise DatasetError(f"split '{split}' has no queries; choose another split or build with another protocol")
    system, recipe, weights = load_retrieval_system(run, random_init=random_init)
    name = f"{split}-untrained" if random_init else split
    gallery, folder = run / EVAL / name, run / EVAL / "-".join(part for part in (name, conditions.name) if part)
    sides = [
        _embedded(where, side, dataset, system, recipe, weights, conditions, progress or Silent())
        for side, where in (("query", folder), ("reference", gallery))
    ]
    return Embeddings(
        query_QD=sides[0],
        reference_RD=sides[1],
        dataset=dataset,
        weights=weights,
        folder=folder,
        branches=system.branches,
    )


def embed_all_references(
    system: RetrievalModule, recipe: ModelRecipe, dataset: CrossViewDataset, progress: Progress
) -> NDArray[np.float32]:
    """Return the embeddings (R, D) of all references of a dataset, without keeping them."""
    return _computed("reference", dataset, system, recipe, Conditions(), progress)


def _embedded(
    folder: Path,
    side: str,
    dataset: CrossViewDataset,
    system: RetrievalModule,
    recipe: ModelRecipe,
    weights: str,
    conditions: Conditions,
    progress: Progress,
) -> NDArray[np.float32]:
    """Return the embeddings of one side from disk, computed first if need be."""
    path, meta = folder / _SIDES[side], folder / f"{side}.json"
    expected: dict[str, Any] = {"weights": weights, "data": fingerprint(dataset)}
    if side == "query":
        expected["conditions"] = conditions.name
    kept = _kept(path, meta, expected)
    if kept is not None:
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkspaceError(f"folder '{folder}' cannot be made: {error}") from error
    meta.unlink(missing_ok=True)  # written last, so that it vouches for the embeddings
    embedded = _computed(side, dataset, system, recipe, conditions, progress)
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("wb") as file:
        np.save(file, embedded)
    os.replace(partial, path)
    write_text(meta, json.dumps(expected, indent=2) + "\n")
    return _open(path)


def _computed(
    side: str,
    dataset: CrossViewDataset,
    system: RetrievalModule,
    recipe: ModelRecipe,
    conditions: Conditions,
    progress: Progress,
) -> NDArray[np.float32]:
    fields = system.query_views if side == "query" else ("reference",)
    shown = conditions.turned(dataset) if side == "query" else dataset
    sides = [Views(shown, name, recipe.views) for name in fields]
    progress.stage(f"embed {_SIDES[side].removesuffix('.npy')}", sum(map(len, sides)))
    streams = [load_views(views, recipe.loader, recipe.validation.batch_size, progress.advance) for views in sides]
    if side == "query":
        ids = dataset.queries["query_id"].to_pylist()
        kinds = ["bev" if views.is_top_view else "panorama" for views in sides]
        streams = [conditions.limited(stream, ids, kind) for stream, kind in zip(streams, kinds, strict=True)]
    batches = (Batch(**dict(zip(fields, parts, strict=True))) for parts in zip(*streams, strict=True))
    is_cropped = side == "query" and conditions.fill == "crop" and conditions.fov_deg < 360
    where = next(system.parameters()).device
    try:
        embedded: NDArray[np.float32] = embed_views(system, side, batches, recipe.optim.precision, where).numpy()
    except (RuntimeError, ValueError, AssertionError) as error:
        if not is_cropped or isinstance(error, RecipeError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecipeError(f"this network takes panoramas of its own size only ({reason}); use fill 'zero'") from error
    return embedded


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
