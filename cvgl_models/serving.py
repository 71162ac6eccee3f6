"""Use a trained model: where were these pictures taken?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.errors import DatasetError
from cvgl_data.types import Progress
from cvgl_models.batches import view_of
from cvgl_models.evaluation.calibration import CANDIDATES, Calibration, calibrate, kept_calibration, lead
from cvgl_models.evaluation.embeddings import load_retrieval_system
from cvgl_models.gallery import open_gallery
from cvgl_models.localization.refining import Pose, Refiner
from cvgl_models.recipe import ModelRecipe
from cvgl_models.retrieval import search
from cvgl_models.systems import RetrievalModule
from cvgl_models.training import embed_views
from cvgl_models.transforms import Batch

T = TypeVar("T")


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
    """Where one image was probably taken: the centre of its best candidate, or the place that was found in one."""

    image: str
    lon: float
    lat: float
    confidence: float | None
    """Probability that the best candidate covers the place; None where none was fitted."""
    candidates: tuple[Candidate, ...]
    """Best first."""
    pose: Pose | None = None
    """Place and heading inside a candidate; None where nobody looked, or nothing was found."""


@dataclass(frozen=True, slots=True)
class Model:
    """A trained network that embeds images."""

    system: RetrievalModule
    recipe: ModelRecipe
    weights: str
    """Fingerprint of the weights."""

    def embed_queries(
        self, images: Sequence[bytes | Path], heading_deg: float | Sequence[float] = 0.0
    ) -> NDArray[np.float32]:
        """Return (N, D) L2-normalized embeddings of panoramas.

        Args:
            images: Encoded equirectangular panoramas, or their files.
            heading_deg: Bearing of the centre columns, clockwise from north; one for all or one for each.

        Raises:
            DatasetError: If an image is missing or cannot be used.
        """
        headings = np.broadcast_to(np.asarray(heading_deg, np.float64), (len(images),)).tolist()
        fields = self.system.query_views
        views = [_views(image, self.recipe, fields, heading) for image, heading in zip(images, headings, strict=True)]
        return self.embed("query", views)

    def embed_references(self, images: Sequence[bytes | Path]) -> NDArray[np.float32]:
        """Return (N, D) L2-normalized embeddings of north-up overhead images; arguments and errors likewise."""
        return self.embed("reference", [_views(image, self.recipe, ("reference",)) for image in images])

    def embed(self, side: str, views: Sequence[dict[str, Tensor]]) -> NDArray[np.float32]:
        """Return (N, D) L2-normalized embeddings of views that are ready, uint8 by field of a batch.

        Raises:
            DatasetError: If there are none.
        """
        if not views:
            raise DatasetError("there are no images to embed")
        where = next(self.system.parameters()).device
        size = self.recipe.validation.batch_size
        parts = (views[start : start + size] for start in range(0, len(views), size))
        batches = (Batch(**{name: torch.stack([view[name] for view in part]) for name in part[0]}) for part in parts)
        embedded: NDArray[np.float32] = embed_views(
            self.system, side, batches, self.recipe.optim.precision, where
        ).numpy()
        return embedded


def load_model(run: str | Path) -> Model:
    """Return the model of a run folder or of an exported model's folder.

    Raises:
        CheckpointError: If there are no trained weights, or they do not fit.
    """
    return Model(*load_retrieval_system(Path(run)))


def locate(
    run: str | Path,
    image_paths: Sequence[str | Path],
    data: str | Path | CrossViewDataset | None = None,
    *,
    top_k: int = 5,
    heading_deg: float = 0.0,
    near: tuple[float, float, float] | None = None,
    refine: str | Path | None = None,
    refine_top: int = 1,
    heading_noise_deg: float = 0.0,
    on_error: Callable[[DatasetError], None] | None = None,
    progress: Progress | None = None,
) -> list[Location]:
    """Find each image among the references of a gallery, which is kept in the run folder.

    Args:
        run: Run folder of a trained model, or the folder of an exported model.
        image_paths: Equirectangular panoramas.
        data: Dataset folder, or an opened dataset; None: the gallery that was searched before.
        top_k: Candidates per image.
        heading_deg: Bearing of the panoramas' centre column, clockwise from north.
        near: Longitude, latitude and metres: search only references whose centre lies within.
        refine: Run folder of a localization system, which then looks for the place inside the best candidate; reads
            the images of references, so ``data`` has to be given.
        refine_top: It looks in so many candidates, and the one that fits best counts.
        heading_noise_deg: How far off ``heading_deg`` may be, either way, for the second stage; 180: unknown.
        on_error: Told of each image that is missing or cannot be decoded, which is then left out; None: raises.
        progress: Told what is going on.

    Raises:
        CheckpointError: If the run has no trained weights, or no gallery and no data is given.
        DatasetError: If there are no references, or none nearby; of an image, see ``on_error``.
        RecipeError: If the run to refine with is none of a localization system for panoramas.
    """
    if refine is not None and data is None:
        raise DatasetError("refining reads the images of references; name the dataset with --data")
    run = Path(run)
    if not math.isfinite(heading_deg):
        raise DatasetError(f"heading {heading_deg} is no compass bearing; give degrees clockwise from north")
    dataset = data if isinstance(data, CrossViewDataset) or data is None else open_dataset(data)
    there = _kept(image_paths, _check_file, on_error)[0]  # before the gallery is embedded, which may take long
    if image_paths and not there:
        return []
    system, recipe, gallery = open_gallery(run, dataset, progress=progress)
    confidence = kept_calibration(run, gallery.weights)
    if confidence is None and dataset is not None:
        confidence = calibrate(run, dataset, progress=progress)
    refiner = Refiner(Path(refine), dataset) if refine is not None and dataset is not None else None
    if near is not None:
        gallery = gallery.near(*near)
    image_paths, views = _kept(
        there, lambda path: _views(Path(path), recipe, system.query_views, heading_deg), on_error
    )
    if not views:
        return []
    query_QD = Model(system, recipe, gallery.weights).embed("query", views)
    found, score = search(query_QD, np.array(gallery.embedding_RD), max(top_k, CANDIDATES))
    indices_QK, scores_QK = found.numpy(), score.double().numpy()
    sure_Q = _confidences(confidence, indices_QK, scores_QK, gallery.references)
    columns = {name: gallery.references[name].to_pylist() for name in ("reference_id", "lon", "lat")}
    found_all = [
        _location(str(path), columns, indices_QK[row, : max(top_k, refine_top)], scores_QK[row], sure_Q[row])
        for row, path in enumerate(image_paths)
    ]
    if refiner is not None:
        found_all = [_refined(one, refiner, refine_top, heading_deg, heading_noise_deg) for one in found_all]
    return [replace(one, candidates=one.candidates[:top_k]) for one in found_all]


def geojson(locations: Sequence[Location]) -> dict[str, Any]:
    """Return locations as a GeoJSON feature collection.

    There is a point for every candidate, the best one with its rank 1, and with rank 0 one for the place inside a
    candidate, where it was looked for.
    """
    features: list[dict[str, Any]] = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [location.pose.lon, location.pose.lat]},
            "properties": {
                "image": location.image,
                "rank": 0,
                "reference_id": location.pose.reference_id,
                "heading_deg": location.pose.heading_deg,
                "radius95_m": location.pose.radius95_m,
                "score": location.pose.score,
            },
        }
        for location in locations
        if location.pose is not None
    ]
    features += [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [candidate.lon, candidate.lat]},
            "properties": {
                "image": location.image,
                "rank": rank,
                "reference_id": candidate.reference_id,
                "score": candidate.score,
                "confidence": location.confidence if rank == 1 else None,
            },
        }
        for location in locations
        for rank, candidate in enumerate(location.candidates, start=1)
    ]
    return {"type": "FeatureCollection", "features": features}


def summary(location: Location) -> str:
    """Return one line for people: the place, and how sure that is."""
    sure = "confidence unknown" if location.confidence is None else f"confidence {location.confidence:.0%}"
    if location.pose is not None:
        sure = f"±{location.pose.radius95_m:.1f} m, heading {location.pose.heading_deg:.1f}°; {sure}"
    return f"{location.image}: {location.lon:.6f}, {location.lat:.6f} ({sure})"


def _confidences(
    fitted: Calibration | None, indices_QK: NDArray[np.int64], scores_QK: NDArray[np.float64], references: Any
) -> list[float | None]:
    if fitted is None:
        return [None] * len(indices_QK)
    few = slice(None, CANDIDATES)  # as many as it was fitted with
    sure: list[float | None] = fitted.confidence(*lead(indices_QK[:, few], scores_QK[:, few], references)).tolist()
    return sure


def _refined(location: Location, refiner: Refiner, top: int, heading_deg: float, heading_noise_deg: float) -> Location:
    """Return a location with the place that was found inside one of its best candidates."""
    names = [candidate.reference_id for candidate in location.candidates[:top]]
    image = _read(location.image)
    pose = refiner.refine(image, names, heading_deg=heading_deg, heading_noise_deg=heading_noise_deg)
    return location if pose is None else replace(location, pose=pose, lon=pose.lon, lat=pose.lat)


def _kept(
    paths: Sequence[str | Path], use: Callable[[str | Path], T], on_error: Callable[[DatasetError], None] | None
) -> tuple[list[str | Path], list[T]]:
    """Return the paths that can be used, and what became of them."""
    kept: list[str | Path] = []
    found: list[T] = []
    for path in paths:
        try:
            found.append(use(path))
        except DatasetError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            kept.append(path)
    return kept, found


def _check_file(path: str | Path) -> None:
    if not Path(path).is_file():
        raise DatasetError(f"no image file '{path}'")


def _read(path: str | Path) -> bytes:
    _check_file(path)
    return Path(path).read_bytes()


def _views(
    image: bytes | Path, recipe: ModelRecipe, fields: Sequence[str], heading_deg: float = 0.0
) -> dict[str, Tensor]:
    """Return the views of an image that are fields of a batch; a reference has no heading."""
    content = image if isinstance(image, bytes) else _read(image)
    try:
        return {name: view_of(content, name, recipe.views, heading_deg) for name in fields}
    except ValueError as error:
        name = "an image" if isinstance(image, bytes) else f"image '{image}'"
        raise DatasetError(f"{name} cannot be used: {error}") from None


def _location(
    image: str,
    columns: dict[str, list[Any]],
    rows_K: NDArray[np.int64],
    scores_K: NDArray[np.float64],
    confidence: float | None,
) -> Location:
    candidates = tuple(
        Candidate(**{name: values[row] for name, values in columns.items()}, score=float(score))
        for row, score in zip(rows_K.tolist(), scores_K[: len(rows_K)], strict=True)
        if row >= 0
    )
    if not candidates:
        raise DatasetError(f"image '{image}' has no valid embedding; the weights of the run are damaged")
    return Location(
        image=image,
        lon=candidates[0].lon,
        lat=candidates[0].lat,
        confidence=confidence,
        candidates=candidates,
    )
