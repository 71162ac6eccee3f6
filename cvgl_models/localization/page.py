"""One self-contained page about a localization evaluation: numbers, curves, score maps over the references.

The page holds small copies of images of the dataset; make it without them where the terms forbid to publish those.
"""

from __future__ import annotations

import base64
import io
import math
import re
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvgl_data.dataset import CrossViewDataset
from cvgl_models.batches import decode
from cvgl_models.evaluation.page import _html_table, _json, _of_report, _picture, _rounded
from cvgl_models.localization.metrics import Poses, PoseTruth, angle_between_deg, errors_m
from cvgl_models.localization.report import CURVE_M, LocalizationReport, in_degrees, in_meters
from cvgl_models.metrics import percent

MAX_VECTORS = 2000
"""Error vectors drawn; of more, evenly spaced ones."""
_MAP_PX = 224
_HAZE = np.array([225.0, 20.0, 30.0])

Floats = NDArray[np.float64]


def localization_page(
    report: LocalizationReport,
    dataset: CrossViewDataset,
    truth: PoseTruth,
    poses: Poses,
    maps: dict[str, NDArray[Any]],
    *,
    with_images: bool = True,
) -> str:
    """Return the HTML of the page; equal input gives equal bytes.

    Args:
        report: The measures.
        dataset: The pairs, with their queries and references.
        truth: What is true of each pair.
        poses: What was found.
        maps: Score maps of some pairs, best first, see `cvgl_models.localization.evaluation.Predictions`.
        with_images: Whether there are small copies of images below the score maps.
    """
    setting = report.setting
    title = " · ".join(str(setting[key]) for key in ("recipe", "split", "protocol") if setting.get(key))
    parts = {
        "title": escape(title or "localization"),
        "conditions": escape(_conditions(setting.get("conditions") or {})),
        "numbers": _numbers(report),
        "all": _html_table(*report.table()),
        "more": _html_table(["", "value"], [list(row) for row in report.rows()]),
        "groups": _html_table(*report.group_table()),
        "cases": _cases(report, dataset, truth, poses, maps, with_images),
        "data": _json(_data(report, truth, poses)),
        "css": _of_report("static/page.css") + _own("page.css"),
        "scripts": _of_report("static/charts.js") + "\n" + _own("page.js"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _own("page.html"))


def overlaid(reference: NDArray[np.uint8] | None, map_HW: Floats, extent_m: Floats, side_m: float) -> NDArray[np.uint8]:
    """Return a reference with a score map over it, (P, P, 3).

    Args:
        reference: (P, P, 3); None: a grey ground.
        map_HW: Log-probabilities up to a constant.
        extent_m: Left, top, right, bottom of the map, metres from the reference's centre.
        side_m: Side of the reference.
    """
    ground = np.full((_MAP_PX, _MAP_PX, 3), 128.0) if reference is None else reference.astype(np.float64)
    height, width = map_HW.shape
    at_m = ((np.arange(_MAP_PX) + 0.5) / _MAP_PX - 0.5) * side_m
    column = np.floor((at_m - extent_m[0]) / (extent_m[2] - extent_m[0]) * width).astype(np.int64)
    row = np.floor((at_m - extent_m[1]) / (extent_m[3] - extent_m[1]) * height).astype(np.int64)
    is_inside = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))
    haze = np.exp((map_HW - map_HW.max()) / 2)[row.clip(0, height - 1)[:, None], column.clip(0, width - 1)]
    share = np.where(is_inside, 0.75 * haze, 0.0)[..., None]
    mixed: NDArray[np.uint8] = np.clip(ground * (1 - share) + _HAZE * share, 0, 255).astype(np.uint8)
    return mixed


