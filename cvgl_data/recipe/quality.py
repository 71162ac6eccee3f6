"""What makes an image of a dataset a bad one."""

from __future__ import annotations

from dataclasses import dataclass

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRecipe:
    """Thresholds of the quality checks, and which of them take an image out of the dataset."""

    __pydantic_config__ = _STRICT
    drop: tuple[str, ...] = ("undecodable",)
    """Checks that take an image out of the dataset; what fails any other is only flagged."""
