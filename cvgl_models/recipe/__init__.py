"""Model recipes: everything that decides what a training does, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cvgl_data.errors import RecipeError
from cvgl_data.recipe import load_toml, resolve
from cvgl_models.recipe.checks import STRICT, at_least
from cvgl_models.recipe.network import EncoderRecipe
from cvgl_models.recipe.schedule import LogRecipe, OptimRecipe, SamplerRecipe, ValidationRecipe
from cvgl_models.recipe.views import AugmentRecipe, LoaderRecipe, ViewRecipe

__all__ = [
    "AugmentRecipe",
    "EncoderRecipe",
    "LoaderRecipe",
    "LogRecipe",
    "ModelRecipe",
    "OptimRecipe",
    "SamplerRecipe",
    "ValidationRecipe",
    "ViewRecipe",
    "load_recipe",
    "system_options",
]

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecipe:
    """One training."""

    __pydantic_config__ = STRICT
    name: str
    system: str = "sample4geo"
    """A name of the system registry."""
    options: dict[str, Any] = field(default_factory=dict)
    """The system's own, see its documentation."""
    seed: int = 0
    views: ViewRecipe = field(default_factory=ViewRecipe)
    encoder: EncoderRecipe = field(default_factory=EncoderRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    sampler: SamplerRecipe = field(default_factory=SamplerRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    log: LogRecipe = field(default_factory=LogRecipe)
    loader: LoaderRecipe = field(default_factory=LoaderRecipe)
    validation: ValidationRecipe = field(default_factory=ValidationRecipe)

    def __post_init__(self) -> None:
        at_least(0, seed=self.seed)
        if self.augment.turn_deg and self.views.query != "bev":
            raise RecipeError("recipe key 'augment.turn_deg' needs 'views.query = \"bev\"'")
        if self.augment.heading_noise_deg and (self.views.query == "bev" or self.views.bev_px):
            raise RecipeError(
                "recipe key 'augment.heading_noise_deg' is for pinhole pictures and for panoramas without a top view "
                "beside them"
            )
        if self.augment.heading_noise_deg > 180:
            raise RecipeError(
                "recipe key 'augment.heading_noise_deg' must be at most 180, which is all round, not "
                f"{self.augment.heading_noise_deg:g}"
            )


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> ModelRecipe:
    """Return the recipe of a shipped name or a file, with ``a.b=c`` overrides applied.

    Raises:
        RecipeError: If there is no such recipe, or a key or value is wrong.
    """
    return resolve(ModelRecipe, load_toml(name_or_path, "models"), overrides)


def system_options(kind: type[Options], recipe: ModelRecipe) -> Options:
    """Return the recipe's ``options`` as a system's own frozen dataclass.

    Args:
        kind: Dataclass with defaults for all fields and ``__pydantic_config__ = {"extra": "forbid"}``.
        recipe: Whose ``options`` are read.

    Raises:
        RecipeError: If a key is unknown or a value wrong; names the key.
    """
    try:
        return resolve(kind, recipe.options)
    except RecipeError as error:
        raise RecipeError(str(error).replace("recipe key '", "recipe key 'options.", 1)) from None
