"""Batches for losses that take any other reference of the batch for a negative: their places have nothing in common.

N items (pairs of a query and its positive), B of a batch. Two items conflict if a reference covers both queries, or if
the queries lie near to one another; conflicting items never share a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cvgl_data.errors import RecipeError
from cvgl_data.geo import EARTH_RADIUS_M, unit_sphere
from cvgl_models.retrieval import Covering
from cvgl_models.samplers import Coverage

logger = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ATTEMPTS = 8
_CELL_AT_LEAST_M = 10.0  # keeps the number of a cell on the globe below 2**63


class SeparatedSampler:
    """Full batches without conflicts; every item comes once per epoch, but for fewer than B that are left over.

    Where so many places lie close together that this is impossible, there are fewer batches, as many as can be found,
    and other items are left out in each epoch.

    Args:
        conflicts: (indptr, items): item i conflicts with ``items[indptr[i]:indptr[i + 1]]``.
        batch_size: B.
        seed: With the epoch, it decides everything.

    Raises:
        RecipeError: If not even one batch can be made.

    Source:
        The samplers of G2SWeakly and GeoDistill, which let batches grow beyond their size and lose items.
    """

    def __init__(self, conflicts: Covering, batch_size: int, seed: int = 0) -> None:
        indptr, items = (np.asarray(part, np.int64) for part in conflicts)
        self._conflicts = np.split(items, indptr[1:-1])
        self.batch_size, self.seed = batch_size, seed
        self._degree_N = np.diff(indptr)
        self._num_batches, self._spare = self._most()

    def __len__(self) -> int:
        """Return the number of batches per epoch, the same in every epoch."""
        return self._num_batches

    def epoch(self, epoch: int) -> list[Ints]:
        """Return the batches of an epoch, each B items."""
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self.seed, epoch, attempt])
            batches = self._dealt(self._num_batches, rng)
            if batches is not None:
                return batches
        rng = np.random.default_rng([self.seed, epoch])  # nothing new was found: the first ones in another order
        return [self._spare[index] for index in rng.permutation(self._num_batches)]

    def set_neighbors(self, neighbors: Mapping[int, Sequence[int]]) -> None:
        """Raise `RecipeError`: near references have no place in these batches."""
        raise RecipeError("batches of separate places take no near references; set 'sampler.min_distance_m' to 0")

    def coverage(self, epoch: int) -> Coverage:
        """Return what an epoch uses."""
        del epoch  # the same in all
        num = len(self._degree_N)
        unused = num - self._num_batches * self.batch_size
        return Coverage(num_pairs=num, num_batches=self._num_batches, num_unused=unused, num_semi_positives=0)

    def _most(self) -> tuple[int, list[Ints]]:
        """Return the greatest number of batches found, and such batches."""
        low, spare = 0, []
        high = wanted = len(self._degree_N) // self.batch_size
        num = wanted
        while low < high:
            rng = np.random.default_rng([self.seed, 0])
            batches = self._dealt(num, rng)
            if batches is None:
                high = num - 1
            else:
                low, spare = num, batches
            num = (low + high + 1) // 2
        if not low:
            raise RecipeError(
                f"no {self.batch_size} of {len(self._degree_N)} training queries are far enough from one another for "
                "one batch; lower recipe key 'sampler.batch_size' or 'sampler.min_distance_m', or build a larger area"
            )
        if low < wanted:
            logger.warning("places lie so close together that an epoch has %d batches, not %d", low, wanted)
        return low, spare

    def _dealt(self, num_batches: int, rng: np.random.Generator) -> list[Ints] | None:
        """Return so many full batches, None if they are not found."""
        hands = _Hands(num_batches, self.batch_size, self._conflicts)
        order = rng.permutation(len(self._conflicts))
        crowd = np.log2(self._degree_N[order] + 1).astype(np.int64)  # those with many conflicts choose first
        missing = num_batches * self.batch_size
        for item in order[np.argsort(-crowd, kind="stable")].tolist():
            if not missing:
                break
            missing -= hands.place(item, rng)
        return None if missing else [rng.permutation(np.array(hand, np.int64)) for hand in hands.items]


class _Hands:
    """Batches being filled, all to about the same level."""

    def __init__(self, num_batches: int, batch_size: int, conflicts: list[Ints]) -> None:
        self.items: list[list[int]] = [[] for _ in range(num_batches)]
        self._size, self._conflicts = batch_size, conflicts
        self._level_T = np.zeros(num_batches, np.int64)
        self._batch_N = np.full(len(conflicts), -1)

    def place(self, item: int, rng: np.random.Generator) -> bool:
        """Put an item into one of the emptiest batches that it has no conflict with; False if there is none."""
        is_open_T = self._is_open(item)
        level_T = np.where(is_open_T, self._level_T, self._size)
        lowest = int(level_T.min())
        if lowest < self._size:
            self._put(item, int(rng.choice(np.flatnonzero(level_T == lowest))))
            return True
        return self._make_room(item, rng.permutation(np.flatnonzero(is_open_T)))

    def _make_room(self, item: int, full: Ints) -> bool:
        """Put an item into a full batch, one of whose items goes where the new one cannot."""
        has_room_T = self._level_T < self._size
        for batch in full.tolist():
            for other in list(self.items[batch]):
                goals = np.flatnonzero(has_room_T & self._is_open(other))
                if len(goals):
                    self.items[batch].remove(other)
                    self._level_T[batch] -= 1
                    self._put(other, int(goals[0]))
                    self._put(item, batch)
                    return True
        return False

    def _is_open(self, item: int) -> NDArray[np.bool_]:
        is_open_T = np.ones(len(self.items), bool)
        taken = self._batch_N[self._conflicts[item]]
        is_open_T[taken[taken >= 0]] = False
        return is_open_T

    def _put(self, item: int, batch: int) -> None:
        self.items[batch].append(item)
        self._level_T[batch] += 1
        self._batch_N[item] = batch


def conflicts(covering: Covering, lonlat_N2: Floats, min_distance_m: float) -> Covering:
    """Return which items conflict.

    Args:
        covering: (indptr, rows) of the references that cover each item's query.
        lonlat_N2: Places of the queries, degrees.
        min_distance_m: Queries nearer than this conflict; 0: only those that share a reference.

    Returns:
        (indptr, items), symmetric, without the item itself.
    """
    indptr, rows = (np.asarray(part, np.int64) for part in covering)
    item = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    edges = _equal_pairs(rows, item)
    if min_distance_m > 0:
        edges = np.concatenate([edges, _near_pairs(EARTH_RADIUS_M * unit_sphere(*lonlat_N2.T), min_distance_m)])
    edges = edges[edges[:, 0] != edges[:, 1]]
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    counts = np.bincount(edges[:, 0], minlength=len(indptr) - 1)
    return np.concatenate([[0], np.cumsum(counts)]), edges[:, 1]


def _equal_pairs(key_M: Ints, item_M: Ints) -> Ints:
    """Return (E, 2) items whose keys are equal, each pair both ways."""
    order = np.argsort(key_M, kind="stable")
    return _joined(key_M, key_M[order], item_M, item_M[order])


def _near_pairs(xyz_m_N3: Floats, distance_m: float) -> Ints:
    """Return (E, 2) items that lie nearer than a distance, found in a grid of cells of that size."""
    cell_N3 = np.floor(xyz_m_N3 / max(distance_m, _CELL_AT_LEAST_M)).astype(np.int64)
    cell_N3 -= cell_N3.min(0, initial=0) - 1
    span_3 = cell_N3.max(0, initial=0) + 2
    weight_3 = np.array([span_3[1] * span_3[2], span_3[2], 1])
    key_N = cell_N3 @ weight_3
    order = np.argsort(key_N, kind="stable")
    found = []
    for offset in np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3):
        pairs = _joined(key_N + offset @ weight_3, key_N[order], np.arange(len(key_N)), order)
        away_m = np.linalg.norm(xyz_m_N3[pairs[:, 0]] - xyz_m_N3[pairs[:, 1]], axis=1)
        found.append(pairs[away_m < distance_m])
    return np.concatenate(found)


def _joined(wanted_N: Ints, sorted_M: Ints, left_N: Ints, right_M: Ints) -> Ints:
    """Return (E, 2) pairs of items whose keys are equal."""
    first, last = (np.searchsorted(sorted_M, wanted_N, side) for side in ("left", "right"))
    counts = last - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([np.repeat(left_N, counts), right_M[np.repeat(first, counts) + within]], 1)
