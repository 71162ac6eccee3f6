"""The bearing error of a camera, read off its ground and the reference by a network that learns from references alone.

In training a camera is put somewhere into a reference, with a bearing that is not quite what is assumed; what it would
see of the ground is cut out and compared with the reference. Place and error were drawn, so no label of a query is
needed, nor the query itself. Later the ground of a street-level image takes the place of the cut-out.

All is laid out in the frame of the assumed bearing: up is where the camera is taken to look, so what a pinhole camera
sees of the ground is always the same part. The error is how much further clockwise it looks in truth.

Shapes: B pairs, C channels, R x R pixels of a reference, A x A cells of its map, S x S cells of the ground around the
camera, W x W cells that the network sees. A place is (right, down) of the middle in half sides of the reference, so in
[-1, 1].

Source:
    G2SWeakly (ECCV 2024), stage 0 of its training for KITTI, which is ``rotation_view = "whole"``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.backbones.dense import DenseEncoder
from cvgl_models.geometry.ncc import normalized_cross_correlation
from cvgl_models.geometry.resampling import resample
from cvgl_models.recipe import EncoderRecipe, ViewRecipe
from cvgl_models.systems.g2sweakly.network import GroundMatcher, laid_on_ground
from cvgl_models.systems.g2sweakly.options import G2SWeaklyOptions
from cvgl_models.systems.heading_priors import within_prior
from cvgl_models.transforms import Batch

_PATCH, _WIDTH, _HEADS, _WINDOW = 4, 48, 3, 8


class RotationEstimator(nn.Module):
    """An encoder of its own, for ground and reference alike, and one Swin stage on their difference.

    Args:
        encoder: ``backbone`` and ``pretrained``; the encoder is the one that it would be for references.
        views: Sizes and the camera's height.
        options: ``lift``, ``levels`` (the last one is used), ``width``, and what begins with ``rotation``.
        matcher: Whose last grid is used; its weights are not.
        range_deg: Greatest bearing error.

    Attributes:
        grid: How ground and reference lie on each other.
        reach_cells: Unit of the places that are estimated.
        is_trained: 1 once the network is no longer trained; a buffer, so that averages and checkpoints have it too.
    """

    is_trained: Tensor

    def __init__(
        self,
        encoder: EncoderRecipe,
        views: ViewRecipe,
        options: G2SWeaklyOptions,
        matcher: GroundMatcher,
        range_deg: float,
    ) -> None:
        super().__init__()
        self._options, self._height_m, self.range_deg = options, views.camera_height_m, range_deg
        self._is_pinhole = views.query == "pinhole"
        self.grid, self._ground_px = matcher.grids[-1], matcher.ground_px
        self.encoder = DenseEncoder(
            encoder.backbone, options.levels[-1:], pretrained=encoder.pretrained, width=options.width
        )
        grid, channels = self.grid, self.encoder.channels[-1]
        self._sees_whole = options.rotation_view == "whole"
        if self._sees_whole:
            cells, reach = grid.reference, min(2 * grid.origin / grid.reference, 1.0)
        else:
            cells, reach = grid.template, grid.template * math.sin(math.radians(min(range_deg, 90.0))) / grid.reference
        self._reach = reach
        self.reach_cells = reach * grid.reference / 2
        self.network = _Regressor(channels if self._sees_whole else _MOTION_MAPS, cells)
        self.encoder.to(memory_format=torch.channels_last)
        self.register_buffer("is_trained", torch.zeros(()))

    def loss_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``rotation``, the mean of |du| + |dv| + |dtheta| over cameras that are drawn, in units of the ranges.

        With ``rotation_view = "place"`` also ``rotation_place``: how little the drawn place stands out among all, as
        seen with the wrong bearing.

        Args:
            batch: ``reference``; of pinhole cameras also ``camera_B33``, ``gsd_m`` and the size of ``query``. No label
                is read, nor any pixel of a query.
        """
        options, grid, images = self._options, self.grid, batch.reference
        references, cameras, device = len(images), options.rotation_cameras, images.device

        def spread(*shape: int) -> Tensor:
            return torch.rand(*shape, device=device) * 2 - 1

        if self._is_pinhole:  # assumed bearings are any; those of panoramas are about 0
            nowhere_B2 = torch.zeros(references, 2, device=device)
            images = cut_out(images, images.shape[-1], nowhere_B2, 180 * spread(references))
        maps_BCAA = self._encoded(images).repeat(cameras, 1, 1, 1)
        seen_BSS = self._seen(batch, grid.template).repeat(cameras, 1, 1)
        size = len(maps_BCAA)
        place_B2, error_B = spread(size, 2) * min(2 * grid.origin / grid.reference, 1.0), spread(size)
        turn_B = error_B * self.range_deg
        if options.lift == "image":
            cut = cut_out(images.repeat(cameras, 1, 1, 1), self._ground_px, place_B2, turn_B)
            seen = self._seen(batch, self._ground_px).repeat(cameras, 1, 1)  # black beyond, as a laid image is
            ground_BCSS = self._encoded(cut * seen[:, None])
        else:
            ground_BCSS = cut_out(maps_BCAA, grid.template, place_B2, turn_B)
        expected_B2 = torch.zeros_like(place_B2) if self._sees_whole else place_B2 + spread(size, 2) * self._reach
        found_B3 = self._compared(maps_BCAA, ground_BCSS, seen_BSS, expected_B2)
        truth_B3 = torch.cat([(place_B2 - expected_B2) / self._reach, error_B[:, None]], 1)
        terms = {"rotation": (found_B3 - truth_B3).abs().sum(1).mean()}
        if not self._sees_whole and options.rotation_place_weight:
            one = slice(references)  # camera of each; that is enough
            place = self._place_loss(self._cosines(maps_BCAA[one], ground_BCSS[one], seen_BSS[one]), place_B2[one])
            terms["rotation_place"] = options.rotation_place_weight * place
        return terms

    @torch.no_grad()
    def heading_deg(self, batch: Batch, prior_B2: Tensor) -> Tensor:
        """Return the bearing (B,) of each query's centre column, within what is known of it, in (-180, 180].

        Args:
            batch: Images, ``gsd_m``, ``camera_B33``.
            prior_B2: What is known of the bearings: centre and half-width, degrees.
        """
        heading_B = prior_B2[:, 0]
        for _ in range(self._options.rotation_passes):
            error_deg_B = self(batch, heading_B)[:, 2] * self.range_deg
            heading_B = within_prior(heading_B + error_deg_B.clamp(-self.range_deg, self.range_deg), prior_B2)
        return heading_B

    def forward(self, batch: Batch, heading_deg_B: Tensor) -> Tensor:
        """Return (du, dv, dtheta) in units of their ranges, (B, 3), of queries about which a bearing is assumed."""
        images, grid = batch.reference, self.grid
        nowhere_B2 = torch.zeros(len(images), 2, device=images.device)
        maps_BCAA = self._encoded(cut_out(images, images.shape[-1], nowhere_B2, heading_deg_B))
        gsd_m_B = batch.gsd_m.float()
        cell_size_m_B = gsd_m_B * (images.shape[-1] / grid.reference)
        if self._options.lift == "image":
            ground, _ = laid_on_ground(batch, batch.query, self._ground_px, gsd_m_B, self._height_m)
            ground_BCSS = self._encoded(ground)
        else:
            query_maps = self._encoded(batch.query)
            ground_BCSS, _ = laid_on_ground(batch, query_maps, grid.template, cell_size_m_B, self._height_m)
        seen_BSS = self._seen(batch, grid.template)
        place_B2 = nowhere_B2 if self._sees_whole else self._placed(maps_BCAA, ground_BCSS, seen_BSS)
        return self._compared(maps_BCAA, ground_BCSS, seen_BSS, place_B2)

    def _encoded(self, images: Tensor) -> Tensor:
        maps: Tensor = self.encoder(images)[0][0]
        return maps

    def _seen(self, batch: Batch, size: int) -> Tensor:
        """Return what a camera sees of the ground in front of it, (B, size, size), 1 or 0."""
        images = batch.reference
        if batch.camera_B33 is None:
            return torch.ones(len(images), size, size, device=images.device)
        side_cells = self.grid.reference * size / self.grid.template  # of the reference, if its cells were as large
        cell_size_m_B = batch.gsd_m.float() * (images.shape[-1] / side_cells)
        _, seen_BSS = laid_on_ground(batch, batch.query[:, :1], size, cell_size_m_B, self._height_m)
        assert seen_BSS is not None
        return seen_BSS.float()

    def _cosines(self, maps_BCAA: Tensor, ground_BCSS: Tensor, seen_BSS: Tensor) -> Tensor:
        return normalized_cross_correlation(maps_BCAA, ground_BCSS, seen_BSS, padding=self.grid.padding, paired=True)

    def _placed(self, maps_BCAA: Tensor, ground_BCSS: Tensor, seen_BSS: Tensor) -> Tensor:
        """Return the place at which the ground fits best as it lies, (B, 2)."""
        grid = self.grid
        best_B, places = self._cosines(maps_BCAA, ground_BCSS, seen_BSS).flatten(1).argmax(1), grid.places
        index_B2 = torch.stack([best_B % places, torch.div(best_B, places, rounding_mode="floor")], 1)
        return (index_B2 - grid.origin) * (2 / grid.reference)

    def _place_loss(self, cosine_BPP: Tensor, place_B2: Tensor) -> Tensor:
        """Return the cross-entropy of the distribution over all places and the true one."""
        grid = self.grid
        index_B2 = (place_B2 * (grid.reference / 2) + grid.origin).round().long().clamp(0, grid.places - 1)
        logits_BP = (cosine_BPP / self._options.temperature).flatten(1)
        return F.cross_entropy(logits_BP, index_B2[:, 1] * grid.places + index_B2[:, 0])

    def _compared(self, maps_BCAA: Tensor, ground_BCSS: Tensor, seen_BSS: Tensor, place_B2: Tensor) -> Tensor:
        grid = self.grid
        if self._sees_whole:
            before = (grid.reference - grid.template) // 2
            margin = (before, grid.reference - grid.template - before) * 2
            ground_BCAA = F.pad(ground_BCSS * seen_BSS[:, None], margin)
            found: Tensor = self.network(_of_unit_mean(ground_BCAA) - _of_unit_mean(maps_BCAA))
            return found
        upright_B = torch.zeros_like(place_B2[:, 0])
        reference_BCSS = cut_out(maps_BCAA, grid.template, place_B2, upright_B)
        weights_BSS = seen_BSS * inside(grid.reference, grid.template, place_B2)
        found = self.network(motion_maps(ground_BCSS, reference_BCSS, weights_BSS))
        return found


