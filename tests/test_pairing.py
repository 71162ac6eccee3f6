"""Pairs and decentrality: golden values, theory of uniform queries, and a brute-force oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tables import ORIGIN_X, ORIGIN_Y, ZOOM, queries, references, windows

from cvgl_data.errors import SchemaError
from cvgl_data.geo import lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.pairing import decentrality, decentrality_summary, pair
from cvgl_data.schema import PAIRS

GOLDEN = Path(__file__).with_name("golden")


def window_table(rows: list[tuple[str, int, int, int, int]]) -> pa.Table:
    return pa.table(
        dict(zip(("reference_id", "x", "y", "size", "zoom"), map(list, zip(*rows, strict=True)), strict=True))
    )


def query_table(x, y, zoom: int = ZOOM) -> pa.Table:
    lon, lat = lonlat_from_pixel(np.asarray(x, float), np.asarray(y, float), zoom)
    return pa.table({"query_id": [f"q{index:06d}" for index in range(len(lon))], "lon": lon, "lat": lat})


@pytest.mark.parametrize(
    ("u", "v", "size", "max_norm", "l2", "iou"),
    [
        (112, 112, 224, 0, 0, 1),
        (168, 112, 224, 0.5, 0.3536, 0.6),
        (168, 168, 224, 0.5, 0.5, 9 / 23),
        (224, 112, 224, 1, 0.7071, 1 / 3),
        (224, 224, 224, 1, 1, 1 / 7),
        (370, 420, 640, 0.3125, 0.2471, 0.6364),  # VIGOR label (100, -50)
    ],
)
def test_golden_decentrality(u, v, size, max_norm, l2, iou):
    assert decentrality(u, v, size) == pytest.approx((max_norm, l2, iou), abs=5e-5)


def test_published_examples_of_high_and_low_decentrality():
    """DReSS's figure, whose positions are known to a tenth of a pixel."""
    assert decentrality(190.8, 184.1, 224) == pytest.approx((0.704, 0.675, 0.282), abs=1e-3)
    assert decentrality(85.1, 84.2, 224) == pytest.approx((0.248, 0.244, 0.627), abs=1e-3)


@pytest.mark.parametrize(
    ("stride_ratio", "mean", "mean_l2", "quarters"),
    [
        (1.0, 2 / 3, 0.5411, (0.0625, 0.1875, 0.3125, 0.4375)),
        (0.75, 0.5, 0.4057, (1 / 9, 3 / 9, 5 / 9, 0)),
        (0.5, 1 / 3, 0.2705, (0.25, 0.75, 0, 0)),
    ],
)
def test_theory_of_uniform_queries(stride_ratio, mean, mean_l2, quarters):
    """Two million queries, each seen from the nearest centre of a grid of that stride."""
    size, num = 256, 2_000_000
    offsets = np.random.default_rng(1).uniform(-0.5, 0.5, (2, num)) * stride_ratio * size + size / 2
    measured = decentrality(*offsets, size)
    assert measured.decentrality.mean() == pytest.approx(mean, abs=1e-3)
    assert measured.decentrality_l2.mean() == pytest.approx(mean_l2, abs=1e-3)
    assert np.histogram(measured.decentrality, (0, 0.25, 0.5, 0.75, 1))[0] / num == pytest.approx(quarters, abs=2e-3)


def test_pair_follows_the_theory_of_vigor_grids():
    """Stride half the side: exactly four covering references inside, the positive in its central quarter."""
    random = np.random.default_rng(2)
    x, y = (random.uniform(128, 20 * 128, 20_000) for _ in range(2))
    pairs = pair(query_table(ORIGIN_X + x, ORIGIN_Y + y), references(windows(20, 20, stride=128)))
    counts = np.bincount(pairs["query_row"].to_numpy(), minlength=20_000)
    assert (counts == 4).all()
    row = decentrality_summary(pairs).to_pylist()[0]
    assert (row["group"], row["relation"], row["num_pairs"]) == ("all", "positive", 20_000)
    assert row["mean"] == pytest.approx(1 / 3, abs=5e-3)
    assert row["mean_l2"] == pytest.approx(0.2705, abs=5e-3)
    assert row["quarter_3"] == row["quarter_4"] == row["share_above_half"] == 0


