from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_tables import ORIGIN_X, ORIGIN_Y, pack, queries, references, scattered, windows

from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.errors import DatasetError, GridError
from cvgl_data.pairing import decentrality, pair
from cvgl_data.schema import DISTANCE_MAP, FAILURES, PAIRS, QUALITY, QUERIES, REFERENCES, without_image
from cvgl_data.statistics import ECDF_AT, distribution, read_extras, statistics, stride_ratio, summary, tables, theory

FAR = 40 * 256


def dataset(stride: int = 256, num: int = 300) -> CrossViewDataset:
    """Two areas of 6 x 5 cells; queries of 'east' are in the test split."""
    steps = (5 * 256) // stride + 1, (4 * 256) // stride + 1
    refs = pa.concat_tables(
        [references(windows(*steps, stride), "west"), references(windows(*steps, stride, x=ORIGIN_X + FAR), "east")]
    )
    west = scattered(num, 6, 5, seed=1, area="west", prefix="w")
    random = np.random.default_rng(2)
    x, y = random.uniform(0, 6 * 256, num // 2), random.uniform(0, 5 * 256, num // 2)
    both = pa.concat_tables([queries(ORIGIN_X + FAR + x, ORIGIN_Y + y, "east", "e"), west])
    split = ["test"] * (num // 2) + ["train"] * num
    plain = both.drop_columns("image").append_column("split", pa.array(split))
    refs = refs.drop_columns("image")
    return CrossViewDataset(refs, plain, pair(plain, refs), DISTANCE_MAP.empty_table(), {})


@pytest.mark.parametrize(
    ("ratio", "mean", "mean_l2", "quarters"),
    [
        (0.5, 1 / 3, 0.2705, (0.25, 0.75, 0, 0)),
        (0.75, 0.5, 0.4057, (1 / 9, 3 / 9, 5 / 9, 0)),
        (1.0, 2 / 3, 0.5411, (0.0625, 0.1875, 0.3125, 0.4375)),
    ],
)
def test_theory_gives_the_published_numbers(ratio, mean, mean_l2, quarters):
    expected = theory(ratio)
    assert expected.mean == pytest.approx(mean)
    assert expected.mean_l2 == pytest.approx(mean_l2, abs=1.5e-4)
    assert expected.quarters == pytest.approx(quarters)
    assert expected.cdf([0, ratio, 1]).tolist() == [0, 1, 1]
    assert expected.cdf_l2([0, ratio, 1]) == pytest.approx([0, 1, 1])
    assert expected.cdf(expected.quantile(0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize("stride", [128, 192, 256])
def test_two_million_uniform_queries_agree_with_theory(stride):
    random, side = np.random.default_rng(0), 256
    # Anywhere inside a large grid: the positive is the window with the nearest centre.
    at = random.uniform(10 * stride, 20 * stride, (2, 2_000_000))
    u, v = at - np.round((at - side / 2) / stride) * stride
    found = decentrality(u, v, side)
    expected = theory(stride / side)
    assert found.decentrality.mean() == pytest.approx(expected.mean, abs=1e-3)
    assert found.decentrality_l2.mean() == pytest.approx(expected.mean_l2, abs=1e-3)
    for values, cdf in ((found.decentrality, expected.cdf), (found.decentrality_l2, expected.cdf_l2)):
        assert np.abs(np.asarray(distribution(values).ecdf) - cdf(ECDF_AT)).max() < 2e-3
    assert np.asarray(distribution(found.decentrality).quarters) / 2e6 == pytest.approx(expected.quarters, abs=2e-3)


@given(st.floats(0.01, 1.0), st.floats(0.0, 1.0))
def test_theory_is_a_distribution(ratio, at):
    expected = theory(ratio)
    for cdf in (expected.cdf, expected.cdf_l2):
        assert 0 <= cdf(at) <= 1
        assert cdf(at) <= cdf(min(at + 0.05, 1.0)) + 1e-12
    # The mean is the area above the distribution function.
    steps = (np.arange(20_000) + 0.5) / 20_000
    assert (1 - expected.cdf_l2(steps)).mean() == pytest.approx(expected.mean_l2, abs=1e-3)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, float("nan")])
def test_theory_refuses_what_is_no_grid(ratio):
    with pytest.raises(GridError, match="more than 0 and at most 1"):
        theory(ratio)


def ratio_of(layout):
    return stride_ratio(*(np.array(column) for column in zip(*layout, strict=True)))


@pytest.mark.parametrize(
    ("layout", "ratio"),
    [
        (windows(6, 5), 1.0),
        (windows(6, 5, 128), 0.5),
        (windows(6, 5, 192), 0.75),
        (windows(7, 1), 1.0),
        (windows(1, 7, 64), 0.25),
        ([w for w in windows(9, 9) if not (w.x > ORIGIN_X + 4 * 256 and w.y > ORIGIN_Y + 5 * 256)], 1.0),
        (windows(4, 4)[:1], None),
        (windows(4, 4, 300), None),  # gaps
        (windows(4, 4) + windows(1, 1, size=128, x=ORIGIN_X + 9 * 256), None),
        (windows(4, 4) + windows(1, 1, x=ORIGIN_X + 37, y=ORIGIN_Y + 1), None),
        (windows(8, 8)[::3], None),  # a sample of a grid is none
        ([w for w in windows(5, 5) if (w.x - ORIGIN_X) == (w.y - ORIGIN_Y)], None),
    ],
)
def test_stride_is_found_only_where_windows_are_one_grid(layout, ratio):
    assert ratio_of(layout) == ratio


def test_groups_count_what_a_loop_counts():
    data = dataset(stride=128)
    found = statistics(data)
    assert [(group.kind, group.name) for group in found.groups] == [
        ("all", ""), ("split", "train"), ("split", "test"), ("area", "east"), ("area", "west"),
    ]  # fmt: skip
    rows = data.pairs.to_pylist()
    area = data.queries["area"].to_pylist()
    for name in ("east", "west"):
        group = found.group("area", name)
        mine = [row for row in rows if area[row["query_row"]] == name]
        positives = [row for row in mine if row["relation"] == "positive"]
        owners = {row["reference_row"] for row in positives}
        assert group.num_queries == area.count(name)
        assert group.num_covered == len(positives) == group.decentrality.summary.count
        assert group.covering.summary.count == len(mine) > 2 * len(positives)
        assert group.covering_per_query == pytest.approx(len(mine) / len(positives))
        assert group.num_references == data.references["area"].to_pylist().count(name)
        assert group.num_positives == len(owners)
        assert group.distractor_share == pytest.approx(1 - len(owners) / group.num_references)
        assert sum(map(sum, group.density)) == len(positives)
        assert sum(q * r for q, r in group.queries_per_reference.items()) == len(positives)
        assert sum(group.queries_per_reference.values()) == group.num_references
        assert group.stride_ratio == 0.5
        values = sorted(row["decentrality"] for row in positives)
        assert group.decentrality.summary.median == pytest.approx(np.median(values))
        assert group.decentrality.share_above_half == sum(value > 0.5 for value in values) / len(values)
        assert group.decentrality.ecdf[30] == pytest.approx(sum(v <= 0.3 for v in values) / len(values), abs=1e-6)
        assert group.offset_east_m.mean == pytest.approx(np.mean([row["offset_east_m"] for row in positives]))
    assert asdict(found.group("split", "test")) | {"kind": "", "name": ""} == asdict(found.group("area", "east")) | {
        "kind": "", "name": "",
    }  # fmt: skip


def test_density_is_north_up_and_west_left():
    refs = references(windows(1, 1))
    quers = queries(np.array([ORIGIN_X + 3.0]), np.array([ORIGIN_Y + 100.0])).drop_columns("image")
    quers = quers.append_column("split", pa.array(["train"]))
    data = CrossViewDataset(refs, quers, pair(quers, refs), DISTANCE_MAP.empty_table(), {})
    density = np.array(statistics(data).group().density)
    assert np.argwhere(density).tolist() == [[7, 0]]


def test_gallery_of_a_group_is_that_of_select():
    data = dataset()
    # A query at the rim of 'west' that a window of 'east' owns: the gallery of its split grows by that window.
    index = data.references.schema.get_field_index("area")
    areas = data.references["area"].to_pylist()
    first_west = areas.index("west")
    areas[first_west] = "other"
    data = replace(data, references=data.references.set_column(index, "area", pa.array(areas)))
    found = statistics(data)
    for split in ("train", "test"):
        part = data.select(split)
        group = found.group("split", split)
        assert group.num_references == part.references.num_rows
        assert group.num_queries == part.queries.num_rows
        assert group.covering.summary.count == part.pairs.num_rows
    assert found.group("area", "other").num_references == 1
    assert found.group("area", "other").num_queries == 0


def test_dates_of_any_precision_are_counted():
    data = dataset(num=8)
    dates = ["2021", "2021-03", "2021-03-04", "2021-03-04T05:06:07Z", "2022-12-31 23:59", "", None, "<b>", "2021-13-01"]
    dates = (dates * 2)[: data.queries.num_rows]
    index = data.queries.schema.get_field_index("captured")
    data = replace(data, queries=data.queries.set_column(index, "captured", pa.array(dates, pa.string())))
    rows = [row for row in statistics(data).captured if row["kind"] == "query"]
    counts = {}
    for row in rows:
        key = (row["year"], row["month"])
        counts[key] = counts.get(key, 0) + row["images"]
    known = {"2021": (2021, None), "2021-03": (2021, 3), "2021-03-04": (2021, 3), "2021-03-04T05:06:07Z": (2021, 3)}
    known["2022-12-31 23:59"] = (2022, 12)
    expected = {}
    for date in dates:
        key = known.get(date, (None, None))
        expected[key] = expected.get(key, 0) + 1
    assert counts == expected
    assert {row["area"] for row in rows} == {"east", "west"}


def test_quality_reasons_and_failures_are_counted_by_area():
    quality = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "kind": ["query", "query", "reference", "query"],
            "area": ["west", "west", "west", "east"],
            "keep": [True, False, True, None],
            "reason": ["", "blur, dark", "blur", None],
        }
    )
    failures = pa.Table.from_pylist(
        [dict.fromkeys(FAILURES.names, "x") | {"status": status} for status in ("timeout", "timeout", "uncovered")],
        FAILURES,
    )
    found = statistics(dataset(num=8), failures=failures, quality=quality)
    rows = [(row["kind"], row["area"], row["reason"], row["kept"], row["left_out"]) for row in found.quality]
    assert rows == [
        ("query", "east", "", 1, 0),
        ("query", "west", "", 1, 0),
        ("query", "west", "blur", 0, 1),
        ("query", "west", "dark", 0, 1),
        ("reference", "west", "blur", 1, 0),
    ]
    assert [(row["status"], row["items"]) for row in found.failures] == [("timeout", 2), ("uncovered", 1)]


