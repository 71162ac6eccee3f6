"""How long an answer may take: one timer that looks after all attempts in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

_LOOKS = 8
"""How often an attempt is looked at before it is given up, or each second if that is more often."""


class Patience:
    """Ends attempts that make no progress, or that take too long in all.

    aiohttp's own time limits, a timer per request that each piece of its body moves on, cost a tenth of the processor
    time of a fetched tile.

    Args:
        read_s: Without another piece of the answer.
        total_s: For the whole attempt.
    """

    def __init__(self, read_s: float, total_s: float) -> None:
        self._read_s = read_s
        self._total_s = total_s
        self._attempts: set[Attempt] = set()
        self._timer: asyncio.TimerHandle | None = None

    def attempt(self) -> Attempt:
        """Return a context that raises `TimeoutError` when what is done in it takes too long."""
        if self._timer is None:
            self._set_timer()
        return Attempt(self._attempts)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        wait_s = min(1.0, self._read_s / _LOOKS, self._total_s / _LOOKS)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for attempt in list(self._attempts):
            if now - attempt.moved(now) >= self._read_s or now - attempt.began >= self._total_s:
                attempt.give_up()
        self._timer = None
        if self._attempts:
            self._set_timer()


class Attempt:
    """One attempt, see `Patience.attempt`.

    Args:
        others: Those in flight; it is among them while it lasts.
    """

    __slots__ = ("_limit", "_moved", "_num_bytes", "_others", "began", "response")

    def __init__(self, others: set[Attempt]) -> None:
        self.began = self._moved = asyncio.get_running_loop().time()
        self.response: aiohttp.ClientResponse | None = None
        """Once its head has come."""
        self._num_bytes = -1
        self._others = others
        self._limit = asyncio.timeout(None)

    def __aenter__(self) -> Coroutine[Any, Any, asyncio.Timeout]:
        """Begin."""
        self._others.add(self)
        return self._limit.__aenter__()

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Coroutine[Any, Any, bool | None]:
        """End; raises `TimeoutError` after `give_up`."""
        self._others.discard(self)
        return self._limit.__aexit__(kind, error, trace)

    def moved(self, now: float) -> float:
        """Return when more of the answer was seen to have come."""
        if self.response is not None and self.response.content.total_bytes != self._num_bytes:
            self._num_bytes = self.response.content.total_bytes
            self._moved = now
        return self._moved

    def give_up(self) -> None:
        """Cancel what is done in it."""
        self._others.discard(self)
        self._limit.reschedule(self.began)
