"""Panoramas of Panoramax, the federation of open street-level picture servers.

Source:
    Panoramax API (STAC with the view and perspective-imagery extensions), https://api.panoramax.xyz
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.environment import base_url
from cvgl_data.errors import FetchError, NoPanorama, RecipeError
from cvgl_data.http import Http, answers
from cvgl_data.images import image_size
from cvgl_data.sources import vector_tiles
from cvgl_data.sources.batching import Batching
from cvgl_data.sources.panoramax_items import NAME, Item, captured_of, item_of, split
from cvgl_data.types import Cost, Outcome, Panorama, PanoramaRef, Terms, Tile

URL = "https://api.panoramax.xyz/api"
ZOOM = 15
"""First zoom whose vector tiles list every picture."""

QUALITIES = ("sd", "hd")
SD_PX = 2048
"""Width of ``sd`` pictures, whatever the camera's own."""

BATCH = 50
"""Pictures that one search may ask for."""

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


class PanoramaxPanoramas:
    """360-degree pictures of Panoramax; no key is needed.

    ``CVGL_PANORAMAX_URL`` names another server of the same API.

    Args:
        quality: ``sd`` is 2048 pixels wide, ``hd`` as the camera made it.
        collection: Id of the only sequence that `discover` lists; empty means all.

    Raises:
        RecipeError: If there is no such quality.
    """

    name = NAME
    attribution = "Panoramax contributors"
    licence = ""  # each picture has its own
    terms = Terms(
        name=NAME,
        url="https://panoramax.fr",
        summary="Open data: each picture carries its own free licence (etalab-2.0, CC-BY-SA-4.0, ...), "
        "whose attribution to the producer must be kept; a picture without a licence may not be published.",
        redistributable=True,
        must_accept=False,
    )

    def __init__(self, quality: str = "sd", collection: str = "") -> None:
        if quality not in QUALITIES:
            raise RecipeError(f"recipe key 'panoramas.options.quality' must be sd or hd, not '{quality}'")
        self._quality = quality
        self._collection = collection
        self._url = base_url("CVGL_PANORAMAX_URL", URL)
        self._searches: _Searches | None = None

    def cost(self) -> Cost:
        """Return what one panorama takes."""
        return Cost(
            requests={urlsplit(self._url).netloc: 1.0, "picture storage of the instances": 1.0},
            bytes=500e3 if self._quality == "sd" else 5e6,
            note=f"up to {BATCH} panoramas share a search, so the first figure is an upper bound; discovery adds "
            f"one request per zoom-{ZOOM} tile of the area",
        )

    def discovery(self, area: AreaOfInterest) -> dict[str, float]:
        """Return host to requests that `discover` sends: one per vector tile."""
        return {urlsplit(self._url).netloc: float(len(vector_tiles.covering(area, ZOOM)))}

    def discover(self, area: AreaOfInterest, http: Http) -> AsyncIterator[PanoramaRef | FetchError]:
        """Yield the 360-degree pictures inside the area; see `PanoramaSource.discover`."""

        async def load(tile: Tile) -> bytes:
            url = f"{self._url}/map/{tile}.mvt"
            response = await http.get(url, accept=(404,), source=NAME, item=str(tile))
            return response.body if response.status == 200 else b""

        return vector_tiles.discover(
            area, ZOOM, "pictures", source=NAME, load=load, read=lambda point: ref_of(point, self._collection)
        )

    async def fetch(self, pano_id: str, http: Http) -> Panorama:
        """Return the panorama; see `PanoramaSource.fetch`."""
        if not _ID.fullmatch(pano_id):
            raise NoPanorama(f"'{pano_id}' is no Panoramax id", source=NAME, item=pano_id)
        # Only the picture is asked for on `http`'s conditions: what many panoramas share has none.
        if self._searches is None or self._searches.http is not http.base:
            self._searches = _Searches(http.base, self._url)
        item = await self._searches.item(pano_id)
        url = item.href(self._quality) or f"{self._url}/pictures/{pano_id}/{self._quality}.jpg"
        try:
            picture = await http.get(url, source=NAME, item=pano_id)
        except FetchError as error:
            raise _gone(error, pano_id) from None
        try:
            width, height = image_size(picture.body)
            if self._quality == "sd" and width != SD_PX:
                text = f"the picture is {width}x{height} pixels, not {SD_PX} wide"
                raise FetchError(text, outcome=Outcome.WRONG_SIZE)
        except FetchError as error:
            text = f"{error}: {picture.url}"
            raise FetchError(text, source=NAME, item=pano_id, outcome=error.outcome) from None
        return item.panorama(picture.body, **picture.validators)

    def close(self) -> None:
        """Give up the searches that are still under way."""
        if self._searches is not None:
            self._searches.close()


class _Searches:
    """Searches for pictures by id, those wanted at the same time in one."""

    def __init__(self, http: Http, url: str) -> None:
        self.http = http
        self._url = f"{url}/search"
        self._batching: Batching[Any] = Batching(self._ask, BATCH)

    async def item(self, pano_id: str) -> Item:
        """Return what is known of a panorama; errors as for `item_of`, and for requests."""
        return item_of(await self._batching.get(pano_id), pano_id)

    def close(self) -> None:
        """Give up the searches that are still under way."""
        self._batching.close()

    async def _ask(self, ids: Sequence[str]) -> Mapping[str, Any]:
        # Unasked, a server returns ten. What it leaves out will be asked for alone: there may be a limit to `limit`.
        params = {"ids": ",".join(ids)} | ({"limit": str(len(ids))} if len(ids) > 1 else {})
        try:
            response = await self.http.get(self._url, params=params, source=NAME, item=ids[0])
        except FetchError as error:
            raise _gone(error, ids[0]) from None
        answer = answers.load(response, source=NAME, item=ids[0])
        return {ids[0]: answer} if len(ids) == 1 else split(answer, ids)


class _Record(answers.Model):
    """A feature of the layer ``pictures``; a picture whose type is not told is not taken for a panorama."""

    id: Annotated[str, Field(pattern=rf"^{_ID.pattern}$")]
    type: answers.Text = ""
    ts: answers.Text = ""
    sequences: answers.Text = ""
    first_sequence: answers.Text = ""


def ref_of(point: vector_tiles.Point, collection: str = "") -> PanoramaRef | None:
    """Return a picture of a vector tile, ``None`` if it is flat or of another collection.

    Raises:
        FetchError: ``decode_error`` if its properties are not what was agreed.
    """
    record = answers.check(_Record, dict(point.properties), source=NAME, item=point.item)
    if record.type != "equirectangular":
        return None
    if collection and collection != record.first_sequence and collection not in record.sequences:
        return None
    captured = captured_of(record.ts, point.item)
    return PanoramaRef(pano_id=record.id, lon=point.lon, lat=point.lat, captured=captured)


def _gone(error: FetchError, pano_id: str) -> FetchError:
    """Return the error of a request for one picture; "not found" is then a fact about the picture."""
    if error.outcome is Outcome.NOT_FOUND:
        return NoPanorama(str(error), source=NAME, item=pano_id)
    return error
