"""Panoramas shown at other headings than north, drawn for each query from its id and a seed.

Shapes: Q queries.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.dataset import CrossViewDataset


def drawn_shares(query_ids: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each query; it depends neither on their order nor on which others there are.

    The purpose is part of what is hashed: a dataset whose queries were themselves drawn by a hash of seed and id, the
    lowest ones first, would else be shown at a few headings only.
    """
    digests = [hashlib.sha256(f"heading {seed}:{name}".encode()).digest() for name in query_ids]
    return np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests])


def turned(dataset: CrossViewDataset, turn_deg_Q: NDArray[np.float64]) -> CrossViewDataset:
    """Return the dataset with headings such that its panoramas are rolled to look so far clockwise of north."""
    queries = dataset.queries
    index = queries.schema.get_field_index("heading_deg")
    known = np.nan_to_num(pc.fill_null(queries["heading_deg"], 0.0).to_numpy().astype(np.float64))
    column = pa.array((known - turn_deg_Q) % 360, queries.schema.field(index).type)
    return dataclasses.replace(dataset, queries=queries.set_column(index, "heading_deg", column))
