"""One side of a dataset as views, and pairs of both sides: what a loader reads from.

Shapes: N images, P pairs, B pairs of a batch, H and W of the view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError
from cvgl_data.readers.cameras import intrinsics
from cvgl_data.readers.listing import ZENITHS
from cvgl_models.geometry.bev import WHOLE_SPHERE
from cvgl_models.loading.decoding import Encoded, Pixels, write_view
from cvgl_models.recipe import LoaderRecipe, ViewRecipe
from cvgl_models.transforms import Batch


class UndecodableError(DatasetError):
    """One image is missing or no image; the message names its row."""


class Views(Dataset[Tensor]):
    """One side of a dataset as views, one item per row.

    Args:
        dataset: Where tables and images come from.
        side: ``query``, ``reference``, or ``bev``: the top views that the recipe asks for besides the queries.
        views: Kind and size of the views.
        rows: Rows of the table, all by default.
    """

    def __init__(
        self, dataset: CrossViewDataset, side: str, views: ViewRecipe, rows: NDArray[np.int64] | None = None
    ) -> None:
        of_queries = side != "reference"
        table = dataset.queries if of_queries else dataset.references
        self.side = side
        self.recipe = views
        self.ids: list[str] = table["query_id" if of_queries else "reference_id"].to_pylist()
        self.images: Mapping[str, bytes] = dataset.images
        self.rows = np.arange(len(self.ids)) if rows is None else rows
        turned = of_queries and views.query != "pinhole"
        heading = table["heading_deg"].to_numpy() if turned else np.zeros(len(self.ids))
        self.heading_deg = np.nan_to_num(heading.astype(np.float64))
        partial = of_queries and set(ZENITHS) <= set(table.column_names)
        self._zenith_deg = np.stack([table[name].to_numpy() for name in ZENITHS], 1) if partial else None
        # Shards hand out images without copying them.
        self._read: Callable[[str], Encoded] = getattr(dataset.images, "view", dataset.images.__getitem__)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a view."""
        if self.side == "query":
            return (3, *self.recipe.query_size_px)
        side_px = self.recipe.bev_px if self.side == "bev" else self.recipe.reference_px
        return (3, side_px, side_px)

    @property
    def is_top_view(self) -> bool:
        """Whether panoramas are shown from above."""
        return self.side == "bev" or (self.side == "query" and self.recipe.query == "bev")

    @property
    def kind(self) -> str:
        """What an image is: the table it comes from, in the singular."""
        return "reference" if self.side == "reference" else "query"

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the one image of an item."""
        return (self.shape[1:],)

    def encoded(self, index: int) -> Encoded:
        """Return the bytes of the index-th chosen row; raises `UndecodableError` if there are none."""
        row = int(self.rows[index])
        try:
            return self._read(self.ids[row])
        except KeyError:
            raise UndecodableError(f"image of {self.kind} '{self.ids[row]}' (row {row}) is missing") from None

    def heading(self, index: int) -> float:
        """Return the bearing of the centre of the index-th image, degrees."""
        return float(self.heading_deg[int(self.rows[index])])

    def zenith(self, index: int) -> tuple[float, float]:
        """Return the angles from the zenith to the upper and the lower edge of the index-th panorama."""
        if self._zenith_deg is None:
            return WHOLE_SPHERE
        top_deg, bottom_deg = self._zenith_deg[int(self.rows[index])].tolist()
        return top_deg, bottom_deg

    def undecodable(self, index: int, reason: object) -> UndecodableError:
        """Return the error that names the row of an image."""
        row = int(self.rows[index])
        return UndecodableError(
            f"image of {self.kind} '{self.ids[row]}' (row {row}) cannot be decoded: {reason}; fetch it again"
        )

    def write(self, index: int, outs: Sequence[Pixels]) -> None:
        """Write the view of the index-th chosen row to ``outs[0]``, (H, W, 3).

        Raises:
            UndecodableError: If there is no such image or it cannot be decoded.
        """
        image = self.encoded(index)
        try:
            write_view(image, self.side, self.recipe, self.heading(index), outs[0], self.zenith(index))
        except ValueError as error:
            raise self.undecodable(index, error) from None

    def __getitem__(self, index: int) -> Tensor:
        """Return the view of the index-th chosen row, uint8 (3, H, W); raises like `write`."""
        out = np.empty((*self.shape[1:], 3), np.uint8)
        self.write(index, [out])
        return torch.from_numpy(out).permute(2, 0, 1).contiguous()


def fits_in_memory(views: Sequence[Views], loader: LoaderRecipe) -> bool:
    """Whether all views together stay below the recipe's memory limit."""
    total_bytes = sum(len(side) * int(np.prod(side.shape)) for side in views)
    return total_bytes <= loader.memory_mb * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRows:
    """The training pairs of a dataset; P pairs."""

    query_row: NDArray[np.int64]
    reference_row: NDArray[np.int64]
    uv: NDArray[np.float32]
    """(P, 2) place in the reference as shares of the side that is shown."""
    side_m: NDArray[np.float32]
    """(P,) that side on the ground."""
    covering: tuple[NDArray[np.int64], NDArray[np.int64]]
    """(indptr, rows) of all queries, as `CrossViewDataset.covering` gives them."""
    heading_deg: NDArray[np.float32]
    """(P,) bearing of the middle of the query's view: 0 of panoramas, which are shown turned to north."""
    camera_P33: NDArray[np.float32] | None = None
    """Intrinsics of pinhole cameras in pixels of the view."""

    def __len__(self) -> int:
        return len(self.query_row)

    @staticmethod
    def of(dataset: CrossViewDataset, views: ViewRecipe | None = None) -> PairRows:
        """Return the pairs of a query with its positive.

        Args:
            dataset: Tables.
            views: What is shown of them; by default whole references and panoramas.

        Raises:
            DatasetError: If no query has a positive.
        """
        positive = dataset.pairs.filter(pc.equal(dataset.pairs["relation"], "positive"))
        if not positive.num_rows:
            raise DatasetError("no query of this split is covered by a reference; there is nothing to train on")
        reference_row = positive["reference_row"].to_numpy().astype(np.int64)
        side_px = dataset.references["size"].to_numpy()[reference_row]
        gsd_m = dataset.references["gsd_m"].to_numpy()[reference_row]
        views = views or ViewRecipe()
        query_row = positive["query_row"].to_numpy().astype(np.int64)
        heading_deg, camera_P33 = np.zeros(len(query_row), np.float32), None
        if views.query == "pinhole":
            heading = dataset.queries["heading_deg"].to_numpy()[query_row]
            heading_deg = np.nan_to_num(heading.astype(np.float64)).astype(np.float32)
            camera_P33 = intrinsics(dataset.queries, *views.query_size_px)[query_row].astype(np.float32)
        place = np.stack([positive[axis].to_numpy() / side_px for axis in "uv"], 1)
        return PairRows(
            query_row=query_row,
            reference_row=reference_row,
            uv=((place - 0.5) / views.reference_crop + 0.5).astype(np.float32),
            side_m=(side_px * gsd_m * views.reference_crop).astype(np.float32),
            covering=dataset.covering(),
            heading_deg=heading_deg,
            camera_P33=camera_P33,
        )

    def rows(self, kind: str) -> NDArray[np.int64]:
        """Return the row of each pair's ``query`` or ``reference``."""
        return self.reference_row if kind == "reference" else self.query_row

    def batch(self, pairs: NDArray[np.int64], images: Mapping[str, Tensor], *, ignore_semi_positives: bool) -> Batch:
        """Return the batch of some pairs.

        Args:
            pairs: Which.
            images: Views of each side, by field of the batch.
            ignore_semi_positives: Fill ``ignore``.
        """
        side_px = images["reference"].shape[-1]
        heading_deg = torch.from_numpy(self.heading_deg[pairs])
        return Batch(
            **images,
            uv=torch.from_numpy(self.uv[pairs] * side_px),
            heading_deg=heading_deg,
            heading_prior_deg=torch.stack([heading_deg, torch.zeros_like(heading_deg)], 1),
            camera_B33=None if self.camera_P33 is None else torch.from_numpy(self.camera_P33[pairs]),
            gsd_m=torch.from_numpy(self.side_m[pairs] / side_px),
            query_row=torch.from_numpy(self.query_row[pairs]),
            reference_row=torch.from_numpy(self.reference_row[pairs]),
            ignore=torch.from_numpy(self._semi_positives(pairs)) if ignore_semi_positives else None,
        )

    def _semi_positives(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        indptr, rows = self.covering
        references = self.reference_row[pairs]
        covers = [np.isin(references, rows[indptr[q] : indptr[q + 1]]) for q in self.query_row[pairs]]
        semi_BB = np.array(covers, dtype=bool)
        np.fill_diagonal(semi_BB, False)
        return semi_BB


class PairViews(Dataset[tuple[Tensor, ...]]):
    """All views of each training pair, decoded on request.

    Args:
        pairs: The pairs.
        sides: Views of each side.
    """

    def __init__(self, pairs: PairRows, *sides: Views) -> None:
        self.pairs, self.sides = pairs, sides
        self._rows = [pairs.rows(side.kind) for side in sides]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each view of a pair."""
        return tuple(side.shape[1:] for side in self.sides)

    def write(self, index: int, outs: Sequence[Pixels]) -> None:
        """Write the views of a pair to ``outs``, each (H, W, 3); raises like `Views.write`."""
        for side, rows, out in zip(self.sides, self._rows, outs, strict=True):
            side.write(int(rows[index]), [out])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return the views of a pair, each uint8 (3, H, W); raises like `Views.write`."""
        return tuple(side[int(rows[index])] for side, rows in zip(self.sides, self._rows, strict=True))
