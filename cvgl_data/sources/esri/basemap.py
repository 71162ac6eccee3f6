"""What the live basemap and Wayback have in common: look, download, judge, date, and stand in for what is missing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image

from cvgl_data.environment import Secret
from cvgl_data.errors import FetchError, NoImagery, RecipeError, SourceStopped
from cvgl_data.http import Http
from cvgl_data.http.responses import Response
from cvgl_data.images import decode, encode_jpeg, image_size
from cvgl_data.sources.esri.asking import RECHECK_WAIT_S, ask_json
from cvgl_data.sources.esri.captures import Captures
from cvgl_data.sources.esri.footprints import Capture
from cvgl_data.sources.esri.once import Once
from cvgl_data.sources.esri.refusals import TILE_STATUSES, BlankTile, json_refusal, plain, tile_trouble
from cvgl_data.sources.esri.tilemap import Availability, Tilemap
from cvgl_data.types import Fetched, Outcome, Terms, Tile

logger = logging.getLogger(__name__)

SERVICE_URL = "https://services.arcgisonline.com/arcgis/rest/services/World_Imagery/MapServer"

ATTRIBUTION = "Esri, Vantor, Earthstar Geographics, and the GIS User Community"
"""Credits for when the service's own cannot be read."""

MAX_UPSAMPLING = 3
"""Zoom levels that a tile may stand in for."""

TILE_BYTES = 15_000.0
_MAX_STALE_SIZES = 3
_KEPT_ANCESTORS = 64

TERMS = Terms(
    name="esri",
    url="https://www.esri.com/en-us/legal/terms/full-master-agreement",
    summary=(
        "World Imagery and its Wayback releases come under the Esri Master License Agreement: customers may not "
        "scrape, download or store the data other than by Esri's own offline packages, nor republish it; pictures "
        "in reports are fine with credits. Publish the list of tiles, not their pixels."
    ),
    redistributable=False,
    must_accept=True,
)


@dataclass(frozen=True, slots=True)
class Service:
    """One state of World Imagery and how to ask for it."""

    tile_url: Callable[[Tile], str]
    tilemap: Tilemap
    captures: Captures | None
    release: str = ""
    release_date: Callable[[Availability], str] = lambda available: ""
    """Date of the release that holds a tile's bytes, empty when unknown."""

    def close(self) -> None:
        """Give up what is in flight."""
        self.tilemap.close()
        if self.captures is not None:
            self.captures.close()


