"""The network of CCVPE: two encoders, a decoder for the place that matches again at every level, one for the heading.

Shapes: B pairs, N bearing bins, R columns of a ring, W columns of the query, C channels of a column, H and W of the
heat map, h and w of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_models.backbones.pyramids import FeaturePyramid
from cvgl_models.systems.ccvpe.matching import Ring, columns_by_azimuth, ring_scores


@dataclass(frozen=True, slots=True)
class Matches:
    """What the network says of a batch."""

    volumes: list[Tensor]
    """(B, N, h, w) cosines of each level, the coarsest first."""
    logits_BHW: Tensor
    direction_B2HW: Tensor
    """(cos, sin) of the heading, of unit length."""


class QueryDescriptors(nn.Module):
    """Rings of the query for every level: channels reduced, rows summed up with learned weights.

    Args:
        inputs: Channels of the encoder's last map.
        rows: Rows of that map.
        channels: C of each level.
        ring: Bins and columns.
    """

    def __init__(self, inputs: int, rows: int, channels: Sequence[int], ring: Ring) -> None:
        super().__init__()
        self.ring = ring
        self.reduce = nn.ModuleList(nn.Conv2d(inputs, count, 1) for count in channels)
        self.rows = nn.ParameterList(nn.Parameter(torch.full((rows,), 1 / rows)) for _ in channels)

    def forward(self, map_BChw: Tensor) -> list[Tensor]:
        """Return (B, W, C) of each level."""
        found = []
        for reduce, rows in zip(self.reduce, self.rows, strict=True):
            found.append(torch.einsum("bchw,h->bwc", reduce(map_BChw).float(), rows.float()))
        return found


class PoseNetwork(nn.Module):
    """Both encoders and both decoders.

    Args:
        query: Encoder of the query.
        reference: Encoder of the reference.
        query_rows: Rows of the query's last map.
        ring: Bins and columns.
        channels: C of each level, the coarsest first.
        head: Channels of both encoders' last layer.
        direction_channels: Of the heading's decoder after each doubling.
    """

    def __init__(
        self, query: FeaturePyramid, reference: FeaturePyramid, query_rows: int, ring: Ring, channels: Sequence[int],
        head: int, direction_channels: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.ring, self.query, self.reference = ring, query, reference
        sizes = [ring.num_columns * count for count in channels]  # so that the ring closes at every level
        self.query_stride, coarsest = max(query.channels), max(reference.channels)
        self.query_head = nn.Sequential(*_conv(query.channels[self.query_stride], head, 1))
        self.reference_head = nn.Sequential(*_conv(reference.channels[coarsest], head, 1))
        self.reference_ring = nn.Conv2d(head, sizes[0], 2, 2)
        self.descriptors = QueryDescriptors(head, query_rows, channels, ring)
        self.skips = [coarsest >> level for level in range(len(channels))]
        skips = [reference.channels.get(stride, 0) for stride in self.skips]
        places = [*zip(sizes, skips, [*sizes[1:], 16], strict=True)]
        self.place = nn.ModuleList(_Doubling(1 + size, skip, outputs) for size, skip, outputs in places[:-1])
        self.place_last = _Doubling(1 + sizes[-1], 0, 16)
        self.place_logits = nn.Conv2d(16, 1, 1)
        turns = [ring.num_bins + sizes[0], *direction_channels]
        self.direction = nn.ModuleList(
            _Doubling(inputs, skip, outputs)
            for (inputs, outputs), skip in zip(pairwise(turns), [*skips[:-1], 0], strict=True)
        )
        self.direction_last = nn.Conv2d(turns[-1], 2, 1)

    def describe(
        self, query: Tensor, camera_B33: Tensor | None, mask_B1hw: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the query's rings of every level and how much each column counts, (B, W)."""
        map_BChw = self.query_head(self.query(query)[self.query_stride])
        weight_BW = map_BChw.new_ones(len(query), map_BChw.shape[3])
        if mask_B1hw is not None:
            mask_B1hw = F.adaptive_avg_pool2d(mask_B1hw.to(map_BChw.dtype), map_BChw.shape[2:])
            map_BChw, weight_BW = map_BChw * mask_B1hw, mask_B1hw.mean((1, 2))
        if camera_B33 is not None:
            seen_W, fov_deg = self.ring.num_seen, self.ring.fov_deg
            packed = torch.cat([map_BChw, weight_BW[:, None, None].expand(-1, 1, map_BChw.shape[2], -1)], 1)
            packed, _ = columns_by_azimuth(packed, camera_B33, query.shape[-1], seen_W, fov_deg)
            map_BChw, weight_BW = packed[:, :-1], packed[:, -1, 0]
        return self.descriptors(map_BChw), weight_BW

    def forward(
        self, query: Tensor, reference: Tensor, *, allowed_BN: Tensor | None = None,
        camera_B33: Tensor | None = None, mask_B1hw: Tensor | None = None,
    ) -> Matches:  # fmt: skip
        """Match a batch.

        Args:
            query: (B, 3, height, width) in [0, 1].
            reference: (B, 3, S, S).
            allowed_BN: Bins the place may be found with; the volumes have all.
            camera_B33: Intrinsics, if the queries are pinhole pictures.
            mask_B1hw: What of the queries counts, 0 to 1, at any size.
        """
        rings, weight_BW = self.describe(query, camera_B33, mask_B1hw)
        maps = self.reference(reference)
        map_BDhw = self.reference_ring(self.reference_head(maps[max(maps)]))
        volumes: list[Tensor] = []
        direction = None
        for level, ring_BWC in enumerate(rings):
            volume_BNhw = ring_scores(ring_BWC, map_BDhw, self.ring, weight_BW)
            volumes.append(volume_BNhw)
            unit_BDhw = F.normalize(map_BDhw, dim=1)
            if direction is None:
                direction = torch.cat([volume_BNhw.to(unit_BDhw.dtype), unit_BDhw], 1)
            if allowed_BN is not None:
                volume_BNhw = volume_BNhw.masked_fill(~allowed_BN[:, :, None, None], -1.0)
            place = torch.cat([volume_BNhw.amax(1, keepdim=True).to(unit_BDhw.dtype), unit_BDhw], 1)
            if level + 1 < len(rings):
                map_BDhw = self.place[level](place, maps[self.skips[level]])
        logits_BHW = self.place_logits(self.place_last(place, None))[:, 0].float()
        for stage, stride in zip(self.direction, [*self.skips[:-1], 0], strict=True):
            direction = stage(direction, maps.get(stride))
        direction_B2HW = F.normalize(self.direction_last(direction).float(), dim=1)
        return Matches(volumes, logits_BHW, direction_B2HW)


class _Doubling(nn.Module):
    """Twice the size, the encoder's map of that size beside it, and two convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, 2)
        self.convs = nn.Sequential(*_conv(outputs + skip, outputs, 3), nn.Conv2d(outputs, outputs, 3, padding=1))

    def forward(self, images: Tensor, skip: Tensor | None) -> Tensor:
        images = self.up(images)
        if skip is not None:
            images = torch.cat([images, skip], 1)
        mixed: Tensor = self.convs(images)
        return mixed


def _conv(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
