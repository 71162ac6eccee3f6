"""Dataset recipes: TOML on disk, frozen dataclasses inside.

A recipe is the whole description of a build. Unknown keys are errors, ``--set a.b=c`` overrides single values, and the
resolved recipe is saved beside every result and compared when a build is resumed.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from cvgl_data.errors import RecipeError
from cvgl_data.registry import did_you_mean

R = TypeVar("R")


def _at_least(least: float, **values: float) -> None:
    for key, value in values.items():
        if not least <= value < float("inf"):
            raise ValueError(f"'{key}' is {value}, it must be at least {least:g}")


def _dates(**values: str) -> None:
    for key, value in values.items():
        if value and not re.fullmatch(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?", value):
            raise ValueError(f"'{key}' is '{value}', write it like 2021, 2021-06 or 2021-06-15")


def _one_of(key: str, value: str, *known: str) -> None:
    if value not in known:
        raise ValueError(f"'{key}' is '{value}', it must be one of {', '.join(known)}")


_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaRecipe:
    """One area of interest: exactly one of ``city``, ``bbox`` and ``file``."""

    __pydantic_config__ = _STRICT
    name: str = ""
    """What the ``area`` column says; default: the city's or the file's name."""
    city: str = ""
    """A name of the city catalogue."""
    bbox: tuple[float, float, float, float] | None = None
    """West, south, east, north in degrees."""
    file: str = ""
    """Any vector file geopandas reads."""
    clip: tuple[float, float, float, float] | None = None
    """Keep only this box of the area (west, south, east, north in degrees)."""
    max: int = 0
    """Keep at most this many panoramas here (0: as ``panoramas.max`` says)."""

    def __post_init__(self) -> None:
        _at_least(0, max=self.max)


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRecipe:
    """The reference windows."""

    __pydantic_config__ = _STRICT
    zoom: int = 18
    size: int = 256
    """Side in global pixels of ``zoom``."""
    overlap: float = 0.0
    """Share of the side that neighboring windows have in common: 0 XYZ tiles, 0.5 VIGOR's layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecipe:
    """Where images come from."""

    __pydantic_config__ = _STRICT
    source: str
    """A name of the source registry."""
    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Keyword arguments of the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageryRecipe(SourceRecipe):
    """Where references come from."""

    __pydantic_config__ = _STRICT
    source: str = "esri"


