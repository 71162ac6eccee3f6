"""Our own small network."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallCnn(nn.Module):
    """Six convolutions and an average, small enough to be trained on a laptop's processor in minutes.

    Args:
        width: Channels of the first layer.
        num_features: Length of the result.
    """

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(self, width: int = 16, num_features: int = 256) -> None:
        super().__init__()
        self.num_features = num_features
        layers: list[nn.Module] = []
        last = 3
        for channels, stride in [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1)]:
            layers += [
                nn.Conv2d(last, channels * width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(channels * width),
                nn.ReLU(inplace=True),
            ]
            last = channels * width
        self.layers = nn.Sequential(*layers)
        self.map_channels = last
        self.head = nn.Linear(2 * last, num_features)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, D): mean and maximum over the last map, projected."""
        return self.forward_head(self.forward_features(images))

    def forward_head(self, last_map: Tensor) -> Tensor:
        """Return (B, D) from the last map."""
        pooled = torch.cat([last_map.mean((2, 3)), last_map.amax((2, 3))], 1)
        features: Tensor = self.head(pooled)
        return features

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last map, (B, 8 * width, H / 8, W / 8)."""
        last_map: Tensor = self.layers(images)
        return last_map
