"""An opened dataset: tables without pixels, and images by id. Every reader gives one of these.

Needs nothing but numpy and pyarrow, so that training does too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.errors import DatasetNotFoundError, RecipeError, UnknownNameError
from cvgl_data.locations import PACKED, parse, typed_options
from cvgl_data.registry import Registry, did_you_mean
from cvgl_data.schema import DISTANCE_MAP, SPLITS

Ints = NDArray[np.int64]

READERS: Registry[Callable[..., CrossViewDataset]] = Registry(
    "reader",
    {
        "cvact": "cvgl_data.readers.cvact:read",
        "cvcities": "cvgl_data.readers.cvcities:read",
        "cvglobal": "cvgl_data.readers.cvglobal:read",
        "cvusa": "cvgl_data.readers.cvusa:read",
        "dress": "cvgl_data.readers.dress:read",
        "hub": "cvgl_data.hub.opening:read",
        "kitti": "cvgl_data.readers.kitti:read",
        "linked": "cvgl_data.readers.linked:read",
        "packed": "cvgl_data.readers.packed:read",
        "vigor": "cvgl_data.readers.vigor:read",
    },
    group="cvgl.readers",
)
"""A reader takes ``(folder, *, verify)`` and returns a `CrossViewDataset`; one file in `cvgl_data.readers` each.

Its further keyword-only parameters of type str, bool, int and float are its options.
"""


LINKED_FILE = "linked.json"
"""A folder that holds it is a linked dataset: tables of ours, images where they were."""


def open_dataset(path_or_hub_id: str | Path, *, verify: bool = False, **options: Any) -> CrossViewDataset:
    """Open a dataset.

    Args:
        path_or_hub_id: Folder that ``cvgl-data build`` or ``import`` made; ``reader:folder`` picks another layout,
            perhaps with options as in ``vigor:/data/VIGOR?protocol=cross-area&labels=corrected``, and
            ``hub:user/name``, perhaps with ``@revision``, a dataset with images on the Hub.
        verify: Look at every file: compare its hash with the manifest, or check that each image is one.
        options: Of the reader, as an alternative to those in the string.

    Raises:
        DatasetNotFoundError: If there is no dataset.
        DatasetError: If it is incomplete or damaged; names the file.
        RecipeError: If the reader has no such option, or an option is given twice or has a wrong value.
        SchemaError: If it was written by another version.
        UnknownNameError: If there is no such reader, or no such protocol or the like.
    """
    name, place, in_text = parse(path_or_hub_id)
    if name == PACKED and (Path(place) / LINKED_FILE).is_file():
        name = "linked"
    if name not in READERS:
        raise UnknownNameError(f"unknown reader '{name}' in '{path_or_hub_id}'{did_you_mean(name, READERS)}")
    if twice := in_text.keys() & options.keys():
        raise RecipeError(f"option '{min(twice)}' is given as an argument and in '{path_or_hub_id}'")
    reader = READERS.load(name)
    values = typed_options(reader, name, {**in_text, **options})
    if name == "hub":
        return reader(place, verify=verify, **values)
    folder = Path(place)
    if not folder.is_dir():
        hint = f"; `cvgl-data build --out {place}` makes one" if name == PACKED else ""
        raise DatasetNotFoundError(f"no dataset folder '{place}'{hint}")
    return reader(folder, verify=verify, **values)


@dataclass(frozen=True)
class CrossViewDataset:
    """Queries, the references they are searched in, and what is known about both."""

    references: pa.Table
    """Schema ``REFERENCES`` without ``image``, R rows."""
    queries: pa.Table
    """Schema ``QUERIES`` without ``image`` plus ``split``, Q rows."""
    pairs: pa.Table
    """Schema ``PAIRS``; ``query_row`` and ``reference_row`` are rows of the two tables above."""
    distance_map: pa.Table
    """Schema ``DISTANCE_MAP``, R rows in the order of the references; may be empty when a layout has none."""
    images: Mapping[str, bytes]
    """Encoded images by ``reference_id`` and ``query_id``."""

    def select(self, split: str) -> CrossViewDataset:
        """Return the queries of one split with their gallery.

        The gallery is all references in the areas of these queries, and any other that covers one of them. Rows in
        ``pairs`` and in the distance map are rows of the new tables; neighbors outside the gallery are taken out and
        the lists padded at the end.

        Raises:
            UnknownNameError: If there is no such split; a split without queries gives an empty dataset.
        """
        if split not in SPLITS:
            raise UnknownNameError(f"unknown split '{split}'{did_you_mean(split, SPLITS)}")
        query_rows = np.flatnonzero(pc.equal(self.queries["split"], split).to_numpy())
        new_query_row = _new_rows(query_rows, self.queries.num_rows)
        queries = self.queries.take(pa.array(query_rows))
        pairs = self.pairs.filter(pa.array(new_query_row[self.pairs["query_row"].to_numpy()] >= 0))

        in_area = pc.is_in(self.references["area"], value_set=pc.unique(queries["area"])).to_numpy().copy()
        in_area[pairs["reference_row"].to_numpy()] = True
        reference_rows = np.flatnonzero(in_area)
        new_reference_row = _new_rows(reference_rows, self.references.num_rows)
        pairs = _with_rows(pairs, "query_row", new_query_row)
        distance_map = self.distance_map
        if len(reference_rows) < self.references.num_rows and distance_map.num_rows:
            distance_map = _remap(distance_map.take(pa.array(reference_rows)), new_reference_row)
        return replace(
            self,
            references=self.references.take(pa.array(reference_rows)),
            queries=queries,
            pairs=_with_rows(pairs, "reference_row", new_reference_row),
            distance_map=distance_map,
        )

    def positives(self) -> Ints:
        """Return the row of each query's positive in ``references``, shape (Q,); -1 where there is none."""
        rows = np.full(self.queries.num_rows, -1, np.int64)
        positive = self.pairs.filter(pc.equal(self.pairs["relation"], "positive"))
        rows[positive["query_row"].to_numpy()] = positive["reference_row"].to_numpy()
        return rows

    def covering(self) -> tuple[Ints, Ints]:
        """Return the covering references of all queries as ``(indptr, rows)``.

        Query q is covered by ``rows[indptr[q]:indptr[q + 1]]``, its positive first. Shapes (Q + 1,) and (P,).
        """
        covering = self.pairs.filter(self.pairs["covers"])
        query = covering["query_row"].to_numpy().astype(np.int64)
        semi = pc.not_equal(covering["relation"], "positive").to_numpy()
        order = np.lexsort((covering["decentrality_l2"].to_numpy(), semi, query))
        indptr = np.zeros(self.queries.num_rows + 1, np.int64)
        np.cumsum(np.bincount(query, minlength=self.queries.num_rows), out=indptr[1:])
        return indptr, covering["reference_row"].to_numpy().astype(np.int64)[order]


