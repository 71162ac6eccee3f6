"""Training: one readable loop for every system.

Everything random in a step is drawn from (seed, step), so a run that was stopped goes on from its last checkpoint and
ends with the very weights of an uninterrupted one (bit for bit on a CPU with the same number of threads).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.errors import DatasetError
from cvgl_data.types import Progress, Silent
from cvgl_models.batches import PairRows, PairViews, Views, data_loader, fits_in_memory, in_memory, load_views
from cvgl_models.checkpoint import (
    BEST,
    METRICS,
    last_checkpoint,
    load_checkpoint,
    open_run,
    save_checkpoint,
    save_weights,
)
from cvgl_models.metrics import recall_at_k
from cvgl_models.recipe import ModelRecipe, OptimRecipe
from cvgl_models.retrieval import ranks
from cvgl_models.samplers import DistanceMapSampler
from cvgl_models.systems import SystemModule, create_system
from cvgl_models.transforms import Augment, Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """When to stop before the schedule ends; the schedule itself does not change, so the run can go on later."""

    max_steps: int | None = None
    """Total steps, those of earlier sittings included."""
    time_limit_s: float | None = None
    """Of this sitting, loading of the data included."""
    should_stop: Callable[[], bool] | None = None
    """Asked after every step."""

    def met(self, step: int, started: float) -> bool:
        """Whether it is time to save and go."""
        too_long = self.time_limit_s is not None and time.monotonic() - started >= self.time_limit_s
        enough = self.max_steps is not None and step >= self.max_steps
        return too_long or enough or (self.should_stop is not None and self.should_stop())


def learning_rate(step: int, total_steps: int, warmup_steps: int, base: float) -> float:
    """Return the rate of a step: linear from 0 over the warm-up, then a cosine to 0.

    Example:
        >>> learning_rate(550, 1000, 100, 1e-3)
        0.0005
    """
    if step < warmup_steps:
        return base * step / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


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
        on_step: Given the logged values of every step.

    Raises:
        WorkspaceError: If the folder belongs to another recipe or other data, or is no run folder.
        CheckpointError: If files of the run are damaged.
        DatasetError: If an image cannot be decoded, or there is nothing to train on.
        RecipeError: If the recipe does not fit the data.
    """
    dataset = data if isinstance(data, CrossViewDataset) else open_dataset(data)
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[0] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)
        trainer = _Trainer(recipe, dataset, out, device, progress or Silent())
        open_run(out, recipe, fingerprint(dataset), overwrite=overwrite)  # not before the recipe has proved to work
        trainer.resume()
        trainer.run(_Limits(max_steps=max_steps, time_limit_s=time_limit_s, should_stop=should_stop), started, on_step)
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


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which the network computes."""
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@torch.inference_mode()
def embed_views(
    system: SystemModule, side: str, batches: Iterator[Tensor], precision: str, device: torch.device
) -> Tensor:
    """Return the float32 embeddings (N, D), on the CPU, of views (uint8 batches) of one side."""
    system.eval()
    parts = []
    for images in batches:
        with autocast(precision, device):
            if side == "query":
                part = system.embed_queries(Batch(query=images).to(device))
            else:
                part = system.embed_references(Batch(reference=images).to(device))
        parts.append(part.float().cpu())
    return torch.cat(parts)


class _Trainer:
    """The state of one sitting."""

    def __init__(
        self,
        recipe: ModelRecipe,
        dataset: CrossViewDataset,
        run: Path,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.recipe, self.run_folder, self.device, self.progress = recipe, run, device, progress
        self.training = dataset.select("train")
        self.validation = dataset.select("validation")
        self.pairs = PairRows.of(self.training)
        self.sampler = DistanceMapSampler(self.pairs.reference_row, self._neighbors(), recipe.sampler, recipe.seed)
        self.augment = Augment(recipe.augment, recipe.views.query)
        self.system = create_system(recipe).to(device)
        self.optimizer = _optimizer(self.system, recipe.optim, device)
        self.steps_per_epoch = len(self.sampler)
        self.total_steps = recipe.optim.epochs * self.steps_per_epoch
        self.state: dict[str, Any] = {"step": 0, "best": [-1.0, -1.0]}

    def resume(self) -> None:
        """Go on from the last checkpoint of the run folder, if there is one."""
        folder = last_checkpoint(self.run_folder)
        if folder is None:
            (self.run_folder / METRICS).unlink(missing_ok=True)
            return
        state = load_checkpoint(folder, self.system)
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.state = state
        _drop_later_lines(self.run_folder / METRICS, state["step"])
        logger.info("going on at step %d of %d", state["step"], self.total_steps)

    def run(self, limits: _Limits, started: float, on_step: Callable[[dict[str, float]], None] | None) -> None:
        """Train until the schedule ends or a limit is met."""
        first = self.state["step"]
        if first >= self.total_steps or limits.met(first, started):
            return
        load, score = self._loader(), self._validator()
        self.progress.stage("train", self.total_steps)
        self.progress.advance(first)
        with (self.run_folder / METRICS).open("a", encoding="utf-8") as log:
            while self.state["step"] < self.total_steps:
                epoch, position = divmod(self.state["step"], self.steps_per_epoch)
                for batch in load(epoch, position):
                    values = self._step(batch)
                    values["elapsed_s"] = round(time.monotonic() - started, 2)
                    log.write(json.dumps(values) + "\n")
                    self.progress.advance(1, f"loss {values['loss']:.3f}")
                    if on_step is not None:
                        on_step(values)
                    if self.state["step"] % self.steps_per_epoch == 0 and self._is_validated(epoch):
                        log.write(json.dumps(score()) + "\n")
                    if limits.met(self.state["step"], started):
                        break
                log.flush()
                self._save()
                if limits.met(self.state["step"], started):
                    return

    def _step(self, batch: Batch) -> dict[str, float]:
        recipe, step = self.recipe.optim, self.state["step"]
        generator = torch.Generator().manual_seed(_seed(self.recipe.seed, step))
        torch.manual_seed(_seed(self.recipe.seed, step, 1))  # dropout; makes a saved generator state unnecessary
        batch = self.augment(batch.to(self.device), generator)
        lr = learning_rate(step + 1, self.total_steps, round(recipe.warmup_epochs * self.steps_per_epoch), recipe.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.system.train()
        with autocast(recipe.precision, self.device):
            terms = self.system.training_step(batch)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.system.parameters(), recipe.max_grad_norm or math.inf)
        value = loss.item()
        if not math.isfinite(value):
            raise DatasetError(
                f"the loss is {value} at step {step}; lower optim.lr or look for broken images in the training split"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state["step"] = step + 1
        return {
            "step": step + 1,
            "epoch": step // self.steps_per_epoch,
            "loss": value,
            **{name: term.item() for name, term in terms.items()},
            "lr": lr,
            "grad_norm": norm.item(),
        }

    def _loader(self) -> Callable[[int, int], Iterator[Batch]]:
        """Return a function that yields the batches of an epoch from a position on."""
        recipe = self.recipe
        query = Views(self.training, "query", recipe.views)
        reference = Views(self.training, "reference", recipe.views)
        ignore = recipe.sampler.semi_positive_policy == "ignore"
        if fits_in_memory([query, reference], recipe.loader):
            self.progress.stage("decode", len(query) + len(reference))
            query_N3HW = in_memory(query, recipe.loader, self.progress.advance)
            reference_N3SS = in_memory(reference, recipe.loader, self.progress.advance)

            def from_memory(epoch: int, position: int) -> Iterator[Batch]:
                for chosen in self.sampler.epoch(epoch)[position:]:
                    views = (
                        query_N3HW[self.pairs.query_row[chosen]],
                        reference_N3SS[self.pairs.reference_row[chosen]],
                    )
                    yield self.pairs.batch(chosen, *views, ignore_semi_positives=ignore)

            return from_memory

        images = PairViews(self.pairs, query, reference)

        def decoded(epoch: int, position: int) -> Iterator[Batch]:
            batches = self.sampler.epoch(epoch)[position:]
            loaded = data_loader(images, [chosen.tolist() for chosen in batches], recipe.loader)
            for chosen, views in zip(batches, loaded, strict=True):
                yield self.pairs.batch(chosen, *views, ignore_semi_positives=ignore)

        return decoded

    def _validator(self) -> Callable[[], dict[str, float]]:
        """Return a function that measures the model on the validation split and keeps the best weights."""
        positives = self.validation.positives()
        rows = np.flatnonzero(positives >= 0)
        if not len(rows):
            logger.warning("there are no validation queries; the last weights count as the best")
            return lambda: self._keep_best(math.nan, math.nan)
        if len(rows) > self.recipe.validation.max_queries:
            rows = rows[np.linspace(0, len(rows) - 1, self.recipe.validation.max_queries).astype(np.int64)]
        sides = [
            Views(self.validation, "query", self.recipe.views, rows),
            Views(self.validation, "reference", self.recipe.views),
        ]
        size, loader = self.recipe.validation.batch_size, self.recipe.loader
        cache = [in_memory(side, loader) for side in sides] if fits_in_memory(sides, loader) else None

        def score() -> dict[str, float]:
            query_QD, reference_RD = (
                embed_views(
                    self.system,
                    side.side,
                    iter(torch.split(cache[index], size)) if cache else load_views(side, loader, size),
                    self.recipe.optim.precision,
                    self.device,
                )
                for index, side in enumerate(sides)
            )
            found = ranks(query_QD, reference_RD, positives[rows])
            return self._keep_best(recall_at_k(found, 1), recall_at_k(found, 10))

        return score

    def _keep_best(self, recall_at_1: float, recall_at_10: float) -> dict[str, float]:
        """Keep the present weights unless earlier ones did better; the later of two equals stays."""
        step = self.state["step"]
        measured = [recall_at_1, recall_at_10]
        if not measured < self.state["best"]:
            self.state["best"] = measured
            save_weights(self.run_folder / BEST, self.system, {"step": str(step)})
        return {"step": step, "validation_recall_at_1": recall_at_1, "validation_recall_at_10": recall_at_10}

    def _is_validated(self, epoch: int) -> bool:
        return (epoch + 1) % self.recipe.validation.every_n_epochs == 0 or epoch + 1 == self.recipe.optim.epochs

    def _neighbors(self) -> Mapping[int, list[int]]:
        if not self.recipe.sampler.use_distance_map or not self.training.distance_map.num_rows:
            return {}
        rows = self.training.distance_map["neighbor_rows"].to_pylist()
        return {row: [near for near in neighbors if near >= 0] for row, neighbors in enumerate(rows)}

    def _save(self) -> None:
        save_checkpoint(self.run_folder, self.system, {**self.state, "optimizer": self.optimizer.state_dict()})


def _optimizer(system: SystemModule, recipe: OptimRecipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW; vectors and scalars (biases, norms, the logit scale) are not decayed."""
    decayed = [parameter for parameter in system.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in system.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=device.type == "cuda")


def _seed(*values: int) -> int:
    """Return one well-mixed seed for a tuple of numbers."""
    return int(np.random.SeedSequence(values).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _drop_later_lines(log: Path, step: int) -> None:
    """Take out what was logged after the checkpoint that training goes on from; it will be logged again."""
    if not log.is_file():
        return
    kept = []
    text = log.read_text(encoding="utf-8")
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # a line cut short by a kill
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    if "".join(kept) != text:
        log.write_text("".join(kept), encoding="utf-8")
