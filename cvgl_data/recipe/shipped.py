"""Recipes as files: the user's own and those that come with cvgl."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from cvgl_data.errors import RecipeError
from cvgl_data.registry import did_you_mean


def load_toml(name_or_path: str | Path, kind: str) -> dict[str, Any]:
    """Return the tables of a recipe given by shipped name or by path.

    Args:
        name_or_path: ``demo`` (a shipped recipe) or ``./mine.toml`` (a file).
        kind: ``datasets`` or ``models``, the folder of shipped recipes.

    Raises:
        RecipeError: If there is no such recipe or it is not TOML.
    """
    text = read_text(name_or_path, kind)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe '{name_or_path}' is not valid TOML: {error}") from None


def read_text(name_or_path: str | Path, kind: str) -> str:
    """Return a recipe's text, comments included; arguments and errors as for `load_toml`."""
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.parent != Path():
        if not path.is_file():
            raise RecipeError(f"'{path}' is a folder, no recipe file" if path.is_dir() else f"no recipe file '{path}'")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe '{path}' cannot be read: {error}") from None
    shipped = files("cvgl_recipes") / kind / f"{name_or_path}.toml"
    if not shipped.is_file():
        known = shipped_recipes(kind)
        if path.is_file():
            raise RecipeError(
                f"no shipped recipe '{name_or_path}' in {kind}; write './{path}' for the file of that name"
            )
        raise RecipeError(f"no shipped recipe '{name_or_path}' in {kind}{did_you_mean(str(name_or_path), known)}")
    return shipped.read_text(encoding="utf-8")


def shipped_recipes(kind: str) -> list[str]:
    """Return the names of the recipes that come with cvgl (``datasets`` or ``models``)."""
    entries = [entry.name for entry in (files("cvgl_recipes") / kind).iterdir()]
    return sorted(name.removesuffix(".toml") for name in entries if name.endswith(".toml"))


def describe_shipped(kind: str) -> list[tuple[str, str]]:
    """Return the name of each recipe that comes with cvgl, and how to run it."""
    return [
        (name, read_text(name, kind).split("\n", 1)[0].removeprefix("# Run:").strip()) for name in shipped_recipes(kind)
    ]
