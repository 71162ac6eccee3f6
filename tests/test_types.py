"""Tiles and windows against mercantile and by hand."""

from __future__ import annotations

import mercantile
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvgl_data.types import Outcome, Tile, Window


@st.composite
def tiles(draw):
    z = draw(st.integers(0, 24))
    return Tile(draw(st.integers(0, 2**z - 1)), draw(st.integers(0, 2**z - 1)), z)


@pytest.mark.parametrize("z", range(25))
def test_tiles_are_mercantiles(z):
    n = 2**z
    for x, y in {(0, 0), (n - 1, n - 1), (n // 3, n // 2), (n - 1, n // 5), (n * 5 // 7, n * 2 // 3)}:
        ours, theirs = Tile(x, y, z), mercantile.Tile(x, y, z)
        assert ours.bounds == pytest.approx(tuple(mercantile.bounds(theirs)), abs=1e-12)
        assert ours.quadkey == mercantile.quadkey(theirs)
        assert mercantile.tile(*ours.center, z) == theirs
        assert str(ours) == f"{z}/{x}/{y}"


@given(tiles())
def test_any_tile_is_mercantiles(tile):
    assert tile.bounds == pytest.approx(tuple(mercantile.bounds(*tile)), abs=1e-12)
    assert tile.quadkey == mercantile.quadkey(*tile)


@given(tiles())
def test_a_window_on_a_tile_is_that_tile(tile):
    window = Window(tile.x * 256, tile.y * 256, 256, tile.z)
    assert window.tiles == [tile]
    assert (window.bounds, window.center) == (tile.bounds, tile.center)


def test_golden_tile():
    # From mercantile's own documentation.
    assert Tile(486, 332, 10).quadkey == "0313102310"
    assert Tile(486, 332, 10).bounds == pytest.approx(
        (-9.140625, 53.12040528310657, -8.7890625, 53.33087298301705), abs=1e-12
    )


def test_a_window_off_the_tiles_touches_them_row_by_row():
    assert Window(128, 128, 256, 3).tiles == [Tile(0, 0, 3), Tile(1, 0, 3), Tile(0, 1, 3), Tile(1, 1, 3)]
    assert Window(256, 128, 256, 3).tiles == [Tile(1, 0, 3), Tile(1, 1, 3)]
    assert Window(0, 0, 257, 3).tiles == [Tile(0, 0, 3), Tile(1, 0, 3), Tile(0, 1, 3), Tile(1, 1, 3)]


def test_a_window_across_the_antimeridian():
    window = Window(8 * 256 - 64, 1024, 256, 3)
    assert window.tiles == [Tile(7, 4, 3), Tile(0, 4, 3)]
    assert window.center.lon == pytest.approx(-180 + 64 / 2048 * 360)
    assert window.bounds.west == pytest.approx(180 - 64 / 2048 * 360)
    assert window.bounds.east == pytest.approx(-180 + 192 / 2048 * 360)


def test_keys_are_unique_and_sort_like_numbers():
    places = [(0, 0), (0, 5), (999_999_999, 0), (1_000_000_000, 7), (2**31 - 256, 2**31 - 256)]
    keys = [Window(x, y, 256, 23).key for x, y in places]
    assert keys == sorted(set(keys))
    assert Window(1, 2, 256, 9).key < Window(0, 0, 256, 18).key


@pytest.mark.parametrize(
    ("lat", "lon", "side_m"),
    # Side of a 256 px window of zoom 18 is 256/224 of that of the 224 px image the published table speaks of.
    [(41.88, -87.65, 99.6), (51.51, -0.13, 83.3), (25.05, 121.5, 121.2)],
)
def test_window_gsd(lat, lon, side_m):
    tile = Tile(*mercantile.tile(lon, lat, 18))
    window = Window(tile.x * 256, tile.y * 256, 256, 18)
    assert window.gsd_m * 224 == pytest.approx(side_m, abs=0.1)


def test_outcomes_say_what_to_ask_again():
    assert Outcome.TIMEOUT.is_transient
    assert Outcome.TRUNCATED.is_transient
    assert not any(Outcome(word).is_transient for word in ("ok", "not_found", "no_imagery", "auth"))
