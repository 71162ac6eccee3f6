"""Near-duplicates: pairs against all-with-all, the choice of the original, and no quadratic time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data.geo import distance_m
from cvgl_data.quality import repeats
from cvgl_data.quality.repeats import first_of_equal, originals, repeated_anywhere, repeated_nearby


def bits_between(first: int, second: int) -> int:
    return bin(int(first) ^ int(second)).count("1")


def some_hashes(random: np.random.Generator, num: int) -> np.ndarray:
    """Hashes of which many are near each other."""
    base = random.integers(0, 2**64, 4, np.uint64)
    hashes = base[random.integers(0, 4, num)]
    for _ in range(3):
        flips = np.uint64(1) << random.integers(0, 64, num).astype(np.uint64)
        hashes = np.where(random.random(num) < 0.6, hashes ^ flips, hashes)
    return hashes


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), num=st.integers(0, 40), bits=st.integers(0, 6), crowd=st.sampled_from([0, 2000]))
def test_nearby_is_all_with_all(seed: int, num: int, bits: int, crowd: int) -> None:
    random = np.random.default_rng(seed)
    lon, lat = 179.9995 + random.uniform(0, 1e-3, num), 47.6 + random.uniform(0, 1e-3, num)
    lon = np.where(lon > 180, lon - 360, lon)  # on both sides of the antimeridian
    lat[random.random(num) < 0.1] = np.nan
    hashes, known = some_hashes(random, num), random.random(num) < 0.9
    expected = [
        (i, j)
        for i in range(num)
        for j in range(i + 1, num)
        if known[i]
        and known[j]
        and distance_m(lon[i], lat[i], lon[j], lat[j]) <= 50
        and bits_between(hashes[i], hashes[j]) <= bits
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "_CROWD", crowd)  # by hash first, or by place first
        found = repeated_nearby(lon, lat, hashes, known, 50.0, bits)
    assert sorted(map(tuple, found.tolist())) == expected


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), num=st.integers(0, 60), bits=st.integers(0, 8))
def test_anywhere_finds_all_originals(seed: int, num: int, bits: int) -> None:
    random = np.random.default_rng(seed)
    hashes, known = some_hashes(random, num), random.random(num) < 0.9
    pairs = repeated_anywhere(hashes, known, bits)
    for i, j in pairs.tolist():
        assert i < j
        assert known[i]
        assert known[j]
        assert bits_between(hashes[i], hashes[j]) <= bits
    everything = [
        (i, j)
        for i in range(num)
        for j in range(i + 1, num)
        if known[i] and known[j] and bits_between(hashes[i], hashes[j]) <= bits
    ]
    everything = np.array(everything, np.int64).reshape(-1, 2)
    order = np.arange(num)
    assert originals(pairs, order, num).tolist() == originals(everything, order, num).tolist()


def test_a_crowd_at_one_position_is_searched_by_hash() -> None:
    random = np.random.default_rng(3)
    num = 30_000
    lon, lat = np.zeros(num), np.zeros(num)
    lon[-1] = 1.0
    hashes = random.integers(0, 2**64, num, np.uint64)
    hashes[[7, 29_000, 29_999]] = hashes[5] ^ np.uint64(9)
    started = time.process_time()
    found = repeated_nearby(lon, lat, hashes, np.ones(num, bool), 50.0, 4)
    assert time.process_time() - started < 10
    assert found.tolist() == [[5, 7], [5, 29_000], [7, 29_000]]


def test_thousands_of_one_placeholder_are_few_pairs() -> None:
    pairs = repeated_anywhere(np.full(20_000, 12345, np.uint64), np.ones(20_000, bool), 2)
    assert pairs.tolist() == [[0, row] for row in range(1, 20_000)]


def test_the_original_is_one_that_repeats_none() -> None:
    # a ~ b ~ c, but a and c differ: without b, both a and c are still there once.
    chain = np.array([[0, 1], [1, 2]])
    assert originals(chain, np.arange(3), 3).tolist() == [-1, 0, -1]
    assert originals(chain, np.array([2, 1, 0]), 3).tolist() == [-1, 2, -1]
    assert originals(chain, np.array([1, 0, 2]), 3).tolist() == [1, -1, 1]
    assert originals(np.empty((0, 2), np.int64), np.arange(2), 2).tolist() == [-1, -1]


def test_first_of_equal_ignores_missing_keys() -> None:
    assert first_of_equal(["x", None, "y", "x", None, ""], np.arange(6)).tolist() == [0, 1, 2, 0, 4, 5]
    assert first_of_equal(["x", "x", "x"], np.array([2, 0, 1])).tolist() == [1, 1, 1]


@pytest.mark.timeout(60)
def test_fifty_thousand_points_take_seconds() -> None:
    random = np.random.default_rng(0)
    num = 50_000
    lon, lat = -122.4 + random.uniform(0, 0.1, num), 47.5 + random.uniform(0, 0.07, num)
    hashes = random.integers(0, 2**64, num, np.uint64)
    copies = random.choice(num // 2, 500, replace=False)
    hashes[num - 500 :] = hashes[copies] ^ np.uint64(5)  # two bits
    lon[num - 500 :], lat[num - 500 :] = lon[copies] + 2e-4, lat[copies]  # 15 m
    started = time.process_time()
    near = repeated_nearby(lon, lat, hashes, np.ones(num, bool), 50.0, 4)
    anywhere = repeated_anywhere(hashes, np.ones(num, bool), 2)
    assert time.process_time() - started < 10
    expected = sorted(zip(copies.tolist(), range(num - 500, num), strict=True))
    assert sorted(map(tuple, near.tolist())) == sorted(map(tuple, anywhere.tolist())) == expected
