"""One step: its seed, how long its batch took, and what is logged of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")


class Step:
    """What is logged of a step; the accelerator is not waited for before the values are asked for."""

    def __init__(
        self, place: dict[str, int], names: tuple[str, ...], measured_N: Tensor, more: dict[str, float]
    ) -> None:
        self.place, self._names, self._more = place, names, more
        self._measured_N, self._ready = measured_N.detach(), None
        if measured_N.is_cuda:
            on_host = torch.empty(measured_N.shape, pin_memory=True)
            self._measured_N = on_host.copy_(self._measured_N, non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def values(self) -> dict[str, float]:
        """Return all values by name."""
        if self._ready is not None:
            self._ready.synchronize()
        return {**self.place, **dict(zip(self._names, self._measured_N.tolist(), strict=True)), **self._more}


def timed(items: Iterable[Item]) -> Iterator[tuple[Item, float]]:
    """Yield each item with the seconds it had to be waited for."""
    iterator = iter(items)
    while True:
        begun = time.monotonic()
        try:
            item = next(iterator)
        except StopIteration:
            return
        yield item, time.monotonic() - begun
        del item  # a loader may use its buffers again


def seed_of(*values: int) -> int:
    """Return one well-mixed seed for a tuple of numbers."""
    return int(np.random.SeedSequence(values).generate_state(1, np.uint64)[0] >> np.uint64(1))
