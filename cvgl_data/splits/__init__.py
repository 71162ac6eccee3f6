"""Which queries train, select models and test, so that no two of these groups share a reference."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Set as AbstractSet

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cvgl_data.curation import quarter
from cvgl_data.errors import RecipeError
from cvgl_data.pairing import POSITIVE
from cvgl_data.recipe import SplitRecipe
from cvgl_data.registry import did_you_mean
from cvgl_data.schema import SPLITS
from cvgl_data.splits import blocks, temporal

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([("query_id", pa.string()), ("split", pa.string()), ("reason", pa.string())])

NO_REFERENCE = "no_reference"
"""Reason: no reference covers the query."""

SPLIT_BUFFER = "split_buffer"
"""Reason: a reference that covers the query also covers one of another split."""

NO_DATE = "no_date"
"""Reason: it is not known on which side of ``test_after`` the query was captured."""

OTHER_PLACE = "other_place"
"""Reason: no training query has the same positive, so there is no other date to compare with."""

DATE_GAP = "date_gap"
"""Reason: a training query of the same positive was captured within ``min_gap_days``."""

PROTOCOLS = ("same-area", "random", "cross-area", "cross-temporal", "none")

_TRAIN, _VALIDATION, _TEST = range(3)  # rows of SPLITS
_LEFT_OUT = -1

Ints = NDArray[np.int64]


def split(
    queries: pa.Table,
    pairs: pa.Table,
    references: pa.Table,
    recipe: SplitRecipe,
    seed: int = 0,
    left_out: pa.Table | None = None,
) -> pa.Table:
    """Assign every query to ``train``, ``validation`` or ``test``, or to none with a reason.

    - ``same-area`` deals out spatial blocks within every area.
    - ``cross-area`` tests in ``test_areas`` and takes validation blocks from the others.
    - ``cross-temporal`` tests on queries captured on ``test_after`` or later whose positive is also that of an earlier
      query, which trains; validation blocks come from the earlier ones.
    - ``random`` deals out single queries, as VIGOR and DReSS do: their references are shared.
    - ``none`` tests on everything.

    A query belongs to the block in which the centre of its positive lies, so with seamless references blocks are whole
    references. Then no reference may cover queries of two splits (``random`` allows it, and ``cross-temporal`` between
    training and test, which is its point): where one would, the test query stays before the validation query before
    the training query, and the other is left out (``split_buffer``). This holds for any overlap, mixed grids and
    overlapping areas.

    A query without a reference is left out (``no_reference``), unless the protocol is ``none`` or no query
    has one: then it tests, with that reason beside it.

    Args:
        queries: Columns ``query_id``, ``area``, for ``cross-temporal`` also ``captured``; Q rows.
        pairs: What `cvgl_data.pairing.pair` gave for these queries and references.
        references: Columns ``lon``, ``lat`` (centre), ``area``.
        recipe: Protocol, fractions and block size.
        seed: Deals the blocks; neither it nor the result depends on the order of rows.
        left_out: Columns ``query_id``, ``reason`` of queries that go nowhere, whatever the protocol.

    Returns:
        Columns ``query_id``, ``split``, ``reason``; Q rows in the order of the queries.

    Raises:
        RecipeError: If the protocol or a test area is unknown, or a number is out of range.
    """
    check(recipe, {*queries["area"].to_pylist(), *references["area"].to_pylist()})
    num = queries.num_rows
    reason = _reasons(queries, left_out)
    candidates = reason == ""
    positive, decentrality = np.full(num, -1, np.int64), np.zeros(num)
    of_positives = pairs.filter(pc.equal(pairs["relation"], POSITIVE))
    rows = of_positives["query_row"].to_numpy()
    positive[rows] = of_positives["reference_row"].to_numpy()
    decentrality[rows] = of_positives["decentrality"].to_numpy()
    covered = positive >= 0
    reason[candidates & ~covered] = NO_REFERENCE

    if recipe.protocol == "none" or (candidates.any() and not covered[candidates].any()):
        if recipe.protocol != "none":
            logger.warning("no reference covers any of the %d queries; all of them go to the test split", num)
        side = np.where(candidates, _TEST, _LEFT_OUT)
    else:
        side = np.where(candidates & covered, _TRAIN, _LEFT_OUT)
        strata = quarter(decentrality) if recipe.stratify else None
        if recipe.protocol == "random":
            _deal_singly(side, queries, recipe, seed, strata)
        else:
            if recipe.protocol == "cross-temporal":
                later = _later(queries, side, reason, recipe)
            _deal_blocks(side, queries, blocks.blocks_of(references, recipe.block_m), positive, recipe, seed, strata)
            shared = _sharing(side, pairs)
            side[shared], reason[shared] = _LEFT_OUT, SPLIT_BUFFER
            if recipe.protocol == "cross-temporal":
                _test_later(side, reason, positive, *later, recipe.min_gap_days)
        _report(side, reason, candidates & covered)
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
    if recipe.protocol == "cross-temporal" and not recipe.test_after:
        raise RecipeError("recipe key 'split.test_after' is empty; cross-temporal needs a day from which queries test")
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


def _reasons(queries: pa.Table, left_out: pa.Table | None) -> NDArray[np.object_]:
    """Return why each query goes nowhere, empty where nothing speaks against it."""
    if left_out is None:
        return np.full(queries.num_rows, "", dtype=object)
    known = dict(zip(left_out["query_id"].to_pylist(), left_out["reason"].to_pylist(), strict=True))
    return np.array([known.get(query, "") for query in queries["query_id"].to_pylist()], dtype=object)


def _shares(recipe: SplitRecipe) -> list[tuple[int, float]]:
    """Return the sides that are dealt out, in order, each with its share of what is left."""
    validation = (_VALIDATION, recipe.validation_fraction)
    return [(_TEST, recipe.test_fraction), validation] if recipe.protocol in ("same-area", "random") else [validation]


def _deal_singly(side: Ints, queries: pa.Table, recipe: SplitRecipe, seed: int, strata: Ints | None) -> None:
    """Move single training queries to the other sides, the same share of every area and class."""
    ids = queries["query_id"].to_pylist()
    area = queries["area"].to_numpy()
    for chosen_side, fraction in _shares(recipe):
        salt = f"{seed} {SPLITS[chosen_side]}"
        drawn = sorted(
            np.flatnonzero(side == _TRAIN).tolist(),
            key=lambda row: hashlib.blake2b(f"{salt} {ids[row]}".encode()).digest(),
        )
        groups: dict[tuple[str, int], list[int]] = {}
        for row in drawn:
            groups.setdefault((area[row], 0 if strata is None else int(strata[row])), []).append(row)
        for rows in groups.values():
            side[rows[: round(fraction * len(rows))]] = chosen_side


def _deal_blocks(
    side: Ints,
    queries: pa.Table,
    of_reference: list[blocks.Block],
    positive: Ints,
    recipe: SplitRecipe,
    seed: int,
    strata: Ints | None,
) -> None:
    """Move the training queries of whole blocks, or of whole areas, to the other sides."""
    if recipe.protocol == "cross-area":
        is_test = np.isin(queries["area"].to_numpy(), np.array(recipe.test_areas, dtype=object))
        side[(side == _TRAIN) & is_test] = _TEST
    for chosen_side, fraction in _shares(recipe):
        rows = np.flatnonzero(side == _TRAIN)
        of_query = [of_reference[reference] for reference in positive[rows].tolist()]
        salt = f"{seed} {SPLITS[chosen_side]}"
        chosen = blocks.deal(of_query, fraction, salt, None if strata is None else strata[rows])
        if fraction > 0 and len(rows) and not chosen.any():
            logger.warning(
                "no block goes to the %s split: each area has too few blocks of %g m; lower split.block_m",
                SPLITS[chosen_side],
                recipe.block_m,
            )
        side[rows[chosen]] = chosen_side


def _later(
    queries: pa.Table, side: Ints, reason: NDArray[np.object_], recipe: SplitRecipe
) -> tuple[NDArray[np.bool_], Ints, Ints]:
    """Take the queries that may test, and those of unknown date, out of training; returns the former and the days."""
    first, last = temporal.days(queries["captured"].to_pylist())
    start = temporal.days([recipe.test_after])[0][0]
    candidates = side == _TRAIN
    unknown = candidates & ((first == 0) | ((first < start) & (last >= start)))
    late = candidates & ~unknown & (first >= start)
    side[unknown | late] = _LEFT_OUT
    reason[unknown] = NO_DATE
    return late, first, last


def _test_later(
    side: Ints,
    reason: NDArray[np.object_],
    positive: Ints,
    late: NDArray[np.bool_],
    first: Ints,
    last: Ints,
    min_gap_days: int,
) -> None:
    """Let late queries test where an early one trains at the same place, long enough before."""
    gap = temporal.nearest_gap_days(first, last, positive, side == _TRAIN, late)
    reason[late & (gap < 0)] = OTHER_PLACE
    reason[late & (gap >= 0) & (gap < min_gap_days)] = DATE_GAP
    side[late & (gap >= max(min_gap_days, 0))] = _TEST


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


def _report(side: Ints, reason: NDArray[np.object_], candidates: NDArray[np.bool_]) -> None:
    counts = np.bincount(side[side >= 0], minlength=len(SPLITS))
    why, left_out = np.unique(reason[side < 0].astype(str), return_counts=True)
    logger.info(
        "split: %s; left out: %s",
        ", ".join(f"{count} {name}" for name, count in zip(SPLITS, counts, strict=True)),
        ", ".join(f"{count} {name}" for name, count in zip(why, left_out, strict=True)) or "none",
    )
    beside = int((reason == SPLIT_BUFFER).sum())
    if beside > candidates.sum() / 2:
        logger.warning(
            "%d of %d queries lie beside another split and are left out; raise split.block_m or part the areas",
            beside,
            candidates.sum(),
        )
