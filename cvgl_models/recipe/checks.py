"""What a recipe's values must satisfy; each check names the key that does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from cvgl_data.errors import RecipeError

STRICT = {"extra": "forbid"}
"""pydantic: unknown keys are errors."""


def one_of(key: str, value: str, *known: str) -> None:
    """Raise `RecipeError` unless the value is a known one."""
    if value not in known:
        raise RecipeError(f"recipe key '{key}' is '{value}', expected one of: {', '.join(known)}")


def positive(**values: float) -> None:
    """Raise `RecipeError` unless all are positive and finite; ``a__b`` stands for the key ``a.b``."""
    for key, value in values.items():
        if not 0 < value < math.inf:
            raise RecipeError(f"recipe key '{key.replace('__', '.')}' must be positive and finite, not {value}")


def at_least(low: float, **values: float) -> None:
    """Raise `RecipeError` unless all are finite and at least ``low``."""
    for key, value in values.items():
        if not low <= value < math.inf:
            raise RecipeError(f"recipe key '{key.replace('__', '.')}' must be at least {low} and finite, not {value}")


def share(**values: float) -> None:
    """Raise `RecipeError` unless all lie in [0, 1]."""
    for key, value in values.items():
        if not 0 <= value <= 1:
            raise RecipeError(f"recipe key '{key.replace('__', '.')}' must lie in [0, 1], not {value}")


def share_below_one(**values: float) -> None:
    """Raise `RecipeError` unless all lie in [0, 1)."""
    for key, value in values.items():
        if not 0 <= value < 1:
            raise RecipeError(f"recipe key '{key.replace('__', '.')}' must lie in [0, 1), not {value}")


def unchanged(recipe: Any, system: str, keys: Sequence[str]) -> None:
    """Raise `RecipeError` if a key ``part.name``, which the system has no use for, is not at its default."""
    for key in keys:
        part, name = key.split(".")
        section = getattr(recipe, part)
        field = next(each for each in dataclasses.fields(section) if each.name == name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(section, name)
        if value != default:
            raise RecipeError(f"recipe key '{key}' is {value!r}, but system '{system}' does not read it; leave it out")
