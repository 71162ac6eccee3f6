"""What a dataset knows that the metrics need: positions, areas, dates, and which protocol its splits follow."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_models.metrics import Truth

_DATE = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?(?!\d)", re.ASCII)


def truth(dataset: CrossViewDataset) -> Truth:
    """Return what the metrics need to know of a dataset."""
    positive = dataset.pairs.filter(pc.equal(dataset.pairs["relation"], "positive"))
    decentrality = np.full(dataset.queries.num_rows, np.nan)
    decentrality[positive["query_row"].to_numpy()] = positive["decentrality"].to_numpy()
    positives = dataset.positives()
    seen = np.append(years_of(dataset.references["captured"]), np.nan)  # the last one serves row -1
    return Truth(
        positives=positives,
        covering=dataset.covering(),
        query_lonlat=_lonlat(dataset.queries),
        reference_lonlat=_lonlat(dataset.references),
        decentrality=decentrality,
        query_area=_names(dataset.queries["area"]),
        reference_area=_names(dataset.references["area"]),
        age_gap_years=years_of(dataset.queries["captured"]) - seen[positives],
    )


def years_of(captured: Any) -> NDArray[np.float64]:
    """Return times of capture in years, the middle of what is known; NaN where it is no date."""
    return np.array([_year_of(text) for text in captured.to_pylist()], np.float64)


def protocol(dataset: CrossViewDataset, split: str) -> str:
    """Return how the queries of a split relate to those of training, judged by the areas they are in.

    Returns:
        ``same-area``, ``cross-area``, ``mixed``, or ``""`` where nothing trains.
    """
    is_train, is_split = (np.asarray(pc.equal(dataset.queries["split"], name)) for name in ("train", split))
    areas = _names(dataset.queries["area"])
    trained, tested = set(areas[is_train].tolist()), set(areas[is_split].tolist())
    if not trained or not tested:
        return ""
    if tested <= trained:
        return "same-area"
    return "mixed" if tested & trained else "cross-area"


def _year_of(text: str | None) -> float:
    match = _DATE.match(text or "")
    if match is None:
        return float("nan")
    year, month, day = (int(part) if part else None for part in match.groups())
    if not year or not (month is None or 1 <= month <= 12) or not (day is None or 1 <= day <= 31):
        return float("nan")
    if month is None:
        return year + 0.5
    return year + (month - 1 + (0.5 if day is None else (day - 0.5) / 31)) / 12


def _names(column: Any) -> NDArray[np.str_]:
    return np.array([name or "" for name in column.to_pylist()], dtype=np.str_)


def _lonlat(table: Any) -> NDArray[np.float64]:
    return np.stack([table["lon"].to_numpy(), table["lat"].to_numpy()], 1)
