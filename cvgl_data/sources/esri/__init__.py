"""Esri World Imagery: pinned to a Wayback release (`EsriWayback`), or as it is today (`EsriLive`)."""

from __future__ import annotations

from cvgl_data.sources.esri.live import EsriLive
from cvgl_data.sources.esri.wayback import EsriWayback

__all__ = ["EsriLive", "EsriWayback"]
