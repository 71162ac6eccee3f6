"""Which of the covered queries a dataset keeps: away from edges, so many for each positive, evenly decentral."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.pairing import POSITIVE, QUARTERS
from cvgl_data.recipe import CurationRecipe

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([("query_id", pa.string()), ("reason", pa.string())])

EDGE_MARGIN = "edge_margin"
"""Reason: too near to an edge of its positive."""

PER_POSITIVE = "max_queries_per_positive"
"""Reason: its positive has enough queries."""

BALANCE = "balance_decentrality"
"""Reason: its quarter of decentrality has more queries than another."""

Bools = NDArray[np.bool_]


def curate(queries: pa.Table, pairs: pa.Table, references: pa.Table, recipe: CurationRecipe, seed: int = 0) -> pa.Table:
    """Say which covered queries are left out, and why.

    The three rules act in turn, each on what the one before has kept: the margin, then the number of queries per
    positive, then the balance. Which queries stay depends on their ids and the seed, never on the order of rows. A
    query without a positive is not looked at.

    Args:
        queries: Columns ``query_id``, ``area``; Q rows.
        pairs: What `cvgl_data.pairing.pair` gave for these queries and references.
        references: Columns ``size``, ``gsd_m``.
        recipe: The rules.
        seed: Of the drawing.

    Returns:
        Columns ``query_id``, ``reason``: the queries left out, sorted by id.

    Source:
        VIGOR keeps at most two panoramas for each positive; balancing by decentrality follows the levels at which
        DReSS is evaluated.
    """
    positives = pairs.filter(pc.equal(pairs["relation"], POSITIVE)).sort_by("query_id")
    ids = positives["query_id"].to_pylist()
    drawn = np.array([hashlib.sha256(f"curation {seed}:{query}".encode()).digest()[:8] for query in ids], dtype="S8")
    order = np.argsort(drawn, kind="stable")  # of equal draws the lower id goes first
    reason = np.full(len(ids), "", dtype=object)

    if recipe.edge_margin_m > 0:
        reason[_edge_distance_m(positives, references) < recipe.edge_margin_m] = EDGE_MARGIN
    if recipe.max_queries_per_positive:
        owner = positives["reference_id"].to_pylist()
        held: dict[str, int] = defaultdict(int)
        for row in order[reason[order] == ""].tolist():
            held[owner[row]] += 1
            if held[owner[row]] > recipe.max_queries_per_positive:
                reason[row] = PER_POSITIVE
    if recipe.balance_decentrality:
        area = queries["area"].take(positives["query_row"]).to_numpy()
        kept = order[reason[order] == ""]
        reason[kept[_surplus(positives["decentrality"].to_numpy()[kept], area[kept])]] = BALANCE
    left_out = np.flatnonzero(reason != "")
    return pa.table([[ids[row] for row in left_out.tolist()], reason[left_out].tolist()], schema=SCHEMA)


def quarter(decentrality: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the quarter of each decentrality, 0 to 3; edges belong to the upper one, 1 to the last."""
    return np.clip(np.searchsorted(QUARTERS, decentrality, side="right") - 1, 0, len(QUARTERS) - 2)


def _edge_distance_m(positives: pa.Table, references: pa.Table) -> NDArray[np.float64]:
    """Return how far inside its positive each query lies, in ground metres."""
    rows = positives["reference_row"]
    side_m = references["size"].take(rows).to_numpy() * references["gsd_m"].take(rows).to_numpy()
    east, north = (np.abs(positives[f"offset_{axis}_m"].to_numpy()) for axis in ("east", "north"))
    return np.asarray(side_m / 2 - np.maximum(east, north))


def _surplus(decentrality: NDArray[np.float64], area: NDArray[np.object_]) -> Bools:
    """Return which of the queries, in the order in which they were drawn, their quarter has too many of.

    Quarters that no query of an area lies in do not count: half-overlapping windows leave two of them empty.
    """
    level = quarter(decentrality)
    surplus = np.zeros(len(level), bool)
    for name in sorted(set(area.tolist())):
        groups = [np.flatnonzero((area == name) & (level == each)) for each in range(len(QUARTERS) - 1)]
        fewest = min(len(rows) for rows in groups if len(rows))
        for rows in groups:
            surplus[rows[fewest:]] = True
        logger.info("%s: %d queries of each quarter of decentrality are kept", name or "all", fewest)
    return surplus
