"""CCVPE (Xia et al. 2023): one panorama descriptor matched with every place and bearing, from coarse to fine.

Differences from the published code, which are corrections: the ring of bearings closes at every level for every
geometry, so that no two bins see the same window; columns are weighted, so that a masked query or a pinhole picture is
compared with what it covers; a pinhole picture's columns are spread by azimuth about its optical axis; bins keep to the
heading prior in training as in evaluation; places are decoded between cells; targets stand at the true place and not at
the next whole pixel.

Shapes: B pairs, H and W of the heat map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvgl_data.errors import RecipeError
from cvgl_models.backbones.pyramids import FeaturePyramid
from cvgl_models.geometry.correlation import sample_at
from cvgl_models.localization.pose import PosePrediction, uv_from_xy_m
from cvgl_models.recipe import ModelRecipe, system_options
from cvgl_models.recipe.checks import STRICT, one_of
from cvgl_models.systems import OF_SEMI_POSITIVES, LocalizationModule, LossTerms
from cvgl_models.systems.ccvpe.matching import Ring, peak_heading_deg
from cvgl_models.systems.ccvpe.network import Matches, PoseNetwork
from cvgl_models.systems.ccvpe.targets import direction_loss, gaussian_at, level_labels, matching_loss, position_loss
from cvgl_models.systems.heading_priors import heading_prior, within_prior
from cvgl_models.transforms import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class CCVPEOptions:
    """``[options]`` of a recipe."""

    __pydantic_config__ = STRICT
    num_bins: int = 20
    """Bearings that are tried."""
    columns_per_bin: int = 1
    """Columns of azimuth for each; all columns that are seen together are those of the query's last map."""
    query_fov_deg: float = 360.0
    """What a query sees; below 360 nothing runs round the seam."""
    query_stride: int = 32
    """Pixels of the query per column of its last map."""
    coarsest_stride: int = 64
    """Pixels of the reference per cell of the coarsest level; every further level halves it, the heat map once more."""
    channels: tuple[int, ...] = (64, 32, 16, 8, 4, 2)
    """Channels of a column at each level."""
    head_channels: int = 1280
    """Of both encoders' last layer."""
    direction_channels: tuple[int, ...] = (640, 256, 128, 64, 32, 16)
    """Of the heading's decoder, after each doubling."""
    sigma_px: float = 4.0
    """Of the Gaussian about the true place, in pixels of the reference's view."""
    temperature: float = 0.1
    """Of the matching loss."""
    heading: str = "direction"
    """What the heading is read from at the place that was found: the ``direction`` the decoder gives, as published, or
    the ``bins`` of all levels together, which are learned much sooner."""
    matching_weight: float = 1.0
    position_weight: float = 1e-4
    direction_weight: float = 0.1
    """The published weights are 1e4, 1 and 10, the last one of a sum that is about 100 times the mean used here."""

    def __post_init__(self) -> None:
        levels = len(self.channels)
        one_of("heading", self.heading, "direction", "bins")
        for key, stride in (("query_stride", self.query_stride), ("coarsest_stride", self.coarsest_stride)):
            if stride < 2 or stride & (stride - 1):
                raise RecipeError(f"recipe key '{key}' must be a power of 2, not {stride}")
        if not levels or self.coarsest_stride < 2**levels:
            raise RecipeError(
                f"recipe key 'channels' has {levels} levels, but {self.coarsest_stride} pixels can be halved "
                f"{self.coarsest_stride.bit_length() - 1} times"
            )
        if len(self.direction_channels) != levels:
            raise RecipeError(f"recipe key 'direction_channels' must have {levels} numbers, as 'channels' has")
        try:
            self.ring()
        except ValueError as error:
            raise RecipeError(f"recipe key 'query_fov_deg': {error}") from error

    def ring(self) -> Ring:
        """Return bins and columns."""
        return Ring(self.num_bins, self.columns_per_bin, self.query_fov_deg)

    @property
    def output_stride(self) -> int:
        """Pixels of the reference per cell of the heat map."""
        return self.coarsest_stride >> len(self.channels)


