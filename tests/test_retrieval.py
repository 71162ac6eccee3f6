import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_models.retrieval import best_covering, ranks, search

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
