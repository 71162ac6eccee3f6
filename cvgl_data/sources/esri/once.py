"""What many tiles need is asked for once: by the first of them, while the others wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Once(Generic[K, V]):
    """Values by key; whoever asks while one is on its way waits for that one.

    A failure reaches everyone who waits for it and is not kept.

    Args:
        capacity: Values kept; those that were not used for longest go first.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._in_flight: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, load: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return the value of a key, from ``load`` if it is not there yet."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        task = self._in_flight.get(key)
        if task is None:
            task = self._in_flight[key] = asyncio.ensure_future(load())
            task.add_done_callback(lambda done: self._arrived(key, done))
        return await asyncio.shield(task)  # one tile may be given up while others still wait

    def close(self) -> None:
        """Give up what is in flight and forget the rest."""
        for task in self._in_flight.values():
            if not task.get_loop().is_closed():
                task.cancel()
        self._kept.clear()

    def _arrived(self, key: K, task: asyncio.Task[V]) -> None:
        del self._in_flight[key]
        if task.cancelled() or task.exception() is not None:
            return
        self._kept[key] = task.result()
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
