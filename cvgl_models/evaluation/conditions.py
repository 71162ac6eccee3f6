"""Harder queries than the dataset has: a limited field of view, and cameras whose heading nobody knows.

Shapes: N queries, H and W of the view. Each query has a camera heading drawn from its id and a seed, so that it does
not depend on the order of queries, nor on which others there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import RecipeError
from cvgl_models.turned import drawn_shares, turned

_CHOICES = {"heading": ("known", "unknown"), "fill": ("zero", "crop")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How queries are shown; the default is as they are, north-aligned and all around.

    Raises:
        RecipeError: If a value is out of range.
    """

    fov_deg: float = 360.0
    """Field of view: the columns within half of it on either side of the camera's heading are seen."""
    heading: str = "known"
    """``known``: what is seen keeps its place in the north-aligned view; ``unknown``: the view's centre looks where
    the camera does."""
    fill: str = "zero"
    """``zero``: what is not seen is black, and the view has its usual size; ``crop``: panoramas become narrower, which
    not every network takes. A crop has no room for a known heading other than north, so then all cameras look north."""
    seed: int = 0
    """Decides the camera headings."""

    def __post_init__(self) -> None:
        if not 0 < self.fov_deg <= 360:
            raise RecipeError(f"the field of view must lie in (0, 360] degrees, not {self.fov_deg}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise RecipeError(f"'{name}' is '{getattr(self, name)}', expected one of: {', '.join(known)}")

    @property
    def is_plain(self) -> bool:
        """Whether queries are shown as they are."""
        return self.fov_deg == 360 and self.heading == "known"

    @property
    def name(self) -> str:
        """Part of a folder's name, ``""`` for the default."""
        if self.is_plain:
            return ""
        parts = [] if self.fov_deg == 360 else [f"fov{self.fov_deg:g}", *(["crop"] if self.fill == "crop" else [])]
        parts += ["unknown"] if self.heading == "unknown" else []
        return "-".join([*parts, *([f"seed{self.seed}"] if self.seed else [])])

    def headings_deg(self, query_ids: Sequence[str]) -> NDArray[np.float64]:
        """Return where the cameras look, degrees clockwise from north, in [0, 360)."""
        if self.is_plain or (self.fill == "crop" and self.heading == "known" and self.fov_deg < 360):
            return np.zeros(len(query_ids))
        return drawn_shares(query_ids, self.seed) * 360

    def turned(self, dataset: CrossViewDataset) -> CrossViewDataset:
        """Return the dataset with headings such that its panoramas are rolled to the camera's heading, not to north."""
        if self.heading == "known":
            return dataset
        return turned(dataset, self.headings_deg(dataset.queries["query_id"].to_pylist()))

    def limited(self, batches: Iterator[Tensor], query_ids: Sequence[str], view: str) -> Iterator[Tensor]:
        """Yield the batches (N, 3, H, W) of all queries, in their order, with only what is seen.

        Args:
            batches: Views of the `turned` dataset.
            query_ids: Of all queries.
            view: ``panorama`` or ``bev``.

        Raises:
            RecipeError: If a top view is to be cropped.
        """
        if self.fov_deg == 360:
            yield from batches
            return
        if self.fill == "crop" and view != "panorama":
            raise RecipeError("only panoramas can be cropped to a field of view; use fill 'zero' with top views")
        looks = self.headings_deg(query_ids) if self.heading == "known" else np.zeros(len(query_ids))
        start = 0
        for views in batches:
            stop = start + len(views)
            if self.fill == "crop":
                wide = views.shape[-1]
                keep = min(max(round(wide * self.fov_deg / 360), 1), wide)
                yield views[..., (wide - keep) // 2 : (wide - keep) // 2 + keep].contiguous()
            else:
                seen = seen_pixels(views.shape[-2:], looks[start:stop], self.fov_deg, view)
                yield torch.where(seen[:, None], views, torch.zeros((), dtype=views.dtype))
            start = stop


def seen_pixels(size: Sequence[int], looks_deg: NDArray[np.float64], fov_deg: float, view: str) -> Tensor:
    """Return which pixels are within the field of view of cameras; the view's centre column or top is 0 degrees.

    Args:
        size: H and W.
        looks_deg: Headings of N cameras relative to the view.
        fov_deg: Field of view.
        view: ``panorama`` or ``bev``.

    Returns:
        (N, H, W) bool; of a panorama (N, 1, W), as all rows are alike.
    """
    height, width = size
    if view == "panorama":
        bearing = ((np.arange(width) + 0.5) / width - 0.5)[None] * 360
    else:
        y, x = np.meshgrid(np.arange(height) + 0.5 - height / 2, np.arange(width) + 0.5 - width / 2, indexing="ij")
        bearing = np.degrees(np.arctan2(x, -y))
    away = np.abs((bearing[None] - looks_deg[:, None, None] + 180) % 360 - 180)
    return torch.from_numpy(away <= fov_deg / 2)
