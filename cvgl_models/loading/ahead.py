"""Batches made ready by a thread while the accelerator works: pinned, and copied on a stream of their own."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from cvgl_models.transforms import Batch

_Item = tuple[Batch | None, BaseException | None]


class Ahead:
    """Iterates over batches in a thread, a few ahead; ends it with `close`.

    Args:
        batches: What to iterate over; must not fork processes.
        device: Where the batches go. On a CPU they stay what they are.
        depth: Batches that may lie ready.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device, depth: int = 2) -> None:
        self._batches, self._device = batches, device
        self._ready: queue.Queue[_Item] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = threading.Thread(target=self._run, name="cvgl-batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; raises what their iterator raises."""
        while True:
            batch, error = self._ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            if self._stream is not None:
                current = torch.cuda.current_stream(self._device)
                current.wait_stream(self._stream)
                for tensor in _tensors(batch).values():
                    tensor.record_stream(current)
            yield batch

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)  # it may be waiting for room
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self) -> None:
        last: _Item = (None, None)
        try:
            for batch in self._batches:
                self._ready.put((self._moved(batch), None))
                if self._stopped.is_set():
                    break
        except BaseException as error:  # the consumer raises it
            last = (None, error)
        finally:
            close = getattr(self._batches, "close", None)
            if close is not None:
                close()
        if not self._stopped.is_set():
            self._ready.put(last)

    def _moved(self, batch: Batch) -> Batch:
        if self._stream is None:
            return batch
        with torch.cuda.stream(self._stream):
            moved = {
                name: (tensor if tensor.is_cuda else tensor.pin_memory()).to(self._device, non_blocking=True)
                for name, tensor in _tensors(batch).items()
            }
        return dataclasses.replace(batch, **moved)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    values = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
