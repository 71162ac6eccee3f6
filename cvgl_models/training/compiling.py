"""``torch.compile`` where it works."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cvgl_models.backbones.dense import DenseEncoder
from cvgl_models.backbones.pyramids import FeaturePyramid
from cvgl_models.embedding import Encoder

logger = logging.getLogger(__name__)

_Function = Callable[..., Any]

_COMPILED: dict[type[nn.Module], tuple[str, ...]] = {
    Encoder: ("forward", "with_map"),
    FeaturePyramid: ("forward",),
    DenseEncoder: ("forward",),
}
"""Methods of the encoders that take nearly all the time."""


def compile_encoders(system: nn.Module) -> None:
    """Compile the encoders of a system; names of weights stay what they are.

    It happens at the first batch. If it fails, for want of a compiler for instance, the rest is computed without, after
    one warning.
    """
    guard = _Guard()
    for module in system.modules():
        for name in _COMPILED.get(type(module), ()):
            plain: _Function = getattr(module, name)
            setattr(module, name, guard.wrap(torch.compile(plain), plain))


class _Guard:
    """Falls back for all of them and warns once."""

    def __init__(self) -> None:
        self.failed = False

    def wrap(self, compiled: _Function, plain: _Function) -> _Function:
        @functools.wraps(plain)
        def compute(*args: Any) -> Any:
            if not self.failed:
                try:
                    return compiled(*args)
                except torch._dynamo.exc.TorchDynamoException as error:
                    self.failed = True
                    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                    logger.warning("the network cannot be compiled and runs uncompiled: %s", reason)
            return plain(*args)

        return compute