def _cases(
    report: LocalizationReport,
    dataset: CrossViewDataset,
    truth: PoseTruth,
    poses: Poses,
    maps: dict[str, NDArray[Any]],
    with_images: bool,
) -> str:
    """Return the pairs whose maps were kept, under one heading for the best, the middle ones and the worst."""
    chosen = maps["pair"].tolist()
    share = -(-len(chosen) // 3) if len(chosen) >= 3 else max(len(chosen), 1)
    error, turned = errors_m(truth, poses.xy_m), angle_between_deg(poses.yaw_deg, truth.yaw_deg)
    rows = {side: dataset.pairs[f"{side}_row"].to_numpy() for side in ("query", "reference")}
    references = {name: dataset.references[name].to_numpy()[rows["reference"]] for name in ("size", "gsd_m")}
    html = []
    for start, name in zip(range(0, len(chosen), share), ("Best", "Median", "Worst"), strict=False):
        boxes = []
        for number in range(start, min(start + share, len(chosen))):
            pair = chosen[number]
            query_id = dataset.queries["query_id"][int(rows["query"][pair])].as_py()
            reference_id = dataset.references["reference_id"][int(rows["reference"][pair])].as_py()
            text = f"error {in_meters(error[pair])}"
            if report.has_yaw:
                text += f", heading {in_degrees(turned[pair])} off"
            picture = _picture(dataset, query_id, "query") if with_images else ""
            map_HW = maps[f"map{number}"].astype(np.float64)
            whole_m = references["size"][pair] * references["gsd_m"][pair]
            ground = _reference(dataset, reference_id, float(truth.side_m[pair] / whole_m)) if with_images else None
            uri = _uri(overlaid(ground, map_HW, maps[f"extent_m{number}"], float(truth.side_m[pair])))
            shown = f'<img src="{picture}" alt="the query" loading="lazy">' if picture else ""
            boxes.append(
                f'<div class="case"><div>{shown}<b>{escape(query_id)}</b>{escape(text)}'
                f"<br>in {escape(reference_id)}</div>"
                f'<div class="map"><img src="{uri}" alt="score map over the reference" loading="lazy">'
                f"{_marks(truth, poses, pair, report.has_yaw)}</div></div>"
            )
        html.append(f'<h3>{name}</h3><div class="cases">{"".join(boxes)}</div>')
    return "".join(html)


def _marks(truth: PoseTruth, poses: Poses, pair: int, has_yaw: bool) -> str:
    """Return an SVG of the true and the found pose, in per cent of the reference's side."""
    percent_per_m = 100 / float(truth.side_m[pair])
    shapes = [_mark(truth.xy_m[pair] * percent_per_m + 50, truth.yaw_deg[pair], "true", has_yaw)]
    if np.isfinite(poses.xy_m[pair]).all():
        u, v = poses.xy_m[pair] * percent_per_m + 50
        shapes.append(_mark(np.array([u, v]), poses.yaw_deg[pair], "found", has_yaw))
        radius = float(poses.radius95_m[pair]) * percent_per_m
        if math.isfinite(radius):
            shapes.append(f'<circle class="found dashed" cx="{u:.2f}" cy="{v:.2f}" r="{radius:.2f}"/>')
    return f'<svg viewBox="0 0 100 100" aria-hidden="true">{"".join(shapes)}</svg>'


def _mark(at_2: Floats, yaw_deg: float, kind: str, has_yaw: bool) -> str:
    u, v = at_2
    if kind == "true":
        shape = f'<circle class="{{}}" cx="{u:.2f}" cy="{v:.2f}" r="2.6"/>'
    else:
        shape = f'<path class="{{}}" d="M{u - 2.4:.2f} {v - 2.4:.2f}l4.8 4.8m0 -4.8l-4.8 4.8"/>'
    if has_yaw and math.isfinite(yaw_deg):
        du, dv = 9 * math.sin(math.radians(yaw_deg)), -9 * math.cos(math.radians(yaw_deg))
        shape += f'<path class="{{}}" d="M{u:.2f} {v:.2f}l{du:.2f} {dv:.2f}"/>'
    return shape.replace("{}", "halo") + shape.replace("{}", kind)


def _data(report: LocalizationReport, truth: PoseTruth, poses: Poses) -> dict[str, Any]:
    east, south = (poses.xy_m - truth.xy_m).T
    known = np.flatnonzero(np.isfinite(east) & np.isfinite(south))
    center_m = errors_m(truth, np.zeros_like(truth.xy_m))
    few = known[np.unique(np.linspace(0, len(known) - 1, MAX_VECTORS).astype(np.int64))] if len(known) else known
    most = float(np.quantile(np.maximum(np.abs(east[known]), np.abs(south[known])), 0.9)) if len(known) else 1.0
    return {
        "error_curve": [
            [0.0, 0.0],
            *([float(limit), _rounded(share)] for limit, share in report.error_curve_m.items()),
        ],
        "center_curve": [[0.0, 0.0], *([limit, _rounded(float((center_m < limit).mean()))] for limit in CURVE_M)],
        "vectors": np.stack([east[few], -south[few]], 1).round(2).tolist(),
        "vectors_to_m": _nice(most),
        "mean_vector": [_rounded(float(value), 3) for value in (_mean(east[known]), -_mean(south[known]))],
    }


def _numbers(report: LocalizationReport) -> str:
    whole, center, found = report.whole, report.center, report.calibration
    tiles = [
        ("median error", in_meters(whole.median_error_m), f"the centre: {in_meters(center.median_error_m)}"),
        ("mean error", in_meters(whole.mean_error_m), f"95 %: {in_meters(whole.p95_error_m)}"),
        ("within 1 m", percent(whole.recall_within_m["1"]), f"within 5 m {percent(whole.recall_within_m['5'])}"),
        (
            "in the 95 % radius",
            percent(found["share_inside_radius95"]),
            f"median {in_meters(found['median_radius95_m'])}",
        ),
        ("pairs", f"{whole.num_pairs:,}", f"{report.num_lost:,} without a result"),
    ]
    if report.has_yaw:
        share = f"within 5° {percent(whole.yaw_within_deg['5'])}"
        tiles.insert(3, ("median yaw error", in_degrees(whole.median_yaw_error_deg), share))
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )


