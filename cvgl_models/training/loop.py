"""The loop: batches in, weights out, one log line per step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError
from cvgl_data.types import Progress
from cvgl_models.batches import PairLoader, PairRows, PairViews, Views
from cvgl_models.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint, save_weights
from cvgl_models.localization.sampling import SeparatedSampler
from cvgl_models.recipe import ModelRecipe
from cvgl_models.run_folder import BEST
from cvgl_models.samplers import DistanceMapSampler, deal
from cvgl_models.semi_positives import SemiPositives
from cvgl_models.systems import RetrievalModule, SystemModule, create_system, query_views
from cvgl_models.training.compiling import compile_encoders
from cvgl_models.training.embedding import autocast, embed_together
from cvgl_models.training.feed import Images
from cvgl_models.training.gradients import backward, total
from cvgl_models.training.localizing import PoseValidator, own_sampler, told
from cvgl_models.training.logs import RunLog, check_loggers
from cvgl_models.training.measured import Measured
from cvgl_models.training.mining import Miner
from cvgl_models.training.optimizer import WeightAverage, create_optimizer, learning_rate
from cvgl_models.training.picturing import Pictured
from cvgl_models.training.preparing import (
    check_normalization,
    init_aggregators,
    lay_out_contiguously,
    synchronized,
)
from cvgl_models.training.ranks import Ranks
from cvgl_models.training.steps import Step, seed_of, timed
from cvgl_models.training.validation import Tunable, Validator
from cvgl_models.transforms import Augment, Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
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


class Trainer:
    """The state of one sitting.

    Args:
        recipe: What to do.
        dataset: All splits.
        run: Run folder; only the first process writes there.
        device: Where to compute.
        progress: Told what is going on.
        ranks: This process among all.
    """

    def __init__(
        self, recipe: ModelRecipe, dataset: CrossViewDataset, run: Path, device: torch.device, progress: Progress,
        ranks: Ranks,
    ) -> None:  # fmt: skip
        self.recipe, self.run_folder, self.device, self.progress, self.ranks = recipe, run, device, progress, ranks
        check_loggers(recipe)
        self.training = dataset.select("train")
        self.validation = dataset.select("validation")
        self.pairs = PairRows.of(self.training, recipe.views)
        self.semi_positives = SemiPositives(self.training, device)
        self.sampler: DistanceMapSampler | SeparatedSampler = DistanceMapSampler(
            self.pairs.reference_row,
            self._nearest_on_the_ground(),
            recipe.sampler,
            recipe.seed,
            [self.semi_positives.of_query(row) for row in self.pairs.query_row.tolist()],
        )
        deal(np.arange(recipe.sampler.batch_size), ranks.rank, ranks.count)
        self.miner = Miner(recipe, self.pairs, self.semi_positives)
        self.augment = Augment(recipe.augment, recipe.views.query)
        self.system = synchronized(create_system(recipe).to(device), ranks)
        check_normalization(self.system, recipe.optim.micro_batch, ranks, device)
        if not recipe.optim.channels_last:
            lay_out_contiguously(self.system)
        self.average = WeightAverage(self.system, recipe.optim.ema_decay) if recipe.optim.ema_decay else None
        if recipe.optim.compile:
            compile_encoders(self.system)
        self.optimizer = create_optimizer(self.system, recipe.optim, device)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, enabled=recipe.optim.precision == "fp16")
        self.sampler = own_sampler(self.system, self.training, self.pairs, recipe) or self.sampler
        self.steps_per_epoch = len(self.sampler)
        self.total_steps = recipe.optim.epochs * self.steps_per_epoch
        self.state: dict[str, Any] = {"step": 0, "best": [-math.inf, -math.inf], "worse": 0, "neighbors": None}

    def resume(self) -> None:
        """Go on from the last checkpoint of the run folder, if there is one."""
        folder = last_checkpoint(self.run_folder)
        if folder is None:
            return
        state = load_checkpoint(folder, self.system, self.average.system if self.average else None)
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.scaler.load_state_dict(state.pop("scaler", {}))
        self.state |= state
        if self.state["neighbors"] is not None:
            self.sampler.set_neighbors(self.miner.neighbors(self.state["neighbors"]))
        logger.info("going on at step %d of %d", state["step"], self.total_steps)

    def run(self, limits: Limits, started: float, on_step: Callable[[dict[str, float]], None] | None) -> None:
        """Train until the schedule ends, validation gets no better, or a limit is met."""
        first, stop = self.state["step"], False
        if self._is_finished() or self.ranks.any(limits.met(first, started)):
            return
        sides = ("query", "reference", *(["bev"] if self.recipe.views.bev_px else []))
        views = [Views(self.training, side, self.recipe.views) for side in sides]
        self.progress.stage("decode", sum(map(len, views)))
        loader = PairLoader(self.pairs, views, self.recipe.loader, self.device, progress=self.progress.advance)
        images = Images(self.training, self.recipe, query_views(self.system), is_training=True)
        if not first:
            init_aggregators(self.system, images, self.device)
            self.ranks.share_weights(self.system)
            if self.average is not None:
                self.average.system.load_state_dict(self.system.state_dict())
        validator, pictured = self._validator(), Pictured(PairViews(self.pairs, *views), self.run_folder)
        logger.info("%s", self.sampler.coverage(first // self.steps_per_epoch))
        self.progress.stage("train", self.total_steps)
        self.progress.advance(first)
        log = RunLog(self.run_folder, self.recipe, first) if self.ranks.is_first else None
        report = functools.partial(self._report, log, on_step)
        with contextlib.closing(loader), contextlib.closing(log) if log else contextlib.nullcontext():
            while not stop and not self._is_finished():
                epoch, position = divmod(self.state["step"], self.steps_per_epoch)
                self._mine(images, epoch)
                self.system.begin_epoch(epoch)
                waiting: Step | None = None  # its values are read while the next step is computed
                order = self.sampler.epoch(epoch)[position:]
                for batch, wait_s in timed(loader.batches(order, self.ranks.rank, self.ranks.count)):
                    before, waiting = waiting, self._step(batch, wait_s, started)
                    report(before)
                    if self.state["step"] % self.steps_per_epoch == 0 and self._is_validated(epoch):
                        report(waiting)
                        waiting = None
                        self._validate(validator, log)
                        if self.ranks.is_first:
                            pictured.draw(self._judged(), epoch, self.device)
                    stop = self.ranks.any(limits.met(self.state["step"], started))
                    if stop:
                        break
                report(waiting)
                self._save(log)

    def _step(self, batch: Batch, wait_s: float, started: float) -> Step:
        optim, step, begun = self.recipe.optim, self.state["step"], time.monotonic()
        own = (self.ranks.rank,) if self.ranks.count > 1 else ()
        generator = torch.Generator().manual_seed(seed_of(self.recipe.seed, step, *((0, *own) if own else ())))
        torch.manual_seed(seed_of(self.recipe.seed, step, 1, *own))  # dropout; spares a saved generator state
        # one layout wherever images come from, because the last bits of the augmentation depend on it
        images = {name: getattr(batch, name).contiguous() for name in ("query", "reference", "bev")}
        batch = dataclasses.replace(batch, **images)
        batch = told(self.system, self.augment(batch.to(self.device), generator))
        if self.recipe.sampler.semi_positive_policy != "negative":
            rows = self.ranks.gather(batch.query_row), self.ranks.gather(batch.reference_row)
            batch = dataclasses.replace(batch, ignore=self.semi_positives.for_loss(*rows, self.recipe.sampler))
        warmup_steps = round(optim.warmup_epochs * self.steps_per_epoch)
        lr = learning_rate(step + 1, self.total_steps, warmup_steps, optim.lr, optim.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.system.train()
        terms = backward(
            self.system,
            batch,
            context=lambda: autocast(optim.precision, self.device),
            scale=self.scaler.scale,
            micro_batch=optim.micro_batch,
            ranks=self.ranks,
        )
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.system.parameters(), optim.max_grad_norm or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.system, step)
        self.state["step"] = step + 1
        now = time.monotonic()
        taken_s = max(now - begun + wait_s, 1e-9)
        return Step(
            {"step": step + 1, "epoch": step // self.steps_per_epoch},
            ("loss", *terms, "grad_norm"),
            torch.stack([total(terms), *(term.float() for term in terms.values()), norm.float()]),
            {
                "lr": lr,
                "elapsed_s": round(now - started, 2),
                "images_per_s": round(2 * self.recipe.sampler.batch_size / taken_s, 1),
                "data_wait_share": round(wait_s / taken_s, 4),
            },
        )

    def _report(
        self, log: RunLog | None, on_step: Callable[[dict[str, float]], None] | None, done: Step | None
    ) -> None:
        if done is None:
            return
        values = done.values()
        if not math.isfinite(values["loss"]):
            raise DatasetError(
                f"the loss is {values['loss']} at step {done.place['step'] - 1}; lower optim.lr or look for broken "
                "images in the training split"
            )
        if log is not None:
            log.write(values)
        speed = f"{values['images_per_s']:.0f} images/s, data wait {values['data_wait_share']:.0%}"
        self.progress.advance(1, f"loss {values['loss']:.3f}, {speed}")
        if on_step is not None:
            on_step(values)

    def _validate(self, validator: Validator | PoseValidator, log: RunLog | None) -> None:
        """Measure and keep the present weights unless earlier ones did better; the later of two equals stays."""
        step = self.state["step"]
        found = self.ranks.of_first(self._measured(validator))
        for system in (self.system, self._judged()):  # an average copies what is not trained from the system
            if isinstance(system, Tunable):
                system.adopt(found.values)
        measured = list(found.score)
        better = measured > self.state["best"] or math.isnan(measured[0])
        self.state["worse"] = 0 if better else self.state["worse"] + 1
        if not measured < self.state["best"]:
            self.state["best"] = measured
            if self.ranks.is_first:
                save_weights(self.run_folder / BEST, self._judged(), {"step": str(step)})
        if log is not None:
            log.write({"step": step, **found.values})

    def _validator(self) -> Validator | PoseValidator:
        if self.system.task == "localization":
            return PoseValidator(self.validation, self.recipe, self.system, self.device)
        tune = self.system.tuned if isinstance(self.system, Tunable) else None
        return Validator(self.validation, self.recipe, query_views(self.system), tune)

    def _measured(self, validator: Validator | PoseValidator) -> Measured:
        if isinstance(validator, PoseValidator):
            return validator.measure(self._judged())
        recall = validator.measure(self._embed)
        found = {"validation_recall_at_1": recall[0], "validation_recall_at_10": recall[1]}
        return Measured(recall, {**found, **validator.chosen})

    def _mine(self, images: Images, epoch: int) -> None:
        """Take the neighbors of the epoch, found anew when it is their turn."""
        found = self.state["neighbors"]
        if not self.miner.is_due(epoch) or (found is not None and found["epoch"] == epoch):
            return
        found = self.ranks.of_first(self.miner.find(functools.partial(self._embed, images), epoch))
        self.state["neighbors"] = found
        self.sampler.set_neighbors(self.miner.neighbors(found))

    def _embed(self, images: Images, side: str, index_N: NDArray[np.int64]) -> Tensor:
        precision, judged = self.recipe.optim.precision, self._judged()
        assert isinstance(judged, RetrievalModule)
        embedded = embed_together(judged, images, side, index_N, precision, self.device, self.ranks)
        return embedded.to(self.device)  # where it is searched

    def _judged(self) -> SystemModule:
        """Return the weights that are validated and kept."""
        return self.average.system if self.average is not None else self.system

    def _is_validated(self, epoch: int) -> bool:
        return (epoch + 1) % self.recipe.validation.every_n_epochs == 0 or epoch + 1 == self.recipe.optim.epochs

    def _is_finished(self) -> bool:
        patience = self.recipe.optim.patience
        return bool(self.state["step"] >= self.total_steps or 0 < patience <= self.state["worse"])

    def _nearest_on_the_ground(self) -> Mapping[int, list[int]]:
        if not self.recipe.sampler.use_distance_map or not self.training.distance_map.num_rows:
            return {}
        rows = self.training.distance_map["neighbor_rows"].to_pylist()
        return {row: [near for near in neighbors if near >= 0] for row, neighbors in enumerate(rows)}

    def _save(self, log: RunLog | None) -> None:
        if log is None:
            return
        log.flush()
        state = {**self.state, "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        save_checkpoint(self.run_folder, self.system, state, self.average.system if self.average else None)
