"""HC-Net (Wang et al. 2023): the ground around the camera laid over the reference by a homography, found step by step.

Differences from the published code, which are corrections: the homography is solved at the size of the images, and
cell centres are mapped by it; the top view starts at its true scale, which is known, in the middle of the reference
and at the heading that is expected; the heading's error is taken the short way round; the appearance loss reads the
map where the camera is, not half a cell beside it. The distribution of the place, which the published model does not
give, is a mixture of a Gaussian about the place it finds and of the appearance map, fitted by likelihood.

Shapes: B pairs, I iterations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvgl_data.errors import RecipeError
from cvgl_models.backbones.pyramids import FeaturePyramid
from cvgl_models.geometry.homography import apply_homography, heading_of
from cvgl_models.localization.decode import decode_mean, radius95
from cvgl_models.localization.pose import PosePrediction, center_index, wrap_deg, xy_m_from_uv
from cvgl_models.recipe import ModelRecipe, system_options
from cvgl_models.recipe.checks import STRICT, one_of
from cvgl_models.systems import OF_SEMI_POSITIVES, LocalizationModule, LossTerms
from cvgl_models.systems.hcnet import losses
from cvgl_models.systems.hcnet.network import Estimate, HomographyNetwork
from cvgl_models.systems.hcnet.views import TopView, panorama_top_view, pinhole_top_view
from cvgl_models.systems.heading_priors import heading_prior, within_prior
from cvgl_models.transforms import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class HCNetOptions:
    """``[options]`` of a recipe."""

    __pydantic_config__ = STRICT
    top_view_px: int = 512
    """Side of the top view; a power of 2 times the stride."""
    top_view_fov_deg: float = 170.0
    """Opening angle of the camera that looks down, for panoramas."""
    top_view_m: float = 40.0
    """Side of the square in front of the camera, for pinhole pictures."""
    stride: int = 32
    """Pixels per cell of the maps; 32 or 16 as published."""
    known_scale: bool = True
    """Start at the true scale; ``false``: with pixel on pixel, as published."""
    start: str = "center"
    """Where the camera is laid at first: in the ``center`` of the reference, as published, or where the ``appearance``
    map has its peak; the iterations then have less far to go."""
    headings: int = 1
    """Headings all round that the panorama is laid out at; the one whose camera is found best goes on. The iterations
    alone cannot turn by much more than 45 degrees: 8 for headings that are unknown. Not published."""
    normalize: bool = False
    """Correlate directions and learn the temperature; ``false``: what is positive of products, as published."""
    temperature: float = 4.0
    """Of the appearance loss (at first, if it is learned)."""
    num_levels: int = 2
    radius: int = 4
    hidden: int = 128
    iterations: int = 6
    gamma: float = 0.85
    """Each iteration's loss counts so much of the next one's."""
    squared: bool = True
    """Squared errors of the place, as published; ``false``: absolute ones."""
    position_weight: float = 0.1
    """Of the place's error in 512ths of the reference's side."""
    heading_weight: float = 1.0
    """Of the heading's error in degrees: 0.1 times 10 as published."""
    corner_weight: float = 0.0
    """Of the corners' absolute error in 512ths of the reference's side; not published."""
    appearance_weight: float = 1.0
    spread_weight: float = 0.1
    """Of the distribution of the place, which has no influence on anything else."""
    finer: int = 4
    """Cells of the score map for each cell of the appearance map and side."""

    def __post_init__(self) -> None:
        size = self.top_view_px // self.stride if self.stride > 0 else 0
        if self.stride < 2 or self.stride & (self.stride - 1) or size < 2 or size & (size - 1):
            raise RecipeError(
                f"recipe key 'top_view_px' is {self.top_view_px} and 'stride' {self.stride}; both must be powers of 2, "
                "with at least 2 cells a side"
            )
        if self.headings < 1:
            raise RecipeError(f"recipe key 'headings' must be at least 1, not {self.headings}")
        one_of("start", self.start, "center", "appearance")
        if self.iterations < 1 or self.hidden % 16:
            raise RecipeError("recipe keys 'iterations' must be at least 1 and 'hidden' a multiple of 16")


