"""Gradients of a contrastive batch that does not fit, or is spread over processes.

A contrastive loss needs all embeddings of the batch at once, but the network needs the activations of a few images
only. So embed everything without activations, take the gradient of the loss with respect to the embeddings, then embed
again, micro-batch by micro-batch, and send that gradient back through each. Dropout is the same both times because the
state of the random numbers is. Between processes, embeddings are gathered and gradients of weights summed.

Source:
    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache, 2021).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cvgl_models.systems import LossTerms, SystemModule
from cvgl_models.training.ranks import Ranks
from cvgl_models.transforms import Batch

Context = Callable[[], contextlib.AbstractContextManager[Any]]

_OF_PAIRS = ("query", "reference", "uv", "heading_deg", "query_row", "reference_row")
_LABELS = ("uv", "heading_deg", "query_row", "reference_row")


def total(terms: LossTerms) -> Tensor:
    """Return the float32 sum of loss terms."""
    return torch.stack([term.float() for term in terms.values()]).sum()


def backward(
    system: SystemModule,
    batch: Batch,
    *,
    context: Context = contextlib.nullcontext,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    micro_batch: int = 0,
    ranks: Ranks | None = None,
) -> LossTerms:
    """Add the gradients of the whole batch to the parameters of the system and return the loss terms, detached.

    Args:
        system: In training mode.
        batch: This process's share of the pairs; ``ignore`` is that of all of them.
        context: Makes the autocast in which the network and the loss are computed.
        scale: Applied to the loss before the backward pass.
        micro_batch: Pairs embedded at a time; 0: all of the share, once.
        ranks: The processes; None: this one alone.

    Raises:
        RecipeError: If the loss of the system needs more than embeddings, but ``micro_batch`` or ``ranks`` call for it.
    """
    ranks = ranks or Ranks()
    if not micro_batch and ranks.count == 1:
        with context():
            terms = system.training_step(batch)
        scale(total(terms)).backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in terms.items()}
    pieces = list(_pieces(system, batch, micro_batch or len(batch.query)))
    embed = _twice if micro_batch else _once
    embedded = [embed(piece, context, batch.query.device) for piece in pieces]
    num_queries = len(pieces) // 2
    own = [torch.cat([part.rows for part in side]) for side in (embedded[:num_queries], embedded[num_queries:])]
    whole = [ranks.gather(side).detach().requires_grad_() for side in own]
    labels = {name: ranks.gather(getattr(batch, name)) for name in _LABELS}
    with context():
        terms = system.loss_terms(whole[0], whole[1], dataclasses.replace(batch, **labels))
    scale(total(terms)).backward()  # type: ignore[no-untyped-call]
    if ranks.count > 1:  # every process has the same gradient of the loss's own weights; they will be summed
        for parameter in system.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(ranks.count)
    start = ranks.rank * len(batch.query)
    for side, parts in zip(whole, (embedded[:num_queries], embedded[num_queries:]), strict=True):
        assert side.grad is not None
        sizes = [len(part.rows) for part in parts]
        for part, gradient in zip(parts, torch.split(side.grad[start : start + sum(sizes)], sizes), strict=True):
            part.send_back(gradient)
    ranks.sum_gradients(system.parameters())
    return {name: term.detach() for name, term in terms.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Embedded:
    """Embeddings (b, D) of a piece, and how a gradient finds its way back to the weights."""

    rows: Tensor
    send_back: Callable[[Tensor], None]


def _pieces(system: SystemModule, batch: Batch, size: int) -> Iterator[Callable[[], Tensor]]:
    """Yield functions that embed ``size`` images: all queries first, then all references."""
    for embed in (system.embed_queries, system.embed_references):
        for start in range(0, len(batch.query), size):
            yield _piece(embed, batch, slice(start, start + size))


def _piece(embed: Callable[[Batch], Tensor], batch: Batch, rows: slice) -> Callable[[], Tensor]:
    part = dataclasses.replace(batch, ignore=None, **{name: getattr(batch, name)[rows] for name in _OF_PAIRS})
    return lambda: embed(part)


def _once(embed: Callable[[], Tensor], context: Context, device: torch.device) -> _Embedded:
    """Embed and keep the activations."""
    del device
    with context():
        rows = embed()
    return _Embedded(rows, lambda gradient: rows.backward(gradient))  # type: ignore[no-untyped-call]


def _twice(embed: Callable[[], Tensor], context: Context, device: torch.device) -> _Embedded:
    """Embed without activations now and with them when the gradient is there."""
    before = _random_state(device)
    with torch.no_grad(), context():
        rows = embed()

    def send_back(gradient: Tensor) -> None:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            _set_random_state(before, device)
            with context():
                again = embed()
        again.backward(gradient)  # type: ignore[no-untyped-call]

    return _Embedded(rows, send_back)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
