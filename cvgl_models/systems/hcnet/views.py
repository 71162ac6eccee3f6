"""The top view that HC-Net lays over the reference: where its camera stands and how large its pixels are.

Shapes: B queries, S side of the top view.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvgl_models.geometry import meters_per_px_from_fov
from cvgl_models.geometry.ground import ground_from_panorama, ground_from_pinhole
from cvgl_models.geometry.homography import similarity, square_corners


@dataclass(frozen=True, slots=True)
class TopView:
    """Images of the ground around the camera, its own bearing or an expected one up."""

    image_BCSS: Tensor
    camera_B2: Tensor
    """Place of the camera, pixels."""
    meters_per_px: float
    up_deg_B: Tensor
    """Where "up" is, clockwise from the query's centre column."""

    @property
    def arm_px(self) -> float:
        """Step upwards from the camera by which a heading is measured, as in the published training."""
        return self.image_BCSS.shape[-1] / 8

    def corners(self) -> Tensor:
        """Return the (B, 4, 2) corners: top left, top right, bottom left, bottom right."""
        return square_corners(self.image_BCSS.shape[-1], self.camera_B2).expand(len(self.camera_B2), 4, 2)

    def select(self, row_B: Tensor) -> TopView:
        """Return some of the views."""
        return TopView(self.image_BCSS[row_B], self.camera_B2[row_B], self.meters_per_px, self.up_deg_B[row_B])

    def pose(self, uv_B2: Tensor, heading_deg_B: Tensor, gsd_m_B: Tensor) -> Tensor:
        """Return the (B, 3, 3) similarities that lay the view over a reference, given the query's pose in it."""
        scale_B = self.meters_per_px / gsd_m_B.float()
        return similarity(self.camera_B2, uv_B2.float(), scale_B, heading_deg_B.float() + self.up_deg_B)


def panorama_top_view(query: Tensor, up_deg_B: Tensor, size_px: int, fov_deg: float, camera_height_m: float) -> TopView:
    """Return what a pinhole camera looking straight down would see, by the spherical transform.

    Args:
        query: (B, 3, H, W) panoramas.
        up_deg_B: "Up" in the result, clockwise from the panorama's centre column; 0 as published.
        size_px: S.
        fov_deg: Opening angle; 170 as published shows the ground as far as 11.43 camera heights.
        camera_height_m: Height of the camera.

    Source:
        HC-Net, section 3.1; the golden numbers of its grid are met with whole-pixel centres.
    """
    meters_per_px = meters_per_px_from_fov(size_px, fov_deg, camera_height_m)
    cell_m_B = torch.full((len(query),), meters_per_px, device=query.device)
    image = ground_from_panorama(query, size_px, cell_m_B, camera_height_m, -up_deg_B)
    camera_B2 = torch.full((len(query), 2), size_px / 2, device=query.device)
    return TopView(image, camera_B2, meters_per_px, up_deg_B)


def pinhole_top_view(
    query: Tensor, camera_B33: Tensor, size_px: int, range_m: float, camera_height_m: float
) -> TopView:
    """Return the ground in front of a level pinhole camera, which stands at the middle of the lower edge.

    Args:
        query: (B, 3, H, W) images.
        camera_B33: Intrinsics in their pixels.
        size_px: S.
        range_m: Side of the square.
        camera_height_m: Height of the camera.
    """
    meters_per_px = range_m / size_px
    cell_m_B = torch.full((len(query),), meters_per_px, device=query.device)
    size = (query.shape[-2], query.shape[-1])
    # a grid about the camera twice as large, of which the middle of the upper half is kept
    both, _ = ground_from_pinhole(query, size, camera_B33, 2 * size_px, cell_m_B, camera_height_m)
    image = both[..., :size_px, size_px // 2 : size_px // 2 + size_px].contiguous()
    camera_B2 = torch.full((len(query), 2), size_px / 2, device=query.device)
    camera_B2[:, 1] = size_px
    return TopView(image, camera_B2, meters_per_px, torch.zeros(len(query), device=query.device))
