"""Answers of web services: JSON that is checked against what was agreed, or one clear error."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from cvgl_data.errors import FetchError
from cvgl_data.types import Outcome

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from cvgl_data.http import Response

T = TypeVar("T")


def load(response: Response, *, source: str, item: str) -> Any:
    """Return the JSON of an answer.

    Raises:
        FetchError: ``wrong_type`` if it is none (an error page, say).
    """
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError):
        kind = response.headers.get("Content-Type", "no content type")
        text = f"the answer is not JSON ({kind}, it begins with {response.body[:24]!r}): {response.url}"
        raise FetchError(text, source=source, item=item, outcome=Outcome.WRONG_TYPE) from None


def check(kind: type[T], value: Any, *, source: str, item: str) -> T:
    """Return a JSON value as the type it should have, a pydantic model or anything pydantic knows.

    Raises:
        FetchError: ``decode_error`` naming the first field that is missing or of another type.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the answer"
        text = f"unexpected answer: {where}: {first['msg']} (found {str(first['input'])[:60]!r})"
        raise FetchError(text, source=source, item=item, outcome=Outcome.DECODE_ERROR) from None


def read(kind: type[T], response: Response, *, source: str, item: str) -> T:
    """Return the JSON of an answer as the type it should have; errors as for `load` and `check`."""
    return check(kind, load(response, source=source, item=item), source=source, item=item)


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
