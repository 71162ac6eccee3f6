import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_retrieval import COVERING, POSITIVES, SIMS, random_embeddings

from cvgl_data.geo import distance_m
from cvgl_models.legacy_metrics import legacy_metrics
from cvgl_models.metrics import (
    AGE_GAPS,
    QUARTERS,
    Truth,
    hit_rate_cover,
    hit_rate_strict,
    outcomes,
    recall_at_1_percent,
    recall_at_k,
    retrieval_report,
)
from cvgl_models.retrieval import ranks


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


def test_error_curve_and_thresholds():
    query, reference, positives = random_embeddings(4, 100, 30)
    truth = make_truth(100, 30, positives)
    report = retrieval_report(query, reference, truth)
    top_1 = (query @ reference.T).argmax(1)
    away_m = distance_m(*truth.query_lonlat.T, *truth.reference_lonlat[top_1].T)
    for limit, share in {**report.error_curve_m, **report.recall_within_m}.items():
        assert share == pytest.approx(np.mean(away_m <= float(limit)))
    assert list(report.recall_within_m) == ["25", "50", "100", "150"]
    curve = list(report.error_curve_m.values())
    assert curve == sorted(curve)
    assert curve[-1] == 1.0
    assert report.recall_curve["10"] == report.recall_at_10
    assert "50" not in report.recall_curve


def test_precision_of_a_perfect_and_of_a_forced_retriever():
    truth = make_truth(20, 20, np.arange(20))
    assert retrieval_report(np.eye(20), np.eye(20), truth).recall_within_m["100"] == 1.0
    beside = retrieval_report(np.roll(np.eye(20), 1, axis=1)[:19], np.eye(20), make_truth(19, 20, np.arange(19)))
    assert beside.recall_within_m["100"] == 0.0
    assert beside.recall_within_m["150"] == 1.0


def test_ties_take_the_farthest_reference():
    reference = np.eye(5, 4)
    reference[4] = reference[0]  # a duplicate, far away
    truth = make_truth(1, 5, [0])
    found = outcomes(np.eye(1, 4), reference, truth)
    assert (found.top_row[0], found.num_tied[0], found.rank[0]) == (4, 2, 1)
    report = retrieval_report(np.eye(1, 4), reference, truth)
    assert report.recall_at_1 == report.hit_rate_cover == report.hit_rate_strict == report.recall_within_m["150"] == 0.0
    assert report.num_tied == 1
    assert dict(report.rows())["queries whose best score is a tie"] == "1"


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["constant", "nan", "some nan", "duplicates", "two points"]))
def test_broken_embeddings_never_do_better_than_sound_ones(seed, kind):
    query, reference, positives = random_embeddings(seed, 30, 12)
    sound = retrieval_report(np.eye(12)[positives], np.eye(12), make_truth(30, 12, positives))
    query, reference = query.copy(), reference.copy()
    if kind == "constant":
        query[:], reference[:] = query[0], reference[0]
    elif kind == "nan":
        query[:] = np.nan
    elif kind == "some nan":
        reference[::2] = np.nan
    elif kind == "duplicates":
        reference[:] = np.repeat(reference[::2], 2, axis=0)
    else:
        reference[:6], reference[6:] = reference[0], reference[6]
    broken = retrieval_report(query, reference, make_truth(30, 12, positives))
    exact = query.astype(np.float64) @ reference.T.astype(np.float64)
    own = exact[np.arange(30), positives]
    first = [np.isfinite(own[i]) and (np.delete(exact[i], p) < own[i]).all() for i, p in enumerate(positives)]
    assert broken.recall_at_1 == pytest.approx(np.mean(first))
    assert broken.hit_rate_cover == broken.hit_rate_strict == broken.recall_at_1
    assert broken.recall_within_m["25"] <= broken.recall_at_1 + 1e-9
    assert sound.recall_within_m["25"] == 1.0
    for group in broken.groups:
        assert math.isnan(group.recall_at_1) or group.recall_at_1 <= 1.0
    if kind in ("constant", "nan", "duplicates", "two points"):
        assert broken.recall_at_1 == 0.0


