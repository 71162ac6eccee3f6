"""Which pairs share a batch.

P pairs, each of one reference; a batch holds B pairs of B different references.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvgl_data.errors import RecipeError
from cvgl_models.recipe import SamplerRecipe

_Unused = Mapping[int, list[int]]
"""The pairs of each reference that are still to come in this epoch, the next one last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of the pairs an epoch uses."""

    num_pairs: int
    num_batches: int
    num_unused: int
    """Pairs that come in no batch of this epoch; others will be left out in the next one."""
    num_semi_positives: int
    """Places in the batches where a reference is a semi-positive of another pair's query, as far as these are known."""

    def __str__(self) -> str:
        return (
            f"{self.num_pairs:,} pairs in {self.num_batches:,} batches; {self.num_unused:,} pairs "
            f"({self.num_unused / self.num_pairs:.1%}) are left out of an epoch, other ones each time"
        )


def deal(batch_B: NDArray[np.int64], rank: int, num_ranks: int) -> NDArray[np.int64]:
    """Return the share of one process of a batch; the shares put together in order of rank are the batch.

    Raises:
        RecipeError: If the shares cannot be equal.
    """
    share, rest = divmod(len(batch_B), num_ranks)
    if rest:
        raise RecipeError(
            f"recipe key 'sampler.batch_size' is {len(batch_B)}, of which {num_ranks} processes cannot have equal "
            f"shares; set it to a multiple of {num_ranks}"
        )
    return batch_B[rank * share : (rank + 1) * share]


class DistanceMapSampler:
    """Batches of near references: an anchor, its nearest neighbors and some from further away, then another anchor.

    Every batch is full and every pair comes at most once per epoch. As many batches are made as the rule "one pair per
    reference and batch" allows: a reference whose pairs would not fit into the remaining batches otherwise goes into
    the next one first.

    Args:
        reference_P: Reference of each pair.
        neighbors: For a reference, the others from near to far; references without pairs are skipped.
        recipe: Batch size and numbers of neighbors.
        seed: With the epoch and the neighbors, it decides everything.
        semi_positives_P: The references that cover each pair's query without being its positive; needed by
            ``exclude_semi_positives`` and for the count of the coverage.

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
        semi_positives_P: Sequence[Collection[int]] | None = None,
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
        self.semi_positives_P = [frozenset(rows) for rows in semi_positives_P or [()] * len(self.reference_P)]
        # with a bound on the anchors, each gets its share of the batch
        per_anchor = recipe.batch_size // recipe.anchors - 1 if recipe.anchors else recipe.neighbor_select
        self._select = min(recipe.neighbor_select, per_anchor)
        self._num_batches = _max_batches(counts, recipe.batch_size)
        self.set_neighbors(neighbors)

    def set_neighbors(self, neighbors: Mapping[int, Sequence[int]]) -> None:
        """Take other neighbors from now on, from near to far; the number of batches stays what it is."""
        owners = set(self.reference_P.tolist())
        covering: dict[int, set[int]] = {reference: set() for reference in owners}
        if self.recipe.exclude_semi_positives:
            for reference, semi in zip(self.reference_P.tolist(), self.semi_positives_P, strict=True):
                covering[reference] |= semi
        self.neighbors = {
            reference: [
                near for near in map(int, neighbors.get(reference, ())) if near in owners and near not in removed
            ][: self.recipe.neighbor_range]
            for reference, removed in covering.items()
        }

    def __len__(self) -> int:
        """Return the number of batches per epoch, the same in every epoch."""
        return self._num_batches

    def epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the batches of an epoch, each the indices of B pairs."""
        return list(self._batches(np.random.default_rng([self.seed, epoch])))

    def coverage(self, epoch: int) -> Coverage:
        """Return what an epoch uses."""
        batches = self.epoch(epoch)
        semi = 0
        for batch in batches:
            references = set(self.reference_P[batch].tolist())
            semi += sum(len(self.semi_positives_P[pair] & references) for pair in batch)
        return Coverage(
            num_pairs=len(self.reference_P),
            num_batches=len(batches),
            num_unused=len(self.reference_P) - sum(map(len, batches)),
            num_semi_positives=semi,
        )

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

    def _fill(self, unused: _Unused, urgent: list[int], waiting: list[int], rng: np.random.Generator) -> list[int]:
        """Return the references of one batch: anchors in order, each followed by its neighbors while there is room."""
        size = self.recipe.batch_size
        batch = _Filling(unused, self.semi_positives_P if self.recipe.exclude_semi_positives else None)
        for reference in urgent:
            batch.add(reference)
        for anchor in [*urgent, *waiting]:
            if len(batch.references) == size:
                break
            if anchor not in urgent and (anchor in batch.references or batch.conflicts(anchor)):
                continue
            batch.add(anchor)
            for neighbor in self._neighbors(anchor, batch, rng):
                if len(batch.references) == size:
                    break
                if not batch.conflicts(neighbor):
                    batch.add(neighbor)
        for reference in waiting:  # a full batch comes before one without semi-positives
            if len(batch.references) == size:
                break
            batch.add(reference)
        return list(batch.references)

    def _neighbors(self, anchor: int, batch: _Filling, rng: np.random.Generator) -> list[int]:
        near = [
            reference
            for reference in self.neighbors[anchor]
            if batch.unused[reference] and reference not in batch.references
        ]
        half = self._select // 2
        far = near[half:]
        drawn = rng.permutation(len(far))[: self._select - half]
        return near[:half] + [far[index] for index in drawn]


class _Filling:
    """A batch being filled.

    Args:
        unused: The pairs still to come.
        semi_positives_P: Semi-positives of each pair if they are to be kept out.
    """

    def __init__(self, unused: _Unused, semi_positives_P: Sequence[frozenset[int]] | None) -> None:
        self.unused = unused
        self.references: dict[int, None] = {}
        self._semi_positives_P = semi_positives_P
        self._covering: set[int] = set()

    def add(self, reference: int) -> None:
        """Add a reference with its next pair; nothing happens if it is there already."""
        self.references[reference] = None
        if self._semi_positives_P is not None:
            self._covering |= self._semi_positives_P[self.unused[reference][-1]]

    def conflicts(self, reference: int) -> bool:
        """Whether the reference covers a query of the batch, or its own query is covered by one of the batch."""
        if self._semi_positives_P is None:
            return False
        covers = self._semi_positives_P[self.unused[reference][-1]]
        return reference in self._covering or any(other in self.references for other in covers)


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
