"""Which images the page shows as examples: some at random, and the worst."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.report.map_data import Map

NUM_SAMPLES = 12
NUM_WORST = 16

_LESS_IS_WORSE = ("sharpness", "luma_std")
"""Measures of which a small value means a bad image, the more telling first; columns that quality may have."""


class Pair(NamedTuple):
    """A query and its positive."""

    query: str
    reference: str
    area: str
    """Of the reference."""


def random_pairs(drawn: Map, dataset: CrossViewDataset, *, seed: int) -> list[Pair]:
    """Return the drawn queries that have a positive, in random order; the first are the samples."""
    places = np.asarray(drawn.data["queries"]["positive"], np.int64)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(places >= 0))
    queries = dataset.queries["query_id"].take(pa.array(drawn.query_rows[order])).to_pylist()
    references = dataset.references.select(["reference_id", "area"]).take(pa.array(drawn.reference_rows[places[order]]))
    columns = (references[name].to_pylist() for name in ("reference_id", "area"))
    return [Pair(query, name, area or "") for query, name, area in zip(queries, *columns, strict=True)]


def worst_images(quality: pa.Table | None) -> list[dict[str, Any]]:
    """Return ``id``, ``kind``, ``area``, ``keep``, ``reason`` of images that failed a check, worst first.

    What is left out comes before what is kept, more failed checks before fewer, then the least of a measure such as
    sharpness, then the id. Every combination of checks gets its turn, so that a thousand duplicates hide nothing.
    """
    if quality is None:
        return []
    names = ["id", "kind", "area", "keep", "reason"]
    measures = [name for name in _LESS_IS_WORSE if name in quality.column_names]
    failed = [row for row in quality.select([*names, *measures]).to_pylist() if row["reason"] or row["keep"] is False]

    def badness(row: dict[str, Any]) -> tuple[Any, ...]:
        values = [float("inf") if row[name] is None or np.isnan(row[name]) else row[name] for name in measures]
        return (row["keep"] is not False, -len((row["reason"] or "").split(",")), values, row["id"])

    turns: Counter[str | None] = Counter()
    ranked = []
    for row in sorted(failed, key=badness):
        ranked.append((turns[row["reason"]], row))
        turns[row["reason"]] += 1
    ranked.sort(key=lambda item: item[0])  # stable: the worst first among equals
    return [{name: row[name] for name in names} for _, row in ranked[:NUM_WORST]]
