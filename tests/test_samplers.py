import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_dataset import toy_dataset

from cvgl_data.errors import RecipeError
from cvgl_models.losses import SymmetricInfoNCE
from cvgl_models.recipe import SamplerRecipe
from cvgl_models.samplers import DistanceMapSampler
from cvgl_models.semi_positives import SemiPositives, info_nce
from cvgl_models.training.mining import similarity_neighbors


def make(reference, neighbors=None, seed=0, semi=None, **options):
    return DistanceMapSampler(np.asarray(reference), neighbors or {}, SamplerRecipe(**options), seed, semi)


def line_neighbors(count, k):
    return {r: sorted((n for n in range(count) if n != r), key=lambda n: (abs(n - r), n))[:k] for r in range(count)}


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=8, max_size=40),
    batch_size=st.integers(2, 8),
    select=st.integers(0, 8),
    epoch=st.integers(0, 5),
)
def test_batches_are_full_and_nothing_comes_twice(counts, batch_size, select, epoch):
    reference = np.repeat(np.arange(len(counts)), counts)
    sampler = make(
        reference, line_neighbors(len(counts), 16), batch_size=batch_size, neighbor_select=select, neighbor_range=16
    )
    batches = sampler.epoch(epoch)
    used = np.concatenate(batches)
    assert len(batches) == len(sampler)
    assert all(len(batch) == batch_size for batch in batches)
    assert all(len(set(reference[batch])) == batch_size for batch in batches)
    assert len(set(used.tolist())) == len(used)
    # No more batches are possible, and no reference is the reason when none has more pairs than there are batches.
    if max(counts) <= len(reference) // batch_size:
        assert len(used) == len(reference) // batch_size * batch_size


def test_coverage_at_the_published_size():
    rng = np.random.default_rng(0)
    reference = np.repeat(np.arange(1000), rng.integers(1, 3, 1000))
    sampler = make(reference, line_neighbors(1000, 128))
    used = np.concatenate(sampler.epoch(0))
    assert len(used) == len(reference) // 128 * 128


def test_the_nearest_available_neighbors_come_first():
    sampler = make(np.arange(400), line_neighbors(400, 64), batch_size=20, neighbor_select=12, neighbor_range=64)
    batch = sampler.epoch(0)[0]
    anchor, near, far = batch[0], batch[1:7], batch[7:13]
    assert near.tolist() == line_neighbors(400, 6)[anchor]
    assert set(far.tolist()) <= set(line_neighbors(400, 64)[anchor][6:])


def test_neighbors_share_batches():
    near, apart = (
        np.mean(
            [
                np.ptp(np.sort(batch)[2:-2])
                for batch in make(np.arange(512), neighbors, batch_size=16, neighbor_select=16).epoch(0)[:10]
            ]
        )
        for neighbors in (line_neighbors(512, 16), {})
    )
    assert near < apart / 1.5


def test_the_seed_and_the_epoch_decide():
    options = {"batch_size": 8, "neighbor_select": 4, "neighbor_range": 8}
    one, two = (make(np.arange(64), line_neighbors(64, 16), seed=3, **options) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one.epoch(4), two.epoch(4), strict=True))
    assert not np.array_equal(one.epoch(4)[0], one.epoch(5)[0])
    assert not np.array_equal(one.epoch(4)[0], make(np.arange(64), seed=4, **options).epoch(4)[0])


def test_another_map_makes_other_batches():
    backwards = {r: near[::-1] for r, near in line_neighbors(64, 16).items()}
    options = {"batch_size": 8, "neighbor_select": 4, "neighbor_range": 16}
    one, two = make(np.arange(64), line_neighbors(64, 16), **options), make(np.arange(64), backwards, **options)
    assert not np.array_equal(one.epoch(0)[0], two.epoch(0)[0])


def test_neighbors_without_queries_are_skipped():
    sampler = make([0, 2, 4, 6], {0: [1, 2, 3, 4], 2: [1]}, batch_size=2, neighbor_select=2, neighbor_range=2)
    assert sampler.neighbors[0] == [2, 4]
    assert sampler.neighbors[2] == []


def test_too_few_references():
    with pytest.raises(RecipeError, match="only 3 references have training queries"):
        make([0, 0, 1, 1, 2], batch_size=4)


