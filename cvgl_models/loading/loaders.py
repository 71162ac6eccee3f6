"""Batches of views and of pairs, in a given order.

Shapes: N images, B pairs of a batch, H and W of the view, S side of the reference.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cvgl_data.errors import DatasetError
from cvgl_models.loading.ahead import Ahead
from cvgl_models.loading.on_device import DeviceDecoder
from cvgl_models.loading.views import PairRows, PairViews, UndecodableError, Views, fits_in_memory
from cvgl_models.loading.workers import Flight, Pool, Source, in_order, usable_workers
from cvgl_models.recipe import LoaderRecipe
from cvgl_models.transforms import Batch

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Told how many items are done since the last call."""

Ints = NDArray[np.int64]


def load_views(
    views: Views,
    loader: LoaderRecipe,
    batch_size: int = 64,
    progress: Progress | None = None,
    *,
    black_if_broken: bool = False,
) -> Iterator[Tensor]:
    """Yield all views in row order, in batches, uint8 (B, 3, H, W).

    Raises:
        DatasetError: Naming the row whose image cannot be decoded, unless that is to be black.
    """
    batches = _in_rows(len(views), batch_size)
    for (batch,) in data_loader(views, batches, loader, black_if_broken=black_if_broken):
        yield batch
        if progress is not None:
            progress(len(batch))


def in_memory(views: Views, loader: LoaderRecipe, progress: Progress | None = None) -> Tensor:
    """Return all views of one side as one uint8 (N, 3, H, W) tensor."""
    return _in_memory(views, loader, progress, None)


