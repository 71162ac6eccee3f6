"""How well places and headings inside a reference are found: metres and degrees.

Shapes: P pairs of a query and a reference that covers it. Ratios lie in [0, 1]. A threshold is met below it, not at it.
A pair without a result has an infinite error.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvgl_models.localization.report import CURVE_M, Group, LocalizationReport, Measures
from cvgl_models.metrics import QUARTERS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LIMITS_M = (1, 3, 5)
LIMITS_DEG = (1, 3, 5)
_GUESSES = 64
"""Of chance, per pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseTruth:
    """What is true of each pair."""

    xy_m: Floats
    """(P, 2) metres east and south of the reference's centre."""
    yaw_deg: Floats
    """Bearing of the centre column that the model was shown."""
    heading_deg: Floats
    """Bearing of the camera: what is longitudinal, whatever was shown."""
    side_m: Floats
    """Side of the reference, as far as it is shown."""
    area: NDArray[np.str_]

    @property
    def decentrality(self) -> Floats:
        """How far from the centre of the reference the query lies: 0 centre, 1 edge."""
        share: Floats = np.abs(self.xy_m).max(1) / (self.side_m / 2)
        return share


@dataclass(frozen=True, slots=True, kw_only=True)
class Poses:
    """What was found of each pair; NaN where nothing was."""

    xy_m: Floats
    """(P, 2) metres east and south of the reference's centre."""
    yaw_deg: Floats
    radius95_m: Floats
    log_density: Floats
    """Logarithm of the probability density per square metre at the true place, -inf outside the map."""


def along_and_across(east_m: Floats, north_m: Floats, heading_deg: Floats) -> tuple[Floats, Floats]:
    """Return the parts of a displacement along a heading (ahead) and across it (to the right).

    Example:
        >>> [round(float(part), 3) for part in along_and_across(7.0, -7.0, 30.0)]
        [-2.562, 9.562]
    """
    heading = np.radians(heading_deg)
    sin, cos = np.sin(heading), np.cos(heading)
    return east_m * sin + north_m * cos, east_m * cos - north_m * sin


def angle_between_deg(one_deg: Floats, other_deg: Floats) -> Floats:
    """Return the angle between two bearings, in [0, 180]; infinite where one of them is not known."""
    with np.errstate(invalid="ignore"):
        angle: Floats = np.abs((np.asarray(one_deg) - other_deg + 180) % 360 - 180)
    return np.where(np.isfinite(angle), angle, np.inf)


def errors_m(truth: PoseTruth, found_xy_m: Floats) -> Floats:
    """Return the distance of each found place from the true one, infinite where there is none."""
    away = np.hypot(*(found_xy_m - truth.xy_m).T)
    return np.where(np.isfinite(away), away, np.inf)


def measures(truth: PoseTruth, found_xy_m: Floats, found_yaw_deg: Floats) -> Measures:
    """Measure places and headings of pairs."""
    east, south = (found_xy_m - truth.xy_m).T
    along, across = (np.abs(part) for part in along_and_across(east, -south, truth.heading_deg))
    error, turned = errors_m(truth, found_xy_m), angle_between_deg(found_yaw_deg, truth.yaw_deg)
    return Measures(
        num_pairs=len(error),
        mean_error_m=_mean(error),
        median_error_m=_quantile(error, 0.5),
        p95_error_m=_quantile(error, 0.95),
        recall_within_m={str(limit): _share_below(error, limit) for limit in LIMITS_M},
        longitudinal_within_m={str(limit): _share_below(along, limit) for limit in LIMITS_M},
        lateral_within_m={str(limit): _share_below(across, limit) for limit in LIMITS_M},
        mean_yaw_error_deg=_mean(turned),
        median_yaw_error_deg=_quantile(turned, 0.5),
        yaw_within_deg={str(limit): _share_below(turned, limit) for limit in LIMITS_DEG},
    )


