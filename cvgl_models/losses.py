"""Losses of cross-view retrieval.

Shapes: B pairs in a batch, D embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_LOGIT_SCALE = math.log(100.0)


class SymmetricInfoNCE(nn.Module):
    """Cross-entropy over the batch in both directions, with a learned temperature.

    The published code leaves the scale free; here it is kept at or below 100, as CLIP does, or it can run away.

    Args:
        label_smoothing: Share of the target spread evenly over the batch.
        logit_scale: Natural logarithm of the initial scale; the default is 1 / 0.07.

    Source:
        Sample4Geo, equation 1; CLIP for the bound.
    """

    def __init__(self, label_smoothing: float = 0.1, logit_scale: float = math.log(1 / 0.07)) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))

    def forward(self, query_BD: Tensor, reference_BD: Tensor, ignore_BB: Tensor | None = None) -> Tensor:
        """Return the mean loss; pair i is made of query i and reference i.

        Args:
            query_BD: Embeddings of any length; they are normalized here.
            reference_BD: Embeddings.
            ignore_BB: True where reference j is no negative of query i, because it is a semi-positive.
        """
        with torch.no_grad():  # in place, so that the gradient can bring the scale down again
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        query_BD = nn.functional.normalize(query_BD.float(), dim=1)
        reference_BD = nn.functional.normalize(reference_BD.float(), dim=1)
        logits_BB = self.logit_scale.exp() * query_BD @ reference_BD.T
        if ignore_BB is None:
            ignore_BB = torch.zeros_like(logits_BB, dtype=torch.bool)
        keep_BB = ~ignore_BB | torch.eye(len(logits_BB), dtype=torch.bool, device=logits_BB.device)
        to_reference = _smooth_cross_entropy(logits_BB, keep_BB, self.label_smoothing)
        to_query = _smooth_cross_entropy(logits_BB.T, keep_BB.T, self.label_smoothing)
        return (to_reference + to_query) / 2


def _smooth_cross_entropy(logits_BB: Tensor, keep_BB: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy with the diagonal as target; smoothing is spread over what is kept, not over what is ignored."""
    log_p_BB = logits_BB.masked_fill(~keep_BB, -torch.inf).log_softmax(1)
    target_B = log_p_BB.diagonal()
    evenly_B = log_p_BB.masked_fill(~keep_BB, 0.0).sum(1) / keep_BB.sum(1)
    return -((1 - label_smoothing) * target_B + label_smoothing * evenly_B).mean()


class SoftMarginTriplet(nn.Module):
    """Soft-margin triplet loss of all triplets in the batch, in both directions.

    A triplet's term is ``ln(1 + exp(scale * (d_positive - d_negative)))`` of the squared distances of unit vectors,
    which lie in [0, 4]. In each direction the largest ``share`` of the B (B - 1) terms is averaged.

    Args:
        scale: How hard the margin is.
        share: Of the terms, rounded down, but at least one; 1 is exhaustive mining.

    Source:
        Hu et al., "CVM-Net", equation 4; Shi et al., "Spatial-Aware Feature Aggregation", for both directions.
    """

    def __init__(self, scale: float = 10.0, share: float = 1.0) -> None:
        super().__init__()
        self.scale, self.share = scale, share

    def forward(self, query_BD: Tensor, reference_BD: Tensor, ignore_BB: Tensor | None = None) -> Tensor:
        """Return the mean of both directions; pair i is made of query i and reference i.

        Args:
            query_BD: Embeddings of any length; they are normalized here.
            reference_BD: Embeddings.
            ignore_BB: True, or 1, where reference j is no negative of query i, because it is a semi-positive; a number
                between makes it as much less of a negative.
        """
        query_BD = nn.functional.normalize(query_BD.float(), dim=1)
        reference_BD = nn.functional.normalize(reference_BD.float(), dim=1)
        with torch.autocast(query_BD.device.type, enabled=False):  # products of half precision are too coarse
            return self.of_distances(2 - 2 * query_BD @ reference_BD.T, ignore_BB)

    def of_distances(self, distance_BB: Tensor, ignore_BB: Tensor | None = None) -> Tensor:
        """Return the loss of squared distances, queries in rows."""
        negative_BB = 1 - torch.eye(len(distance_BB), dtype=distance_BB.dtype, device=distance_BB.device)
        if ignore_BB is not None:
            negative_BB = negative_BB * (1 - ignore_BB.to(distance_BB.dtype))
        own_B = distance_BB.diagonal()
        to_reference_BB = nn.functional.softplus(self.scale * (own_B[:, None] - distance_BB))
        to_query_BB = nn.functional.softplus(self.scale * (own_B[None] - distance_BB))
        return (self._mean(to_reference_BB, negative_BB) + self._mean(to_query_BB, negative_BB)) / 2

    def _mean(self, term_BB: Tensor, weight_BB: Tensor) -> Tensor:
        """Return the mean of the largest terms; how many there are is not waited for on an accelerator."""
        weighted_N = (term_BB * weight_BB).flatten().sort(descending=True).values
        count = mined(self.share, (weight_BB > 0).sum())
        place_N = torch.arange(len(weighted_N), device=weighted_N.device)
        return torch.where(place_N < count, weighted_N, 0.0).sum() / count


def mined(share: float, num_terms: Tensor) -> Tensor:
    """Return how many of some terms are the hardest ``share`` of them, at least one; an integer tensor.

    Example:
        >>> [int(mined(share, torch.tensor(32 * 31))) for share in (1.0, 0.1, 0.05, 0.01)]
        [992, 99, 49, 9]
    """
    return (num_terms.double() * share).floor().long().clamp(min=1)
