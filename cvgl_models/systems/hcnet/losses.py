"""Losses of HC-Net, and the distribution of the place that it is asked for here besides.

Shapes: B pairs, I iterations, H and W of a map, K cells of the fine map for each cell of the coarse one and side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cvgl_models.geometry.correlation import sample_at
from cvgl_models.geometry.homography import apply_homography, heading_of
from cvgl_models.localization.pose import wrap_deg


def iteration_weights(iterations: int, gamma: float, device: torch.device | None = None) -> Tensor:
    """Return the (I,) weights of the iterations; the last one has 1.

    Example:
        >>> round(float(iteration_weights(6, 0.85).sum()), 6)
        4.152337
    """
    return gamma ** torch.arange(iterations - 1, -1, -1, dtype=torch.float32, device=device)


def position_terms(matrices_IB33: Tensor, camera_B2: Tensor, uv_B2: Tensor, px: float, *, squared: bool) -> Tensor:
    """Return the (I,) errors of the camera's place, mean of both axes, in units of ``px`` pixels (their square)."""
    placed_IB2 = torch.stack([apply_homography(matrix, camera_B2[:, None])[:, 0] for matrix in matrices_IB33])
    error_IB2 = (placed_IB2 - uv_B2.float()) / px
    return (error_IB2.square() if squared else error_IB2.abs()).mean((1, 2))


def heading_terms(matrices_IB33: Tensor, camera_B2: Tensor, arm: float, heading_deg_B: Tensor) -> Tensor:
    """Return the (I,) mean absolute errors of the heading in degrees, the short way round."""
    found_IB = torch.stack([heading_of(matrix, camera_B2, arm) for matrix in matrices_IB33])
    return wrap_deg(found_IB - heading_deg_B.float()).abs().mean(1)


def corner_terms(corners_IB42: Tensor, truth_B42: Tensor, px: float) -> Tensor:
    """Return the (I,) mean absolute errors of the corners in units of ``px`` pixels."""
    return ((corners_IB42 - truth_B42) / px).abs().mean((1, 2, 3))


def place_loss(log_p_BHW: Tensor, place_B2: Tensor) -> Tensor:
    """Return the mean of -log p at places (u, v) in cells, bilinear between the four cells around.

    The first cell's centre is (.5, .5); the published code takes it for 0, half a cell off. A place nearer to the
    edge than the outermost centres counts as there, where the published one counts as found.
    """
    return -sample_at(log_p_BHW[:, None], place_B2.float()).mean()


def place_map(camera_map_BHW: Tensor, place_B2: Tensor, spread_B2: Tensor, finer: int) -> Tensor:
    """Return the log-probabilities of the place on a finer grid, (B, H * K, W * K).

    A mixture: with the probability that the network trusts its homography, a Gaussian about the place it gives;
    otherwise the appearance map. Both parts are densities, so the mixture is calibrated by likelihood alone.

    Args:
        camera_map_BHW: Log-probabilities of coarse cells.
        place_B2: (u, v) in coarse cells.
        spread_B2: Log of the standard deviation in coarse cells, and the logit of trust.
        finer: K.
    """
    _, height, width = camera_map_BHW.shape
    fine_BHW = F.interpolate(camera_map_BHW[:, None], scale_factor=finer, mode="bilinear", align_corners=False)[:, 0]
    appearance_BHW = fine_BHW.flatten(1).log_softmax(1).view_as(fine_BHW)
    v, u = ((torch.arange(size * finer, device=place_B2.device) + 0.5) / finer for size in (height, width))
    away_BHW = (v[:, None] - place_B2[:, 1, None, None]).square() + (u - place_B2[:, 0, None, None]).square()
    # no narrower than half a fine cell, or it could fall between centres
    variance_B11 = (2 * spread_B2[:, 0].clamp(-4, 4)).exp()[:, None, None] + (0.5 / finer) ** 2
    near_BHW = (-away_BHW / (2 * variance_B11)).flatten(1).log_softmax(1).view_as(fine_BHW)
    trust_B11 = spread_B2[:, 1, None, None]
    return torch.logaddexp(F.logsigmoid(trust_B11) + near_BHW, F.logsigmoid(-trust_B11) + appearance_BHW)


def cell_loss(log_p_BHW: Tensor, place_B2: Tensor) -> Tensor:
    """Return the mean of -log p of the cells in which places lie; those outside the map do not count."""
    height, width = log_p_BHW.shape[1:]
    column_B, row_B = place_B2.floor().long().unbind(1)
    inside_B = (column_B >= 0) & (column_B < width) & (row_B >= 0) & (row_B < height)
    flat_B = row_B.clamp(0, height - 1) * width + column_B.clamp(0, width - 1)
    found_B = log_p_BHW.flatten(1).gather(1, flat_B[:, None])[:, 0]
    return -(found_B * inside_B).sum() / inside_B.sum().clamp(min=1)
