"""Run asynchronous work as part of a program: one client, and signals that let it finish what is in flight."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cvgl_data.http import Http

T = TypeVar("T")


def run(work: Callable[[Http, asyncio.Event], Coroutine[Any, Any, T]], **http_settings: Any) -> T:
    """Run work that needs the network; SIGINT and SIGTERM let it finish what is in flight.

    Args:
        work: Gets the client, and an event that is set when it should come to an end.
        http_settings: See `Http`.

    Raises:
        KeyboardInterrupt: After a signal, once the work has returned.
    """

    async def main() -> T:
        cancel = asyncio.Event()
        _on_signals(asyncio.get_running_loop(), cancel.set)
        async with Http(**http_settings) as http:
            result = await work(http, cancel)
        if cancel.is_set():
            raise KeyboardInterrupt
        return result

    with _kept_handlers(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Call ``stop`` on the first SIGINT or SIGTERM instead of dying; a second one dies."""

    def first(number: int) -> None:
        loop.remove_signal_handler(number)
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        # Not the main thread, or Windows: the default handling stays.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, first, number)


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Give SIGINT and SIGTERM back to whoever had them; a loop leaves the default behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError):  # not the main thread, where nothing was changed
                signal.signal(number, handler)
