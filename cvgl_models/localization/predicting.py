"""A localization system over many pairs: what it is shown, what it says, and what is true.

Shapes: P pairs, B of a batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError, RecipeError
from cvgl_models.batches import PairLoader, PairRows, Views
from cvgl_models.localization.conditions import PoseConditions, with_prior, without
from cvgl_models.localization.decode import log_density
from cvgl_models.localization.metrics import Poses, PoseTruth
from cvgl_models.localization.pose import PosePrediction, wrap_deg, xy_m_from_uv
from cvgl_models.recipe import ModelRecipe
from cvgl_models.systems import LocalizationModule, SystemModule
from cvgl_models.transforms import Batch

Context = Callable[[], contextlib.AbstractContextManager[Any]]
"""Makes the autocast in which the network computes."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A batch of pairs: what the model gets, and what is kept from it."""

    index: Ints
    """(B,) of the pairs."""
    batch: Batch
    """Without ``uv`` and ``heading_deg``, images still uint8."""
    xy_m_B2: Tensor
    """True place, metres right and down of the reference's centre."""
    yaw_deg_B: Tensor
    """True bearing of the view's centre column."""
    heading_deg_B: Tensor
    """Bearing of the camera, whatever is shown."""
    side_m_B: Tensor
    """Side of the reference, as far as it is shown."""


def only_pairs(dataset: CrossViewDataset, kind: str = "positive", max_pairs: int = 0) -> CrossViewDataset:
    """Return a dataset of just these pairs, in the order of queries, with just the queries and references they use.

    Args:
        dataset: A split.
        kind: ``positive``, or ``covering``: every reference that covers a query; all of them count as positives then.
        max_pairs: Of more, so many are kept, evenly spaced; 0: all.

    Raises:
        DatasetError: If there are none.
    """
    pairs = dataset.pairs
    is_positive = np.array(pairs["relation"].to_pylist(), dtype=object) == "positive"
    chosen = np.flatnonzero(is_positive if kind == "positive" else is_positive | _covers(pairs))
    query_row, reference_row = (pairs[f"{side}_row"].to_numpy()[chosen] for side in ("query", "reference"))
    order = np.lexsort((reference_row, ~is_positive[chosen], query_row))
    if max_pairs and len(order) > max_pairs:
        order = order[np.linspace(0, len(order) - 1, max_pairs).astype(np.int64)]
    if not len(order):
        raise DatasetError("no query of this split is covered by a reference; there is nothing to localize")
    table = pairs.take(pa.array(chosen[order]))
    table = _with(table, "relation", ["positive"] * len(order))
    tables = {}
    for side, rows in (("query", query_row[order]), ("reference", reference_row[order])):
        kept, new_row = np.unique(rows, return_inverse=True)
        tables[side] = (dataset.queries if side == "query" else dataset.references).take(pa.array(kept))
        table = _with(table, f"{side}_row", new_row.reshape(-1))
    return dataclasses.replace(
        dataset,
        queries=tables["query"],
        references=tables["reference"],
        pairs=table,
        distance_map=dataset.distance_map.slice(0, 0),
    )


