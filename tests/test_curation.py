"""Curation: margins, queries per positive, balance; what is left out has its reason, and order never matters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import city, query_table, reference_table
from toy_tables import windows

from cvgl_data.curation import BALANCE, EDGE_MARGIN, PER_POSITIVE, curate, quarter
from cvgl_data.geo import gsd_m
from cvgl_data.pairing import pair
from cvgl_data.recipe import CurationRecipe


@pytest.fixture(scope="module")
def seattle():
    queries, pairs, references = city(3000, columns=12)
    gsd = gsd_m(references["lat"].to_numpy(), 18)
    return queries, pairs, references.append_column("gsd_m", pa.array(gsd))


def positives(pairs, table=None):
    kept = pairs.filter(pc.equal(pairs["relation"], "positive"))
    if table is not None:
        kept = kept.filter(pc.invert(pc.is_in(kept["query_id"], value_set=table["query_id"])))
    return kept


def test_nothing_is_asked_for(seattle):
    assert curate(*seattle, CurationRecipe()).num_rows == 0


def test_margin_is_metres_from_the_nearest_edge(seattle):
    _, pairs, references = seattle
    table = curate(*seattle, CurationRecipe(edge_margin_m=10.0))
    assert set(table["reason"].to_pylist()) == {EDGE_MARGIN}
    gsd = float(references["gsd_m"][0].as_py())

    def edge_m(rows):
        u, v = rows["u"].to_numpy(), rows["v"].to_numpy()
        return np.minimum.reduce([u, v, 256 - u, 256 - v]) * gsd

    kept = positives(pairs, table)
    assert edge_m(kept).min() >= 10.0 - 0.05
    gone = positives(pairs).filter(pc.is_in(positives(pairs)["query_id"], value_set=table["query_id"]))
    assert edge_m(gone).max() < 10.0 + 0.05
    side_m = 256 * gsd
    assert kept.num_rows / 3000 == pytest.approx((1 - 20 / side_m) ** 2, abs=0.03)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_queries_per_positive(seattle, most):
    _, pairs, _ = seattle
    table = curate(*seattle, CurationRecipe(max_queries_per_positive=most))
    assert set(table["reason"].to_pylist()) == {PER_POSITIVE}
    before = Counter(positives(pairs)["reference_id"].to_pylist())
    after = Counter(positives(pairs, table)["reference_id"].to_pylist())
    assert after == {name: min(count, most) for name, count in before.items()}


def test_balance_makes_the_quarters_of_every_area_equal(seattle):
    queries, pairs, references = seattle
    area = pa.array(["a" if index % 3 else "b" for index in range(queries.num_rows)])
    queries = queries.set_column(queries.column_names.index("area"), "area", area)
    table = curate(queries, pairs, references, CurationRecipe(balance_decentrality=True))
    assert set(table["reason"].to_pylist()) == {BALANCE}
    kept = positives(pairs, table)
    before, after = (
        Counter(
            zip(
                queries["area"].take(rows["query_row"]).to_pylist(),
                quarter(rows["decentrality"].to_numpy()).tolist(),
                strict=True,
            )
        )
        for rows in (positives(pairs), kept)
    )
    for name in ("a", "b"):
        fewest = min(before[name, level] for level in range(4))
        assert [after[name, level] for level in range(4)] == [fewest] * 4


def test_quarters_that_cannot_occur_do_not_count():
    """In VIGOR's half-overlapping layout no positive is more than half decentral."""
    references = reference_table(dict.fromkeys(windows(20, 20, stride=128), "a"))
    references = references.append_column("gsd_m", pa.array(gsd_m(references["lat"].to_numpy(), 18)))
    random = np.random.default_rng(1)
    queries = query_table(random.uniform(200, 2400, 900), random.uniform(200, 2400, 900), ["a"] * 900)
    pairs = pair(queries, references)
    table = curate(queries, pairs, references, CurationRecipe(balance_decentrality=True))
    levels = Counter(quarter(positives(pairs, table)["decentrality"].to_numpy()).tolist())
    assert levels.keys() == {0, 1}
    assert levels[0] == levels[1] > 150


def test_edges_of_quarters():
    assert quarter(np.array([0.0, 0.2499, 0.25, 0.5, 0.75, 1.0])).tolist() == [0, 0, 1, 2, 3, 3]


@given(
    margin=st.sampled_from([0.0, 5.0, 30.0]), most=st.integers(0, 3), balance=st.booleans(), seed=st.integers(0, 2**20)
)
@settings(max_examples=25, deadline=None)
def test_rules_act_in_turn_and_order_never_matters(seattle, margin, most, balance, seed):
    queries, pairs, references = seattle
    recipe = CurationRecipe(edge_margin_m=margin, max_queries_per_positive=most, balance_decentrality=balance)
    table = curate(queries, pairs, references, recipe, seed)
    assert len(set(table["query_id"].to_pylist())) == table.num_rows
    random = np.random.default_rng(seed)
    shuffled = queries.take(random.permutation(queries.num_rows))
    other = references.take(random.permutation(references.num_rows))
    assert curate(shuffled, pair(shuffled, other), other, recipe, seed).equals(table)
    if most:
        counts = Counter(positives(pairs, table)["reference_id"].to_pylist())
        assert max(counts.values()) <= most
    if balance and table.num_rows < queries.num_rows:
        levels = Counter(quarter(positives(pairs, table)["decentrality"].to_numpy()).tolist())
        assert len(set(levels.values())) == 1


def test_the_seed_draws(seattle):
    recipe = CurationRecipe(max_queries_per_positive=2)
    one, two = (curate(*seattle, recipe, seed) for seed in (1, 2))
    assert one.num_rows == two.num_rows
    assert not one.equals(two)
