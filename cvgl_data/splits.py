"""Which queries train, select models and test, so that no two of these groups share a reference."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.errors import RecipeError
from cvgl_data.geo import gsd_m, pixel_from_lonlat
from cvgl_data.pairing import POSITIVE
from cvgl_data.recipe import SplitRecipe
from cvgl_data.registry import did_you_mean
from cvgl_data.schema import SPLITS

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([("query_id", pa.string()), ("split", pa.string()), ("reason", pa.string())])

NO_REFERENCE = "no_reference"
"""Reason: no reference covers the query."""

SPLIT_BUFFER = "split_buffer"
"""Reason: a reference that covers the query also covers one of another split."""

PROTOCOLS = ("same-area", "cross-area", "none")

_TRAIN, _VALIDATION, _TEST = range(3)  # rows of SPLITS
_LEFT_OUT = -1

Block = tuple[str, int, int]
"""Area and the place of a square of ``block_m`` in it."""

Ints = NDArray[np.int64]


def split(queries: pa.Table, pairs: pa.Table, references: pa.Table, recipe: SplitRecipe, seed: int = 0) -> pa.Table:
    """Assign every query to ``train``, ``validation`` or ``test``, or to none with a reason.

    ``same-area`` deals out spatial blocks within every area; ``cross-area`` tests in ``test_areas`` and takes
    validation blocks from the others; ``none`` tests on everything. A query belongs to the block in which the
    centre of its positive lies, so with seamless references blocks are whole references. Then no reference
    may cover queries of two splits: where one would, the test query stays before the validation query before
    the training query, and the other is left out (``split_buffer``). This holds for any overlap, mixed grids
    and overlapping areas.

    A query without a reference is left out (``no_reference``), unless the protocol is ``none`` or no query
    has one: then it tests, with that reason beside it.

    Args:
        queries: Columns ``query_id``, ``area``; Q rows.
        pairs: What `cvgl_data.pairing.pair` gave for these queries and references.
        references: Columns ``lon``, ``lat`` (centre), ``area``.
        recipe: Protocol, fractions and block size.
        seed: Deals the blocks; neither it nor the result depends on the order of rows.

    Returns:
        Columns ``query_id``, ``split``, ``reason``; Q rows in the order of the queries.

    Raises:
        RecipeError: If the protocol or a test area is unknown, or a number is out of range.
    """
    check(recipe, {*queries["area"].to_pylist(), *references["area"].to_pylist()})
    num = queries.num_rows
    positive = np.full(num, -1, np.int64)
    is_positive = pc.equal(pairs["relation"], POSITIVE)
    of_positives = pairs.filter(is_positive)
    positive[of_positives["query_row"].to_numpy()] = of_positives["reference_row"].to_numpy()
    covered = positive >= 0

    side = np.full(num, _TEST, np.int64)
    reason = np.where(covered, "", NO_REFERENCE).astype(object)
    if num and not covered.any():
        logger.warning("no reference covers any of the %d queries; all of them go to the test split", num)
    elif recipe.protocol != "none":
        side = _sides(queries, _blocks(references, recipe.block_m), positive, recipe, seed)
        side[~covered] = _LEFT_OUT
        shared = _sharing(side, pairs)
        side[shared] = _LEFT_OUT
        reason[shared] = SPLIT_BUFFER
        _report(side, shared, covered)
    names = np.array([*SPLITS, ""], dtype=object)  # _LEFT_OUT is the last
    return pa.table([queries["query_id"].cast(pa.string()), pa.array(names[side]), pa.array(reason)], schema=SCHEMA)


def check(recipe: SplitRecipe, areas: AbstractSet[str]) -> None:
    """Raise unless areas of these names can be split as the recipe says.

    Raises:
        RecipeError: If the protocol or a test area is unknown, or a number is out of range.
    """
    if recipe.protocol not in PROTOCOLS:
        raise RecipeError(
            f"recipe key 'split.protocol': '{recipe.protocol}' is unknown{did_you_mean(recipe.protocol, PROTOCOLS)}"
        )
    for key in ("validation_fraction", "test_fraction"):
        if not 0 <= getattr(recipe, key) < 1:
            raise RecipeError(f"recipe key 'split.{key}' is {getattr(recipe, key)}; it must be in [0, 1)")
    if not recipe.block_m > 0:
        raise RecipeError(f"recipe key 'split.block_m' is {recipe.block_m}; it must be above 0")
    if recipe.protocol == "cross-area":
        if not recipe.test_areas:
            raise RecipeError("recipe key 'split.test_areas' is empty; cross-area needs an area to test in")
        for name in recipe.test_areas:
            if name not in areas:
                hint = did_you_mean(name, areas)
                raise RecipeError(f"recipe key 'split.test_areas': no area is called '{name}'{hint}")
        if set(recipe.test_areas) >= areas:
            raise RecipeError(
                "recipe key 'split.test_areas' names every area, so none is left to train in; "
                "add an area or set split.protocol to 'none'"
            )


def _blocks(references: pa.Table, block_m: float) -> list[Block]:
    """Return the block of each reference's centre."""
    lon, lat = references["lon"].to_numpy(), references["lat"].to_numpy()
    area = references["area"].to_numpy()
    x, y = pixel_from_lonlat(lon, lat, 0)
    column, row = np.zeros(len(x), np.int64), np.zeros(len(x), np.int64)
    for name in set(area.tolist()):
        at = area == name
        # One scale per area: the middle latitude, which no order of rows changes.
        side = block_m / float(gsd_m((lat[at].min() + lat[at].max()) / 2, 0))
        column[at], row[at] = np.floor(x[at] / side), np.floor(y[at] / side)
    return list(zip(area.tolist(), column.tolist(), row.tolist(), strict=True))


