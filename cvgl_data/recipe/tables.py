"""From nested tables to checked recipe classes and back; overrides; differences."""

from __future__ import annotations

import dataclasses
import datetime
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tomli_w

from cvgl_data.errors import RecipeError
from cvgl_data.registry import did_you_mean

R = TypeVar("R")


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
    if isinstance(value, datetime.date | datetime.time):  # a recipe's dates are text, also those without quotes
        value = text.strip()
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
    message = str(error["msg"]).removeprefix("Value error, ")
    if message.startswith("recipe key"):  # it says itself where
        return message
    if isinstance(error["input"], Mapping):  # a table that says itself which value it means
        return f"recipe table '{where}': {message}" if where else f"recipe: {message}"
    return f"recipe key '{where}': {message} (found {error['input']!r})"


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
