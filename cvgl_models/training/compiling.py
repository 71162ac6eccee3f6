"""``torch.compile`` where it works."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from cvgl_models.systems import SystemModule
from cvgl_models.transforms import Batch

logger = logging.getLogger(__name__)

_Embed = Callable[[Batch], Tensor]


def compile_embeddings(system: SystemModule) -> None:
    """Compile the two networks of a system; names of weights stay what they are.

    It happens at the first batch. If it fails, for want of a compiler for instance, the rest is computed without, after
    one warning.
    """
    guard = _Guard()
    for name in ("embed_queries", "embed_references"):
        plain: _Embed = getattr(system, name)
        setattr(system, name, guard.wrap(torch.compile(plain), plain))


class _Guard:
    """Falls back for both networks and warns once."""

    def __init__(self) -> None:
        self.failed = False

    def wrap(self, compiled: _Embed, plain: _Embed) -> _Embed:
        def embed(batch: Batch) -> Tensor:
            if not self.failed:
                try:
                    return compiled(batch)
                except torch._dynamo.exc.TorchDynamoException as error:
                    self.failed = True
                    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                    logger.warning("the network cannot be compiled and runs uncompiled: %s", reason)
            return plain(batch)

        return embed