class HCNet(LocalizationModule):
    """The system as a module.

    Args:
        recipe: ``encoder.backbone``, ``.pretrained`` and ``.shared``, ``views`` and ``options`` are read. The top view
            is made from the panorama here, not by the loader.

    Raises:
        RecipeError: If views and strides do not fit together.
    """

    unread = (*LocalizationModule.unread, *OF_SEMI_POSITIVES)

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.options = options = system_options(HCNetOptions, recipe)
        views, encoder = recipe.views, recipe.encoder
        if views.query == "bev":
            raise RecipeError("recipe key 'views.query' is 'bev', but 'hcnet' makes the top view from the image itself")
        if views.query == "pinhole" and options.headings > 1:
            raise RecipeError("recipe key 'options.headings' must be 1 for pinhole pictures, which cannot be rolled")
        coarsest = options.stride * 2 ** (options.num_levels - 1)
        if views.reference_px % coarsest:
            raise RecipeError(f"views.reference_px must be a multiple of {coarsest}, not {views.reference_px}")
        self.camera_height_m = views.camera_height_m

        def create(side: int) -> FeaturePyramid:
            size = (side, side)
            return FeaturePyramid(encoder.backbone, options.stride, pretrained=encoder.pretrained, image_size=size)

        reference = create(views.reference_px)
        query = reference if encoder.shared else create(options.top_view_px)
        self.network = HomographyNetwork(
            query, reference, options.stride, options.top_view_px // options.stride,
            normalize=options.normalize, temperature=options.temperature, num_levels=options.num_levels,
            radius=options.radius, hidden=options.hidden,
        )  # fmt: skip
        self.to(memory_format=torch.channels_last)

    def training_step(self, batch: Batch) -> LossTerms:
        """Return the terms ``homography``, ``appearance`` and ``spread``."""
        options, side = self.options, batch.reference.shape[-1]
        view, estimate, scores_BNHW, number_B = self._estimate(batch, heading_prior(batch), batch.heading_deg)
        log_p_BNHW = _log_p(scores_BNHW)
        own_BHW = log_p_BNHW.gather(1, number_B[:, None, None, None].expand(-1, 1, *log_p_BNHW.shape[2:]))[:, 0]
        px, matrices_IB33 = side / 512, estimate.matrices_IB33
        camera_B2, uv_B2 = view.camera_B2, batch.uv.float()
        terms_I = options.position_weight * losses.position_terms(
            matrices_IB33, camera_B2, uv_B2, px, squared=options.squared
        )
        up_deg_B = batch.heading_deg.float() + view.up_deg_B
        terms_I = terms_I + options.heading_weight * losses.heading_terms(
            matrices_IB33, camera_B2, view.arm_px, up_deg_B
        )
        if options.corner_weight:
            truth_B42 = apply_homography(view.pose(uv_B2, batch.heading_deg, batch.gsd_m), view.corners())
            terms_I = terms_I + options.corner_weight * losses.corner_terms(estimate.corners_IB42, truth_B42, px)
        weights_I = losses.iteration_weights(len(terms_I), options.gamma, terms_I.device)
        found_B2 = apply_homography(matrices_IB33[-1].detach(), camera_B2[:, None])[:, 0]
        map_BHW = self._place_map(estimate, log_p_BNHW, found_B2)
        cells = map_BHW.shape[-1] / side
        return {
            "homography": (weights_I * terms_I).sum(),
            "appearance": options.appearance_weight * losses.place_loss(own_BHW, uv_B2 / options.stride),
            "spread": options.spread_weight * losses.cell_loss(map_BHW, uv_B2 * cells),
        }

    @torch.no_grad()
    def localize(self, batch: Batch) -> PosePrediction:
        """Return the place and heading the homography gives, and the mixture as the map.

        The top view is laid out at the middle of the heading's prior (at several headings within it, if the recipe says
        so), and what is found is kept within the prior.
        """
        prior_B2, side = heading_prior(batch), batch.reference.shape[-1]
        view, estimate, scores_BNHW, _ = self._estimate(batch, prior_B2, None)
        matrix_B33 = estimate.matrices_IB33[-1]
        found_B2 = apply_homography(matrix_B33, view.camera_B2[:, None])[:, 0]
        yaw_deg_B = heading_of(matrix_B33, view.camera_B2, view.arm_px) - view.up_deg_B
        map_BHW = self._place_map(estimate, _log_p(scores_BNHW), found_B2)
        cell_m_B = batch.gsd_m.float() * side / map_BHW.shape[-1]
        origin = center_index(map_BHW.shape[-2]), center_index(map_BHW.shape[-1])
        xy_m_B2 = xy_m_from_uv(found_B2, batch.gsd_m.float(), side)
        return PosePrediction(
            score_map_BHW=map_BHW,
            cell_size_m_B=cell_m_B,
            origin=origin,
            xy_m_B2=xy_m_B2,
            yaw_deg_B=within_prior(yaw_deg_B, prior_B2),
            radius95_m_B=radius95(map_BHW, cell_m_B, origin, xy_m_B2),
            match_B=scores_BNHW.amax((1, 2, 3)),
        )

    def _estimate(
        self, batch: Batch, prior_B2: Tensor, truth_deg_B: Tensor | None
    ) -> tuple[TopView, Estimate, Tensor, Tensor]:
        """Return the view that went on, its estimate, the camera's scores (B, N, H, W), and the view's number (B,).

        Of N views, the one nearest to the truth goes on in training, else the one whose camera is found best.
        """
        options, network = self.options, self.network
        batch_size, side, camera_B33 = len(batch.query), batch.reference.shape[-1], batch.camera_B33
        offset_N = torch.arange(options.headings, device=batch.query.device) * (360 / options.headings)
        expected_BN = prior_B2[:, :1] + offset_N
        if camera_B33 is None:
            # "up" is where the reference's top is if the heading is the one expected
            query = batch.query.repeat_interleave(options.headings, 0)
            all_views = panorama_top_view(
                query, -expected_BN.flatten(), options.top_view_px, options.top_view_fov_deg, self.camera_height_m
            )
        else:
            all_views = pinhole_top_view(
                batch.query, camera_B33, options.top_view_px, options.top_view_m, self.camera_height_m
            )
        features = network.query(all_views.image_BCSS)[options.stride]
        reference_BCHW = network.reference(batch.reference)[options.stride]
        each = reference_BCHW.repeat_interleave(options.headings, 0)
        scores = network.camera_scores(features, each, all_views.camera_B2)
        scores_BNHW = scores.view(batch_size, options.headings, *scores.shape[1:])
        reach_B1 = prior_B2[:, 1:] + 180 / options.headings - 1e-3
        barred_BN = (wrap_deg(offset_N).abs() > reach_B1) & (offset_N > 0)
        scores_BNHW = scores_BNHW.masked_fill(barred_BN[:, :, None, None], -torch.inf)
        with torch.no_grad():
            if truth_deg_B is None:
                fit_BN = scores_BNHW.flatten(2).logsumexp(2)
            else:
                fit_BN = -wrap_deg(truth_deg_B.float()[:, None] - expected_BN).abs()
            number_B = fit_BN.masked_fill(barred_BN, -torch.inf).argmax(1)
            row_B = torch.arange(batch_size, device=number_B.device) * options.headings + number_B
        view = all_views.select(row_B)
        start_B42 = self._start(batch, view, expected_BN.flatten()[row_B], scores[row_B], side)
        estimate: Estimate = network(features[row_B], reference_BCHW, start_B42, options.iterations)
        return view, estimate, scores_BNHW, number_B

    @torch.no_grad()
    def _start(self, batch: Batch, view: TopView, expected_deg_B: Tensor, scores_BHW: Tensor, side: int) -> Tensor:
        """Return where the view's corners are laid at first, (B, 4, 2) pixels of the reference."""
        gsd_m_B = batch.gsd_m.float()
        if not self.options.known_scale:
            gsd_m_B = torch.full_like(gsd_m_B, view.meters_per_px * view.image_BCSS.shape[-1] / side)
        camera_B2 = torch.full_like(view.camera_B2, side / 2)
        if self.options.start == "appearance":
            cell_B = torch.full_like(gsd_m_B, float(self.options.stride))
            camera_B2 = decode_mean(scores_BHW, cell_B, (-0.5, -0.5), radius_cells=1)
        return apply_homography(view.pose(camera_B2, expected_deg_B, gsd_m_B), view.corners())

    def _place_map(self, estimate: Estimate, log_p_BNHW: Tensor, found_B2: Tensor) -> Tensor:
        options = self.options
        camera_map_BHW = log_p_BNHW.detach().logsumexp(1)
        return losses.place_map(camera_map_BHW, found_B2 / options.stride, estimate.spread_B2, options.finer)


def _log_p(scores_BNHW: Tensor) -> Tensor:
    """Return the log-probabilities of headings and cells together."""
    return scores_BNHW.flatten(1).log_softmax(1).view_as(scores_BNHW)
