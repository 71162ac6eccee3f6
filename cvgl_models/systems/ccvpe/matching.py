"""Matching a panorama with every place of a reference and every bearing at once: rings of azimuth columns.

Shapes: B pairs, N bearing bins, R columns of a full ring, W columns the query sees, C channels of a column, h and w of
the reference's map.

Both sides are described by columns of azimuth. Column j of a reference cell's ring looks at the bearing
``(j + 1/2) * 360 / R - 180``; column j of a query lies ``(j + 1/2 - W / 2) * 360 / R`` clockwise of its centre. So a
query whose centre looks at some bearing matches a window of the ring, and turning the query moves the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvgl_models.geometry.resampling import resample
from cvgl_models.localization.pose import wrap_deg

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Ring:
    """How a circle of bearings is cut into bins and columns.

    Args:
        num_bins: N, bearings that are tried.
        columns_per_bin: Columns of the ring for each.
        fov_deg: What the query sees, 360 for a whole panorama.

    Raises:
        ValueError: If the query does not see a whole number of columns.
    """

    num_bins: int
    columns_per_bin: int = 1
    fov_deg: float = 360.0

    def __post_init__(self) -> None:
        if not 0 < self.fov_deg <= 360 or abs(self.num_columns * self.fov_deg / 360 - self.num_seen) > 1e-6:
            step = 360 / self.num_columns
            raise ValueError(f"a field of view of {self.fov_deg:g} degrees is no whole number of columns of {step:g}")

    @property
    def num_columns(self) -> int:
        """R."""
        return self.num_bins * self.columns_per_bin

    @property
    def num_seen(self) -> int:
        """W."""
        return round(self.num_columns * self.fov_deg / 360)

    @property
    def bin_deg(self) -> float:
        """Width of a bin."""
        return 360 / self.num_bins

    def windows(self, device: torch.device | None = None) -> Tensor:
        """Return the (N, W) columns of the ring that a query of each bin covers, left to right."""
        first_N = torch.arange(self.num_bins, device=device) * self.columns_per_bin
        first_N = first_N + (self.num_columns - self.num_seen) // 2
        return (first_N[:, None] + torch.arange(self.num_seen, device=device)) % self.num_columns

    def headings_deg(self, device: torch.device | None = None) -> Tensor:
        """Return the (N,) bearing of the query's centre for each bin, [0, 360) but for half a column.

        A window of an odd number of columns cannot stand in the middle of an even ring: it is half a column off.
        """
        half_column = (self.num_columns - self.num_seen) % 2 * 180 / self.num_columns
        return torch.arange(self.num_bins, device=device) * self.bin_deg - half_column

    def shares(self, heading_deg_B: Tensor) -> Tensor:
        """Return the (B, N) targets: a bearing is shared by the two bins next to it, in proportion.

        Source:
            CCVPE, section 3.4; the published angle runs counter-clockwise, this one clockwise.
        """
        place_B = (heading_deg_B - self.headings_deg(heading_deg_B.device)[0]) / self.bin_deg
        bins_N = torch.arange(self.num_bins, device=heading_deg_B.device)
        away_BN = (place_B[:, None] - bins_N) % self.num_bins
        return (1 - torch.minimum(away_BN, self.num_bins - away_BN)).clamp(min=0)

    def allowed(self, prior_deg_B2: Tensor) -> Tensor:
        """Return the (B, N) bins whose own range meets the prior's: centre and half-width in degrees."""
        headings_N = self.headings_deg(prior_deg_B2.device)
        away_BN = wrap_deg(headings_N - prior_deg_B2[:, :1]).abs()
        return away_BN <= prior_deg_B2[:, 1:] + self.bin_deg / 2 + 1e-3


