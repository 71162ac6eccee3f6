"""From images to L2-normalized embeddings.

Shapes: B images, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.aggregators import Aggregator, create_aggregator
from cvgl_models.aggregators.netvlad import NetVLAD
from cvgl_models.backbones import create_backbone
from cvgl_models.backbones.freezing import freeze_before_last_blocks
from cvgl_models.backbones.maps import check_sizes, grid_of, map_and_class, pool, prepare_for_maps
from cvgl_models.recipe import EncoderRecipe, ViewRecipe


class Encoder(nn.Module):
    """A backbone, perhaps an aggregator, and the normalization of the input and of the output.

    Args:
        backbone: Maps (B, 3, H, W) to (B, D), or has a map for the aggregator; carries ``mean`` and ``std``.
        aggregator: Takes the place of the backbone's own pooling.
        frozen: Modules that are never put into training mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, aggregator: Aggregator | None = None, frozen: Iterable[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aggregator = aggregator
        self._frozen = list(frozen)
        self.register_buffer("mean", torch.tensor(backbone.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, D) float32 embeddings of unit length; images are (B, 3, H, W) in [0, 1]."""
        images = self._normalized(images)
        if self.aggregator is None:
            return F.normalize(self.backbone(images).float(), dim=1)
        features = self.aggregator(*map_and_class(self.backbone, images))
        return F.normalize(features.float(), dim=1)

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, and the last map (B, C, h, w) that it was pooled from, as it is.

        Raises:
            RecipeError: If the backbone gives no map.
        """
        images = self._normalized(images)
        map_BChw, class_BC = map_and_class(self.backbone, images)
        pooled = self.aggregator(map_BChw, class_BC) if self.aggregator else pool(self.backbone, map_BChw)
        return F.normalize(pooled.float(), dim=1), map_BChw

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @torch.no_grad()
    def init_aggregator(
        self, batches: Iterable[Tensor], per_image: int = 100, limit: int = 50_000, seed: int = 0
    ) -> int:
        """Let a head that needs it see descriptors before training (NetVLAD); others are left as they are.

        Args:
            batches: Images, (B, 3, H, W) in [0, 1], of both views if the encoder serves both.
            per_image: Descriptors per image, at random places.
            limit: Stop at so many.
            seed: Of the places and of the k-means.

        Returns:
            How many descriptors were used.

        Raises:
            ValueError: If there are fewer distinct descriptors than the head has words.
        """
        if not isinstance(self.aggregator, NetVLAD):
            return 0
        was_training, generator = self.training, torch.Generator().manual_seed(seed)
        self.eval()
        found: list[Tensor] = []
        for images in batches:
            map_BChw, _ = map_and_class(self.backbone, self._normalized(images))
            found.append(self.aggregator.descriptors(map_BChw, per_image, generator))
            if sum(map(len, found)) >= limit:
                break
        descriptors_NC = torch.cat(found)[:limit] if found else torch.empty(0, self.aggregator.centroids.shape[1])
        self.aggregator.init_from(descriptors_NC, seed)
        self.train(was_training)
        return len(descriptors_NC)

    def _normalized(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def create_encoder(recipe: EncoderRecipe, *sizes_px: tuple[int, int]) -> Encoder:
    """Build an encoder that maps (B, 3, H, W) to (B, D).

    Args:
        recipe: Backbone, aggregator, and which part is trained.
        sizes_px: Height and width of each view it will be shown, the first one first.

    Raises:
        UnknownNameError: If there is no such backbone or aggregator.
        RecipeError: If the backbone cannot take such views, or cannot do what the recipe asks for.
        CheckpointError: If weights cannot be had or do not fit.
    """
    backbone = create_backbone(
        recipe.backbone,
        pretrained=recipe.pretrained,
        image_size=sizes_px[0],
        grad_checkpointing=recipe.grad_checkpointing,
    )
    check_sizes(backbone, sizes_px, recipe.backbone)
    aggregator = None
    if recipe.aggregator:
        channels = prepare_for_maps(backbone, recipe.final_norm, recipe.backbone)
        grid = grid_of(backbone, sizes_px[0])
        aggregator = create_aggregator(recipe.aggregator, channels, grid, recipe.aggregator_options)
    frozen: list[nn.Module] = []
    if recipe.train_blocks >= 0:
        frozen = freeze_before_last_blocks(backbone, recipe.train_blocks, recipe.train_tokens, recipe.backbone)
    return Encoder(backbone, aggregator, frozen)


class DualEncoder(nn.Module):
    """One encoder for queries and one for references, or one for both."""

    def __init__(self, recipe: EncoderRecipe, views: ViewRecipe) -> None:
        super().__init__()
        query_px, reference_px = views.query_size_px, (views.reference_px, views.reference_px)
        if recipe.shared:
            self.query = self.reference = create_encoder(recipe, query_px, reference_px)
        else:
            self.query = create_encoder(recipe, query_px)
            self.reference = create_encoder(recipe, reference_px)
        self.to(memory_format=torch.channels_last)
