"""Targets and losses of CCVPE.

Shapes: B pairs, N bearing bins, H and W of the heat map, h and w of a coarser level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_at(place_B2: Tensor, size: tuple[int, int], sigma_cells: float) -> Tensor:
    """Return (B, H, W) Gaussians of height 1 about places (u, v) in cells, the first cell's centre at (.5, .5)."""
    return _log_gaussian(place_B2, size, sigma_cells).exp()


def position_loss(logits_BHW: Tensor, place_B2: Tensor, sigma_cells: float) -> Tensor:
    """Return the cross-entropy between the heat map and a Gaussian about the true place that sums to 1."""
    size = (logits_BHW.shape[1], logits_BHW.shape[2])
    target_BM = _log_gaussian(place_B2, size, sigma_cells).flatten(1).softmax(1)
    return -(target_BM * logits_BHW.float().flatten(1).log_softmax(1)).sum(1).mean()


def matching_loss(scores_BNhw: Tensor, labels_BNhw: Tensor, temperature: float = 0.1) -> Tensor:
    """Return InfoNCE over all bins and places with soft labels.

    Labels of at most .01 do not count; all others weigh by their value, over the batch as a whole.

    Source:
        CCVPE, equation 4, with the normalization of its code.
    """
    log_q_BM = (scores_BNhw.float().flatten(1) / temperature).log_softmax(1)
    labels_BM = labels_BNhw.float().flatten(1)
    labels_BM = labels_BM * (labels_BM > 0.01)
    return -(labels_BM * log_q_BM).sum() / labels_BM.sum().clamp(min=1e-6)


def direction_loss(direction_B2HW: Tensor, heading_deg_B: Tensor, weight_BHW: Tensor) -> Tensor:
    """Return the squared error of (cos, sin) of the heading, averaged with weights.

    The published loss is the weighted sum over pixels: about 100 times this, with its Gaussian of 4 pixels.
    """
    truth_B2 = torch.stack([heading_deg_B.deg2rad().cos(), heading_deg_B.deg2rad().sin()], 1)
    error_BHW = (direction_B2HW.float() - truth_B2[:, :, None, None].float()).square().sum(1)
    return (error_BHW * weight_BHW).sum() / weight_BHW.sum().clamp(min=1e-6)


def level_labels(place_BHW: Tensor, shares_BN: Tensor, factor: int) -> Tensor:
    """Return the (B, N, h, w) labels of a level whose cells are ``factor`` times those of the heat map.

    The maximum over each cell of a Gaussian, times the bin's share.
    """
    pooled_BHW = F.max_pool2d(place_BHW[:, None], factor)[:, 0]
    return shares_BN[:, :, None, None] * pooled_BHW[:, None]


def _log_gaussian(place_B2: Tensor, size: tuple[int, int], sigma_cells: float) -> Tensor:
    height, width = size
    u = torch.arange(width, device=place_B2.device) + 0.5
    v = torch.arange(height, device=place_B2.device) + 0.5
    east_BW = (u - place_B2[:, :1].float()).square()
    south_BH = (v - place_B2[:, 1:].float()).square()
    return -(south_BH[:, :, None] + east_BW[:, None]) / (2 * sigma_cells**2)
