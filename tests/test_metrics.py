import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_retrieval import COVERING, POSITIVES, SIMS, random_embeddings

from cvgl_models.metrics import (
    QUARTERS,
    Truth,
    hit_rate_cover,
    hit_rate_strict,
    recall_at_1_percent,
    recall_at_k,
    retrieval_report,
)


def make_truth(num_queries, num_references, positives, seed=0):
    rng = np.random.default_rng(seed)
    reference_lonlat = np.stack([np.arange(num_references) * 1e-3, np.zeros(num_references)], 1)
    positives = np.asarray(positives)
    return Truth(
        positives=positives,
        covering=(np.concatenate([[0], np.cumsum(positives >= 0)]), positives[positives >= 0]),
        query_lonlat=reference_lonlat[positives] + [0.0, 2e-4],
        reference_lonlat=reference_lonlat,
        decentrality=rng.uniform(0, 1, num_queries),
    )


def test_toy():
    rank = [0, 1, 2, 1]
    assert recall_at_k(rank, 1) == 0.25
    assert recall_at_k(rank, 5) == 1.0
    assert recall_at_1_percent(rank, 6) == 0.25
    assert hit_rate_strict(torch.tensor(SIMS), torch.eye(6), POSITIVES, COVERING) == 0.5
    assert hit_rate_cover(torch.tensor(SIMS), torch.eye(6), COVERING) == 0.75


@pytest.mark.parametrize(("num_references", "k"), [(1, 1), (100, 1), (101, 2), (250, 3), (90_618, 907)])
def test_one_percent_is_rounded_up(num_references, k):
    rank = np.array([k - 1, k])
    assert recall_at_1_percent(rank, num_references) == 0.5


@settings(deadline=None)
@given(seed=st.integers(0, 1000), extra=st.integers(0, 3))
def test_order_of_the_hit_rates(seed, extra):
    query, reference, positives = random_embeddings(seed)
    rng = np.random.default_rng(seed)
    rows = np.concatenate([[p, *rng.integers(0, len(reference), extra)] for p in positives])
    covering = (np.arange(len(query) + 1) * (extra + 1), rows)
    strict = hit_rate_strict(query, reference, positives, covering)
    top_1 = (query @ reference.T).argmax(1)
    cover = np.mean([top in rows[i * (extra + 1) : (i + 1) * (extra + 1)] for i, top in enumerate(top_1)])
    assert hit_rate_cover(query, reference, covering) == pytest.approx(cover)
    assert cover >= strict >= np.mean(top_1 == positives)


def test_report():
    query, reference, positives = random_embeddings(3, 200, 50)
    query = (query + reference[positives]) / 2
    truth = make_truth(200, 50, positives)
    report = retrieval_report(query, reference, truth)
    top_1 = (query @ reference.T).argmax(1)
    assert report.recall_at_1 == pytest.approx(np.mean(top_1 == positives))
    assert report.hit_rate_cover == report.hit_rate_strict == report.recall_at_1
    assert report.chance_recall_at_1 == 0.02
    counts = np.array([report.num_by_decentrality[name] for name in QUARTERS])
    shares = np.array([report.recall_at_1_by_decentrality[name] for name in QUARTERS])
    assert counts.sum() == 200
    assert (counts * shares).sum() / 200 == pytest.approx(report.recall_at_1)
    # 1e-3 degrees are 111.195 m: a hit is 22.239 m away, the neighbor 113.4 m.
    assert report.recall_within_m["25"] == report.recall_within_m["100"] == pytest.approx(report.recall_at_1)
    assert report.median_error_m == pytest.approx(22.239, abs=1e-3)
    assert json.loads(report.to_json())["num_references"] == 50
    assert dict(report.rows())["recall@1"] == f"{100 * report.recall_at_1:.1f} %"


@pytest.mark.parametrize("value", [0.1, np.nan])
def test_collapsed_embeddings_do_not_inflate_anything(value):
    positives = np.arange(40) % 20
    report = retrieval_report(np.full((40, 4), value), np.full((20, 4), value), make_truth(40, 20, positives))
    assert report.recall_at_1 == report.recall_at_10 == 0.0
    assert report.hit_rate_cover == report.hit_rate_strict == 0.0
    if math.isnan(value):
        assert report.recall_within_m["100"] == 0.0
        assert json.loads(report.to_json())["median_error_m"] is None


def test_queries_that_nothing_covers_are_counted_and_left_out():
    query, reference, positives = random_embeddings(5, 10, 8)
    positives[[2, 7]] = -1
    report = retrieval_report(query, reference, make_truth(10, 8, positives))
    assert (report.num_queries, report.num_uncovered) == (8, 2)
    nobody = retrieval_report(query, reference, make_truth(10, 8, np.full(10, -1)))
    assert nobody.num_queries == 0
    assert json.loads(nobody.to_json())["recall_at_1"] is None
    assert dict(nobody.rows())["recall@1"] == "n/a"


def test_one_reference():
    report = retrieval_report(np.eye(3), np.eye(3)[:1], make_truth(3, 1, np.zeros(3, int)))
    assert report.recall_at_1 == report.recall_at_1_percent == report.chance_recall_at_1 == 1.0


def test_recall_needs_a_positive_k():
    with pytest.raises(ValueError, match="k must"):
        recall_at_k([0], 0)
