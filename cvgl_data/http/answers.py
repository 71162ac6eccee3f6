"""Answers of web services: JSON that is checked against what was agreed, or one clear error.

The field types refuse what JSON can hold and no dataset should: NaN, positions off the globe, half a surrogate pair.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from cvgl_data.errors import FetchError
from cvgl_data.redaction import beginning, redact
from cvgl_data.types import Outcome

if TYPE_CHECKING:
    from cvgl_data.http.responses import Response

T = TypeVar("T")


def _encodable(text: str) -> str:
    """Refuse half a surrogate pair, which JSON may hold and no file takes."""
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
"""Finite; a whole number will do, a text or a flag will not."""

Lon = Annotated[Number, Field(ge=-180.0, le=180.0)]
Lat = Annotated[Number, Field(ge=-90.0, le=90.0)]


class Model(BaseModel):
    """Base of all answers: what is not needed is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Point(Model):
    """A GeoJSON point: (lon, lat), or (lon, lat, altitude)."""

    coordinates: tuple[Lon, Lat] | tuple[Lon, Lat, Number]


def is_address(text: str) -> bool:
    """Tell whether a text is a web address at all."""
    try:
        parts = urlsplit(_encodable(text))
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0  # `port` may raise too
    except ValueError:
        return False


def load(response: Response, *, source: str, item: str) -> Any:
    """Return the JSON of an answer.

    Raises:
        FetchError: ``wrong_type`` if it is none (an error page, say).
    """
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError):
        kind = response.headers.get("Content-Type", "no content type")
        text = redact(f"the answer is not JSON ({kind}, it begins with {beginning(response.body, 24)}): {response.url}")
        raise FetchError(text, source=source, item=item, outcome=Outcome.WRONG_TYPE) from None


def check(kind: type[T], value: Any, *, source: str, item: str) -> T:
    """Return a JSON value as the type it should have, a pydantic model or anything pydantic knows.

    Raises:
        FetchError: ``decode_error`` naming the first field that is missing or of another type.
    """
    try:
        found: T = _adapter(cast(Hashable, kind)).validate_python(value)
        return found
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the answer"
        text = redact(f"unexpected answer: {where}: {first['msg']} (found {beginning(str(first['input']), 60)})")
        raise FetchError(text, source=source, item=item, outcome=Outcome.DECODE_ERROR) from None


def read(kind: type[T], response: Response, *, source: str, item: str) -> T:
    """Return the JSON of an answer as the type it should have; errors as for `load` and `check`."""
    return check(kind, load(response, source=source, item=item), source=source, item=item)


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