def test_tables_are_regular_and_everything_is_json():
    found = statistics(dataset())
    json.dumps(asdict(found), allow_nan=False)
    shown = tables(found)
    assert list(shown) == ["decentrality", "gallery", "queries per reference", "years", "months", "sources"]
    for rows in shown.values():
        assert all(list(row) == list(rows[0]) for row in rows)
    json.dumps(shown, allow_nan=False)
    by_relation = {row["relation"]: row for row in shown["decentrality"] if row["group"] == "all"}
    measured, expected = by_relation["positive"], by_relation["theory, stride 1 L"]
    assert measured["mean"] == pytest.approx(expected["mean"], abs=0.03)
    assert sum(expected[f"quarter_{index}"] for index in (1, 2, 3, 4)) == pytest.approx(measured["pairs"])
    assert [row["queries"] for row in shown["queries per reference"]][-1] == "10+"


def test_nothing_gives_nothing():
    quers = without_image(QUERIES).append(pa.field("split", pa.string())).empty_table()
    refs = without_image(REFERENCES).empty_table()
    found = statistics(CrossViewDataset(refs, quers, PAIRS.empty_table(), DISTANCE_MAP.empty_table(), {}))
    assert len(found.groups) == 1
    assert found.group().distractor_share is None
    assert found.group().decentrality.summary.mean is None
    assert list(tables(found)) == ["decentrality", "gallery"]
    json.dumps(asdict(found), allow_nan=False)
    with pytest.raises(KeyError):
        found.group("area", "nowhere")