def test_more_anchors_have_fewer_neighbors():
    options = {"batch_size": 16, "neighbor_select": 12, "neighbor_range": 32}
    for anchors, group in ((0, 13), (2, 8), (4, 4), (8, 2), (16, 1)):
        sampler = make(np.arange(800), line_neighbors(800, 32), anchors=anchors, **options)
        batch = sampler.epoch(0)[0]
        nearest = line_neighbors(800, 32)
        starts = [0, group] if group < 16 else [0]
        for start in (place for place in starts if place + group <= 16):
            assert set(batch[start + 1 : start + group]) <= set(nearest[batch[start]])
        if group < 13:
            assert batch[group] not in nearest[batch[0]]
    with pytest.raises(RecipeError, match=r"'sampler\.anchors' must be at most the batch size, 16, not 17"):
        make(np.arange(800), anchors=17, **options)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), batch_size=st.integers(2, 8), every=st.integers(2, 4))
def test_semi_positives_are_kept_out(seed, batch_size, every):
    """On a ring where both neighbors of a reference cover its queries."""
    count = 40
    reference = np.repeat(np.arange(count), np.random.default_rng(seed).integers(1, every, count))
    semi = [((r - 1) % count, (r + 1) % count) for r in reference]
    ring = line_neighbors(count, 16)
    options = {"batch_size": batch_size, "neighbor_select": 6, "neighbor_range": 16, "seed": seed, "semi": semi}
    free, kept_out = (make(reference, ring, exclude_semi_positives=flag, **options) for flag in (False, True))
    assert len(free) == len(kept_out)
    for batch in kept_out.epoch(0):
        assert len(set(reference[batch])) == batch_size
    assert kept_out.coverage(0).num_semi_positives < free.coverage(0).num_semi_positives
    assert all(abs(near - r) % count not in (1, count - 1) for r, nears in kept_out.neighbors.items() for near in nears)
    early = kept_out.epoch(0)[: len(kept_out) // 2]  # while there is a choice, there is not one of them
    assert not any(set(semi[pair]) & set(reference[batch]) for batch in early for pair in batch)


def test_coverage():
    coverage = make(np.repeat(np.arange(20), 5), batch_size=8).coverage(3)
    assert (coverage.num_pairs, coverage.num_batches, coverage.num_unused) == (100, 12, 4)
    assert str(coverage) == "100 pairs in 12 batches; 4 pairs (4.0%) are left out of an epoch, other ones each time"


def test_other_neighbors_from_now_on():
    options = {"batch_size": 8, "neighbor_select": 4, "neighbor_range": 8}
    sampler = make(np.arange(64), line_neighbors(64, 8), **options)
    before = sampler.epoch(1)
    sampler.set_neighbors({r: [63 - r] for r in range(64)})
    assert not np.array_equal(before[0], sampler.epoch(1)[0])
    sampler.set_neighbors(line_neighbors(64, 8))
    assert all(np.array_equal(a, b) for a, b in zip(before, sampler.epoch(1), strict=True))


def unit(rng, *shape):
    values = rng.normal(size=shape).astype(np.float32)
    return torch.from_numpy(values / np.linalg.norm(values, axis=-1, keepdims=True))


@pytest.mark.parametrize("removed", [False, True])
def test_similar_references_by_the_book(removed):
    rng = np.random.default_rng(0)
    query_QD, reference_RD = unit(rng, 50, 6), unit(rng, 20, 6)
    positive_Q = rng.integers(0, 18, 50)  # two references have no query
    pairs = (np.array([0, 0, 3, 3, 3]), np.array([5, 6, 0, 1, 2])) if removed else None
    found = similarity_neighbors(query_QD, reference_RD, positive_Q, 7, pairs)
    score_QR = (query_QD @ reference_RD.T).numpy()
    for reference in range(20):
        mine = score_QR[positive_Q == reference]
        if not len(mine):
            assert (found[reference] == -1).all()
            continue
        best = mine.max(0)  # over all queries of the reference, whichever comes last
        best[reference] = -np.inf
        if removed:
            best[pairs[1][pairs[0] == reference]] = -np.inf
        assert found[reference].tolist() == np.argsort(-best)[:7].tolist()


def test_similar_references_when_there_are_few_and_some_are_equal():
    reference_RD = torch.eye(3)
    found = similarity_neighbors(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), reference_RD, np.array([0, 1]), 4)
    assert found.tolist() == [[1, 2, -1, -1], [0, 2, -1, -1], [-1] * 4]
    broken = similarity_neighbors(torch.full((1, 3), torch.nan), reference_RD, np.array([0]), 2)
    assert broken.tolist() == [[-1, -1]] * 3


