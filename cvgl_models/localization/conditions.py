"""What a localization system is told and shown: what is known of the heading, how much is seen, which references.

Each query's turn is drawn from its id and a seed, so it does not depend on the order of queries, nor on which others
there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import RecipeError
from cvgl_models.transforms import Batch
from cvgl_models.turned import drawn_shares, turned

PAIRS = ("positive", "covering")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseConditions:
    """How queries are shown; the default is 2-DoF: north-aligned, heading known.

    Raises:
        RecipeError: If a value is out of range.
    """

    heading_noise_deg: float = 0.0
    """Panoramas are turned by up to so much either way, and the model is told just that; 0: the heading is known
    (2-DoF); 180: nothing is (3-DoF). Pictures of pinhole cameras are not turned; what the model is told is off by as
    much."""
    fov_deg: float = 360.0
    """Only so many degrees about the centre of the view are seen, the rest is black (panoramas and top views)."""
    pairs: str = "positive"
    """Each query in its positive, or in every reference that covers it."""
    seed: int = 0
    """Decides the turns."""

    def __post_init__(self) -> None:
        if not 0 <= self.heading_noise_deg <= 180:
            raise RecipeError(f"the heading noise must lie in [0, 180] degrees, not {self.heading_noise_deg}")
        if self.pairs not in PAIRS:
            raise RecipeError(f"'pairs' is '{self.pairs}', expected one of: {', '.join(PAIRS)}")
        if not 0 < self.fov_deg <= 360:
            raise RecipeError(f"the field of view must lie in (0, 360] degrees, not {self.fov_deg}")

    @property
    def name(self) -> str:
        """Part of a folder's name, ``""`` for the default."""
        noise = self.heading_noise_deg
        parts = [] if self.fov_deg == 360 else [f"fov{self.fov_deg:g}"]
        parts += [] if not noise else ["unknown"] if noise == 180 else [f"noise{noise:g}"]
        parts += ["covering"] if self.pairs == "covering" else []
        return "-".join([*parts, *([f"seed{self.seed}"] if self.seed and noise else [])])

    def turns_deg(self, query_ids: Sequence[str]) -> NDArray[np.float64]:
        """Return by how much each query is turned, in [-noise, noise): the bearing of the view's centre column."""
        if not self.heading_noise_deg:
            return np.zeros(len(query_ids))
        return (2 * drawn_shares(query_ids, self.seed) - 1) * self.heading_noise_deg

    def turned(self, dataset: CrossViewDataset) -> CrossViewDataset:
        """Return the dataset with headings such that its panoramas are rolled to their turn, not to north."""
        if not self.heading_noise_deg:
            return dataset
        return turned(dataset, self.turns_deg(dataset.queries["query_id"].to_pylist()))


def with_prior(batch: Batch, half_width_deg: float, turn_deg_B: torch.Tensor | None = None) -> Batch:
    """Return the batch with ``heading_prior_deg``: what is known of the headings.

    Args:
        batch: Panoramas or top views that lie within the half-width of the reference's top, or pictures of pinhole
            cameras with their true ``heading_deg``.
        half_width_deg: 0: known; 180: unknown.
        turn_deg_B: By how much what is told of pinhole cameras is off; None: not at all.
    """
    center_B = torch.zeros(len(batch.query), device=batch.query.device)
    if batch.camera_B33 is not None:
        center_B = batch.heading_deg.to(torch.float32)
        center_B = center_B if turn_deg_B is None else center_B - turn_deg_B.to(center_B)
    prior_B2 = torch.stack([center_B, torch.full_like(center_B, half_width_deg)], 1)
    return dataclasses.replace(batch, heading_prior_deg=prior_B2)


def without(batch: Batch, *labels: str) -> Batch:
    """Return the batch with some labels (``uv``, ``heading_deg``) empty, so that whoever reads them fails."""
    gone: dict[str, Any] = {name: torch.empty(0, device=batch.query.device) for name in labels}
    return dataclasses.replace(batch, **gone)
