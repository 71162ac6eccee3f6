"""World Imagery, live and by Wayback release: tiles, what exists, when it was taken."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

from cvgl_data.simulated_providers.arcgis import MAX_RECORDS, error_answer, query_answer, query_box, reply
from cvgl_data.simulated_providers.coverage import MAX_ZOOM, Coverage
from cvgl_data.simulated_providers.exchange import (
    JPEG,
    Answer,
    Ask,
    Route,
    html_answer,
    image_answer,
    json_answer,
)
from cvgl_data.simulated_providers.faults import DATA, TILE
from cvgl_data.simulated_providers.pictures import Pictures
from cvgl_data.simulated_providers.placeholder import PLACEHOLDER, PLACEHOLDER_HEADERS
from cvgl_data.simulated_providers.settings import ESRI_TOKEN, Settings
from cvgl_data.types import Tile

COPYRIGHT = "Simulated world, in the place of Esri, Vantor, Earthstar Geographics, and the GIS User Community"
_BUNDLE = 128  # tiles per side that a cache keeps in one file, beyond which a tilemap does not look
_NUMBER = r"(\d{1,9})"
_METADATA_LAYERS = 14


class WorldImagery:
    """Live imagery below ``/esri``, releases below ``/wayback``, their index and their metadata."""

    def __init__(self, settings: Settings, pictures: Pictures) -> None:
        self._settings = settings
        self._pictures = pictures
        self._coverage = Coverage(settings)

    def routes(self, provider: str) -> Sequence[Route]:
        """Return the routes of one of the prefixes; parts of the real paths before the service's name may be there."""
        n = _NUMBER
        if provider == "esri":
            start = r"(?:/arcgis)?(?:/rest/services)?(?:/World_Imagery)?(?:/MapServer)?"
            both = ("GET", "HEAD", "POST")
            return (
                Route(re.compile(rf"{start}/tile/{n}/{n}/{n}"), TILE, self._live_tile),
                Route(re.compile(rf"{start}/tilemap/{n}/{n}/{n}/{n}/{n}"), DATA, self._live_tilemap),
                Route(re.compile(rf"{start}/4/query"), DATA, self._live_query, both),
                Route(re.compile(rf"{start}/?"), DATA, self._service),
            )
        if provider == "wayback":
            start = r"(?:/arcgis)?(?:/rest/services)?(?:/World_Imagery)?"
            wmts = r"(?:/WMTS/1\.0\.0/(?:default028mm|GoogleMapsCompatible))?(?:/MapServer)?"
            return (
                Route(re.compile(rf"{start}{wmts}/tile/{n}/{n}/{n}/{n}"), TILE, self._release_tile),
                Route(re.compile(rf"{start}(?:/MapServer)?/tilemap/{n}/{n}/{n}/{n}"), DATA, self._release_tilemap),
            )
        if provider == "wayback-config":
            return (Route(re.compile(r"(?:\.json|(?:/waybackconfig\.json)?/?)"), DATA, self._index),)
        layer = (
            r"(?:/arcgis/rest/services)?/(?:World_Imagery_Metadata_)?(\d{4}_r\d{2}|\d{1,9})/MapServer/(\d{1,3})/query"
        )
        return (Route(re.compile(layer), DATA, self._release_query, ("GET", "HEAD", "POST")),)

    def error_in_200(self, ask: Ask) -> Answer:
        """Return an ArcGIS error."""
        return error_answer(500, "Error performing operation")

    def not_found(self, ask: Ask) -> Answer:
        """Return a page: these servers do not answer unknown paths with JSON."""
        return html_answer("404 Not Found", 404)

    async def _live_tile(self, ask: Ask, match: re.Match[str]) -> Answer:
        refused = self._token_error(ask, ask.query)
        if refused:
            return refused
        z, y, x = map(int, match.groups())
        return await self._tile(ask, Tile(x, y, z), None)

    async def _release_tile(self, ask: Ask, match: re.Match[str]) -> Answer:
        number, z, y, x = map(int, match.groups())
        release = self._coverage.index(number)
        if release is None:
            return self.not_found(ask)
        return await self._tile(ask, Tile(x, y, z), release)

    async def _tile(self, ask: Ask, tile: Tile, release: int | None) -> Answer:
        if not self._coverage.exists(tile, release):
            if ask.query.get("blankTile", "true").lower() == "false":
                return html_answer("404 Not Found", 404)
            return placeholder_answer()
        day = self._coverage.day(tile, release)
        return image_answer(await self._pictures.tile(tile, day), day)

    async def _live_tilemap(self, ask: Ask, match: re.Match[str]) -> Answer:
        refused = self._token_error(ask, ask.query)
        if refused:
            return refused
        level, top, left, width, height = map(int, match.groups())
        if level > MAX_ZOOM or not (top < 2**level and left < 2**level) or not (width > 0 and height > 0):
            return self._no_tiles(ask)
        # Clipped to the cache's bundle, which also ends at the edge of the world.
        clipped_width = min(width, _BUNDLE - left % _BUNDLE, 2**level - left)
        clipped_height = min(height, _BUNDLE - top % _BUNDLE, 2**level - top)
        data = [
            int(self._coverage.exists(Tile(x, y, level), None))
            for y in range(top, top + clipped_height)
            for x in range(left, left + clipped_width)
        ]
        if not any(data):
            return self._no_tiles(ask)
        answer = {
            "adjusted": (clipped_width, clipped_height) != (width, height),
            "location": {"left": left, "top": top, "width": clipped_width, "height": clipped_height},
            "data": data,
        }
        return reply(answer, ask.query)

    async def _release_tilemap(self, ask: Ask, match: re.Match[str]) -> Answer:
        number, level, row, column = map(int, match.groups())
        release = self._coverage.index(number)
        if release is None:
            return self.not_found(ask)
        tile = Tile(column, row, level)
        location = {"left": column, "top": row, "width": 1, "height": 1}
        holder = self._coverage.holder(tile, release)
        if holder is None:
            return json_answer({"valid": True, "data": [0], "location": location})
        size = len(await self._pictures.tile(tile, self._coverage.day(tile, release)))
        answer = {"valid": True, "data": [1], "size": [size], "location": location}
        if holder != release:  # the release asked for is not named again
            answer["select"] = [self._coverage.releases[holder].number]
        return json_answer(answer)

    async def _index(self, ask: Ask, match: re.Match[str]) -> Answer:
        entries: dict[str, object] = {}
        for release in sorted(self._coverage.releases, key=lambda release: str(release.number)):
            entries[str(release.number)] = {
                "itemID": f"{release.number:032x}",
                "itemTitle": f"World Imagery (Wayback {release.day.isoformat()})",
                "itemURL": f"{ask.origin}/wayback/arcgis/rest/services/World_Imagery/WMTS/1.0.0/default028mm/MapServer"
                f"/tile/{release.number}/{{level}}/{{row}}/{{col}}",
                "metadataLayerUrl": f"{ask.origin}/metadata/World_Imagery_Metadata_{release.name}/MapServer",
                "metadataLayerItemID": f"{release.number + 1:032x}",
                "layerIdentifier": f"WB_{release.name.upper()}",
            }
        # The real file has had entries that its own readers drop.
        entries["undefined"] = {"itemTitle": "World Imagery (Wayback draft)", "itemURL": None}
        return json_answer(entries, content_type="application/json")

    async def _live_query(self, ask: Ask, match: re.Match[str]) -> Answer:
        return await self._query(ask, None, range(MAX_ZOOM + 2))

    async def _release_query(self, ask: Ask, match: re.Match[str]) -> Answer:
        name, layer = match[1], int(match[2])
        found = [
            at for at, release in enumerate(self._coverage.releases) if name in (release.name, str(release.number))
        ]
        if not found or layer >= _METADATA_LAYERS:
            return error_answer(404, "Service not found" if not found else "Layer not found")
        # Layer 23 - zoom; the last one stands for all coarser zooms as well.
        zooms = range(11) if layer == _METADATA_LAYERS - 1 else range(23 - layer, 24 - layer)
        return await self._query(ask, found[0], zooms)

    async def _query(self, ask: Ask, release: int | None, zooms: range) -> Answer:
        parameters = {**ask.query, **dict(parse_qsl(ask.body.decode("utf-8", "replace")))}
        if release is None and (refused := self._token_error(ask, parameters)):
            return refused
        box = query_box(parameters)
        found = self._coverage.footprints(box, release, zooms)
        return await asyncio.to_thread(query_answer, found, parameters)

    async def _service(self, ask: Ask, match: re.Match[str]) -> Answer:
        lods = [
            {"level": level, "resolution": 156543.03392804097 / 2**level, "scale": 591657527.591555 / 2**level}
            for level in range(MAX_ZOOM + 1)
        ]
        service = {
            "currentVersion": 11.1,
            "mapName": "Layers",
            "copyrightText": COPYRIGHT,
            "layers": [{"id": 4, "name": "Citations", "type": "Feature Layer", "geometryType": "esriGeometryPolygon"}],
            "spatialReference": {"wkid": 102100, "latestWkid": 3857},
            "singleFusedMapCache": True,
            "tileInfo": {"rows": 256, "cols": 256, "dpi": 96, "format": "JPEG", "lods": lods},
            "capabilities": "Map,Tilemap,Query,Data",
            "maxRecordCount": MAX_RECORDS,
        }
        return self._token_error(ask, ask.query) or reply(service, ask.query)

    def _token_error(self, ask: Ask, parameters: Mapping[str, str]) -> Answer | None:
        header = ask.headers.get("X-Esri-Authorization") or ask.headers.get("Authorization") or ""
        token = parameters.get("token") or header.removeprefix("Bearer ")
        if token == ESRI_TOKEN or not (token or self._settings.esri_token_required):
            return None
        return error_answer(498, "Invalid Token") if token else error_answer(499, "Token Required")

    def _no_tiles(self, ask: Ask) -> Answer:
        error = {"error": {"code": 422, "message": "Tiles not present", "details": []}}
        return reply(error, ask.query, 422)


def placeholder_answer() -> Answer:
    """Return the picture that stands for none, as a success."""
    return Answer(body=PLACEHOLDER, content_type=JPEG, headers=PLACEHOLDER_HEADERS)
