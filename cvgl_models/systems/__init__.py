"""Trainable methods of the literature: one file per system, one line in the table below."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from torch import Tensor, nn

from cvgl_data.errors import CheckpointError, RecipeError
from cvgl_data.registry import Registry
from cvgl_models.recipe import ModelRecipe
from cvgl_models.transforms import Batch

LossTerms: TypeAlias = dict[str, Tensor]
"""Named scalar terms, already weighted; the trainer minimizes their sum."""


class System(Protocol):
    """One trainable method; also an ``nn.Module``."""

    task: Literal["retrieval", "localization"]

    def training_step(self, batch: Batch) -> LossTerms:
        """Return the loss terms of a batch of pairs."""

    def embed_queries(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""

    def embed_references(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""


class SystemModule(nn.Module, ABC):
    """Base class of systems: a `System` that is an ``nn.Module``; one that lacks a method cannot be made."""

    task: Literal["retrieval", "localization"] = "retrieval"

    @abstractmethod
    def training_step(self, batch: Batch) -> LossTerms:
        """Return the loss terms of a batch of pairs."""

    @abstractmethod
    def embed_queries(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""

    @abstractmethod
    def embed_references(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""

    def loss_terms(self, query_BD: Tensor, reference_BD: Tensor, batch: Batch) -> LossTerms:
        """Return the loss terms of embedded pairs: ``training_step`` without the network.

        A system that has it can be trained in micro-batches and by several processes, because what comes here may have
        been embedded piece by piece and elsewhere. Of the batch only the labels may be used, not the images.

        Raises:
            RecipeError: If the system's loss needs more than embeddings.
        """
        raise RecipeError(
            f"the loss of {type(self).__name__} cannot be computed from embeddings alone; "
            "set optim.micro_batch to 0 and use one process"
        )


SYSTEMS: Registry[Callable[[ModelRecipe], SystemModule]] = Registry(
    "system",
    {
        "cvcities": "cvgl_models.systems.cvcities:CVCities",
        "sample4geo": "cvgl_models.systems.sample4geo:Sample4Geo",
    },
    group="cvgl.systems",
)


def create_system(recipe: ModelRecipe) -> SystemModule:
    """Build the recipe's system.

    Raises:
        UnknownNameError: If there is no such system or backbone.
        CheckpointError: If pretrained weights cannot be loaded.
    """
    system = SYSTEMS.load(recipe.system)(recipe)
    if not any(True for _ in system.parameters()):
        raise CheckpointError(f"system '{recipe.system}' has nothing to train")
    return system
