"""Views of a dataset for the network to be looked at with: validation, mining, the start of a head."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset
from cvgl_models.batches import Views, fits_in_memory, in_memory, load_views
from cvgl_models.recipe import ModelRecipe
from cvgl_models.transforms import Batch


class Images:
    """Both sides of a dataset as views.

    Args:
        dataset: Queries and references.
        recipe: ``views``, ``loader`` and ``validation.batch_size`` are read.
        query_views: Fields of a batch that queries are embedded from.
        query_rows: Use these queries only.
        keep: Keep views in memory if all fit.
        is_training: Whether the recipe may skip images that cannot be decoded; they are black here.
    """

    def __init__(
        self,
        dataset: CrossViewDataset,
        recipe: ModelRecipe,
        query_views: tuple[str, ...] = ("query",),
        *,
        query_rows: NDArray[np.int64] | None = None,
        keep: bool = False,
        is_training: bool = False,
    ) -> None:
        self.dataset, self.recipe, self.is_training = dataset, recipe, is_training
        self.fields = {"query": query_views, "reference": ("reference",)}
        rows = {"reference": None}
        names = [*query_views, "reference"]
        self.views = {name: Views(dataset, name, recipe.views, rows.get(name, query_rows)) for name in names}
        kept = keep and fits_in_memory(list(self.views.values()), recipe.loader)
        self._cache = {name: in_memory(views, recipe.loader) for name, views in self.views.items()} if kept else {}

    def count(self, side: str) -> int:
        """Return the number of queries, or of references."""
        return len(self.views[self.fields[side][0]])

    def stream(self, side: str, index_N: NDArray[np.int64]) -> Iterator[Batch]:
        """Yield the chosen queries or references in batches, images uint8."""
        fields = self.fields[side]
        for parts in zip(*(self._stream(name, index_N) for name in fields), strict=True):
            yield Batch(**dict(zip(fields, parts, strict=True)))

    def _stream(self, name: str, index_N: NDArray[np.int64]) -> Iterator[Tensor]:
        size = self.recipe.validation.batch_size
        if self._cache:
            yield from (self._cache[name][index_N[start : start + size]] for start in range(0, len(index_N), size))
        else:
            views = Views(self.dataset, name, self.recipe.views, self.views[name].rows[index_N])
            black = self.is_training and self.recipe.loader.on_error == "skip"  # its pair is never trained on
            yield from load_views(views, self.recipe.loader, size, black_if_broken=black)
