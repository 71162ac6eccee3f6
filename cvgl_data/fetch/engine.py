"""Work through many items, a fixed number at a time, and keep their rows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from cvgl_data.errors import SourceStopped
from cvgl_data.fetch.rows import Row
from cvgl_data.types import Outcome
from cvgl_data.workspace.store import Store

T = TypeVar("T")
OnItem = Callable[[Outcome], None]

IN_FLIGHT = 64
"""Items worked on at a time; hosts are protected by `Http`, memory by this."""

DRAIN_S = 10.0
"""How long what is in flight may take once a run has been told to stop."""


async def work_through(
    items: Iterable[tuple[str, T]],
    work: Callable[[str, T], Awaitable[Row | Outcome]],
    store: Store,
    *,
    on_item: OnItem | None = None,
    in_flight: int = IN_FLIGHT,
    retry_failed: bool = False,
    refresh: bool = False,
    cancel: asyncio.Event | None = None,
) -> Counter[Outcome]:
    """Work on every item that the store does not have yet, or had to give up for now.

    Args:
        items: Key and item.
        work: Returns the item's new row, or only an outcome if the old row stays.
        store: Keeps the rows.
        on_item: Told the outcome of each item, also of those that are there already.
        in_flight: Items worked on at a time.
        retry_failed: Also work on items that failed for good.
        refresh: Also work on items that are there.
        cancel: Once set, nothing new begins, what is in flight may finish for `DRAIN_S`, and all of it is kept.

    Returns:
        How many items ended how; those that were not reached are not counted.

    Raises:
        SourceStopped: As soon as one item meets it and what is in flight has been kept.
    """
    counts: Counter[Outcome] = Counter()
    cancel = cancel or asyncio.Event()
    stopped: list[SourceStopped] = []

    def count(outcome: Outcome) -> None:
        counts[outcome] += 1
        if on_item is not None:
            on_item(outcome)

    def missing() -> Iterator[tuple[str, T]]:
        for key, item in items:
            if cancel.is_set() or stopped:
                return
            if store.is_done(key, retry_failed) and not (refresh and store.outcome(key) is Outcome.OK):
                count(store.outcome(key))
            else:
                yield key, item

    pulled = missing()

    async def worker() -> None:
        for key, item in pulled:
            try:
                result = await work(key, item)
            except SourceStopped as error:
                stopped.append(error)
                return
            if isinstance(result, Outcome):
                count(result)
            else:
                store.append(result)
                count(Outcome(result["status"]))

    workers = [asyncio.ensure_future(worker()) for _ in range(in_flight)]
    watcher = asyncio.ensure_future(_stop_late(cancel, workers))
    try:
        await asyncio.gather(*workers)
    except asyncio.CancelledError:
        this = asyncio.current_task()
        if not cancel.is_set() or (this is not None and this.cancelling()):  # ended by another than the watcher
            raise
    finally:
        for task in (watcher, *workers):
            task.cancel()
        await asyncio.gather(watcher, *workers, return_exceptions=True)
        store.flush()
    if stopped:
        raise stopped[0]
    return counts


async def _stop_late(cancel: asyncio.Event, workers: Sequence[asyncio.Future[None]]) -> None:
    """Give what is in flight a while after the run was told to stop, then end it."""
    await cancel.wait()
    await asyncio.sleep(DRAIN_S)
    for worker in workers:
        worker.cancel()