def ring_scores(query_BWC: Tensor, reference_BDhw: Tensor, ring: Ring, weight_BW: Tensor | None = None) -> Tensor:
    """Return the (B, N, h, w) float32 cosines between a query and every cell's ring, for every bin.

    One product of matrices: the query is laid into the ring once for each bin, which makes it circulant.

    Args:
        query_BWC: Columns of the query.
        reference_BDhw: Rings, D = R * C, column by column.
        ring: Bins and columns.
        weight_BW: How much each column of the query counts, 0 for one that is not seen; the reference's columns count
            as much.

    Raises:
        ValueError: If the ring does not close: D must be R * C, or some bins would see the same window.
    """
    batch, seen, channels = query_BWC.shape
    if reference_BDhw.shape[1] != ring.num_columns * channels or seen != ring.num_seen:
        raise ValueError(
            f"{reference_BDhw.shape[1]} channels are no ring of {ring.num_columns} columns of {channels} channels, or "
            f"{seen} columns are not the {ring.num_seen} that are seen"
        )
    with torch.autocast(query_BWC.device.type, enabled=False):
        query_BWC = query_BWC.float()
        cells_BRCM = reference_BDhw.float().reshape(batch, ring.num_columns, channels, -1)
        weight_BW = query_BWC.new_ones(batch, seen) if weight_BW is None else weight_BW.float()
        weighted_BWC = query_BWC * weight_BW[:, :, None]
        laid_BNRC = _laid(weighted_BWC, ring)
        products_BNM = laid_BNRC.flatten(2) @ cells_BRCM.flatten(1, 2)
        energy_BRM = cells_BRCM.square().sum(2)
        window_BNM = _laid(weight_BW[:, :, None], ring)[..., 0] @ energy_BRM
        own_B11 = (weighted_BWC * query_BWC).sum((1, 2))[:, None, None]
        scores_BNM = products_BNM * (window_BNM * own_B11 + _TINY).rsqrt()
    scores: Tensor = scores_BNM.reshape(batch, ring.num_bins, *reference_BDhw.shape[2:])
    return scores


def _laid(columns_BWC: Tensor, ring: Ring) -> Tensor:
    """Return (B, N, R, C): the columns where each bin has them on the ring, 0 elsewhere."""
    batch, _, channels = columns_BWC.shape
    at_NW1 = ring.windows(columns_BWC.device)[None, :, :, None].expand(batch, -1, -1, channels)
    empty_BNRC = columns_BWC.new_zeros(batch, ring.num_bins, ring.num_columns, channels)
    return empty_BNRC.scatter(2, at_NW1, columns_BWC[:, None].expand(-1, ring.num_bins, -1, -1))


def peak_heading_deg(scores_BN: Tensor, ring: Ring) -> Tensor:
    """Return the (B,) bearings of the best bins, between bins by the parabola through each and its two neighbors.

    A neighbor that is barred (-inf) leaves the bin's own bearing.
    """
    best_B1 = scores_BN.argmax(1, keepdim=True)
    before_B, here_B, after_B = (scores_BN.gather(1, (best_B1 + step) % ring.num_bins)[:, 0] for step in (-1, 0, 1))
    bend_B = before_B - 2 * here_B + after_B
    has_top_B = bend_B.isfinite() & (bend_B < 0)
    part_B = (before_B - after_B) / (2 * torch.where(has_top_B, bend_B, -torch.ones_like(bend_B)))
    part_B = torch.where(has_top_B, part_B, torch.zeros_like(part_B))
    return ring.headings_deg(scores_BN.device)[best_B1[:, 0]] + part_B * ring.bin_deg


def columns_by_azimuth(
    map_BChw: Tensor, camera_B33: Tensor, width_px: int, num_columns: int, fov_deg: float
) -> tuple[Tensor, Tensor]:
    """Return a pinhole camera's map with columns of equal azimuth, and which of them the picture covers.

    Args:
        map_BChw: Features of the picture.
        camera_B33: Intrinsics in pixels of the view.
        width_px: Width of the view.
        num_columns: W, columns of the result.
        fov_deg: Azimuth they span, about the optical axis: that is where the camera's heading points, and it need not
            be in the picture's middle.

    Returns:
        (B, C, h, W) and (B, W), 1 where a column's middle lies in the picture, else 0; both of the map's type.
    """
    focal_B1, center_B1 = camera_B33[:, 0, 0, None].float(), camera_B33[:, 0, 2, None].float()
    step_W = torch.arange(num_columns, device=map_BChw.device) + 0.5 - num_columns / 2
    azimuth_W = (step_W * fov_deg / num_columns).deg2rad()
    share_BW = (center_B1 + focal_B1 * azimuth_W.tan()) / width_px
    is_seen_BW = (share_BW >= 0) & (share_BW <= 1) & (azimuth_W.abs() < torch.pi / 2)
    seen_BW = is_seen_BW.to(map_BChw.dtype)
    height = map_BChw.shape[2]
    row_h = (torch.arange(height, device=map_BChw.device) + 0.5) / height * 2 - 1
    size = (len(share_BW), height, num_columns)
    grid_BhW2 = torch.stack([(share_BW * 2 - 1)[:, None].expand(size), row_h[:, None].expand(size)], -1)
    moved = resample(map_BChw, grid_BhW2)
    return moved * seen_BW[:, None, None], seen_BW
