"""Headings against the course over ground, and how times of capture are read."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data.geo import wrap_deg
from cvgl_data.quality.course import bearing_deg, check_headings, circular_median_deg, course_deg
from cvgl_data.quality.dates import seconds_of, year_of

METER_DEG = 1 / 111_195


def drive(num: int, bend_deg: float = 3.0, step_m: float = 5.0, seed: int = 0, noise_m: float = 0.0, lat: float = 47.6):
    """A drive that bends steadily: time, lon, lat, true course at each image."""
    course = np.arange(num) * bend_deg
    east = np.cumsum(step_m * np.sin(np.radians(course)))
    north = np.cumsum(step_m * np.cos(np.radians(course)))
    if noise_m:
        jitter = np.random.default_rng(seed).normal(0, noise_m, (2, num))
        east, north = east + jitter[0], north + jitter[1]
    # The step into an image has the bearing `course`, that out of it the next one.
    lon = -122.3 + east * METER_DEG / math.cos(math.radians(lat))
    return 2.0 * np.arange(num), lon, lat + north * METER_DEG, (course + bend_deg / 2) % 360


LIMITS = {"min_m": 3.0, "max_m": 100.0}


@pytest.mark.parametrize(
    ("to", "expected"), [((0, 1e-4), 0.0), ((1e-4, 0), 90.0), ((0, -1e-4), 180.0), ((-1e-4, 0), 270.0)]
)
def test_bearings_of_the_four_directions(to: tuple[float, float], expected: float) -> None:
    start = np.zeros(1)
    assert bearing_deg(start, start, start + to[0], start + to[1]) == pytest.approx([expected], abs=1e-6)


def test_a_course_over_the_antimeridian_goes_east() -> None:
    lon = np.array([179.9999, -179.9999])
    assert course_deg(np.zeros(2, int), np.arange(2.0), lon, np.zeros(2), **LIMITS) == pytest.approx([90, 90])


@settings(max_examples=40)
@given(
    offset=st.floats(-180, 179.9),
    seed=st.integers(0, 10**6),
    bend=st.floats(-8, 8),
    wrong=st.floats(50, 310),
)
def test_a_mounting_offset_is_found_and_a_wrong_heading_stands_out(
    offset: float, seed: int, bend: float, wrong: float
) -> None:
    num = 30
    time_s, lon, lat, course = drive(num, bend)
    heading = (course + offset + np.random.default_rng(seed).normal(0, 2, num)) % 360
    heading[7] = (heading[7] + wrong) % 360
    found = check_headings(np.zeros(num, int), time_s, lon, lat, heading, **LIMITS)
    assert wrap_deg(found.offset_deg - offset) == pytest.approx(np.zeros(num), abs=3)
    is_wrong = np.abs(found.error_deg) > 30
    assert np.flatnonzero(is_wrong).tolist() == [7]
    assert wrap_deg(found.error_deg[7] - wrong) == pytest.approx(0, abs=12)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_order_of_rows_does_not_matter(seed: int) -> None:
    parts = [drive(12, bend, noise_m=0.3, seed=seed) for bend in (0, 4, -5)]
    time_s, lon, lat, course = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    sequence = np.repeat(np.arange(3), 12)
    heading = (course + 90 * sequence) % 360
    known = check_headings(sequence, time_s, lon, lat, heading, **LIMITS)
    mixed = np.random.default_rng(seed).permutation(36)
    found = check_headings(sequence[mixed], time_s[mixed], lon[mixed], lat[mixed], heading[mixed], **LIMITS)
    for one, other in zip(known, found, strict=True):
        np.testing.assert_array_equal(one[mixed], other)
    assert wrap_deg(known.offset_deg[::12] - [0, 90, 180]) == pytest.approx(np.zeros(3), abs=5)


def test_what_cannot_be_known_is_nan() -> None:
    time_s, lon, lat, course = drive(10)
    alone = np.full(10, -1)
    assert np.isnan(check_headings(alone, time_s, lon, lat, course, **LIMITS)).all()
    assert np.isnan(check_headings(np.zeros(10, int), np.full(10, np.nan), lon, lat, course, **LIMITS)).all()
    assert np.isnan(check_headings(np.zeros(10, int), np.zeros(10), lon, lat, course, **LIMITS)).all()  # one time
    still = np.full(10, lon[0])
    assert np.isnan(check_headings(np.zeros(10, int), time_s, still, np.full(10, lat[0]), course, **LIMITS)).all()
    few = check_headings(np.zeros(4, int), time_s[:4], lon[:4], lat[:4], course[:4], **LIMITS)
    assert np.isnan(few).all()
    heading = np.where(np.arange(10) == 3, np.nan, course)
    found = check_headings(np.zeros(10, int), time_s, lon, lat, heading, **LIMITS)
    assert np.isfinite(found.offset_deg).all()
    assert np.flatnonzero(np.isnan(found.error_deg)).tolist() == [3]
    assert check_headings(*(np.empty(0, kind) for kind in (int, float, float, float, float)), **LIMITS)[0].size == 0


def test_standing_still_on_the_way_is_passed_over() -> None:
    time_s, lon, lat, _ = drive(20, bend_deg=0.0)
    lon[8:12], lat[8:12] = lon[8], lat[8]  # a red light; then on from there
    lat[12:] = lat[8] + 5 * METER_DEG * np.arange(1, 9)
    found = course_deg(np.zeros(20, int), time_s, lon, lat, **LIMITS)
    assert wrap_deg(found) == pytest.approx(np.zeros(20), abs=1e-6)


def test_gaps_and_sharp_turns_give_no_course() -> None:
    east = np.array([0.0, 10, 20, 20, 20, 20, 20, 20])
    north = np.array([0.0, 0, 0, 10, 20, 300, 310, 320])
    found = course_deg(
        np.zeros(8, int), np.arange(8.0), east * METER_DEG, north * METER_DEG, **LIMITS
    )  # a right angle at 2, a gap between 4 and 5
    assert found[[0, 1]] == pytest.approx([90, 90], abs=0.01)
    assert np.isnan(found[2])
    assert wrap_deg(found[[3, 4, 5, 6, 7]]) == pytest.approx(np.zeros(5), abs=0.01)


@settings(max_examples=60)
@given(st.lists(st.floats(-60, 60), min_size=1, max_size=40), st.floats(-180, 180))
def test_circular_median_turns_with_the_angles(around: list[float], turn: float) -> None:
    angles = wrap_deg(np.array(around) + turn)
    found = circular_median_deg(angles)
    # Everything lies on one half of the circle, so the median is that of a line.
    assert wrap_deg(found - turn - np.median(around)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2021", 2021.5),
        ("2021-01", 2021 + 15.5 / 365),
        ("2021-07-28", 2021 + 208.5 / 365),
        ("2020-12-31", 2020 + 365.5 / 366),
        ("2021-07-28T17:58:01Z", 2021 + 208.5 / 365),
        ("2021-07-28 17:58:01.25+02:00", 2021 + 208.5 / 365),
        ("", None),
        (None, None),
        ("yesterday", None),
        ("2021-13", None),
        ("2021-02-30", None),
        ("0000", None),
        ("20210728", None),
    ],
)
def test_years(text: str | None, expected: float | None) -> None:
    assert year_of(text) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T00:00:10.5", 10.5),
        ("1970-01-01 02:00:10+02:00", 10.0),
        ("2021-07-28", None),
        ("2021-07", None),
        ("not a moment at all", None),
        (None, None),
    ],
)
def test_seconds(text: str | None, expected: float | None) -> None:
    assert seconds_of(text) == expected
