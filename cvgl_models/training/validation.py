"""Measuring on the validation split, to choose the best weights; never on the test split."""

from __future__ import annotations

import logging
from collections.abc import Callable

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


class Validator:
    """The validation split, evenly thinned out to the recipe's number of queries.

    Args:
        dataset: The split.
        recipe: ``validation``, ``views`` and ``loader`` are read.
        query_views: Fields of a batch that queries are embedded from.
    """

    def __init__(
        self, dataset: CrossViewDataset, recipe: ModelRecipe, query_views: tuple[str, ...] = ("query",)
    ) -> None:
        positives = dataset.positives()
        rows = np.flatnonzero(positives >= 0)
        if len(rows) > recipe.validation.max_queries:
            rows = rows[np.linspace(0, len(rows) - 1, recipe.validation.max_queries).astype(np.int64)]
        if not len(rows):
            logger.warning("there are no validation queries; the last weights count as the best")
        self.positives_Q = positives[rows]
        self.images = Images(dataset, recipe, query_views, query_rows=rows, keep=True) if len(rows) else None

    def measure(self, embed: Embed) -> tuple[float, float]:
        """Return recall at 1 and at 10, NaN without queries."""
        if self.images is None:
            return float("nan"), float("nan")
        images = self.images
        query_QD, reference_RD = (embed(images, side, np.arange(images.count(side))) for side in ("query", "reference"))
        found = rank_of_positives(query_QD, reference_RD, self.positives_Q)
        return recall_at_k(found, 1), recall_at_k(found, 10)
