"""Where a dataset lies, in one string: ``reader:folder?option=value&option=value``.

It survives `pathlib.Path` and a shell's single quotes, so one argument of a command says all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from cvgl_data.errors import RecipeError
from cvgl_data.registry import did_you_mean

PACKED = "packed"
"""The reader of a string that names none."""


class Location(NamedTuple):
    """A parsed location."""

    reader: str
    place: str
    """Folder, or the name of a dataset on the Hub."""
    options: dict[str, str]

    def __str__(self) -> str:
        query = f"?{urlencode(self.options, safe=',/')}" if self.options else ""
        return f"{self.reader}:{self.place}{query}"


def parse(text: str | Path) -> Location:
    """Split a location into its parts; a path that exists is a packed dataset whatever characters it has.

    Raises:
        RecipeError: If an option has no value or is given twice.
    """
    reader, colon, place = str(text).partition(":")
    if not colon or Path(text).exists():
        reader, place = PACKED, str(text)
    if "?" not in place or Path(place).exists():
        return Location(reader, place, {})
    place, _, query = place.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        pairs = parse_qsl(part, keep_blank_values=True)
        key, value = pairs[0] if pairs else (part, "")
        if not value:
            raise RecipeError(f"option '{key}' in '{text}' has no value; write it like protocol=cross-area")
        if key in options:
            raise RecipeError(f"option '{key}' appears twice in '{text}'")
        options[key] = value
    return Location(reader, place, options)


def typed_options(reader: Callable[..., Any], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as the types that a reader's keyword-only parameters have (str, bool, int or float).

    Args:
        reader: Its parameters of these types, ``verify`` aside, are its options.
        name: Name of the reader, for messages.
        given: Values, or text of values.

    Raises:
        RecipeError: If there is no such option, or the text is no value of its type.
    """
    known = {
        key: _TYPES[_type_name(item.annotation)]
        for key, item in inspect.signature(reader).parameters.items()
        if item.kind is item.KEYWORD_ONLY and key != "verify" and _type_name(item.annotation) in _TYPES
    }
    values = {}
    for key, value in given.items():
        if key not in known:
            hint = did_you_mean(key, known) if known else "; it takes none"
            raise RecipeError(f"reader '{name}' has no option '{key}'{hint}")
        convert, what = known[key]
        try:
            values[key] = convert(value)
        except (ValueError, KeyError):
            raise RecipeError(f"option '{key}' of reader '{name}' is '{value}', it must be {what}") from None
    return values


def _type_name(annotation: Any) -> str:
    """Return the name of a type, which is a string where a module postpones its annotations."""
    return str(getattr(annotation, "__name__", annotation))


def _boolean(value: Any) -> bool:
    return {"true": True, "false": False}[str(value).lower()]


_TYPES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "str": (str, "text"),
    "bool": (_boolean, "true or false"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
}