def data_loader(
    source: Source, batches: Sequence[ArrayLike], loader: LoaderRecipe, *, black_if_broken: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the images of each batch, one uint8 (B, 3, H, W) tensor per image of an item, channels last in memory.

    Args:
        source: `Views` or `PairViews`.
        batches: Items of each batch.
        loader: How.
        black_if_broken: Show an image that cannot be decoded as black instead of raising.

    Raises:
        DatasetError: If an item cannot be decoded.
    """
    chosen = [np.asarray(batch, np.int64) for batch in batches]
    with contextlib.closing(_pool(source, chosen, loader)) as pool:
        for flight in in_order(pool, iter(chosen)):
            for _, message, is_image in sorted(flight.failures):
                if not (black_if_broken and is_image):
                    raise DatasetError(message)
            images = pool.take(flight)
            for position, _, _ in flight.failures:
                for image in images:
                    image[position] = 0
            yield images


def rank_share(batches: Sequence[ArrayLike], rank: int, world_size: int) -> list[Ints]:
    """Return the part of each batch that one of several processes loads: the rank-th of equal pieces.

    Raises:
        ValueError: If a batch cannot be divided by the number of processes.
    """
    chosen = [np.asarray(batch, np.int64) for batch in batches]
    if any(len(batch) % world_size for batch in chosen):
        raise ValueError(f"a batch of {len(chosen[0])} cannot be shared by {world_size} processes")
    return [np.split(batch, world_size)[rank] for batch in chosen]


class PairLoader:
    """Batches of training pairs: from memory when all views fit, else decoded in every epoch.

    Worker processes are started once, by the first call of `batches`.

    Args:
        pairs: The pairs.
        sides: Views of queries and references, and of top views where there are any.
        loader: How images are loaded, and what becomes of a pair whose image cannot be decoded.
        device: Where the batches go; on an accelerator they lie ready there, images still uint8.
        ignore_semi_positives: Fill `Batch.ignore`.
        progress: Told about views loaded to memory.

    Attributes:
        left_out: What is wrong with each pair that was left out so far, by pair.
        num_skipped: How many times a pair left a batch and another took its place.
        waited_s: Seconds that the consumer waited for batches.
    """

    def __init__(
        self,
        pairs: PairRows,
        sides: Sequence[Views],
        loader: LoaderRecipe,
        device: torch.device | None = None,
        *,
        ignore_semi_positives: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.pairs, self.loader = pairs, loader
        self.device = device or torch.device("cpu")
        self.left_out: dict[int, str] = {}
        self.num_skipped = 0
        self.waited_s = 0.0
        self._ignore = ignore_semi_positives
        self._views = tuple(sides)
        self._rows = [pairs.rows(side.kind) for side in sides]
        self._pool: Pool | None = None
        self._memory: tuple[Tensor, ...] = ()
        self._broken: tuple[dict[int, str], ...] = tuple({} for _ in sides)
        if loader.decode == "cpu" and fits_in_memory(self._views, loader):
            self._memory = tuple(
                _in_memory(views, loader, progress, broken if loader.on_error == "skip" else None)
                for views, broken in zip(self._views, self._broken, strict=True)
            )

    @property
    def in_memory(self) -> bool:
        """Whether all views are in memory."""
        return bool(self._memory)

    def batches(self, batches: Sequence[ArrayLike], rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Yield batches of pairs in the given order; the rest of an epoch is the rest of its batches.

        A pair that is left out makes room for the next one in the order of the pairs whose reference is not in the
        batch. That depends on nothing but the data, so a run that goes on from the middle of an epoch sees the same.

        Args:
            batches: Pairs of each batch, those of all processes.
            rank: This process.
            world_size: Number of processes, each of which gets an equal piece of each batch.

        Raises:
            DatasetError: If an image cannot be decoded and the recipe says ``raise``, or no pair is left to take its
                place.
            ValueError: If a batch cannot be divided by the number of processes.
        """
        shares = rank_share(batches, rank, world_size)
        taken = [set(self.pairs.reference_row[np.asarray(batch, np.int64)].tolist()) for batch in batches]
        rank_of = (rank, world_size)
        if self._memory:
            made = self._from_memory(shares, taken, rank_of)
        elif self.loader.decode == "gpu":
            made = self._on_device(shares, taken, rank_of)
        else:
            if self._pool is None and shares:
                self._pool = _pool(PairViews(self.pairs, *self._views), shares, self.loader, keep=True)
            made = self._from_workers(shares, taken, rank_of)
        if self.device.type == "cpu":
            return self._timed(made)
        return self._ahead(made)

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _ahead(self, made: Iterator[Batch]) -> Iterator[Batch]:
        ahead = Ahead(made, self.device)
        try:
            yield from self._timed(iter(ahead))
        finally:
            ahead.close()

    def _timed(self, made: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            started = time.perf_counter()
            batch = next(made, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch
            del batch  # its buffers may be used again

    def _batch(self, items: Ints, parts: Sequence[Tensor]) -> Batch:
        images = {views.side: part for views, part in zip(self._views, parts, strict=True)}
        return self.pairs.batch(items, images, ignore_semi_positives=self._ignore)

    def _from_memory(self, shares: Sequence[Ints], taken: Sequence[set[int]], rank: tuple[int, int]) -> Iterator[Batch]:
        def failure(items: Ints, at: int) -> str:
            rows = [int(row[items[at]]) for row in self._rows]
            return next((broken[row] for broken, row in zip(self._broken, rows, strict=True) if row in broken), "")

        for share, references in zip(shares, taken, strict=True):
            items = share.copy()
            failures = [(at, failure(items, at), True) for at in range(len(items))]
            failed = [each for each in failures if each[1]]
            self._substitute(items, failed, partial(failure, items), references, rank)
            yield self._batch(items, [memory[row[items]] for memory, row in zip(self._memory, self._rows, strict=True)])

    def _from_workers(
        self, shares: Sequence[Ints], taken: Sequence[set[int]], rank: tuple[int, int]
    ) -> Iterator[Batch]:
        if self._pool is None:
            return
        pool = self._pool
        for flight, references in zip(in_order(pool, (share.copy() for share in shares)), taken, strict=True):
            failures, flight.failures = sorted(flight.failures), []
            self._substitute(flight.items, failures, partial(_again, pool, flight), references, rank)
            yield self._batch(flight.items, pool.take(flight))

    def _on_device(self, shares: Sequence[Ints], taken: Sequence[set[int]], rank: tuple[int, int]) -> Iterator[Batch]:
        decoders = [DeviceDecoder(views, self.device) for views in self._views]
        for share, references in zip(shares, taken, strict=True):
            items = share.copy()
            sides = [decoder.load(row[items].tolist()) for decoder, row in zip(decoders, self._rows, strict=True)]

            def again(at: int, items: Ints = items, sides: list[list[Tensor | UndecodableError]] = sides) -> str:
                for side, decoder, row in zip(sides, decoders, self._rows, strict=True):
                    side[at] = decoder.load([int(row[items[at]])])[0]
                return _failure(side[at] for side in sides)

            failures = [(at, _failure(side[at] for side in sides), True) for at in range(len(items))]
            self._substitute(items, [each for each in failures if each[1]], again, references, rank)
            yield self._batch(items, [torch.stack([v for v in side if isinstance(v, Tensor)]) for side in sides])

    def _substitute(
        self,
        items: Ints,
        failures: Sequence[tuple[int, str, bool]],
        again: Callable[[int], str],
        taken: set[int],
        rank: tuple[int, int],
    ) -> None:
        """Replace failed items in place, one after the other; ``again`` loads a position and tells what is wrong."""
        for position, message, is_image in failures:
            if not is_image or self.loader.on_error == "raise":
                raise DatasetError(message)
            candidates = self._following(int(items[position]), taken, rank)
            while message:
                self._leave_out(int(items[position]), message)
                candidate = next(candidates, None)
                if candidate is None:
                    raise DatasetError(f"{message}; and there is no other pair to take its place in the batch")
                items[position] = candidate
                message = again(position)
            taken.add(int(self.pairs.reference_row[items[position]]))

    def _following(self, pair: int, taken: set[int], rank: tuple[int, int]) -> Iterator[int]:
        """Yield the pairs after one, around the end, whose reference is not taken and belongs to this process."""
        for step in range(1, len(self.pairs)):
            candidate = (pair + step) % len(self.pairs)
            reference = int(self.pairs.reference_row[candidate])
            # Processes do not talk about this, and yet must not choose the same reference.
            if candidate not in self.left_out and reference not in taken and reference % rank[1] == rank[0]:
                yield candidate

    def _leave_out(self, pair: int, message: str) -> None:
        self.num_skipped += 1
        if pair not in self.left_out:
            logger.warning("%s; its pair is left out", message)
        self.left_out[pair] = message


def _again(pool: Pool, flight: Flight, position: int) -> str:
    pool.fill(flight, np.array([position]))
    pool.finish(flight)
    failures, flight.failures = flight.failures, []
    for _, message, is_image in failures:
        if not is_image:
            raise DatasetError(message)
        return message
    return ""


def _failure(views: Iterator[Tensor | UndecodableError]) -> str:
    return next((str(view) for view in views if isinstance(view, UndecodableError)), "")


def _in_rows(total: int, batch_size: int) -> list[Ints]:
    return [np.arange(start, min(start + batch_size, total)) for start in range(0, total, batch_size)]


def _in_memory(views: Views, loader: LoaderRecipe, progress: Progress | None, broken: dict[int, str] | None) -> Tensor:
    """Fill the cache; where ``broken`` is given, images that cannot be decoded are black and told there by index."""
    cache = torch.zeros((len(views), *views.shape), dtype=torch.uint8)
    batches = _in_rows(len(views), 64)
    with contextlib.closing(_pool(views, batches, loader)) as pool:
        for flight in in_order(pool, iter(batches)):
            for position, message, is_image in sorted(flight.failures):
                if broken is None or not is_image:
                    raise DatasetError(message)
                broken[int(flight.items[position])] = message
            rows = flight.items
            cache[rows[0] : rows[-1] + 1] = pool.take(flight)[0]
            if progress is not None:
                progress(len(rows))
    for row in broken or ():
        cache[row] = 0
    return cache


def _pool(source: Source, batches: Sequence[Ints], loader: LoaderRecipe, *, keep: bool = False) -> Pool:
    """Return a pool for some batches, with no more processes than they can use unless it is kept for others."""
    size = max((len(batch) for batch in batches), default=1)
    workers = usable_workers(loader.workers, 1_000_000 if keep else len(batches), size)
    return Pool(source, workers, size, loader.prefetch)