def test_golden_toy_grid():
    """L = 100, query (137, 172), centres at 50 + k s."""
    at = query_table([ORIGIN_X + 137.0], [ORIGIN_Y + 172.0])

    def grid(stride):
        steps = range(0, 300, stride)
        return window_table([(f"{i:03d}_{j:03d}", ORIGIN_X + i, ORIGIN_Y + j, 100, ZOOM) for i in steps for j in steps])

    only = pair(at, grid(100)).to_pylist()
    assert [(row["reference_id"], row["relation"]) for row in only] == [("100_100", "positive")]
    assert (only[0]["u"], only[0]["v"]) == pytest.approx((37, 72), abs=1e-6)
    assert only[0]["decentrality"] == pytest.approx(0.44, abs=1e-6)

    four = pair(at, grid(50)).to_pylist()
    assert [row["reference_id"] for row in four] == ["100_100", "100_150", "050_100", "050_150"]
    assert [row["decentrality"] for row in four] == pytest.approx([0.44, 0.56, 0.74, 0.74], abs=1e-6)
    assert [row["relation"] for row in four] == ["positive"] + ["semi-positive"] * 3


def test_columns_and_offsets():
    layout = references(windows(3, 3))
    pairs = pair(queries(np.array([ORIGIN_X + 300.0]), np.array([ORIGIN_Y + 500.0])), layout)
    assert pairs.schema == PAIRS
    assert pairs.num_rows == 1
    row = pairs.to_pylist()[0]
    assert layout["reference_id"][row["reference_row"]].as_py() == row["reference_id"]
    assert (row["u"], row["v"]) == pytest.approx((44, 244), abs=1e-6)
    gsd = layout["gsd_m"][row["reference_row"]].as_py()
    # Query is west (u < 128) and south (v > 128) of the centre.
    assert row["offset_east_m"] == pytest.approx(-84 * gsd)
    assert row["offset_north_m"] == pytest.approx(-116 * gsd)
    # The Mercator sphere is 0.11 % larger than the mean Earth.
    assert np.hypot(row["offset_east_m"], row["offset_north_m"]) == pytest.approx(row["distance_m"], rel=2e-3)
    assert row["covers"]


def test_query_on_an_edge_is_covered_and_ties_go_to_the_smaller_id():
    corner = pa.table({"query_id": ["q"], "lon": [0.0], "lat": [0.0]})  # a corner of four tiles, exact in float64
    half = 128 * 2**ZOOM
    layout = window_table(
        [
            (name, half - 256 * west, half - 256 * north, 256, ZOOM)
            for name, west, north in [("d", 0, 0), ("b", 1, 0), ("c", 0, 1), ("a", 1, 1)]
        ]
    )
    rows = pair(corner, layout).to_pylist()
    assert [row["reference_id"] for row in rows] == ["a", "b", "c", "d"]
    assert {row["decentrality"] for row in rows} == {1.0}
    assert [row["relation"] for row in rows].count("positive") == 1


def test_antimeridian():
    """Windows may be numbered beyond the world's width, queries lie on either side."""
    world = 256 * 2**ZOOM
    lon = [179.9999, -179.9999, 180.0, -180.0]
    at = pa.table({"query_id": list("abcd"), "lon": lon, "lat": [0.0001] * 4})
    _, y = pixel_from_lonlat(0, 0.0001, ZOOM)
    for x in (world - 128, -128):
        rows = pair(at, window_table([("w", x, int(y) - 128, 256, ZOOM)])).to_pylist()
        assert [row["query_id"] for row in rows] == list("abcd")
        u = [row["u"] for row in rows]
        assert u[0] < 128 < u[1]
        assert u[2] == u[3] == 128
        assert [row["offset_east_m"] for row in rows] == pytest.approx([-11.13, 11.13, 0, 0], abs=0.01)
        assert [row["distance_m"] for row in rows] == pytest.approx([11.12, 11.12, 0, 0], abs=0.35)