@pytest.fixture(scope="module")
def with_semi_positives():
    """Queries 0 and 1 are covered by further references."""
    dataset = toy_dataset(grid=3, test_grid=1)
    positives = dataset.positives()
    others = [row for row in range(dataset.references.num_rows) if row not in positives[:2]][:3]
    rows = dataset.pairs.to_pylist()
    for query, reference, iou in ((0, others[0], 0.25), (0, others[1], 0.5), (1, others[2], float("nan"))):
        extra = {"query_row": query, "reference_row": reference, "relation": "semi_positive", "iou": iou}
        rows.append({**rows[query], **extra})
    pairs = pa.Table.from_pylist(rows, dataset.pairs.schema)
    return dataclasses.replace(dataset, pairs=pairs), others


def test_weights_of_semi_positives(with_semi_positives):
    dataset, others = with_semi_positives
    semi = SemiPositives(dataset)
    assert semi.of_query(0) == sorted(others[:2])
    assert semi.of_query(1) == others[2:]
    assert semi.of_query(2) == []
    query_row, reference_row = torch.tensor([0, 1, 5]), torch.tensor([others[1], others[2], others[0]])
    assert semi.weights(query_row, reference_row).tolist() == [[0.5, 0, 0.25], [0, 0, 0], [0, 0, 0]]
    expected = [[0.1, 0, 0.1], [0, 0.1, 0], [0, 0, 0]]
    np.testing.assert_allclose(semi.weights(query_row, reference_row, 0.1), expected, rtol=1e-6)
    for policy, kind in (("negative", None), ("ignore", torch.bool), ("soft", torch.float32)):
        given_BB = semi.for_loss(query_row, reference_row, SamplerRecipe(semi_positive_policy=policy))
        assert (given_BB.dtype if given_BB is not None else None) == kind
    none = SemiPositives(dataclasses.replace(dataset, pairs=dataset.pairs[:0]))
    assert none.weights(query_row, reference_row).sum() == 0


def test_the_soft_target():
    """By hand: row 0 has the target (2/3, 1/3, 0), column 0 only itself, column 1 (1/3, 2/3, 0)."""
    rng = np.random.default_rng(0)
    query_BD, reference_BD, loss = unit(rng, 3, 4), unit(rng, 3, 4), SymmetricInfoNCE(label_smoothing=0.0)
    soft_BB = torch.zeros(3, 3)
    soft_BB[0, 1] = 0.5
    logits = loss.logit_scale.exp() * query_BD @ reference_BD.T
    down, up = logits.log_softmax(1), logits.log_softmax(0)
    to_reference = -(down[0, 0] * 2 / 3 + down[0, 1] / 3 + down[1, 1] + down[2, 2]) / 3
    to_query = -(up[0, 0] + up[0, 1] / 3 + up[1, 1] * 2 / 3 + up[2, 2]) / 3
    value = info_nce(loss, query_BD, reference_BD, soft_BB)
    assert value.item() == pytest.approx(((to_reference + to_query) / 2).item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_semi_positives_the_soft_loss_is_the_plain_one(smoothing):
    rng = np.random.default_rng(1)
    query_BD, reference_BD, loss = unit(rng, 5, 4), unit(rng, 5, 4), SymmetricInfoNCE(label_smoothing=smoothing)
    plain = info_nce(loss, query_BD, reference_BD, None)
    assert info_nce(loss, query_BD, reference_BD, torch.zeros(5, 5)).item() == pytest.approx(plain.item(), rel=1e-6)
    ignored = info_nce(loss, query_BD, reference_BD, torch.eye(5).roll(1, 0) > 0)
    assert ignored.item() < plain.item()


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_computed_in_single_precision(soft):
    rng = np.random.default_rng(2)
    query_BD, reference_BD, loss = unit(rng, 8, 4), unit(rng, 8, 4), SymmetricInfoNCE()
    semi_BB = torch.zeros(8, 8) if soft else None
    expected = info_nce(loss, query_BD, reference_BD, semi_BB)
    with torch.autocast("cpu", torch.bfloat16):
        assert info_nce(loss, query_BD, reference_BD, semi_BB).item() == expected.item()
