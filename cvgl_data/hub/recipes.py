"""A recipe as it may be published: without keys, without the folders of one machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from cvgl_data.errors import RecipeError
from cvgl_data.redaction import redact

LOCAL = "local:"
"""Stands before the name of a folder or file that only its author has."""

_ABSOLUTE = re.compile(r"(?:file://|~|/|[A-Za-z]:[\\/]|\\\\)")
_LOGIN = re.compile(r"(?<=://)[^/@\s]*@")


def without_paths(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a recipe with every local path shortened to ``local:`` and its last part.

    The files of areas and of panorama ids are only names afterwards: the dataset lists what they chose. Keys and
    log-ins inside addresses are blanked out.

    Args:
        tables: Resolved recipe as nested plain tables.
    """
    return {key: _clean(value, key, tables) for key, value in tables.items()}


def check_sources(tables: Mapping[str, Any]) -> None:
    """Raise if a source of the recipe needs files that only its author has.

    Raises:
        RecipeError: Saying how to name one's own copy.
    """
    for kind in ("imagery", "panoramas"):
        for key, value in tables.get(kind, {}).get("options", {}).items():
            if isinstance(value, str) and value.startswith(LOCAL):
                raise RecipeError(
                    f"the {kind} of this dataset came from '{value.removeprefix(LOCAL)}' on its author's machine; "
                    f"if you have these files, pass --set {kind}.options.{key}=PATH"
                )


def _clean(value: Any, key: str, parent: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        # The options of a source belong to it: what `location` means depends on which source it is.
        return {inner: _clean(item, inner, {**value, "of": parent.get("source", "")}) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, key, parent) for item in value]
    if not isinstance(value, str):
        return value
    is_file = key in ("file", "pano_ids") or (key == "location" and parent.get("of") == "folder")
    if value and (is_file or _ABSOLUTE.match(value)) and not value.startswith(LOCAL):
        return LOCAL + _last_part(value)
    return redact(_LOGIN.sub("", value))


def _last_part(path: str) -> str:
    pure = PureWindowsPath(path) if "\\" in path else PurePosixPath(path)
    return pure.name or "files"
