"""Backbones that give a map at every halving of the image: any timm network with a list of such maps, and our own.

Shapes: B images, H and W of the image, C channels that differ from map to map.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from cvgl_data.errors import RecipeError
from cvgl_models.backbones import create_backbone
from cvgl_models.backbones.azimuth import pad_in_azimuth

SMALL = "cvgl_small_pyramid"


class FeaturePyramid(nn.Module):
    """Maps at strides 2, 4, 8, ... of an image in [0, 1].

    Args:
        name: A timm network whose maps come at these strides (EfficientNet, MobileNet, ResNet), or
            ``cvgl_small_pyramid``.
        coarsest: Last stride; what the network has beyond it is taken out.
        pretrained: As of `create_backbone`.
        azimuth: Let every convolution run round the seam of a panorama.
        image_size: Height and width, for networks that must know.

    Attributes:
        channels: Channels by stride.

    Raises:
        RecipeError: If the network has no map at one of the strides, or cannot run round the seam.
        UnknownNameError: If there is no such network.
        CheckpointError: If weights cannot be had or do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        coarsest: int,
        *,
        pretrained: bool | str = False,
        azimuth: bool = False,
        image_size: tuple[int, int] = (384, 384),
    ) -> None:
        super().__init__()
        wanted = [2**power for power in range(1, coarsest.bit_length())]
        if name == SMALL:
            self.network: nn.Module = SmallPyramid(len(wanted))
            channels, self._indices = list(SmallPyramid.CHANNELS[: len(wanted)]), list(range(len(wanted)))
        else:
            self.network = create_backbone(name, pretrained=pretrained, image_size=image_size)
            channels, self._indices = _taken(self.network, wanted, name)
        if name == SMALL and pretrained:
            raise RecipeError(f"backbone '{SMALL}' has no published weights; set encoder.pretrained to false")
        self.channels = dict(zip(wanted, channels, strict=True))
        if azimuth:
            try:
                pad_in_azimuth(self.network)
            except ValueError as error:
                raise RecipeError(f"backbone '{name}': {error}") from error
        mean, std = cast(tuple[float, ...], self.network.mean), cast(tuple[float, ...], self.network.std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Return the maps (B, C, H / stride, W / stride) by stride; images are (B, 3, H, W) in [0, 1]."""
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        maps = self.network.forward_intermediates(images, indices=self._indices, intermediates_only=True)  # type: ignore[operator]
        return dict(zip(self.channels, maps, strict=True))


class SmallPyramid(nn.Module):
    """Two convolutions at each stride, small enough to be trained on a laptop's processor in minutes.

    Args:
        num_strides: How often the image is halved.
    """

    CHANNELS = (16, 32, 48, 64, 96)
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, num_strides: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        last = 3
        for channels in self.CHANNELS[:num_strides]:
            self.stages.append(nn.Sequential(*_conv(last, channels, 2), *_conv(channels, channels, 1)))
            last = channels

    def forward_intermediates(self, images: Tensor, indices: list[int], intermediates_only: bool) -> list[Tensor]:
        """Return the maps with these numbers; the name and the arguments are those of timm's networks."""
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return [maps[index] for index in indices]


def _conv(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _taken(network: nn.Module, wanted: list[int], name: str) -> tuple[list[int], list[int]]:
    """Return channels and numbers of the maps at the strides that are wanted, and take out what follows the last."""
    info = getattr(network, "feature_info", None)
    if not hasattr(network, "forward_intermediates") or not isinstance(info, list):
        raise RecipeError(f"backbone '{name}' gives no maps of its stages; take one of timm's convolutional networks")
    numbers = {int(item["reduction"]): number for number, item in enumerate(info)}
    missing = [stride for stride in wanted if stride not in numbers]
    if missing:
        raise RecipeError(
            f"backbone '{name}' has maps at strides {sorted(numbers)}, but {missing} are needed; "
            "EfficientNet, MobileNet and ResNet have them all"
        )
    indices = [numbers[stride] for stride in wanted]
    network.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)  # type: ignore[operator]
    return [int(info[index]["num_chs"]) for index in indices], indices
