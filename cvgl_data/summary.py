"""What a dataset holds, in numbers: the tables of ``cvgl-data show`` and ``cvgl-data decentrality``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.pairing import decentrality_summary
from cvgl_data.schema import SPLITS

Rows = list[dict[str, Any]]


def decentrality_rows(pairs: pa.Table, queries: pa.Table) -> Rows:
    """Summarize the decentrality of the positives over all, by split (where queries have one) and by area.

    Args:
        pairs: Schema ``PAIRS``; ``query_row`` are rows of ``queries``.
        queries: With ``area`` and, if split already, ``split``.
    """
    rows: Rows = []
    for column in ("split", "area"):
        if column in queries.column_names:
            labels = queries[column].take(pairs["query_row"])
            found = decentrality_summary(pairs, labels).to_pylist()
            for row in found:
                if row["relation"] == "positive" and (row["group"] != "all" or not rows):
                    rows.append(row if row["group"] == "all" else {**row, "group": f"{column} {row['group']}"})
    return rows


def describe(dataset: CrossViewDataset, folder: Path) -> dict[str, Rows]:
    """Return one table per question: counts by split and area, sources and licences, coverage, failures, files."""
    positives = dataset.positives()
    split, area = dataset.queries["split"].to_pylist(), dataset.queries["area"].to_pylist()
    counts = Counter(zip(split, area, strict=True))
    covered = Counter((s, a) for s, a, row in zip(split, area, positives.tolist(), strict=True) if row >= 0)
    gallery = Counter(dataset.references["area"].to_pylist())
    used = dataset.references["area"].take(pa.array(np.unique(positives[positives >= 0])))
    owners = Counter(used.to_pylist())
    return {
        "queries": [
            {"split": name, "area": place, "queries": count, "covered": covered[name, place]}
            for (name, place), count in sorted(counts.items(), key=lambda item: (SPLITS.index(item[0][0]), item[0][1]))
        ],
        "references": [
            {"area": name, "references": count, "positives": owners[name], "distractors": count - owners[name]}
            for name, count in sorted(gallery.items())
        ],
        "sources": _sources("imagery", dataset.references) + _sources("panoramas", dataset.queries),
        "failures": _failures(folder),
    }


def _sources(kind: str, table: pa.Table) -> Rows:
    columns = ["source", "licence"]
    grouped = table.group_by(columns).aggregate([("captured", "min"), ("captured", "max"), ([], "count_all")])
    return [
        {
            "kind": kind,
            "source": row["source"],
            "licence": row["licence"] or "unknown",
            "captured": " to ".join(sorted({row["captured_min"] or "unknown", row["captured_max"] or "unknown"})),
            "images": row["count_all"],
        }
        for row in grouped.sort_by([(name, "ascending") for name in columns]).to_pylist()
    ]


def _failures(folder: Path) -> Rows:
    counts: Counter[tuple[str, str]] = Counter()
    for path in sorted((folder / "data" / "failures").glob("*.parquet")):
        table = pq.read_table(path.absolute(), columns=["kind", "status"])
        counts.update(zip(table["kind"].to_pylist(), table["status"].to_pylist(), strict=True))
    return [{"kind": kind, "status": status, "items": count} for (kind, status), count in sorted(counts.items())]
