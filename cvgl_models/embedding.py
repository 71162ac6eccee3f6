"""From images to L2-normalized embeddings.

Shapes: B images, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.backbones import create_backbone
from cvgl_models.recipe import EncoderRecipe, ViewRecipe


class Encoder(nn.Module):
    """A backbone with the normalization of its input and of its output.

    Args:
        backbone: Maps (B, 3, H, W) to (B, D); carries ``mean``, ``std`` and ``num_features``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(backbone.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, D) float32 embeddings of unit length; images are (B, 3, H, W) in [0, 1]."""
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.backbone(images).float(), dim=1)


class DualEncoder(nn.Module):
    """One encoder for queries and one for references, or one for both."""

    def __init__(self, recipe: EncoderRecipe, views: ViewRecipe) -> None:
        super().__init__()
        self.query = Encoder(self._backbone(recipe, views.query_size_px))
        if recipe.shared:
            self.reference = self.query
        else:
            self.reference = Encoder(self._backbone(recipe, (views.reference_px, views.reference_px)))
        self.to(memory_format=torch.channels_last)

    @staticmethod
    def _backbone(recipe: EncoderRecipe, size: tuple[int, int]) -> nn.Module:
        return create_backbone(
            recipe.backbone,
            pretrained=recipe.pretrained,
            image_size=size,
            grad_checkpointing=recipe.grad_checkpointing,
        )
