"""Dynamic similarity sampling: which references the model itself takes for near.

Shapes: Q queries, R references, D embedding, K neighbors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_models.batches import PairRows
from cvgl_models.recipe import ModelRecipe
from cvgl_models.retrieval import search
from cvgl_models.semi_positives import SemiPositives

Embed = Callable[[str, NDArray[np.int64]], Tensor]
"""Embeds the views of one side that an index chooses: (N, D)."""


def similarity_neighbors(
    query_QD: Tensor,
    reference_RD: Tensor,
    positive_Q: NDArray[np.int64],
    count: int,
    removed: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> NDArray[np.int64]:
    """Return for each reference the others that its queries are most similar to, best first, padded with -1.

    What counts is the highest similarity to any of the reference's queries; equal ones stand in row order.

    Args:
        query_QD: Embeddings of unit length.
        reference_RD: Embeddings of unit length.
        positive_Q: Reference of each query.
        count: K.
        removed: Pairs (reference, other) that must not be neighbors, besides the references themselves.

    Source:
        Sample4Geo's dynamic similarity sampling, in which the last of a reference's queries decided alone.
    """
    num_references = len(reference_RD)
    own = np.arange(num_references)
    from_ref, to_ref = removed if removed is not None else (own[:0], own[:0])
    banned = np.unique(np.concatenate([own * num_references + own, from_ref * num_references + to_ref]))
    # whatever is removed from a list, K remain in it
    most_removed = int(np.bincount(banned // num_references, minlength=num_references).max(initial=0))
    found_QK, score_QK = (part.cpu().numpy() for part in search(query_QD, reference_RD, count + most_removed))
    reference = np.repeat(positive_Q, found_QK.shape[1])
    other, score = found_QK.ravel().astype(np.int64), score_QK.ravel()
    key = reference * num_references + other
    kept = (other >= 0) & ~np.isin(key, banned)
    key, score = key[kept], score[kept]
    best_first = np.lexsort((-score, key))
    key, first = np.unique(key[best_first], return_index=True)
    score = score[best_first][first]
    reference, other = np.divmod(key, num_references)
    order = np.lexsort((other, -score, reference))
    reference, other = reference[order], other[order]
    place = np.arange(len(reference)) - np.searchsorted(reference, reference)
    neighbors = np.full((num_references, count), -1, np.int64)
    kept = place < count
    neighbors[reference[kept], place[kept]] = other[kept]
    return neighbors


class Miner:
    """Finds neighbors anew every few epochs and keeps them in the state of the training.

    Args:
        recipe: ``sampler`` is read.
        pairs: Training pairs.
        semi_positives: Taken out of the neighbors if the recipe excludes them.
    """

    def __init__(self, recipe: ModelRecipe, pairs: PairRows, semi_positives: SemiPositives) -> None:
        self.recipe = recipe.sampler
        self.query_row, first = np.unique(pairs.query_row, return_index=True)
        self.reference_row, self.positive_Q = np.unique(pairs.reference_row[first], return_inverse=True)
        self.semi_positives = semi_positives

    def is_due(self, epoch: int) -> bool:
        """Whether an epoch begins with other neighbors than the one before."""
        every = self.recipe.similarity_every_n_epochs
        return every > 0 and epoch > 0 and epoch % every == 0

    def find(self, embed: Embed, epoch: int) -> dict[str, Any]:
        """Return the neighbors from an epoch on: ``epoch`` and int32 ``rows`` (R, K) of the references with pairs."""
        query_QD, reference_RD = embed("query", self.query_row), embed("reference", self.reference_row)
        rows = similarity_neighbors(
            query_QD, reference_RD, self.positive_Q, self.recipe.neighbor_range, self._removed()
        )
        return {"epoch": epoch, "rows": torch.from_numpy(rows.astype(np.int32))}

    def neighbors(self, found: dict[str, Any]) -> dict[int, list[int]]:
        """Return what `find` found as rows of the dataset's references."""
        return {
            int(reference): self.reference_row[near[near >= 0]].tolist()
            for reference, near in zip(self.reference_row, found["rows"].numpy(), strict=True)
        }

    def _removed(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        if not self.recipe.exclude_semi_positives:
            return None
        place = {int(reference): index for index, reference in enumerate(self.reference_row)}
        pairs = [
            (reference, place[other])
            for reference, query in zip(self.positive_Q.tolist(), self.query_row.tolist(), strict=True)
            for other in self.semi_positives.of_query(query)
            if other in place
        ]
        both = np.array(pairs, np.int64).reshape(-1, 2)
        return both[:, 0], both[:, 1]
