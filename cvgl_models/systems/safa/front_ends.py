"""What is done to a reference before it is encoded: nothing, the polar transform, or what a network finds best.

Shapes: B references, S their side, H and W of the result, K control points.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cvgl_data.errors import RecipeError
from cvgl_models.geometry.affine import affine_grid, compose_affine
from cvgl_models.geometry.polar import polar_grid, polar_transform
from cvgl_models.geometry.resampling import resample
from cvgl_models.geometry.tps import ThinPlateSpline, control_points
from cvgl_models.systems.safa.options import SafaOptions

_SMALLEST_PX = 54
"""Below this, nothing is left of an image after the four convolutions of the localization network."""


class Transformed(NamedTuple):
    """The result of a front end."""

    image: Tensor
    """(B, 3, H, W)."""
    grid_BHW2: Tensor | None = None
    """Where in the reference each pixel looks, -1 and 1 its edges; None: the image is the reference."""
    place_BK2: Tensor | None = None
    """Where the control points of a spline look."""
    recolored: bool = False
    """Whether the image is more than the reference sampled there."""


class Unchanged(nn.Module):
    """``none``."""

    def forward(self, reference: Tensor) -> Transformed:
        """Return the reference."""
        return Transformed(reference)


class Polar(nn.Module):
    """``polar``."""

    def __init__(self, size_px: tuple[int, int], center: str) -> None:
        super().__init__()
        self.size_px, self.center = size_px, center

    def forward(self, reference: Tensor) -> Transformed:
        """Return the polar transform."""
        grid_HW2 = polar_grid(reference.shape[-1], self.size_px, self.center, False, str(reference.device))
        image = polar_transform(reference, self.size_px, center=self.center)
        return Transformed(image, grid_HW2.expand(len(reference), -1, -1, -1))


class Localizer(nn.Module):
    """The network that looks at an image and gives the numbers of its transformation.

    At first it gives the same numbers for every image, ``start``: its last layer has no weights but a bias.

    Args:
        channels: Of the image.
        size_px: Its height and width.
        hidden: Width of the layer before the last.
        start: Any shape; that of the result, less the batch.

    Raises:
        RecipeError: If the image is too small.
    """

    def __init__(self, channels: int, size_px: tuple[int, int], hidden: int, start: Tensor) -> None:
        super().__init__()
        if min(size_px) < _SMALLEST_PX:
            raise RecipeError(
                f"a spatial transformer needs images of at least {_SMALLEST_PX} pixels, these are "
                f"{size_px[0]}x{size_px[1]}; enlarge views.reference_px, or views.query_height_px for 'stn-composed'"
            )
        layers: list[nn.Module] = []
        for out_channels, kernel in ((8, 7), (10, 5), (10, 3), (10, 3)):
            layers += [nn.Conv2d(channels, out_channels, kernel), nn.MaxPool2d(2), nn.BatchNorm2d(out_channels)]
            layers.append(nn.ReLU(inplace=True))
            channels = out_channels
        self.look = nn.Sequential(*layers)
        cells = math.prod(_cells(side) for side in size_px)
        self.decide = nn.Sequential(
            nn.Linear(channels * cells, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, start.numel())
        )
        last = self.decide[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(start.flatten())
        self.shape = start.shape

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, *shape) float32."""
        seen = self.look(image).flatten(1).float()
        with torch.autocast(seen.device.type, enabled=False):  # half precision is too coarse for places
            numbers: Tensor = self.decide(seen)
        return numbers.reshape(-1, *self.shape)


class AffineTransformer(nn.Module):
    """``stn-affine``.

    Args:
        channels: Of the image.
        image_px: Height and width of the image.
        size_px: H and W.
    """

    def __init__(self, channels: int, image_px: tuple[int, int], size_px: tuple[int, int]) -> None:
        super().__init__()
        self.size_px = size_px
        self.localizer = Localizer(channels, image_px, 64, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))

    def forward(self, image: Tensor) -> Transformed:
        """Return the image moved by the affine map found for it; the identity resizes."""
        return self.moved(image)[0]

    def moved(self, image: Tensor) -> tuple[Transformed, Tensor]:
        """Return the same, and the map (B, 2, 3)."""
        theta_B23 = self.localizer(_centered(image))
        grid_BHW2 = affine_grid(theta_B23, self.size_px)
        return Transformed(resample(image, grid_BHW2), grid_BHW2), theta_B23


