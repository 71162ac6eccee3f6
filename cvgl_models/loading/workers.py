"""Worker processes that decode straight into shared buffers; only numbers travel between processes.

Shapes: S slots, B items of a batch, H and W of an image. Buffers are uint8 (S, B, H, W, 3).

A slot holds a batch. Workers fill several slots ahead; the batches come out in order whoever was faster. A finished
batch is lent to the consumer without a copy, and its slot is used again when nothing refers to the batch any more. A
consumer that keeps many batches gets copies, so that slots are left to work with.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.errors import DatasetError
from cvgl_models.loading.decoding import Pixels
from cvgl_models.loading.views import UndecodableError

_CHUNK = 8
"""Items per message: few enough that the workers finish a batch together."""
_SPARE_SLOTS = 2
"""Slots beyond those that are filled ahead: one is with the consumer, one is filled while the consumer works."""

Failure = tuple[int, str, bool]
"""Position in the batch, message, and whether it is only this image that is broken."""


class Source(Protocol):
    """What workers read: items of one or more images."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each image of an item."""

    def write(self, index: int, outs: Sequence[Pixels]) -> None:
        """Write the images of an item to ``outs``, each (H, W, 3)."""


@dataclass(slots=True)
class Flight:
    """A batch that is being filled."""

    slot: int
    items: NDArray[np.int64]
    left: int = 0
    """Messages that have not come back."""
    failures: list[Failure] = field(default_factory=list)


_STOPPING = (signal.SIGINT, signal.SIGTERM)


