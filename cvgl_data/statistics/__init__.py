"""What a dataset looks like in numbers: decentrality against theory, dates, sources, failures, quality.

Everything is computed from tables, no image is opened. `statistics` gives one `Statistics`, which `dataclasses.asdict`
turns into JSON; `tables` gives the same as rows to print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError
from cvgl_data.schema import FAILURES, SPLITS
from cvgl_data.statistics.distributions import ECDF_AT, HISTOGRAM_EDGES, Distribution, Summary, distribution, summary
from cvgl_data.statistics.theory import Theory, stride_ratio, theory

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Rows = list[dict[str, Any]]

DENSITY_BINS = 20
"""Bins a side of the 2-D density, over the whole window."""

_DATE = r"^(?P<year>[12]\d{3})(?:$|-(?P<month>0[1-9]|1[0-2])(?:$|[-T ]))"

_OF_QUALITY = ["id", "kind", "area", "keep", "reason"]

MANY = 10
"""Queries per reference are counted one by one below this, and together from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All queries, those of an area, or those of a split, with the gallery they are searched in."""

    kind: str
    """``all``, ``area`` or ``split``."""
    name: str
    num_queries: int
    num_covered: int
    """Queries that have a positive."""
    num_references: int
    """Of the gallery: references in the areas of these queries, and any other that covers one of them."""
    num_positives: int
    """References that are the positive of a query."""
    distractor_share: float | None
    """Share of the gallery that is no query's positive."""
    covering_per_query: float | None
    """Mean number of references that cover a covered query."""
    stride_ratio: float | None
    """Stride of the grid by the side of a window; null unless the windows of each area are one regular grid."""
    decentrality: Distribution
    """Of the positives."""
    decentrality_l2: Distribution
    covering: Distribution
    """Decentrality of all covering pairs, positives and semi-positives."""
    covering_l2: Distribution
    density: tuple[tuple[int, ...], ...]
    """Queries by place in their positive, `DENSITY_BINS` rows from north to south of as many columns from west."""
    queries_per_reference: dict[int, int]
    """Number of queries to the number of references that are the positive of so many."""
    distance_m: Summary
    """From the query to the centre of its positive."""
    offset_east_m: Summary
    offset_north_m: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Everything `statistics` finds; rows are dictionaries with the keys named here."""

    groups: tuple[Group, ...]
    """``all`` first, then splits in their order, then areas by name."""
    captured: tuple[dict[str, Any], ...]
    """``kind`` (query, reference), ``area``, ``year``, ``month`` (null: not known), ``images``."""
    sources: tuple[dict[str, Any], ...]
    """``kind``, ``source``, ``licence``, ``no_redistribute``, ``first``, ``last`` (dates of capture), ``images``."""
    failures: tuple[dict[str, Any], ...]
    """``kind``, ``area``, ``source``, ``status``, ``items``."""
    quality: tuple[dict[str, Any], ...]
    """``kind``, ``area``, ``reason`` (one check; "" for what passes all), ``kept``, ``left_out``."""

    def group(self, kind: str = "all", name: str = "") -> Group:
        """Return one group; the name does not matter for ``all``.

        Raises:
            KeyError: If there is none.
        """
        for group in self.groups:
            if group.kind == kind and (kind == "all" or group.name == name):
                return group
        raise KeyError(f"{kind} {name}")


def statistics(
    dataset: CrossViewDataset, *, failures: pa.Table | None = None, quality: pa.Table | None = None
) -> Statistics:
    """Compute the statistics of a dataset.

    Args:
        dataset: Q queries, R references; its images are not read.
        failures: Schema ``FAILURES``.
        quality: Schema ``QUALITY``.

    Source:
        DReSS (decentrality), VIGOR (positives and semi-positives), CV-Cities (months and years by city).
    """
    return Statistics(
        groups=tuple(_groups(dataset)),
        captured=tuple(_captured("query", dataset.queries) + _captured("reference", dataset.references)),
        sources=tuple(_sources("query", dataset.queries) + _sources("reference", dataset.references)),
        failures=tuple(_counted(failures, ("kind", "area", "source", "status"))),
        quality=tuple(_reasons(quality)),
    )


def read_extras(folder: Path) -> tuple[pa.Table, pa.Table | None]:
    """Return what lies beside the tables of a packed dataset: failures, and quality (None if nobody looked).

    Raises:
        DatasetError: If a file cannot be read or lacks a column.
    """
    failures = _read(folder / "data" / "failures", FAILURES.names)
    quality = _read(folder / "data" / "quality", _OF_QUALITY)
    return (FAILURES.empty_table() if failures is None else failures), quality


def _read(folder: Path, required: Sequence[str]) -> pa.Table | None:
    parts = []
    for path in sorted(folder.glob("*.parquet")):
        try:
            part = pq.read_table(path.absolute(), partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"'{path}' cannot be read: {error}") from None
        missing = sorted(set(required) - set(part.column_names))
        if missing:
            raise DatasetError(f"'{path}' has no column '{missing[0]}'; pack the dataset again")
        parts.append(part.replace_schema_metadata(None))
    return pa.concat_tables(parts, promote_options="default") if parts else None


def _groups(dataset: CrossViewDataset) -> Iterator[Group]:
    columns = _Columns(dataset)
    yield columns.group("all", "", np.ones(len(columns.positives), bool), np.ones(len(columns.ref_area), bool))
    split = np.asarray(_text(dataset.queries["split"]).to_numpy(zero_copy_only=False), object)
    for name in SPLITS:
        chosen = split == name
        if chosen.any():
            yield columns.group("split", name, chosen, np.isin(columns.ref_area, np.unique(columns.query_area[chosen])))
    for code, name in sorted(enumerate(columns.areas), key=lambda item: item[1]):
        yield columns.group("area", name, columns.query_area == code, columns.ref_area == code)


class _Columns:
    """The columns that statistics need, as arrays."""

    def __init__(self, dataset: CrossViewDataset) -> None:
        queries, references, pairs = dataset.queries, dataset.references, dataset.pairs
        areas = pa.chunked_array([*_text(queries["area"]).chunks, *_text(references["area"]).chunks], pa.string())
        encoded = areas.combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy().astype(np.int64)
        self.areas: list[str] = encoded.dictionary.to_pylist()
        self.query_area, self.ref_area = codes[: queries.num_rows], codes[queries.num_rows :]
        self.windows = tuple(references[name].to_numpy() for name in ("x", "y", "size", "zoom"))
        self.ratios = {code: stride_ratio(*(c[self.ref_area == code] for c in self.windows)) for code in set(codes)}
        self.positives = dataset.positives()
        self.pair_query = pairs["query_row"].to_numpy()
        self.pair_reference = pairs["reference_row"].to_numpy()
        self.is_positive = pc.equal(pairs["relation"], "positive").to_numpy()
        self.covers = pairs["covers"].to_numpy()
        side = self.windows[2][self.pair_reference] if pairs.num_rows else np.ones(0)
        self.u, self.v = pairs["u"].to_numpy() / side, pairs["v"].to_numpy() / side
        self.measures = {
            name: pairs[name].to_numpy()
            for name in ("decentrality", "decentrality_l2", "distance_m", "offset_east_m", "offset_north_m")
        }

    def group(self, kind: str, name: str, queries: Bools, gallery: Bools) -> Group:
        mine = queries[self.pair_query]
        covering, positive = mine & self.covers, mine & self.is_positive
        gallery = gallery.copy()
        gallery[self.pair_reference[covering | positive]] = True
        owners = self.positives[queries & (self.positives >= 0)]
        per_reference = np.bincount(owners, minlength=len(gallery))[gallery]
        counts = np.bincount(per_reference) if len(per_reference) else np.zeros(1, np.int64)
        num_references, num_positives = int(gallery.sum()), int((per_reference > 0).sum())
        ratios = {self.ratios[code] for code in np.unique(self.ref_area[gallery]).tolist()}
        density, _, _ = np.histogram2d(
            self.v[positive], self.u[positive], bins=DENSITY_BINS, range=((0.0, 1.0), (0.0, 1.0))
        )
        of = self.measures
        return Group(
            kind=kind,
            name=name,
            num_queries=int(queries.sum()),
            num_covered=len(owners),
            num_references=num_references,
            num_positives=num_positives,
            distractor_share=1 - num_positives / num_references if num_references else None,
            covering_per_query=float(covering.sum() / len(owners)) if len(owners) else None,
            stride_ratio=ratios.pop() if len(ratios) == 1 else None,
            decentrality=distribution(of["decentrality"][positive]),
            decentrality_l2=distribution(of["decentrality_l2"][positive]),
            covering=distribution(of["decentrality"][covering]),
            covering_l2=distribution(of["decentrality_l2"][covering]),
            density=tuple(tuple(int(count) for count in row) for row in density),
            queries_per_reference={queries: count for queries, count in enumerate(counts.tolist()) if count},
            distance_m=summary(of["distance_m"][positive]),
            offset_east_m=summary(of["offset_east_m"][positive]),
            offset_north_m=summary(of["offset_north_m"][positive]),
        )


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(column.cast(pa.string()), "")


def _captured(kind: str, table: pa.Table) -> Rows:
    """Count images by area, year and month; dates may be a year, a month, a day, a time, or anything else."""
    found = pc.extract_regex(
        _text(table["captured"]), r"^(?P<year>[12]\d{3})(?:$|-(?P<month>0[1-9]|1[0-2])(?:$|[-T ]))"
    )
    parts = {name: _text(pc.struct_field(found, name)) for name in ("year", "month")}
    counted = _counted(pa.table({"area": _text(table["area"]), **parts}), ("area", "year", "month"), "images")
    numbers = [{name: int(row[name]) if row[name] else None for name in parts} for row in counted]
    return [{"kind": kind, **row, **number} for row, number in zip(counted, numbers, strict=True)]


def _sources(kind: str, table: pa.Table) -> Rows:
    keys = ["source", "licence", "no_redistribute"]
    captured = _text(table["captured"])
    dates = pc.if_else(pc.equal(captured, ""), pa.scalar(None, pa.string()), captured)
    plain = pa.table(
        {
            "source": _text(table["source"]),
            "licence": _text(table["licence"]),
            "no_redistribute": pc.fill_null(table["no_redistribute"], False),
            "captured": dates,
        }
    )
    grouped = plain.group_by(keys).aggregate([("captured", "min"), ("captured", "max"), ([], "count_all")])
    return [
        {"kind": kind, **{key: row[key] for key in keys}, "first": row["captured_min"] or ""}
        | {"last": row["captured_max"] or "", "images": row["count_all"]}
        for row in grouped.sort_by([(key, "ascending") for key in keys]).to_pylist()
    ]


def _counted(table: pa.Table | None, keys: tuple[str, ...], name: str = "items") -> Rows:
    """Count the rows of each combination of text columns, in their order."""
    if table is None:
        return []
    plain = pa.table({key: _text(table[key]) for key in keys})
    grouped = plain.group_by(list(keys)).aggregate([([], "count_all")])
    rows = grouped.sort_by([(key, "ascending") for key in keys]).to_pylist()
    return [{**{key: row[key] for key in keys}, name: row["count_all"]} for row in rows]


def _reasons(quality: pa.Table | None) -> Rows:
    """Count what failed each check; an image that failed two is in two rows."""
    if quality is None:
        return []
    keep = pc.if_else(pc.fill_null(quality["keep"], True), "kept", "left_out")
    plain = pa.table({key: quality[key] for key in ("kind", "area", "reason")} | {"keep": keep})
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    for row in _counted(plain, ("kind", "area", "reason", "keep")):
        for reason in dict.fromkeys(part.strip() for part in row["reason"].split(",")):
            found = counts.setdefault((row["kind"], row["area"], reason), {"kept": 0, "left_out": 0})
            found[row["keep"]] += row["items"]
    return [{"kind": k, "area": a, "reason": r, **found} for (k, a, r), found in sorted(counts.items())]


def tables(found: Statistics) -> dict[str, Rows]:
    """Return the statistics as named tables of flat rows, for a terminal; names and keys are headings.

    Numbers are as computed, and null where there is nothing to compute them from. A table without rows is left out.
    """
    whole = found.groups[0]
    named = {
        "decentrality": [row for group in found.groups for row in _decentrality_rows(group)],
        "gallery": [
            {"group": _label(group), "queries": group.num_queries, "covered": group.num_covered}
            | {"references": group.num_references, "positives": group.num_positives}
            | {"distractors": group.num_references - group.num_positives, "distractor_share": group.distractor_share}
            | {"covering_per_query": group.covering_per_query, "median_distance_m": group.distance_m.median}
            for group in found.groups
        ],
        "queries per reference": binned_counts(whole),
        "years": _by_period(found, "year"),
        "months": _by_period(found, "month"),
        "sources": list(found.sources),
        "failures": list(found.failures),
        "quality": list(found.quality),
    }
    return {name: rows for name, rows in named.items() if rows}


def binned_counts(group: Group) -> Rows:
    """Return how many references are the positive of 0, 1, ... queries; from `MANY` on in one row."""
    counts = [0] * (MANY + 1)
    for queries, references in group.queries_per_reference.items():
        counts[min(queries, MANY)] += references
    last = max((index for index, count in enumerate(counts) if count), default=-1)
    return [
        {"queries": f"{MANY}+" if index == MANY else str(index), "references": counts[index]}
        for index in range(last + 1)
    ]


def _label(group: Group) -> str:
    return "all" if group.kind == "all" else f"{group.kind} {group.name}"


def _decentrality_rows(group: Group) -> Rows:
    rows: Rows = []
    for relation, found, found_l2 in (
        ("positive", group.decentrality, group.decentrality_l2),
        ("covering", group.covering, group.covering_l2),
    ):
        values = found.summary
        row: dict[str, Any] = {"group": _label(group), "relation": relation, "pairs": values.count}
        row |= {key: getattr(values, key) for key in ("mean", "median", "p90", "p95")}
        row |= {"share_above_half": found.share_above_half, "mean_l2": found_l2.summary.mean}
        rows.append(row | {f"quarter_{index + 1}": count for index, count in enumerate(found.quarters)})
    if group.stride_ratio:
        expected, num_pairs = theory(group.stride_ratio), group.decentrality.summary.count
        rows.append(
            {"group": _label(group), "relation": f"theory, stride {group.stride_ratio:g} L", "pairs": num_pairs}
            | {"mean": expected.mean, "median": expected.quantile(0.5), "p90": expected.quantile(0.9)}
            | {"p95": expected.quantile(0.95), "share_above_half": 1 - float(expected.cdf(0.5))}
            | {"mean_l2": expected.mean_l2}
            | {f"quarter_{index + 1}": share * num_pairs for index, share in enumerate(expected.quarters)}
        )
    return rows


def _by_period(found: Statistics, period: str) -> Rows:
    """Count images by kind, area and year or month."""
    counts: dict[tuple[str, str, int], int] = {}
    for row in found.captured:
        key = (row["kind"], row["area"], row[period] or 0)
        counts[key] = counts.get(key, 0) + row["images"]
    return [
        {"kind": kind, "area": area, period: str(value or "unknown"), "images": count}
        for (kind, area, value), count in sorted(counts.items())
    ]


__all__ = [
    "DENSITY_BINS",
    "ECDF_AT",
    "HISTOGRAM_EDGES",
    "Distribution",
    "Group",
    "Statistics",
    "Summary",
    "Theory",
    "binned_counts",
    "distribution",
    "read_extras",
    "statistics",
    "stride_ratio",
    "summary",
    "tables",
    "theory",
]