def test_summary_leaves_out_what_is_no_number():
    assert summary(np.array([1.0, np.nan, 3.0, np.inf])).count == 2
    assert summary(np.array([1.0, np.nan, 3.0])).mean == 2


@pytest.mark.parametrize("value", [0.0, 0.05, 0.999, 1.0, 1.0 + 1e-12])
def test_every_value_is_in_one_bin(value):
    found = distribution(np.array([value]))
    assert sum(found.histogram) == sum(found.quarters) == 1
    assert found.ecdf[-1] == 1


def test_extras_are_read_from_a_packed_dataset(tmp_path):
    pack(tmp_path, references(windows(4, 4)), scattered(60, 4, 4))
    failures, quality = read_extras(tmp_path)
    assert quality is None
    folder = tmp_path / "data" / "quality"
    folder.mkdir()
    rows = [{"id": "x", "kind": "query", "area": "seattle", "keep": True, "reason": ""}]
    pq.write_table(pa.Table.from_pylist(rows, QUALITY), folder / "a.parquet")
    pq.write_table(pa.table({**{key: [value] for key, value in rows[0].items()}, "blur": [1.5]}), folder / "b.parquet")
    _, quality = read_extras(tmp_path)
    assert quality.num_rows == 2
    found = statistics(open_dataset(tmp_path), failures=failures, quality=quality)
    assert found.quality[0]["kept"] == 2
    assert sum(row["items"] for row in found.failures) == failures.num_rows
    pq.write_table(pa.table({"id": ["x"]}), folder / "c.parquet")
    with pytest.raises(DatasetError, match=r"c\.parquet' has no column 'area'"):
        read_extras(tmp_path)
    (folder / "c.parquet").write_bytes(b"no")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_extras(tmp_path)
