"""EP-BEV (ECCV 2024): two retrievals, one from the panorama and one from its top view, searched together.

Each branch is a Sample4Geo of its own, trained with the other or alone. Scores are fused as
``w * panorama + (1 - w) * top view``; that is the cosine of the branches' embeddings put one after the other, scaled by
the square roots of the weights, so one index over references of twice the length serves both, and no order of rows can
be mixed up.

Differences from the published code: one run may hold both branches; the top view has no seam and no half-pixel shift
(see `cvgl_models.geometry`); the weight is a knob, or chosen on the validation split; scores are fused by id, not by
position in two galleries.

Shapes: B images, Q queries, R references, D embedding of a branch, W weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cvgl_data.errors import RecipeError
from cvgl_models.recipe import ModelRecipe, system_options
from cvgl_models.recipe.checks import STRICT, share
from cvgl_models.systems import Embedded, LossTerms, RetrievalModule
from cvgl_models.systems.sample4geo import Sample4Geo
from cvgl_models.transforms import Batch

BRANCHES = ("panorama", "bev")
VALIDATION = "validation"
WEIGHTS = (
    *(0.001, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45),
    *(0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.999),
)
"""Shares of the panorama's similarity that the validation split chooses from, ascending: finer towards the ends, where
one branch only decides between what the other finds alike; never 0 or 1, which would leave nothing of one to read."""
_TIE = 1e-6
"""Similarities closer than this are equal: what rounding makes of two references that are the same."""
_BLOCK = 2**24
"""Similarities of a block: 64 MiB for each branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EPBEVOptions:
    """The ``options`` of a recipe."""

    __pydantic_config__ = STRICT
    panorama_weight: float | str = 0.5
    """Share of the panorama's similarity in the fused one; ``"validation"``: the one of `WEIGHTS` that the validation
    split speaks for, see `careful_choice`; chosen anew whenever that is measured and kept with the weights."""

    def __post_init__(self) -> None:
        if not isinstance(self.panorama_weight, str):
            share(panorama_weight=self.panorama_weight)
        elif self.panorama_weight != VALIDATION:
            raise RecipeError(
                f"recipe key 'panorama_weight' is '{self.panorama_weight}', expected '{VALIDATION}' or a number"
            )


