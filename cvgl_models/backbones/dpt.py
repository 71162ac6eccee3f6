"""Dense features of a frozen DINOv2: tokens of four depths, joined by a convolutional head that is trained.

Shapes: B images, H and W of the image, C channels that differ from level to level, h and w of the token grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.backbones.timm_models import timm_model
from cvgl_models.backbones.weights import load_published, read_weights

PATCH_PX = 14
_ARCHITECTURES = {
    "dinov2_dpt_small": ("vit_small_patch14_dinov2.lvd142m", (2, 5, 8, 11)),
    "dinov2_dpt_base": ("vit_base_patch14_dinov2.lvd142m", (2, 5, 8, 11)),
    "dinov2_dpt_large": ("vit_large_patch14_dinov2.lvd142m", (5, 11, 17, 23)),
}
DPT_NAMES = tuple(_ARCHITECTURES)


class DinoDpt(nn.Module):
    """Maps at 2, 4 and 8 cells per token and direction; the ViT itself is never trained.

    The image is resized to whole patches, so that the map covers exactly what the image does. (The published code pads
    it with black and then takes the cells of the reference for larger than they are.) What needs no finer grid than the
    tokens' is computed there.

    Args:
        name: ``dinov2_dpt_small``, ``_base`` or ``_large``.
        pretrained: True for the published DINOv2 weights, or a file.
        levels: Which ones of levels 0 to 2, coarsest first; what only finer ones need is not built.
        width: Channels of the head.

    Attributes:
        channels: Of each of these levels.

    Raises:
        CheckpointError: If weights cannot be had or do not fit.

    Source:
        GeoDistill (ICCV 2025), 3.2.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(
        self, name: str, *, pretrained: bool | str = False, levels: Sequence[int] = (0, 1, 2), width: int = 512
    ) -> None:
        super().__init__()
        architecture, self._blocks = _ARCHITECTURES[name]
        self.vit, optional = timm_model(architecture, pretrained is True, (PATCH_PX * 37, PATCH_PX * 37))
        if isinstance(pretrained, str):
            load_published(self.vit, read_weights(Path(pretrained)), pretrained, optional)
        self.vit.requires_grad_(False)
        count, self._levels = max(levels) + 1, tuple(levels)
        tokens = 2 * cast(int, self.vit.num_features)
        self.project = nn.ModuleList(nn.Conv2d(tokens, width, 1) for _ in range(count + 1))
        self.refine = nn.ModuleList(_Residual(width) for _ in range(count))
        self.fuse = nn.ModuleList(_Residual(width) for _ in range(count + 1))
        self.channels = tuple((256, 64, 16)[level] for level in levels)
        between = (width, max(128, width // 4), max(64, width // 8))
        self.taps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, between[level], 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(between[level], channels, 3, padding=1),
            )
            for level, channels in zip(levels, self.channels, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps (B, C, h * 2^k, w * 2^k), k = 1, 2, ..., of normalized images."""
        deepest, *shallower = self._tokens(images)
        joined = self.fuse[0](self.project[0](deepest))
        maps = []
        stages = zip(shallower, self.project[1:], self.refine, self.fuse[1:], strict=False)
        for tokens, project, refine, fuse in stages:
            joined = F.interpolate(joined, scale_factor=2.0, mode="nearest")
            joined = fuse(joined + F.interpolate(refine(project(tokens)), size=joined.shape[-2:], mode="nearest"))
            maps.append(joined)
        return [tap(maps[level]) for tap, level in zip(self.taps, self._levels, strict=True)]

    def cells(self, side_px: int) -> list[int]:
        """Return the cells of each level along a side of so many pixels."""
        return [_num_patches(side_px) * 2 ** (level + 1) for level in self._levels]

    def train(self, mode: bool = True) -> DinoDpt:
        """Set training mode; the ViT stays in evaluation mode."""
        super().train(mode)
        self.vit.eval()
        return self

    @torch.no_grad()
    def _tokens(self, images: Tensor) -> list[Tensor]:
        """Return (B, 2 C, h, w) of each depth, deepest first: patch tokens beside the class token."""
        size = [_num_patches(side) * PATCH_PX for side in images.shape[-2:]]
        if list(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        found = self.vit.forward_intermediates(  # type: ignore[operator]
            images, indices=list(self._blocks), return_prefix_tokens=True, intermediates_only=True
        )
        return [
            torch.cat([patches, prefix[:, 0, :, None, None].expand_as(patches)], 1) for patches, prefix in found[::-1]
        ]


def _num_patches(side_px: int) -> int:
    return max(1, round(side_px / PATCH_PX))


class _Residual(nn.Module):
    """x + relu(conv(relu(conv(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *itertools.chain.from_iterable((nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(2))
        )

    def forward(self, maps: Tensor) -> Tensor:
        changed: Tensor = self.convs(maps)
        return maps + changed
