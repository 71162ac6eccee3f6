"""One sitting of a training: open the run, go on where it stopped, train, save."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.types import Progress, Silent
from cvgl_models.batches import open_for_views
from cvgl_models.recipe import ModelRecipe
from cvgl_models.run_folder import held_run, open_run
from cvgl_models.training.loop import Limits, Trainer
from cvgl_models.training.ranks import joined, own_device


def train(
    recipe: ModelRecipe,
    data: str | Path | CrossViewDataset,
    out: Path,
    *,
    max_steps: int | None = None,
    time_limit_s: float | None = None,
    should_stop: Callable[[], bool] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> Path:
    """Train a model, or go on with a training that was stopped, and return the run folder.

    Started by ``torchrun``, several processes train the one model, each with its share of every batch; the first of
    them writes. The result is that of one process, but for the order of sums and the random changes of images.

    Args:
        recipe: What to do.
        data: Dataset folder, or an opened dataset.
        out: Run folder; of a finished run nothing is changed.
        max_steps: Stop after so many steps, those of earlier sittings included. This and the next two stop early: the
            run is saved, its schedule stays what it was, and it can go on later.
        time_limit_s: Stop after so many seconds of this sitting.
        should_stop: Asked after every step; True stops.
        overwrite: Replace a run of another recipe, or this one.
        progress: Told what is going on.
        on_step: Given the logged values of every step, while the next one is computed.

    Raises:
        WorkspaceError: If the folder belongs to another recipe or other data, is no run folder, is trained in by
            another process, or cannot be written.
        CheckpointError: If files of the run are damaged.
        DatasetError: If an image cannot be decoded, or there is nothing to train on.
        RecipeError: If the recipe does not fit the data, the machine, or the number of processes.
    """
    dataset = open_for_views(data, recipe.views, use_resized=recipe.loader.use_resized)
    started = time.monotonic()
    device = own_device()
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        joined(device) as ranks,
        ExitStack() as held,
    ):
        torch.manual_seed(recipe.seed)
        trainer = Trainer(recipe, dataset, out, device, progress or Silent(), ranks)
        if ranks.is_first:  # not before the recipe has proved to work
            held.enter_context(held_run(out))
            open_run(out, recipe, fingerprint(dataset), overwrite=overwrite)
        ranks.wait()
        trainer.resume()
        trainer.run(Limits(max_steps=max_steps, time_limit_s=time_limit_s, should_stop=should_stop), started, on_step)
    return out


def fingerprint(dataset: CrossViewDataset) -> dict[str, Any]:
    """Return what tells one dataset from another: counts, and a hash of all ids, image hashes and pairs."""
    digest = hashlib.sha256()
    for table, name in ((dataset.queries, "query_id"), (dataset.references, "reference_id")):
        for column in (name, "sha256"):
            digest.update("\n".join(str(value) for value in table[column].to_pylist()).encode())
    for column in ("query_row", "reference_row"):
        digest.update(dataset.pairs[column].to_numpy().astype(np.int64).tobytes())
    return {
        "num_queries": dataset.queries.num_rows,
        "num_references": dataset.references.num_rows,
        "sha256": digest.hexdigest(),
    }