@dataclass(frozen=True, slots=True, kw_only=True)
class PanoramaRecipe(SourceRecipe):
    """Where panoramas come from, and which of them."""

    __pydantic_config__ = _STRICT
    source: str = "panoramax"
    pano_ids: str = ""
    """File with one panorama id per line; default: discover inside the areas."""
    spacing_m: float = 0.0
    """Keep panoramas at least this far apart (0: all), chosen by the recipe's seed."""
    max: int = 0
    """Keep at most this many per area (0: all), chosen by the recipe's seed."""
    captured_after: str = ""
    """Keep panoramas of this day and later (``2021``, ``2021-06``, ``2021-06-15``)."""
    captured_before: str = ""
    """Keep panoramas before this day; with either bound, those without a date are left out."""
    align: str = "auto"
    """``north``: re-render to heading 0, upright where pitch and roll are known; ``keep``: store the bytes as
    received; ``auto``: ``keep`` for the user's own files, ``north`` for all else."""
    width: int = 2048
    """Width of re-rendered panoramas; their height is half of it."""

    def __post_init__(self) -> None:
        _one_of("align", self.align, "auto", "north", "keep")
        _at_least(0, max=self.max, spacing_m=self.spacing_m)
        _at_least(2, width=self.width)
        _dates(captured_after=self.captured_after, captured_before=self.captured_before)
        if self.width % 2:
            raise ValueError(f"'width' is {self.width}, it must be even")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistanceMapRecipe:
    """Nearest references of each reference."""

    __pydantic_config__ = _STRICT
    k: int = 128

    def __post_init__(self) -> None:
        _at_least(1, k=self.k)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRecipe:
    """Which queries train and which test."""

    __pydantic_config__ = _STRICT
    protocol: str = "same-area"
    """``same-area``: spatial blocks; ``cross-area``: ``test_areas`` against the others; ``none``: all test."""
    test_areas: tuple[str, ...] = ()
    """Names of the areas that test (cross-area)."""
    validation_fraction: float = 0.1
    """Share of the training queries held out for model selection, in spatial blocks."""
    test_fraction: float = 0.3
    """Share of the queries that test (same-area), in spatial blocks."""
    block_m: float = 400.0
    """Side of a spatial block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecipe:
    """Shards on disk."""

    __pydantic_config__ = _STRICT
    shard_mb: float = 500.0
    """Start a new shard when the images in it pass this size."""

    def __post_init__(self) -> None:
        _at_least(0.001, shard_mb=self.shard_mb)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRecipe:
    """Everything that decides what a dataset contains."""

    __pydantic_config__ = _STRICT
    name: str
    seed: int = 0
    areas: tuple[AreaRecipe, ...] = ()
    """Where; empty means everything a local source holds."""
    limit: int = 0
    """Keep only the first N windows and at most N panoramas of each area (0: all), to try a recipe out."""
    grid: GridRecipe = field(default_factory=GridRecipe)
    imagery: ImageryRecipe = field(default_factory=ImageryRecipe)
    panoramas: PanoramaRecipe = field(default_factory=PanoramaRecipe)
    distance_map: DistanceMapRecipe = field(default_factory=DistanceMapRecipe)
    split: SplitRecipe = field(default_factory=SplitRecipe)
    pack: PackRecipe = field(default_factory=PackRecipe)

    def __post_init__(self) -> None:
        _at_least(0, seed=self.seed, limit=self.limit)
        if not self.name:
            raise ValueError("'name' is empty")


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
            raise RecipeError(f"no recipe file '{path}'")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe '{path}' cannot be read: {error}") from None
    shipped = files("cvgl_recipes") / kind / f"{name_or_path}.toml"
    if not shipped.is_file():
        known = shipped_recipes(kind)
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


def resolve(kind: type[R], tables: Mapping[str, Any], overrides: Sequence[str] = ()) -> R:
    """Check recipe tables against a recipe class, with ``a.b=c`` overrides applied.

    Args:
        kind: A recipe dataclass, such as `DatasetRecipe`.
        tables: Nested tables, as TOML gives them.
        overrides: ``key.path=value``; the value is read as TOML and taken as a string when it is not TOML.

    Raises:
        RecipeError: Naming the key path and, for an unknown key, the nearest valid one.
    """
    from pydantic import TypeAdapter, ValidationError

    merged = _copy(tables)
    for override in overrides:
        _apply(merged, override)
    try:
        return TypeAdapter(kind).validate_python(merged)
    except ValidationError as error:
        raise RecipeError(_explain(error.errors()[0], kind)) from None


def to_tables(recipe: Any) -> dict[str, Any]:
    """Return a recipe as nested plain tables without empty optional values, ready for TOML or JSON."""
    tables = {}
    for item in dataclasses.fields(recipe):
        value = getattr(recipe, item.name)
        if value is not None:
            tables[item.name] = _plain(value)
    return tables


def to_toml(recipe: Any) -> str:
    """Return the resolved recipe as TOML; `resolve` of the parsed text gives an equal recipe."""
    return tomli_w.dumps(to_tables(recipe))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one ``key: old -> new`` line per value in which two resolved recipes differ."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return [
        f"{key}: {before.get(key, 'unset')} -> {after.get(key, 'unset')}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_tables(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _apply(tables: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"'--set {override}' is not of the form key.path=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = path.strip().split(".")
    node: Any = tables
    for key in parents:
        node = _child(node, key, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, key: str, override: str) -> Any:
    child = node[_index(node, key, override)] if isinstance(node, list) else node.setdefault(key, {})
    if not isinstance(child, dict | list):
        raise RecipeError(f"'--set {override}': '{key}' holds a value, not a table")
    return child


def _index(node: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise RecipeError(f"'--set {override}': '{key}' is not an index below {len(node)}")
    return int(key)


def _explain(error: Mapping[str, Any], kind: type) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = [key for key, _ in _flatten(_key_tree(kind))]
        return f"unknown recipe key '{where}'{did_you_mean(where, known)}"
    if error["type"] in ("missing", "missing_argument"):
        return f"recipe key '{where}' is missing"
    return f"recipe key '{where}': {error['msg']} (found {error['input']!r})"


def _key_tree(kind: type) -> dict[str, Any]:
    """Return the key tree of a recipe class, each leaf mapped to ``""``."""
    hints = typing.get_type_hints(kind)
    tree: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        inner = [hints[item.name], *typing.get_args(hints[item.name])]
        nested = next((part for part in inner if dataclasses.is_dataclass(part)), None)
        tree[item.name] = _key_tree(nested) if isinstance(nested, type) else ""
    return tree


def _flatten(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, item in enumerate(value):
                yield from _flatten(item, f"{prefix}{key}.{index}.")
        else:
            yield f"{prefix}{key}", value
