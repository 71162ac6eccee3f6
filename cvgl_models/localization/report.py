"""The numbers of one evaluation of a localization system, as JSON and as tables."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

from cvgl_models.metrics import percent

CURVE_M = (0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 60, 80, 100)
"""Where the error curve is evaluated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Errors of some pairs. Shares are of errors below the limit that is their key."""

    num_pairs: int
    mean_error_m: float
    """Distance from the true place."""
    median_error_m: float
    p95_error_m: float
    recall_within_m: dict[str, float]
    longitudinal_within_m: dict[str, float]
    """Of the part of the error along the camera's heading."""
    lateral_within_m: dict[str, float]
    """Of the part across it."""
    mean_yaw_error_deg: float
    median_yaw_error_deg: float
    yaw_within_deg: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The measures of some of the pairs."""

    kind: str
    """``area`` or ``decentrality``."""
    name: str
    measures: Measures


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizationReport:
    """Everything measured in one evaluation."""

    whole: Measures
    num_lost: int
    """Pairs for which the model gave no place; they count as infinitely far off."""
    center: Measures
    """What always predicting the centre of the reference, and of what is known of the heading, gives."""
    chance: Measures
    """What guessing gives."""
    calibration: dict[str, float]
    """See `cvgl_models.localization.metrics.calibration`."""
    error_curve_m: dict[str, float]
    """Share of pairs whose error is below so many metres."""
    groups: tuple[Group, ...] = ()
    setting: dict[str, Any] = field(default_factory=dict)
    """How it was measured: split, protocol, conditions, weights."""

    def to_json(self) -> str:
        """Return the report as JSON; a value that is not finite is null."""
        return json.dumps(_finite(dataclasses.asdict(self)), indent=2, allow_nan=False) + "\n"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return heads and rows of the main table: the model beside its two baselines."""
        columns = (self.whole, self.center, self.chance)
        return ["", "model", "centre", "chance"], [
            [name, *(cell(one) for one in columns)] for name, cell in _cells(has_yaw=self.has_yaw)
        ]

    def rows(self) -> list[tuple[str, str]]:
        """Return (what, value) of what has no baseline."""
        found = self.calibration
        return [
            ("pairs", f"{self.whole.num_pairs:,}"),
            ("pairs without a result", f"{self.num_lost:,}"),
            ("inside the 95 % radius", percent(found["share_inside_radius95"])),
            ("median 95 % radius", in_meters(found["median_radius95_m"])),
            ("NLL of the true place, per m²", _number(found["nll_per_m2"])),
            ("NLL of a map that says nothing", _number(found["nll_per_m2_uniform"])),
            ("true places outside the map", percent(found["share_outside_map"])),
        ]

    def group_table(self) -> tuple[list[str], list[list[str]]]:
        """Return heads and rows of a table of all groups that have pairs."""
        cells = _cells(has_yaw=self.has_yaw, short=True)
        heads = ["", "pairs", *(name for name, _ in cells)]
        rows = [
            [
                f"{group.kind} {group.name}",
                f"{group.measures.num_pairs:,}",
                *(cell(group.measures) for _, cell in cells),
            ]
            for group in self.groups
            if group.measures.num_pairs
        ]
        return heads, rows

    @property
    def has_yaw(self) -> bool:
        """Whether headings were to be found."""
        return self.center.mean_yaw_error_deg > 0 or self.whole.mean_yaw_error_deg > 0


def in_meters(value: float) -> str:
    """Return a distance for a table."""
    return f"{value:,.2f} m" if math.isfinite(value) else "n/a"


def in_degrees(value: float) -> str:
    """Return an angle for a table."""
    return f"{value:.2f}°" if math.isfinite(value) else "n/a"


def _cells(*, has_yaw: bool, short: bool = False) -> list[tuple[str, Any]]:
    """Return name and text of the columns of a table."""
    cells: list[tuple[str, Any]] = [
        ("median error", lambda one: in_meters(one.median_error_m)),
        ("mean error", lambda one: in_meters(one.mean_error_m)),
        ("95 % error", lambda one: in_meters(one.p95_error_m)),
        *_shares("within", "recall_within_m", "m"),
    ]
    if not short:
        cells += _shares("longitudinal within", "longitudinal_within_m", "m")
        cells += _shares("lateral within", "lateral_within_m", "m")
    if has_yaw:
        cells.append(("median yaw error", lambda one: in_degrees(one.median_yaw_error_deg)))
        if not short:
            cells.append(("mean yaw error", lambda one: in_degrees(one.mean_yaw_error_deg)))
            cells += _shares("yaw within", "yaw_within_deg", "°")
    return cells


def _shares(text: str, name: str, unit: str) -> list[tuple[str, Any]]:
    gap = "" if unit == "°" else " "
    return [
        (f"{text} {limit}{gap}{unit}", lambda one, limit=limit: percent(getattr(one, name)[limit]))
        for limit in ("1", "3", "5")
    ]


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "n/a"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
