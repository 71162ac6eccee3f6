"""One self-contained page about an evaluation: map, curves, failures, tables. It asks the network for nothing.

The page holds small copies of images of the dataset; make it without them where the terms forbid to publish those.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.geo import distance_m
from cvgl_models.batches import decode
from cvgl_models.metrics import Outcomes, RetrievalReport, Truth, meters, percent
from cvgl_models.retrieval import Array, search

MAX_POINTS = 20_000
"""Queries on the map; of more, the worst half and others evenly spaced are drawn."""
NUM_FAILURES = 24
TOP_K = 5
RAMP_END_M = 100
"""Error from which on a dot is red, as in the precision maps of CV-Cities."""
_WIDTH_PX = {"query": 280, "reference": 140}


def evaluation_page(
    report: RetrievalReport,
    found: Outcomes,
    dataset: CrossViewDataset,
    truth: Truth,
    query_QD: Array,
    reference_RD: Array,
    *,
    with_images: bool = True,
) -> str:
    """Return the HTML of the page; equal input gives equal bytes.

    Args:
        report: The measures.
        found: What became of each query.
        dataset: The split's queries and their gallery.
        truth: Positions and covering references.
        query_QD: Embeddings of all queries of the split.
        reference_RD: Embeddings of the gallery, on the same device.
        with_images: Whether failures are shown with small copies of images.
    """
    drawn = _drawn(found)
    failures = _failures(found, dataset, truth, query_QD, reference_RD, with_images)
    data = {
        "map": _map(found, drawn, dataset, truth),
        "ramp_end_m": RAMP_END_M,
        "error_curve": [[float(limit), _rounded(share)] for limit, share in report.error_curve_m.items()],
        "recall_curve": [[int(k), _rounded(share)] for k, share in report.recall_curve.items()],
        "reliability": _reliability(report),
        "failures": failures,
        "with_images": with_images,
    }
    setting = report.setting
    title = " · ".join(str(setting[key]) for key in ("recipe", "split", "protocol") if setting.get(key)) or "evaluation"
    num = len(found.rank)
    few = f" {len(drawn):,} of {num:,} queries are drawn." if len(drawn) < num else ""
    parts = {
        "title": escape(title),
        "conditions": escape(_conditions(setting.get("conditions") or {})),
        "numbers": _numbers(report),
        "drawn": escape(few),
        "groups": _html_table(*report.group_table()),
        "all": _html_table(["", "value"], [list(row) for row in report.rows()]),
        "failures_note": escape(_failures_note(failures, num)),
        "data": _json(data),
        "leaflet_css": re.sub(r"[^\n]*url\((?!data:)[^\n]*\n", "", _of_report("leaflet/leaflet.css")),
        "leaflet_js": re.sub(r"\n//# sourceMappingURL=\S*\s*$", "\n", _of_report("leaflet/leaflet.js")),
        "css": _of_report("static/page.css") + _own("page.css"),
        "scripts": _of_report("static/charts.js") + "\n" + _own("page.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _own("page.html"))


def _drawn(found: Outcomes) -> Any:
    """Return the queries on the map, the worst ones last, so that they lie on top."""
    order = np.lexsort((found.query_row, found.error_m))
    if len(order) <= MAX_POINTS:
        return order
    worst, rest = order[-(MAX_POINTS // 2) :], order[: -(MAX_POINTS // 2)]
    return np.concatenate([rest[np.linspace(0, len(rest) - 1, MAX_POINTS - len(worst)).astype(np.int64)], worst])


def _map(found: Outcomes, drawn: Any, dataset: CrossViewDataset, truth: Truth) -> dict[str, Any]:
    rows, top = found.query_row[drawn], found.top_row[drawn]
    names = dataset.queries["query_id"].take(rows).to_pylist()
    top_lonlat = truth.reference_lonlat[np.maximum(top, 0)]
    return {
        "id": names,
        "lon": truth.query_lonlat[rows, 0].round(6).tolist(),
        "lat": truth.query_lonlat[rows, 1].round(6).tolist(),
        "error_m": [_rounded(value, 1) for value in found.error_m[drawn].tolist()],
        "rank": (found.rank[drawn] + 1).tolist(),
        "covers": found.is_cover_hit[drawn].tolist(),
        "top_lon": [float(lon) if row >= 0 else None for lon, row in zip(top_lonlat[:, 0].round(6), top, strict=True)],
        "top_lat": [float(lat) if row >= 0 else None for lat, row in zip(top_lonlat[:, 1].round(6), top, strict=True)],
    }


def _failures(
    found: Outcomes,
    dataset: CrossViewDataset,
    truth: Truth,
    query_QD: Array,
    reference_RD: Array,
    with_images: bool,
) -> list[dict[str, Any]]:
    """Return the queries with the greatest errors among those whose top-1 does not cover them, with their top 5."""
    missed = np.flatnonzero(~found.is_cover_hit)
    worst = missed[np.lexsort((found.query_row[missed], -found.rank[missed], -found.error_m[missed]))][:NUM_FAILURES]
    if not len(worst):
        return []
    rows = found.query_row[worst]
    indices_QK, scores_QK = (part.cpu().numpy() for part in search(query_QD[rows], reference_RD, TOP_K))
    query_ids = dataset.queries["query_id"].take(rows).to_pylist()
    indptr, covering_rows = truth.covering
    failures = []
    for place, (row, at) in enumerate(zip(rows.tolist(), worst.tolist(), strict=True)):
        covering = set(np.asarray(covering_rows[indptr[row] : indptr[row + 1]]).tolist())
        known = indices_QK[place] >= 0
        shown = [int(truth.positives[row]), *indices_QK[place][known].tolist()]
        scores = [None, *(round(float(score), 4) for score in scores_QK[place][known])]
        away_m = distance_m(*truth.query_lonlat[row], *truth.reference_lonlat[shown].T)
        ids = dataset.references["reference_id"].take(shown).to_pylist()
        failures.append(
            {
                "id": query_ids[place],
                "rank": int(found.rank[at]) + 1,
                "error_m": _rounded(float(found.error_m[at]), 1),
                "image": _picture(dataset, query_ids[place], "query") if with_images else "",
                "references": [
                    {
                        "id": name,
                        "away_m": round(float(away), 1),
                        "score": score,
                        "covers": reference in covering,
                        "image": _picture(dataset, name, "reference") if with_images else "",
                    }
                    for name, away, score, reference in zip(ids, away_m, scores, shown, strict=True)
                ],
            }
        )
    return failures


def _picture(dataset: CrossViewDataset, name: str, kind: str) -> str:
    """Return a small copy as a data URI, "" where there is no image or it cannot be decoded."""
    width = _WIDTH_PX[kind]
    try:
        pixels = decode(bytes(dataset.images[name]), 1, width)
    except (KeyError, ValueError):
        return ""
    image = Image.fromarray(pixels)
    size = (width, max(round(image.height * width / image.width), 1))
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(stream, "WEBP", quality=55, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _reliability(report: RetrievalReport) -> dict[str, Any] | None:
    if report.calibration is None:
        return None
    found = report.calibration
    bins = zip(found["confidence"], found["share"], found["num"], strict=True)
    return {
        "error": _rounded(found["expected_calibration_error"]),
        "bins": [[_rounded(mean), _rounded(share), num] for mean, share, num in bins],
    }


def _numbers(report: RetrievalReport) -> str:
    within = report.recall_within_m.get("50", math.nan)
    tiles = [
        ("recall@1", percent(report.recall_at_1), f"chance {percent(report.chance_recall_at_1)}"),
        ("recall@10", percent(report.recall_at_10), f"recall@1% {percent(report.recall_at_1_percent)}"),
        ("hit rate (cover)", percent(report.hit_rate_cover), f"strict {percent(report.hit_rate_strict)}"),
        ("median error", meters(report.median_error_m), "query to the centre of its top-1"),
        ("within 50 m", percent(within), f"within 100 m {percent(report.recall_within_m.get('100', math.nan))}"),
        ("queries", f"{report.num_queries:,}", f"in {report.num_references:,} references"),
    ]
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )


def _conditions(conditions: dict[str, Any]) -> str:
    fov, heading = conditions.get("fov_deg", 360), conditions.get("heading", "known")
    if fov == 360 and heading == "known":
        return "Queries as they are: all around, heading known."
    how = {"zero": "the rest black", "crop": "cropped"}[conditions.get("fill", "zero")]
    seen = "All around" if fov == 360 else f"Field of view {fov:g}°, {how}"
    return f"{seen}; heading {heading} (seed {conditions.get('seed', 0)})."


def _failures_note(failures: Sequence[Any], num: int) -> str:
    if not num:
        return "No query is covered by a reference."
    if not failures:
        return "None: the top-1 covers every query."
    return (
        f"The {len(failures)} greatest errors among queries whose top-1 does not cover them: the query, its positive, "
        "and the five best references. Click a query to see it on the map."
    )


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f'<td class="number">{escape(value)}</td>' for value in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _rounded(value: float, digits: int = 5) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _json(data: Any) -> str:
    """Return JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _own(name: str) -> str:
    return (files("cvgl_models") / "evaluation" / "static" / name).read_text(encoding="utf-8")


def _of_report(name: str) -> str:
    """Return a file of the dataset report: the same look, and its copy of Leaflet; nothing of it is imported."""
    return (files("cvgl_data") / "report" / name).read_text(encoding="utf-8")
