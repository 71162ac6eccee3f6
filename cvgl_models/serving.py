"""Use a trained model: where were these pictures taken?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.errors import DatasetError
from cvgl_data.types import Progress
from cvgl_models.batches import query_view
from cvgl_models.evaluation import embed_gallery
from cvgl_models.retrieval import search
from cvgl_models.training import embed_views


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One reference that may show the place."""

    reference_id: str
    lon: float
    lat: float
    """Centre of the reference."""
    score: float
    """Cosine similarity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where one image was probably taken: the centre of its best candidate."""

    image: str
    lon: float
    lat: float
    candidates: tuple[Candidate, ...]
    """Best first."""


def locate(
    run: Path,
    image_paths: Sequence[Path],
    data: str | Path | CrossViewDataset,
    *,
    top_k: int = 5,
    heading_deg: float = 0.0,
    progress: Progress | None = None,
) -> list[Location]:
    """Find each image among all references of a dataset.

    Args:
        run: Run folder of a trained model.
        image_paths: Equirectangular panoramas.
        data: Dataset folder, or an opened dataset.
        top_k: Candidates per image.
        heading_deg: Bearing of the panoramas' centre column, clockwise from north.
        progress: Told what is going on.

    Raises:
        CheckpointError: If the run has no trained weights.
        DatasetError: If an image is missing or cannot be decoded, or there are no references.
    """
    dataset = data if isinstance(data, CrossViewDataset) else open_dataset(data)
    if not dataset.references.num_rows:
        raise DatasetError("the dataset has no references to search in; build it with imagery")
    encoded = [_read(Path(path)) for path in image_paths]
    system, recipe, reference_RD = embed_gallery(run, dataset, progress=progress)
    views = []
    for path, image in zip(image_paths, encoded, strict=True):
        try:
            views.append(query_view(image, recipe.views, heading_deg)[None])
        except ValueError as error:
            raise DatasetError(f"image '{path}' cannot be used: {error}") from None
    if not views:
        return []
    device = next(system.parameters()).device
    query_QD = embed_views(system, "query", iter(views), recipe.optim.precision, device)
    indices_QK, scores_QK = search(query_QD, np.array(reference_RD), top_k)
    return [
        _location(str(path), dataset, indices, scores)
        for path, indices, scores in zip(image_paths, indices_QK, scores_QK, strict=True)
    ]


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise DatasetError(f"no image file '{path}'")
    return path.read_bytes()


def _location(image: str, dataset: CrossViewDataset, indices: torch.Tensor, scores: torch.Tensor) -> Location:
    rows = [int(row) for row in indices if row >= 0]
    if not rows:
        raise DatasetError(f"image '{image}' has no valid embedding; the weights of the run are damaged")
    table = dataset.references
    candidates = tuple(
        Candidate(
            reference_id=table["reference_id"][row].as_py(),
            lon=table["lon"][row].as_py(),
            lat=table["lat"][row].as_py(),
            score=float(score),
        )
        for row, score in zip(rows, scores, strict=False)
    )
    return Location(image=image, lon=candidates[0].lon, lat=candidates[0].lat, candidates=candidates)
