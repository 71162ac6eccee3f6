"""What many panoramas need is asked for together: one call for all that are wanted at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from cvgl_data.errors import FetchError, SourceStopped
from cvgl_data.types import Outcome

V = TypeVar("V")

WAIT_S = 0.02
"""How long a call waits for more to ask for."""

CALLS = 2
"""Calls at a time; what is asked for meanwhile goes together into the next."""

_SAME_FOR_ALL = frozenset({Outcome.AUTH, Outcome.QUOTA, Outcome.RATE_LIMITED, Outcome.CONNECTION})
"""Outcomes of a call that no choice of keys would have changed; any other may be due to one bad key, or to many."""


class Batching(Generic[V]):
    """Values by key: those wanted at the same time come from one call, and none is on its way twice.

    A call that fails for all its keys alike is the error of each. Where one key may have spoiled the answer for the
    others, and for keys that the answer leaves out, each is asked for alone, so that a failure is that key's own.

    Args:
        ask: Makes one call. Returns a value, or the error in its place, for each key that was answered, and for a
            single key always; raises `FetchError` if the whole call failed.
        size: Keys that one call may ask for.
    """

    def __init__(self, ask: Callable[[Sequence[str]], Awaitable[Mapping[str, V | FetchError]]], size: int) -> None:
        self._ask = ask
        self._size = size
        self._calls = asyncio.Semaphore(CALLS)
        self._open: _Batch[V] | None = None
        self._batches: dict[str, _Batch[V]] = {}

    async def get(self, key: str) -> V:
        """Return the value of a key.

        Raises:
            FetchError: What went wrong, with the key as its item.
        """
        batch = self._batches.get(key) or self._join(key)
        found = (await asyncio.shield(batch.task))[key]  # one panorama may be given up, the others go on
        if isinstance(found, FetchError):
            raise _about(key, found)
        return found

    def close(self) -> None:
        """Give up what is under way."""
        for batch in self._batches.values():
            if not batch.task.get_loop().is_closed():
                batch.task.cancel()

    def _join(self, key: str) -> _Batch[V]:
        """Add a key to the batch that is open, or to a new one."""
        batch = self._open
        if batch is None:
            batch = self._open = _Batch()
            batch.task = asyncio.create_task(self._run(batch))
            batch.task.add_done_callback(lambda _: self._forget(batch))  # also if it is canceled before it begins
        batch.keys.append(key)
        self._batches[key] = batch
        if len(batch.keys) == self._size:
            batch.full.set()
            self._open = None
        return batch

    async def _run(self, batch: _Batch[V]) -> dict[str, V | FetchError]:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(batch.full.wait(), WAIT_S)
        async with self._calls:
            self._shut(batch)
            return await self._answer(batch.keys)

    def _forget(self, batch: _Batch[V]) -> None:
        self._shut(batch)
        for key in batch.keys:
            del self._batches[key]

    def _shut(self, batch: _Batch[V]) -> None:
        if self._open is batch:
            self._open = None

    async def _answer(self, keys: list[str]) -> dict[str, V | FetchError]:
        """Return for each key its value, or why there is none."""
        if len(keys) == 1:
            return {keys[0]: await self._alone(keys[0])}
        try:
            found = dict(await self._ask(keys))
        except FetchError as error:  # the client has tried often enough
            if isinstance(error, SourceStopped) or error.outcome in _SAME_FOR_ALL:
                return dict.fromkeys(keys, error)
            found = {}
        rest = [key for key in keys if key not in found]
        return found | dict(zip(rest, await asyncio.gather(*map(self._alone, rest)), strict=True))

    async def _alone(self, key: str) -> V | FetchError:
        try:
            return (await self._ask([key]))[key]
        except FetchError as error:
            return error


class _Batch(Generic[V]):
    """Keys that are asked for together."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.full = asyncio.Event()
        self.task: asyncio.Task[dict[str, V | FetchError]]


def _about(key: str, error: FetchError) -> FetchError:
    """Return the error of a call as that of one of its keys: each who waits raises one of their own."""
    own = copy.copy(error)
    own.item = key
    return own
