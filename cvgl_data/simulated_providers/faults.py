"""What goes wrong on purpose: which requests, how, and whether the second attempt succeeds."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from cvgl_data.errors import RecipeError
from cvgl_data.registry import did_you_mean

PROVIDERS = (
    "esri",
    "wayback",
    "wayback-config",
    "metadata",
    "panoramax",
    "mapillary-graph",
    "mapillary-tiles",
    "mapillary-cdn",
    "google-static",
    "google-tiles",
)
"""First part of every path, and what ``only`` takes."""

TILE, PICTURE, SIGNED, DATA = "tile", "picture", "signed", "data"
"""Kinds of answers: a tile, a picture, a picture behind a signed address, and everything that is no image."""

_IMAGES = frozenset({TILE, PICTURE, SIGNED})
_ALL = _IMAGES | {DATA}
_APPLIES: Mapping[str, frozenset[str]] = {
    "rate_limited": _ALL,
    "unavailable": _ALL,
    "truncated": _ALL,
    "stall": _ALL,
    "html": frozenset({DATA}),
    "expired": frozenset({SIGNED}),
    "not_found": _IMAGES,
    "placeholder": frozenset({TILE}),
    "wrong_size": _IMAGES,
    "error_in_200": _ALL,
}
_PERMANENT = frozenset({"not_found", "placeholder", "wrong_size", "error_in_200"})


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Shares of paths that meet a fault; each path meets at most one, decided by the server's seed and the path.

    Args:
        rate_limited: First attempt gets 429 with Retry-After, every second time as a date.
        unavailable: First attempt gets 503.
        truncated: First attempt gets 60 % of the body, then the connection ends.
        stall: First attempt gets no answer for ``stall_s``, then the connection ends.
        html: First attempt gets an HTML page with status 200 where data was asked for.
        expired: The first signed address of a Mapillary picture never works: 403.
        not_found: Images that always get 404.
        placeholder: Tiles that are always the "not yet available" picture, whatever ``blankTile`` says.
        wrong_size: Images that always have half the width and height.
        error_in_200: Answers that are always an error in JSON, with status 200.
        latency_ms: Every answer waits so long.
        stall_s: See ``stall``.
        retry_after_s: What a 429 asks for, whole seconds.
        only: Providers that faults are limited to, joined by ``+``; empty means all. Latency meets all.

    Raises:
        RecipeError: If a share is none, they add up to more than 1, or a provider is unknown.
    """

    rate_limited: float = 0.0
    unavailable: float = 0.0
    truncated: float = 0.0
    stall: float = 0.0
    html: float = 0.0
    expired: float = 0.0
    not_found: float = 0.0
    placeholder: float = 0.0
    wrong_size: float = 0.0
    error_in_200: float = 0.0
    latency_ms: float = 0.0
    stall_s: float = 30.0
    retry_after_s: int = 1
    only: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in _APPLIES:
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise RecipeError(f"fault '{name}' is {share!r}; it must be a share from 0 to 1")
        if sum(getattr(self, name) for name in _APPLIES) > 1.0 + 1e-9:
            raise RecipeError("the shares of all faults add up to more than 1")
        for name in ("latency_ms", "stall_s", "retry_after_s"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise RecipeError(f"fault option '{name}' is {value!r}; it must be 0 or more")
        for name in self._providers:
            if name not in PROVIDERS:
                raise RecipeError(f"fault option 'only' names no provider '{name}'{did_you_mean(name, PROVIDERS)}")

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Return the faults of a text such as ``"rate_limited=0.05,unavailable=0.03,latency_ms=20,only=wayback"``.

        Raises:
            RecipeError: If a name is unknown or a value is not possible.
        """
        known = {entry.name: entry.type for entry in dataclasses.fields(cls)}
        options: dict[str, float | str] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if name not in known:
                raise RecipeError(f"there is no fault '{name}'{did_you_mean(name, known)}")
            if not equals or name in options:
                raise RecipeError(f"fault '{name}' needs one value: {name}=VALUE")
            options[name] = value if known[name] == "str" else _number(name, value, whole=known[name] == "int")
        return cls(**options)  # type: ignore[arg-type]

    def pick(self, seed: int, provider: str, path: str, kind: str) -> str:
        """Return the name of the fault that a path meets, empty if none.

        Args:
            seed: Of the server.
            provider: One of `PROVIDERS`.
            path: What identifies the request, without secrets.
            kind: Of the answer.
        """
        if self._providers and provider not in self._providers:
            return ""
        digest = hashlib.sha256(f"{seed}/fault/{provider}/{path}".encode()).digest()
        draw = int.from_bytes(digest[:6], "big") / 2**48
        for name, kinds in _APPLIES.items():
            share = getattr(self, name)
            if draw < share:
                return name if kind in kinds else ""
            draw -= share
        return ""

    @staticmethod
    def is_transient(name: str) -> bool:
        """Whether only the first attempt meets the fault."""
        return name not in _PERMANENT

    @property
    def _providers(self) -> tuple[str, ...]:
        return tuple(filter(None, self.only.split("+")))


def _number(name: str, value: str, *, whole: bool) -> float:
    try:
        return int(value) if whole else float(value)
    except ValueError:
        raise RecipeError(f"fault '{name}' is '{value}'; it must be {'a whole' if whole else 'a'} number") from None
