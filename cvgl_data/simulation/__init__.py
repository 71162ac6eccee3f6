"""A procedural city with exact geometry: the world, and its pictures from above and from the street."""

from __future__ import annotations

from cvgl_data.simulation.overhead import OverheadLayers, render_map, render_tile, trace_tile
from cvgl_data.simulation.panorama import PanoramaLayers, render_panorama, trace_panorama
from cvgl_data.simulation.world import World

__all__ = [
    "OverheadLayers",
    "PanoramaLayers",
    "World",
    "render_map",
    "render_panorama",
    "render_tile",
    "trace_panorama",
    "trace_tile",
]
