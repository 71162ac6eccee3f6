"""Scales, extents and neighborhoods that the literature's datasets were found to have, against our arithmetic."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from cvgl_data.geo import gsd_m, pixel_from_lonlat
from cvgl_data.neighbors import distance_map


@pytest.mark.parametrize(
    ("city", "lat", "native_m", "at_512_m", "side_m"),
    [
        ("NewYork", 40.66, 0.113248, 0.141560, 72.5),
        ("Seattle", 47.52, 0.100817, 0.126021, 64.5),
        ("SanFrancisco", 37.69, 0.118141, 0.147676, 75.6),
        ("Chicago", 41.82, 0.111262, 0.139078, 71.2),
    ],
)
def test_scales_of_vigor(city, lat, native_m, at_512_m, side_m):
    """Zoom 20, 640 px, resized to 512; the latitudes are known to a hundredth of a degree."""
    found = float(gsd_m(lat, 20))
    assert found == pytest.approx(native_m, rel=3e-4)
    assert found * 640 / 512 == pytest.approx(at_512_m, rel=3e-4)
    assert found * 640 == pytest.approx(side_m, abs=0.05)


@pytest.mark.parametrize(
    ("city", "lat", "side_m", "half_diagonal_m"),
    [
        ("Chicago", 41.88, 99.6, 70.4),
        ("Johannesburg", -26.20, 120.0, 84.9),
        ("London", 51.51, 83.3, 58.9),
        ("Rio", -22.90, 123.2, 87.1),
        ("Sydney", -33.87, 111.1, 78.5),
        ("Taipei", 25.03, 121.2, 85.7),
        ("Tokyo", 35.68, 108.7, 76.8),
        ("Vancouver", 49.25, 87.3, 61.7),
    ],
)
def test_extents_of_dress(city, lat, side_m, half_diagonal_m):
    """Zoom 18, 224 px: whatever lies in a tile is less than 100 m from its centre."""
    side = 224 * float(gsd_m(lat, 18))
    assert side == pytest.approx(side_m, abs=0.06)
    assert side / np.sqrt(2) == pytest.approx(half_diagonal_m, abs=0.06)


@pytest.mark.parametrize(
    ("city", "lat", "whole_m", "cut_m"),
    [
        ("London", 51.51, 138.6, 70.2),
        ("Seattle", 47.61, None, 76.1),
        ("New York", 40.71, 168.8, 85.6),
        ("Sydney", -33.87, None, 93.7),
        ("Taipei", 25.05, None, 102.2),
        ("Rio", -22.90, None, 104.0),
        ("Singapore", 1.29, 222.6, 112.8),
    ],
)
def test_extents_of_cvcities(city, lat, whole_m, cut_m):
    """0.002 degrees of longitude at zoom 19, of which the network sees 378 px."""
    x, _ = pixel_from_lonlat([-0.001, 0.001], [lat, lat], 19)
    if whole_m is not None:
        assert float((x[1] - x[0]) * gsd_m(lat, 19)) == pytest.approx(whole_m, abs=0.06)
    assert 378 * float(gsd_m(lat, 19)) == pytest.approx(cut_m, abs=0.06)


@pytest.mark.parametrize(("lat", "meters"), [(51.51, 0.1858), (1.29, 0.2985)])
def test_ground_of_a_pixel_of_zoom_19(lat, meters):
    assert float(gsd_m(lat, 19)) == pytest.approx(meters, abs=5e-5)


def test_a_matched_view_of_cvact():
    """Zoom 20 at twice the pixels: 1,200 px are about 73 m."""
    assert float(gsd_m(-35.3, 20)) / 2 == pytest.approx(0.0609, abs=5e-5)
    assert 1200 * float(gsd_m(-35.3, 20)) / 2 == pytest.approx(73, abs=0.2)


def neighbors(lon, lat, k, **options):
    table = pa.table({"id": [f"p{row}" for row in range(len(lon))], "lon": lon, "lat": lat})
    return distance_map(table, k, **options)


def test_neighbors_along_a_meridian():
    latitudes = [0.0, 0.001, 0.003, 0.007, 0.015]
    found = neighbors([0.0] * 5, latitudes, 2)
    assert found["neighbor_rows"].to_pylist() == [[1, 2], [0, 2], [1, 0], [2, 1], [3, 2]]


def test_east_is_as_far_as_it_is():
    """At this latitude, taken for radians, the cosine is 0: the published scripts see no distance to the east."""
    lon, lat = [0.0, 0.01, 0.0], [39.2699081, 39.2699081, 39.2699081 + 0.001]
    right, published = neighbors(lon, lat, 2), neighbors(lon, lat, 2, legacy_degrees=True)
    assert right["neighbor_rows"][0].as_py() == [2, 1]
    assert right["distances_m"][0].as_py() == pytest.approx([111.2, 860.84], abs=0.01)
    assert published["neighbor_rows"][0].as_py() == [1, 2]


def test_two_pi_degrees_are_not_nothing():
    """A great circle is not closed after 6.28 degrees, as degrees taken for radians have it."""
    lon, lat = [-0.1, -0.1, -0.1], [51.5, 51.5 + 2 * np.pi, 51.501]
    right, published = neighbors(lon, lat, 1), neighbors(lon, lat, 1, legacy_degrees=True)
    assert right["neighbor_rows"].to_pylist() == [[2], [2], [0]]
    assert published["neighbor_rows"].to_pylist()[:2] == [[1], [0]]


def test_the_share_of_a_longitude_in_london():
    """A thousandth of a degree to the east and to the north: 69.22056 and 111.19508 m, 0.6225 of one another."""
    found = neighbors([-0.1, -0.099, -0.1], [51.5, 51.5, 51.501], 2)
    east_m, north_m = found["distances_m"][0].as_py()
    assert found["neighbor_rows"][0].as_py() == [1, 2]
    assert (east_m, north_m) == pytest.approx((69.22056, 111.19508), abs=1e-4)
    assert east_m / north_m == pytest.approx(0.6225, abs=5e-5)
