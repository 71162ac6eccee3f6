"""Lazy tables of names: importing a registry imports none of the things it lists."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from cvgl_data.errors import UnknownNameError

T = TypeVar("T")
_MOST = 25
"""Names that a message lists."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or a list when none is near."""
    names = sorted(known)
    if near := difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5):
        return f"; did you mean '{near[0]}'?"
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"; known: {', '.join(names[:_MOST])}{more}"


class Registry(Generic[T]):
    """Names to ``"module:attribute"``, resolved at the first use; third parties add names by entry point.

    Args:
        kind: What is listed, for messages ("imagery source").
        table: Name to ``"package.module:attribute"``.
        group: Entry-point group in which other distributions register.
    """

    def __init__(self, kind: str, table: dict[str, str], group: str) -> None:
        self.kind = kind
        self._table = table
        self._group = group

    def __iter__(self) -> Iterator[str]:
        """Yield all known names, sorted."""
        return iter(sorted({*self._table, *self._third_party()}))

    def __contains__(self, name: object) -> bool:
        """Whether a name is known."""
        return name in self._table or name in self._third_party()

    def load(self, name: str) -> T:
        """Import and return what the name stands for.

        Raises:
            UnknownNameError: If the name is not known; the message suggests the nearest.
        """
        target = self._table.get(name) or self._third_party().get(name)
        if target is None:
            raise UnknownNameError(f"unknown {self.kind} '{name}'{did_you_mean(name, self)}")
        module, _, attribute = target.partition(":")
        loaded: T = getattr(import_module(module), attribute)
        return loaded

    def _third_party(self) -> dict[str, str]:
        return {point.name: point.value for point in entry_points(group=self._group)}
