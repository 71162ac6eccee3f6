"""Figures for a paper: decentrality against theory, where queries lie in their positive, dates of capture, maps.

Every figure is a function of the statistics or tables alone: equal data gives equal bytes. Nothing here touches
matplotlib's global state, so figures can be drawn from any thread or notebook.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cvgl_data.arrow_files import writing_to
from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import UnknownNameError
from cvgl_data.registry import did_you_mean
from cvgl_data.report.placement import placed
from cvgl_data.statistics import DENSITY_BINS, ECDF_AT, HISTOGRAM_EDGES, Group, Statistics, binned_counts, statistics
from cvgl_data.statistics.theory import theory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png", "pdf")

BLUE, ORANGE, GRAY, INK = "#0072B2", "#D55E00", "#8c8c8c", "#222222"
"""Blue and vermilion of Okabe and Ito, told apart by every eye."""

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "cvgl",  # ids of clip paths are hashes; without a salt they are random
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "path.simplify": True,
}

_UNDATED: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

_SHADES = ("#ffffff", "#efefef", "#dfdfdf", "#cdcdcd", "#b9b9b9", "#a3a3a3")
_SHADE_FROM = (0, 1, 2, 3, 5, 9)
"""Colors of references on a map, light enough for the dots, and from how many queries on."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_MANY_MARKS = 5_000
"""More marks than this are pixels even in a vector file."""


def write_figures(
    dataset: CrossViewDataset, folder: Path, formats: Sequence[str] = ("svg", "png"), *, is_summary: bool = False
) -> list[Path]:
    """Write all figures of a dataset; returns their paths in the order in which they were drawn.

    Over all queries, per split and per area: ``decentrality-*``, ``density-*``, ``queries-per-reference-*``. Per area:
    ``map-*``. Over all areas: ``captured-queries`` and ``captured-references``. What there is no data for is left out.

    Args:
        dataset: Its images are not read.
        folder: Created if it is missing; files of the same names are replaced.
        formats: Of ``svg``, ``png``, ``pdf``.
        is_summary: Only those over all queries, and the maps.

    Raises:
        UnknownNameError: If there is no such format.
        WorkspaceError: If the folder cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError(f"unknown figure format '{name}'{did_you_mean(name, FORMATS)}")
    paths = []
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in _all_figures(dataset, statistics(dataset), is_summary):
            for suffix, content in zip(formats, draw_as(draw, formats), strict=True):
                path = folder / f"{name}.{suffix}"
                path.write_bytes(content)
                paths.append(path)
    return paths


def draw_as(draw: Callable[[], Figure], formats: Sequence[str]) -> list[bytes]:
    """Draw a figure once and return it in each format."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's matplotlibrc would show
        settings: Any = matplotlib.rcParams
        settings.update(_STYLE)
        figure, contents = draw(), []
        for name in formats:
            stream = io.BytesIO()
            figure.savefig(stream, format=name, metadata=_UNDATED[name])
            contents.append(stream.getvalue())
    return contents


