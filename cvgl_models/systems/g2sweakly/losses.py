"""Losses on score maps: from pairs alone, from noisy positions, from exact ones.

Shapes: M references, N queries, P x Q places. A distance is ``2 - 2 cosine``, in [0, 4].

Source:
    G2SWeakly (ECCV 2024), equations for the deep metric and the GPS loss; HighlyAccurate for the triplets of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def weak_metric_loss(
    distance_MN: Tensor,
    sharpness: float = 10.0,
    *,
    count_diagonal: bool = False,
    both_ways: bool = False,
    ignore_NM: Tensor | None = None,
) -> Tensor:
    """Return how little nearer each reference is to its own query than to the others, each at its best place.

    ``1 / (M (N - 1)) sum over m, n of ln(1 + exp(sharpness (d_mm - d_mn)))``

    Args:
        distance_MN: Least distance over all places; pair i is made of reference i and query i, so M = N.
        sharpness: Alpha of the paper.
        count_diagonal: Let m = n count too, as the published code does; it adds the constant ln 2 / (N - 1).
        both_ways: Also compare each query's own reference with the other references, and take the mean.
        ignore_NM: True where reference m is no negative of query n.
    """
    if both_ways:
        ways = [
            weak_metric_loss(way_MN, sharpness, count_diagonal=count_diagonal, ignore_NM=ignore)
            for way_MN, ignore in (
                (distance_MN, ignore_NM),
                (distance_MN.T, None if ignore_NM is None else ignore_NM.T),
            )
        ]
        return torch.stack(ways).mean()
    term_MN = F.softplus(sharpness * (distance_MN.diagonal()[:, None] - distance_MN))
    own_MN = torch.eye(len(distance_MN), dtype=torch.bool, device=distance_MN.device)
    counts_MN = torch.ones_like(own_MN) if count_diagonal else ~own_MN
    num = (~own_MN).sum()
    if ignore_NM is not None:
        ignore_MN = ignore_NM.T & ~own_MN
        counts_MN, num = counts_MN & ~ignore_MN, num - ignore_MN.sum()
    return (term_MN * counts_MN).sum() / num.clamp(min=1)


def noisy_position_loss(distance_BPQ: Tensor, index_B2: Tensor, radius_B: Tensor) -> Tensor:
    """Return by how much the least distance near a noisy position exceeds the least of all.

    Args:
        distance_BPQ: Distances of pairs at all places.
        index_B2: (column, row) of the noisy position.
        radius_B: Cells, up and down and to both sides, see `radius_cells`. At least one cell always counts.
    """
    near_BPQ = _offset_cells(distance_BPQ, index_B2).amax(1) <= radius_B[:, None, None].clamp(min=0.5)
    nearby_B = distance_BPQ.masked_fill(~near_BPQ, torch.inf).amin((1, 2))
    return (nearby_B - distance_BPQ.amin((1, 2))).abs().mean()


def radius_cells(error_m: float, cell_size_m_B: Tensor) -> Tensor:
    """Return the cells that an error in metres may amount to.

    Example:
        >>> radius_cells(5.0, torch.tensor([0.14156 * 8])).tolist()
        [5.0]
    """
    return (error_m / cell_size_m_B).ceil()


def exact_position_loss(distance_BPQ: Tensor, index_B2: Tensor, sharpness: float = 10.0) -> Tensor:
    """Return how little nearer the true place is than all others: ``ln(1 + exp(sharpness (d_true - d)))``, averaged.

    Args:
        distance_BPQ: Distances of pairs at all places.
        index_B2: (column, row) of the true place; the nearest cell is taken.
        sharpness: Alpha of the paper.
    """
    rows, columns = distance_BPQ.shape[1:]
    column_B = index_B2[:, 0].round().clamp(0, columns - 1).long()
    row_B = index_B2[:, 1].round().clamp(0, rows - 1).long()
    flat_BN = distance_BPQ.flatten(1)
    true_B1 = flat_BN.gather(1, (row_B * columns + column_B)[:, None])
    term_BN = F.softplus(sharpness * (true_B1 - flat_BN))
    # The true place itself is in the sum with ln 2, a constant that is taken out.
    return (term_BN.sum(1) - F.softplus(torch.zeros_like(true_B1[:, 0]))).mean() / (rows * columns - 1)


def _offset_cells(map_BPQ: Tensor, index_B2: Tensor) -> Tensor:
    """Return how many columns and rows each cell lies away, (B, 2, P, Q); places outside count as at the edge."""
    rows, columns = map_BPQ.shape[1:]
    row_P, column_Q = (torch.arange(size, device=map_BPQ.device) for size in (rows, columns))
    column_B = index_B2[:, 0].clamp(0, columns - 1)
    row_B = index_B2[:, 1].clamp(0, rows - 1)
    down_BPQ = (row_P[None, :, None] - row_B[:, None, None]).abs().expand_as(map_BPQ)
    across_BPQ = (column_Q[None, None, :] - column_B[:, None, None]).abs().expand_as(map_BPQ)
    return torch.stack([across_BPQ, down_BPQ], 1)