def test_each_area_is_searched_in_its_own_gallery():
    query, reference, positives = random_embeddings(7, 60, 20)
    areas = np.array(["a", "b"])[np.arange(20) % 2]
    truth = dataclasses.replace(make_truth(60, 20, positives), query_area=areas[positives], reference_area=areas)
    report = retrieval_report(query, reference, truth)
    groups = {group.name: group for group in report.groups if group.kind == "area"}
    assert list(groups) == ["a", "b"]
    for name, group in groups.items():
        gallery = np.flatnonzero(areas == name)
        chosen = np.flatnonzero(areas[positives] == name)
        top_1 = gallery[(query[chosen] @ reference[gallery].T).argmax(1)]
        assert (group.num_queries, group.num_references) == (len(chosen), 10)
        assert group.recall_at_1 == group.hit_rate_cover == pytest.approx(np.mean(top_1 == positives[chosen]))
    heads, rows = report.group_table()
    assert {len(row) for row in rows} == {len(heads)}
    assert rows[0][0] == "area a"


def test_age_gaps():
    truth = dataclasses.replace(
        make_truth(6, 6, np.arange(6)), age_gap_years=np.array([0.0, -0.99, 1.0, -5.9, 6.0, np.nan])
    )
    groups = {group.name: group for group in retrieval_report(np.eye(6), np.eye(6), truth).groups}
    assert [groups[name].num_queries for name in AGE_GAPS] == [2, 1, 1, 1, 1]
    assert groups["unknown"].recall_at_1 == 1.0
    assert not {"unknown"} & {
        group.name for group in retrieval_report(np.eye(6), np.eye(6), make_truth(6, 6, np.arange(6))).groups
    }


def test_legacy_metrics_count_as_published_code_does():
    sims = np.array(SIMS)
    found = legacy_metrics(sims, np.eye(6), POSITIVES, COVERING)
    assert (found["recall_at_1"], found["recall_at_5"]) == (0.25, 1.0)
    assert (found["recall_at_1_percent"], found["recall_at_1_percent_vigor"]) == (0.0, 0.25)
    assert (found["hit_rate"], found["hit_rate_top_1"]) == (0.5, 0.75)
    sims = [[0.9, 0.1, 0.2, 0.3], [0.5, 0.4, 0.6, 0.1], [0.1, 0.2, 0.3, 0.4], [0.7] * 4]
    own = (np.arange(5), np.arange(4))
    assert legacy_metrics(np.array(sims), np.eye(4), np.arange(4), own)["recall_at_1"] == 0.5


def test_ties_of_the_published_toy_count_against_the_query():
    """Strictly greater ones alone give ranks 0, 2, 1, 0; the last query is as near to all references."""
    sims = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.5, 0.4, 0.6, 0.1], [0.1, 0.2, 0.3, 0.4], [0.7] * 4])
    found = ranks(sims, torch.eye(4), [0, 1, 2, 3])
    assert found.tolist() == [0, 2, 1, 3]
    assert [recall_at_k(found.numpy(), k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("semi", "hit"), [([0, 1, 3], 1.0), ([0, 3, 4], 0.0)])
def test_strict_hits_of_vigor(semi, hit):
    """The positive is third: a miss at 1, a hit at 5, and a strict hit if those before it are semi-positives."""
    sims, covering = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]]), (np.array([0, 4]), np.array([2, *semi]))
    rank = ranks(sims, torch.eye(5), [2]).numpy()
    assert (recall_at_k(rank, 1), recall_at_k(rank, 5)) == (0.0, 1.0)
    assert hit_rate_strict(sims, torch.eye(5), [2], covering) == hit
    assert hit_rate_cover(sims, torch.eye(5), covering) == 1.0


@pytest.mark.parametrize("value", [0.1, np.nan])
def test_legacy_metrics_are_inflated_where_ours_are_not(value):
    positives, covering = np.arange(10), (np.arange(11), np.arange(10))
    broken = np.full((10, 4), value)
    assert legacy_metrics(broken, broken, positives, covering)["recall_at_1"] == 1.0
    assert retrieval_report(broken, broken, make_truth(10, 10, positives)).recall_at_1 == 0.0


def test_legacy_hit_rate_of_vigor():
    sims = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    rates = [
        legacy_metrics(sims, np.eye(5), [2], (np.array([0, 4]), np.array([2, *semi])))["hit_rate"]
        for semi in ([0, 1, 3], [0, 3, 4])
    ]
    assert rates == [1.0, 0.0]
