"""EP-BEV (ECCV 2024): two retrievals, one from the panorama and one from its top view, searched together.

Each branch is a Sample4Geo of its own, trained with the other or alone. Scores are fused as
``w * panorama + (1 - w) * top view``; that is the cosine of the branches' embeddings put one after the other, scaled by
the square roots of the weights, so one index over references of twice the length serves both, and no order of rows can
be mixed up.

Differences from the published code: one run may hold both branches; the top view has no seam and no half-pixel shift
(see `cvgl_models.geometry`); the weight is a knob; scores are fused by id, not by position in two galleries.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cvgl_data.errors import RecipeError
from cvgl_models.recipe import ModelRecipe, system_options
from cvgl_models.recipe.checks import STRICT, share
from cvgl_models.systems import Embedded, LossTerms, RetrievalModule
from cvgl_models.systems.sample4geo import Sample4Geo
from cvgl_models.transforms import Batch

BRANCHES = ("panorama", "bev")


@dataclass(frozen=True, slots=True, kw_only=True)
class EPBEVOptions:
    """The ``options`` of a recipe."""

    __pydantic_config__ = STRICT
    panorama_weight: float = 0.5
    """Share of the panorama's similarity in the fused one."""

    def __post_init__(self) -> None:
        share(panorama_weight=self.panorama_weight)


class EPBEV(RetrievalModule):
    """The system as a module.

    Args:
        recipe: ``encoder``, ``views`` (with ``bev_px``), ``optim.label_smoothing`` and ``options`` (`EPBEVOptions`) are
            read. Each branch has its own encoder.

    Raises:
        RecipeError: If the recipe has no top view beside the panorama.
    """

    query_views = ("query", "bev")

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.weight = system_options(EPBEVOptions, recipe).panorama_weight
        of_panorama, of_bev = branch_recipes(recipe)
        self.panorama = Sample4Geo(of_panorama)
        self.bev = Sample4Geo(of_bev)
        size = recipe.views.reference_px
        with torch.no_grad():
            self.bev.eval()
            num = self.bev.embed_references(Batch(reference=torch.zeros(1, 3, size, size))).shape[1]
        self.branches = {"panorama": slice(0, num), "bev": slice(num, 2 * num)}

    def embed_pairs(self, batch: Batch) -> tuple[Embedded, LossTerms]:
        """Return ``query`` and ``reference`` of the panorama's branch, ``bev`` and ``bev_reference`` of the other."""
        return {
            "query": self.panorama.embed_queries(batch),
            "reference": self.panorama.embed_references(batch),
            "bev": self.bev.embed_queries(_of_bev(batch)),
            "bev_reference": self.bev.embed_references(batch),
        }, {}

    def loss_terms(self, embedded: Embedded, batch: Batch) -> LossTerms:
        """Return ``panorama`` and ``bev``: the InfoNCE of each branch."""
        of_bev = {"query": embedded["bev"], "reference": embedded["bev_reference"]}
        return {
            "panorama": self.panorama.loss_terms(embedded, batch)["info_nce"],
            "bev": self.bev.loss_terms(of_bev, batch)["info_nce"],
        }

    def embed_queries(self, batch: Batch) -> Tensor:
        """Return (B, 2 D): both embeddings, weighted, of unit length together."""
        return self._together(self.panorama.embed_queries(batch), self.bev.embed_queries(_of_bev(batch)))

    def embed_references(self, batch: Batch) -> Tensor:
        """Return (B, 2 D) likewise."""
        return self._together(self.panorama.embed_references(batch), self.bev.embed_references(batch))

    def _together(self, panorama_BD: Tensor, bev_BD: Tensor) -> Tensor:
        return torch.cat([math.sqrt(self.weight) * panorama_BD, math.sqrt(1 - self.weight) * bev_BD], 1)


def branch_recipes(recipe: ModelRecipe) -> tuple[ModelRecipe, ModelRecipe]:
    """Return the recipes of the two branches as systems of their own, first the panorama's.

    Raises:
        RecipeError: If the recipe has no top view beside the panorama.
    """
    views = recipe.views
    if not views.bev_px:
        raise RecipeError("system 'epbev' needs a top view beside the panorama; set views.bev_px")
    alone = dataclasses.replace(recipe, system="sample4geo", options={})
    above = dataclasses.replace(views, query="bev", query_height_px=views.bev_px, bev_px=0)
    return dataclasses.replace(alone, views=dataclasses.replace(views, bev_px=0)), dataclasses.replace(
        alone, views=above
    )


def _of_bev(batch: Batch) -> Batch:
    return dataclasses.replace(batch, query=batch.bev)
