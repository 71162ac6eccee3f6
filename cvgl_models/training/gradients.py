"""Gradients of a contrastive batch that does not fit, or is spread over processes.

A contrastive loss needs all embeddings of the batch at once, but the network needs the activations of a few images
only. So embed everything without activations, take the gradient of the loss with respect to the embeddings, then embed
again, micro-batch by micro-batch, and send that gradient back through each, with that of the terms that need no other
pair. Dropout is the same both times because the
state of the random numbers is. Between processes, embeddings are gathered and gradients of weights summed.

Source:
    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache, 2021).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cvgl_data.errors import RecipeError
from cvgl_models.systems import Embedded, LossTerms, RetrievalModule, SystemModule
from cvgl_models.training.ranks import Ranks
from cvgl_models.transforms import Batch

Context = Callable[[], contextlib.AbstractContextManager[Any]]
Scale = Callable[[Tensor], Tensor]

_LABELS = ("uv", "heading_deg", "query_row", "reference_row")


def total(terms: LossTerms) -> Tensor:
    """Return the float32 sum of loss terms."""
    return torch.stack([term.float() for term in terms.values()]).sum()


def backward(
    system: SystemModule,
    batch: Batch,
    *,
    context: Context = contextlib.nullcontext,
    scale: Scale = lambda loss: loss,
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
        RecipeError: If the system compares no embeddings, but ``micro_batch`` or ``ranks`` call for it.
    """
    ranks = ranks or Ranks()
    if not micro_batch and ranks.count == 1:
        with context():
            terms = system.training_step(batch)
        scale(total(terms)).backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in terms.items()}
    if not isinstance(system, RetrievalModule):
        raise RecipeError(
            f"{type(system).__name__} compares no pairs of a batch; set optim.micro_batch to 0 and use one process"
        )
    size = len(batch.query)
    shares = [slice(start, min(start + (micro_batch or size), size)) for start in range(0, size, micro_batch or size)]
    make = _Twice if micro_batch else _Once
    pieces = [make(system, _rows(batch, rows), context, (rows.stop - rows.start) / size) for rows in shares]
    whole = {
        name: ranks.gather(torch.cat([piece.embedded[name] for piece in pieces])).detach().requires_grad_()
        for name in pieces[0].embedded
    }
    labels = {name: ranks.gather(getattr(batch, name)) for name in _LABELS}
    with context():
        terms = system.loss_terms(whole, dataclasses.replace(batch, **labels))
    scale(total(terms)).backward()  # type: ignore[no-untyped-call]
    if ranks.count > 1:  # every process has the same gradient of the loss's own weights; they will be summed
        for parameter in system.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(ranks.count)
    own = {name: side.grad[ranks.rank * size :][:size] for name, side in whole.items() if side.grad is not None}
    for rows, piece in zip(shares, pieces, strict=True):
        piece.send_back({name: gradient[rows] for name, gradient in own.items()}, scale, 1 / ranks.count)
    ranks.sum_gradients(system.parameters())
    alone = {
        name: ranks.gather(sum(piece.terms[name] * piece.share for piece in pieces).detach().reshape(1)).mean()  # type: ignore[union-attr]
        for name in pieces[0].terms
    }
    return {name: term.detach() for name, term in {**terms, **alone}.items()}


class _Once:
    """A piece of the batch, embedded with its activations kept.

    Args:
        system: In training mode.
        piece: Some pairs.
        context: Makes the autocast.
        share: Of the pairs of this process.
    """

    def __init__(self, system: RetrievalModule, piece: Batch, context: Context, share: float) -> None:
        self.system, self.piece, self.context, self.share = system, piece, context, share
        self.embedded, self.terms = self._embed()

    def _embed(self) -> tuple[Embedded, LossTerms]:
        with self.context():
            return self.system.embed_pairs(self.piece)

    def send_back(self, gradients: Embedded, scale: Scale, weight: float) -> None:
        """Send gradients of the embeddings back to the weights, with those of the piece's own terms."""
        _backward(self.embedded, self.terms, gradients, scale, self.share * weight)


class _Twice(_Once):
    """A piece of the batch, embedded without activations now and with them when the gradient is there."""

    def _embed(self) -> tuple[Embedded, LossTerms]:
        self._before = _random_state(self.piece.query.device)
        with torch.no_grad():
            return super()._embed()

    def send_back(self, gradients: Embedded, scale: Scale, weight: float) -> None:
        """Embed again and do the same."""
        device = self.piece.query.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            _set_random_state(self._before, device)
            embedded, terms = super()._embed()
        _backward(embedded, terms, gradients, scale, self.share * weight)


def _backward(embedded: Embedded, terms: LossTerms, gradients: Embedded, scale: Scale, weight: float) -> None:
    heads = [embedded[name] for name in gradients]
    seeds: list[Tensor | None] = list(gradients.values())
    if terms:
        heads.append(scale(total(terms) * weight))
        seeds.append(None)
    torch.autograd.backward(heads, seeds)


def _rows(batch: Batch, rows: slice) -> Batch:
    """Return some pairs of a batch."""
    parts = {
        item.name: value[rows]
        for item in dataclasses.fields(batch)
        if item.name != "ignore" and (value := getattr(batch, item.name)) is not None and len(value)
    }
    return dataclasses.replace(batch, ignore=None, **parts)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