class _Regressor(nn.Module):
    """One Swin stage and a linear layer: three numbers (B, 3) of maps (B, C, W, W)."""

    def __init__(self, channels: int, cells: int) -> None:
        super().__init__()
        from timm.models.swin_transformer import SwinTransformer

        side = -(-cells // _PATCH) * _PATCH
        self._margin = side - cells
        self.stage = SwinTransformer(
            img_size=side,
            patch_size=_PATCH,
            in_chans=channels,
            embed_dim=_WIDTH,
            depths=(1,),
            num_heads=(_HEADS,),
            window_size=_WINDOW,
            num_classes=0,
            drop_path_rate=0.0,
        )
        self.out = nn.Linear(_WIDTH * (side // _PATCH) ** 2, 3)
        nn.init.normal_(self.out.weight, std=1e-3)  # begins with what is assumed
        nn.init.zeros_(self.out.bias)

    def forward(self, maps_BCWW: Tensor) -> Tensor:
        tokens = self.stage.forward_features(F.pad(maps_BCWW, (0, self._margin, 0, self._margin)))
        found: Tensor = self.out(tokens.flatten(1)).float()
        return found


def cut_out(map_BCAA: Tensor, size: int, place_B2: Tensor, turn_deg_B: Tensor) -> Tensor:
    """Return what lies around places of square maps, (B, C, size, size), cells as large as theirs; mirrored beyond.

    Args:
        map_BCAA: Maps, or images.
        size: Cells of the cut.
        place_B2: The middle of the cut.
        turn_deg_B: Where the cut's up points, clockwise from the map's.
    """
    side = map_BCAA.shape[-1]
    center_S = torch.arange(size, device=map_BCAA.device, dtype=torch.float32) + 0.5 - size / 2
    right_SS, down_SS = center_S.expand(size, size), center_S[:, None].expand(size, size)
    cos_B11, sin_B11 = (
        each.float()[:, None, None] for each in (turn_deg_B.deg2rad().cos(), turn_deg_B.deg2rad().sin())
    )
    offset_BSS2 = torch.stack([right_SS * cos_B11 - down_SS * sin_B11, right_SS * sin_B11 + down_SS * cos_B11], -1)
    grid_BSS2 = place_B2.float()[:, None, None] + offset_BSS2 * (2 / side)
    return resample(map_BCAA, grid_BSS2, "reflection")


def inside(side: int, size: int, place_B2: Tensor) -> Tensor:
    """Return which cells of an upright cut lie in a map of so many cells, (B, size, size), 1 or 0."""
    center_S = (torch.arange(size, device=place_B2.device) + 0.5 - size / 2) * (2 / side)
    in_BS2 = ((place_B2[:, None] + center_S[:, None]).abs() <= 1).float()
    return in_BS2[:, None, :, 0] * in_BS2[:, :, None, 1]


_MOTION_MAPS = 9


def motion_maps(ground_BCSS: Tensor, reference_BCSS: Tensor, weights_BSS: Tensor) -> Tensor:
    """Return what each cell says of a small motion that takes the reference to the ground: (B, 9, S, S).

    A difference alone cannot tell a motion from the opposite one. Times the derivative of the map by the motion it can:
    for the three motions (right, down, clockwise) the products with the difference, and the products of the derivatives
    with each other, summed over channels; they are the normal equations of a least-squares fit, cell by cell.
    """
    weights_B1SS, size = weights_BSS[:, None], reference_BCSS.shape[-1]
    difference_BCSS = _of_unit_mean(ground_BCSS * weights_B1SS) - _of_unit_mean(reference_BCSS * weights_B1SS)
    length_B111 = _length(reference_BCSS * weights_B1SS)
    wide_BCSS = F.pad(reference_BCSS / length_B111, (1, 1, 1, 1), mode="replicate")
    by_right = (wide_BCSS[..., 1:-1, 2:] - wide_BCSS[..., 1:-1, :-2]) / 2
    by_down = (wide_BCSS[..., 2:, 1:-1] - wide_BCSS[..., :-2, 1:-1]) / 2
    share_S = (torch.arange(size, device=reference_BCSS.device) + 0.5) * (2 / size) - 1
    by_turn = share_S * by_down - share_S[:, None] * by_right
    derivatives = (by_right, by_down, by_turn)
    products = [difference_BCSS * each for each in derivatives]
    products += [derivatives[i] * derivatives[j] for i in range(3) for j in range(i, 3)]
    return torch.stack([each.mean(1) for each in products], 1) * weights_B1SS


def _length(map_BCSS: Tensor) -> Tensor:
    """Return the root mean square of each map, (B, 1, 1, 1); its gradient is finite where nothing is seen."""
    return map_BCSS.square().mean((1, 2, 3), keepdim=True).clamp(min=1e-12).sqrt()


def _of_unit_mean(map_BCSS: Tensor) -> Tensor:
    """Return each map divided by its length, times the root of its size so that values are about 1."""
    return map_BCSS / _length(map_BCSS)
