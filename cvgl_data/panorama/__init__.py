"""Geometry of equirectangular panoramas: put them together, turn them north and upright, see the ground from above.

World frame east, north, up. A panorama of W x H pixels has its centre column at ``heading_deg``; columns run clockwise,
360 degrees over W; rows run from the zenith to the nadir, 180 degrees over H. All maps are half-pixel correct, wrap
around in azimuth and are clamped in elevation. Images are (H, W) or (H, W, C): uint8 goes through OpenCV, floats are
interpolated exactly.

Source:
    Google's GPano metadata for the signs of pitch and roll; AuxGeo and HC-Net for `to_bev`.
"""

from cvgl_data.panorama.bev import bev_mask, to_bev
from cvgl_data.panorama.pose import north_align
from cvgl_data.panorama.stitching import View, from_tiles, from_views

__all__ = ["View", "bev_mask", "from_tiles", "from_views", "north_align", "to_bev"]
