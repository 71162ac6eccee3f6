"""From a dataset to batches: decode, resize, roll to north, keep in memory what fits, and put pairs together.

Shapes: N images, B pairs, H and W of the view. Views are uint8 (N, 3, H, W) until they are on the device.
"""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError
from cvgl_models.geometry import bev_from_panorama
from cvgl_models.recipe import LoaderRecipe, ViewRecipe
from cvgl_models.transforms import Batch

try:
    import simplejpeg
except ImportError:  # Pillow decodes everything, more slowly
    simplejpeg = None

Progress = Callable[[int], None]
"""Told how many items are done since the last call."""


def decode(image: bytes, min_height: int = 0, min_width: int = 0) -> NDArray[np.uint8]:
    """Return an encoded image as (H, W, 3) RGB.

    A JPEG may come out smaller than it is, though not smaller than asked for: its decoder can scale for free.

    Args:
        image: Bytes of any format Pillow reads.
        min_height: Height that will do; 0 for full size.
        min_width: Width that will do; 0 for full size.

    Raises:
        ValueError: If the bytes cannot be decoded.
    """
    if simplejpeg is not None and image[:2] == b"\xff\xd8":
        try:
            # min_factor: the scale must not be off by a hair, or 3/8 of 2048 would miss 768
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                image, min_height=min_height, min_width=min_width, min_factor=1.01
            )
            return pixels
        except ValueError:
            pass  # CMYK and other rarities: Pillow's turn
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if min_height and min_width:
                opened.draft("RGB", (min_width, min_height))
            return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def reference_view(image: bytes, side: int) -> Tensor:
    """Return a reference as a uint8 (3, S, S) view; raises ValueError if it cannot be decoded."""
    return _quantized(_resized(_planes(decode(image, side, side)), (side, side)))


def query_view(image: bytes, views: ViewRecipe, heading_deg: float = 0.0) -> Tensor:
    """Return a panorama as the uint8 (3, H, W) view the recipe asks for, rolled so that its centre column looks north.

    Args:
        image: Encoded equirectangular panorama.
        views: Kind and size of the view.
        heading_deg: Bearing of the panorama's centre column.

    Raises:
        ValueError: If the image cannot be decoded, or is not twice as wide as high and a top view is asked for.
    """
    height, width = views.query_size_px
    if views.query == "panorama":
        pano = _rolled(_planes(decode(image, height, width)), heading_deg)
        return _quantized(_resized(pano, (height, width)))
    pano = _rolled(_planes(decode(image)), heading_deg)
    meters_per_px = views.bev_m / height
    bev = bev_from_panorama(pano, height, meters_per_px, views.camera_height_m, oversample=4)
    return _quantized(bev)


def _planes(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()


def _rolled(pano: Tensor, heading_deg: float) -> Tensor:
    """Roll by a fraction of a column if need be; the bearing of column u is heading + (u - W / 2) * 360 / W."""
    shift_px = heading_deg / 360.0 * pano.shape[-1]
    whole = int(np.floor(shift_px))
    part = shift_px - whole
    rolled = pano.roll(whole, -1)
    return rolled if part < 1e-6 else torch.lerp(rolled, pano.roll(whole + 1, -1), part)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)


def _quantized(image: Tensor) -> Tensor:
    return image[0].round().clamp(0, 255).to(torch.uint8)


class Views(Dataset[Tensor | DatasetError]):
    """One side of a dataset as views, one item per row.

    An item that cannot be decoded is an error as a value, because an error raised in a worker process arrives as a page
    of text.
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

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a view."""
        side_px = self.recipe.reference_px
        return (3, *self.recipe.query_size_px) if self.side == "query" else (3, side_px, side_px)

    def __getitem__(self, index: int) -> Tensor | DatasetError:
        """Return the view of the index-th chosen row."""
        row = int(self.rows[index])
        name = self.ids[row]
        try:
            if self.side == "query":
                return query_view(bytes(self.images[name]), self.recipe, float(self.heading_deg[row]))
            return reference_view(bytes(self.images[name]), self.recipe.reference_px)
        except ValueError as error:
            return DatasetError(f"image of {self.side} '{name}' (row {row}) cannot be decoded: {error}; fetch it again")


def load_views(
    views: Views, loader: LoaderRecipe, batch_size: int = 64, progress: Progress | None = None
) -> Iterator[Tensor]:
    """Yield all views in row order, in batches.

    Raises:
        DatasetError: Naming the row whose image cannot be decoded.
    """
    for batch in data_loader(
        views, [range(s, min(s + batch_size, len(views))) for s in range(0, len(views), batch_size)], loader
    ):
        yield batch
        if progress is not None:
            progress(len(batch))


def fits_in_memory(views: Sequence[Views], loader: LoaderRecipe) -> bool:
    """Whether all views together stay below the recipe's memory limit."""
    total_bytes = sum(len(side) * int(np.prod(side.shape)) for side in views)
    return total_bytes <= loader.memory_mb * 1_000_000


def in_memory(views: Views, loader: LoaderRecipe, progress: Progress | None = None) -> Tensor:
    """Return all views of one side as one uint8 (N, 3, H, W) tensor."""
    cache = torch.empty((len(views), *views.shape), dtype=torch.uint8)
    start = 0
    for batch in load_views(views, loader, progress=progress):
        cache[start : start + len(batch)] = batch
        start += len(batch)
    return cache


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


class PairViews(Dataset[tuple[Tensor, Tensor] | DatasetError]):
    """Both views of each training pair, decoded on request."""

    def __init__(self, pairs: PairRows, query: Views, reference: Views) -> None:
        self.pairs, self.query, self.reference = pairs, query, reference

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | DatasetError:
        """Return the two views of a pair."""
        query = self.query[int(self.pairs.query_row[index])]
        reference = self.reference[int(self.pairs.reference_row[index])]
        if isinstance(query, DatasetError):
            return query
        return reference if isinstance(reference, DatasetError) else (query, reference)


def data_loader(dataset: Dataset[Any], batches: Sequence[Sequence[int]], loader: LoaderRecipe) -> Iterator[Any]:
    """Yield collated batches of a dataset in the given order, decoded by worker processes.

    Raises:
        DatasetError: If an item is an error.
    """
    workers = loader.workers if loader.workers >= 0 else len(os.sched_getaffinity(0))
    workers = min(workers, len(batches))
    iterable = DataLoader(
        dataset,
        batch_sampler=[list(chosen) for chosen in batches],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
    )
    for batch in iterable:
        if isinstance(batch, DatasetError):
            raise batch
        yield batch


def _collate(items: list[Any]) -> Any:
    error = next((item for item in items if isinstance(item, DatasetError)), None)
    return error if error is not None else torch.utils.data.default_collate(items)


def _start_worker(worker: int) -> None:
    """Leave Ctrl-C to the main process, which saves and then ends its workers."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
