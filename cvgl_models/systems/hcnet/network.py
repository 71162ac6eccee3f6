"""The network of HC-Net: encoders, their correlation, and a small network that moves four corners again and again.

Shapes: B pairs, C channels, h x w cells of the top view's map, H x W cells of the reference's map, I iterations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvgl_models.backbones.pyramids import FeaturePyramid
from cvgl_models.geometry.correlation import correlation_pyramid, correlation_volume, look_up, sample_at
from cvgl_models.geometry.homography import apply_homography, homography_from_corners, square_corners

_MAX_LOG_SCALE = math.log(100.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the iterations say of a batch."""

    matrices_IB33: Tensor
    """Homographies from pixels of the top view to pixels of the reference, after each iteration."""
    corners_IB42: Tensor
    """Where they take the corners of the top view: top left, top right, bottom left, bottom right."""
    spread_B2: Tensor
    """Logarithm of the position's standard deviation in cells, and the logit of trusting it more than the map."""


class Mover(nn.Module):
    """From correlations around each cell's present place to moves of the four corners, in cells of the reference.

    Args:
        inputs: Correlations per cell.
        hidden: Channels.
        size: Cells a side of the top view's map.
    """

    def __init__(self, inputs: int, hidden: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = inputs + 2
        while size > 2:
            layers += [*_normed(last, hidden), nn.MaxPool2d(2)]
            last, size = hidden, size // 2
        self.layers = nn.Sequential(*layers, *_normed(last, hidden))
        self.corners = nn.Conv2d(hidden, 2, 1)
        self.spread = nn.Linear(4 * hidden, 2)
        nn.init.zeros_(self.corners.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.corners.weight.mul_(0.1)
            self.spread.weight.mul_(0.1)

    def forward(self, found_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Return moves (B, 4, 2) of the corners, row by row, and the (B, 2) spread."""
        found_BC22 = self.layers(found_BChw)
        moves_B42 = self.corners(found_BC22).float().flatten(2).transpose(1, 2)
        return moves_B42, self.spread(found_BC22.detach().flatten(1)).float()


class HomographyNetwork(nn.Module):
    """Encoders, correlation and iterations.

    Args:
        query: Encoder of top views.
        reference: Encoder of references.
        stride: Pixels per cell of both.
        size: Cells a side of the top view's map, a power of 2.
        normalize: Correlate directions, not features as they are.
        temperature: Correlations are divided by it to give the camera's scores; learned if they are normalized.
        num_levels: Of the pyramid.
        radius: Of the look-up, in cells.
        hidden: Channels of the iterations.
    """

    def __init__(
        self, query: FeaturePyramid, reference: FeaturePyramid, stride: int, size: int, *,
        normalize: bool, temperature: float, num_levels: int, radius: int, hidden: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.query, self.reference, self.stride, self.size = query, reference, stride, size
        self.normalize, self.num_levels, self.radius = normalize, num_levels, radius
        self.log_scale = nn.Parameter(-torch.tensor(temperature).log(), requires_grad=normalize)
        self.mover = Mover(num_levels * (2 * radius + 1) ** 2, hidden, size)

    def forward(self, query_BChw: Tensor, reference_BCHW: Tensor, start_B42: Tensor, iterations: int) -> Estimate:
        """Estimate homographies.

        The homography is solved at the size of the images, and cell centres are mapped by it: half cells count.

        Args:
            query_BChw: Features of the top view.
            reference_BCHW: Features of the reference.
            start_B42: Where the corners of the top view lie in the reference at first, pixels.
            iterations: I.
        """
        volume_BhwHW = correlation_volume(query_BChw, reference_BCHW, normalize=self.normalize)
        pyramid = correlation_pyramid(volume_BhwHW, self.num_levels)
        batch, side = len(query_BChw), self.size * self.stride
        own_1N2 = _centers(query_BChw) * self.stride
        box_B42, corners_B42 = square_corners(side, start_B42).expand(batch, 4, 2), start_B42
        matrix_B33 = homography_from_corners(box_B42, corners_B42)
        spread_B2 = start_B42.new_zeros(batch, 2)
        matrices, corners = [], []
        for _ in range(iterations):
            mapped_BN2 = apply_homography(matrix_B33.detach(), own_1N2.expand(batch, -1, 2)) / self.stride
            place_Bhw2 = mapped_BN2.view(batch, *query_BChw.shape[2:], 2)
            moved_BN2 = (mapped_BN2 - own_1N2 / self.stride) / self.size
            moved_B2hw = moved_BN2.transpose(1, 2).reshape(batch, 2, *query_BChw.shape[2:])
            moves_B42, spread_B2 = self.mover(torch.cat([look_up(pyramid, place_Bhw2, self.radius), moved_B2hw], 1))
            corners_B42 = corners_B42 + moves_B42 * self.stride
            matrix_B33 = homography_from_corners(box_B42, corners_B42)
            matrices.append(matrix_B33)
            corners.append(corners_B42)
        return Estimate(torch.stack(matrices), torch.stack(corners), spread_B2)

    def camera_scores(self, query_BChw: Tensor, reference_BCHW: Tensor, camera_B2: Tensor) -> Tensor:
        """Return the (B, H, W) scores of each cell of the reference to be the camera's, by appearance.

        Args:
            query_BChw: Features of the top view.
            reference_BCHW: Features of the reference.
            camera_B2: Place of the camera in the top view, pixels.
        """
        camera_BC = sample_at(query_BChw.float(), camera_B2 / self.stride)
        camera_BHW = correlation_volume(camera_BC[:, :, None, None], reference_BCHW, normalize=self.normalize)[:, 0, 0]
        return camera_BHW * self.log_scale.clamp(max=_MAX_LOG_SCALE).exp()


def _centers(map_BChw: Tensor) -> Tensor:
    """Return the (1, h * w, 2) centres of cells, row by row."""
    v, u = (torch.arange(size, device=map_BChw.device) + 0.5 for size in map_BChw.shape[2:])
    return torch.stack(torch.meshgrid(u, v, indexing="xy"), -1).reshape(1, -1, 2)


def _normed(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(16, outputs), nn.ReLU(inplace=True)]
