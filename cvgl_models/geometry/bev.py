"""The ground round a panorama, seen from above: batched, differentiable, on any device.

Shapes: B images, C channels, H and W of the panorama, S side of the output. Angles: azimuth clockwise from north.
A panorama's columns run clockwise over 360 degrees, its rows from the zenith down.

`cvgl_data.panorama.to_bev` gives the same picture without torch.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

WHOLE_SPHERE = (0.0, 180.0)

Scalar = TypeVar("Scalar", float, Tensor)


def meters_per_px_from_fov(size_px: int, fov_deg: float, camera_height_m: float) -> float:
    """Return the scale of a top view that a pinhole camera looking straight down with this opening angle would have.

    Example:
        >>> round(meters_per_px_from_fov(384, 170.0, 1.0), 7)
        0.0595315

    Source:
        HC-Net and AuxGeo, which give a field of view instead of a scale.
    """
    return 2 * camera_height_m * math.tan(math.radians(fov_deg) / 2) / size_px


def fov_deg_from_side(side_m: float, camera_height_m: float) -> float:
    """Return the opening angle with which that pinhole camera sees a square of this side on the ground."""
    return math.degrees(2 * math.atan(side_m / 2 / camera_height_m))


def matched_meters_per_px(gsd_m: Scalar, reference_px: int, size_px: int) -> Scalar:
    """Return the scale at which a top view covers just the ground that its reference covers.

    Args:
        gsd_m: Ground metres per pixel of the reference; (B,) where references differ.
        reference_px: Side of the reference, in those pixels.
        size_px: S.
    """
    return gsd_m * reference_px / size_px


def bev_from_panorama(
    pano_BCHW: Tensor,
    size_px: int,
    meters_per_px: float | Tensor | None = None,
    camera_height_m: float | Tensor = 2.5,
    *,
    fov_deg: float | None = None,
    heading_deg: float | Tensor = 0.0,
    zenith_deg: tuple[float, float] = WHOLE_SPHERE,
    oversample: int = 1,
) -> Tensor:
    """Return the top view of the ground around the camera, north up, as if everything stood at ground level.

    The scale is given as ``meters_per_px`` on the ground or as ``fov_deg`` of a pinhole that looks straight down, which
    needs no camera height. Only rows below the horizon are read. Sampling is bilinear, half-pixel exact, and runs round
    the seam at the panorama's edge. Where the panorama does not reach (`bev_mask`), the picture has the mean color of
    the rest.

    Args:
        pano_BCHW: Upright equirectangular panoramas of any floating type.
        size_px: Side of the output; the camera stands at its centre.
        meters_per_px: Ground metres per output pixel; (B,) where images differ, see `matched_meters_per_px`.
        camera_height_m: Height of the camera above the ground; (B,) where images differ. Unused with ``fov_deg``.
        fov_deg: Full angle from edge to edge, below 180.
        heading_deg: Compass bearing of the centre column; (B,) where images differ.
        zenith_deg: Angle between the zenith and the image's top edge, and its bottom edge. Panoramas of CVUSA are cut:
            of 616 rows they have 224.
        oversample: Sample this many times denser in each direction and average, against aliasing.

    Returns:
        (B, C, S, S), same type and device. Half precision is computed in float32.

    Raises:
        ValueError: If the panorama is of no floating type, or of the whole sphere but not twice as wide as high; if not
            exactly one of ``meters_per_px`` and ``fov_deg`` is given; if a value is out of range.
    """
    height, width = pano_BCHW.shape[-2:]
    if zenith_deg == WHOLE_SPHERE and width != 2 * height:
        raise ValueError(f"an equirectangular panorama is twice as wide as high, this one is {width}x{height}")
    if not pano_BCHW.is_floating_point():
        raise ValueError(f"panoramas must be of a floating type, not {pano_BCHW.dtype}")
    step = heights_per_px(size_px, meters_per_px, camera_height_m, fov_deg)
    kind = torch.promote_types(pano_BCHW.dtype, torch.float32)
    first_row = max(0, math.floor(_horizon(zenith_deg) * height) - 2)
    look = _look(
        pano_BCHW.device,
        kind,
        size_px * oversample,
        step,
        heading_deg,
        zenith_deg,
        oversample,
        width,
        height,
        first_row,
    )
    ground_BCHW = pano_BCHW[..., first_row:, :].to(kind)
    with torch.autocast(pano_BCHW.device.type, enabled=False):
        bev_BCSS = _filled(_sampled(ground_BCHW, look), look.seen_BSS)
        if oversample > 1:
            bev_BCSS = F.avg_pool2d(bev_BCSS, oversample)
    return bev_BCSS.to(pano_BCHW.dtype)


def bev_mask(
    size_px: int,
    meters_per_px: float | Tensor | None = None,
    camera_height_m: float | Tensor = 2.5,
    *,
    fov_deg: float | None = None,
    zenith_deg: tuple[float, float] = WHOLE_SPHERE,
) -> Tensor:
    """Return where a top view shows what the panorama shows, (S, S), or (B, S, S) where scales differ; bool.

    Arguments as of `bev_from_panorama`.
    """
    step = heights_per_px(size_px, meters_per_px, camera_height_m, fov_deg)
    device = step.device if isinstance(step, Tensor) else torch.device("cpu")
    _, radius_SS = _plane(size_px, torch.float64, str(device))
    scale = step.double()[:, None, None] if isinstance(step, Tensor) else step
    return _seen(math.pi - torch.atan(radius_SS * scale), zenith_deg)


def heights_per_px(
    size_px: int, meters_per_px: float | Tensor | None, camera_height_m: float | Tensor, fov_deg: float | None
) -> float | Tensor:
    """Return the side of an output pixel on the ground in heights of the camera: all that the picture depends on.

    Raises:
        ValueError: Unless exactly one of ``meters_per_px`` and ``fov_deg`` is given, and in range.
    """
    if (meters_per_px is None) == (fov_deg is None):
        raise ValueError("give exactly one of meters_per_px and fov_deg")
    if fov_deg is not None:
        if not 0.0 < fov_deg < 180.0:
            raise ValueError(f"fov_deg must lie between 0 and 180, not {fov_deg}")
        return meters_per_px_from_fov(size_px, fov_deg, 1.0)
    assert meters_per_px is not None
    for value in (meters_per_px, camera_height_m):
        if not isinstance(value, Tensor) and not value > 0:  # of a tensor this would wait for the accelerator
            raise ValueError("meters_per_px and camera_height_m must be positive")
    return meters_per_px / camera_height_m


class _Look(NamedTuple):
    """Where output pixels look, in `grid_sample` coordinates; s is the side with oversampling.

    Pixels between the last column and the first are taken from a strip of just these two.
    """

    grid_BSS2: Tensor
    strip_BSS2: Tensor
    """Places in the strip: of all pixels, or of those in ``seam_K`` only, (1, 1, K, 2)."""
    seam_BSS: Tensor | None
    """Which pixels are taken from the strip, where that differs between images."""
    seam_K: Tensor | None
    """Their index in s * s, where it does not."""
    seen_BSS: Tensor | None
    """Which pixels lie within the panorama; None: all."""


def _look(
    device: torch.device,
    kind: torch.dtype,
    side: int,
    step: float | Tensor,
    heading_deg: float | Tensor,
    zenith_deg: tuple[float, float],
    oversample: int,
    width: int,
    height: int,
    first_row: int,
) -> _Look:
    if not isinstance(step, Tensor) and not isinstance(heading_deg, Tensor):
        return _shared_look(
            side, step / oversample, float(heading_deg), zenith_deg, (width, height, first_row), kind, str(device)
        )
    # one row per image, on its device, in float32 or finer: nothing is waited for
    step_B11, heading_B11 = (
        torch.as_tensor(value, dtype=kind, device=device).reshape(-1, 1, 1) for value in (step, heading_deg)
    )
    return _look_of(side, step_B11 / oversample, heading_B11, zenith_deg, (width, height, first_row), kind, str(device))


@lru_cache(maxsize=16)
def _shared_look(
    side: int,
    step: float,
    heading_deg: float,
    zenith_deg: tuple[float, float],
    rows: tuple[int, int, int],
    kind: torch.dtype,
    device: str,
) -> _Look:
    """Return the look of a whole batch, computed once, in float64, with the few pixels on the seam picked out."""
    with torch.inference_mode(False):  # what is kept must serve training too, whoever asks first
        step_111, heading_111 = (torch.full((1, 1, 1), value, dtype=torch.float64) for value in (step, heading_deg))
        look = _look_of(side, step_111, heading_111, zenith_deg, rows, torch.float64, "cpu")
        assert look.seam_BSS is not None
        seam_K = look.seam_BSS.flatten().nonzero()[:, 0]
        return _Look(
            look.grid_BSS2.to(device=device, dtype=kind),
            look.strip_BSS2.reshape(1, 1, -1, 2)[:, :, seam_K].to(device=device, dtype=kind),
            None,
            seam_K.to(device),
            look.seen_BSS if look.seen_BSS is None else look.seen_BSS.to(device),
        )


def _look_of(
    side: int,
    step_B11: Tensor,
    heading_B11: Tensor,
    zenith_deg: tuple[float, float],
    rows: tuple[int, int, int],
    kind: torch.dtype,
    device: str,
) -> _Look:
    width, height, first_row = rows
    top_deg, bottom_deg = zenith_deg
    azimuth_SS, radius_SS = _plane(side, kind, device)
    zenith_BSS = math.pi - torch.atan(radius_SS * step_B11)
    turn_BSS = torch.remainder(azimuth_SS / (2 * math.pi) + 0.5 - heading_B11 / 360, 1.0)
    v_BSS = (zenith_BSS - math.radians(top_deg)) / math.radians(bottom_deg - top_deg) * height
    grid_y_BSS = 2 * (v_BSS - first_row) / (height - first_row) - 1
    turn_BSS, grid_y_BSS = turn_BSS + torch.zeros_like(grid_y_BSS), grid_y_BSS + torch.zeros_like(turn_BSS)
    x_BSS = turn_BSS * width - 0.5
    strip_x_BSS = torch.where(x_BSS < 0, x_BSS + 1, x_BSS - (width - 1))
    whole = bottom_deg >= 180.0 and top_deg <= 90.0
    return _Look(
        torch.stack([2 * turn_BSS - 1, grid_y_BSS], -1),
        torch.stack([strip_x_BSS - 0.5, grid_y_BSS], -1),
        (x_BSS < 0) | (x_BSS > width - 1),
        None,
        None if whole else _seen(zenith_BSS, zenith_deg),
    )


def _sampled(ground_BCHW: Tensor, look: _Look) -> Tensor:
    """Sample round the seam without a second copy of the images, which would cost more than the sampling itself."""

    def sample(images_BCHW: Tensor, grid_BSS2: Tensor) -> Tensor:
        grid_BSS2 = grid_BSS2.expand(len(images_BCHW), -1, -1, -1)
        return F.grid_sample(images_BCHW, grid_BSS2, padding_mode="border", align_corners=False)

    bev_BCSS = sample(ground_BCHW, look.grid_BSS2)
    strip_BCH2 = torch.cat([ground_BCHW[..., -1:], ground_BCHW[..., :1]], -1)
    if look.seam_BSS is not None:
        return torch.where(look.seam_BSS[:, None], sample(strip_BCH2, look.strip_BSS2), bev_BCSS)
    assert look.seam_K is not None
    if len(look.seam_K):
        flat_BCn = bev_BCSS.flatten(2).index_copy(2, look.seam_K, sample(strip_BCH2, look.strip_BSS2)[:, :, 0])
        bev_BCSS = flat_BCn.reshape(bev_BCSS.shape)
    return bev_BCSS


def _filled(bev_BCSS: Tensor, seen_BSS: Tensor | None) -> Tensor:
    """Give what is not seen the mean color of what is."""
    if seen_BSS is None:
        return bev_BCSS
    weight_B1SS = seen_BSS[:, None].to(bev_BCSS.dtype)
    mean_BC11 = (bev_BCSS * weight_B1SS).sum((2, 3), keepdim=True) / weight_B1SS.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(seen_BSS[:, None], bev_BCSS, mean_BC11)


def _seen(zenith_SS: Tensor, zenith_deg: tuple[float, float]) -> Tensor:
    return (zenith_SS >= math.radians(zenith_deg[0])) & (zenith_SS <= math.radians(zenith_deg[1]))


def _horizon(zenith_deg: tuple[float, float]) -> float:
    """Return the share of the panorama's height above the horizon."""
    top_deg, bottom_deg = zenith_deg
    if not (0.0 <= top_deg < bottom_deg <= 180.0 and bottom_deg > 90.0):
        raise ValueError(
            "zenith_deg must be two growing angles in [0, 180], the second one below the horizon (90), not "
            f"({top_deg}, {bottom_deg})"
        )
    return (90.0 - top_deg) / (bottom_deg - top_deg)


@lru_cache(maxsize=16)
def _plane(side: int, kind: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Return the azimuth of each output pixel and its distance from the centre in pixels, (S, S)."""
    with torch.inference_mode(False):
        center = torch.arange(side, dtype=torch.float64) + 0.5 - side / 2
        south, east = torch.meshgrid(center, center, indexing="ij")
        azimuth, radius = torch.atan2(east, -south), torch.hypot(east, south)
        return azimuth.to(device=device, dtype=kind), radius.to(device=device, dtype=kind)
