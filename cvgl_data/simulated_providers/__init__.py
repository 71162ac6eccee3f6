"""The simulated world behind the HTTP interfaces of the real providers, on this machine, with faults on demand.

Every client path can so be exercised without network, key or cost, and against exact ground truth: tiles and panoramas
are those of `cvgl_data.sources.simulated`, and every id gives back the position that it stands for. All providers live
below one address, each under its own prefix (`PROVIDERS`).
"""

from __future__ import annotations

from cvgl_data.simulated_providers.coverage import Coverage, Release
from cvgl_data.simulated_providers.dispatcher import Request
from cvgl_data.simulated_providers.faults import PROVIDERS, Faults
from cvgl_data.simulated_providers.ids import (
    google_id,
    google_position,
    mapillary_id,
    mapillary_position,
    panoramax_id,
    panoramax_position,
)
from cvgl_data.simulated_providers.placeholder import PLACEHOLDER, PLACEHOLDER_MD5, PLACEHOLDER_SHA256
from cvgl_data.simulated_providers.server import Served, SimulatedProviders, serve
from cvgl_data.simulated_providers.settings import (
    ESRI_TOKEN,
    GOOGLE_KEY,
    GOOGLE_SIGNING_SECRET,
    MAPILLARY_TOKEN,
    Settings,
)

__all__ = [
    "ESRI_TOKEN",
    "GOOGLE_KEY",
    "GOOGLE_SIGNING_SECRET",
    "MAPILLARY_TOKEN",
    "PLACEHOLDER",
    "PLACEHOLDER_MD5",
    "PLACEHOLDER_SHA256",
    "PROVIDERS",
    "Coverage",
    "Faults",
    "Release",
    "Request",
    "Served",
    "Settings",
    "SimulatedProviders",
    "google_id",
    "google_position",
    "mapillary_id",
    "mapillary_position",
    "panoramax_id",
    "panoramax_position",
    "serve",
]