def _sides(queries: pa.Table, blocks: list[Block], positive: Ints, recipe: SplitRecipe, seed: int) -> Ints:
    """Return the side of each query before sharing is looked at; uncovered queries get any."""
    side = np.full(len(positive), _TRAIN, np.int64)
    area = queries["area"].to_numpy()
    candidates = positive >= 0
    if recipe.protocol == "cross-area":
        is_test = np.isin(area, np.array(recipe.test_areas, dtype=object))
        side[is_test] = _TEST
        candidates &= ~is_test
        shares = [(_VALIDATION, recipe.validation_fraction)]
    else:
        shares = [(_TEST, recipe.test_fraction), (_VALIDATION, recipe.validation_fraction)]
    for chosen_side, fraction in shares:
        rows = np.flatnonzero(candidates)
        of_row = [blocks[reference] for reference in positive[rows].tolist()]
        counts: dict[str, dict[Block, int]] = defaultdict(lambda: defaultdict(int))
        for block in of_row:
            counts[block[0]][block] += 1
        chosen: set[Block] = set()
        for name in sorted(counts):
            chosen |= _deal(counts[name], fraction, f"{seed} {SPLITS[chosen_side]}")
        if fraction > 0 and len(rows) and not chosen:
            logger.warning(
                "no block goes to the %s split: each area has too few blocks of %g m; lower split.block_m",
                SPLITS[chosen_side],
                recipe.block_m,
            )
        taken = rows[[block in chosen for block in of_row]]
        side[taken] = chosen_side
        candidates[taken] = False
    return side


def _deal(counts: Mapping[Block, int], fraction: float, salt: str) -> set[Block]:
    """Return blocks that hold about ``fraction`` of the queries, in an order that only the salt decides."""
    target = fraction * sum(counts.values())
    chosen: set[Block] = set()
    held = 0
    for block in sorted(counts, key=lambda block: hashlib.blake2b(f"{salt} {block}".encode()).digest()):
        if abs(held + counts[block] - target) < abs(held - target):
            chosen.add(block)
            held += counts[block]
    return chosen


def _sharing(side: Ints, pairs: pa.Table) -> NDArray[np.bool_]:
    """Return the queries that share a reference with a kept query of a side that goes before theirs."""
    query, reference = pairs["query_row"].to_numpy(), pairs["reference_row"].to_numpy()
    num_references = int(reference.max(initial=-1)) + 1
    shared = np.zeros(len(side), bool)
    taken = np.zeros(num_references, bool)
    for current in (_TEST, _VALIDATION, _TRAIN):
        mine = side[query] == current
        shared[query[mine & taken[reference]]] = True
        taken[reference[mine & ~shared[query]]] = True
    return shared


def _report(side: Ints, shared: NDArray[np.bool_], covered: NDArray[np.bool_]) -> None:
    counts = np.bincount(side[side >= 0], minlength=len(SPLITS))
    logger.info(
        "split: %s; left out %d beside another split, %d without a reference",
        ", ".join(f"{count} {name}" for name, count in zip(SPLITS, counts, strict=True)),
        shared.sum(),
        (~covered).sum(),
    )
    if shared.sum() > covered.sum() / 2:
        logger.warning(
            "%d of %d queries lie beside another split and are left out; raise split.block_m or part the areas",
            shared.sum(),
            covered.sum(),
        )
