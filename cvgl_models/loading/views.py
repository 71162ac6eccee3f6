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
from cvgl_models.loading.decoding import Encoded, Pixels, write_query, write_reference
from cvgl_models.recipe import LoaderRecipe, ViewRecipe
from cvgl_models.transforms import Batch


class UndecodableError(DatasetError):
    """One image is missing or no image; the message names its row."""


class Views(Dataset[Tensor]):
    """One side of a dataset as views, one item per row.

    Args:
        dataset: Where tables and images come from.
        side: ``query`` or ``reference``.
        views: Kind and size of the views.
        rows: Rows of the table, all by default.
    """

    def __init__(
        self, dataset: CrossViewDataset, side: str, views: ViewRecipe, rows: NDArray[np.int64] | None = None
    ) -> None:
        table = dataset.queries if side == "query" else dataset.references
        self.side = side
        self.recipe = views
        self.ids: list[str] = table[f"{side}_id"].to_pylist()
        self.images: Mapping[str, bytes] = dataset.images
        self.rows = np.arange(len(self.ids)) if rows is None else rows
        heading = table["heading_deg"].to_numpy() if side == "query" else np.zeros(len(self.ids))
        self.heading_deg = np.nan_to_num(heading.astype(np.float64))
        # Shards hand out images without copying them.
        self._read: Callable[[str], Encoded] = getattr(dataset.images, "view", dataset.images.__getitem__)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a view."""
        side_px = self.recipe.reference_px
        return (3, *self.recipe.query_size_px) if self.side == "query" else (3, side_px, side_px)

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
            raise UndecodableError(f"image of {self.side} '{self.ids[row]}' (row {row}) is missing") from None

    def heading(self, index: int) -> float:
        """Return the bearing of the centre of the index-th image, degrees."""
        return float(self.heading_deg[int(self.rows[index])])

    def undecodable(self, index: int, reason: object) -> UndecodableError:
        """Return the error that names the row of an image."""
        row = int(self.rows[index])
        return UndecodableError(
            f"image of {self.side} '{self.ids[row]}' (row {row}) cannot be decoded: {reason}; fetch it again"
        )

    def write(self, index: int, outs: Sequence[Pixels]) -> None:
        """Write the view of the index-th chosen row to ``outs[0]``, (H, W, 3).

        Raises:
            UndecodableError: If there is no such image or it cannot be decoded.
        """
        image = self.encoded(index)
        try:
            if self.side == "query":
                write_query(image, self.recipe, self.heading(index), outs[0])
            else:
                write_reference(image, outs[0])
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
    """(P, 2) place in the reference as shares of its side."""
    covering: tuple[NDArray[np.int64], NDArray[np.int64]]
    """(indptr, rows) of all queries, as `CrossViewDataset.covering` gives them."""

    def __len__(self) -> int:
        return len(self.query_row)

    @staticmethod
    def of(dataset: CrossViewDataset) -> PairRows:
        """Return the pairs of a query with its positive.

        Raises:
            DatasetError: If no query has a positive.
        """
        positive = dataset.pairs.filter(pc.equal(dataset.pairs["relation"], "positive"))
        if not positive.num_rows:
            raise DatasetError("no query of this split is covered by a reference; there is nothing to train on")
        reference_row = positive["reference_row"].to_numpy().astype(np.int64)
        side_px = dataset.references["size"].to_numpy()[reference_row]
        return PairRows(
            query_row=positive["query_row"].to_numpy().astype(np.int64),
            reference_row=reference_row,
            uv=np.stack([positive[axis].to_numpy() / side_px for axis in "uv"], 1).astype(np.float32),
            covering=dataset.covering(),
        )

    def batch(
        self, pairs: NDArray[np.int64], query: Tensor, reference: Tensor, *, ignore_semi_positives: bool
    ) -> Batch:
        """Return the batch of some pairs, given the views of both sides."""
        query_row, reference_row = self.query_row[pairs], self.reference_row[pairs]
        return Batch(
            query=query,
            reference=reference,
            uv=torch.from_numpy(self.uv[pairs] * reference.shape[-1]),
            heading_deg=torch.zeros(len(pairs)),
            query_row=torch.from_numpy(query_row),
            reference_row=torch.from_numpy(reference_row),
            ignore=torch.from_numpy(self._semi_positives(pairs)) if ignore_semi_positives else None,
        )

    def _semi_positives(self, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
        indptr, rows = self.covering
        references = self.reference_row[pairs]
        covers = [np.isin(references, rows[indptr[q] : indptr[q + 1]]) for q in self.query_row[pairs]]
        semi_BB = np.array(covers, dtype=bool)
        np.fill_diagonal(semi_BB, False)
        return semi_BB


class PairViews(Dataset[tuple[Tensor, Tensor]]):
    """Both views of each training pair, decoded on request."""

    def __init__(self, pairs: PairRows, query: Views, reference: Views) -> None:
        self.pairs, self.query, self.reference = pairs, query, reference

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of query and reference."""
        return (self.query.shape[1:], self.reference.shape[1:])

    def write(self, index: int, outs: Sequence[Pixels]) -> None:
        """Write the two views of a pair to ``outs``, each (H, W, 3); raises like `Views.write`."""
        self.query.write(int(self.pairs.query_row[index]), outs[:1])
        self.reference.write(int(self.pairs.reference_row[index]), outs[1:])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the two views of a pair, each uint8 (3, H, W); raises like `Views.write`."""
        return (
            self.query[int(self.pairs.query_row[index])],
            self.reference[int(self.pairs.reference_row[index])],
        )
