"""Dense encoders with a decoder that joins what is coarse with what is fine.

Shapes: B images, H and W of the image, C channels that differ from level to level. Level 0 is the coarsest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_data.errors import CheckpointError
from cvgl_models.backbones.timm_models import timm_model
from cvgl_models.backbones.weights import load_published, read_weights

_VGG16_USED = 15  # layers, as far as the last convolution of the third block


class VggUNet(nn.Module):
    """The first seven convolutions of VGG16 and three decoder stages: maps at 1/8, 1/4, 1/2 and 1/1.

    Args:
        pretrained: True for the published ImageNet weights, or a file with those of a VGG16.
        levels: Which ones of levels 0 to 3, coarsest first; what only finer ones need is not built.

    Attributes:
        channels: Of each of these levels.

    Raises:
        CheckpointError: If weights cannot be had or do not fit.

    Source:
        G2SWeakly (ECCV 2024); inputs are normalized as VGG16's were, here.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, *, pretrained: bool | str = False, levels: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        layers = _vgg16_layers(pretrained)
        self.block1, self.block2, self.block3 = layers[:3], layers[5:8], layers[10:15]
        stages = [(256 + 128, 128, 64), (64 + 64, 64, 16), (16 + 64, 64, 4)][: max(levels)]
        self.decoder = nn.ModuleList(_vgg_stage(*stage) for stage in stages)
        self._levels = tuple(levels)
        self.channels = tuple((256, 64, 16, 4)[level] for level in levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps (B, C, H / stride, W / stride), coarsest first, of normalized images."""
        whole = self.block1(images)
        half = F.max_pool2d(whole, 2)
        quarter = F.max_pool2d(self.block2(half.relu()), 2)
        maps = [F.max_pool2d(self.block3(quarter.relu()), 2)]
        for stage, skipped in zip(self.decoder, (quarter, half, whole), strict=False):
            maps.append(stage(torch.cat([_upsampled(maps[-1], skipped), skipped], 1)))
        return [maps[level] for level in self._levels]

    def cells(self, side_px: int) -> list[int]:
        """Return the cells of each level along a side of so many pixels."""
        return [side_px // (8, 4, 2, 1)[level] for level in self._levels]


class SmallUNet(nn.Module):
    """Two convolutions at strides 1, 2 and 4 and a decoder, small enough for a laptop's processor.

    Args:
        pretrained: Must be False; there are no weights.
        levels: Which ones of levels 0 to 2, maps at 1/4, 1/2 and 1/1; what only finer ones need is not built.
        width: Channels of the first layers.
        features: Channels of each map.

    Attributes:
        channels: Of each of these levels.
    """

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(
        self, *, pretrained: bool | str = False, levels: Sequence[int] = (0, 1, 2), width: int = 16, features: int = 16
    ) -> None:
        super().__init__()
        if pretrained:
            raise CheckpointError("encoder 'cvgl_small_unet' has no published weights; set encoder.pretrained to false")
        self.down = nn.ModuleList(
            [
                nn.Sequential(*_conv(3, width), *_conv(width, width)),
                nn.Sequential(*_conv(width, 2 * width, 2), *_conv(2 * width, 2 * width)),
                nn.Sequential(*_conv(2 * width, 2 * width, 2), *_conv(2 * width, 2 * width)),
            ]
        )
        up = [(4 * width, 2 * width), (3 * width, width)][: max(levels)]
        self.up = nn.ModuleList(nn.Sequential(*_conv(*sides)) for sides in up)
        lasts = (2 * width, 2 * width, width)
        self.out = nn.ModuleList(nn.Conv2d(lasts[level], features, 1) for level in levels)
        self._levels = tuple(levels)
        self.channels = (features,) * len(self._levels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps (B, C, H / stride, W / stride), coarsest first, of normalized images."""
        skipped = []
        for stage in self.down:
            images = stage(images)
            skipped.append(images)
        maps = [skipped.pop()]
        for stage in self.up:
            finer = skipped.pop()
            maps.append(stage(torch.cat([_upsampled(maps[-1], finer), finer], 1)))
        return [out(maps[level]) for out, level in zip(self.out, self._levels, strict=True)]

    def cells(self, side_px: int) -> list[int]:
        """Return the cells of each level along a side of so many pixels."""
        return [-(-side_px // (4, 2, 1)[level]) for level in self._levels]


def _vgg16_layers(pretrained: bool | str) -> nn.Sequential:
    """Return the layers in use; the classifier, nine tenths of all weights, is let go."""
    if pretrained is False:
        with torch.device("meta"):
            model, _ = timm_model("vgg16", False, (224, 224))
        layers = _features(model).to_empty(device="cpu")
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    else:
        model, optional = timm_model("vgg16.tv_in1k", pretrained is True, (224, 224))
        if isinstance(pretrained, str):
            load_published(model, read_weights(Path(pretrained)), pretrained, optional)
        layers = _features(model)
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # what precedes it is read too
    return layers


def _features(vgg16: nn.Module) -> nn.Sequential:
    return cast(nn.Sequential, vgg16.features)[:_VGG16_USED]


def _vgg_stage(inputs: int, between: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inputs, between, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(between, outputs, 3, padding=1, bias=False),
    )


def _conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _upsampled(coarse: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(coarse, size=like.shape[-2:], mode="nearest")
