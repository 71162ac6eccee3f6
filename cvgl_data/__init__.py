"""Build, curate and open cross-view geo-localization datasets.

The names below are loaded when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvgl_data.aoi import AreaOfInterest
    from cvgl_data.dataset import CrossViewDataset, open_dataset
    from cvgl_data.grid import TileGrid, Windows
    from cvgl_data.neighbors import distance_map
    from cvgl_data.pairing import pair
    from cvgl_data.pipeline import build
    from cvgl_data.types import BBox, LonLat, Tile, Window

__version__ = "0.1.0"

_MODULES = {
    "AreaOfInterest": "aoi",
    "BBox": "types",
    "CrossViewDataset": "dataset",
    "LonLat": "types",
    "Tile": "types",
    "TileGrid": "grid",
    "Window": "types",
    "Windows": "grid",
    "build": "pipeline",
    "distance_map": "neighbors",
    "open_dataset": "dataset",
    "pair": "pairing",
}

__all__ = [
    "AreaOfInterest",
    "BBox",
    "CrossViewDataset",
    "LonLat",
    "Tile",
    "TileGrid",
    "Window",
    "Windows",
    "build",
    "distance_map",
    "open_dataset",
    "pair",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cvgl_data' has no attribute '{name}'")
    return getattr(import_module(f"cvgl_data.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
