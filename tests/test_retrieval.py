import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_models.retrieval import best_covering, ranks, search, search_and_rank

# Toy of six references; with one-hot references the query embeddings are the similarities.
SIMS = [
    [0.9, 0.5, 0.4, 0.3, 0.2, 0.1],
    [0.8, 0.9, 0.4, 0.3, 0.2, 0.1],
    [0.7, 0.9, 0.2, 0.3, 0.8, 0.1],
    [0.9, 0.1, 0.2, 0.3, 0.4, 0.5],
]
POSITIVES = [0, 0, 0, 5]
COVERING = (np.array([0, 4, 8, 12, 16]), np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 5, 4, 3, 2]))


def naive_ranks(query, reference, positives):
    sims = np.asarray(query, np.float64) @ np.asarray(reference, np.float64).T
    not_below = ~(sims < sims[np.arange(len(sims)), positives][:, None])
    not_below[np.arange(len(sims)), positives] = False
    return not_below.sum(1)


def random_embeddings(seed, num_queries=23, num_references=31, dim=16):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(num_queries, dim)).astype(np.float32)
    reference = rng.normal(size=(num_references, dim)).astype(np.float32)
    return (
        query / np.linalg.norm(query, axis=1, keepdims=True),
        reference / np.linalg.norm(reference, axis=1, keepdims=True),
        rng.integers(0, num_references, num_queries),
    )


def test_toy_ranks():
    assert ranks(torch.tensor(SIMS), torch.eye(6), POSITIVES).tolist() == [0, 1, 2, 1]


def test_covering_references_do_not_outrank():
    assert ranks(torch.tensor(SIMS), torch.eye(6), POSITIVES, covering=COVERING).tolist() == [0, 0, 1, 1]


def test_best_covering():
    assert best_covering(torch.tensor(SIMS), torch.eye(6), COVERING).tolist() == [0, 1, 1, 5]
    nothing = (np.array([0, 0, 1, 1, 1]), np.array([2]))
    assert best_covering(torch.tensor(SIMS), torch.eye(6), nothing).tolist() == [-1, 2, -1, -1]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), query_block=st.integers(1, 25), reference_block=st.integers(1, 40))
def test_blocks_do_not_change_ranks(seed, query_block, reference_block):
    query, reference, positives = random_embeddings(seed)
    got = ranks(query, reference, positives, query_block=query_block, reference_block=reference_block)
    assert got.tolist() == naive_ranks(query, reference, positives).tolist()


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), block=st.integers(1, 40), k=st.integers(1, 40))
def test_search_is_the_sorted_matrix(seed, block, k):
    query, reference, _ = random_embeddings(seed)
    indices, scores = search(query, reference, k, query_block=7, reference_block=block)
    order = np.argsort(-(query.astype(np.float64) @ reference.T.astype(np.float64)), axis=1)[:, :k]
    assert indices.tolist() == order.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(query @ reference.T, order, 1), atol=1e-6)


def test_equal_scores_stand_in_row_order():
    reference = torch.eye(4)[[1, 0, 1, 0, 1]]
    indices, _ = search(torch.eye(4)[[1]], reference, 5, reference_block=2)
    assert indices.tolist() == [[0, 2, 4, 1, 3]]


def test_constant_embeddings_come_last():
    constant = torch.full((10, 8), 8**-0.5)
    assert ranks(constant, constant, torch.arange(10)).tolist() == [9] * 10


def test_duplicates_of_the_positive_count_against_the_query():
    query, reference, positives = random_embeddings(0, dim=512)
    twice = np.concatenate([reference, reference, reference])
    base = naive_ranks(query, reference, positives)
    for block in (1, 7, 1000):
        assert ranks(query, twice, positives, reference_block=block).tolist() == (3 * base + 2).tolist()


def test_nan_counts_against_the_query():
    query, reference, positives = random_embeddings(1)
    query[0] = np.nan
    assert ranks(query, reference, positives)[0] == len(reference) - 1
    query, reference, _ = random_embeddings(1)
    base = ranks(query, reference, np.zeros(len(query), int))
    reference[5] = np.nan
    worse = ranks(query, reference, np.zeros(len(query), int))
    assert bool((worse >= base).all())
    assert bool((worse >= 1).all())
    reference[0] = np.nan
    assert ranks(query, reference, np.zeros(len(query), int)).tolist() == [len(reference) - 1] * len(query)


