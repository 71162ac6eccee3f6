"""From a score map to a place in metres: one decoder for all systems, without their half-cell errors.

Shapes: B maps of H rows and W columns. The place of index (row, column) is ``(column - origin column, row - origin
row)`` cells right and down of the reference's centre. A score that is NaN counts as -inf; a map without any finite
score has no place, and its result is NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ONE_CELL = math.sqrt(0.95 / math.pi)
"""Radius, in cells, of the circle with 95 % of the area of a cell."""
_BINS_PER_CELL = 4
_PLATEAU = 3  # cells


def decode_peak(
    score_map_BHW: Tensor, cell_size_m_B: Tensor, origin: tuple[float, float], *, refine: bool = True
) -> Tensor:
    """Return the place of the highest score; of equal ones side by side, as rounding makes them, the middle one.

    Args:
        score_map_BHW: Scores; refinement is exact where they are quadratic around the peak, as log-probabilities of a
            Gaussian are.
        cell_size_m_B: Metres per cell.
        origin: Index (row, column) of the reference's centre.
        refine: Go to the top of the paraboloid through the 3x3 cells around the peak, by at most one cell each way;
            at the edge of the map, along it only.

    Returns:
        (B, 2) float32 metres right and down of the centre.
    """
    score_map_BHW = _known(score_map_BHW)
    row_B, column_B, is_known_B = _peak(score_map_BHW)
    row_B, column_B = _middle(score_map_BHW, row_B, column_B)
    index_B2 = torch.stack([column_B, row_B], 1).double()
    if refine:
        index_B2 = index_B2 + _subcell(score_map_BHW, row_B, column_B)
    return _place_m(index_B2, cell_size_m_B, origin, is_known_B)


def decode_mean(
    score_map_BHW: Tensor,
    cell_size_m_B: Tensor,
    origin: tuple[float, float],
    *,
    temperature: float = 1.0,
    radius_cells: int | None = None,
) -> Tensor:
    """Return the mean place under the softmax of a map: differentiable, but between two peaks where there are two.

    Args:
        score_map_BHW: Scores.
        cell_size_m_B: Metres per cell.
        origin: Index (row, column) of the reference's centre.
        temperature: Scores are divided by it first.
        radius_cells: Only cells so near to the highest score count, by row and by column; None: all.

    Returns:
        (B, 2) float32 metres right and down of the centre.
    """
    score_map_BHW = _known(score_map_BHW)
    row_B, column_B, is_known_B = _peak(score_map_BHW)
    row_H, column_W = (torch.arange(size, device=score_map_BHW.device) for size in score_map_BHW.shape[1:])
    if radius_cells is not None:
        is_near_BHW = ((row_H - row_B[:, None]).abs() <= radius_cells)[:, :, None] & (
            (column_W - column_B[:, None]).abs() <= radius_cells
        )[:, None, :]
        score_map_BHW = score_map_BHW.masked_fill(~is_near_BHW, -torch.inf)
    share_BHW = _probability(score_map_BHW / temperature, is_known_B).double()
    mean_B2 = torch.stack([share_BHW.sum(1) @ column_W.double(), share_BHW.sum(2) @ row_H.double()], 1)
    return _place_m(mean_B2, cell_size_m_B, origin, is_known_B)


def radius95(
    score_map_BHW: Tensor, cell_size_m_B: Tensor, origin: tuple[float, float], xy_m_B2: Tensor, share: float = 0.95
) -> Tensor:
    """Return the radius in metres of the circle about a place that holds 95 % of the softmax of the map.

    It is known to a quarter of a cell, rounded up, and never less than it takes to hold so much of a single cell.

    Args:
        score_map_BHW: Log-probabilities up to a constant.
        cell_size_m_B: Metres per cell.
        origin: Index (row, column) of the reference's centre.
        xy_m_B2: Centre of the circle, in the map or not much farther from it than it is wide.
        share: Another share than 95 %.

    Returns:
        (B,) float32; NaN where there is no place.
    """
    score_map_BHW = _known(score_map_BHW)
    is_known_B = score_map_BHW.flatten(1).isfinite().any(1) & xy_m_B2.isfinite().all(1)
    share_BN = _probability(score_map_BHW, is_known_B).flatten(1)
    height, width = score_map_BHW.shape[1:]
    at_B2 = (xy_m_B2 / cell_size_m_B[:, None]).nan_to_num(0.0).to(share_BN)
    rows_H, columns_W = (torch.arange(size, device=share_BN.device, dtype=share_BN.dtype) for size in (height, width))
    row_BH = rows_H - origin[0] - at_B2[:, 1:]
    column_BW = columns_W - origin[1] - at_B2[:, :1]
    away_BN = torch.hypot(row_BH[:, :, None], column_BW[:, None, :]).flatten(1)
    # to the nearest thousandth of a bin first, so that rounding does not decide where a cell on a bin's edge belongs
    bin_BN = (away_BN * _BINS_PER_CELL - 1e-3).ceil().long().clamp(min=0)
    num_bins = int((height + width) * _BINS_PER_CELL * 2)  # places may lie outside the map
    mass_BK = share_BN.new_zeros(len(share_BN), num_bins + 1)
    mass_BK.scatter_add_(1, bin_BN.clamp(max=num_bins), share_BN)
    inside_BK = mass_BK.double().cumsum(1)
    first_B = (inside_BK < share * (1 - 1e-6)).sum(1).clamp(max=num_bins)
    radius_B = (first_B.float() / _BINS_PER_CELL).clamp(min=_ONE_CELL * math.sqrt(share / 0.95))
    return (radius_B * cell_size_m_B.float()).masked_fill(~is_known_B, torch.nan)


def log_density(score_map_BHW: Tensor, cell_size_m_B: Tensor, origin: tuple[float, float], xy_m_B2: Tensor) -> Tensor:
    """Return the logarithm of the probability density, per square metre, that a map gives to a place.

    Args:
        score_map_BHW: Log-probabilities up to a constant.
        cell_size_m_B: Metres per cell.
        origin: Index (row, column) of the reference's centre.
        xy_m_B2: The place; the cell in which it lies counts.

    Returns:
        (B,) float64; -inf where it lies outside the map or the map says nothing.
    """
    score_map_BHW = _known(score_map_BHW)
    is_known_B = score_map_BHW.flatten(1).isfinite().any(1)
    height, width = score_map_BHW.shape[1:]
    index_B2 = xy_m_B2.double() / cell_size_m_B.double()[:, None]
    column_B = (index_B2[:, 0] + origin[1] + 0.5).floor().nan_to_num(-1)
    row_B = (index_B2[:, 1] + origin[0] + 0.5).floor().nan_to_num(-1)
    is_inside_B = (column_B >= 0) & (column_B < width) & (row_B >= 0) & (row_B < height) & is_known_B
    flat_B = (row_B * width + column_B).where(is_inside_B, torch.zeros_like(row_B)).long()
    scores_BN = score_map_BHW.double().flatten(1)
    cell_B = scores_BN.gather(1, flat_B[:, None])[:, 0] - scores_BN.logsumexp(1)
    return torch.where(is_inside_B, cell_B - 2 * cell_size_m_B.double().log(), -torch.inf)


def _known(score_map_BHW: Tensor) -> Tensor:
    score_map_BHW = score_map_BHW.float()
    return torch.where(score_map_BHW.isnan(), -torch.inf, score_map_BHW)


def _peak(score_map_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row and column of the highest score, and whether there is one."""
    best_B, flat_B = score_map_BHW.flatten(1).max(1)
    width = score_map_BHW.shape[-1]
    return torch.div(flat_B, width, rounding_mode="floor"), flat_B % width, best_B.isfinite()


