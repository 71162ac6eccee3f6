"""Splits: no reference is shared between two of them, fractions, determinism, reasons."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tables import ORIGIN_X, ORIGIN_Y, ZOOM, windows

from cvgl_data.curation import quarter
from cvgl_data.errors import RecipeError
from cvgl_data.geo import lonlat_from_pixel
from cvgl_data.pairing import pair
from cvgl_data.recipe import SplitRecipe
from cvgl_data.splits import DATE_GAP, NO_DATE, NO_REFERENCE, OTHER_PLACE, SPLIT_BUFFER, split
from cvgl_data.types import Window


def reference_table(layout: dict[Window, str]) -> pa.Table:
    keys = sorted(layout)
    centers = [window.center for window in keys]
    return pa.table(
        {
            "reference_id": [window.key for window in keys],
            **{name: [getattr(window, name) for window in keys] for name in ("x", "y", "size", "zoom")},
            "lon": [center.lon for center in centers],
            "lat": [center.lat for center in centers],
            "area": [layout[window] for window in keys],
        }
    )


def query_table(x, y, area) -> pa.Table:
    lon, lat = lonlat_from_pixel(ORIGIN_X + np.asarray(x, float), ORIGIN_Y + np.asarray(y, float), ZOOM)
    ids = [f"q{index:05d}" for index in range(len(lon))]
    return pa.table({"query_id": ids, "lon": lon, "lat": lat, "area": area})


def sides_of_references(pairs: pa.Table, table: pa.Table) -> dict[str, set[str]]:
    side = dict(zip(table["query_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    found = defaultdict(set)
    for query, reference in zip(pairs["query_id"].to_pylist(), pairs["reference_id"].to_pylist(), strict=True):
        if side[query]:
            found[reference].add(side[query])
    return found


def city(num: int = 4000, columns: int = 24, stride: int = 256, seed: int = 0):
    random = np.random.default_rng(seed)
    references = reference_table(dict.fromkeys(windows(columns, columns, stride=stride), "seattle"))
    width = (columns - 1) * stride + 256
    queries = query_table(random.uniform(0, width, num), random.uniform(0, width, num), ["seattle"] * num)
    return queries, pair(queries, references), references


@given(
    protocol=st.sampled_from(["same-area", "cross-area"]),
    strides=st.lists(st.sampled_from([64, 128, 192, 256, 300]), min_size=1, max_size=3),
    sizes=st.lists(st.sampled_from([128, 256, 512]), min_size=3, max_size=3),
    shift=st.integers(0, 900),
    block_m=st.sampled_from([30.0, 120.0, 400.0]),
    fractions=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_no_reference_covers_queries_of_two_splits(protocol, strides, sizes, shift, block_m, fractions, seed):
    """Any overlap, mixed sizes, and areas that lie over each other."""
    random = np.random.default_rng(seed)
    layout = {}
    for number, stride in enumerate(strides):
        x, y = ORIGIN_X + number * shift, ORIGIN_Y + number * shift // 2
        for window in windows(6, 6, stride=stride, size=sizes[number], x=x, y=y):
            layout.setdefault(window, f"area{number}")
    references = reference_table(layout)
    num = 250
    queries = query_table(
        random.uniform(0, 2500, num),
        random.uniform(0, 2000, num),
        [f"area{number}" for number in random.integers(0, 3, num)],
    )
    recipe = SplitRecipe(
        protocol=protocol,
        test_areas=("area0",) if protocol == "cross-area" else (),
        test_fraction=fractions[0],
        validation_fraction=fractions[1],
        block_m=block_m,
    )
    pairs = pair(queries, references)
    table = split(queries, pairs, references, recipe, seed)
    assert all(len(sides) == 1 for sides in sides_of_references(pairs, table).values())

    covered = set(pairs["query_id"].to_pylist())
    for row in table.to_pylist():
        if row["query_id"] not in covered:
            assert row["reason"] == NO_REFERENCE
        elif row["split"]:
            assert row["reason"] == ""
        else:
            assert row["reason"] == SPLIT_BUFFER

    # Nothing depends on the order of rows.
    order_q, order_r = random.permutation(num), random.permutation(references.num_rows)
    shuffled_q, shuffled_r = queries.take(order_q), references.take(order_r)
    again = split(shuffled_q, pair(shuffled_q, shuffled_r), shuffled_r, recipe, seed)
    assert again.sort_by("query_id").equals(table.sort_by("query_id"))


def test_seamless_references_lose_nothing_and_fractions_hold():
    queries, pairs, references = city()
    table = split(queries, pairs, references, SplitRecipe(test_fraction=0.3, validation_fraction=0.1), 7)
    counts = Counter(table["split"].to_pylist())
    assert counts[""] == 0
    assert counts["test"] / 4000 == pytest.approx(0.3, abs=0.03)
    assert counts["validation"] / (4000 - counts["test"]) == pytest.approx(0.1, abs=0.03)


def test_overlapping_references_cost_a_strip_of_the_training_side_only():
    queries, pairs, references = city(stride=128, columns=48)
    recipe = SplitRecipe(test_fraction=0.3, validation_fraction=0.0)
    table = split(queries, pairs, references, recipe, 7)
    counts = Counter(table["split"].to_pylist())
    assert counts["test"] / 4000 == pytest.approx(0.3, abs=0.03)
    assert 0 < counts[""] < 0.35 * 4000
    assert set(table["reason"].to_pylist()) == {"", SPLIT_BUFFER}


def test_blocks_are_squares_of_block_m():
    """All queries of one block share a side; blocks are as large as asked."""
    queries, pairs, references = city(1500, columns=40)
    table = split(queries, pairs, references, SplitRecipe(block_m=800.0, validation_fraction=0.0), 3)
    lon, lat = queries["lon"].to_numpy(), queries["lat"].to_numpy()
    east = (lon - lon.min()) * 111_195 * np.cos(np.radians(47.6))
    north = (lat - lat.min()) * 111_195
    is_test = np.array(table["split"].to_pylist()) == "test"
    # Neighbors within 50 m differ in side only along block borders: about 2 * 2 * 50 / 800 of them at most.
    near = np.hypot(east[:, None] - east, north[:, None] - north) < 50
    differ = (is_test[:, None] != is_test)[near].mean()
    assert 0 < differ < 0.1


def test_seed_deals_the_blocks():
    queries, pairs, references = city(1000)
    one, two = (split(queries, pairs, references, SplitRecipe(), seed) for seed in (1, 2))
    assert not one.equals(two)
    assert one.equals(split(queries, pairs, references, SplitRecipe(), 1))


def test_cross_area():
    west, east = windows(6, 6), windows(6, 6, x=ORIGIN_X + 20 * 256)
    references = reference_table({**dict.fromkeys(west, "west"), **dict.fromkeys(east, "east")})
    random = np.random.default_rng(0)
    x = np.append(random.uniform(0, 1536, 500), 20 * 256 + random.uniform(0, 1536, 300))
    queries = query_table(x, random.uniform(0, 1536, 800), ["west"] * 500 + ["east"] * 300)
    recipe = SplitRecipe(protocol="cross-area", test_areas=("east",), block_m=150, validation_fraction=0.2)
    table = split(queries, pair(queries, references), references, recipe)
    sides = np.array(table["split"].to_pylist())
    assert (sides[500:] == "test").all()
    assert set(sides[:500]) == {"train", "validation"}
    assert (sides == "validation").sum() / 500 == pytest.approx(0.2, abs=0.1)


def test_none_tests_on_everything():
    queries, pairs, references = city(50)
    table = split(queries, pairs, references, SplitRecipe(protocol="none"))
    assert set(table["split"].to_pylist()) == {"test"}


def test_queries_without_a_reference():
    references = reference_table(dict.fromkeys(windows(10, 10), "a"))
    queries = query_table([100, 2000, 9000], [100, 2000, 9000], ["a"] * 3)
    table = split(queries, pair(queries, references), references, SplitRecipe(block_m=100))
    assert table["split"].to_pylist()[2] == ""
    assert table["reason"].to_pylist()[2] == NO_REFERENCE
    kept = split(queries, pair(queries, references), references, SplitRecipe(protocol="none"))
    assert kept["split"].to_pylist() == ["test"] * 3
    assert kept["reason"].to_pylist() == ["", "", NO_REFERENCE]


def test_when_no_query_is_covered_all_of_them_test(caplog):
    references = reference_table(dict.fromkeys(windows(2, 2), "a"))
    queries = query_table([9000, 9500], [9000, 9500], ["a"] * 2)
    with caplog.at_level(logging.WARNING):
        table = split(queries, pair(queries, references), references, SplitRecipe())
    assert table["split"].to_pylist() == ["test"] * 2
    assert table["reason"].to_pylist() == [NO_REFERENCE] * 2
    assert "no reference covers any of the 2 queries" in caplog.text
    assert split(queries.slice(0, 0), pair(queries.slice(0, 0), references), references, SplitRecipe()).num_rows == 0


def test_too_few_blocks_are_said(caplog):
    queries, pairs, references = city(100, columns=2)
    with caplog.at_level(logging.WARNING):
        split(queries, pairs, references, SplitRecipe(block_m=50_000))
    assert "lower split.block_m" in caplog.text


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (SplitRecipe(protocol="same_area"), "did you mean 'same-area'"),
        (SplitRecipe(protocol="cross-area"), "test_areas' is empty"),
        (SplitRecipe(protocol="cross-area", test_areas=("seatle",)), "did you mean 'seattle'"),
        (SplitRecipe(protocol="cross-area", test_areas=("seattle",)), "names every area"),
        (SplitRecipe(protocol="cross-temporal"), "split.test_after' is empty"),
        (SplitRecipe(test_fraction=1.0), "split.test_fraction"),
        (SplitRecipe(validation_fraction=-0.1), "split.validation_fraction"),
        (SplitRecipe(block_m=0), "split.block_m"),
    ],
)
def test_bad_recipes(recipe, message):
    queries, pairs, references = city(20, columns=4)
    with pytest.raises(RecipeError, match=message):
        split(queries, pairs, references, recipe)


def dated(queries: pa.Table, captured: list[str]) -> pa.Table:
    return queries.append_column("captured", pa.array(captured, pa.string()))


@given(
    seed=st.integers(0, 2**16),
    stride=st.sampled_from([128, 256]),
    validation=st.sampled_from([0.0, 0.3]),
    gap=st.sampled_from([0, 30, 400]),
)
@settings(max_examples=25, deadline=None)
def test_cross_temporal_tests_known_places_at_later_dates(seed, stride, validation, gap):
    queries, pairs, references = city(600, columns=8, stride=stride, seed=seed)
    random = np.random.default_rng(seed)
    dates = np.array(
        ["2019", "2019-06-30", "2020-05", "2021-01-01T08:00:00Z", "2021", "2021-06-15", "2023-01", "", "?"]
    )
    queries = dated(queries, random.choice(dates, 600).tolist())
    recipe = SplitRecipe(
        protocol="cross-temporal",
        test_after="2021-06-01",
        validation_fraction=validation,
        block_m=200,
        min_gap_days=gap,
    )
    table = split(queries, pairs, references, recipe, seed)
    assert set(table["split"].to_pylist()) >= {"train", "test"}
    captured, side, reason = queries["captured"].to_pylist(), table["split"].to_pylist(), table["reason"].to_pylist()
    early = {"2019", "2019-06-30", "2020-05", "2021-01-01T08:00:00Z"}
    place = dict(zip(*(p.to_pylist() for p in (pairs["query_id"], pairs["reference_id"])), strict=False))
    for query, reference, relation in zip(
        *(pairs[name].to_pylist() for name in ("query_id", "reference_id", "relation")), strict=True
    ):
        if relation == "positive":
            place[query] = reference
    trained = defaultdict(set)
    for row, name in enumerate(queries["query_id"].to_pylist()):
        if side[row] == "train":
            trained[place[name]].add(captured[row])
    for row, name in enumerate(queries["query_id"].to_pylist()):
        if name not in place:
            assert reason[row] == NO_REFERENCE
        elif captured[row] in ("", "?", "2021"):  # the year 2021 lies on both sides of June
            assert (side[row], reason[row]) == ("", NO_DATE)
        elif captured[row] in early:
            assert side[row] in ("train", "validation") or reason[row] == SPLIT_BUFFER
        elif not trained[place[name]]:
            assert (side[row], reason[row]) == ("", OTHER_PLACE)
        elif (
            gap == 400 and captured[row] == "2021-06-15" and trained[place[name]] & {"2021-01-01T08:00:00Z", "2020-05"}
        ):
            assert reason[row] in (DATE_GAP, "")
            assert (side[row] == "") == (reason[row] == DATE_GAP)
        else:
            assert side[row] == "test" or reason[row] == DATE_GAP
    # Training and validation share no reference.
    only = {name for name, value in zip(queries["query_id"].to_pylist(), side, strict=True) if value != "test"}
    mine = pairs.filter(pa.array([name in only for name in pairs["query_id"].to_pylist()]))
    assert all(len(sides) == 1 for sides in sides_of_references(mine, table).values())
    order = random.permutation(600)
    shuffled = queries.take(order)
    again = split(shuffled, pair(shuffled, references), references, recipe, seed)
    assert again.sort_by("query_id").equals(table.sort_by("query_id"))


def test_days_between_dates_of_one_place():
    references = reference_table(dict.fromkeys(windows(3, 1), "a"))
    queries = dated(
        query_table([100, 110, 120], [100, 110, 120], ["a"] * 3), ["2021-05-31", "2021-06-01", "2021-07-01"]
    )
    recipe = SplitRecipe(protocol="cross-temporal", test_after="2021-06", min_gap_days=31, validation_fraction=0)
    table = split(queries, pair(queries, references), references, recipe)
    assert table["split"].to_pylist() == ["train", "", "test"]
    assert table["reason"].to_pylist() == ["", DATE_GAP, ""]


def test_random_deals_single_queries_and_shares_references():
    queries, pairs, references = city(2000)
    table = split(queries, pairs, references, SplitRecipe(protocol="random", test_fraction=0.5), 3)
    counts = Counter(table["split"].to_pylist())
    assert counts == {"test": 1000, "validation": 100, "train": 900}
    assert any(len(sides) > 1 for sides in sides_of_references(pairs, table).values())
    order = np.random.default_rng(0).permutation(2000)
    shuffled = queries.take(order)
    again = split(
        shuffled,
        pair(shuffled, references),
        references,
        SplitRecipe(protocol="random", test_fraction=0.5),
        3,
    )
    assert again.sort_by("query_id").equals(table.sort_by("query_id"))


@pytest.mark.parametrize("protocol", ["same-area", "random"])
def test_strata_have_equal_shares(protocol):
    queries, pairs, references = city(4000, seed=4)
    level = np.zeros(4000, np.int64)
    positive = pairs.filter(pa.array([r == "positive" for r in pairs["relation"].to_pylist()]))
    level[positive["query_row"].to_numpy()] = quarter(positive["decentrality"].to_numpy())

    def unevenness(**settings):
        recipe = SplitRecipe(protocol=protocol, test_fraction=0.3, validation_fraction=0.0, block_m=150, **settings)
        table = split(queries, pairs, references, recipe, 4)
        assert protocol == "random" or all(len(s) == 1 for s in sides_of_references(pairs, table).values())
        is_test = np.array(table["split"].to_pylist()) == "test"
        return max(abs(is_test[level == each].mean() - 0.3) for each in range(4))

    even = unevenness(stratify=True)
    assert even < 0.01  # whole blocks hold about 60 queries each
    assert even < unevenness()


def test_what_curation_left_out_goes_nowhere():
    queries, pairs, references = city(200)
    gone = pa.table({"query_id": ["q00003", "q00011"], "reason": ["edge_margin", "blur"]})
    for protocol in ("same-area", "random", "none"):
        table = split(queries, pairs, references, SplitRecipe(protocol=protocol), 0, gone)
        assert [table["split"][row].as_py() for row in (3, 11)] == ["", ""]
        assert [table["reason"][row].as_py() for row in (3, 11)] == ["edge_margin", "blur"]
        assert table["split"].to_pylist().count("") < 60
