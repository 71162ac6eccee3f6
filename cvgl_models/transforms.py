"""What a batch is, and random changes of it that keep its labels true.

Shapes: B pairs, H and W of the query image, S side of the reference image. Images are (B, 3, height, width), float in
[0, 1].

A reference turned counter-clockwise by a quarter has east at the top; a panorama whose centre column then looks up in
the turned reference is rolled to the left by a quarter of its width. A top view turns as the reference does.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from cvgl_models.recipe import AugmentRecipe


def _none() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pairs of a query and its positive; a batch for embedding has one of the two sides only."""

    query: Tensor = field(default_factory=_none)
    """(B, 3, H, W): panorama or top view."""
    reference: Tensor = field(default_factory=_none)
    """(B, 3, S, S)."""
    bev: Tensor = field(default_factory=_none)
    """(B, 3, V, V) top view of the query's ground, beside a panorama, where the recipe asks for one."""
    uv: Tensor = field(default_factory=_none)
    """(B, 2) place of the query in the reference image, pixels, (0, 0) the corner."""
    heading_deg: Tensor = field(default_factory=_none)
    """(B,) bearing of the query image's centre (panorama) or top (top view), clockwise from the reference's top."""
    gsd_m: Tensor = field(default_factory=_none)
    """(B,) ground metres per pixel of the reference image."""
    heading_prior_deg: Tensor = field(default_factory=_none)
    """(B, 2) what is known of ``heading_deg``: it lies within the second number of the first."""
    camera_B33: Tensor | None = None
    """(B, 3, 3) intrinsics of the camera in pixels of the query image; None: the query is a panorama."""
    query_row: Tensor = field(default_factory=_none)
    """(B,) int64."""
    reference_row: Tensor = field(default_factory=_none)
    """(B,) int64."""
    ignore: Tensor | None = None
    """(B, B) True where reference j covers query i without being its positive and must not count as a negative."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device, images as float in [0, 1]."""
        moved: dict[str, Tensor] = {
            item.name: value.to(device, non_blocking=True)
            for item in dataclasses.fields(self)
            if (value := getattr(self, item.name)) is not None
        }
        for name in ("query", "reference", "bev"):
            if moved[name].dtype == torch.uint8:
                moved[name] = moved[name].float().div_(255)
        return Batch(**moved)


