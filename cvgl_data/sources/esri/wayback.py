"""World Imagery pinned to a Wayback release, so that the same recipe gives the same bytes."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from cvgl_data.environment import base_url
from cvgl_data.errors import FetchError, SourceStopped
from cvgl_data.http import Http
from cvgl_data.sources.esri.asking import ask_json
from cvgl_data.sources.esri.basemap import SERVICE_URL, TILE_BYTES, EsriBasemap, Service, checked_mode
from cvgl_data.sources.esri.captures import BLOCK_ZOOM, Captures
from cvgl_data.sources.esri.once import Once
from cvgl_data.sources.esri.releases import Release, checked_date, choose_release, parse_index
from cvgl_data.sources.esri.tilemap import BLOCK, Availability, Tilemap
from cvgl_data.types import Cost, Tile

WAYBACK_URL = "https://wayback.maptiles.arcgis.com/arcgis/rest/services/World_Imagery"
CONFIG_URL = "https://s3-us-west-2.amazonaws.com/config.maptiles.arcgis.com/waybackconfig.json"
METADATA_HOST = "metadata.maptiles.arcgis.com"

_FIELDS = "SRC_DATE2,NICE_DESC,SAMP_RES"


class EsriWayback(EsriBasemap):
    """World Imagery as it was published on a day.

    ``release`` of what it fetches is the day asked for, ``release_source`` the day of the release that really holds the
    bytes, where the tilemap tells. ``CVGL_WAYBACK_URL`` and ``CVGL_WAYBACK_CONFIG_URL`` name other servers.

    Args:
        release: ISO 8601 day; the newest release at or before it is taken. Empty: the newest of all, see `pin`.
        tilemap: ``block`` asks which tiles exist, 64 at a time, if the service answers that; ``tile`` asks for each
            tile, which also tells ``release_source``; ``off`` does not ask.
        captures: Join capture date, provider and resolution from the release's metadata layers.
        upsample: Cut a tile that does not exist out of its nearest ancestor (up to three zooms), and mark it.

    Raises:
        RecipeError: If an option or an address makes no sense.
    """

    name = "esri"
    pins = ("release",)
    is_immutable = True

    def __init__(
        self, release: str = "", tilemap: str = "block", captures: bool = True, upsample: bool = False
    ) -> None:
        super().__init__(upsample=upsample, service_url=base_url("CVGL_ESRI_URL", SERVICE_URL), token=None)
        self._wanted = checked_date(release)
        self._mode = checked_mode(tilemap, ("block", "tile", "off"))
        self._has_captures = captures
        self._url = base_url("CVGL_WAYBACK_URL", WAYBACK_URL)
        self._config_url = base_url("CVGL_WAYBACK_CONFIG_URL", CONFIG_URL)
        self._releases: Once[str, list[Release]] = Once(1)

    def url(self, tile: Tile, release: Release) -> str:
        """Return the address of a tile."""
        return f"{self._url}/WMTS/1.0.0/default028mm/MapServer/tile/{release.number}/{tile.z}/{tile.y}/{tile.x}"

    def cost(self) -> Cost:
        """Return what one tile takes at zoom 18."""
        looks = {"block": 1 / BLOCK**2, "tile": 1.0, "off": 0.0}[self._mode]
        requests = {urlsplit(self._url).netloc: 1.0 + looks}
        if self._has_captures:
            requests[METADATA_HOST] = 1 / 4.0 ** (18 - BLOCK_ZOOM)
        note = "one metadata query for 4,096 tiles of zoom 18"
        return Cost(requests=requests, bytes=TILE_BYTES, note=note)

    async def pin(self, http: Http) -> dict[str, Any]:
        """Return the option ``release`` as the day of the release that is taken now.

        Raises:
            RecipeError: If all releases are newer than the day asked for.
            SourceStopped: If the index of releases cannot be had.
        """
        return {"release": choose_release(await self._index(http), self._wanted).date}

    def close(self) -> None:
        """Give up what is in flight; the connections belong to the `Http`."""
        self._releases.close()
        super().close()

    async def _open(self, http: Http) -> Service:
        releases = await self._index(http)
        chosen = choose_release(releases, self._wanted)
        dates = {release.number: release.date for release in releases}

        def release_date(available: Availability) -> str:
            return "" if available.release is None else dates.get(available.release, "")

        tilemap = Tilemap(
            f"{self._url}/MapServer/tilemap/{chosen.number}",
            self._mode,
            source=self.name,
            release=chosen.number,
            knows_blocks=False,
            wait_s=self.recheck_wait_s,
        )
        captures = None
        if self._has_captures and chosen.metadata_url:
            captures = Captures(
                chosen.metadata_url + "/{layer}", _FIELDS, "SAMP_RES", source=self.name, wait_s=self.recheck_wait_s
            )
        return Service(lambda tile: self.url(tile, chosen), tilemap, captures, chosen.date, release_date)

    async def _index(self, http: Http) -> list[Release]:
        return await self._releases.get("", lambda: self._read_index(http))

    async def _read_index(self, http: Http) -> list[Release]:
        item = "releases"
        try:
            value = await ask_json(http, self._config_url, {}, source=self.name, item=item, wait_s=self.recheck_wait_s)
            return parse_index(value, source=self.name, item=item)
        except FetchError as error:
            text = f"the index of Wayback releases cannot be had: {error}"
            raise SourceStopped(text, source=self.name, item=item, outcome=error.outcome) from None
