"""From a dataset to batches: decode, resize, roll to north, keep in memory what fits, and put pairs together.

What is here lies in `cvgl_models.loading`: `decoding` (one image), `views` (rows and pairs), `workers` (processes that
fill shared buffers), `loaders` (batches in order), `ahead` and `on_device` (accelerators), `resized` (smaller images).

Shapes: N images, B pairs, H and W of the view. Views are uint8 (N, 3, H, W) until they are on the device.
"""

from __future__ import annotations

from cvgl_models.loading.decoding import decode, view_of
from cvgl_models.loading.loaders import PairLoader, Progress, data_loader, in_memory, load_views, rank_share
from cvgl_models.loading.resized import open_for_views
from cvgl_models.loading.views import PairRows, PairViews, UndecodableError, Views, fits_in_memory

__all__ = [
    "PairLoader",
    "PairRows",
    "PairViews",
    "Progress",
    "UndecodableError",
    "Views",
    "data_loader",
    "decode",
    "fits_in_memory",
    "in_memory",
    "load_views",
    "open_for_views",
    "rank_share",
    "view_of",
]