def _new_rows(kept: Ints, num: int) -> Ints:
    """Return where each old row went, -1 for those that are gone; the extra last entry serves row -1."""
    rows = np.full(num + 1, -1, np.int64)
    rows[kept] = np.arange(len(kept))
    return rows


def _with_rows(table: pa.Table, column: str, new_row: Ints) -> pa.Table:
    index = table.schema.get_field_index(column)
    rows = new_row[table[column].to_numpy()].astype(np.int32)
    return table.set_column(index, table.schema.field(index), pa.array(rows))


def _remap(distance_map: pa.Table, new_row: Ints) -> pa.Table:
    """Return the same lists in terms of new rows, the gone ones replaced by padding at the end."""
    parts = []
    for batch in distance_map.to_batches(max_chunksize=8192):
        rows, distances = (batch.column(name) for name in DISTANCE_MAP.names[1:])
        flat = new_row[rows.flatten().to_numpy()].reshape(len(batch), -1)
        order = np.argsort(flat < 0, axis=1, kind="stable")
        flat = np.take_along_axis(flat, order, 1).astype(np.int32)
        meters = distances.flatten().to_numpy().reshape(flat.shape)
        meters = np.where(flat < 0, np.float32("inf"), np.take_along_axis(meters, order, 1))
        offsets = pa.array(np.arange(len(batch) + 1, dtype=np.int32) * flat.shape[1])
        lists = [pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1))) for values in (flat, meters)]
        parts.append(pa.RecordBatch.from_arrays([batch.column("id"), *lists], schema=DISTANCE_MAP))
    # The ids are others now, so their hash in the metadata is not carried over.
    return pa.Table.from_batches(parts, DISTANCE_MAP)