class EsriBasemap:
    """World Imagery; `EsriLive` and `EsriWayback` say which.

    Args:
        upsample: Cut a tile that does not exist out of its nearest ancestor that does, and mark it.
        service_url: MapServer whose ``copyrightText`` is the attribution.
        token: Key for the service, if it has one.
    """

    name = "esri"
    licence = "Esri Master License Agreement"
    max_zoom = 23
    tile_px = 256
    terms = TERMS
    recheck_wait_s = RECHECK_WAIT_S
    """Before a placeholder, or another passing trouble, is asked for once more."""

    def __init__(self, *, upsample: bool, service_url: str, token: Secret | None) -> None:
        self.attribution = ATTRIBUTION
        self._upsample = upsample
        self._service_url = service_url
        self._token = token
        self._services: Once[str, Service] = Once(1)
        self._credits: Once[str, str] = Once(1)
        self._ancestors: Once[Tile, Fetched | None] = Once(_KEPT_ANCESTORS)
        self._opened: list[Service] = []
        self._stale_sizes = 0

    async def fetch(self, tile: Tile, http: Http) -> Fetched:
        """Return the tile as the server sends it, with what is known of its capture; see `ImagerySource.fetch`."""
        service = await self._services.get("", lambda: self._start(http))
        await self.read_attribution(http)
        try:
            fetched = await self._existing(service, tile, http)
        except NoImagery:
            if not self._upsample:
                raise
            fetched = await self._stand_in(service, tile, http)
        capture = Capture()
        if service.captures is not None:
            zoom = tile.z if fetched.upsampled_from_zoom is None else fetched.upsampled_from_zoom
            capture = await service.captures.at(tile, zoom, http)
        return replace(fetched, captured=capture.captured, provider=capture.provider, source_gsd_m=capture.gsd_m)

    async def read_attribution(self, http: Http) -> str:
        """Return `attribution` as the service states it, read once; the usual one if it cannot be had."""
        self.attribution = await self._credits.get("", lambda: self._read_credits(http))
        return self.attribution

    def close(self) -> None:
        """Give up what is in flight; the connections belong to the `Http`."""
        for once in (self._services, self._credits, self._ancestors):
            once.close()
        for service in self._opened:
            service.close()
        self._opened.clear()

    async def _open(self, http: Http) -> Service:
        raise NotImplementedError

    async def _start(self, http: Http) -> Service:
        service = await self._open(http)
        self._opened.append(service)
        return service

    def _params(self) -> dict[str, str]:
        """Return the query parameters that prove who asks."""
        return {} if self._token is None else {"token": self._token.reveal()}

    async def _read_credits(self, http: Http) -> str:
        params = {"f": "pjson", **self._params()}
        item = "attribution"
        try:
            value = await ask_json(
                http, self._service_url, params, source=self.name, item=item, wait_s=self.recheck_wait_s
            )
            refusal = json_refusal(value, where=self._service_url, source=self.name, item=item)
            if refusal is not None:
                raise refusal
        except FetchError as error:
            logger.warning("%s: the service's credits cannot be read, the usual ones are used: %s", self.name, error)
            return self.attribution
        return plain(value.get("copyrightText") if isinstance(value, dict) else None, 2000) or self.attribution

    async def _existing(self, service: Service, tile: Tile, http: Http) -> Fetched:
        available = await service.tilemap.look(tile, http)
        if available.exists is False:
            raise NoImagery(f"the tilemap says that tile {tile} does not exist", source=self.name, item=str(tile))
        response = await self._download(service.tile_url(tile), tile, available.size_bytes, http)
        validators = response.validators
        return Fetched(
            image=response.body,
            release=service.release,
            release_source=service.release_date(available),
            etag=validators["etag"],
            last_modified=validators["last_modified"],
            robots=validators["robots"],
        )

    async def _download(self, url: str, tile: Tile, size_bytes: int | None, http: Http) -> Response:
        """Return an answer that may be an image, asking a second time where that may help.

        A size that differs from the tilemap's tells of a short body, or of a tilemap that is out of date: twice the
        same body of the same wrong size is the latter.
        """
        params = {"blankTile": "false", **self._params()}
        before = b""
        for is_last in (False, True):
            response = await http.get(
                url,
                params=params,
                headers={"Cache-Control": "no-cache"} if is_last else None,
                accept=TILE_STATUSES,
                source=self.name,
                item=str(tile),
            )
            trouble = tile_trouble(response, has_token=self._token is not None, source=self.name, item=str(tile))
            if trouble is None:
                length = len(response.body)
                if size_bytes in (None, length) or self._stale_sizes >= _MAX_STALE_SIZES:
                    return response
                if response.body == before:
                    self._stale_sizes += 1
                    return response
                before = response.body
                text = f"tile {tile} has {length} bytes, the tilemap says {size_bytes}"
                trouble = FetchError(text, source=self.name, item=str(tile), outcome=Outcome.TRUNCATED)
            may_pass = isinstance(trouble, BlankTile) or trouble.outcome.is_transient
            if is_last or not may_pass or isinstance(trouble, SourceStopped):
                raise trouble
            await asyncio.sleep(self.recheck_wait_s)
        raise AssertionError("unreachable")

    async def _stand_in(self, service: Service, tile: Tile, http: Http) -> Fetched:
        """Return the tile's part of its nearest existing ancestor, enlarged.

        Raises:
            NoImagery: If there is none near.
            FetchError: If one may exist but could not be had: a coarser one would be the wrong answer for good.
        """
        for up in range(1, min(MAX_UPSAMPLING, tile.z) + 1):
            ancestor = Tile(tile.x >> up, tile.y >> up, tile.z - up)
            fetched = await self._ancestors.get(ancestor, partial(self._ancestor, service, ancestor, http))
            if fetched is not None:
                image = await asyncio.to_thread(enlarged, fetched.image, tile, up)
                # Validators are those of another address.
                return replace(fetched, image=image, upsampled_from_zoom=ancestor.z, etag="", last_modified="")
        text = f"neither tile {tile} exists nor one of the {min(MAX_UPSAMPLING, tile.z)} above it"
        raise NoImagery(text, source=self.name, item=str(tile))

    async def _ancestor(self, service: Service, tile: Tile, http: Http) -> Fetched | None:
        try:
            fetched = await self._existing(service, tile, http)
        except NoImagery:
            return None
        size = image_size(fetched.image)
        if size != (self.tile_px, self.tile_px):
            text = f"tile {tile} is {size[0]}x{size[1]} pixels, not {self.tile_px}x{self.tile_px}"
            raise FetchError(text, source=self.name, item=str(tile), outcome=Outcome.WRONG_SIZE)
        return fetched


def enlarged(image: bytes, tile: Tile, up: int) -> bytes:
    """Return the JPEG of a tile made from that of an ancestor, bicubic, without seams between its neighbours.

    Args:
        image: The ancestor, square.
        tile: The tile that is missing.
        up: Zoom levels between the two.

    Raises:
        FetchError: ``decode_error`` if the ancestor cannot be decoded.
    """
    pixels = decode(image)
    side = pixels.shape[0] / 2**up
    left, top = tile.x % 2**up * side, tile.y % 2**up * side
    size = (pixels.shape[1], pixels.shape[0])
    # The box only chooses what comes out: pixels around it still count, so that siblings fit together.
    part = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return encode_jpeg(np.asarray(part))


def checked_mode(tilemap: str, modes: tuple[str, ...]) -> str:
    """Return the option ``tilemap``.

    Raises:
        RecipeError: If it is none of the modes.
    """
    if tilemap not in modes:
        raise RecipeError(f"recipe key 'imagery.options.tilemap' must be {' or '.join(modes)}, not '{tilemap}'")
    return tilemap