def _conditions(conditions: dict[str, Any]) -> str:
    noise, fov = conditions.get("heading_noise_deg", 0.0), conditions.get("fov_deg", 360.0)
    known = {0: "Headings known", 180: "Headings unknown"}.get(noise, f"Headings known to ±{noise:g}°")
    seen = "" if fov == 360 else f"; field of view {fov:g}°, the rest black"
    where = "its positive" if conditions.get("pairs", "positive") == "positive" else "every reference that covers it"
    return f"{known}{seen}; each query in {where}."


def _reference(dataset: CrossViewDataset, name: str, share: float) -> NDArray[np.uint8] | None:
    """Return the middle of a reference, so much of its side."""
    try:
        pixels = decode(bytes(dataset.images[name]), 1, _MAP_PX)
    except (KeyError, ValueError):
        return None
    image = Image.fromarray(pixels)
    left, top = (max(size * (1 - share) / 2, 0.0) for size in image.size)
    box = (left, top, image.width - left, image.height - top)
    return np.asarray(image.resize((_MAP_PX, _MAP_PX), Image.Resampling.LANCZOS, box=box))


def _uri(pixels: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=60, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _nice(most: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, 50, ... metres."""
    power = 10.0 ** math.floor(math.log10(max(most, 0.1)))
    return next(size * power for size in (1.0, 2.0, 5.0, 10.0) if size * power >= most - 1e-9 or size == 10.0)


def _mean(value_P: Floats) -> float:
    return float(value_P.mean()) if value_P.size else math.nan


def _own(name: str) -> str:
    return (files("cvgl_models") / "localization" / "static" / name).read_text(encoding="utf-8")
