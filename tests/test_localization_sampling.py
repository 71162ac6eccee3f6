import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data.errors import RecipeError
from cvgl_data.geo import distance_m
from cvgl_models.localization.sampling import SeparatedSampler, conflicts

METER = 1 / 111_195.08  # degrees of latitude


def scattered(num, side_m, tile_m, seed=0, overlap=True):
    """Return items in a square near (10, 50): covering tiles (indptr, rows) of a half-overlapping grid, and places."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, side_m, (2, num))
    lonlat = np.stack([10 + x * METER / np.cos(np.radians(50)), 50 + y * METER], 1)
    step = tile_m / 2 if overlap else tile_m
    rows, counts = [], []
    for i, j in zip((x // step).astype(int), (y // step).astype(int), strict=True):
        tiles = [(i - a) * 1000 + j - b for a in (0, 1) for b in (0, 1)] if overlap else [i * 1000 + j]
        rows += tiles
        counts.append(len(tiles))
    return (np.concatenate([[0], np.cumsum(counts)]), np.array(rows)), lonlat


def naive(covering, lonlat, min_distance_m):
    indptr, rows = covering
    tiles = [set(rows[a:b].tolist()) for a, b in itertools.pairwise(indptr)]
    near = distance_m(*lonlat[:, None].transpose(2, 0, 1), *lonlat.T) < min_distance_m
    return [{j for j in range(len(tiles)) if i != j and (tiles[i] & tiles[j] or near[i, j])} for i in range(len(tiles))]


@settings(max_examples=40)
@given(st.integers(1, 60), st.sampled_from([0.0, 5.0, 60.0, 400.0]), st.booleans(), st.integers(0, 5))
def test_conflicts_against_all_pairs(num, min_distance_m, overlap, seed):
    covering, lonlat = scattered(num, 600.0, 80.0, seed, overlap)
    indptr, items = conflicts(covering, lonlat, min_distance_m)
    found = [set(items[a:b].tolist()) for a, b in itertools.pairwise(indptr)]
    assert found == naive(covering, lonlat, min_distance_m)


def test_conflicts_across_the_date_line_and_at_a_pole():
    lonlat = np.array([[179.9999, 0.0], [-179.9999, 0.0], [0.0, 89.9999], [180.0, 89.9999], [90.0, 0.0]])
    one_each = (np.arange(6), np.arange(5))
    indptr, items = conflicts(one_each, lonlat, 60.0)
    assert [items[a:b].tolist() for a, b in itertools.pairwise(indptr)] == [[1], [0], [3], [2], []]


@settings(max_examples=8)
@given(st.integers(0, 3), st.sampled_from([4, 7, 8]), st.sampled_from([0.0, 60.0]))
def test_full_batches_without_conflicts_once_each(seed, batch_size, min_distance_m):
    covering, lonlat = scattered(163, 1500.0, 80.0, seed)
    enemies = naive(covering, lonlat, min_distance_m)
    sampler = SeparatedSampler(conflicts(covering, lonlat, min_distance_m), batch_size, seed)
    assert len(sampler) == 163 // batch_size  # all but the rest of the division
    epochs = [sampler.epoch(epoch) for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [batch_size] * len(sampler)
        used = np.concatenate(batches).tolist()
        assert len(set(used)) == len(used)
        for batch in batches:
            assert not any(other in enemies[item] for item in batch.tolist() for other in batch.tolist())
    assert not all(np.array_equal(a, b) for a, b in zip(epochs[0], epochs[1], strict=True))
    again = SeparatedSampler(conflicts(covering, lonlat, min_distance_m), batch_size, seed).epoch(2)
    assert all(np.array_equal(a, b) for a, b in zip(epochs[2], again, strict=True))
    assert sampler.coverage(0).num_unused == 163 - len(sampler) * batch_size


def test_a_number_that_leaves_no_room():
    """Exactly as many items as places, and each conflicts with its neighbors on a line."""
    lonlat = np.stack([np.full(96, 10.0), 50 + np.arange(96) * 20 * METER], 1)
    one_each = (np.arange(97), np.arange(96))
    sampler = SeparatedSampler(conflicts(one_each, lonlat, 60.0), 8)
    assert len(sampler) == 12
    for epoch in range(20):
        batches = sampler.epoch(epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(96))
        for batch in batches:
            assert (np.diff(np.sort(batch)) * 20 >= 60 - 1e-6).all()


def test_a_crowd_gives_fewer_batches():
    """Twenty of forty items lie in one place: at most one of them per batch, so the others make the number."""
    lonlat = np.stack([np.full(40, 10.0), 50 + np.maximum(np.arange(40) - 19, 0) * 1000 * METER], 1)
    sampler = SeparatedSampler(conflicts((np.arange(41), np.arange(40)), lonlat, 60.0), 4)
    assert len(sampler) == 6  # t batches need 4 t items, of the crowd at most t, and there are 20 others
    seen = set()
    for epoch in range(30):
        batches = sampler.epoch(epoch)
        assert len(batches) == 6
        assert all((batch < 20).sum() <= 1 for batch in batches)
        seen |= set(np.concatenate(batches).tolist())
    assert seen == set(range(40))  # other ones are left out each time


def test_too_few_places():
    lonlat = np.tile([[10.0, 50.0]], (30, 1))
    with pytest.raises(RecipeError, match=r"sampler\.min_distance_m"):
        SeparatedSampler(conflicts((np.arange(31), np.arange(30)), lonlat, 60.0), 4)
    with pytest.raises(RecipeError, match="min_distance_m"):
        SeparatedSampler(conflicts((np.arange(31), np.arange(30)), lonlat, 0.0), 4).set_neighbors({})


def test_many_items_are_dealt_quickly():
    covering, lonlat = scattered(6000, 6000.0, 70.0, 1)
    begun = time.process_time()
    sampler = SeparatedSampler(conflicts(covering, lonlat, 60.0), 8)
    sampler.epoch(1)
    assert len(sampler) == 750
    assert time.process_time() - begun < 10.0