def _middle(score_map_BHW: Tensor, row_B: Tensor, column_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middle one of the cells near the first highest that score the same.

    Scores of 16 bits have such plateaus, and their first cell would be off to the top left.
    """
    patch_Bkk = _patch(score_map_BHW, row_B, column_B, _PLATEAU)
    is_equal_Bkk = patch_Bkk == patch_Bkk[:, _PLATEAU : _PLATEAU + 1, _PLATEAU : _PLATEAU + 1]
    step_k = torch.arange(-_PLATEAU, _PLATEAU + 1, device=row_B.device)
    num_B = is_equal_Bkk.sum((1, 2)).clamp(min=1)
    down_B = (is_equal_Bkk.sum(2) * step_k).sum(1) / num_B
    right_B = (is_equal_Bkk.sum(1) * step_k).sum(1) / num_B
    away_Bkk = (step_k - down_B[:, None])[:, :, None] ** 2 + (step_k - right_B[:, None])[:, None, :] ** 2
    best_B = away_Bkk.masked_fill(~is_equal_Bkk, torch.inf).flatten(1).argmin(1)
    size = 2 * _PLATEAU + 1
    return row_B + torch.div(best_B, size, rounding_mode="floor") - _PLATEAU, column_B + best_B % size - _PLATEAU


def _patch(score_map_BHW: Tensor, row_B: Tensor, column_B: Tensor, reach: int) -> Tensor:
    """Return the cells about one of each map, (B, k, k) float64, -inf beyond the edge."""
    height, width = score_map_BHW.shape[1:]
    step_k = torch.arange(-reach, reach + 1, device=score_map_BHW.device)
    rows_Bk1, columns_B1k = (row_B[:, None] + step_k)[:, :, None], (column_B[:, None] + step_k)[:, None, :]
    is_inside_Bkk = (rows_Bk1 >= 0) & (rows_Bk1 < height) & (columns_B1k >= 0) & (columns_B1k < width)
    batch_B11 = torch.arange(len(row_B), device=row_B.device)[:, None, None]
    patch_Bkk = score_map_BHW[batch_B11, rows_Bk1.clamp(0, height - 1), columns_B1k.clamp(0, width - 1)].double()
    return patch_Bkk.masked_fill(~is_inside_Bkk, -torch.inf)


def _probability(score_map_BHW: Tensor, is_known_B: Tensor) -> Tensor:
    """Return the softmax over each map, zeros where nothing is known."""
    safe_BHW = torch.where(is_known_B[:, None, None], score_map_BHW, torch.zeros_like(score_map_BHW))
    share_BHW = safe_BHW.flatten(1).softmax(1).view_as(score_map_BHW)
    return share_BHW * is_known_B[:, None, None]


def _place_m(index_B2: Tensor, cell_size_m_B: Tensor, origin: tuple[float, float], is_known_B: Tensor) -> Tensor:
    away_B2 = torch.stack([index_B2[:, 0].double() - origin[1], index_B2[:, 1].double() - origin[0]], 1)
    place_m_B2 = (away_B2 * cell_size_m_B.double()[:, None]).float()
    return torch.where(is_known_B[:, None], place_m_B2, torch.nan)


def _subcell(score_map_BHW: Tensor, row_B: Tensor, column_B: Tensor) -> Tensor:
    """Return how far right and down of the peak's cell the top of the paraboloid through the 3x3 cells lies, (B, 2).

    Both slopes and curvatures are central differences. The mixed one is that of the four quadrants, each weighted by
    how much of the top lies there: so a top right between two or four equal cells, or in line with the peak's cell, is
    found exactly, whatever its shape.
    """
    patch_B33 = _patch(score_map_BHW, row_B, column_B, 1)
    center_B = patch_B33[:, 1, 1]
    slope_u, bend_u = _differences(patch_B33[:, 1, 0], center_B, patch_B33[:, 1, 2])
    slope_v, bend_v = _differences(patch_B33[:, 0, 1], center_B, patch_B33[:, 2, 1])
    weight_B33 = _leaning(slope_v, bend_v)[:, :, None] * _leaning(slope_u, bend_u)[:, None, :]
    bow_B33 = patch_B33 - patch_B33[:, 1:2, :] - patch_B33[:, :, 1:2] + center_B[:, None, None]
    sign_3 = torch.arange(-1, 2, device=bow_B33.device, dtype=bow_B33.dtype)
    mixed_B = (weight_B33 * sign_3[:, None] * sign_3 * bow_B33)[:, ::2, ::2].sum((1, 2))
    is_alone_B = (bend_u == 0) | (bend_v == 0) | ~mixed_B.isfinite()  # nothing to turn against
    mixed_B = mixed_B.masked_fill(is_alone_B, 0.0)
    determinant_B = bend_u * bend_v - mixed_B**2
    is_top_B = determinant_B > 1e-3 * bend_u * bend_v  # else a ridge: each direction on its own
    mixed_B = torch.where(is_top_B, mixed_B, torch.zeros_like(mixed_B))
    determinant_B = bend_u * bend_v - mixed_B**2
    safe_B = torch.where(determinant_B > 0, determinant_B, torch.ones_like(determinant_B))
    both_B2 = torch.stack(
        [(mixed_B * slope_v - bend_v * slope_u) / safe_B, (mixed_B * slope_u - bend_u * slope_v) / safe_B], 1
    )
    single_B2 = torch.stack([_top(slope_u, bend_u), _top(slope_v, bend_v)], 1)
    found_B2 = torch.where((determinant_B > 0)[:, None], both_B2, single_B2)
    return found_B2.nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 1.0)


def _differences(before_B: Tensor, here_B: Tensor, after_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and curvature, both 0 where a neighbor is missing or the three are level."""
    slope_B, bend_B = (after_B - before_B) / 2, after_B - 2 * here_B + before_B
    is_usable_B = slope_B.isfinite() & bend_B.isfinite() & (bend_B < 0)
    return slope_B.where(is_usable_B, torch.zeros_like(slope_B)), bend_B.where(is_usable_B, torch.zeros_like(bend_B))


def _leaning(slope_B: Tensor, bend_B: Tensor) -> Tensor:
    """Return the weights of the cells before, at and after the peak: the sides are even at 0, at half a cell it is one.

    The middle one is not used.
    """
    lean_B = (2 * _top(slope_B, bend_B)).clamp(-1.0, 1.0)
    return torch.stack([(1 - lean_B) / 2, torch.zeros_like(lean_B), (1 + lean_B) / 2], 1)


def _top(slope_B: Tensor, bend_B: Tensor) -> Tensor:
    return torch.where(bend_B < 0, -slope_B / bend_B.where(bend_B < 0, -torch.ones_like(bend_B)), 0.0)
