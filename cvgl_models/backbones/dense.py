"""Encoders that give feature maps for comparison cell by cell, by name.

Shapes: B images, H and W of the image, C channels, h x w cells of a level. Level 0 is the coarsest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from cvgl_data.errors import RecipeError, UnknownNameError
from cvgl_data.registry import did_you_mean
from cvgl_models.backbones.azimuth import pad_in_azimuth
from cvgl_models.backbones.dpt import DPT_NAMES, DinoDpt
from cvgl_models.backbones.unet import SmallUNet, VggUNet

DENSE_NAMES = ("vgg16_unet", "cvgl_small_unet", *DPT_NAMES)


class _Network(Protocol):
    channels: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def cells(self, side_px: int) -> list[int]: ...


class DenseEncoder(nn.Module):
    """Maps of some levels, each divided by the length of the whole map.

    Args:
        name: ``vgg16_unet``, ``cvgl_small_unet``, or ``dinov2_dpt_small``, ``_base``, ``_large``.
        levels: Which levels, coarsest first.
        pretrained: As of the network.
        panorama: Let convolutions run round the seam.
        width: Channels of the network's inner layers; 0: its own default.
        confidence: Also give, for each level, how much each cell is worth.

    Attributes:
        channels: Of each level's map.

    Raises:
        UnknownNameError: If there is no such network.
        RecipeError: If it has no such level.
        CheckpointError: If weights cannot be had or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        levels: Sequence[int],
        *,
        pretrained: bool | str = False,
        panorama: bool = False,
        width: int = 0,
        confidence: bool = False,
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.network = _network(name, pretrained, self.levels, width)
        described = cast(_Network, self.network)
        self.channels = described.channels
        self.confidence = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(channels, 1, 3, padding=1), nn.Sigmoid())
            for channels in (described.channels if confidence else ())
        )
        if panorama:
            pad_in_azimuth(self)
        self.register_buffer("mean", torch.tensor(described.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(described.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return maps (B, C, h, w) and confidences (B, 1, h, w) in (0, 1), None if there are none.

        Args:
            images: (B, 3, H, W) in [0, 1].
        """
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        maps = self.network(images)
        confidences: list[Tensor | None] = [None] * len(maps)
        if len(self.confidence):
            confidences = [head(each).float() for head, each in zip(self.confidence, maps, strict=True)]
        return [_of_unit_length(each.float()) for each in maps], confidences

    def cells(self, side_px: int) -> list[int]:
        """Return the cells of each level along a side of so many pixels."""
        return cast(_Network, self.network).cells(side_px)


def _network(name: str, pretrained: bool | str, levels: Sequence[int], width: int) -> nn.Module:
    if name in DENSE_NAMES and max(levels) >= (count := 4 if name == "vgg16_unet" else 3):
        raise RecipeError(f"encoder '{name}' has levels 0 to {count - 1}, but not {max(levels)}")
    chosen = {"width": width} if width else {}
    if name == "vgg16_unet":
        return VggUNet(pretrained=pretrained, levels=levels)
    if name == "cvgl_small_unet":
        return SmallUNet(pretrained=pretrained, levels=levels, **chosen)
    if name in DPT_NAMES:
        return DinoDpt(name, pretrained=pretrained, levels=levels, **chosen)
    raise UnknownNameError(f"unknown dense encoder '{name}'{did_you_mean(name, DENSE_NAMES)}")


def _of_unit_length(map_BChw: Tensor) -> Tensor:
    length_B111 = map_BChw.square().sum((1, 2, 3), keepdim=True).sqrt()
    return map_BChw / length_B111.clamp(min=1e-6)
