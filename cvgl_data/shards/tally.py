"""What a dataset holds, counted from its tables without pixels: the figures of its card."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvgl_data import schema

QUARTERS = ("0 to .25", ".25 to .5", ".5 to .75", ".75 to 1")
"""Ranges of decentrality."""

_EDGES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of a dataset's rows."""

    references: Counter[str] = field(default_factory=Counter)
    """By area."""
    queries: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By split and area."""
    licences: dict[tuple[str, str], int] = field(default_factory=dict)
    """Kind (``references``, ``queries``) and licence to rows, sorted."""
    captured: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind (``reference``, ``query``) and year, "" where it is unknown."""
    decentrality: dict[str, list[int]] = field(default_factory=dict)
    """Split to queries in each of the ``QUARTERS`` of their positive."""

    @property
    def splits(self) -> list[str]:
        """Splits with queries, in the usual order."""
        return in_order({split for split, _ in self.queries})

    @property
    def areas(self) -> list[str]:
        """All areas, sorted."""
        return sorted({*self.references, *(area for _, area in self.queries)})

    @property
    def years(self) -> list[str]:
        """Years of capture, sorted, "" for unknown last; none if no image has one."""
        there = {year for _, year in self.captured}
        return sorted(there - {""}) + ([""] if "" in there else []) if there - {""} else []

    def num_queries(self, split: str) -> int:
        """Return the number of queries of a split."""
        return sum(count for (name, _), count in self.queries.items() if name == split)

    def years_of(self, kind: str, year: str) -> int:
        """Return how many references or queries were captured in a year."""
        return self.captured[kind, year]


def tally(folder: Path, files: Iterable[str]) -> Tally:
    """Count the rows of a packed dataset; reads a few small columns.

    Args:
        folder: Dataset folder.
        files: Paths of its data files, relative to the folder.
    """
    found = Tally()
    licences: Counter[tuple[str, str]] = Counter()
    for kind in ("reference", "query"):
        plural = "references" if kind == "reference" else "queries"
        for split, table in _read(folder, files, f"{plural}_meta", ["area", "licence", "captured"]):
            for area, number in _value_counts(table["area"]):
                if kind == "reference":
                    found.references[area] += number
                else:
                    found.queries[split, area] += number
            for licence, number in _value_counts(table["licence"]):
                licences[plural, licence] += number
            for captured, number in _value_counts(table["captured"]):
                found.captured[kind, _year(captured)] += number
    for split, table in _read(folder, files, "pairs", ["relation", "decentrality"]):
        values = table.filter(pc.equal(table["relation"], "positive"))["decentrality"].to_numpy()
        quarters = np.bincount(np.searchsorted(_EDGES, values, side="right"), minlength=len(QUARTERS)).tolist()
        if len(values):
            so_far = found.decentrality.get(split, [0] * len(QUARTERS))
            found.decentrality[split] = [a + b for a, b in zip(so_far, quarters, strict=True)]
    found.decentrality.update({split: found.decentrality.pop(split) for split in in_order(found.decentrality)})
    found.licences.update(sorted(licences.items(), key=lambda item: (item[0][0] != "references", item[0][1])))
    return found


def in_order(splits: Iterable[str]) -> list[str]:
    """Return the names of splits in their usual order: train, validation, test, any other."""
    there = set(splits)
    return [*(name for name in schema.SPLITS if name in there), *sorted(there - set(schema.SPLITS))]


def _read(folder: Path, files: Iterable[str], table: str, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield split and rows of each file of a table."""
    for name in sorted(files):
        match = re.fullmatch(rf"data/{table}/(\w+)-\d{{5}}-of-\d{{5}}\.parquet", name)
        if match:
            yield match[1], pq.read_table((folder / name).absolute(), columns=columns, partitioning=None)


def _value_counts(column: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    for item in column.value_counts().to_pylist():
        yield item["values"] or "", item["counts"]


def _year(captured: str) -> str:
    return captured[:4] if re.match(r"\d{4}", captured) else ""