def localization_report(truth: PoseTruth, found: Poses, *, noise_deg: float = 0.0) -> LocalizationReport:
    """Measure the found poses, and what predicting the centre, or anything at all, would give.

    Args:
        truth: What is true.
        found: What a model said.
        noise_deg: Half-width of what was known of the heading, for the two baselines.
    """
    error = errors_m(truth, found.xy_m)
    quarter = np.clip(truth.decentrality * 4, 0, 3).astype(np.int64)
    areas = sorted(set(truth.area.tolist()))
    parts = [("area", name or "(no name)", truth.area == name) for name in areas]
    parts += [("decentrality", name, quarter == index) for index, name in enumerate(QUARTERS)]
    return LocalizationReport(
        whole=measures(truth, found.xy_m, found.yaw_deg),
        num_lost=int((~np.isfinite(found.xy_m).all(1)).sum()),
        center=measures(truth, np.zeros_like(truth.xy_m), np.zeros_like(truth.yaw_deg)),
        chance=_chance(truth, noise_deg),
        calibration=calibration(truth, found),
        error_curve_m={str(limit): _share_below(error, limit) for limit in CURVE_M},
        groups=tuple(
            Group(kind=kind, name=name, measures=_of_part(truth, found, chosen)) for kind, name, chosen in parts
        ),
    )


def calibration(truth: PoseTruth, found: Poses) -> dict[str, float]:
    """Return whether the score maps are as sure as they are right.

    ``share_inside_radius95`` is .95 for honest maps; ``nll_per_m2`` is the mean negative logarithm of the density at
    the true places that lie inside their maps, to be compared with that of a map that says nothing,
    ``nll_per_m2_uniform``; ``share_outside_map`` are the others.
    """
    error, inside_map = errors_m(truth, found.xy_m), np.isfinite(found.log_density)
    nll = -found.log_density[inside_map]
    radius = np.where(np.isfinite(found.radius95_m), found.radius95_m, 0.0)
    return {
        "share_inside_radius95": _mean((error <= radius).astype(np.float64)),
        "median_radius95_m": _quantile(radius, 0.5),
        "nll_per_m2": _mean(nll),
        "median_nll_per_m2": _quantile(nll, 0.5),
        "nll_per_m2_uniform": _mean(2 * np.log(truth.side_m)),
        "share_outside_map": 1 - _mean(inside_map.astype(np.float64)),
    }


def _of_part(truth: PoseTruth, found: Poses, chosen: NDArray[np.bool_]) -> Measures:
    part = PoseTruth(**{item.name: getattr(truth, item.name)[chosen] for item in dataclasses.fields(truth)})
    return measures(part, found.xy_m[chosen], found.yaw_deg[chosen])


def _chance(truth: PoseTruth, noise_deg: float) -> Measures:
    """Measure guesses that are uniform over the reference and over what was known of the heading."""
    rng = np.random.default_rng(0)
    many = PoseTruth(
        **{item.name: np.repeat(getattr(truth, item.name), _GUESSES, axis=0) for item in dataclasses.fields(truth)}
    )
    xy_m = rng.uniform(-0.5, 0.5, (len(many.side_m), 2)) * many.side_m[:, None]
    guessed = measures(many, xy_m, rng.uniform(-noise_deg, noise_deg, len(many.side_m)))
    return dataclasses.replace(guessed, num_pairs=len(truth.side_m))


def _share_below(value_P: Floats, limit: float) -> float:
    return _mean((value_P < limit).astype(np.float64))


def _mean(value_P: Floats) -> float:
    return float(value_P.mean()) if value_P.size else math.nan


def _quantile(value_P: Floats, share: float) -> float:
    """Return the median, or the smallest value that so many do not exceed; both may be infinite."""
    if not value_P.size:
        return math.nan
    return float(np.median(value_P) if share == 0.5 else np.quantile(value_P, share, method="inverted_cdf"))
