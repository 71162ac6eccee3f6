"""The page itself: numbers and tables as HTML, all else as data for its scripts. Everything inserted is escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from cvgl_data.report.samples import NUM_SAMPLES, Pair
from cvgl_data.statistics import ECDF_AT, HISTOGRAM_EDGES, Distribution, Group, Statistics, binned_counts
from cvgl_data.statistics.theory import theory

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SCRIPTS = ("charts.js", "map.js", "page.js")


def fill(
    *,
    found: Statistics,
    about_name: str,
    credits: Sequence[Mapping[str, str]],
    map_data: Mapping[str, Any],
    num_drawn: int,
    thumbnails: Mapping[str, str],
    pairs: Sequence[Pair],
    worst: Sequence[Mapping[str, Any]],
    has_quality: bool,
    with_images: bool,
    seed: int,
) -> str:
    """Return the HTML of the page; see `cvgl_data.report.render`."""
    whole = found.group()
    num_shown = sum(pair.query in thumbnails for pair in pairs)
    data = {
        "map": map_data,
        "groups": [_group_data(group) for group in found.groups],
        "theory": {f"{ratio:g}": _theory_data(ratio) for ratio in _ratios(found)},
        "thumbnails": list(thumbnails.items()),
        "samples": [pair.query for pair in pairs[:NUM_SAMPLES] if pair.query in thumbnails],
        "worst": list(worst),
        "num_pairs": len(pairs),
        "num_shown": num_shown,
    }
    parts = {
        "title": escape(about_name),
        "warning": _warning(found) if with_images else "",
        "numbers": _numbers(whole, found),
        "drawn": escape(_drawn(whole, map_data, num_drawn, num_shown, with_images, seed)),
        "decentrality": _decentrality_table(found),
        "captured": "".join(_captured_tables(found, kind) for kind in ("query", "reference")),
        "random_note": "" if with_images and pairs else "<p>No pictures are in this page.</p>",
        "worst_note": _worst_note(worst, has_quality),
        "sources": _sources(found, credits),
        "failures": _table(found.failures, {"kind": "kind", "area": "area", "source": "source"}, "status", "items")
        or "<p>Nothing failed, and nothing was left out.</p>",
        "quality": _quality_table(found, has_quality),
        "splits": _splits(found),
        "data": _json(data),
        "css": _asset("static/page.css"),
        "leaflet_css": re.sub(r"[^\n]*url\((?!data:)[^\n]*\n", "", _asset("leaflet/leaflet.css")),
        "leaflet_js": re.sub(r"\n//# sourceMappingURL=\S*\s*$", "\n", _asset("leaflet/leaflet.js")),
        "scripts": "\n".join(_asset(f"static/{name}") for name in _SCRIPTS),
    }
    # In one pass: what is inserted is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("static/page.html"))


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """Return JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _ratios(found: Statistics) -> list[float]:
    return sorted({group.stride_ratio for group in found.groups if group.stride_ratio})


def _theory_data(ratio: float) -> dict[str, Any]:
    expected = theory(ratio)
    return {
        "stride_ratio": ratio,
        **{
            name: {
                "histogram": np.diff(cdf(HISTOGRAM_EDGES)).round(5).tolist(),
                "ecdf": cdf(ECDF_AT).round(5).tolist(),
                "mean": round(mean, 4),
            }
            for name, cdf, mean in (
                ("decentrality", expected.cdf, expected.mean),
                ("decentrality_l2", expected.cdf_l2, expected.mean_l2),
            )
        },
    }


def _group_data(group: Group) -> dict[str, Any]:
    def plain(found: Distribution) -> dict[str, Any]:
        ecdf = [round(share, 4) for share in found.ecdf]
        return {"histogram": found.histogram, "ecdf": ecdf, **asdict(found.summary)}

    return {
        "kind": group.kind,
        "name": group.name,
        "theory": f"{group.stride_ratio:g}" if group.stride_ratio else None,
        "decentrality": plain(group.decentrality),
        "decentrality_l2": plain(group.decentrality_l2),
        "covering": plain(group.covering) if group.covering.summary.count > group.decentrality.summary.count else None,
        "density": group.density,
        "per_reference": binned_counts(group),
    }


