"""Trainable methods of the literature: one file per system, one line in the table below."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, TypeAlias

from torch import Tensor, nn

from cvgl_data.errors import CheckpointError, RecipeError
from cvgl_data.registry import Registry
from cvgl_models.localization.pose import PosePrediction
from cvgl_models.recipe import ModelRecipe
from cvgl_models.recipe.checks import unchanged
from cvgl_models.transforms import Batch

LossTerms: TypeAlias = dict[str, Tensor]
"""Named scalar terms, already weighted; the trainer minimizes their sum."""

Embedded: TypeAlias = dict[str, Tensor]
"""Embeddings (B, D) of the views of pairs, by name; ``query`` and ``reference`` among them."""

OF_SEMI_POSITIVES = ("sampler.semi_positive_policy", "sampler.semi_positive_weight")
"""Recipe keys that only losses over all pairs of a batch read."""

Task: TypeAlias = Literal["retrieval", "localization"]


class System(Protocol):
    """One trainable method; also an ``nn.Module``. It has the methods of its task."""

    task: Task

    def training_step(self, batch: Batch) -> LossTerms:
        """Return the loss terms of a batch of pairs."""

    def embed_queries(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings (retrieval)."""

    def embed_references(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings (retrieval)."""

    def localize(self, batch: Batch) -> PosePrediction:
        """Return where in its reference each query was taken, and which way it looks (localization)."""


class SystemModule(nn.Module, ABC):
    """Base class of systems: a `System` that is an ``nn.Module``; one that lacks a method cannot be made.

    Attributes:
        unread: Recipe keys that it has no use for. A recipe that sets one is refused: it would change nothing.
        has_options: Whether it has options of its own.
    """

    task: Task
    unread: tuple[str, ...] = ()
    has_options: bool = True

    @abstractmethod
    def training_step(self, batch: Batch) -> LossTerms:
        """Return the loss terms of a batch of pairs."""

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, the first one being 0; called again when a run goes on in the middle of it."""
        del epoch

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return what is worth looking at, made of a few pairs: images in [0, 1] by name, (B, 3, height, width)."""
        del batch
        return {}


class RetrievalModule(SystemModule):
    """Base class of retrieval systems: they embed queries and references, and are trained by comparing embeddings.

    A training step is made of two parts, so that it can be taken in micro-batches and by several processes: what each
    pair needs the network for, and what compares the pairs.

    Attributes:
        query_views: Fields of a batch that `embed_queries` reads.
        branches: Parts of the embeddings that can be searched alone, by name.
    """

    task: Task = "retrieval"
    unread: tuple[str, ...] = ("sampler.min_distance_m",)
    query_views: tuple[str, ...] = ("query",)
    branches: Mapping[str, slice] = {}

    def training_step(self, batch: Batch) -> LossTerms:
        """Return the loss terms of a batch of pairs."""
        embedded, terms = self.embed_pairs(batch)
        return {**self.loss_terms(embedded, batch), **terms}

    def embed_pairs(self, batch: Batch) -> tuple[Embedded, LossTerms]:
        """Return the embeddings of some pairs, and the terms that need no other pair: means over these."""
        return {"query": self.embed_queries(batch), "reference": self.embed_references(batch)}, {}

    @abstractmethod
    def loss_terms(self, embedded: Embedded, batch: Batch) -> LossTerms:
        """Return the terms that compare the pairs of a batch, given what `embed_pairs` made of all of them.

        Of the batch only the labels may be used, not the images: pairs may have been embedded piece by piece, and
        elsewhere.
        """

    @abstractmethod
    def embed_queries(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""

    @abstractmethod
    def embed_references(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""


class LocalizationModule(SystemModule):
    """Base class of localization systems: they find a place inside a reference, and embed nothing.

    Attributes:
        selects_by_labels: Whether the true places may be used, in training and in the choice of the best weights.
            A system that sets it to False never gets them: ``batch.uv`` is empty wherever it is called, and
            `validation_score` chooses its weights.
    """

    task: Task = "localization"
    unread: tuple[str, ...] = (
        *(f"encoder.{name}" for name in ("grad_checkpointing", "aggregator", "train_blocks", "train_tokens")),
        *("views.bev_px", "optim.label_smoothing", "optim.channels_last"),
    )
    selects_by_labels: bool = True

    @abstractmethod
    def localize(self, batch: Batch) -> PosePrediction:
        """Return where in its reference each query was taken, and which way it looks.

        ``batch.uv`` and ``batch.heading_deg`` are empty. What is known of the heading is in ``batch.heading_prior_deg``
        (B, 2): the true heading lies within the second number of the first one; half-width 0 says that it is known,
        180 that nothing is.
        """

    def validation_score(self, batch: Batch) -> Tensor:
        """Return how well the system does on a batch without labels, a scalar or (B,); more is better.

        Raises:
            RecipeError: If the system has no such criterion.
        """
        raise RecipeError(
            f"{type(self).__name__} must not select by labels but has no validation_score of its own; write one"
        )


SYSTEMS: Registry[Callable[[ModelRecipe], SystemModule]] = Registry(
    "system",
    {
        "auxgeo": "cvgl_models.systems.auxgeo:AuxGeo",
        "cvcities": "cvgl_models.systems.cvcities:CVCities",
        "ccvpe": "cvgl_models.systems.ccvpe:CCVPE",
        "epbev": "cvgl_models.systems.epbev:EPBEV",
        "g2sweakly": "cvgl_models.systems.g2sweakly:G2SWeakly",
        "geodistill": "cvgl_models.systems.geodistill:GeoDistill",
        "hcnet": "cvgl_models.systems.hcnet:HCNet",
        "safa": "cvgl_models.systems.safa:Safa",
        "sample4geo": "cvgl_models.systems.sample4geo:Sample4Geo",
    },
    group="cvgl.systems",
)


def create_system(recipe: ModelRecipe) -> SystemModule:
    """Build the recipe's system.

    Raises:
        UnknownNameError: If there is no such system or backbone.
        CheckpointError: If pretrained weights cannot be loaded.
        RecipeError: If the recipe sets what the system does not read.
    """
    kind = SYSTEMS.load(recipe.system)
    # a factory of somebody else's need not say
    unchanged(recipe, recipe.system, getattr(kind, "unread", ()))
    if recipe.options and not getattr(kind, "has_options", True):
        raise RecipeError(f"recipe key 'options.{next(iter(recipe.options))}': system '{recipe.system}' has no options")
    system = kind(recipe)
    if not any(True for _ in system.parameters()):
        raise CheckpointError(f"system '{recipe.system}' has nothing to train")
    return system


def task_of(recipe: ModelRecipe) -> Task:
    """Return what the recipe's system is for, without building it.

    Raises:
        UnknownNameError: If there is no such system.
    """
    # a factory function of somebody else's need not say
    return "localization" if getattr(SYSTEMS.load(recipe.system), "task", "") == "localization" else "retrieval"


def query_views(system: SystemModule) -> tuple[str, ...]:
    """Return the fields of a batch from which a system embeds queries."""
    return system.query_views if isinstance(system, RetrievalModule) else ("query",)
