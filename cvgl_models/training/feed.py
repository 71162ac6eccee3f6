"""Views of a dataset for the network to be looked at with: validation, mining, the start of a head."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset
from cvgl_models.batches import Views, fits_in_memory, in_memory, load_views
from cvgl_models.recipe import ModelRecipe


class Images:
    """Both sides of a dataset as views.

    Args:
        dataset: Queries and references.
        recipe: ``views``, ``loader`` and ``validation.batch_size`` are read.
        query_rows: Use these queries only.
        keep: Keep views in memory if all fit.
    """

    def __init__(
        self,
        dataset: CrossViewDataset,
        recipe: ModelRecipe,
        *,
        query_rows: NDArray[np.int64] | None = None,
        keep: bool = False,
    ) -> None:
        self.dataset, self.recipe = dataset, recipe
        self.query = Views(dataset, "query", recipe.views, query_rows)
        self.reference = Views(dataset, "reference", recipe.views)
        sides = [self.query, self.reference]
        kept = keep and fits_in_memory(sides, recipe.loader)
        self._cache = {side.side: in_memory(side, recipe.loader) for side in sides} if kept else {}

    def stream(self, side: str, index_N: NDArray[np.int64]) -> Iterator[Tensor]:
        """Yield the chosen views in batches, uint8."""
        size = self.recipe.validation.batch_size
        if self._cache:
            yield from (self._cache[side][index_N[start : start + size]] for start in range(0, len(index_N), size))
        else:
            rows = (self.query if side == "query" else self.reference).rows[index_N]
            yield from load_views(Views(self.dataset, side, self.recipe.views, rows), self.recipe.loader, size)
