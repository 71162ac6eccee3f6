"""Whether the places in pixels of a published dataset agree with its coordinates."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.locations import Location
from cvgl_data.readers.agreement import SCALE_TOLERANCE, Agreement
from cvgl_data.readers.tables import uv_from_coordinates

_CHECKS = {"vigor": "cvgl_data.readers.vigor:check_all", "dress": "cvgl_data.readers.dress:check_all"}
"""Layouts with labels in pixels: a function of the folder and the reader's options that compares them."""


TURNED = "top_bearing_deg"
"""Column of references that are not north-up."""

Floats = NDArray[np.float64]


class LabelCheck(NamedTuple):
    """How one set of labels of one city compares with the coordinates."""

    labels: str
    """Which labels: a set of label files, or ``tables`` for the places that were imported."""
    city: str
    pairs: int
    mean_px: float
    max_px: float
    scale: float
    """Labeled offsets as a multiple of those from coordinates; 1 is right."""
    labeled_gsd_m: float | None
    """Ground metres per pixel for which the labels would be right."""
    gsd_m: float | None
    """Ground metres per pixel that the references have."""
    agrees: bool


def check(where: Location, dataset: CrossViewDataset) -> list[LabelCheck]:
    """Compare places in pixels with coordinates: every set of label files, then the places of the tables.

    Args:
        where: What was opened.
        dataset: The dataset itself.
    """
    rows: list[LabelCheck] = []
    if where.reader in _CHECKS:
        module, _, name = _CHECKS[where.reader].partition(":")
        compare: Callable[..., list[tuple[str, Agreement]]] = getattr(import_module(module), name)
        for labels, city in compare(Path(where.place), **where.options):
            rows.append(
                LabelCheck(
                    labels,
                    city.city,
                    city.pairs,
                    city.mean_px,
                    city.max_px,
                    city.scale,
                    city.labeled_gsd_m,
                    city.gsd_m,
                    city.agrees,
                )
            )
    return rows + _check_tables(dataset)


_ROUNDING_PX = 1.0
"""Mean distance up to which places are taken for those of the coordinates whatever their scale."""


def _check_tables(dataset: CrossViewDataset) -> list[LabelCheck]:
    """Compare the pairs' places with the coordinates, area by area; nothing where windows are not known."""
    references, pairs = dataset.references, dataset.pairs
    if references["zoom"].null_count or len(pc.unique(references["zoom"])) != 1 or not pairs.num_rows:
        return []
    query_row, reference_row = (pairs[name].to_numpy().astype(np.int64) for name in ("query_row", "reference_row"))
    size = references["size"].to_numpy()[reference_row][:, None]
    labeled = np.stack([pairs[axis].to_numpy() for axis in "uv"], 1) - size / 2
    exact = uv_from_coordinates(dataset.queries, references, query_row, reference_row) - size / 2
    if TURNED in references.column_names:
        exact = _turned(exact, references[TURNED].to_numpy()[reference_row])
    away = np.hypot(*(labeled - exact).T)
    area = dataset.queries["area"].to_numpy()[query_row]
    rows = []
    for name in sorted(set(area.tolist())):
        at = (area == name) & np.isfinite(away)
        if not at.any():
            continue
        squares = float((exact[at] ** 2).sum())
        scale = float((labeled[at] * exact[at]).sum() / squares) if squares > at.sum() else 1.0
        mean_px, max_px = float(away[at].mean()), float(away[at].max())
        agrees = mean_px <= _ROUNDING_PX or abs(scale - 1) <= SCALE_TOLERANCE
        rows.append(LabelCheck("tables", name, int(at.sum()), mean_px, max_px, scale, None, None, agrees))
    return rows


def _turned(offset: Floats, bearing_deg: Floats) -> Floats:
    """Return offsets (east, south), (P, 2), as (right, down) in references whose top has another bearing than north."""
    bearing = np.radians(bearing_deg)
    east, south = offset.T
    right = east * np.cos(bearing) + south * np.sin(bearing)
    down = south * np.cos(bearing) - east * np.sin(bearing)
    return np.stack([right, down], 1)
