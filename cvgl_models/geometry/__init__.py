"""Changes of viewpoint as batched, differentiable sampling: one file per projection."""

from cvgl_models.geometry.affine import affine_transform
from cvgl_models.geometry.bev import (
    bev_from_panorama,
    bev_mask,
    fov_deg_from_side,
    matched_meters_per_px,
    meters_per_px_from_fov,
)
from cvgl_models.geometry.homography import homography_from_corners
from cvgl_models.geometry.polar import polar_transform
from cvgl_models.geometry.tps import ThinPlateSpline, control_points, thin_plate_spline

__all__ = [
    "ThinPlateSpline",
    "affine_transform",
    "bev_from_panorama",
    "bev_mask",
    "control_points",
    "fov_deg_from_side",
    "homography_from_corners",
    "matched_meters_per_px",
    "meters_per_px_from_fov",
    "polar_transform",
    "thin_plate_spline",
]
