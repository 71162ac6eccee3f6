"""From a place inside a reference to longitude and latitude, and the second stage of `cvgl_models.serving`.

Shapes: N images, K candidates of each.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError, RecipeError
from cvgl_data.geo import lonlat_from_pixel
from cvgl_models.batches import view_of
from cvgl_models.evaluation.embeddings import load_system
from cvgl_models.localization.conditions import with_prior
from cvgl_models.localization.pose import PosePrediction
from cvgl_models.localization.predicting import localize, sides
from cvgl_models.recipe import ModelRecipe
from cvgl_models.systems import SystemModule
from cvgl_models.training.embedding import autocast
from cvgl_models.transforms import Batch

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Where in a reference an image was taken, and which way it looks."""

    reference_id: str
    lon: float
    lat: float
    heading_deg: float
    """Compass bearing of the image's centre column, in [0, 360)."""
    radius95_m: float
    """Circle that holds 95 % of the model's probability."""
    score: float
    """How well image and reference fit, comparable over references only."""


def lonlat_of(references: pa.Table, rows: NDArray[np.int64], xy_m: Floats) -> tuple[Floats, Floats]:
    """Return longitude and latitude of places in references.

    Args:
        references: ``x``, ``y``, ``size``, ``zoom`` and ``gsd_m`` are read; north is up.
        rows: Of the references, (N,).
        xy_m: (N, 2) metres east and south of their centres.
    """
    x, y, size, zoom, gsd = (references[name].to_numpy()[rows] for name in ("x", "y", "size", "zoom", "gsd_m"))
    x_px, y_px = x + size / 2 + xy_m[:, 0] / gsd, y + size / 2 + xy_m[:, 1] / gsd
    lon, lat = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    for level in np.unique(zoom):
        here = np.flatnonzero((zoom == level) & np.isfinite(x_px) & np.isfinite(y_px))
        lon[here], lat[here] = lonlat_from_pixel(x_px[here], y_px[here], int(level))
    return lon, lat


class Refiner:
    """A trained localization system that looks for images in references of a dataset.

    Args:
        run: Run folder, or the folder of an exported model.
        dataset: Its references are read.

    Raises:
        CheckpointError: If the run has no trained weights.
        RecipeError: If it is no run of a localization system, or one of pinhole cameras.
    """

    def __init__(self, run: Path, dataset: CrossViewDataset) -> None:
        self.system, self.recipe, self.weights = _loaded(run)
        self.dataset = dataset
        self._row = {name: row for row, name in enumerate(dataset.references["reference_id"].to_pylist())}

    def refine(
        self, image: bytes, reference_ids: Sequence[str], *, heading_deg: float = 0.0, heading_noise_deg: float = 0.0
    ) -> Pose | None:
        """Return the pose in that one of some references which fits best, None if there is none in any.

        Args:
            image: Encoded panorama.
            reference_ids: K candidates.
            heading_deg: Bearing of its centre column, clockwise from north.
            heading_noise_deg: How far off that may be, either way; 180: unknown.

        Raises:
            DatasetError: If an image is missing or cannot be used.
            RecipeError: If the noise is out of range.
        """
        if not reference_ids:
            return None
        if not 0 <= heading_noise_deg <= 180:
            raise RecipeError(f"the heading noise must lie in [0, 180] degrees, not {heading_noise_deg}")
        rows = np.array([self._row_of(name) for name in reference_ids])
        views: dict[str, Tensor] = {}
        for side in sides(self.recipe):
            if side == "reference":
                shown = [self._view(f"reference '{name}'", self._bytes(name), side, 0.0) for name in reference_ids]
                views[side] = torch.stack(shown)
            else:
                view = self._view("the image", image, side, heading_deg)
                views[side] = view.expand(len(reference_ids), -1, -1, -1)
        table = self.dataset.references
        side_m = (table["gsd_m"].to_numpy() * table["size"].to_numpy())[rows] * self.recipe.views.reference_crop
        gsd_m_K = torch.from_numpy(side_m / views["reference"].shape[-1]).float()
        found = self._localized(Batch(**views, gsd_m=gsd_m_K), heading_noise_deg)
        score_K = _scores(found)
        best = int(np.argmax(score_K))
        if not np.isfinite(score_K[best]):
            return None
        xy_m = found.xy_m_B2[best : best + 1].double().cpu().numpy()
        lon, lat = lonlat_of(table, rows[best : best + 1], xy_m)
        return Pose(
            reference_id=reference_ids[best],
            lon=float(lon[0]),
            lat=float(lat[0]),
            heading_deg=float((heading_deg + float(found.yaw_deg_B[best])) % 360),
            radius95_m=float(found.radius95_m_B[best]),
            score=float(score_K[best]),
        )

    def _localized(self, batch: Batch, noise_deg: float) -> PosePrediction:
        device = next(self.system.parameters()).device
        context = functools.partial(autocast, self.recipe.optim.precision, device)
        return localize(self.system, with_prior(batch, noise_deg), device, context)

    def _view(self, name: str, image: bytes, side: str, heading_deg: float) -> Tensor:
        try:
            return view_of(image, side, self.recipe.views, heading_deg)
        except ValueError as error:
            raise DatasetError(f"{name} cannot be used: {error}") from None

    def _row_of(self, name: str) -> int:
        if name not in self._row:
            raise DatasetError(f"the dataset has no reference '{name}'; name the one that the gallery was made of")
        return self._row[name]

    def _bytes(self, name: str) -> bytes:
        try:
            return bytes(self.dataset.images[name])
        except KeyError:
            raise DatasetError(f"image of reference '{name}' is missing; build the dataset with imagery") from None


def _loaded(run: Path) -> tuple[SystemModule, ModelRecipe, str]:
    system, recipe, weights = load_system(run)
    if system.task != "localization":
        raise RecipeError(
            f"'{run}' is a run of a retrieval system ('{recipe.system}'); refining needs a localization run"
        )
    if recipe.views.query == "pinhole":
        raise RecipeError(f"'{run}' was trained on images of pinhole cameras and cannot refine panoramas")
    return system, recipe, weights


def _scores(found: PosePrediction) -> Floats:
    """Return how well each candidate fits, -inf where nothing was found."""
    match_B = found.score_map_BHW.flatten(1).nan_to_num(-torch.inf).max(1).values
    match_B = match_B if found.match_B is None else found.match_B
    is_found_B = found.xy_m_B2.isfinite().all(1)
    scores: Floats = torch.where(is_found_B, match_B.nan_to_num(-torch.inf), -torch.inf).double().cpu().numpy()
    return scores
