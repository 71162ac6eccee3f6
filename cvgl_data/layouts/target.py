"""What every exported layout needs: one window for all references, names of areas and files, images, neighbors."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError
from cvgl_data.neighbors import distance_map
from cvgl_data.readers.sidecar import WindowSize
from cvgl_data.types import Progress

Ints = NDArray[np.int64]

_SAFE = re.compile(r"[^\w.+-]", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote."""

    references: int
    queries: int
    left_out: int
    """Queries without a positive, which the layout has no line for."""
    padded: int
    """Tiles named in labels although they do not cover the query, where fewer than four do."""
    files: int
    """Images."""


def window_of(dataset: CrossViewDataset, layout: str) -> WindowSize:
    """Return zoom and size of all references.

    Raises:
        DatasetError: If they are unknown, or differ: the layout has one for all.
    """
    references = dataset.references
    if not references.num_rows or not dataset.queries.num_rows:
        raise DatasetError(f"there is nothing to export as {layout}: the dataset has no references or no queries")
    kinds = {name: pc.unique(references[name]).to_pylist() for name in ("zoom", "size")}
    for name, found in kinds.items():
        if len(found) > 1 or found == [None]:
            shown = ", ".join(map(str, found[:4]))
            raise DatasetError(f"layout '{layout}' needs one {name} for all references; this dataset has {shown}")
    return WindowSize(kinds["zoom"][0], kinds["size"][0])


def safe(text: str) -> str:
    """Return text for a part of a file name: what separates fields or folders becomes a hyphen."""
    return _SAFE.sub("-", text)


def areas_of(dataset: CrossViewDataset) -> list[str]:
    """Return the areas, in order of their references; raises `DatasetError` if one cannot name a folder."""
    areas: list[str] = pc.unique(dataset.references["area"]).to_pylist()
    for name in areas:
        if not name or _SAFE.search(name) or name.startswith("."):
            raise DatasetError(f"area '{name}' cannot name a folder of letters, digits, '.', '+', '-' and '_'")
    return areas


def write_images(
    dataset: CrossViewDataset, root: Path, ids: Sequence[str], paths: Sequence[str], progress: Progress
) -> None:
    """Write images under new names, bytes as they are.

    Raises:
        DatasetError: If two images would have one name.
    """
    if len(set(paths)) < len(paths):
        seen: dict[str, str] = {}
        for name, path in zip(ids, paths, strict=True):
            if path in seen:
                raise DatasetError(f"images '{seen[path]}' and '{name}' would both be '{path}'")
            seen[path] = name
    progress.stage("images", len(ids))
    folders: set[str] = set()
    for name, path in zip(ids, paths, strict=True):
        parent = path.rpartition("/")[0]
        if parent not in folders:
            (root / parent).mkdir(parents=True, exist_ok=True)
            folders.add(parent)
        try:
            (root / path).write_bytes(dataset.images[name])
        except KeyError:
            raise DatasetError(f"there is no image of '{name}'") from None
        progress.advance()


def changed_ids(ids: Sequence[str], expected: Sequence[str], paths: Sequence[str]) -> dict[str, str]:
    """Return id by path where an id does not follow from the layout's own names."""
    return {path: name for name, usual, path in zip(ids, expected, paths, strict=True) if name != usual}


def write_gps(path: Path, table: pa.Table, keys: Ints, names: Sequence[str], neighbors: int, *, pickles: bool) -> None:
    """Write which images are nearest to each, by the keys that published code counts them by.

    Args:
        path: Without a suffix: ``.npz`` gets ``keys`` (N,), ``names`` (N,), ``neighbors`` (N, K) keys, -1 padded, and
            ``distances_m`` (N, K); ``.pkl`` a dict of key to list of keys.
        table: N rows with ``lon``, ``lat`` and an id.
        keys: (N,) key of each row.
        names: (N,) what the keys stand for: a key is only good for this very list.
        neighbors: K.
        pickles: Whether to write the pickle, which published code reads.
    """
    if not table.num_rows:
        return
    found = distance_map(table, neighbors)
    rows = found["neighbor_rows"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    meters = found["distances_m"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    nearest = np.where(rows >= 0, keys[rows], -1)
    np.savez(
        path.with_suffix(".npz"),
        keys=keys,
        names=np.array(names),
        neighbors=nearest.astype(np.int32),
        distances_m=meters,
    )
    if pickles:
        content: Mapping[int, list[int]] = {
            int(key): [other for other in of_key if other >= 0]
            for key, of_key in zip(keys.tolist(), nearest.tolist(), strict=True)
        }
        with path.with_suffix(".pkl").open("wb") as file:
            pickle.dump(content, file, protocol=4)
