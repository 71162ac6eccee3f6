"""Panoramas of Mapillary: listed by vector tiles, described by its graph API, served from signed addresses.

Source:
    Mapillary API v4, https://www.mapillary.com/developer/api-documentation; OpenSfM for ``computed_rotation``.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.environment import base_url
from cvgl_data.errors import FetchError, NoPanorama, RecipeError
from cvgl_data.http import Http, answers
from cvgl_data.http.hosts import Quota
from cvgl_data.http.responses import Response
from cvgl_data.images import image_size
from cvgl_data.redaction import redact
from cvgl_data.sources import vector_tiles
from cvgl_data.sources.mapillary_graph import ANSWERS, BATCH, ID, NAME, Entity, Graph, Id, refusal, token
from cvgl_data.types import Cost, Outcome, Panorama, PanoramaRef, Terms, Tile

GRAPH_URL = "https://graph.mapillary.com"
TILES_URL = "https://tiles.mapillary.com/maps/vtp"
ZOOM = 14
"""The only zoom whose vector tiles list images."""

SIZES = ("256", "1024", "2048", "original")
TILES = Quota("mapillary-tiles", per_day=50_000)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MapillaryPanoramas:
    """Panoramas of Mapillary; needs an access token in ``CVGL_MAPILLARY_TOKEN``.

    ``CVGL_MAPILLARY_GRAPH_URL`` and ``CVGL_MAPILLARY_TILES_URL`` name other servers of the same API.

    Args:
        size: Width of the images: 256, 1024, 2048 or ``original``.
        computed_tiles: List images where they were reconstructed to be instead of where the camera put them.

    Raises:
        RecipeError: If there is no such size.
    """

    name = NAME
    attribution = "Mapillary contributors (https://www.mapillary.com)"
    licence = "CC-BY-SA-4.0"
    terms = Terms(
        name=NAME,
        url="https://www.mapillary.com/terms",
        summary="Images are CC BY-SA 4.0: credit Mapillary and the creator with a link, share adaptations alike.",
        redistributable=True,
        must_accept=False,
    )

    def __init__(self, size: str | int = "2048", computed_tiles: bool = False) -> None:
        if str(size) not in SIZES:
            raise RecipeError(f"recipe key 'panoramas.options.size' must be one of {', '.join(SIZES)}, not '{size}'")
        self._thumb = f"thumb_{size}_url"
        self._width = math.inf if size == "original" else int(size)
        self._map = "mly1_computed_public" if computed_tiles else "mly1_public"
        self._graph_url = base_url("CVGL_MAPILLARY_GRAPH_URL", GRAPH_URL)
        self._tiles_url = base_url("CVGL_MAPILLARY_TILES_URL", TILES_URL)
        self._graph: Graph | None = None

    def cost(self) -> Cost:
        """Return what one panorama takes."""
        return Cost(
            requests={urlsplit(self._graph_url).netloc: 1.0, "image servers of Mapillary": 1.0},
            bytes={"256": 20e3, "1024": 150e3, "2048": 500e3}.get(self._thumb.split("_")[1], 5e6),
            note=f"up to {BATCH} panoramas share an entity call, so the first figure is an upper bound; discovery adds "
            f"one request per zoom-{ZOOM} tile of the area, of at most {TILES.per_day:,} a day",
        )

    def check_access(self) -> None:
        """Raise `RecipeError` if there is no token."""
        token()

    def discovery(self, area: AreaOfInterest) -> dict[str, float]:
        """Return host to requests that `discover` sends: one per vector tile."""
        return {urlsplit(self._tiles_url).netloc: float(len(vector_tiles.covering(area, ZOOM)))}

    def discover(self, area: AreaOfInterest, http: Http) -> AsyncIterator[PanoramaRef | FetchError]:
        """Yield the panoramas inside the area; see `PanoramaSource.discover`.

        Raises:
            RecipeError: If there is no token.
            SourceStopped: If it is refused, or a quota is used up.
        """

        async def load(tile: Tile) -> bytes:
            url = f"{self._tiles_url}/{self._map}/2/{tile}"
            params = {"access_token": token()}
            response = await http.get(url, params=params, accept=ANSWERS, quota=TILES, source=NAME, item=str(tile))
            if response.status == 404:
                return b""
            if response.status >= 400:
                raise refusal(response, str(tile))
            return response.body if response.status == 200 else b""

        return vector_tiles.discover(area, ZOOM, "image", source=NAME, load=load, read=ref_of)

    async def fetch(self, pano_id: str, http: Http) -> Panorama:
        """Return the panorama; see `PanoramaSource.fetch`.

        The address of an image expires: it is asked for right before the download, and once more if it is refused.

        Raises:
            RecipeError: If there is no token.
        """
        if not ID.fullmatch(pano_id):
            raise NoPanorama(f"'{pano_id}' is no Mapillary image id", source=NAME, item=pano_id)
        # Only the image is asked for on `http`'s conditions: what many panoramas share has none.
        if self._graph is None or self._graph.http is not http.base:
            self._graph = Graph(http.base, self._graph_url, self._thumb)
        entity = await self._graph.entity(pano_id)
        try:
            image = await self._image(entity, http)
        except FetchError as error:
            if error.outcome is not Outcome.AUTH:
                raise
            entity = await self._graph.entity(pano_id)
            image = await self._image(entity, http)
        return panorama_of(entity, image.body, **image.validators)

    async def _image(self, entity: Entity, http: Http) -> Response:
        """Download the image of an entity; messages leave out the signature of its address."""
        url = entity.thumb(self._thumb)
        plain = url.partition("?")[0]
        try:
            response = await http.get(url, source=NAME, item=entity.id)
            width, height = image_size(response.body)
            if width < min(self._width, entity.width or 0):
                raise FetchError(f"the image is only {width}x{height} pixels", outcome=Outcome.WRONG_SIZE)
        except FetchError as error:
            text = str(error).replace(url, plain).replace(redact(url), plain)
            if plain not in text:
                text = f"{text}: {plain}"
            raise FetchError(text, source=NAME, item=entity.id, outcome=error.outcome) from None
        return response

    def close(self) -> None:
        """Give up the entity calls that are still under way."""
        if self._graph is not None:
            self._graph.close()


class _Record(answers.Model):
    """A feature of the layer ``image``; an image that is not said to be a panorama is none."""

    id: Annotated[answers.Whole, Field(ge=0)] | Id
    is_pano: answers.Flag = False
    captured_at: answers.Whole | None = None


def panorama_of(entity: Entity, image: bytes, **validators: Any) -> Panorama:
    """Return an entity with its image; reconstructed values come before those of the camera.

    Raises:
        FetchError: ``decode_error`` if its date is none.
    """
    point = entity.computed_geometry or entity.geometry
    assert point is not None  # `entity_of` has made sure
    lon, lat = point.coordinates[:2]
    heading_deg, pitch_deg, roll_deg, pose_source = pose_of(entity)
    return Panorama(
        pano_id=entity.id,
        image=image,
        lon=lon,
        lat=lat,
        heading_deg=heading_deg,
        pitch_deg=pitch_deg,
        roll_deg=roll_deg,
        captured=captured_of(entity.captured_at, entity.id),
        licence=MapillaryPanoramas.licence,
        creator=(entity.creator.username or "") if entity.creator else "",
        sequence=entity.sequence or "",
        pose_source=pose_source,
        **validators,
    )


def pose_of(entity: Entity) -> tuple[float | None, float | None, float | None, str]:
    """Return heading, pitch and roll in degrees and the field they come from; unknown ones are ``None``."""
    if entity.computed_rotation is not None:
        return *pose_from_rotation(entity.computed_rotation), "computed_rotation"
    if entity.computed_compass_angle is not None:
        return entity.computed_compass_angle % 360.0 % 360.0, None, None, "computed_compass_angle"
    if entity.compass_angle is not None:
        return entity.compass_angle % 360.0 % 360.0, None, None, "compass_angle"
    return None, None, None, ""


def pose_from_rotation(rotation: tuple[float, float, float]) -> tuple[float, float, float]:
    """Convert OpenSfM's rotation from world to camera to the pose of a panorama.

    The rows of its matrix are the camera's axes right, down and forward in the world east, north, up.

    Args:
        rotation: Axis times angle in radians.

    Returns:
        Heading in [0, 360), pitch in [-90, 90] and roll in [-180, 180] degrees, in the conventions of `Panorama`.
    """
    right, down, forward = rotation_matrix(rotation)
    heading = np.arctan2(forward[0], forward[1])
    pitch = np.arctan2(forward[2], np.hypot(forward[0], forward[1]))
    level = np.array([np.cos(heading), -np.sin(heading), 0.0])  # where right points without roll
    roll = np.arctan2(-down @ level, right @ level)
    return float(np.degrees(heading) % 360.0 % 360.0), float(np.degrees(pitch)), float(np.degrees(roll))


def rotation_matrix(rotation: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the (3, 3) matrix of a rotation given as axis times angle in radians (Rodrigues' formula)."""
    vector = np.asarray(rotation, np.float64)
    angle = float(np.linalg.norm(vector))
    if angle == 0.0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross))


def ref_of(point: vector_tiles.Point) -> PanoramaRef | None:
    """Return an image of a vector tile, ``None`` if it is no panorama.

    Raises:
        FetchError: ``decode_error`` if its properties are not what was agreed.
    """
    record = answers.check(_Record, dict(point.properties), source=NAME, item=point.item)
    if not record.is_pano:
        return None
    captured = captured_of(record.captured_at, point.item)
    return PanoramaRef(pano_id=str(record.id), lon=point.lon, lat=point.lat, captured=captured)


def captured_of(epoch_ms: int | None, item: str) -> str:
    """Return milliseconds since 1970 as ISO 8601 in UTC, empty for ``None``.

    Raises:
        FetchError: ``decode_error`` if no calendar goes that far.
    """
    if epoch_ms is None:
        return ""
    try:
        return (_EPOCH + timedelta(milliseconds=epoch_ms)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        text = f"unexpected answer: captured_at {str(epoch_ms)[:40]} is no date"
        raise FetchError(text, source=NAME, item=item, outcome=Outcome.DECODE_ERROR) from None
