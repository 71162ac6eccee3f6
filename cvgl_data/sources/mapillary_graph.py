"""Mapillary's graph API as its client sees it: entities, the calls that ask for them, and what a refusal means.

Source:
    Mapillary API v4, https://www.mapillary.com/developer/api-documentation
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from cvgl_data.environment import needed_secret
from cvgl_data.errors import FetchError, NoPanorama, SourceStopped
from cvgl_data.http import Http, answers
from cvgl_data.http.hosts import Quota
from cvgl_data.http.responses import Response
from cvgl_data.redaction import redact
from cvgl_data.sources.batching import Batching
from cvgl_data.types import Outcome

NAME = "mapillary"
BATCH = 50
"""Entities that one call may ask for."""

ENTITIES = Quota("mapillary-entities", per_minute=60_000)

FIELDS = (
    "id,captured_at,is_pano,camera_type,computed_rotation,computed_compass_angle,compass_angle,"
    "computed_geometry,geometry,creator,sequence,width"
)
ANSWERS = frozenset(range(400, 500)) - {402, 407, 408, 425, 429}
"""Statuses whose body tells what is wrong; the client deals with the rest."""

_BAD_TOKEN = 190
_LIMIT_CODES = frozenset({4, 17, 32, 613})
_PASSING_CODES = frozenset({1, 2})
"""Codes of graph errors: over a limit of the application; a failure of the service."""

ID = re.compile(r"[0-9]{1,20}")
Id = Annotated[str, Field(pattern=rf"^{ID.pattern}$")]
_Turn = Annotated[answers.Number, Field(ge=-10.0, le=10.0)]


def token() -> str:
    """Return the access token.

    Raises:
        RecipeError: If ``CVGL_MAPILLARY_TOKEN`` is not set.
    """
    how = "get one at https://www.mapillary.com/dashboard/developers"
    return needed_secret("CVGL_MAPILLARY_TOKEN", NAME, how).reveal()


class Graph:
    """Asks for entities, those wanted at the same time in one call.

    Args:
        http: Client of the run, without conditions.
        url: Of the graph API.
        thumb: Field of the image's address.

    Raises:
        RecipeError: If there is no token.
    """

    def __init__(self, http: Http, url: str, thumb: str) -> None:
        self.http = http
        self._url = url
        self._fields = f"{FIELDS},{thumb}"
        self._headers = {"Authorization": f"OAuth {token()}"}
        self._batching: Batching[Any] = Batching(self._ask, BATCH)

    async def entity(self, image_id: str) -> Entity:
        """Return what is known of a panorama, asked for anew.

        Raises:
            NoPanorama: If there is none.
            FetchError: If it could not be had this time, or is no panorama.
            SourceStopped: If the token is refused, or its limit reached.
        """
        return entity_of(await self._batching.get(image_id), image_id)

    def close(self) -> None:
        """Give up the calls that are still under way."""
        self._batching.close()

    async def _ask(self, ids: Sequence[str]) -> Mapping[str, Any]:
        is_one = len(ids) == 1
        params = {"fields": self._fields} if is_one else {"ids": ",".join(ids), "fields": self._fields}
        response = await self.http.get(
            f"{self._url}/{ids[0] if is_one else ''}",
            params=params,
            headers=self._headers,
            accept=ANSWERS,
            quota=ENTITIES,
            source=NAME,
            item=ids[0],
        )
        found = _object(response, ids[0])
        if is_one:
            return {ids[0]: found}
        return {each: _given(found.get(each), each) for each in ids}


def _given(entity: Any, image_id: str) -> Any:
    """Return an entity, or the error for none: an answer for many leaves out what does not exist."""
    return NoPanorama(f"there is no image {image_id}", source=NAME, item=image_id) if entity is None else entity


class _Creator(answers.Model):
    username: answers.Text | None = None


class Entity(answers.Model):
    """What the graph API knows of one image; absent and null are the same."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: Id
    captured_at: answers.Whole | None = None
    is_pano: answers.Flag | None = None
    camera_type: answers.Text | None = None
    computed_rotation: tuple[_Turn, _Turn, _Turn] | None = None
    computed_compass_angle: answers.Number | None = None
    compass_angle: answers.Number | None = None
    computed_geometry: answers.Point | None = None
    geometry: answers.Point | None = None
    creator: _Creator | None = None
    sequence: answers.Text | None = None
    width: answers.Number | None = None

    def thumb(self, field: str) -> str:
        """Return the address of the image, which is signed and expires.

        Raises:
            FetchError: ``decode_error`` if there is none.
        """
        url = (self.model_extra or {}).get(field)
        if not isinstance(url, str) or not answers.is_address(url):
            what = "is missing" if url is None else "is no address"
            text = f"unexpected answer: {field} of image {self.id} {what}"
            raise FetchError(text, source=NAME, item=self.id, outcome=Outcome.DECODE_ERROR)
        return url


