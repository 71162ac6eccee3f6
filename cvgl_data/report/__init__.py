"""One self-contained page about a dataset: map, figures, samples, tables. It asks the network for nothing.

The page holds small copies of images; where a source's terms forbid to publish them, it says so at the top.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cvgl_data.arrow_files import writing_to
from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.errors import CvglError, RecipeError
from cvgl_data.readers.packed import read_manifest
from cvgl_data.report.map_data import Map, make_map, outline
from cvgl_data.report.page import fill
from cvgl_data.report.pictures import TILES_AT_MOST, Thumbnails, data_uri, mosaic
from cvgl_data.report.samples import NUM_SAMPLES, Pair, random_pairs, worst_images
from cvgl_data.statistics import read_extras, statistics
from cvgl_data.workspace import REPORT

MAX_POINTS = 20_000

PICTURE_BYTES = 4_200_000
"""What mosaics and thumbnails together take in the page, about."""

MOSAIC_PX = 3_000_000
"""Pixels of all mosaics together."""


SHARP_PX = 32
"""Side of a reference in its mosaic from which on the mosaic can stand in for its thumbnail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the page says that the tables do not."""

    name: str = "dataset"
    credits: Sequence[Mapping[str, str]] = ()
    """Rows ``kind``, ``name``, ``attribution``, ``licence``, as in the manifest."""
    outlines: Mapping[str, Any] = field(default_factory=dict)
    """Area to shapely polygon in lon/lat; of other areas the hull of their windows is drawn."""
    failures: pa.Table | None = None
    quality: pa.Table | None = None


def write_report(
    dataset_dir: Path,
    out: Path | None = None,
    *,
    max_points: int = MAX_POINTS,
    seed: int = 0,
    with_images: bool = True,
) -> Path:
    """Write the report of a packed dataset; equal datasets give equal bytes.

    Args:
        dataset_dir: A packed dataset.
        out: The page; default: ``report/index.html`` in the dataset's folder.
        max_points: Draw at most so many queries and squares; beyond it queries are sampled, references put together.
        seed: Decides which queries are drawn, and which are shown with their pictures.
        with_images: Whether the page holds small copies of images.

    Returns:
        The page's path.

    Raises:
        DatasetNotFoundError: If there is no dataset.
        DatasetError: If it is incomplete or damaged.
        WorkspaceError: If the page cannot be written.
        RecipeError: If ``max_points`` is less than 1.
    """
    dataset = open_dataset(dataset_dir)
    manifest = read_manifest(dataset_dir)
    failures, quality = read_extras(dataset_dir)
    about = About(
        name=str(manifest.get("name", "")) or dataset_dir.name,
        credits=manifest.get("sources", ()),
        outlines=_outlines(dataset_dir / "recipe.toml"),
        failures=failures,
        quality=quality,
    )
    text = render(dataset, about, max_points=max_points, seed=seed, with_images=with_images)
    path = out or dataset_dir / REPORT
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    return path


def render(
    dataset: CrossViewDataset,
    about: About,
    *,
    max_points: int = MAX_POINTS,
    seed: int = 0,
    with_images: bool = True,
) -> str:
    """Return the page's HTML; arguments as for `write_report`."""
    if max_points < 1:
        raise RecipeError(f"the map can draw {max_points} points at most, it must be at least 1")
    found = statistics(dataset, failures=about.failures, quality=about.quality)
    drawn = make_map(dataset, max_points=max_points, seed=seed)
    areas, used = _areas(dataset, drawn, about.outlines, with_images)
    thumbnails = Thumbnails(dataset.images, PICTURE_BYTES - used if with_images else 0)
    worst = worst_images(about.quality)
    pairs = random_pairs(drawn, dataset, seed=seed)
    if with_images:
        _make_thumbnails(thumbnails, pairs, worst, {area["name"] for area in areas if area.get("is_sharp")})
    return fill(
        found=found,
        about_name=about.name,
        credits=about.credits,
        map_data={**drawn.data, "areas": areas},
        num_drawn=len(drawn.query_rows),
        thumbnails=thumbnails.uris,
        pairs=pairs,
        worst=worst,
        has_quality=about.quality is not None,
        with_images=with_images,
        seed=seed,
    )


def _make_thumbnails(
    thumbnails: Thumbnails, pairs: Sequence[Pair], worst: Sequence[Mapping[str, Any]], sharp: Collection[str]
) -> None:
    """Make the samples first, then as many queries as there is room for, with references the map cannot show."""
    for item in worst:
        thumbnails.add({item["id"]: item["kind"]})
    for number, pair in enumerate(pairs):
        items = {pair.query: "query"}
        if number < NUM_SAMPLES or pair.area not in sharp:
            items[pair.reference] = "reference"
        if not thumbnails.add(items):
            return
    for pair in pairs:
        if not thumbnails.add({pair.reference: "reference"}):
            return


def _areas(
    dataset: CrossViewDataset, drawn: Map, outlines: Mapping[str, Any], with_images: bool
) -> tuple[list[dict[str, Any]], int]:
    """Return what the map shows of each area, and the size of its pictures."""
    areas, used = [], 0
    total = sum(len(place.west) for place in drawn.places.values())
    for name, place in drawn.places.items():
        if not len(place.west) and not len(place.query_x):
            continue
        area: dict[str, Any] = {"name": name, "outline": outline(place, outlines.get(name))}
        area["is_hull"] = name not in outlines
        area["edges"] = [round(float(edge), 10) for edge in place.edges]
        share = len(place.west) / max(total, 1)
        painted = with_images and mosaic(
            place,
            dataset.images,
            dataset.references["reference_id"],
            max_px=int(MOSAIC_PX * max(share, 0.5 / len(drawn.places))),
            max_tiles=int(TILES_AT_MOST * share) + 1,
        )
        if painted:
            content, tile_px, edges = painted
            area["mosaic"] = data_uri(content, "image/webp")
            area["mosaic_edges"] = [round(float(edge), 10) for edge in edges]
            area["is_sharp"] = bool(tile_px >= SHARP_PX)
            used += len(area["mosaic"])
        areas.append(area)
    return areas, used


def _outlines(recipe: Path) -> dict[str, Any]:
    """Return the recipe's areas; none where it names none, or they can no longer be had: the page does without."""
    from cvgl_data.planning import areas
    from cvgl_data.recipe import DatasetRecipe, resolve

    try:
        resolved = resolve(DatasetRecipe, tomllib.loads(recipe.read_text(encoding="utf-8")))
        return {area.name: area.geometry for area in areas(resolved)} if resolved.areas else {}
    except (CvglError, OSError, ValueError):
        return {}
