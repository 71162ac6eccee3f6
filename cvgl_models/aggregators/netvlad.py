"""NetVLAD: what is left of features after their nearest visual word is taken away, summed per word."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.aggregators import Aggregator, require_positive

_SECOND_SHARE = 0.01  # of a feature's assignment to its second word over that to its first, on average, at the start


class NetVLAD(Aggregator):
    """Soft assignment of each place to K words and the sums of differences to them, each normalized; D = K * channels.

    The words are random until `init_from` is given descriptors, without which it learns badly.

    Args:
        in_channels: C.
        grid: Not used.
        num_clusters: K.
        channels: A 1x1 convolution makes so many channels first; 0: none.

    Raises:
        ValueError: If ``num_clusters`` is less than 2 or ``channels`` negative.

    Source:
        Arandjelovic et al., "NetVLAD", equations 4 and 5 (without the biases); its supplement for the initial
        scale.
    """

    def __init__(self, in_channels: int, grid: tuple[int, int], num_clusters: int = 64, channels: int = 128) -> None:
        super().__init__()
        require_positive(channels=channels + 1)
        if num_clusters < 2:
            raise ValueError(f"num_clusters must be at least 2, not {num_clusters}")
        self.project = nn.Conv2d(in_channels, channels, 1, bias=False) if channels else nn.Identity()
        channels = channels or in_channels
        self.num_features = num_clusters * channels
        words_KC = F.normalize(torch.randn(num_clusters, channels), dim=1)
        self.centroids = nn.Parameter(words_KC.clone())
        self.assign = nn.Parameter(-math.log(_SECOND_SHARE) * words_KC)

    def forward(self, map_BChw: Tensor, class_BC: Tensor | None = None) -> Tensor:
        """Return (B, D), the word the slowest index."""
        features_BCn = F.normalize(self.project(map_BChw).float(), dim=1).flatten(2)
        with torch.autocast(features_BCn.device.type, enabled=False):
            share_BKn = (self.assign.float() @ features_BCn).softmax(1)
            summed_BKC = share_BKn @ features_BCn.transpose(1, 2)
            residual_BKC = summed_BKC - share_BKn.sum(2, keepdim=True) * self.centroids.float()
        return F.normalize(residual_BKC, dim=2).flatten(1)

    @torch.no_grad()
    def descriptors(self, map_BChw: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
        """Return (B * n, channels) unit vectors of at most ``per_image`` random places of each map."""
        features_BCn = F.normalize(self.project(map_BChw).float(), dim=1).flatten(2)
        size, channels, num_places = features_BCn.shape
        order_Bn = torch.rand(size, num_places, generator=generator).argsort(1)[:, :per_image].to(features_BCn.device)
        chosen = features_BCn.gather(2, order_Bn[:, None].expand(-1, channels, -1))
        return chosen.transpose(1, 2).reshape(-1, channels)

    @torch.no_grad()
    def init_from(self, descriptors_NC: Tensor, seed: int = 0) -> None:
        """Set the words by k-means, and the scale so that a second word has a hundredth of the first, on average.

        Args:
            descriptors_NC: Some ten thousand unit vectors, as `descriptors` returns them.
            seed: Of the k-means.

        Raises:
            ValueError: If there are fewer distinct descriptors than words.
        """
        words_KC = kmeans(descriptors_NC, len(self.centroids), seed)
        directions_KC = F.normalize(words_KC, dim=1)
        best_N2 = (descriptors_NC.float() @ directions_KC.T).topk(2, 1).values
        gap = (best_N2[:, 0] - best_N2[:, 1]).mean().clamp(min=1e-6)
        self.centroids.copy_(words_KC)
        self.assign.copy_(-math.log(_SECOND_SHARE) / gap * directions_KC)


@torch.no_grad()
def kmeans(points_NC: Tensor, num_clusters: int, seed: int = 0, max_rounds: int = 100) -> Tensor:
    """Return (K, C) float32 means of clusters, by Lloyd's rounds from a k-means++ start; equal seeds, equal result.

    Args:
        points_NC: Points.
        num_clusters: K.
        seed: Of the start.
        max_rounds: Stop after so many rounds, if assignments still change.

    Raises:
        ValueError: If there are fewer distinct points than clusters, or a point is not finite.
    """
    points_NC = points_NC.float()
    if not bool(points_NC.isfinite().all()):
        raise ValueError("some descriptors are not finite")
    generator = torch.Generator().manual_seed(seed)
    nearest_N = torch.full((len(points_NC),), math.inf, device=points_NC.device)
    chosen: list[int] = []
    for _ in range(num_clusters):
        weight_N = nearest_N.cpu().double() if chosen else torch.ones(len(points_NC), dtype=torch.double)
        if float(weight_N.sum()) <= 0:
            raise ValueError(f"{num_clusters} clusters need as many distinct descriptors, found {len(chosen)}")
        chosen.append(int(torch.searchsorted(weight_N.cumsum(0), _uniform(generator) * weight_N.sum(), right=True)))
        nearest_N = torch.minimum(nearest_N, (points_NC - points_NC[chosen[-1]]).square().sum(1))
    centers_KC = points_NC[chosen].clone()
    assigned_N = torch.full((len(points_NC),), -1, device=points_NC.device)
    for _ in range(max_rounds):
        distance_NK = torch.cdist(points_NC, centers_KC)
        closest_N = distance_NK.argmin(1)
        if torch.equal(closest_N, assigned_N):
            break
        assigned_N = closest_N
        member_NK = F.one_hot(assigned_N, num_clusters).float()
        count_K1 = member_NK.sum(0)[:, None]
        centers_KC = torch.where(count_K1 > 0, member_NK.T @ points_NC / count_K1.clamp(min=1), centers_KC)
    return centers_KC


def _uniform(generator: torch.Generator) -> Tensor:
    return torch.rand((), generator=generator, dtype=torch.double)
