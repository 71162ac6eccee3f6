"""A cache of rendered things, bounded by their bytes, that never makes the same thing twice at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Keeps what was asked for last.

    Args:
        max_bytes: How much may be kept; the thing made last is kept whatever its size.
        size: Bytes of one thing.
    """

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._bytes = 0
        self._things: OrderedDict[Hashable, T] = OrderedDict()
        self._making: dict[Hashable, asyncio.Task[T]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """Return the thing, made by the first who asks; a caller that goes away does not stop the others."""
        if key in self._things:
            self._things.move_to_end(key)
            return self._things[key]
        task = self._making.get(key)
        if task is None:
            task = self._making[key] = asyncio.ensure_future(_run(make))
            task.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what is being made, and forget everything."""
        await asyncio.gather(*self._making.values(), return_exceptions=True)
        self._things.clear()
        self._bytes = 0

    def _keep(self, key: Hashable, done: asyncio.Task[T]) -> None:
        del self._making[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._things[key] = done.result()
        self._bytes += self._size(done.result())
        while self._bytes > self._max_bytes and len(self._things) > 1:
            _, oldest = self._things.popitem(last=False)
            self._bytes -= self._size(oldest)


async def _run(make: Callable[[], Awaitable[Any]]) -> Any:
    return await make()