class EPBEV(RetrievalModule):
    """The system as a module.

    Args:
        recipe: ``encoder``, ``views`` (with ``bev_px``), ``optim.label_smoothing`` and ``options`` (`EPBEVOptions`) are
            read. Each branch has its own encoder.

    Raises:
        RecipeError: If the recipe has no top view beside the panorama.
    """

    query_views = ("query", "bev")
    scale_2: Tensor
    """Lengths of the branches' parts of an embedding: the square roots of their weights."""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        weight = system_options(EPBEVOptions, recipe).panorama_weight
        self.is_tuned = isinstance(weight, str)
        # a number is in the recipe; what was chosen is known from the weights alone
        self.register_buffer("scale_2", torch.empty(2), persistent=self.is_tuned)
        self._set_weight(0.5 if isinstance(weight, str) else weight)
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

    @property
    def panorama_weight(self) -> float:
        """Share of the panorama's similarity, as it is now."""
        return round(float(self.scale_2[0]) ** 2, 6)

    def tuned(
        self, query_QD: Tensor, reference_RD: Tensor, positives_Q: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Choose the weight that finds the positives of given queries best; see `adopt`.

        Args:
            query_QD: What `embed_queries` gave with a weight that is neither 0 nor 1.
            reference_RD: What `embed_references` gave with it.
            positives_Q: Row of each query's positive.

        Returns:
            Both embeddings with the chosen weight; and ``panorama_weight`` with the mean reciprocal rank it has, to be
            logged. Everything as it was, and nothing chosen, if the recipe gives the weight.
        """
        if not self.is_tuned:
            return query_QD, reference_RD, {}
        of_query, of_reference = (
            [F.normalize(side[:, self.branches[name]], dim=1) for name in BRANCHES] for side in (query_QD, reference_RD)
        )
        score_WQ = reciprocal_ranks(of_query, of_reference, positives_Q, WEIGHTS)
        chosen = careful_choice(score_WQ)
        weight, scale_2 = WEIGHTS[chosen], _scale_of(WEIGHTS[chosen]).to(query_QD)
        found = {"panorama_weight": weight, "validation_mean_reciprocal_rank": float(score_WQ[chosen].mean())}
        return torch.cat(_scaled(of_query, scale_2), 1), torch.cat(_scaled(of_reference, scale_2), 1), found

    def adopt(self, settings: Mapping[str, float]) -> None:
        """Search with the ``panorama_weight`` that `tuned` chose from now on; without one nothing changes."""
        if self.is_tuned and "panorama_weight" in settings:
            self._set_weight(settings["panorama_weight"])

    @torch.no_grad()
    def _set_weight(self, weight: float) -> None:
        self.scale_2.copy_(_scale_of(weight))

    def _together(self, *parts_BD: Tensor) -> Tensor:
        return torch.cat(_scaled(parts_BD, self.scale_2), 1)


def reciprocal_ranks(
    query_QD: Sequence[Tensor], reference_RD: Sequence[Tensor], positives_Q: NDArray[np.int64], weights: Sequence[float]
) -> Tensor:
    """Return how well two branches find each positive together, for each weight of the first one: (W, Q) in (0, 1].

    The mean of 1 / rank tells weights apart that a recall on a few hundred queries cannot, as every query that moves up
    counts, and those near the top count most; a query that is lost costs at most its own share, whatever its rank.
    Ties and NaN count against the query.

    Args:
        query_QD: Embeddings of unit length by branch.
        reference_RD: Embeddings of unit length by branch.
        positives_Q: Row of each query's positive.
        weights: Of the first branch; the second one has the rest.
    """
    positive_Q = torch.as_tensor(positives_Q).to(reference_RD[0].device)
    score_WQ = torch.empty(len(weights), len(positive_Q), dtype=torch.float64)
    rows = max(1, _BLOCK // max(1, len(reference_RD[0])))
    for start in range(0, len(positive_Q), rows):
        positive_q1 = positive_Q[start : start + rows, None]
        ahead_qR = []  # of the positive, by branch; what is ahead in the sum of both depends on the weight alone
        for query, reference in zip(query_QD, reference_RD, strict=True):
            score_qR = query[start : start + rows] @ reference.T
            ahead_qR.append(score_qR - score_qR.gather(1, positive_q1))
        for index, weight in enumerate(weights):
            is_behind_qR = torch.lerp(ahead_qR[1], ahead_qR[0], weight) < -_TIE
            rank_q = (~is_behind_qR).sum(1)  # the positive is not behind itself, so the best rank is 1
            score_WQ[index, start : start + rows] = 1 / rank_q.double().cpu()
    return score_WQ


def careful_choice(score_WQ: Tensor) -> int:
    """Return which weight to take: no further from the better branch alone than the queries make sure of.

    Of the weights whose mean score is within one standard error of the highest, that nearest to the better one of the
    two ends; the error is that of the difference, query by query. So few queries, or much alike weights, leave the
    better branch as it is, and many that agree let the other one in.

    Source:
        Breiman et al. 1984, "Classification and Regression Trees": the rule of one standard error.
    """
    mean_W = score_WQ.mean(1)
    behind_WQ = score_WQ[mean_W.argmax()] - score_WQ
    num = score_WQ.shape[1]
    error_W = behind_WQ.std(1) / math.sqrt(num) if num > 1 else torch.zeros_like(mean_W)
    as_good = (behind_WQ.mean(1) <= error_W + _TIE).nonzero()[:, 0]
    return int(as_good[-1] if mean_W[-1] > mean_W[0] + _TIE else as_good[0])


def _scale_of(weight: float) -> Tensor:
    return torch.tensor([math.sqrt(weight), math.sqrt(1 - weight)])


def _scaled(parts_BD: Sequence[Tensor], scale_2: Tensor) -> list[Tensor]:
    return [scale * part_BD for scale, part_BD in zip(scale_2, parts_BD, strict=True)]


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
