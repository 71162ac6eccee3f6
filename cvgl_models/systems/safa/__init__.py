"""SAFA (NeurIPS 2019): two small networks with spatial attention, and what is done to the reference before them.

Differences from the published code: docs/safa.md.

Shapes: B pairs, D embedding, H and W of the query, S side of the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cvgl_data.errors import RecipeError
from cvgl_models.aggregators import create_aggregator
from cvgl_models.backbones import create_backbone
from cvgl_models.backbones.freezing import freeze_before_last_blocks
from cvgl_models.backbones.maps import grid_of
from cvgl_models.backbones.shallow import Shallow
from cvgl_models.embedding import Encoder
from cvgl_models.geometry.polar import polar_transform
from cvgl_models.geometry.resampling import resample
from cvgl_models.losses import SoftMarginTriplet
from cvgl_models.recipe import EncoderRecipe, ModelRecipe, system_options
from cvgl_models.systems import Embedded, LossTerms, RetrievalModule
from cvgl_models.systems.safa.front_ends import SplineTransformer, Transformed, create_front_end
from cvgl_models.systems.safa.mesh import draw_mesh
from cvgl_models.systems.safa.options import SafaOptions
from cvgl_models.transforms import Batch


class Branches(nn.Module):
    """An encoder of queries and one of references, or one of both."""

    def __init__(
        self, recipe: EncoderRecipe, stride: int, query_px: tuple[int, int], reference_px: tuple[int, int]
    ) -> None:
        super().__init__()
        self.query = _create_encoder(recipe, stride, query_px)
        self.reference = self.query if recipe.shared else _create_encoder(recipe, stride, reference_px)
        self.to(memory_format=torch.channels_last)


class Safa(RetrievalModule):
    """The system as a module.

    Args:
        recipe: ``encoder``, ``views`` and ``options`` (`SafaOptions`) are read.

    Raises:
        RecipeError: If these do not go together.
    """

    unread = (*RetrievalModule.unread, "views.bev_px", "optim.label_smoothing")

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.options = system_options(SafaOptions, recipe)
        name = self.options.front_end
        if name != "none" and recipe.views.query != "panorama":
            raise RecipeError(
                f"recipe key 'options.front_end' is '{name}', which makes references look like panoramas; set "
                "views.query to 'panorama', or the front end to 'none'"
            )
        query_px, side_px = recipe.views.query_size_px, recipe.views.reference_px
        self.front_end = create_front_end(self.options, side_px, query_px)
        reference_px = (side_px, side_px) if name == "none" else query_px
        self.encoder = Branches(recipe.encoder, self.options.map_stride, query_px, reference_px)
        self.loss = SoftMarginTriplet(self.options.margin_scale, self.options.mining_share(0))
        self.target_px = query_px

    def begin_epoch(self, epoch: int) -> None:
        """Set the share of hard triplets of an epoch; the first one is 0."""
        self.loss.share = self.options.mining_share(epoch)

    def embed_pairs(self, batch: Batch) -> tuple[Embedded, LossTerms]:
        """Return the embeddings, and the terms ``guidance`` and ``bending`` of a learned front end."""
        transformed = self.front_end(batch.reference)
        reference_BD = self.encoder.reference(transformed.image)
        return {"query": self.embed_queries(batch), "reference": reference_BD}, self._own_terms(batch, transformed)

    def loss_terms(self, embedded: Embedded, batch: Batch) -> LossTerms:
        """Return the one term ``triplet``."""
        return {"triplet": self.loss(embedded["query"], embedded["reference"], batch.ignore)}

    def embed_queries(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""
        embedded: Tensor = self.encoder.query(batch.query)
        return embedded

    def embed_references(self, batch: Batch) -> Tensor:
        """Return (B, D) L2-normalized embeddings."""
        embedded: Tensor = self.encoder.reference(self.front_end(batch.reference).image)
        return embedded

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the front end makes of a few pairs: images in [0, 1] by name, (B, 3, height, width) each.

        ``places`` is the reference with lines along which the rows and columns of the result look; there is none
        without a front end.
        """
        if self.options.front_end == "none":
            return {}
        was_training = self.front_end.training
        transformed = self.front_end.eval()(batch.reference)
        self.front_end.train(was_training)
        shown = {"query": batch.query, "reference": batch.reference}
        if transformed.grid_BHW2 is not None:
            shown["places"] = draw_mesh(batch.reference, transformed.grid_BHW2)
        shown["transformed"] = transformed.image.float().clamp(0, 1)
        if self.options.is_learned:
            shown["polar"] = polar_transform(batch.reference, self.target_px, center=self.options.polar_center)
        return {name: images.float() for name, images in shown.items()}

    def _own_terms(self, batch: Batch, transformed: Transformed) -> LossTerms:
        terms: LossTerms = {}
        if not self.options.is_learned:
            return terms
        if self.options.guidance_weight:
            assert transformed.grid_BHW2 is not None
            target = polar_transform(batch.reference, self.target_px, center=self.options.polar_center)
            # what changes colors must not be led by them, so the target is what it looks at, not what it makes of it
            looked_at = resample(batch.reference, transformed.grid_BHW2) if transformed.recolored else transformed.image
            away = (looked_at.float() - target.float()) / self.encoder.reference.std  # as the encoder sees them
            terms["guidance"] = self.options.guidance_weight * away.abs().mean()
        if self.options.bending_weight:
            assert isinstance(self.front_end, SplineTransformer)
            assert transformed.place_BK2 is not None
            energy_B = self.front_end.spline.bending_energy(transformed.place_BK2)
            terms["bending"] = self.options.bending_weight * energy_B.mean()
        return terms


def _create_encoder(recipe: EncoderRecipe, stride: int, size_px: tuple[int, int]) -> Encoder:
    """Build the part of a backbone that gives a fine map, and its aggregator."""
    if not recipe.aggregator:
        raise RecipeError("system 'safa' needs an 'encoder.aggregator', for example \"spatial_attention\"")
    if not recipe.final_norm:
        raise RecipeError("system 'safa' cuts the backbone before its final norm; set encoder.final_norm to true")
    model = create_backbone(
        recipe.backbone,
        pretrained=recipe.pretrained,
        image_size=size_px,
        grad_checkpointing=recipe.grad_checkpointing,
    )
    backbone = Shallow(model, stride, recipe.backbone)
    aggregator = create_aggregator(
        recipe.aggregator, backbone.map_channels, grid_of(backbone, size_px), recipe.aggregator_options
    )
    frozen: list[nn.Module] = []
    if recipe.train_blocks >= 0:
        frozen = freeze_before_last_blocks(backbone.model, recipe.train_blocks, recipe.train_tokens, recipe.backbone)
    return Encoder(backbone, aggregator, frozen)