class CCVPE(LocalizationModule):
    """The system as a module.

    Args:
        recipe: ``encoder.backbone`` and ``.pretrained``, ``views`` and ``options`` are read. Each view has its own
            encoder.

    Raises:
        RecipeError: If views, strides and bins do not fit together.
    """

    unread = (*LocalizationModule.unread, *OF_SEMI_POSITIVES)

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.options = options = system_options(CCVPEOptions, recipe)
        ring, views, encoder = options.ring(), recipe.views, recipe.encoder
        if views.query == "bev":
            raise RecipeError("recipe key 'views.query' is 'bev', but 'ccvpe' matches images as they are")
        if encoder.shared:
            raise RecipeError("system 'ccvpe' has an encoder for each view; set encoder.shared to false")
        height, width = views.query_size_px
        if width % options.query_stride or width // options.query_stride != ring.num_seen:
            raise RecipeError(
                f"a query {width} px wide has {width / options.query_stride:g} columns of {options.query_stride} px, "
                f"but {ring.num_columns} columns all round and {ring.fov_deg:g} degrees make {ring.num_seen}; "
                "change views.query_width_px, options.num_bins or options.columns_per_bin"
            )
        if height % options.query_stride or views.reference_px % options.coarsest_stride:
            raise RecipeError(
                f"views.query_height_px must be a multiple of {options.query_stride} and views.reference_px one of "
                f"{options.coarsest_stride}, not {height} and {views.reference_px}"
            )
        self.ring = ring
        is_round = ring.fov_deg == 360
        query = FeaturePyramid(
            encoder.backbone, options.query_stride,
            pretrained=encoder.pretrained, azimuth=is_round, image_size=views.query_size_px,
        )  # fmt: skip
        side = views.reference_px
        reference = FeaturePyramid(
            encoder.backbone, options.coarsest_stride // 2, pretrained=encoder.pretrained, image_size=(side, side)
        )
        rows = height // options.query_stride
        self.network = PoseNetwork(
            query, reference, rows, ring, options.channels, options.head_channels, options.direction_channels
        )
        self.to(memory_format=torch.channels_last)

    def training_step(self, batch: Batch) -> LossTerms:
        """Return the terms ``matching``, ``position`` and ``direction``."""
        options = self.options
        found = self._match(batch, heading_prior(batch), None)
        size = (found.logits_BHW.shape[1], found.logits_BHW.shape[2])
        place_B2, sigma = batch.uv / options.output_stride, options.sigma_px / options.output_stride
        truth_BHW = gaussian_at(place_B2, size, sigma)
        shares_BN = self.ring.shares(batch.heading_deg.float())
        matching = [
            matching_loss(volume, level_labels(truth_BHW, shares_BN, 2 ** (len(found.volumes) - level)),
                          options.temperature)
            for level, volume in enumerate(found.volumes)
        ]  # fmt: skip
        return {
            "matching": options.matching_weight * torch.stack(matching).mean(),
            "position": options.position_weight * position_loss(found.logits_BHW, place_B2, sigma),
            "direction": options.direction_weight * direction_loss(found.direction_B2HW, batch.heading_deg, truth_BHW),
        }

    def score_map(self, batch: Batch, query_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the heat map's logits (B, H, W), differentiable, and the metres per cell (B,).

        Args:
            batch: Labels are not read.
            query_mask: (B, 1, h, w) of any size, 0 to 1: what of the queries' descriptors counts.
        """
        found = self._match(batch, heading_prior(batch), query_mask)
        return found.logits_BHW, batch.gsd_m.float() * self.options.output_stride

    @torch.no_grad()
    def localize(self, batch: Batch) -> PosePrediction:
        """Return the heat map and its peak; the heading is read at the peak, and kept within the prior."""
        prior_B2 = heading_prior(batch)
        found = self._match(batch, prior_B2, None)
        cell_m_B = batch.gsd_m.float() * self.options.output_stride
        pose = PosePrediction.of_scores(found.logits_BHW, cell_m_B)
        place_B2 = uv_from_xy_m(pose.xy_m_B2, cell_m_B, found.logits_BHW.shape[-1])
        yaw_deg_B = within_prior(self._heading_at(place_B2, found, prior_B2), prior_B2)
        match_B = found.volumes[0].masked_fill(~self.ring.allowed(prior_B2)[:, :, None, None], -1.0).amax((1, 2, 3))
        return PosePrediction.of_scores(found.logits_BHW, cell_m_B, yaw_deg_B=yaw_deg_B, match_B=match_B)

    def _heading_at(self, place_B2: Tensor, found: Matches, prior_B2: Tensor) -> Tensor:
        """Return the (B,) headings at places in cells of the heat map."""
        if self.options.heading == "direction":
            cos_B, sin_B = sample_at(found.direction_B2HW, place_B2).unbind(1)
            return torch.atan2(sin_B, cos_B).rad2deg()
        size = found.logits_BHW.shape[-1]
        levels = [sample_at(volume, place_B2 * (volume.shape[-1] / size)) for volume in found.volumes]
        scores_BN = torch.stack(levels).sum(0).masked_fill(~self.ring.allowed(prior_B2), -torch.inf)
        return peak_heading_deg(scores_BN, self.ring)

    def _match(self, batch: Batch, prior_deg_B2: Tensor, query_mask: Tensor | None) -> Matches:
        matches: Matches = self.network(
            batch.query,
            batch.reference,
            allowed_BN=self.ring.allowed(prior_deg_B2),
            camera_B33=batch.camera_B33,
            mask_B1hw=query_mask,
        )
        return matches
