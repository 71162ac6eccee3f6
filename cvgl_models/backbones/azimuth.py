"""Convolutions that run round the seam of a panorama."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AzimuthConv2d(nn.Conv2d):
    """A convolution that is padded with zeros above and below, and with the other edge left and right."""

    def forward(self, images: Tensor) -> Tensor:
        """Return what `nn.Conv2d` returns, but for the columns at the seam."""
        rows, columns = int(self.padding[0]), int(self.padding[1])
        images = F.pad(images, (columns, columns, 0, 0), mode="circular")
        return F.conv2d(images, self.weight, self.bias, self.stride, (rows, 0), self.dilation, self.groups)


class AzimuthMaxPool2d(nn.MaxPool2d):
    """A maximum over windows that run round the seam."""

    def forward(self, images: Tensor) -> Tensor:
        """Return what `nn.MaxPool2d` returns, but for the columns at the seam."""
        padding = self.padding if isinstance(self.padding, tuple) else (self.padding, self.padding)
        images = F.pad(images, (padding[1], padding[1], 0, 0), mode="circular")
        return F.max_pool2d(images, self.kernel_size, self.stride, (padding[0], 0), self.dilation, self.ceil_mode)


def pad_in_azimuth(model: nn.Module) -> nn.Module:
    """Let every padded convolution and maximum of a network run round the seam; weights and their names stay.

    A panorama rolled by the network's stride then gives exactly the rolled map. The network is changed in place.

    Raises:
        ValueError: If a convolution pads by itself in a way that cannot be replaced (TensorFlow's "same").
    """
    for name, child in model.named_children():
        if type(child) is nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
            if child.padding[1]:
                setattr(model, name, _like(child))
        elif type(child) is nn.MaxPool2d:
            pool = AzimuthMaxPool2d(child.kernel_size, child.stride, child.padding, child.dilation)
            pool.ceil_mode = child.ceil_mode
            setattr(model, name, pool)
        elif isinstance(child, nn.Conv2d):
            raise ValueError(
                f"{type(child).__name__} '{name}' pads by itself and cannot run round the seam of a panorama; "
                "take a backbone without 'tf_' in its name"
            )
        else:
            pad_in_azimuth(child)
    return model


def _like(conv: nn.Conv2d) -> AzimuthConv2d:
    with torch.device("meta"):
        new = AzimuthConv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, conv.bias is not None,
        )  # fmt: skip
    new.weight, new.bias = conv.weight, conv.bias
    return new
