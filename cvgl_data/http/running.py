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

LATE_S = 15.0
"""How long work may go on after a signal; longer than `cvgl_data.fetch` takes to keep what is in flight."""


def run(
    work: Callable[[Http, asyncio.Event], Coroutine[Any, Any, T]], *, late_s: float = LATE_S, **http_settings: Any
) -> T:
    """Run work that needs the network; SIGINT and SIGTERM let it finish what is in flight.

    Args:
        work: Gets the client, and an event that is set when it should come to an end.
        late_s: After this long it is ended if it has not come to one, such as where it lists an area; 0 for work that
            has nothing to keep.
        http_settings: See `Http`.

    Raises:
        KeyboardInterrupt: After a signal, once the work has returned or was ended.
    """
    signaled = False

    async def main() -> T:
        cancel = asyncio.Event()

        def stop() -> None:
            nonlocal signaled
            signaled = True
            cancel.set()

        _on_signals(asyncio.get_running_loop(), stop)
        async with Http(**http_settings) as http:
            working = asyncio.ensure_future(work(http, cancel))
            ending = asyncio.ensure_future(_end_late(working, cancel, late_s))
            try:
                result = await working
            except asyncio.CancelledError:
                if cancel.is_set():
                    raise KeyboardInterrupt from None
                raise
            finally:
                ending.cancel()
        return result

    with _kept_handlers(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        result = runner.run(main())
    if signaled:  # asked last, so that one which comes while the client and the loop are closed counts too
        raise KeyboardInterrupt
    return result


async def _end_late(working: asyncio.Future[Any], cancel: asyncio.Event, late_s: float) -> None:
    await cancel.wait()
    await asyncio.sleep(late_s)
    working.cancel()


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
