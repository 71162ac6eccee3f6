"""Heads that make one vector of a backbone's last map: one file per head, one line in the table below.

Shapes: B images, C channels of the map, h and w its grid, D the embedding. Heads compute in float32 where they sum or
take powers, and do not normalize their result; the encoder does.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from cvgl_data.errors import RecipeError
from cvgl_data.registry import Registry, did_you_mean

Option = str | int | float | bool


class Aggregator(nn.Module, ABC):
    """Base class of heads.

    A head takes ``in_channels`` (C), ``grid`` (h and w of the first view), and its own options, each with a default.
    """

    num_features: int
    """D."""
    uses_class_token = False
    """Whether `forward` needs the backbone's class token."""

    @abstractmethod
    def forward(self, map_BChw: Tensor, class_BC: Tensor | None = None) -> Tensor:
        """Return (B, D) from a map of any grid."""


AGGREGATORS: Registry[Callable[..., Aggregator]] = Registry(
    "aggregator",
    {
        "average": "cvgl_models.aggregators.average:Average",
        "convap": "cvgl_models.aggregators.convap:ConvAP",
        "cosplace": "cvgl_models.aggregators.cosplace:CosPlace",
        "gem": "cvgl_models.aggregators.gem:GeM",
        "mixvpr": "cvgl_models.aggregators.mixvpr:MixVPR",
        "netvlad": "cvgl_models.aggregators.netvlad:NetVLAD",
        "spatial_attention": "cvgl_models.aggregators.spatial_attention:SpatialAttention",
    },
    group="cvgl.aggregators",
)


def create_aggregator(
    name: str, in_channels: int, grid: tuple[int, int], options: Mapping[str, Option] | None = None
) -> Aggregator:
    """Build a head.

    Args:
        name: A name of `AGGREGATORS`.
        in_channels: Channels of the map.
        grid: Height and width of the map of the first view.
        options: The head's own, as in a recipe's ``encoder.aggregator_options``.

    Raises:
        UnknownNameError: If there is no such head.
        RecipeError: If it has no such option, or the value is wrong.
    """
    head = AGGREGATORS.load(name)
    defaults = {key: item.default for key, item in list(inspect.signature(head).parameters.items())[2:]}
    checked = {}
    for key, value in (options or {}).items():
        where = f"encoder.aggregator_options.{key}"
        if key not in defaults:
            hint = did_you_mean(key, defaults) if defaults else f"; '{name}' has no options"
            raise RecipeError(f"unknown recipe key '{where}' of aggregator '{name}'{hint}")
        checked[key] = _as_kind_of(defaults[key], value, where)
    try:
        return head(in_channels, grid, **checked)
    except ValueError as error:
        raise RecipeError(f"recipe table 'encoder.aggregator_options': {error}") from error


def _as_kind_of(default: Any, value: Option, where: str) -> Option:
    """Return an option as the type of its default; an integer will do for a number."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise RecipeError(f"recipe key '{where}' must be of type {type(default).__name__}, not {value!r}")
    return value


def require_positive(**values: float) -> None:
    """Raise ValueError for the first value that is not above 0."""
    for key, value in values.items():
        if not value > 0:
            raise ValueError(f"{key} must be positive, not {value}")