class ComposedTransformer(nn.Module):
    """``stn-composed``: three affine maps in turn, with layers between them that see more than colors.

    Args:
        image_px: Height and width of the reference.
        size_px: H and W.
    """

    def __init__(self, image_px: tuple[int, int], size_px: tuple[int, int]) -> None:
        super().__init__()
        self.size_px = size_px
        self.transformers = nn.ModuleList(
            [
                AffineTransformer(3, image_px, size_px),
                AffineTransformer(8, size_px, size_px),
                AffineTransformer(3, size_px, size_px),
            ]
        )
        self.blocks = nn.ModuleList([ResidualBlock(3, 8), ResidualBlock(8, 3)])

    def forward(self, reference: Tensor) -> Transformed:
        """Return the recolored image, and where it looks by all three maps together."""
        image, maps = reference, []
        for index, transformer in enumerate(self.transformers):
            assert isinstance(transformer, AffineTransformer)
            transformed, theta_B23 = transformer.moved(image)
            image = transformed.image
            maps.append(theta_B23)
            if index < len(self.blocks):
                image = self.blocks[index](image)
        return Transformed(image, affine_grid(compose_affine(*maps), self.size_px), recolored=True)


class SplineTransformer(nn.Module):
    """``stn-tps``.

    Args:
        options: Those that begin with ``tps_``.
        image_px: Height and width of the reference.
        size_px: H and W.
    """

    def __init__(self, options: SafaOptions, image_px: tuple[int, int], size_px: tuple[int, int]) -> None:
        super().__init__()
        control_K2 = control_points(options.tps_rows, options.tps_columns, options.tps_extent)
        self.spline = ThinPlateSpline(control_K2)
        self.size_px, self.bounded = size_px, options.tps_bounded
        start_K2 = polar_places(control_K2) if options.tps_start == "polar" else control_K2
        self.localizer = Localizer(3, image_px, 512, start_K2.atanh() if self.bounded else start_K2)

    def forward(self, reference: Tensor) -> Transformed:
        """Return the reference bent by the spline found for it."""
        place_BK2 = self.localizer(_centered(reference))
        place_BK2 = place_BK2.tanh() if self.bounded else place_BK2
        grid_BHW2 = self.spline.grid(place_BK2, self.size_px)
        return Transformed(resample(reference, grid_BHW2), grid_BHW2, place_BK2)


class ResidualBlock(nn.Module):
    """Two convolutions, added to their input, whose channels are cut or filled up with zeros."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        self.end = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    def forward(self, image: Tensor) -> Tensor:
        """Return (B, out_channels, H, W)."""
        kept = image[:, : self.out_channels]
        missing = self.out_channels - kept.shape[1]
        result: Tensor = self.end(self.layers(image) + nn.functional.pad(kept, (0, 0, 0, 0, 0, missing)))
        return result


def create_front_end(options: SafaOptions, side_px: int, size_px: tuple[int, int]) -> nn.Module:
    """Build the front end of some options.

    Args:
        options: ``front_end`` and what belongs to it.
        side_px: S.
        size_px: H and W.

    Raises:
        RecipeError: If images are too small for it.
    """
    image_px = (side_px, side_px)
    if options.front_end == "none":
        return Unchanged()
    if options.front_end == "polar":
        return Polar(size_px, options.polar_center)
    if options.front_end == "stn-affine":
        return AffineTransformer(3, image_px, size_px)
    if options.front_end == "stn-composed":
        return ComposedTransformer(image_px, size_px)
    return SplineTransformer(options, image_px, size_px)


def polar_places(point_N2: Tensor) -> Tensor:
    """Return where the polar transform takes points of its output, both -1 to 1, (N, 2)."""
    azimuth, radius = math.pi * point_N2[:, 0], (1 - point_N2[:, 1]) / 2
    return torch.stack([radius * azimuth.sin(), -radius * azimuth.cos()], 1)


def _cells(side: int) -> int:
    """Return how many cells of a row or column are left after the localizer's convolutions."""
    for lost in (6, 4, 2, 2):
        side = (side - lost) // 2
    return side


def _centered(image: Tensor) -> Tensor:
    """Return colors in [0, 1] as numbers about 0, which a network with one learning rate sees better."""
    return (image - 0.5) / 0.25