def entity_of(answer: Any, pano_id: str) -> Entity:
    """Return one entity of the graph API, checked to be the panorama asked for.

    Raises:
        FetchError: ``wrong_type`` if it is no panorama, ``decode_error`` if it is not what was agreed.
    """
    entity = answers.check(Entity, answer, source=NAME, item=pano_id)
    outcome = Outcome.DECODE_ERROR
    if entity.id != pano_id:
        text = f"unexpected answer: it is about image {entity.id}, not {pano_id}"
    elif entity.geometry is None and entity.computed_geometry is None:
        text = f"unexpected answer: image {pano_id} has no position"
    elif entity.is_pano is None and entity.camera_type is None:
        text = f"unexpected answer: nothing tells whether image {pano_id} is a panorama"
    elif entity.is_pano is False or entity.camera_type not in (None, "spherical", "equirectangular"):
        text = f"image {pano_id} is no panorama (camera type {str(entity.camera_type)[:40]})"
        outcome = Outcome.WRONG_TYPE
    else:
        return entity
    raise FetchError(text, source=NAME, item=pano_id, outcome=outcome)


def _object(response: Response, item: str) -> dict[str, Any]:
    """Return the object that the graph API answers with, or raise what it says instead."""
    if response.status >= 400:
        raise refusal(response, item)
    answer = answers.read(dict[str, Any], response, source=NAME, item=item)
    if "error" in answer:
        raise refusal(response, item)
    return answer


def refusal(response: Response, item: str) -> FetchError:
    """Return what an answer with a status of 400 or more means.

    A token that is wrong and a limit that is reached stop the source; what else is refused concerns the item.
    """
    code, message = _graph_error(response)
    text = f"HTTP {response.status}{f' ({message})' if message else ''}: {response.url}"
    if code in _LIMIT_CODES:
        text = f"Mapillary's limit for this token is reached: {text}"
        return SourceStopped(text, source=NAME, item=item, outcome=Outcome.QUOTA)
    if code == _BAD_TOKEN or response.status in (401, 403):
        text = f"Mapillary refuses the token in CVGL_MAPILLARY_TOKEN: {text}"
        return SourceStopped(text, source=NAME, item=item, outcome=Outcome.AUTH)
    if code in _PASSING_CODES:
        return FetchError(text, source=NAME, item=item, outcome=Outcome.SERVER_ERROR)
    return NoPanorama(text, source=NAME, item=item)


def _graph_error(response: Response) -> tuple[int, str]:
    """Return code and message of a graph error, 0 and nothing for anything else."""
    try:
        error = answers.read(_Refusal, response, source=NAME, item="").error
    except FetchError:
        return 0, ""
    return error.code, redact(error.message[:200])


class _GraphError(answers.Model):
    code: answers.Whole = 0
    message: answers.Text = ""


class _Refusal(answers.Model):
    error: _GraphError
