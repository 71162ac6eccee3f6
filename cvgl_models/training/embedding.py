"""Views to embeddings, with the network as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_models.systems import SystemModule
from cvgl_models.training.feed import Images
from cvgl_models.training.ranks import Ranks
from cvgl_models.transforms import Batch


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which the network computes."""
    if precision == "fp16":
        return torch.autocast(device.type, torch.float16)
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@torch.inference_mode()
def embed_views(
    system: SystemModule, side: str, batches: Iterator[Tensor], precision: str, device: torch.device
) -> Tensor:
    """Return the float32 embeddings (N, D), on the CPU, of views (uint8 batches) of one side."""
    system.eval()
    parts = []
    for images in batches:
        with autocast(precision, device):
            if side == "query":
                part = system.embed_queries(Batch(query=images).to(device))
            else:
                part = system.embed_references(Batch(reference=images).to(device))
        parts.append(part.float().cpu())
    return torch.cat(parts)


def embed_together(
    system: SystemModule,
    images: Images,
    side: str,
    index_N: NDArray[np.int64],
    precision: str,
    device: torch.device,
    ranks: Ranks,
) -> Tensor:
    """Return the embeddings (N, D) of chosen views, the same in every process; each embeds a part of them."""
    if len(index_N) < ranks.count:
        return embed_views(system, side, images.stream(side, index_N), precision, device)
    own = np.array_split(index_N, ranks.count)[ranks.rank]
    return ranks.concatenate(embed_views(system, side, images.stream(side, own), precision, device))
