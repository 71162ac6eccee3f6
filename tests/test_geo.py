"""Mercator and great-circle arithmetic: mercantile, published numbers, round trips."""

from __future__ import annotations

import mercantile
import numpy as np
import pyproj
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvgl_data import geo

LONS = st.floats(-180, 180)
LATS = st.floats(-85, 85)
ZOOMS = st.integers(0, 24)


@pytest.mark.parametrize("zoom", range(25))
def test_pixels_lie_in_mercantiles_tiles(zoom):
    rng = np.random.default_rng(zoom)
    lon, lat = rng.uniform(-180, 180, 50), rng.uniform(-85, 85, 50)
    x, y = geo.pixel_from_lonlat(lon, lat, zoom)
    theirs = [mercantile.tile(*place, zoom) for place in zip(lon, lat, strict=True)]
    assert [(int(px // 256), int(py // 256)) for px, py in zip(x, y, strict=True)] == [(t.x, t.y) for t in theirs]
    corner_lon, corner_lat = geo.lonlat_from_pixel(
        [tile.x * 256 for tile in theirs], [tile.y * 256 for tile in theirs], zoom
    )
    corners = [mercantile.ul(tile) for tile in theirs]
    np.testing.assert_allclose(corner_lon, [c.lng for c in corners], atol=1e-12)
    np.testing.assert_allclose(corner_lat, [c.lat for c in corners], atol=1e-12)


@given(LONS, LATS, ZOOMS)
def test_round_trip(lon, lat, zoom):
    back_lon, back_lat = geo.lonlat_from_pixel(*geo.pixel_from_lonlat(lon, lat, zoom), zoom)
    assert back_lon == pytest.approx(lon, abs=1e-10)
    assert back_lat == pytest.approx(lat, abs=1e-10)


@given(LONS, LATS, ZOOMS)
def test_one_zoom_deeper_has_twice_the_pixels(lon, lat, zoom):
    shallow, deep = geo.pixel_from_lonlat(lon, lat, zoom), geo.pixel_from_lonlat(lon, lat, zoom + 1)
    np.testing.assert_allclose(deep, np.multiply(shallow, 2), rtol=1e-12, atol=1e-6)


@given(st.floats(-90, 90), LATS, st.integers(-1000, 1000))
def test_a_shift_in_longitude_is_a_shift_in_pixels(lon, lat, shift_px):
    world = 256 * 2**18
    x, _ = geo.pixel_from_lonlat([lon, lon + 360.0 * shift_px / world], lat, 18)
    assert x[1] - x[0] == pytest.approx(shift_px, abs=1e-6)


def test_golden_pixels():
    assert geo.pixel_from_lonlat(0, 0, 0) == (128, 128)
    np.testing.assert_allclose(geo.pixel_from_lonlat(-180, 85.05112878, 0), (0, 0), atol=1e-7)
    np.testing.assert_allclose(geo.pixel_from_lonlat(180, -geo.MAX_LAT_DEG, 0), (256, 256), atol=1e-9)
    x, y = geo.pixel_from_lonlat([-87.65, -87.6495], [41.88, 41.8805], 18)
    np.testing.assert_allclose((x[1] - x[0], y[1] - y[0]), (93.2068, -125.1867), atol=1e-4)
    x, y = geo.pixel_from_lonlat(-73.97958215, 40.75290377, 18)
    np.testing.assert_allclose((x / 256, y / 256), (77201.712269, 98522.572235), atol=1e-6)
    x, _ = geo.pixel_from_lonlat([0, 0.002], [0, 0], 19)
    assert x[1] - x[0] == pytest.approx(745.6540, abs=1e-4)


def test_poles_are_finite_and_scalars_stay_scalars():
    _, y = geo.pixel_from_lonlat([0, 0], [90, -90], 0)
    assert np.isfinite(y).all()
    assert y[0] < 0 < 256 < y[1]
    x, _ = geo.pixel_from_lonlat(1.0, 2.0, 3)
    assert np.ndim(x) == 0
    assert np.shape(geo.pixel_from_lonlat(np.zeros((2, 3)), np.zeros((2, 3)), 3)[1]) == (2, 3)


@pytest.mark.parametrize(
    ("city", "lat", "gsd_m"),
    [
        ("Chicago", 41.88, 0.4446),
        ("Johannesburg", -26.20, 0.5358),
        ("London", 51.51, 0.3717),
        ("Rio", -22.90, 0.5501),
        ("Sydney", -33.87, 0.4958),
        ("Taipei", 25.03, 0.5411),
        ("Tokyo", 35.68, 0.4851),
        ("Vancouver", 49.25, 0.3898),
        ("Stockholm", 59.33, 0.3046),
    ],
)
def test_gsd_of_the_published_cities(city, lat, gsd_m):
    assert geo.gsd_m(lat, 18) == pytest.approx(gsd_m, abs=1e-4)


def test_gsd_at_the_equator():
    assert geo.gsd_m(0, 18) == pytest.approx(0.597164283)
    assert geo.gsd_m(0, 19) == pytest.approx(0.298582142)
    assert geo.gsd_m([0, 60], 20) == pytest.approx([0.149291071, 0.149291071 / 2])


@given(LONS, st.floats(-80, 80))
def test_gsd_is_the_length_of_a_pixel(lon, lat):
    x, y = geo.pixel_from_lonlat(lon, lat, 20)
    east_lon, east_lat = geo.lonlat_from_pixel(x + 1, y, 20)
    # gsd is on the sphere of Web Mercator, distances on that of the mean radius.
    expected = geo.gsd_m(lat, 20) * geo.EARTH_RADIUS_M / 6378137.0
    assert geo.distance_m(lon, lat, east_lon, east_lat) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("a", "b", "meters", "tolerance"),
    [
        ((0, 51.51), (1e-3, 51.51), 69.205, 5e-4),
        ((179.999, 0), (-179.999, 0), 222.4, 0.05),
        ((-0.1, 51.5), (-0.1, 51.501), 111.19508, 1e-5),
        ((-0.1, 51.5), (-0.099, 51.5), 69.22056, 1e-5),
        ((2.3522, 48.8566), (-0.1278, 51.5074), 343_556.5, 0.1),
        ((0, 0), (180, 0), np.pi * geo.EARTH_RADIUS_M, 1e-6),
        ((12, 34), (12, 34), 0, 0),
    ],
)
def test_golden_distances(a, b, meters, tolerance):
    assert geo.distance_m(*a, *b) == pytest.approx(meters, abs=tolerance)


@given(LONS, LATS, LONS, LATS)
def test_distance_is_pyprojs_on_a_sphere(lon1, lat1, lon2, lat2):
    sphere = pyproj.Geod(a=geo.EARTH_RADIUS_M, b=geo.EARTH_RADIUS_M)
    _, _, theirs = sphere.inv(lon1, lat1, lon2, lat2)
    assert geo.distance_m(lon1, lat1, lon2, lat2) == pytest.approx(theirs, abs=0.2)
    assert geo.distance_m(lon2, lat2, lon1, lat1) == geo.distance_m(lon1, lat1, lon2, lat2)


@given(LONS, LATS, LONS, LATS)
def test_chords_give_the_same_distance(lon1, lat1, lon2, lat2):
    chord = np.linalg.norm(geo.unit_sphere(lon1, lat1) - geo.unit_sphere(lon2, lat2))
    assert geo.meters_from_chord(chord) == pytest.approx(float(geo.distance_m(lon1, lat1, lon2, lat2)), abs=0.5)


def test_distances_broadcast():
    assert geo.distance_m(np.zeros((3, 1)), 0, np.zeros((1, 4)), 1).shape == (3, 4)


@given(st.floats(-1e4, 1e4))
def test_wrapped_angles(angle):
    wrapped = geo.wrap_deg(angle)
    assert -180 <= wrapped < 180 + 1e-9
    assert np.cos(np.radians(wrapped)) == pytest.approx(np.cos(np.radians(angle)), abs=1e-9)
    assert geo.wrap_deg(180) == -180
