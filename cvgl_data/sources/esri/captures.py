"""Asks a metadata layer for the capture footprints of a neighbourhood at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from cvgl_data.errors import FetchError, SourceStopped
from cvgl_data.http import Http
from cvgl_data.sources.esri.asking import RECHECK_WAIT_S, ask_json
from cvgl_data.sources.esri.footprints import Capture, Footprint, Footprints, parse_footprints
from cvgl_data.sources.esri.once import Once
from cvgl_data.types import Tile

logger = logging.getLogger(__name__)

BLOCK_ZOOM = 12
"""One query covers a tile of this zoom: 4,096 tiles of zoom 18, some kilometres a side."""

MAX_SPLITS = 4
"""How often a query whose answer was cut short is split in four; what is missing then stays unknown."""

KEPT_BLOCKS = 128
MAX_FAILURES = 3
"""So many blocks fail in a row, and captures are left alone."""


class Captures:
    """Capture dates of one service. What it does not tell is unknown; that it is out of order fails the tile.

    Otherwise the same recipe would give other rows after an outage, and nothing would ever put them right.

    Args:
        layer_url: Address of the layer; ``{layer}`` in it stands for the one of a zoom, on Wayback.
        fields: Attributes to ask for.
        gsd_field: The one that holds the resolution.
        source: Name of the source.
        params: Returns query parameters of each request; called each time, so that a key is revealed only then.
        block_zoom: Zoom of the tiles that are asked for in one query.
        wait_s: As for `ask_json`.
    """

    def __init__(
        self,
        layer_url: str,
        fields: str,
        gsd_field: str,
        *,
        source: str,
        params: Callable[[], Mapping[str, str]] = dict,
        block_zoom: int = BLOCK_ZOOM,
        wait_s: float = RECHECK_WAIT_S,
    ) -> None:
        self._layer_url = layer_url
        self._gsd_field = gsd_field
        self._source = source
        self._params = params
        self._question = {
            "geometryType": "esriGeometryEnvelope",
            "spatialRel": "esriSpatialRelIntersects",
            "inSR": "4326",
            "outSR": "4326",
            "outFields": fields,
            "returnGeometry": "true",
            "geometryPrecision": "6",  # a decimetre
            "f": "json",
        }
        self._block_zoom = block_zoom
        self._wait_s = wait_s
        self._failures = 0
        self._blocks: Once[tuple[str, Tile], Footprints] = Once(KEPT_BLOCKS)

    async def at(self, tile: Tile, zoom: int, http: Http) -> Capture:
        """Return the capture that is shown at a tile's centre.

        Args:
            tile: Where.
            zoom: At which zoom; coarser than the tile's own when another tile stands in for it.
            http: Shared client.

        Raises:
            FetchError: If the service fails for now; the tile is asked for again by the next run.
            SourceStopped: If it has failed several times in a row.
        """
        block = _block(tile, self._block_zoom)
        url = self._layer_url.replace("{layer}", str(min(max(23 - zoom, 0), 13)))
        footprints = await self._blocks.get((url, block), lambda: self._load(url, block, http))
        return footprints.at(tile.center, zoom)

    def close(self) -> None:
        """Give up what is in flight."""
        self._blocks.close()

    async def _load(self, url: str, block: Tile, http: Http) -> Footprints:
        if self._failures >= MAX_FAILURES:
            return Footprints()
        try:
            found = await self._collect(url, block, MAX_SPLITS, http)
        except FetchError as error:
            self._failures += 1
            if error.outcome.is_transient:
                raise self._outage(error) from None
            end = "; no more are asked for" if self._failures >= MAX_FAILURES else ""
            logger.warning("%s: no capture dates around tile %s%s: %s", self._source, block, end, error)
            return Footprints()
        self._failures = 0
        return await asyncio.to_thread(Footprints, found)

    def _outage(self, error: FetchError) -> FetchError:
        text = f"no capture date: {error}"
        if self._failures < MAX_FAILURES:
            return FetchError(text, source=self._source, item=error.item, outcome=error.outcome)
        how = "set imagery.options.captures=false to do without the dates"
        return SourceStopped(f"{text}; {how}", source=self._source, item=error.item, outcome=error.outcome)

    async def _collect(self, url: str, block: Tile, splits: int, http: Http) -> list[Footprint]:
        bounds = block.bounds
        item = f"captures {block}"
        params = {**self._question, **self._params(), "geometry": ",".join(f"{edge:.9f}" for edge in bounds)}
        value = await ask_json(http, f"{url}/query", params, source=self._source, item=item, wait_s=self._wait_s)
        # Outlines of whole countries take a while to cut.
        found, is_full = await asyncio.to_thread(
            parse_footprints, value, bounds, gsd_field=self._gsd_field, source=self._source, item=item
        )
        if not is_full:
            return found
        if not splits:
            logger.warning("%s: too many captures in tile %s, some dates there are unknown", self._source, block)
            return found
        x, y, z = block
        return [
            footprint
            for part in (Tile(2 * x + right, 2 * y + down, z + 1) for down in (0, 1) for right in (0, 1))
            for footprint in await self._collect(url, part, splits - 1, http)
        ]


def _block(tile: Tile, zoom: int) -> Tile:
    """Return the tile of a zoom that holds another's centre; of a coarser one, the centre is its north-west corner."""
    if tile.z >= zoom:
        up = tile.z - zoom
        return Tile(tile.x >> up, tile.y >> up, zoom)
    down = zoom - tile.z
    half = 2 ** (down - 1)
    return Tile((tile.x << down) + half, (tile.y << down) + half, zoom)
