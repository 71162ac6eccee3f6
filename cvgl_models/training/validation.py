"""Measuring on the validation split, to choose the best weights and settings; never on the test split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset
from cvgl_models.metrics import recall_at_k
from cvgl_models.recipe import ModelRecipe
from cvgl_models.retrieval import ranks as rank_of_positives
from cvgl_models.training.feed import Images

logger = logging.getLogger(__name__)

Embed = Callable[[Images, str, NDArray[np.int64]], Tensor]
"""Embeds the views of one side that an index chooses: (N, D)."""

Tune: TypeAlias = Callable[[Tensor, Tensor, NDArray[np.int64]], tuple[Tensor, Tensor, dict[str, float]]]
"""See `Tunable.tuned`."""


@runtime_checkable
class Tunable(Protocol):
    """A retrieval system with settings that the validation split chooses, as no gradient can."""

    def tuned(
        self, query_QD: Tensor, reference_RD: Tensor, positives_Q: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return embeddings as they are with the best settings, and these, named as they are logged; none: no choice.

        The system itself does not change: of several processes, one decides for all.
        """

    def adopt(self, settings: Mapping[str, float]) -> None:
        """Keep what was chosen with the weights, in a buffer; other values may stand beside it."""


class Validator:
    """The validation split, evenly thinned out to the recipe's number of queries.

    Args:
        dataset: The split.
        recipe: ``validation``, ``views`` and ``loader`` are read.
        query_views: Fields of a batch that queries are embedded from.
        tune: Chooses the settings with which is measured; None: there is nothing to choose.

    Attributes:
        chosen: The settings that were chosen last.
    """

    def __init__(
        self,
        dataset: CrossViewDataset,
        recipe: ModelRecipe,
        query_views: tuple[str, ...] = ("query",),
        tune: Tune | None = None,
    ) -> None:
        positives = dataset.positives()
        rows = np.flatnonzero(positives >= 0)
        if len(rows) > recipe.validation.max_queries:
            rows = rows[np.linspace(0, len(rows) - 1, recipe.validation.max_queries).astype(np.int64)]
        if not len(rows):
            logger.warning(
                "there are no validation queries; the last weights count as the best, and settings that would be "
                "chosen by them stay as they begin"
            )
        self.positives_Q, self.tune, self.chosen = positives[rows], tune, dict[str, float]()
        self.images = Images(dataset, recipe, query_views, query_rows=rows, keep=True) if len(rows) else None

    def measure(self, embed: Embed) -> tuple[float, float]:
        """Return recall at 1 and at 10, with the best settings if there are any to choose; NaN without queries."""
        if self.images is None:
            return float("nan"), float("nan")
        images = self.images
        query_QD, reference_RD = (embed(images, side, np.arange(images.count(side))) for side in ("query", "reference"))
        if self.tune is not None:
            query_QD, reference_RD, self.chosen = self.tune(query_QD, reference_RD, self.positives_Q)
            if self.chosen:
                told = ", ".join(f"{name} {value:g}" for name, value in self.chosen.items())
                logger.info("chosen on the validation split: %s", told)
        found = rank_of_positives(query_QD, reference_RD, self.positives_Q).cpu()
        return recall_at_k(found, 1), recall_at_k(found, 10)
