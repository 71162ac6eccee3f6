import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data.errors import RecipeError
from cvgl_models.recipe import SamplerRecipe
from cvgl_models.samplers import DistanceMapSampler


def make(reference, neighbors=None, seed=0, **options):
    return DistanceMapSampler(np.asarray(reference), neighbors or {}, SamplerRecipe(**options), seed)


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
