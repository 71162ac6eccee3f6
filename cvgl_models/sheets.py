"""Contact sheets: what the model found, for people to look at."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.geo import distance_m
from cvgl_data.types import Progress
from cvgl_models.evaluation import embed, truth
from cvgl_models.retrieval import ranks, search

TOP_K = 5
_SIDE, _BAR, _GAP, _FRAME = 176, 20, 8, 5
_BACKGROUND, _INK, _GREEN, _RED, _BLUE = "#ffffff", "#1c1c1c", "#1a9641", "#d7191c", "#2b6cb0"


def contact_sheet(
    run: Path,
    data: str | Path | CrossViewDataset,
    out_png: Path,
    *,
    num: int = 12,
    split: str = "test",
    random_init: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Draw one row per query: the query, its positive, and the five best references with their distance from it.

    References that cover the query are framed green, others red. The queries are evenly spaced over the split.

    Args:
        run: Run folder.
        data: Dataset folder, or an opened dataset.
        out_png: Where to write the picture.
        num: Rows.
        split: Split of the queries.
        random_init: Show what the untrained model finds.
        progress: Told what is going on.

    Raises:
        CheckpointError: If the run has no trained weights and ``random_init`` is not set.
        DatasetError: If the split is empty or an image cannot be decoded.
    """
    embedded = embed(run, data, split, random_init=random_init, progress=progress)
    dataset, facts = embedded.dataset, truth(embedded.dataset)
    covered = np.flatnonzero(facts.positives >= 0)
    chosen = covered[np.unique(np.linspace(0, len(covered) - 1, min(num, len(covered))).astype(np.int64))]
    query_QD, reference_RD = np.array(embedded.query_QD[chosen]), np.array(embedded.reference_RD)
    found_QK = search(query_QD, reference_RD, TOP_K)[0].numpy()
    rank_Q = ranks(query_QD, reference_RD, facts.positives[chosen]).numpy()
    reference_ids = dataset.references["reference_id"].to_pylist()
    query_ids = dataset.queries["query_id"].to_pylist()
    indptr, rows = facts.covering

    width = _GAP + (2 * _SIDE + _GAP) + (1 + TOP_K) * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, _GAP + len(chosen) * (_SIDE + _BAR + _GAP)), _BACKGROUND)
    for line, query in enumerate(chosen):
        top = _GAP + line * (_SIDE + _BAR + _GAP)
        covering = set(rows[indptr[query] : indptr[query + 1]].tolist())
        title = f"rank {rank_Q[line] + 1}, query {query_ids[query]}"
        _draw(sheet, dataset.images[query_ids[query]], title, (_GAP, top), (2 * _SIDE, _SIDE), _INK)
        shown = [int(facts.positives[query]), *(int(row) for row in found_QK[line] if row >= 0)]
        away_m = distance_m(*facts.query_lonlat[query], *facts.reference_lonlat[shown].T)
        for place, row in enumerate(shown):
            left = 2 * _GAP + 2 * _SIDE + place * (_SIDE + _GAP)
            name = "positive" if place == 0 else f"{place}."
            color = _BLUE if place == 0 else _GREEN if row in covering else _RED
            title = f"{name} {away_m[place]:,.0f} m away"
            _draw(sheet, dataset.images[reference_ids[row]], title, (left, top), (_SIDE, _SIDE), color)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out_png)
    return out_png


def _draw(
    sheet: Image.Image, image: bytes, title: str, corner: tuple[int, int], size: tuple[int, int], color: str
) -> None:
    """Paste one image under a bar with its title, in a frame of the same color."""
    (left, top), (width, height) = corner, size
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((left, top, left + width - 1, top + _BAR + height - 1), fill=color)
    inner = (width - 2 * _FRAME, height - _FRAME)
    with Image.open(io.BytesIO(image)) as opened:
        sheet.paste(opened.convert("RGB").resize(inner, Image.Resampling.LANCZOS), (left + _FRAME, top + _BAR))
    font = ImageFont.load_default(13)
    while title and pen.textlength(title, font) > width - 2 * _FRAME:
        title = title[:-1]
    pen.text((left + _FRAME, top + 2), title, "white", font)
