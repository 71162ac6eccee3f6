"""AuxGeo (ISPRS 2025): Sample4Geo with two auxiliaries that exist in training only.

BIM (BEV intermediary): the top view of a panorama's ground is embedded by the same encoder, and pulls panorama and
reference together from between. PCM (position constraint): the similarity of a query with each cell of its reference's
last map must say where in the reference it was taken. At inference there is nothing of either: one encoder, one
panorama, one reference.

Differences from the published code: a position is compared with centres of cells, not with their corners (half a cell
is a bias of 16 px at 12 cells of 384 px); labels turn and flip with the images exactly; any grid; each part can be
switched off; the last map is that of whatever backbone the recipe names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cvgl_data.errors import RecipeError
from cvgl_models.losses import SymmetricInfoNCE
from cvgl_models.recipe import ModelRecipe, system_options
from cvgl_models.recipe.checks import STRICT, at_least, positive
from cvgl_models.semi_positives import info_nce
from cvgl_models.systems import Embedded, LossTerms, RetrievalModule
from cvgl_models.systems.sample4geo import Sample4Geo
from cvgl_models.transforms import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class AuxGeoOptions:
    """The ``options`` of a recipe."""

    __pydantic_config__ = STRICT
    bim: bool = True
    """Embed the top view too, ``views.bev_px`` pixels a side."""
    pcm: bool = True
    """Constrain positions."""
    panorama_bev_weight: float = 0.1
    bev_reference_weight: float = 0.1
    pcm_weight: float = 0.05
    pcm_levels: int = 3
    """Grids: that of the last map, and each next one half as fine."""
    pcm_temperature: float = 0.05

    def __post_init__(self) -> None:
        at_least(
            0,
            panorama_bev_weight=self.panorama_bev_weight,
            bev_reference_weight=self.bev_reference_weight,
            pcm_weight=self.pcm_weight,
        )
        positive(pcm_levels=self.pcm_levels, pcm_temperature=self.pcm_temperature)


class AuxGeo(Sample4Geo):
    """The system as a module.

    Args:
        recipe: ``encoder``, ``views``, ``optim.label_smoothing`` and ``options`` (`AuxGeoOptions`) are read.

    Raises:
        RecipeError: If there is one encoder for each view, no top view for BIM, or the embedding is not of the same
            space as the map, which PCM compares it with.
    """

    unread = RetrievalModule.unread
    has_options = True

    def __init__(self, recipe: ModelRecipe) -> None:
        if not recipe.encoder.shared:
            raise RecipeError("system 'auxgeo' has one encoder for all views; set encoder.shared to true")
        super().__init__(recipe)
        self.options = system_options(AuxGeoOptions, recipe)
        if self.options.bim != bool(recipe.views.bev_px):
            raise RecipeError(
                "system 'auxgeo' takes a top view exactly for BIM; set views.bev_px, or options.bim to false"
            )
        smoothing = recipe.optim.label_smoothing
        self.panorama_bev_loss = SymmetricInfoNCE(smoothing) if self.options.bim else None
        self.bev_reference_loss = SymmetricInfoNCE(smoothing) if self.options.bim else None

    def embed_pairs(self, batch: Batch) -> tuple[Embedded, LossTerms]:
        """Return embeddings ``query``, ``reference`` and, with BIM, ``bev``; and with PCM its term."""
        embedded = {"query": self.embed_queries(batch)}
        if self.options.bim:
            embedded["bev"] = self.encoder.query(batch.bev)
        if not self.options.pcm:
            return embedded | {"reference": self.embed_references(batch)}, {}
        embedded["reference"], map_BChw = self.encoder.reference.with_map(batch.reference)
        place_B2 = batch.uv / batch.reference.shape[-1]
        terms = [
            position_constraint(
                embedded[name], map_BChw, place_B2, self.options.pcm_levels, self.options.pcm_temperature
            )
            for name in ("query", "bev")
            if name in embedded
        ]
        return embedded, {"position": self.options.pcm_weight * torch.stack(terms).sum()}

    def loss_terms(self, embedded: Embedded, batch: Batch) -> LossTerms:
        """Return ``info_nce`` and, with BIM, ``panorama_bev`` and ``bev_reference``."""
        terms = super().loss_terms(embedded, batch)
        if self.panorama_bev_loss is not None and self.bev_reference_loss is not None:
            # panorama and top view show the same place: no other query's top view is a semi-positive of it
            terms["panorama_bev"] = self.options.panorama_bev_weight * info_nce(
                self.panorama_bev_loss, embedded["query"], embedded["bev"], None
            )
            terms["bev_reference"] = self.options.bev_reference_weight * info_nce(
                self.bev_reference_loss, embedded["bev"], embedded["reference"], batch.ignore
            )
        return terms


def position_constraint(
    query_BD: Tensor, map_BDhw: Tensor, place_B2: Tensor, levels: int = 3, temperature: float = 0.05
) -> Tensor:
    """Return how far from their true place queries are expected in their references, in cells, summed over grids.

    Args:
        query_BD: Embeddings of queries. Of a head that takes several weighted sums of the map, one after the other, the
            sum is taken, which is a weighted sum of the map too.
        map_BDhw: Last map of each query's positive, h = w.
        place_B2: True place (u, v) as shares of the reference's side; pairs outside [0, 1] do not count.
        levels: Grids of h, h / 2, h / 4, ... cells, made by averaging; an odd grid is the last.
        temperature: Of the softmax over the cells.

    Returns:
        Scalar, the mean over the pairs that count.

    Raises:
        RecipeError: If the embedding is no sum, or several, of the map's cells by its size, or the map is not square.

    Source:
        AuxGeo's PCM, with the expected place and the true one in the same coordinates.
    """
    height, width = map_BDhw.shape[-2:]
    if query_BD.shape[1] % map_BDhw.shape[1] or height != width:
        raise RecipeError(
            f"PCM compares an embedding of {query_BD.shape[1]} values with a square map of as many channels, not "
            f'{map_BDhw.shape[1]} of {height}x{width}; set encoder.aggregator to "average", or options.pcm to false'
        )
    query_BD = query_BD.unflatten(1, (-1, map_BDhw.shape[1])).sum(1)  # type: ignore[no-untyped-call]
    inside_B = ((place_B2 >= 0) & (place_B2 <= 1)).all(1)
    total = query_BD.new_zeros((), dtype=torch.float32)
    with torch.autocast(query_BD.device.type, enabled=False):
        grid_BDhw = map_BDhw.float()
        for _ in range(levels):
            side = grid_BDhw.shape[-1]
            found_B2 = expected_cell(query_BD.float(), grid_BDhw, temperature)
            away_B = torch.linalg.vector_norm(place_B2.float() * side - 0.5 - found_B2, dim=1)
            total = total + (away_B * inside_B).sum() / inside_B.sum().clamp(min=1)
            if side % 2:
                break
            grid_BDhw = F.avg_pool2d(grid_BDhw, 2)
    return total


def expected_cell(query_BD: Tensor, map_BDhw: Tensor, temperature: float) -> Tensor:
    """Return the expected (column, row) index, (B, 2), under a softmax of the cosine of each cell with the query."""
    cosine_Bhw = torch.einsum("bd,bdhw->bhw", F.normalize(query_BD, dim=1), F.normalize(map_BDhw, dim=1))
    p_Bhw = (cosine_Bhw / temperature).flatten(1).softmax(1).view_as(cosine_Bhw)
    index = torch.arange(map_BDhw.shape[-1], device=map_BDhw.device, dtype=p_Bhw.dtype)
    return torch.stack([(p_Bhw.sum(1) * index).sum(1), (p_Bhw.sum(2) * index).sum(1)], 1)
