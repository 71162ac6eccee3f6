"""Views to embeddings, with the network as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_models.systems import RetrievalModule
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
    system: RetrievalModule, side: str, batches: Iterable[Batch], precision: str, device: torch.device
) -> Tensor:
    """Return the float32 embeddings (N, D), on the CPU, of batches of queries or of references."""
    system.eval()
    embed = system.embed_queries if side == "query" else system.embed_references
    parts = []
    for batch in batches:
        with autocast(precision, device):
            part = embed(batch.to(device))
        parts.append(part.float().cpu())
    return torch.cat(parts)


def embed_together(
    system: RetrievalModule,
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
