"""Images that were packed at the size of the views, where a dataset has them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.readers import packed
from cvgl_models.recipe import ViewRecipe

logger = logging.getLogger(__name__)


def open_for_views(
    data: str | Path | CrossViewDataset, views: ViewRecipe, *, use_resized: bool = True
) -> CrossViewDataset:
    """Open a dataset; a side that was also packed at the very size of its view is read from there.

    A view of exactly that size needs a quarter of the time to decode. Top views are made from whole panoramas.

    Args:
        data: As `open_dataset` takes it; an opened dataset is returned as it is.
        views: What will be shown.
        use_resized: Whether to look for resized images.

    Raises:
        DatasetError: As `open_dataset`.
    """
    if isinstance(data, CrossViewDataset):
        return data
    dataset = open_dataset(data)
    folder = Path(data)
    if not use_resized or not (folder / packed.MANIFEST).is_file():
        return dataset
    tables = packed.resized_tables(packed.read_manifest(folder))
    fitting = fitting_tables(tables, views)
    if not fitting:
        return dataset
    resized = packed.read(folder, resized=True)
    logger.info("images are read from %s", ", ".join(fitting.values()))
    if fitting == tables:
        return resized
    side = next(iter(fitting))
    table, name = (dataset.queries, "query_id") if side == "queries" else (dataset.references, "reference_id")
    return replace(dataset, images=_OneSide(frozenset(table[name].to_pylist()), resized.images, dataset.images))


def fitting_tables(tables: Mapping[str, str], views: ViewRecipe) -> dict[str, str]:
    """Return those tables of resized images that have exactly the size of their view, by table of the originals."""
    wanted = {}
    if views.reference_crop == 1:
        wanted["references"] = f"references_{views.reference_px}"
    if views.query == "panorama" and not views.bev_px:
        wanted["queries"] = f"queries_{views.query_width_px}x{views.query_height_px}"
    return {original: table for original, table in tables.items() if table == wanted.get(original)}


class _OneSide(Mapping[str, bytes]):
    """Images of some ids from one place, all others from another."""

    def __init__(self, ids: frozenset[str], chosen: Mapping[str, bytes], others: Mapping[str, bytes]) -> None:
        self._ids, self._chosen, self._others = ids, chosen, others

    def _of(self, key: str) -> Mapping[str, bytes]:
        return self._chosen if key in self._ids else self._others

    def __getitem__(self, key: str) -> bytes:
        return self._of(key)[key]

    def view(self, key: str) -> memoryview:
        """Return an image without copying it."""
        images = self._of(key)
        return images.view(key) if isinstance(images, packed.PackedImages) else memoryview(images[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._others)

    def __len__(self) -> int:
        return len(self._others)
