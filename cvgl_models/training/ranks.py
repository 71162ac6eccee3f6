"""Several processes that train one model, started by ``torchrun``; a single one is the same with nothing to do.

Negatives are gathered: the loss is that of the whole batch, whatever the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_PATIENCE = timedelta(hours=2)  # one process may write or search for long while the others wait
_BUCKET_ELEMENTS = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all of them."""

    rank: int = 0
    count: int = 1
    control: Any = None
    """Group for what the hosts have to agree upon; the accelerators are not waited for."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def gather(self, own_B: Tensor) -> Tensor:
        """Return the rows of all processes in order of rank; all have equally many. No gradient passes."""
        if self.count == 1:
            return own_B
        own_B = own_B.detach().contiguous()
        parts = [torch.empty_like(own_B) for _ in range(self.count)]
        dist.all_gather(parts, own_B)
        return torch.cat(parts)

    def concatenate(self, own_N: Tensor) -> Tensor:
        """Return the rows of all processes in order of rank; their numbers may differ. On the CPU."""
        if self.count == 1:
            return own_N
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, own_N, group=self.control)
        return torch.cat(parts)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over the processes."""
        if self.count == 1:
            return
        for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, total in zip(bucket, torch.split(flat, [each.numel() for each in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def share_weights(self, module: nn.Module) -> None:
        """Give every process the weights and buffers of the first one."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.count == 1:
            return flag
        flag_1 = torch.tensor([int(flag)])
        dist.all_reduce(flag_1, dist.ReduceOp.MAX, group=self.control)
        return bool(flag_1.item())

    def of_first(self, value: Any) -> Any:
        """Return the first process's value in every one."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            dist.barrier(group=self.control)


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """Yield this process's place among those that ``torchrun`` started; the only one without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield Ranks(dist.get_rank(), dist.get_world_size(), control)
    finally:
        if mine:
            dist.destroy_process_group()


def own_device() -> torch.device:
    """Return the accelerator of this process if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Put gradients of one type together until a bucket is full: few large sums are faster than many small ones."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(other.numel() for other in bucket) + gradient.numel() > _BUCKET_ELEMENTS
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
