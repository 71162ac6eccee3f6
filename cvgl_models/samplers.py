"""Which pairs share a batch.

P pairs, each of one reference; a batch holds B pairs of B different references.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvgl_data.errors import RecipeError
from cvgl_models.recipe import SamplerRecipe


class DistanceMapSampler:
    """Batches of near references: an anchor, its nearest neighbors and some from further away, then another anchor.

    Every batch is full and every pair comes at most once per epoch. As many batches are made as the rule "one pair per
    reference and batch" allows: a reference whose pairs would not fit into the remaining batches otherwise goes into
    the next one first.

    Args:
        reference_P: Reference of each pair.
        neighbors: For a reference, the others from near to far; references without pairs are skipped.
        recipe: Batch size and numbers of neighbors.
        seed: With the epoch, it decides everything.

    Raises:
        RecipeError: If there are fewer references with pairs than fit into one batch.

    Source:
        Sample4Geo's GPS sampling, which drops the unfinished batch and up to 1 % of the pairs.
    """

    def __init__(
        self,
        reference_P: ArrayLike,
        neighbors: Mapping[int, Sequence[int]],
        recipe: SamplerRecipe,
        seed: int = 0,
    ) -> None:
        self.reference_P = np.asarray(reference_P, np.int64)
        self.recipe = recipe
        self.seed = seed
        counts = np.unique(self.reference_P, return_counts=True)[1]
        if len(counts) < recipe.batch_size:
            raise RecipeError(
                f"recipe key 'sampler.batch_size' is {recipe.batch_size}, but only {len(counts)} references have "
                f"training queries; set it to {len(counts)} or less, or build a larger dataset"
            )
        owners = set(self.reference_P.tolist())
        self.neighbors = {
            reference: [int(near) for near in neighbors.get(reference, ()) if int(near) in owners][
                : recipe.neighbor_range
            ]
            for reference in owners
        }
        self._num_batches = _max_batches(counts, recipe.batch_size)

    def __len__(self) -> int:
        """Return the number of batches per epoch, the same in every epoch."""
        return self._num_batches

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch, each the indices of B pairs."""
        return list(self._batches(np.random.default_rng([self.seed, epoch])))

    def _batches(self, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        unused: dict[int, list[int]] = {}
        order = rng.permutation(len(self.reference_P)).tolist()
        for pair in order:
            unused.setdefault(int(self.reference_P[pair]), []).append(pair)
        waiting = [int(self.reference_P[pair]) for pair in order]
        for left in range(self._num_batches, 0, -1):
            urgent = [reference for reference, pairs in unused.items() if len(pairs) >= left]
            batch = self._fill(unused, urgent[: self.recipe.batch_size], waiting, rng)
            yield np.array([unused[reference].pop() for reference in batch])
            waiting = [reference for reference in waiting if unused[reference]]

    def _fill(
        self, unused: Mapping[int, list[int]], urgent: list[int], waiting: list[int], rng: np.random.Generator
    ) -> list[int]:
        """Return the references of one batch: anchors in order, each followed by its neighbors while there is room."""
        size = self.recipe.batch_size
        batch = dict.fromkeys(urgent)
        for anchor in [*urgent, *waiting]:
            if len(batch) == size:
                break
            if anchor in batch and anchor not in urgent:
                continue
            batch[anchor] = None
            for neighbor in self._neighbors(anchor, unused, batch, rng):
                if len(batch) == size:
                    break
                batch[neighbor] = None
        return list(batch)

    def _neighbors(
        self, anchor: int, unused: Mapping[int, list[int]], batch: Mapping[int, None], rng: np.random.Generator
    ) -> list[int]:
        near = [reference for reference in self.neighbors[anchor] if unused[reference] and reference not in batch]
        half = self.recipe.neighbor_select // 2
        far = near[half:]
        drawn = rng.permutation(len(far))[: self.recipe.neighbor_select - half]
        return near[:half] + [far[index] for index in drawn]


def _max_batches(counts: NDArray[np.int64], batch_size: int) -> int:
    """Return the largest t with ``sum(min(counts, t)) >= t * batch_size``: so many batches can be made."""
    low, high = 0, int(counts.sum()) // batch_size
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(counts, middle).sum() >= middle * batch_size:
            low = middle
        else:
            high = middle - 1
    return low