def quarter_turn(batch: Batch, turns_B: Tensor, query_view: str) -> Batch:
    """Turn each reference counter-clockwise by a number of quarters, and its query with it.

    Args:
        batch: Square references.
        turns_B: Integers; taken modulo 4.
        query_view: ``panorama``, ``bev``, or ``pinhole``: an image that cannot turn, whose bearing changes instead.

    Raises:
        ValueError: If a panorama's width is not a multiple of 4.
    """
    width, side = batch.query.shape[-1], batch.reference.shape[-1]
    if query_view == "panorama" and width % 4:
        raise ValueError(f"a panorama {width} px wide cannot be rolled by a quarter; use a multiple of 4")
    query, reference, uv, bev = batch.query.clone(), batch.reference.clone(), batch.uv.clone(), batch.bev.clone()
    for turns in (1, 2, 3):
        rows = _beside((turns_B % 4 == turns).nonzero()[:, 0], query)
        reference[rows] = torch.rot90(batch.reference[rows], turns, (-2, -1))
        if len(bev):
            bev[rows] = torch.rot90(batch.bev[rows], turns, (-2, -1))
        if query_view == "bev":
            query[rows] = torch.rot90(batch.query[rows], turns, (-2, -1))
        elif query_view == "panorama":
            query[rows] = batch.query[rows].roll(-turns * width // 4, -1)
        u, v = batch.uv[rows].unbind(1)
        uv[rows] = torch.stack([(v, side - u), (side - u, side - v), (side - v, u)][turns - 1], 1)
    turned = dataclasses.replace(batch, query=query, reference=reference, bev=bev, uv=uv)
    return _heading_changed(turned, -90 * turns_B) if query_view == "pinhole" else turned


def flip(batch: Batch, flip_B: Tensor) -> Batch:
    """Mirror both views of the marked pairs left to right."""
    rows = _beside(flip_B.nonzero()[:, 0], batch.query)
    query, reference, bev = batch.query.clone(), batch.reference.clone(), batch.bev.clone()
    uv, heading_deg, camera_B33 = batch.uv.clone(), batch.heading_deg.clone(), batch.camera_B33
    prior_B2 = batch.heading_prior_deg.clone()
    query[rows] = batch.query[rows].flip(-1)
    reference[rows] = batch.reference[rows].flip(-1)
    uv[rows, 0] = batch.reference.shape[-1] - batch.uv[rows, 0]
    heading_deg[rows] = -batch.heading_deg[rows]
    if len(prior_B2):
        prior_B2[rows, 0] = -batch.heading_prior_deg[rows, 0]
    if len(bev):
        bev[rows] = batch.bev[rows].flip(-1)
    if camera_B33 is not None:
        camera_B33 = camera_B33.clone()
        camera_B33[rows, 0, 2] = batch.query.shape[-1] - camera_B33[rows, 0, 2]
    flipped = dataclasses.replace(batch, query=query, reference=reference, bev=bev, uv=uv, camera_B33=camera_B33)
    return dataclasses.replace(flipped, heading_deg=heading_deg, heading_prior_deg=prior_B2)


def turn_panorama(batch: Batch, angle_deg_B: Tensor) -> Batch:
    """Roll each panorama so that its centre column looks further to the right, by whole columns.

    Args:
        batch: Panoramas as queries. What is known of their bearing stays what it was.
        angle_deg_B: Degrees clockwise.
    """
    width = batch.query.shape[-1]
    shift_B = _beside((angle_deg_B / 360 * width).round().long(), batch.query)
    column_BW = (torch.arange(width, device=batch.query.device) + shift_B[:, None]) % width
    query = batch.query.gather(-1, column_BW[:, None, None].expand_as(batch.query))
    heading_deg = _wrapped(batch.heading_deg + (shift_B * (360 / width)).to(batch.heading_deg))
    return dataclasses.replace(batch, query=query, heading_deg=heading_deg)


def _heading_changed(batch: Batch, angle_deg_B: Tensor) -> Batch:
    """Add to the bearing of each query and to what is known of it."""
    heading_deg = _wrapped(batch.heading_deg + _like(angle_deg_B, batch.heading_deg))
    return dataclasses.replace(_told_headings_off(batch, angle_deg_B), heading_deg=heading_deg)


def _told_headings_off(batch: Batch, angle_deg_B: Tensor) -> Batch:
    """Add to what is known of each bearing, not to the bearing: the error of a compass."""
    prior_B2 = batch.heading_prior_deg.clone()
    if len(prior_B2):
        prior_B2[:, 0] = _wrapped(prior_B2[:, 0] + _like(angle_deg_B, prior_B2))
    return dataclasses.replace(batch, heading_prior_deg=prior_B2)


def _headings_less_known(batch: Batch, error_deg: float) -> Batch:
    """Widen what is known of each bearing, either way."""
    prior_B2 = batch.heading_prior_deg.clone()
    if len(prior_B2):
        prior_B2[:, 1] += error_deg
    return dataclasses.replace(batch, heading_prior_deg=prior_B2)


def _wrapped(angle_deg: Tensor) -> Tensor:
    """Return angles in (-180, 180]."""
    return 180 - (180 - angle_deg) % 360


def warp(images: Tensor, angle_deg_B: Tensor, zoom_B: Tensor, shift_B2: Tensor) -> Tensor:
    """Turn images counter-clockwise about their centre, enlarge them, then move them; mirrored beyond the edge.

    Args:
        images: (B, 3, S, S).
        angle_deg_B: Degrees.
        zoom_B: 1 keeps the scale, 2 doubles it.
        shift_B2: Pixels right and down.

    See `warp_uv` for what becomes of a point.
    """
    inverse_B22 = torch.linalg.inv(_linear(angle_deg_B, zoom_B))
    offset_B2 = -(inverse_B22 @ shift_B2.to(inverse_B22)[:, :, None])[:, :, 0] * (2 / images.shape[-1])
    theta_B23 = _like(torch.cat([inverse_B22, offset_B2[:, :, None]], 2), images)
    grid = F.affine_grid(theta_B23, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def warp_uv(uv_B2: Tensor, side: int, angle_deg_B: Tensor, zoom_B: Tensor, shift_B2: Tensor) -> Tensor:
    """Return where `warp` takes points of a square image."""
    moved_B21 = _like(_linear(angle_deg_B, zoom_B), uv_B2) @ (uv_B2 - side / 2)[:, :, None]
    return moved_B21[:, :, 0] + side / 2 + _like(shift_B2, uv_B2)


def jitter_color(images: Tensor, change_B4: Tensor) -> Tensor:
    """Change brightness, contrast, saturation (as factors minus 1) and hue (in turns) of each image.

    All four are linear in the colors, so they are one 3x3 matrix and an offset per image.
    """
    brightness_B, contrast_B, saturation_B = (1 + change_B4[:, :3]).unbind(1)
    hue_B = change_B4[:, 3] * 2 * math.pi
    luma_33, eye_33 = _LUMA.expand(3, 3), torch.eye(3)
    turn_B33 = eye_33.repeat(len(images), 1, 1)
    turn_B33[:, 1, 1] = turn_B33[:, 2, 2] = hue_B.cos()
    turn_B33[:, 1, 2], turn_B33[:, 2, 1] = -hue_B.sin(), hue_B.sin()
    hue_B33 = torch.linalg.inv(_YIQ) @ turn_B33 @ _YIQ
    saturate_B33 = luma_33 + saturation_B[:, None, None] * (eye_33 - luma_33)
    matrix_B33 = (brightness_B * contrast_B)[:, None, None] * (saturate_B33 @ hue_B33)
    # the offset is linear in the mean color: a fourth column makes one transfer of all
    gray_B31 = (brightness_B * (1 - contrast_B))[:, None, None] * _LUMA[:, None]
    matrix_B34 = _like(torch.cat([matrix_B33, gray_B31], 2), images)
    gray_B = (images.mean((2, 3)) * matrix_B34[:, :, 3]).sum(1)
    changed = torch.einsum("bij,bjhw->bihw", matrix_B34[:, :, :3], images) + gray_B[:, None, None, None]
    return changed.clamp_(0, 1)


def blur_or_sharpen(images: Tensor, amount_B: Tensor) -> Tensor:
    """Mix each image with its 3x3 binomial blur: amount 1 is the blur, 0 the image, -1 as much the other way."""
    tap = images.new_full((3,), 0.25)
    tap[1] = 0.5
    kernel = torch.outer(tap, tap).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return torch.lerp(images, blurred, _like(amount_B, images)[:, None, None, None]).clamp_(0, 1)


def cut_out(images: Tensor, box_BK4: Tensor) -> Tensor:
    """Fill K rectangles of each image with its mean color.

    A box is (centre u, centre v, width, height) in shares of the image's height.
    """
    height, width = images.shape[-2:]
    box_BK4 = _like(box_BK4, images) * height
    u, v = (torch.arange(size, device=images.device).to(images.dtype) + 0.5 for size in (width, height))
    in_u_BKW = (u - box_BK4[:, :, 0, None]).abs() < box_BK4[:, :, 2, None] / 2
    in_v_BKH = (v - box_BK4[:, :, 1, None]).abs() < box_BK4[:, :, 3, None] / 2
    hole_BHW = (in_v_BKH[:, :, :, None] & in_u_BKW[:, :, None, :]).any(1)
    return torch.where(hole_BHW[:, None], images.mean((2, 3), keepdim=True), images)


class Augment:
    """The random changes of a training batch, all drawn from one generator on the CPU.

    Args:
        recipe: Probabilities and strengths.
        query_view: ``panorama``, ``bev`` or ``pinhole``.
    """

    def __init__(self, recipe: AugmentRecipe, query_view: str) -> None:
        self.recipe = recipe
        self.query_view = query_view

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the changed batch; equal generators give equal batches."""
        recipe, size = self.recipe, len(batch.query)

        def chance(probability: float) -> Tensor:
            return torch.rand(size, generator=generator) < probability

        def spread(*shape: int) -> Tensor:
            return torch.rand(size, *shape, generator=generator) * 2 - 1

        if recipe.heading_noise_deg:
            error_deg_B = spread() * recipe.heading_noise_deg
            if self.query_view == "pinhole":
                batch = _told_headings_off(batch, error_deg_B)
            else:
                batch = turn_panorama(batch, error_deg_B)
            batch = _headings_less_known(batch, recipe.heading_noise_deg)
        batch = flip(batch, chance(recipe.flip))
        turns_B = torch.randint(1, 4, (size,), generator=generator) * chance(recipe.rotate)
        batch = quarter_turn(batch, turns_B, self.query_view)
        batch = self._warped(batch, spread() * recipe.turn_deg, spread(2) * recipe.zoom, spread(2) * recipe.shift)
        strength = recipe.color_strength * torch.tensor([1.0, 1.0, 1.0, 0.5])
        together_B4 = spread(4) * strength * chance(recipe.color_together)[:, None]
        views = []
        for images in (batch.query, batch.reference, *([batch.bev] if len(batch.bev) else [])):
            alone_B4 = spread(4) * strength * chance(recipe.color)[:, None]
            changed = jitter_color(images, together_B4 + alone_B4)
            changed = blur_or_sharpen(changed, spread() * chance(recipe.blur)) if recipe.blur else changed
            box_BK4 = torch.rand(size, recipe.cut_holes, 4, generator=generator)
            box_BK4[:, :, 0] *= images.shape[-1] / images.shape[-2]
            box_BK4[:, :, 2:] = (0.1 + 0.1 * box_BK4[:, :, 2:]) * chance(recipe.cut)[:, None, None]
            views.append(cut_out(changed, box_BK4) if recipe.cut else changed)
        return dataclasses.replace(batch, **dict(zip(("query", "reference", "bev"), views, strict=False)))

    def _warped(self, batch: Batch, angle_deg_B: Tensor, zoom_B2: Tensor, shift_B2: Tensor) -> Batch:
        query, reference, uv, gsd_m = batch.query, batch.reference, batch.uv, batch.gsd_m
        if self.recipe.turn_deg or self.recipe.zoom or self.recipe.shift:
            shift_B2 = shift_B2 * reference.shape[-1]
            reference = warp(reference, angle_deg_B, 1 + zoom_B2[:, 0], shift_B2)
            uv = warp_uv(uv, reference.shape[-1], angle_deg_B, 1 + zoom_B2[:, 0], shift_B2)
            gsd_m = gsd_m / _like(1 + zoom_B2[:, 0], gsd_m) if len(gsd_m) else gsd_m
        if self.query_view == "bev" and (self.recipe.turn_deg or self.recipe.zoom):
            query = warp(query, angle_deg_B, 1 + zoom_B2[:, 1], torch.zeros_like(shift_B2))
        return dataclasses.replace(batch, query=query, reference=reference, uv=uv, gsd_m=gsd_m)


def _beside(drawn: Tensor, images: Tensor) -> Tensor:
    """Return what was drawn on the host, on the device of images; pinned, so that nothing there is waited for."""
    if images.device.type == "cuda":
        drawn = drawn.pin_memory()
    return drawn.to(images.device, non_blocking=True)


def _like(drawn: Tensor, images: Tensor) -> Tensor:
    """Return what was drawn on the host, on the device and of the type of images; see `_beside`."""
    return _beside(drawn.to(images.dtype), images)


_LUMA = torch.tensor([0.299, 0.587, 0.114])
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def _linear(angle_deg_B: Tensor, zoom_B: Tensor) -> Tensor:
    """Return the 2x2 matrices that turn (u right, v down) counter-clockwise and scale."""
    cos, sin = angle_deg_B.double().deg2rad().cos(), angle_deg_B.double().deg2rad().sin()
    rotation_B22 = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    return rotation_B22 * zoom_B.double()[:, None, None]
