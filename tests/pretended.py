"""A pretended CUDA device: shapes, types and devices without values, so that no GPU is needed and nothing is computed.

Mixed devices raise as on a real one, and what would make the host wait for the device is listed: reading a value, masks
as indices, and copies between the two that are not both pinned and asynchronous. ``torch.tensor([...]).to("cuda")`` is
such a copy: it waits for everything that was queued before it.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
_READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2"}


class Waits(TorchDispatchMode):
    """Lists what makes the host wait, with the line of the package that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        is_there = any(each.device.type == "cuda" for each in tensors)
        if name in _READS and is_there:
            self._note(name)
            if name == "_local_scalar_dense":  # there are no values; any will do to go on
                return 40.0 if tensors[0].is_floating_point() else True if tensors[0].dtype == torch.bool else 1
        if name in {"index", "index_put", "index_put_"} and is_there:
            for index in args[1]:
                if index is not None and (index.dtype == torch.bool or index.device.type == "cpu"):
                    self._note(f"{name} by {'a mask' if index.dtype == torch.bool else 'what is on the host'}")
        target = kwargs.get("device")
        if name == "_to_copy" and target is not None and torch.device(target).type != args[0].device.type:
            self._copied(args[0], kwargs.get("non_blocking", False))
        if name == "copy_" and args[0].device.type != args[1].device.type:
            self._copied(args[1], kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        return func(*args, **kwargs)

    def _copied(self, source: torch.Tensor, is_asynchronous: bool) -> None:
        if source.device.type == "cuda" or not is_asynchronous or not getattr(source, "was_pinned", False):
            self._note(f"copy of {tuple(source.shape)} from {source.device.type}")

    def _note(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/cvgl_models/" in frame.filename]
        where = f"{frames[-1].filename.split('/cvgl_models/')[-1]}:{frames[-1].lineno}" if frames else "?"
        self.found.append(f"{where}: {what}")


class Unread(TorchDispatchMode):
    """On real tensors, backward passes included: fails where the host must know a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in _READS, f"{name} waits for the device"
        indices = args[1] if name in {"index", "index_put", "index_put_"} else ()
        assert all(index is None or index.dtype != torch.bool for index in indices), f"{name} by a mask waits"
        return func(*args, **(kwargs or {}))


class _Made(TorchFunctionMode):
    """Makes `torch.tensor(values, device=...)` the copy it is; the pretended device cannot do it itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        if func is torch.Tensor.new_tensor:
            own, values = args
            return torch.tensor(values, dtype=kwargs.get("dtype", own.dtype)).to(kwargs.get("device", own.device))
        if func is torch.Tensor.nonzero and args[0].device.type == "cpu":
            return torch.arange(len(args[0]))[:, None]  # on the host: any rows will do
        if func is torch.Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.was_pinned = True
            return pinned
        return func(*args, **kwargs)


class Device:
    """The pretended device while it is there."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        """Return a tensor as if it had been moved there."""
        with unset_fake_temporarily():
            fake = self._mode.from_tensor(value.detach())
        return fake.to(CUDA)

    def module(self, module: nn.Module) -> nn.Module:
        """Move parameters and buffers, and nothing else, as `nn.Module.to` does."""
        moved: dict[int, torch.Tensor] = {}
        for each in module.modules():
            for table in (each._parameters, each._buffers):
                for name, value in table.items():
                    if value is None:
                        continue
                    if id(value) not in moved:
                        new = self.tensor(value)
                        is_parameter = isinstance(value, nn.Parameter)
                        moved[id(value)] = nn.Parameter(new, value.requires_grad) if is_parameter else new
                    table[name] = moved[id(value)]
        return module

    @contextmanager
    def listed(self, *, is_mixed: bool = True) -> Iterator[list[str]]:
        """List what is waited for, under bf16 autocast or not."""
        waits = Waits()
        with torch.autocast("cuda", torch.bfloat16, enabled=is_mixed), waits, _Made():
            yield waits.found


@contextmanager
def pretended_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Pretend that there is a CUDA device; what is kept of it in caches is forgotten afterwards."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _forget()
    try:
        with mode:
            yield Device(mode)
    finally:
        _forget()


def _forget() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("cvgl_models"):
            for each in list(vars(module).values()):
                if isinstance(each, functools._lru_cache_wrapper):
                    each.cache_clear()
