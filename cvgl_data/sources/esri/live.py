"""The World Imagery basemap as it is today."""

from __future__ import annotations

from urllib.parse import urlsplit

from cvgl_data.environment import base_url, secret
from cvgl_data.http import Http
from cvgl_data.sources.esri.basemap import SERVICE_URL, TILE_BYTES, EsriBasemap, Service, checked_mode
from cvgl_data.sources.esri.captures import BLOCK_ZOOM, Captures
from cvgl_data.sources.esri.tilemap import BLOCK, Tilemap
from cvgl_data.types import Cost, Tile

TOKEN_SERVICE_URL = "https://ibasemaps-api.arcgis.com/arcgis/rest/services/World_Imagery/MapServer"

CITATIONS_LAYER = 4
_FIELDS = "SRC_DATE,SRC_DATE2,SRC_RES,NICE_DESC,MinMapLevel,MaxMapLevel"


class EsriLive(EsriBasemap):
    """Current World Imagery; the same address gives other bytes when Esri updates it.

    With ``CVGL_ESRI_TOKEN`` set, the service for key holders is asked. ``CVGL_ESRI_URL`` names another MapServer.

    Args:
        tilemap: ``block`` asks which tiles exist before asking for them; ``off`` does not.
        captures: Join capture date, provider and resolution from the Citations layer.
        upsample: Cut a tile that does not exist out of its nearest ancestor (up to three zooms), and mark it.

    Raises:
        RecipeError: If an option or an address makes no sense.
    """

    name = "esri-live"
    is_immutable = False

    def __init__(self, tilemap: str = "block", captures: bool = True, upsample: bool = False) -> None:
        token = secret("CVGL_ESRI_TOKEN")
        url = base_url("CVGL_ESRI_URL", SERVICE_URL if token is None else TOKEN_SERVICE_URL)
        super().__init__(upsample=upsample, service_url=url, token=token)
        self._mode = checked_mode(tilemap, ("block", "off"))
        self._has_captures = captures

    def url(self, tile: Tile) -> str:
        """Return the address of a tile."""
        return f"{self._service_url}/tile/{tile.z}/{tile.y}/{tile.x}"

    def cost(self) -> Cost:
        """Return what one tile takes at zoom 18."""
        requests = 1.0 + (self._mode == "block") / BLOCK**2 + self._has_captures / 4.0 ** (18 - BLOCK_ZOOM)
        note = "one tilemap request for 64 tiles, one metadata query for 4,096 tiles of zoom 18"
        return Cost(requests={urlsplit(self._service_url).netloc: requests}, bytes=TILE_BYTES, note=note)

    async def _open(self, http: Http) -> Service:
        captures = None
        if self._has_captures:
            layer_url = f"{self._service_url}/{CITATIONS_LAYER}"
            captures = Captures(
                layer_url, _FIELDS, "SRC_RES", source=self.name, params=self._params, wait_s=self.recheck_wait_s
            )
        tilemap = Tilemap(
            f"{self._service_url}/tilemap",
            self._mode,
            source=self.name,
            params=self._params,
            wait_s=self.recheck_wait_s,
        )
        return Service(self.url, tilemap, captures)
