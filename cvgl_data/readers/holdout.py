"""A validation split out of the training queries of a published layout, which mostly have none."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.pairing import POSITIVE
from cvgl_data.splits import blocks

BLOCK_M = 400.0
"""Side of the squares of ground that are held out as a whole."""

_SALT = "validation"

Ints = NDArray[np.int64]


def hold_out(queries: pa.Table, pairs: pa.Table, references: pa.Table, fraction: float) -> tuple[pa.Table, pa.Table]:
    """Move a share of the training queries of every area to ``validation``, by blocks of `BLOCK_M` of ground.

    A training query that shares a reference with a validation query is left out, so validation says something about
    places not trained on. Nothing but ids and places decides. Where references have no positions, single queries are
    held out by a hash of their ids.

    Args:
        queries: With column ``split``; Q rows.
        pairs: With rows of these queries, the positive of each first.
        references: With ``lon``, ``lat``, ``area``.
        fraction: Share of the training queries; 0 changes nothing.

    Returns:
        Queries and pairs, without those left out; ``query_row`` is renewed.
    """
    if not fraction:
        return queries, pairs
    split = np.array(queries["split"].to_pylist(), dtype=object)
    positives = pairs.filter(pc.equal(pairs["relation"], POSITIVE))
    positive = np.full(queries.num_rows, -1, np.int64)
    positive[positives["query_row"].to_numpy()] = positives["reference_row"].to_numpy()
    candidates = np.flatnonzero((split == "train") & (positive >= 0))
    located = np.isfinite(np.asarray(references["lon"].to_numpy(), np.float64)).all()
    if located:
        of_reference = blocks.blocks_of(references, BLOCK_M)
        chosen = blocks.deal([of_reference[row] for row in positive[candidates].tolist()], fraction, _SALT)
        held = candidates[chosen]
    else:
        ids = queries["query_id"].to_pylist()
        order = sorted(candidates.tolist(), key=lambda row: hashlib.blake2b(f"{_SALT} {ids[row]}".encode()).digest())
        held = np.array(sorted(order[: round(fraction * len(order))]), np.int64)
    split[held] = "validation"

    of_references = pairs.filter(pc.or_(pairs["covers"], pc.equal(pairs["relation"], POSITIVE)))
    query_row, reference_row = of_references["query_row"].to_numpy(), of_references["reference_row"].to_numpy()
    touched = np.zeros(references.num_rows, bool)
    touched[reference_row[split[query_row] == "validation"]] = True
    beside = np.zeros(queries.num_rows, bool)
    beside[query_row[touched[reference_row] & (split[query_row] == "train")]] = True
    index = queries.schema.get_field_index("split")
    queries = queries.set_column(index, queries.schema.field(index), pa.array(split.tolist(), pa.string()))
    return keep_queries(queries, pairs, ~beside)


def keep_queries(queries: pa.Table, pairs: pa.Table, keep: NDArray[np.bool_]) -> tuple[pa.Table, pa.Table]:
    """Return the queries of a mask, (Q,), with their pairs; ``query_row`` is renewed."""
    new_row = np.cumsum(keep) - 1
    query_row = pairs["query_row"].to_numpy()
    mine = keep[query_row]
    pairs = pairs.filter(pa.array(mine))
    index = pairs.schema.get_field_index("query_row")
    rows = pa.array(new_row[query_row[mine]].astype(np.int32))
    return queries.filter(pa.array(keep)), pairs.set_column(index, pairs.schema.field(index), rows)
