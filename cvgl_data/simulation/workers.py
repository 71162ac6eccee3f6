"""Where renderers run: processes that leave Ctrl-C to their parent and never outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import connection, resource_tracker
from typing import TypeVar

from cvgl_data.errors import FetchError

T = TypeVar("T")


class Workers:
    """Runs renderers elsewhere than on the event loop's thread: in processes, or in one thread.

    Args:
        count: Processes that render; 0 means one per processor, 1 a thread of this process.
    """

    def __init__(self, count: int) -> None:
        self._count = count or os.cpu_count() or 1
        self._executor: Executor | None = None
        self._starting = asyncio.Lock()

    async def run(self, render: Callable[[], T], source: str, item: str) -> T:
        """Return what ``render`` returns.

        Args:
            render: Called in a worker; has to be picklable unless that is a thread.
            source: Name of the source, for errors.
            item: What is rendered, for errors.

        Raises:
            FetchError: If the process that rendered died.
        """
        if self._executor is None:
            async with self._starting:
                if self._executor is None:
                    # The first item is rendered here, so that kernels are compiled once and not by every process.
                    result = await asyncio.to_thread(render)
                    self._executor = self._start()
                    return result
        try:
            # Processes start at submission, and must not see an interrupt before they ignore it.
            with _interrupts_held():
                future = self._executor.submit(render)
            return await asyncio.wrap_future(future)
        except BrokenExecutor as error:
            self.close()
            raise FetchError(
                f"{item} was not rendered: a worker process died; try again with fewer workers",
                source=source,
                item=item,
            ) from error

    def close(self) -> None:
        """End the processes."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def _start(self) -> Executor:
        if self._count == 1:
            return ThreadPoolExecutor(1)
        # While OpenCV is being imported, its folder is on sys.path, and a process that starts then takes
        # OpenCV's `typing` for Python's.
        import cv2  # noqa: F401

        resource_tracker.ensure_running()
        return ProcessPoolExecutor(
            self._count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_work
        )


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_work() -> None:
    """Prepare a worker process: the parent alone reacts to Ctrl-C, and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
