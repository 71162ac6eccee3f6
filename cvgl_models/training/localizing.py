"""What is particular to training a localization system: its batches, and how its best weights are chosen."""

from __future__ import annotations

import functools
import math
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError, RecipeError
from cvgl_models.batches import PairRows
from cvgl_models.localization.conditions import PoseConditions, without
from cvgl_models.localization.metrics import measures
from cvgl_models.localization.predicting import Collected, Show, in_order, localize, only_pairs, truth_and_poses
from cvgl_models.localization.sampling import SeparatedSampler, conflicts
from cvgl_models.outcomes import select_covering
from cvgl_models.recipe import ModelRecipe
from cvgl_models.systems import LocalizationModule, SystemModule
from cvgl_models.training.embedding import autocast
from cvgl_models.training.measured import NOTHING, Measured
from cvgl_models.transforms import Batch


def uses_labels(system: SystemModule) -> bool:
    """Whether the system may see the true places."""
    return bool(getattr(system, "selects_by_labels", True))


def own_sampler(
    system: SystemModule, dataset: CrossViewDataset, pairs: PairRows, recipe: ModelRecipe
) -> SeparatedSampler | None:
    """Return the sampler of a localization system that takes the rest of a batch for negatives, None for others.

    Raises:
        RecipeError: If not even one batch can be made, or the recipe asks for what only retrieval systems do.
    """
    if system.task != "localization":
        return None
    if recipe.sampler.similarity_every_n_epochs:
        raise RecipeError("recipe key 'sampler.similarity_every_n_epochs' is for retrieval systems; set it to 0")
    if uses_labels(system) and not recipe.sampler.min_distance_m:
        return None
    return separated_sampler(dataset, pairs, recipe)


def separated_sampler(dataset: CrossViewDataset, pairs: PairRows, recipe: ModelRecipe) -> SeparatedSampler:
    """Return the sampler whose batches hold no two pairs that show the same ground.

    Raises:
        RecipeError: If not even one batch can be made.
    """
    lonlat_Q2 = np.stack([dataset.queries[name].to_numpy() for name in ("lon", "lat")], 1)
    covering = select_covering(pairs.covering, pairs.query_row)
    found = conflicts(covering, lonlat_Q2[pairs.query_row], recipe.sampler.min_distance_m)
    return SeparatedSampler(found, recipe.sampler.batch_size, recipe.seed)


def told(system: SystemModule, batch: Batch) -> Batch:
    """Return a training batch as its system gets it: one that learns without positions gets none."""
    return batch if uses_labels(system) else without(batch, "uv")


class PoseValidator:
    """The validation pairs of a localization system, evenly thinned out to the recipe's number.

    Systems are judged by their median error, then by the mean; those that must not see positions by the mean of their
    own `LocalizationModule.validation_score`. Headings are as little known as in training.

    Args:
        dataset: The split.
        recipe: ``validation``, ``views``, ``loader``, ``sampler`` and ``augment.heading_noise_deg`` are read.
        system: Its kind counts, not its weights.
        device: Where to compute.
    """

    def __init__(
        self, dataset: CrossViewDataset, recipe: ModelRecipe, system: SystemModule, device: torch.device
    ) -> None:
        self._recipe, self._device, self._uses_labels = recipe, device, uses_labels(system)
        conditions = PoseConditions(heading_noise_deg=recipe.augment.heading_noise_deg, seed=recipe.seed)
        try:
            self._pairs = only_pairs(dataset, max_pairs=recipe.validation.max_queries)
        except DatasetError:
            self._show: Show | None = None
            return
        self._show = Show(self._pairs, recipe, conditions, keep=True)
        self._order = in_order(len(self._show), recipe.validation.batch_size)
        if not self._uses_labels:
            self._order = self._like_training()

    def measure(self, judged: SystemModule) -> Measured:
        """Return how well a system does."""
        if self._show is None:
            return NOTHING
        judged.eval()
        try:
            return self._by_error(judged, self._show) if self._uses_labels else self._by_own_score(judged, self._show)
        finally:
            self._show.close()  # of the processes that decode; they come back when they are needed

    def _by_error(self, judged: SystemModule, show: Show) -> Measured:
        context = functools.partial(autocast, self._recipe.optim.precision, self._device)
        collected = Collected()
        for one in show.batches(self._order):
            collected.add(one, localize(judged, one.batch, self._device, context))
        truth, found = truth_and_poses(self._pairs, collected.arrays())
        whole = measures(truth, found.xy_m, found.yaw_deg)
        values = {
            "validation_median_error_m": whole.median_error_m,
            "validation_mean_error_m": whole.mean_error_m,
            "validation_median_yaw_error_deg": whole.median_yaw_error_deg,
        }
        return Measured((-whole.median_error_m, -whole.mean_error_m), values)

    @torch.inference_mode()
    def _by_own_score(self, judged: SystemModule, show: Show) -> Measured:
        total, num = 0.0, 0
        for one in show.batches(self._order):
            with autocast(self._recipe.optim.precision, self._device):
                score = cast(LocalizationModule, judged).validation_score(one.batch.to(self._device))
            total += float(score.double().mean()) * len(one.index)
            num += len(one.index)
        mean = total / num
        mean = mean if not math.isnan(mean) else -math.inf  # diverged, which is worse than any weights
        return Measured((mean, mean), {"validation_score": mean})

    def _like_training(self) -> list[NDArray[np.int64]]:
        """Return batches in which every other pair is a negative, as far as there are enough of them."""
        try:
            sampler = separated_sampler(self._pairs, PairRows.of(self._pairs, self._recipe.views), self._recipe)
        except RecipeError:
            return self._order
        return sampler.epoch(0)