def _warning(found: Statistics) -> str:
    names = sorted({row["source"] for row in found.sources if row["no_redistribute"]})
    if not names:
        return ""
    return (
        f'<p class="warning" role="note">The terms of {escape(", ".join(names))} forbid to publish its images. This '
        "page holds small copies of them: keep it to yourself, or make it again without images.</p>"
    )


def _numbers(whole: Group, found: Statistics) -> str:
    areas = [group for group in found.groups if group.kind == "area"]
    years = sorted({row["year"] for row in found.captured if row["kind"] == "query" and row["year"]})
    span = "unknown" if not years else f"{years[0]}" if len(years) == 1 else f"{years[0]}–{years[-1]}"
    tiles = [
        ("queries", f"{whole.num_queries:,}", f"{_share(whole.num_covered, whole.num_queries)} covered"),
        ("references", f"{whole.num_references:,}", f"{_percent(whole.distractor_share)} distractors"),
        ("areas", f"{len(areas):,}", ", ".join(group.name or "(no name)" for group in areas[:3])),
        ("mean decentrality", _number(whole.decentrality.summary.mean, 3), _expected(whole)),
        ("median distance", f"{_number(whole.distance_m.median, 1)} m", "query to the centre of its positive"),
        ("captured", span, "years of the queries"),
    ]
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )


def _expected(whole: Group) -> str:
    if not whole.stride_ratio:
        return "0 centre, 1 edge"
    return f"{theory(whole.stride_ratio).mean:.3f} if spread evenly"


def _drawn(
    whole: Group, map_data: Mapping[str, Any], num_drawn: int, num_shown: int, with_images: bool, seed: int
) -> str:
    parts = []
    if num_drawn < whole.num_queries:
        parts.append(f"{num_drawn:,} of {whole.num_queries:,} queries are drawn, chosen at random (seed {seed}).")
    if map_data["blocks"]:
        parts.append(
            f"{whole.num_references:,} references are put together in {len(map_data['blocks']['x']):,} squares."
        )
    if with_images and num_shown < whole.num_covered:
        parts.append(f"{num_shown:,} of {whole.num_covered:,} covered queries have their picture in this page.")
    return " ".join(parts)


def _decentrality_table(found: Statistics) -> str:
    rows = []
    for group in found.groups:
        values = group.decentrality.summary
        row: dict[str, Any] = {"group": "all" if group.kind == "all" else f"{group.kind} {group.name}"}
        row |= {"pairs": values.count} | {key: _number(getattr(values, key), 3) for key in _QUANTILES}
        row |= {"above .5": _percent(group.decentrality.share_above_half)}
        row |= {
            f"{edge} to {edge + 0.25:g}".replace("0.", "."): _share(count, values.count)
            for edge, count in zip((0, 0.25, 0.5, 0.75), group.decentrality.quarters, strict=True)
        }
        row |= {"mean L2": _number(group.decentrality_l2.summary.mean, 3)}
        row |= {"covering a query": _number(group.covering_per_query, 2)}
        rows.append(row | {"distractors": _percent(group.distractor_share)})
    return _html_table(rows)


_QUANTILES = ("mean", "median", "p90", "p95")


