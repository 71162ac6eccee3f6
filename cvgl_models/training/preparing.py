"""What is done to a system before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cvgl_data.errors import RecipeError
from cvgl_models.embedding import Encoder
from cvgl_models.systems import SystemModule
from cvgl_models.training.feed import Images
from cvgl_models.training.ranks import Ranks

_IMAGES_SEEN = 1000  # of each side; more would not change the words of a vocabulary


def check_normalization(system: nn.Module, micro_batch: int, ranks: Ranks, device: torch.device) -> None:
    """Refuse what would silently train something else.

    A BatchNorm layer normalizes with the statistics of what it is shown at once, so pieces of a batch do not give the
    gradients of the batch. Several GPUs can share statistics (see `synchronized`), micro-batches cannot.

    Raises:
        RecipeError: If the network has such a layer in training mode.
    """
    system.train()
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in system.modules()):
        return
    if micro_batch:
        raise RecipeError(
            "recipe key 'optim.micro_batch' needs a network without BatchNorm, whose statistics would be those of a "
            "micro-batch; set it to 0 or take a backbone with LayerNorm (ConvNeXt, ViT)"
        )
    if ranks.count > 1 and device.type != "cuda":
        raise RecipeError(
            "a network with BatchNorm cannot be trained by several processes without GPUs, because they cannot share "
            "its statistics; start one process or take a backbone with LayerNorm (ConvNeXt, ViT)"
        )


def synchronized(system: SystemModule, ranks: Ranks) -> SystemModule:
    """Return the system with BatchNorm statistics taken over all processes."""
    if ranks.count == 1 or not torch.cuda.is_available():
        return system
    converted: SystemModule = nn.SyncBatchNorm.convert_sync_batchnorm(system)  # type: ignore[no-untyped-call]
    return converted


def lay_out_contiguously(system: SystemModule) -> None:
    """Undo the channels-last layout of weights, and of images where they enter a backbone."""

    def contiguous(module: nn.Module, images: tuple[Any, ...]) -> tuple[Any, ...]:
        del module
        return tuple(each.contiguous() for each in images)

    system.to(memory_format=torch.contiguous_format)
    for module in system.modules():
        if isinstance(module, Encoder):
            module.backbone.register_forward_pre_hook(contiguous)


def init_aggregators(system: SystemModule, images: Images, device: torch.device) -> None:
    """Show training images to heads that begin with what they see (NetVLAD); others are left as they are."""
    serves: dict[Encoder, list[str]] = {}
    for side, encoder in (("query", "encoder.query"), ("reference", "encoder.reference")):
        with_head = dict(system.named_modules(remove_duplicate=False)).get(encoder)
        if isinstance(with_head, Encoder):
            serves.setdefault(with_head, []).append(side)
    for encoder_module, sides in serves.items():
        encoder_module.init_aggregator(_shown(images, sides, device))


def _shown(images: Images, sides: list[str], device: torch.device) -> Iterator[Tensor]:
    """Yield some views of each side in turn, evenly spaced, as float in [0, 1]."""
    streams = []
    for side in sides:
        count = images.count(side)
        streams.append(images.stream(side, np.unique(np.linspace(0, count - 1, _IMAGES_SEEN).astype(np.int64))))
    for batches in zip(*streams, strict=False):
        yield from (getattr(batch.to(device), side) for batch, side in zip(batches, sides, strict=True))
