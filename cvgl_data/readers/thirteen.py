"""The 13-column label files of VIGOR and DReSS: a panorama, its positive tile, three more, and offsets in pixels.

``panorama tile a b tile a b tile a b tile a b``, separated by white space, no header. ``a`` and ``b`` are:

- VIGOR: tile centre minus query, north and east positive, pixels of the 640 px tile, so u = 320 - b and v = 320 + a.
- DReSS: place of the query in the tile, u = a and v = b, pixels of the 224 px tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cvgl_data.readers.citynames import Convention
from cvgl_data.readers.layout import Problems, read_lines

COLUMNS = 13
TILES = 4

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labels:
    """The lines of one label file; N queries."""

    queries: list[str]
    """File names."""
    lines: list[int]
    """Numbers of the lines, from 1."""
    tile_row: Ints
    """(N, 4) rows in the tiles that were asked for, the positive first."""
    offsets: Floats
    """(N, 4, 2) the two numbers after each tile, as they stand."""


def read_labels(path: Path, tile_row: Mapping[str, int], problems: Problems) -> Labels:
    """Read a label file.

    Args:
        path: The file.
        tile_row: File name to row of the tiles that labels may name.
        problems: A line without 13 columns, with an unknown tile or with something that is no number is noted and left
            out.
    """
    queries: list[str] = []
    numbers: list[int] = []
    rows: list[int] = []
    texts: list[str] = []
    # Line by line: all columns of all lines at once would take ten times the memory of what is kept.
    for number, line in read_lines(path, problems):
        columns = line.split()
        if len(columns) != COLUMNS:
            problems.add(path, number, f"has {len(columns)} columns, not {COLUMNS}")
            continue
        query, *others = columns
        found = [tile_row.get(name, -1) for name in others[::3]]
        if -1 in found:
            problems.add(path, number, f"tile '{others[3 * found.index(-1)]}' is not in the list of tiles")
            continue
        queries.append(query)
        numbers.append(number)
        rows += found
        texts += others[1::3]
        texts += others[2::3]
    # Of each line the four first numbers, then the four second ones.
    offsets = _numbers(texts).reshape(-1, 2, TILES).transpose(0, 2, 1)
    for index in np.flatnonzero(~np.isfinite(offsets).all(axis=(1, 2))).tolist():
        wrong = next(text for text in texts[index * 2 * TILES :] if not np.isfinite(_number(text)))
        problems.add(path, numbers[index], f"offset '{wrong}' is no number")
    return Labels(queries, numbers, np.array(rows, np.int64).reshape(-1, TILES), offsets)


def _numbers(texts: Sequence[str]) -> Floats:
    """Return text as numbers, NaN where it is none."""
    try:
        return np.array(pa.array(texts, pa.string()).cast(pa.float64()))
    except ValueError:
        return np.array([_number(text) for text in texts], np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def place_in_tile(offsets: Floats, convention: Convention, side_px: float) -> Floats:
    """Return offsets, (..., 2), as places (u, v) in a tile of ``side_px`` pixels."""
    if convention == "dress":
        return offsets
    return np.stack([side_px / 2 - offsets[..., 1], side_px / 2 + offsets[..., 0]], -1)


def offsets_of(uv: Floats, convention: Convention, side_px: float) -> Floats:
    """Invert `place_in_tile`."""
    if convention == "dress":
        return uv
    return np.stack([uv[..., 1] - side_px / 2, side_px / 2 - uv[..., 0]], -1)


def write_labels(queries: Sequence[str], tiles: Sequence[Sequence[str]], offsets: Floats, decimals: int) -> str:
    """Return the text of a label file; byte-identical to the published ones where these have the same decimals.

    Args:
        queries: (N,) file names.
        tiles: (N, 4) file names, the positive first.
        offsets: (N, 4, 2).
        decimals: To round to; a whole number still gets one, as in ``23.0``.
    """
    rounded = np.round(offsets, decimals)
    lines = []
    for query, names, numbers in zip(queries, tiles, rounded.tolist(), strict=True):
        parts = [query]
        for name, (first, second) in zip(names, numbers, strict=True):
            parts += [name, repr(first), repr(second)]
        lines.append(" ".join(parts) + "\n")
    return "".join(lines)