def _captured_tables(found: Statistics, kind: str) -> str:
    """Return how the images of each area spread over months and years, as shaded tables."""
    rows = [row for row in found.captured if row["kind"] == kind]
    if not rows:
        return ""
    plural = "Queries" if kind == "query" else "References"
    if not any(row["year"] for row in rows):
        return f"<p>{plural}: no dates are known.</p>"
    known = sorted({row["year"] for row in rows if row["year"]})
    areas = sorted({row["area"] for row in rows})
    html = []
    for period, columns in (
        ("month", [(number, name) for number, name in enumerate(_MONTHS, 1)]),
        ("year", [(year, str(year)) for year in range(known[0], known[-1] + 1)]),
    ):
        every: list[tuple[int | None, str]] = [*columns]
        if any(row[period] is None for row in rows):
            every.append((None, "?"))
        head = "".join(f'<th scope="col">{name}</th>' for _, name in every)
        body = []
        for area in areas:
            counts = {value: 0 for value, _ in every}
            for row in rows:
                if row["area"] == area:
                    counts[row[period]] += row["images"]
            total = sum(counts.values())
            cells = "".join(_shaded(counts[value], total) for value, _ in every)
            body.append(f'<tr><th scope="row">{escape(area) or "(no name)"}</th>{cells}</tr>')
        html.append(
            f'<div class="scroll"><table class="heat"><caption>{plural} by {period}, % of the area</caption>'
            f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        )
    return f'<div class="heats">{"".join(html)}</div>'


def _shaded(count: int, total: int) -> str:
    if not count:
        return "<td></td>"
    share = count / total
    text = f"{share:.0%}".rstrip("%") if share >= 0.005 else "&lt;1"
    return f'<td style="--share:{share:.3f}" title="{count:,} images">{text}</td>'


def _worst_note(worst: Sequence[Mapping[str, Any]], has_quality: bool) -> str:
    if not has_quality:
        return "<p>Quality was not checked; <code>cvgl-data quality</code> does.</p>"
    return "" if worst else "<p>No image failed a check.</p>"


def _sources(found: Statistics, credits: Sequence[Mapping[str, str]]) -> str:
    rows = [
        {"images": row["kind"], "source": row["source"], "licence": row["licence"] or "unknown"}
        | {"may be published": "no" if row["no_redistribute"] else "as the licence says"}
        | {"captured": " to ".join(dict.fromkeys(date for date in (row["first"], row["last"]) if date)) or "unknown"}
        | {"number": row["images"]}
        for row in found.sources
    ]
    names = {"kind": "images", "name": "source", "attribution": "attribution", "licence": "licence"}
    credited = [{title: row.get(key, "") for key, title in names.items()} for row in credits]
    return _html_table(rows) + (f"<h3>Attribution</h3>{_html_table(credited)}" if credited else "")


def _quality_table(found: Statistics, has_quality: bool) -> str:
    if not has_quality:
        return "<p>Quality was not checked.</p>"
    names = {"kind": "images", "area": "area", "reason": "failed", "kept": "kept", "left_out": "left out"}
    rows = [{title: row[key] for key, title in names.items()} for row in found.quality]
    return _html_table([row | {"failed": row["failed"] or "nothing"} for row in rows])


def _splits(found: Statistics) -> str:
    return _html_table(
        [
            {"split": group.name, "queries": group.num_queries, "covered": group.num_covered}
            | {"references to search": group.num_references, "positives": group.num_positives}
            | {"distractors": _percent(group.distractor_share)}
            for group in found.groups
            if group.kind == "split"
        ]
    )


def _table(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str], across: str, number: str) -> str:
    """Return rows with one column for each value of ``across``."""
    columns = list(dict.fromkeys(row[across] for row in rows))
    wide: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        wide.setdefault(key, dict(zip(names.values(), key, strict=True)) | dict.fromkeys(columns, 0))
        wide[key][row[across]] += row[number]
    return _html_table(list(wide.values()))


def _html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in rows[0])
    body = "".join(f"<tr>{''.join(_cell(value) for value in row.values())}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    text = escape(str(value))
    return f'<td class="number">{text}</td>' if re.fullmatch(r"[\d.,]+%?|–", text) else f"<td>{text}</td>"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _share(part: int, whole: int) -> str:
    return _percent(part / whole if whole else None)
