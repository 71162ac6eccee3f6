"""A network that reads the heading of a query off its ground and a reference that shows the place.

Shapes: B pairs, K bins of bearing, S x S cells of the ground and of the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.backbones.pyramids import FeaturePyramid
from cvgl_models.geometry.ground import ground_from_panorama, ground_from_pinhole
from cvgl_models.localization.pose import wrap_deg
from cvgl_models.recipe import EncoderRecipe, ViewRecipe
from cvgl_models.transforms import Batch


class Bins:
    """Equal bins of bearing, [-half_width_deg, half_width_deg); closed to a ring if that is 180.

    Args:
        count: K.
        half_width_deg: Of the range.
    """

    def __init__(self, count: int, half_width_deg: float) -> None:
        self.count, self.half_width_deg = count, half_width_deg
        self.step_deg = 2 * half_width_deg / count
        self.is_ring = half_width_deg == 180

    def soft_labels(self, angle_deg_B: Tensor, sigma_bins: float = 1.0) -> Tensor:
        """Return a Gaussian about each angle over the bins' centres, normalized, (B, K)."""
        away_BK = self._index(angle_deg_B)[:, None] - torch.arange(self.count, device=angle_deg_B.device)
        if self.is_ring:
            away_BK = torch.remainder(away_BK + self.count / 2, self.count) - self.count / 2
        return (-0.5 * (away_BK / sigma_bins).square()).softmax(1)

    def decode(self, logits_BK: Tensor, neighbors: int = 2) -> Tensor:
        """Return the mean angle of the most probable bin and its neighbors, degrees (B,).

        Where there are no neighbors on one side, at the end of a range, as many are left out on the other side.
        """
        logits_BK = logits_BK.float()
        best_B = logits_BK.argmax(1)
        off_J = torch.arange(-neighbors, neighbors + 1, device=logits_BK.device)
        index_BJ = best_B[:, None] + off_J
        if self.is_ring:
            near_BJ = logits_BK.gather(1, torch.remainder(index_BJ, self.count))
        else:
            room_B = torch.minimum(best_B, self.count - 1 - best_B)
            near_BJ = logits_BK.gather(1, index_BJ.clamp(0, self.count - 1))
            near_BJ = near_BJ.masked_fill(off_J.abs() > room_B[:, None], -torch.inf)
        mean_B = best_B + (near_BJ.softmax(1) * off_J).sum(1)
        return wrap_deg((mean_B + 0.5) * self.step_deg - self.half_width_deg)

    def _index(self, angle_deg_B: Tensor) -> Tensor:
        return (angle_deg_B.float() + self.half_width_deg) / self.step_deg - 0.5


class OrientationNetwork(nn.Module):
    """Two encoders, one convolution over both last maps, and a classifier of the bearing.

    Args:
        encoder: ``backbone`` is a name of `FeaturePyramid`; ``pretrained``.
        views: Sizes and the camera's height.
        bins: Of the bearing relative to what is known of it.
        hidden: Width of the classifier.
        ground_share: Side of the ground that is seen, as a share of the reference's.

    Source:
        GeoDistill (ICCV 2025), 3.6; here the ground has the reference's scale, and labels and decoding are those of the
        bins' centres.
    """

    def __init__(
        self, encoder: EncoderRecipe, views: ViewRecipe, bins: Bins, hidden: int = 1024, ground_share: float = 0.5
    ) -> None:
        super().__init__()
        self.bins, self._height_m, self._ground_share = bins, views.camera_height_m, ground_share
        side = views.reference_px
        self.ground, self.reference = (
            FeaturePyramid(encoder.backbone, 32, pretrained=encoder.pretrained, image_size=(side, side))
            for _ in range(2)
        )
        channels = self.reference.channels[32]
        self.joined = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.classify = nn.Sequential(
            nn.Linear(channels * (-(-side // 32)) ** 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden // 2),
            nn.ReLU(),
            nn.Linear(hidden // 2, bins.count),
        )

    def forward(self, batch: Batch, center_deg_B: Tensor) -> Tensor:
        """Return logits (B, K) of the heading relative to ``center_deg_B``."""
        side = batch.reference.shape[-1]
        cell_m_B = batch.gsd_m.float() * self._ground_share
        if batch.camera_B33 is None:
            ground = ground_from_panorama(batch.query, side, cell_m_B, self._height_m, center_deg_B)
        else:
            image_px = (batch.query.shape[-2], batch.query.shape[-1])
            ground, _ = ground_from_pinhole(
                batch.query, image_px, batch.camera_B33, side, cell_m_B, self._height_m, center_deg_B
            )
        maps = torch.cat([self.ground(ground)[32], self.reference(batch.reference)[32]], 1)
        logits: Tensor = self.classify(self.joined(maps).flatten(1))
        return logits

    def loss(self, batch: Batch, center_deg_B: Tensor) -> Tensor:
        """Return the cross-entropy with soft labels of ``batch.heading_deg``."""
        labels_BK = self.bins.soft_labels(wrap_deg(batch.heading_deg - center_deg_B))
        return F.cross_entropy(self(batch, center_deg_B).float(), labels_BK)