@given(
    data=st.data(),
    sizes=st.lists(
        st.sampled_from([(18, 256), (18, 224), (17, 256), (19, 512), (18, 100)]), min_size=1, max_size=3, unique=True
    ),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_equals_brute_force_on_mixed_layouts(data, sizes, seed):
    random = np.random.default_rng(seed)
    rows = []
    for zoom, size in sizes:
        scale = 2.0 ** (zoom - ZOOM)
        for index in range(data.draw(st.integers(1, 30))):
            x, y = ((ORIGIN_X + random.integers(0, 600)) * scale, (ORIGIN_Y + random.integers(0, 600)) * scale)
            rows.append((f"{zoom}_{size}_{index:03d}", int(x), int(y), size, zoom))
    layout = window_table(rows)
    at = query_table(ORIGIN_X + random.uniform(0, 900, 40), ORIGIN_Y + random.uniform(0, 900, 40))
    pairs = pair(at, layout)

    expected = {}
    for query, (lon, lat) in enumerate(zip(at["lon"].to_pylist(), at["lat"].to_pylist(), strict=True)):
        for name, x, y, size, zoom in rows:
            px, py = (float(value) for value in pixel_from_lonlat(lon, lat, zoom))
            if x <= px <= x + size and y <= py <= y + size:
                expected[query, name] = np.hypot(px - x - size / 2, py - y - size / 2) / (size / np.sqrt(2))
    found = dict(
        zip(
            zip(pairs["query_row"].to_pylist(), pairs["reference_id"].to_pylist(), strict=True),
            pairs["decentrality_l2"].to_pylist(),
            strict=True,
        )
    )
    assert found == pytest.approx(expected)
    assert len(found) == pairs.num_rows
    for query in {query for query, _ in expected}:
        positive = [
            row["reference_id"]
            for row in pairs.to_pylist()
            if row["query_row"] == query and row["relation"] == "positive"
        ]
        least = min(value for (row, _), value in expected.items() if row == query)
        assert len(positive) == 1
        assert expected[query, positive[0]] == pytest.approx(least)


def test_the_order_of_rows_does_not_matter():
    layout = references(windows(6, 6, stride=128))
    at = query_table(ORIGIN_X + np.linspace(100, 700, 50), ORIGIN_Y + np.linspace(650, 50, 50))
    order = np.random.default_rng(0).permutation
    shuffled = pair(at.take(order(50)), layout.take(order(36)))
    ordered = pair(at, layout)
    keep = [name for name in PAIRS.names if not name.endswith("_row")]
    assert shuffled.select(keep).equals(ordered.select(keep))


def test_queries_without_position_or_reference_are_in_no_pair():
    at = pa.table({"query_id": ["far", "null"], "lon": [10.0, None], "lat": [10.0, 47.6]})
    pairs = pair(at, references(windows(2, 2)))
    assert pairs.num_rows == 0
    assert pairs.schema == PAIRS
    assert pair(at.slice(0, 0), references([])).num_rows == 0


def test_bad_tables():
    layout = references(windows(2, 1))
    with pytest.raises(SchemaError, match="queries have no column 'lat'"):
        pair(pa.table({"query_id": ["a"], "lon": [0.0]}), layout)
    with pytest.raises(SchemaError, match="query_id 'a' appears more than once"):
        pair(pa.table({"query_id": ["a", "b", "a"], "lon": [0.0] * 3, "lat": [0.0] * 3}), layout)
    with pytest.raises(SchemaError, match="references: reference_id"):
        pair(query_table([1.0], [1.0]), pa.concat_tables([layout, layout]))


def test_summary_by_group():
    layout = references(windows(4, 4))
    at = query_table(ORIGIN_X + np.array([128.0, 250.0, 600.0]), ORIGIN_Y + np.array([128.0, 128.0, 640.0]))
    pairs = pair(at, layout)
    table = decentrality_summary(pairs, ["east", "east", "west"])
    rows = {(row["group"], row["relation"]): row for row in table.to_pylist()}
    assert [group for group, _ in rows][::2] == ["all", "east", "west"]
    assert rows["east", "positive"]["quarter_1"] == 1
    assert rows["east", "positive"]["quarter_4"] == 1
    assert rows["east", "positive"]["share_above_half"] == 0.5
    assert rows["west", "covering"]["num_pairs"] == 1
    assert sum(rows["all", "positive"][f"quarter_{quarter}"] for quarter in (1, 2, 3, 4)) == 3
    empty = decentrality_summary(pairs.slice(0, 0)).to_pylist()[0]
    assert empty["num_pairs"] == 0
    assert empty["mean"] is None


@pytest.mark.parametrize("city", ["Chicago", "NewYork", "Seattle"])
def test_published_labels_of_vigor_follow_from_the_coordinates(city):
    """The corrected labels: pixels of 640 px windows at zoom 20, centre minus query, north and east positive."""
    ours, labels = [], []
    for line in (GOLDEN / "vigor" / f"{city}.txt").read_text(encoding="utf-8").splitlines():
        pano, *tiles = line.split()
        lat, lon = (float(part) for part in pano.split(",")[1:3])
        x, y = pixel_from_lonlat(lon, lat, 20)
        for tile, north, east in zip(tiles[::3], tiles[1::3], tiles[2::3], strict=True):
            tile_lat, tile_lon = (float(part) for part in tile.removesuffix(".png").split("_")[1:])
            center_x, center_y = pixel_from_lonlat(tile_lon, tile_lat, 20)
            ours.append((320 + x - center_x, 320 + y - center_y))
            labels.append((320 - float(east), 320 + float(north)))
    error = np.array(ours) - np.array(labels)
    assert len(error) == 2000
    assert np.abs(error.mean(axis=0)).max() <= 0.1
    assert error.std(axis=0).max() <= 2.5