class Show:
    """The pairs of a dataset as a model gets them; use it in a ``with`` statement.

    Args:
        dataset: What `only_pairs` returned.
        recipe: ``views`` and ``loader`` are read.
        conditions: How queries are shown.
        limit: Takes away what is not seen of queries.
        keep: Keep all images in memory if they fit, to be shown again.

    Raises:
        DatasetError: If an image cannot be decoded.
    """

    def __init__(
        self,
        dataset: CrossViewDataset,
        recipe: ModelRecipe,
        conditions: PoseConditions,
        *,
        limit: Callable[[Batch], Batch] | None = None,
        keep: bool = False,
    ) -> None:
        self._conditions, self._limit = conditions, limit
        self._rows = PairRows.of(dataset, recipe.views)
        self._turns_Q = conditions.turns_deg(dataset.queries["query_id"].to_pylist())
        self._heading_Q = np.nan_to_num(dataset.queries["heading_deg"].to_numpy().astype(np.float64))
        turned = conditions.turned(dataset)
        views = [Views(dataset if side == "reference" else turned, side, recipe.views) for side in sides(recipe)]
        # a pair that is missing must not be replaced in silence
        loader = dataclasses.replace(
            recipe.loader, memory_mb=recipe.loader.memory_mb if keep else 0, decode="cpu", on_error="raise"
        )
        self._loader = PairLoader(self._rows, views, loader)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._rows)

    def __enter__(self) -> Show:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        self._loader.close()

    def batches(self, order: Sequence[Ints]) -> Iterator[Shown]:
        """Yield pairs.

        Args:
            order: Pairs of each batch.

        Raises:
            DatasetError: If an image cannot be decoded.
            RecipeError: If the conditions do not suit the pictures.
        """
        for index, batch in zip(order, self._loader.batches(order), strict=True):
            rows = self._rows.query_row[index]
            yield self._shown(index, batch, *(torch.from_numpy(of[rows]) for of in (self._turns_Q, self._heading_Q)))

    def _shown(self, index: Ints, batch: Batch, turn_deg_B: Tensor, heading_deg_B: Tensor) -> Shown:
        is_pinhole = batch.camera_B33 is not None
        if is_pinhole and self._conditions.fov_deg < 360:
            raise RecipeError("the field of view can be limited of panoramas and top views only")
        yaw_deg_B = batch.heading_deg.double() if is_pinhole else batch.heading_deg.double() + turn_deg_B
        told = with_prior(batch, self._conditions.heading_noise_deg, turn_deg_B)
        told = without(told if self._limit is None else self._limit(told), "uv", "heading_deg")
        side_px = batch.reference.shape[-1]
        return Shown(
            index=index,
            batch=told,
            xy_m_B2=xy_m_from_uv(batch.uv.double(), batch.gsd_m.double(), side_px),
            side_m_B=batch.gsd_m.double() * side_px,
            yaw_deg_B=wrap_deg(yaw_deg_B),
            heading_deg_B=yaw_deg_B if is_pinhole else heading_deg_B,  # pinhole cameras look where their images do
        )


def sides(recipe: ModelRecipe) -> tuple[str, ...]:
    """Return the images of a batch that the recipe asks for, by field."""
    return ("query", "reference", *(["bev"] if recipe.views.bev_px else []))


def localize(system: SystemModule, batch: Batch, device: torch.device, context: Context) -> PosePrediction:
    """Return what a system in evaluation mode says of a batch; images may still be uint8.

    Raises:
        RecipeError: If it is no localization system.
    """
    if system.task != "localization":
        raise RecipeError(f"{type(system).__name__} is no localization system; use a run of one")
    with torch.inference_mode(), context():
        return cast(LocalizationModule, system).localize(batch.to(device))


class Collected:
    """Predictions and truth of many batches, on the CPU."""

    def __init__(self) -> None:
        self._index: list[Ints] = []
        self._parts: dict[str, list[NDArray[np.float64]]] = {}

    def add(self, one: Shown, found: PosePrediction) -> None:
        """Add a batch."""
        map_B, cell_B = found.score_map_BHW, found.cell_size_m_B
        density_B = log_density(map_B, cell_B, found.origin, one.xy_m_B2.to(map_B.device))
        values = {
            "xy_m": found.xy_m_B2,
            "yaw_deg": found.yaw_deg_B,
            "radius95_m": found.radius95_m_B,
            "log_density": density_B,
            "true_xy_m": one.xy_m_B2,
            "true_yaw_deg": one.yaw_deg_B,
            "heading_deg": one.heading_deg_B,
            "side_m": one.side_m_B,
        }
        self._index.append(np.asarray(one.index, np.int64))
        for name, value in values.items():
            self._parts.setdefault(name, []).append(value.double().cpu().numpy())

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return all values, by name, in the order of the pairs."""
        order = np.argsort(np.concatenate(self._index), kind="stable")
        return {name: np.concatenate(parts)[order] for name, parts in self._parts.items()}


def truth_and_poses(dataset: CrossViewDataset, values: dict[str, NDArray[np.float64]]) -> tuple[PoseTruth, Poses]:
    """Return what `Collected` holds as the metrics take it.

    Args:
        dataset: What `only_pairs` returned.
        values: Of all its pairs.
    """
    areas = np.array([name or "" for name in dataset.queries["area"].to_pylist()], dtype=np.str_)
    truth = PoseTruth(
        xy_m=values["true_xy_m"],
        yaw_deg=values["true_yaw_deg"],
        heading_deg=values["heading_deg"],
        side_m=values["side_m"],
        area=areas[dataset.pairs["query_row"].to_numpy()],
    )
    return truth, Poses(**{name: values[name] for name in ("xy_m", "yaw_deg", "radius95_m", "log_density")})


def in_order(num: int, size: int) -> list[Ints]:
    """Return batches of pairs one after the other."""
    return [np.arange(start, min(start + size, num)) for start in range(0, num, size)]


def _covers(pairs: pa.Table) -> NDArray[np.bool_]:
    covers: NDArray[np.bool_] = np.array(pairs["covers"].to_pylist(), dtype=bool)
    return covers


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))