def _all_figures(
    dataset: CrossViewDataset, found: Statistics, is_summary: bool
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    taken: set[str] = set()
    for group in found.groups:
        if group.num_covered and (group.kind == "all" or not is_summary):
            name = _file_name("all" if group.kind == "all" else f"{group.kind}-{group.name}", taken)
            yield f"decentrality-{name}", partial(decentrality_figure, group)
            yield f"density-{name}", partial(density_figure, group)
            yield f"queries-per-reference-{name}", partial(queries_per_reference_figure, group)
    for kind, plural in (("query", "queries"), ("reference", "references")):
        if any(row["kind"] == kind and row["year"] for row in found.captured):
            yield f"captured-{plural}", partial(captured_figure, found, kind)
    taken = set()
    for group in found.groups:
        if group.kind == "area" and group.num_references:
            name = _file_name(group.name, taken)
            yield f"map-{name}", partial(map_figure, dataset, group.name)


def _file_name(label: str, taken: set[str]) -> str:
    """Return a label that can be part of a file name on any system, and is not taken."""
    plain = re.sub(r"[^\w-]+", "-", label, flags=re.ASCII).strip("-")[:80] or "unnamed"
    name, number = plain, 2
    while name.lower() in taken:
        name, number = f"{plain}-{number}", number + 1
    taken.add(name.lower())
    return name


def _title(group: Group) -> str:
    return "all queries" if group.kind == "all" else f"{group.kind} {_plain(group.name)}"


def _plain(text: str) -> str:
    """Return text that matplotlib draws as it is, without reading mathematics into it."""
    return (text if len(text) <= 40 else text[:39] + "…").replace("$", r"\$")


def decentrality_figure(group: Group) -> Figure:
    """Draw histogram and ECDF of both decentralities of the positives, with the theory of the grid if it has one."""
    figure = _figure(6.4, 4.4)
    expected = theory(group.stride_ratio) if group.stride_ratio else None
    for column, (name, found, covering) in enumerate(
        (
            ("$D_\\infty$", group.decentrality, group.covering),
            ("$D_2$", group.decentrality_l2, group.covering_l2),
        )
    ):
        cdf = None if expected is None else (expected.cdf if column == 0 else expected.cdf_l2)
        top, bottom = (figure.add_subplot(2, 2, 2 * row + column + 1) for row in (0, 1))
        shares = np.asarray(found.histogram) / found.summary.count
        top.bar(
            HISTOGRAM_EDGES[:-1], shares, 0.05, align="edge", color=BLUE, alpha=0.75, linewidth=0, label="positives"
        )
        bottom.plot(ECDF_AT, found.ecdf, color=BLUE, label="positives")
        if covering.summary.count > found.summary.count:
            bottom.plot(ECDF_AT, covering.ecdf, color=GRAY, linewidth=1, linestyle=":", label="all covering pairs")
        if cdf is not None:
            label = f"uniform, stride {group.stride_ratio:.3g} L"
            in_bins = np.diff(cdf(HISTOGRAM_EDGES))
            top.stairs(in_bins, HISTOGRAM_EDGES, color=ORANGE, linewidth=1.3, label=label)
            fine = np.linspace(0, 1, 401)
            bottom.plot(fine, cdf(fine), color=ORANGE, linestyle="--", linewidth=1.1, label=label)
        mean = found.summary.mean or 0.0
        top.axvline(mean, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
        top.text(
            mean - 0.015,
            0.98,
            f"mean {mean:.3f}",
            transform=top.get_xaxis_transform(),
            ha="right",
            va="top",
            fontsize=7,
        )
        top.set_ylabel("share of queries" if column == 0 else "")
        bottom.set_ylabel("share at or below" if column == 0 else "")
        bottom.set_xlabel(f"decentrality {name}")
        for axes in (top, bottom):
            axes.set_xlim(0, 1)
        top.set_ylim(0, max(top.get_ylim()[1] * 1.12, 0.01))
        bottom.set_ylim(0, 1.02)
        bottom.legend(loc="upper left")
    figure.suptitle(f"Decentrality, {_title(group)} (n = {group.decentrality.summary.count:,})", fontsize=10)
    return figure


def density_figure(group: Group) -> Figure:
    """Draw where queries lie in their positive, north up; 1 is what a uniform density has everywhere."""
    figure = _figure(3.6, 3.1)
    axes = figure.add_subplot()
    counts = coarsened(np.asarray(group.density, np.float64))
    relative = counts / counts.sum() * counts.size
    image = axes.imshow(relative, cmap="viridis", extent=(-0.5, 0.5, -0.5, 0.5), vmin=0, interpolation="nearest")
    axes.axhline(0, color="white", linewidth=0.5, alpha=0.7)
    axes.axvline(0, color="white", linewidth=0.5, alpha=0.7)
    axes.grid(visible=False)
    axes.set_xticks((-0.5, -0.25, 0, 0.25, 0.5))
    axes.set_yticks((-0.5, -0.25, 0, 0.25, 0.5))
    axes.set_xlabel("east of the centre, δx / L")
    axes.set_ylabel("north of the centre, δy / L")
    axes.set_title(_title(group))
    bar = figure.colorbar(image, ax=axes, shrink=0.86)
    bar.set_label("density relative to uniform")
    bar.outline.set_linewidth(0.5)
    return figure


def coarsened(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put bins of a density together, 2 x 2 or 4 x 4, until a bin holds 4 on average and noise shows less."""
    for factor in (1, 2, 4):
        bins = DENSITY_BINS // factor
        if counts.sum() >= 4 * bins**2:
            break
    return np.asarray(counts.reshape(bins, factor, bins, factor).sum((1, 3)))


def queries_per_reference_figure(group: Group) -> Figure:
    """Draw how many references are the positive of 0, 1, 2, ... queries; those of none are distractors."""
    figure = _figure(3.6, 2.4)
    axes = figure.add_subplot()
    rows = binned_counts(group)
    bars = axes.bar(
        [row["queries"] for row in rows],
        [row["references"] for row in rows],
        0.8,
        color=[GRAY if row["queries"] == "0" else BLUE for row in rows],
    )
    axes.bar_label(bars, [f"{row['references']:,}" if row["references"] else "" for row in rows], fontsize=6, padding=1)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("queries of a reference")
    axes.set_ylabel("references")
    axes.set_title(f"{_title(group)}: {group.distractor_share or 0:.1%} distractors")
    return figure


def captured_figure(found: Statistics, kind: str) -> Figure:
    """Draw the share of each area's images by month and by year of capture.

    Args:
        found: Of the dataset.
        kind: ``query`` or ``reference``.

    Source:
        CV-Cities shows months and years by city.
    """
    rows = [row for row in found.captured if row["kind"] == kind]
    areas = sorted({row["area"] for row in rows})
    known = sorted({row["year"] for row in rows if row["year"]})
    years: list[int | None] = [*range(known[0], known[-1] + 1)] if known else []
    months: list[int | None] = [*range(1, 13)]
    width = 1.5 + 0.27 * (12 + max(len(years), 3) + 2)
    figure = _figure(width, 1.2 + 0.22 * len(areas))
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(13, max(len(years), 3) + 1))
    for axes, period, columns, names in (
        (panels[0], "month", months, [*_MONTHS]),
        (panels[1], "year", years, [str(year) for year in years]),
    ):
        if any(row[period] is None for row in rows):
            columns, names = [*columns, None], [*names, "unknown"]
        counts = np.zeros((len(areas), len(columns)))
        for row in rows:
            counts[areas.index(row["area"]), columns.index(row[period])] += row["images"]
        _heat(axes, counts, names)
        axes.set_title(f"{period} of capture")
    panels[0].set_yticks(range(len(areas)), [_plain(area) or "(no area)" for area in areas])
    plural = "queries" if kind == "query" else "references"
    figure.suptitle(f"{plural.capitalize()}: share of each area's images", fontsize=10)
    return figure


def _heat(axes: Axes, counts: NDArray[np.float64], names: Sequence[str]) -> None:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(shares) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    for (row, column), share in np.ndenumerate(shares):
        if counts[row, column]:
            text = f"{share * 100:.0f}" if share >= 0.005 else "<1"
            axes.text(column, row, text, ha="center", va="center", fontsize=5.5, color="white" if share > 0.5 else INK)


def map_figure(dataset: CrossViewDataset, area: str) -> Figure:
    """Draw an area: each reference coloured by the number of its queries, each query by its decentrality.

    Positions are Web-Mercator; the scale bar holds at the latitude of the middle.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    place = placed(dataset, area)
    origin_x, origin_y = place.west.min(), place.north.min()
    meters = place.ground_m  # of one world unit, here
    left, top, side = (
        (values - start) * meters
        for values, start in ((place.west, origin_x), (place.north, origin_y), (place.side, 0))
    )
    wide, high = float((left + side).max()), float((top + side).max())
    scale = 5.0 / max(wide, high)
    figure = _figure(max(wide * scale, 2.2) + 1.9, max(high * scale, 2.0) + 0.8)
    axes = figure.add_subplot()
    counts = place.num_queries
    many = len(counts) > _MANY_MARKS
    axes.add_collection(
        PatchCollection(
            [Rectangle((x, -y - s), s, s) for x, y, s in zip(left, top, side, strict=True)],
            facecolor=np.asarray(_SHADES)[np.searchsorted(_SHADE_FROM, counts, "right") - 1].tolist(),
            edgecolor="none" if many else "#00000022",
            linewidth=0 if many else 0.3,
            rasterized=many,
        )
    )
    x, y = (place.query_x - origin_x) * meters, -(place.query_y - origin_y) * meters
    order = np.argsort(place.decentrality, kind="stable")  # the outer ones on top; those without a value last
    dots = axes.scatter(
        x[order],
        y[order],
        s=float(np.clip(20_000 / max(len(x), 1), 0.6, 10)),
        c=place.decentrality[order],
        cmap="viridis",
        vmin=0,
        vmax=1,
        linewidths=0 if len(x) > 1_000 else 0.25,
        edgecolors=INK,
        plotnonfinite=True,
        rasterized=len(x) > _MANY_MARKS,
    )
    axes.set_xlim(0, wide)
    axes.set_ylim(-high, 0)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(f"{_plain(area) or '(no area)'}: {len(x):,} queries, {len(counts):,} references")
    _scale_bar(axes, wide, high)
    bar = figure.colorbar(dots, ax=axes, shrink=0.7, pad=0.02, fraction=0.05)
    bar.set_label("query: decentrality $D_\\infty$")
    bar.outline.set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, facecolor=shade, edgecolor="#cccccc", linewidth=0.4) for shade in _SHADES]
    names = ["0", "1", "2", "3–4", "5–8", "9+"]
    figure.legend(handles, names, title="reference: its queries", loc="outside lower center", ncols=6, title_fontsize=7)
    return figure


def _scale_bar(axes: Axes, wide: float, high: float) -> None:
    length_m = round_length(wide / 4)
    x, y = wide * 0.03, -high * 0.97
    axes.plot([x, x + length_m], [y, y], color="white", linewidth=5, solid_capstyle="butt")
    axes.plot([x, x + length_m], [y, y], color=INK, linewidth=2.2, solid_capstyle="butt")
    name = f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
    axes.text(x + length_m / 2, y + high * 0.015, name, ha="center", va="bottom", fontsize=7, bbox=box)


def round_length(most_m: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, ... that is no longer than ``most_m``."""
    power = 10.0 ** np.floor(np.log10(most_m))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most_m * (1 + 1e-12)))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