class Pool:
    """Buffers and the processes that fill them; the processes are started once and end with `close`.

    Args:
        source: What to read.
        workers: Number of processes; 0 fills in this one.
        batch_size: Largest number of items of a batch.
        ahead: Batches to fill ahead.
    """

    def __init__(self, source: Source, workers: int, batch_size: int, ahead: int) -> None:
        self._pid = os.getpid()
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._load: list[int] = []
        self.source, self.ahead = source, ahead if workers else 1
        self.num_slots = self.ahead + _SPARE_SLOTS
        self._buffers = [_shared(self.num_slots, batch_size, *size) for size in source.sizes]
        self._free = deque(range(self.num_slots))
        self._lent: dict[int, list[weakref.ref[Pixels]]] = {}
        self._flights: dict[int, Flight] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for _ in range(workers):
                self._start()
            undo.pop_all()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, [*self._connections, ours], self.source, self._buffers), daemon=True
        )
        # A signal that comes before the new process ignores it would end it: held back, it is dropped there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._connections.append(ours)
        self._processes.append(process)
        self._load.append(0)

    def close(self) -> None:
        """End the worker processes."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(None)  # workers of a later pool hold this end too, so closing it is not enough
            connection.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        self._connections, self._processes, self._load = [], [], []

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            self.close()

    def has_room(self) -> bool:
        """Whether a batch may be submitted."""
        self._reclaim()
        return bool(self._free) and len(self._flights) < self.ahead

    def submit(self, items: NDArray[np.int64]) -> Flight:
        """Have a batch filled; there must be room."""
        flight = Flight(self._free.popleft(), items)
        self._flights[flight.slot] = flight
        for start in range(0, len(items), _CHUNK):
            self.fill(flight, np.arange(start, min(start + _CHUNK, len(items))))
        return flight

    def fill(self, flight: Flight, positions: NDArray[np.int64]) -> None:
        """Have some items of a batch filled (again)."""
        flight.left += 1
        items = flight.items[positions]
        if not self._connections:
            flight.failures += _fill(self.source, self._buffers, flight.slot, positions.tolist(), items.tolist())
            flight.left -= 1
            return
        worker = int(np.argmin(self._load))
        self._load[worker] += 1
        try:
            self._connections[worker].send((flight.slot, positions.tolist(), items.tolist()))
        except OSError:
            raise _lost() from None

    def finish(self, flight: Flight) -> None:
        """Wait until a batch is filled, or has failed."""
        while flight.left:
            for ready in wait(self._connections):
                worker = self._connections.index(ready)  # type: ignore[arg-type]
                try:
                    slot, failures = self._connections[worker].recv()
                except (EOFError, OSError):
                    raise _lost() from None
                self._load[worker] -= 1
                self._flights[slot].left -= 1
                self._flights[slot].failures += failures

    def take(self, flight: Flight) -> tuple[Tensor, ...]:
        """Return the images of a filled batch, each uint8 (B, 3, H, W) with the channels last in memory."""
        del self._flights[flight.slot]
        self._reclaim()
        lend = len(self._lent) < _SPARE_SLOTS
        leases = [
            buffer[flight.slot, : len(flight.items)] if lend else buffer[flight.slot, : len(flight.items)].copy()
            for buffer in self._buffers
        ]
        if lend:
            self._lent[flight.slot] = [weakref.ref(lease) for lease in leases]
        else:
            self._free.append(flight.slot)
        return tuple(torch.from_numpy(lease).permute(0, 3, 1, 2) for lease in leases)

    def abandon(self) -> None:
        """Wait for what is under way and forget it."""
        for flight in list(self._flights.values()):
            if self._connections:
                self.finish(flight)
            del self._flights[flight.slot]
            self._free.append(flight.slot)

    def _reclaim(self) -> None:
        for slot, leases in list(self._lent.items()):
            if all(lease() is None for lease in leases):
                del self._lent[slot]
                self._free.append(slot)


def in_order(pool: Pool, batches: Iterator[NDArray[np.int64]]) -> Iterator[Flight]:
    """Yield each batch when it is filled, in order, filling others meanwhile; the caller takes it."""
    waiting: deque[Flight] = deque()
    try:
        following = next(batches, None)
        while waiting or following is not None:
            while following is not None and (pool.has_room() or not waiting):
                waiting.append(pool.submit(following))
                following = next(batches, None)
            pool.finish(waiting[0])
            yield waiting.popleft()
    finally:
        with contextlib.suppress(DatasetError):
            pool.abandon()


def usable_workers(workers: int, num_batches: int, batch_size: int) -> int:
    """Return how many processes to start for a wish: -1 is one per core; 0 where processes cannot be forked."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return 0
    wanted = workers if workers >= 0 else len(os.sched_getaffinity(0))
    return min(wanted, -(-num_batches * batch_size // _CHUNK))


def _shared(num_slots: int, batch_size: int, height: int, width: int) -> Pixels:
    """Return memory that processes forked later share."""
    shape = (num_slots, batch_size, height, width, 3)
    memory = mmap.mmap(-1, max(1, int(np.prod(shape))))
    return np.frombuffer(memory, np.uint8, int(np.prod(shape))).reshape(shape)


def _fill(
    source: Source, buffers: Sequence[Pixels], slot: int, positions: Sequence[int], items: Sequence[int]
) -> list[Failure]:
    failures: list[Failure] = []
    for position, item in zip(positions, items, strict=True):
        try:
            source.write(item, [buffer[slot, position] for buffer in buffers])
        except DatasetError as error:
            failures.append((position, str(error), isinstance(error, UndecodableError)))
    return failures


def _work(connection: Connection, others: Sequence[Connection], source: Source, buffers: Sequence[Pixels]) -> None:
    """Fill what is asked for until the other side closes its end, or is gone."""
    for other in others:
        other.close()  # inherited; open here, it would keep other workers waiting for a dead parent
    # The main process saves and then ends its workers, whoever else gets the signal.
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while (task := connection.recv()) is not None:
            slot, positions, items = task
            try:
                failures = _fill(source, buffers, slot, positions, items)
            except Exception:  # a mistake of ours: the main process shall show it, not hang
                failures = [(positions[0], traceback.format_exc(), False)]
            connection.send((slot, failures))


def _lost() -> DatasetError:
    return DatasetError("a process that decodes images has ended, perhaps for lack of memory; lower loader.workers")