def test_nan_is_never_found():
    query, reference, _ = random_embeddings(2)
    reference[3] = np.nan
    indices, scores = search(query, reference, len(reference))
    assert 3 not in indices
    assert bool((indices[:, -1] == -1).all())
    assert bool((scores[:, -1] == -torch.inf).all())


def test_one_reference_and_more_results_than_references():
    query = torch.eye(3)
    assert ranks(query, query[:1], [0, 0, 0]).tolist() == [0, 0, 0]
    assert search(query, query[:1], 7)[0].shape == (3, 1)
    assert search(query[:0], query, 2)[0].shape == (0, 2)
    assert ranks(query[:0], query, []).tolist() == []


def test_half_precision_is_compared_in_float32():
    query, reference, positives = random_embeddings(4)
    half = torch.tensor(query).bfloat16(), torch.tensor(reference).bfloat16()
    expected = naive_ranks(half[0].float().numpy(), half[1].float().numpy(), positives)
    assert ranks(*half, positives).tolist() == expected.tolist()


@pytest.mark.parametrize("positives", [[0, 1], [0, 1, 6, 0], [0, -1, 1, 1]])
def test_wrong_positives(positives):
    with pytest.raises(ValueError, match="positives"):
        ranks(torch.tensor(SIMS), torch.eye(6), positives)


def test_wrong_shapes():
    with pytest.raises(ValueError, match="embeddings must be"):
        search(torch.eye(3), torch.eye(4), 1)
    with pytest.raises(ValueError, match="no references"):
        search(torch.eye(3), torch.empty(0, 3), 1)
    with pytest.raises(ValueError, match="k must"):
        search(torch.eye(3), torch.eye(3), 0)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), block=st.integers(1, 70), k=st.integers(1, 12), levels=st.integers(1, 4))
def test_one_pass_finds_what_two_find_even_with_many_equals(seed, block, k, levels):
    rng = np.random.default_rng(seed)
    query = rng.integers(-levels, levels + 1, (9, 4)).astype(np.float32)
    reference = rng.integers(-levels, levels + 1, (260, 4)).astype(np.float32)
    positives = rng.integers(0, len(reference), len(query))
    covered = [rng.choice(len(reference), 3, replace=False) for _ in query]
    covering = (np.arange(0, 3 * len(query) + 1, 3), np.concatenate(covered))
    indices, scores, found = search_and_rank(
        query, reference, k, positives, covering=covering, query_block=5, reference_block=block
    )
    sims = query @ reference.T
    order = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    assert indices.tolist() == order.tolist()
    assert scores.tolist() == np.take_along_axis(sims, order, 1).tolist()
    not_below = sims >= np.take_along_axis(sims, positives[:, None], 1)
    for row, (positive, others) in enumerate(zip(positives, covered, strict=True)):
        not_below[row, [positive, *others]] = False
    assert found.tolist() == not_below.sum(1).tolist()
    assert found.tolist() == ranks(query, reference, positives, covering=covering).tolist()


def test_values_that_are_not_finite_go_the_slow_way_with_the_same_result():
    query, reference, positives = random_embeddings(7)
    finite = search_and_rank(query, reference, 5, positives)
    with_nan = np.concatenate([reference, np.full((1, reference.shape[1]), np.nan, np.float32)])
    indices, scores, found = search_and_rank(query, with_nan, 5, positives, query_block=4, reference_block=9)
    assert torch.equal(indices, finite[0])
    torch.testing.assert_close(scores, finite[1])
    assert torch.equal(found, finite[2] + 1)


def test_products_are_exact_whatever_training_chose():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        query, reference, positives = random_embeddings(8)
        reference[0] = np.nan
        positives[positives == 0] = 1
        ranks(query, reference, positives)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_many_candidates_and_constant_scores():
    rising = torch.linspace(0, 1, 3000)[:, None]
    assert search(torch.ones(20, 1), rising, 3)[0][7].tolist() == [2999, 2998, 2997]
    assert search(torch.ones(20, 1), torch.ones(3000, 1), 3, reference_block=1500)[0][7].tolist() == [0, 1, 2]
    assert ranks(torch.ones(20, 1), torch.ones(3000, 1), [5] * 20).tolist() == [2999] * 20
