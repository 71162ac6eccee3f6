"""The laws of the window grid, against mercantile and against shapely window by window."""

from __future__ import annotations

import time

import mercantile
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Polygon, box

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.aoi.vectors import solid
from cvgl_data.errors import GridError
from cvgl_data.geo import lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.grid import MAX_ZOOM, TileGrid, world_px
from cvgl_data.types import Tile, Window

# Stride divides the size, or the overlap in pixels does.
LAYOUTS = [(256, 0.0), (256, 0.5), (256, 0.75), (256, 0.25), (200, 0.2), (300, 1 / 3), (512, 0.5)]


@st.composite
def areas(draw, zoom=16, reach_px=2000):
    """Return a polygon with 3 to 9 corners and perhaps a hole, a few windows wide, anywhere on earth."""
    lon, lat = draw(st.floats(-180, 180)), draw(st.floats(-75, 75))
    x, y = pixel_from_lonlat(lon, lat, zoom)
    angles = np.sort(draw(st.lists(st.floats(0, 2 * np.pi), min_size=3, max_size=9)))
    radii = np.array(draw(st.lists(st.floats(200, reach_px), min_size=len(angles), max_size=len(angles))))
    corners = np.stack(lonlat_from_pixel(x + radii * np.cos(angles), y + radii * np.sin(angles), zoom), axis=1)
    center = np.array([lon, lat])
    polygon = shapely.make_valid(Polygon(corners))
    if draw(st.booleans()):
        polygon = polygon.difference(Polygon(center + 0.4 * (corners - center)).buffer(0))
    if polygon.area < 1e-9:
        polygon = box(*(center - 0.01), *(center + 0.01))
    return AreaOfInterest.from_geometry(solid(polygon), "random")


def in_pixels(area: AreaOfInterest, zoom: int, pieces: int = 60):
    """Return the area in global pixels with every edge in many pieces, as the exact shape to compare with."""

    def project(ring):
        coords = shapely.get_coordinates(ring)
        t = np.linspace(0, len(coords) - 1, (len(coords) - 1) * pieces + 1)
        lon, lat = (np.interp(t, np.arange(len(coords)), column) for column in coords.T)
        return np.stack(pixel_from_lonlat(lon, lat, zoom), axis=1)

    parts = [
        Polygon(project(part.exterior)) - shapely.union_all([Polygon(project(ring)) for ring in part.interiors])
        for part in shapely.get_parts(area.geometry)
    ]
    return shapely.union_all(parts)


def brute_force(area: AreaOfInterest, grid: TileGrid, slack_px: float = 0.0, pieces: int = 60) -> set[tuple[int, int]]:
    """Return the corners of all windows of the world grid that share pixels with the area."""
    world, exact = world_px(grid.zoom), in_pixels(area, grid.zoom, pieces)
    exact = shapely.union_all([exact, shapely.transform(exact, lambda xy: np.add(xy, (world, 0)))])
    if slack_px:
        exact = exact.buffer(slack_px)
    xs = np.arange(0, world, grid.stride)
    ys = np.unique(np.minimum(np.arange(0, world - grid.size + grid.stride, grid.stride), world - grid.size))
    west, north, east, south = exact.bounds
    ys = ys[(ys <= south) & (ys + grid.size >= north)]
    pairs = []
    for part in shapely.get_parts(exact):
        west, _, east, _ = part.bounds
        near = xs[(xs <= east) & (xs + grid.size >= west)]
        pairs += [(x, y) for x in near.tolist() for y in ys.tolist()]
    if not pairs:
        return set()
    x, y = np.array(sorted(set(pairs))).T
    squares = shapely.box(x, y, x + grid.size, y + grid.size)
    shapely.prepare(exact)
    shares = shapely.intersects(exact, squares)
    unsure = shares & ~shapely.contains_properly(exact, squares)
    shares[unsure] = shapely.area(shapely.intersection(exact, squares[unsure])) > 0
    return set(zip(x[shares].tolist(), y[shares].tolist(), strict=True))


def corners(windows) -> set[tuple[int, int]]:
    return {(window.x, window.y) for window in windows}


class TestLaws:
    @settings(max_examples=25, deadline=None)
    @given(areas(), st.sampled_from(LAYOUTS))
    def test_the_same_as_looking_at_every_window(self, area, layout):
        grid = TileGrid(16, *layout)
        found = corners(grid.cover(area))
        # Two exact shapes differ by the 0.01 px to which edges are followed.
        assert brute_force(area, grid, slack_px=-0.02) <= found <= brute_force(area, grid, slack_px=0.02)

    @settings(max_examples=25, deadline=None)
    @given(areas(), st.sampled_from(LAYOUTS))
    def test_windows_cover_the_area_and_each_meets_it(self, area, layout):
        grid, exact = TileGrid(16, *layout), in_pixels(area, 16)
        windows = grid.cover(area)
        left, top, right, bottom = windows.bounds_px().T
        squares = shapely.box(left, top, right, bottom)
        world = world_px(16)
        wrapped = shapely.box(left - world, top, right - world, bottom)
        assert exact.difference(shapely.union_all([*squares, *wrapped])).area < 1e-6 * exact.area
        near = np.minimum(shapely.distance(squares, exact), shapely.distance(wrapped, exact))
        assert near.max() < 0.02

    @settings(max_examples=25, deadline=None)
    @given(areas(), st.sampled_from(LAYOUTS))
    def test_windows_are_on_the_grid_once_and_in_order(self, area, layout):
        grid = TileGrid(16, *layout)
        windows = grid.cover(area)
        assert np.all(windows.x % grid.stride == 0)
        assert np.all((windows.x >= 0) & (windows.x < world_px(16)))
        assert np.all((windows.y >= 0) & (windows.y + grid.size <= world_px(16)))
        keys = windows.keys()
        assert keys == sorted(set(keys))

    @settings(max_examples=25, deadline=None)
    @given(areas(), st.integers(0, 2**32))
    def test_an_inner_point_of_a_half_overlap_grid_is_in_four_windows(self, area, seed):
        exact = in_pixels(area, 16)
        inside = exact.buffer(-0.05)
        windows = TileGrid(16, 256, 0.5).cover(area)
        x = np.random.default_rng(seed).uniform(*exact.bounds[::2], 50)
        y = np.random.default_rng(seed + 1).uniform(*exact.bounds[1::2], 50)
        keep = shapely.contains_xy(inside, x, y) & (y > 128) & (y < world_px(16) - 128)
        for px, py in zip(x[keep], y[keep], strict=True):
            east_of = (px - windows.x) % world_px(16)
            assert np.sum((east_of < 256) & (windows.y <= py) & (py < windows.y + 256)) == 4

    @settings(deadline=None)
    @given(st.floats(-179, 178), st.floats(-84, 83), st.floats(0.001, 0.1), st.floats(0.001, 0.1), st.integers(0, 15))
    def test_without_overlap_windows_are_mercantiles_tiles(self, west, south, width, height, zoom):
        area = AreaOfInterest.from_bbox(west, south, west + width, south + height)
        windows = TileGrid(zoom).cover(area)
        theirs = {Tile(*tile) for tile in mercantile.tiles(*area.bounds, zooms=zoom)}
        assert {tile for window in windows for tile in window.tiles} == theirs
        assert len(windows) == windows.num_tiles() == len(theirs)

    @pytest.mark.parametrize("zoom", range(MAX_ZOOM + 1))
    def test_the_bounds_of_a_tile_give_that_tile(self, zoom):
        rng = np.random.default_rng(zoom)
        for x, y in rng.integers(0, 2**zoom, (20, 2)).tolist():
            area = AreaOfInterest.from_bbox(*mercantile.bounds(x, y, zoom))
            assert list(TileGrid(zoom).cover(area)) == [Window(x * 256, y * 256, 256, zoom)]


class TestEdgesOfTheWorld:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_whole_world(self, layout):
        grid = TileGrid(3, *layout)
        windows = grid.cover(AreaOfInterest.from_bbox(-180, -85.0511287, 180, 85.0511287))
        assert len(windows) == -(-2048 // grid.stride) * (-(-(2048 - grid.size) // grid.stride) + 1)
        assert windows.y.max() + grid.size == 2048
        assert windows.num_tiles() == 64

    def test_zoom_0(self):
        area = AreaOfInterest.from_city("singapore")
        assert list(TileGrid(0).cover(area)) == [Window(0, 0, 256, 0)]
        assert corners(TileGrid(0, 256, 0.5).cover(area)) == {(0, 0), (128, 0)}

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("bbox", [(179.9, 10, -179.9, 10.1), (179.9, 10, 180, 10.1), (-180, 10, -179.9, 10.1)])
    def test_across_the_antimeridian(self, layout, bbox):
        grid = TileGrid(12, *layout)
        area = AreaOfInterest.from_bbox(*bbox)
        windows = grid.cover(area)
        assert corners(windows) == brute_force(area, grid)
        assert len(set(windows.keys())) == len(windows)
        tiles = {tile for window in windows for tile in window.tiles}
        assert tiles >= {Tile(*tile) for tile in mercantile.tiles(*bbox, zooms=12)}
        assert len(tiles) == windows.num_tiles()
        lon, _ = windows.centers()
        assert np.all((lon >= -180) & (lon < 180))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_near_the_poles(self, layout):
        grid = TileGrid(10, *layout)
        for south, north in [(84.9, 85.05112877), (-85.05112877, -84.9), (-85.05112877, -85.0511)]:
            area = AreaOfInterest.from_bbox(10, south, 11, north)
            assert corners(grid.cover(area)) == brute_force(area, grid)


class TestShapes:
    def test_holes_and_separate_parts(self):
        def window_box(x0, y0, x1, y1):  # in windows of zoom 12, a little inside
            lon, lat = lonlat_from_pixel([x0 * 256 + 1, x1 * 256 - 1], [y1 * 256 - 1, y0 * 256 + 1], 12)
            return box(lon[0], lat[0], lon[1], lat[1])

        hole = window_box(1998, 1498, 2003, 1503).buffer(1e-3, join_style="mitre")
        outer = window_box(1990, 1490, 2010, 1510)
        area = AreaOfInterest.from_geometry(
            MultiPolygon([Polygon(outer.exterior, [hole.exterior.coords]), window_box(100, 100, 101, 102)]), "parts"
        )
        expected = {(x, y) for x in range(1990, 2010) for y in range(1490, 1510)}
        expected -= {(x, y) for x in range(1998, 2003) for y in range(1498, 1503)}
        expected |= {(100, 100), (100, 101)}
        assert corners(TileGrid(12).cover(area)) == {(x * 256, y * 256) for x, y in expected}

    def test_a_window_that_only_touches_is_left_out(self):
        west, south, east, north = mercantile.bounds(2048, 2000, 12)
        area = AreaOfInterest.from_geometry(Polygon([(west, south), (east, south), (east, north)]), "half")
        assert corners(TileGrid(12).cover(area)) == {(2048 * 256, 2000 * 256)}

    def test_long_edges_are_straight_in_degrees(self):
        """An edge over 60 degrees of latitude strays hundreds of pixels from the chord of its projected ends."""
        area = AreaOfInterest.from_geometry(Polygon([(0, 0), (60, 60), (60, 0)]), "triangle")
        grid = TileGrid(6)
        assert corners(grid.cover(area)) == brute_force(area, grid)
        ends = np.stack(pixel_from_lonlat([0, 60, 60], [0, 60, 0], 6), axis=1)
        x, y = pixel_from_lonlat(30, 30, 6)
        assert Polygon(ends).exterior.distance(shapely.Point(x, y)) > 100

    def test_a_hole_that_rounding_moves_onto_the_edge(self):
        shell = [
            (0.0042915344238281, 0.4999999999999992),
            (-0.0134892633392099, 0.4980772250773418),
            (-0.0169570356335953, 0.519632439432056),
            (0.0365853309631348, 0.4999999999999992),
        ]
        hole = [
            (-0.0067828142534381, 0.5078529757728224),
            (-0.0053957053356839, 0.4992308900309367),
            (0.0017166137695312, 0.4999999999999997),
            (0.0146341323852539, 0.4999999999999997),
        ]
        area = AreaOfInterest.from_geometry(Polygon(shell, [hole]), "noise")
        found = corners(TileGrid(16).cover(area))
        assert found == brute_force(area, TileGrid(16))
        assert (8388352, 8365056) not in found  # it lies in the hole

    @pytest.mark.parametrize("city", ["seattle", "new-york", "barcelona", "rio-de-janeiro"])
    @pytest.mark.parametrize("overlap", [0.0, 0.5])
    def test_real_cities(self, city, overlap):
        area, grid = AreaOfInterest.from_city(city), TileGrid(14, 256, overlap)
        assert corners(grid.cover(area)) == brute_force(area, grid, pieces=1)


class TestWindows:
    @pytest.fixture
    def windows(self):
        return TileGrid(18, 256, 0.5).cover(AreaOfInterest.from_bbox(-122.34, 47.60, -122.33, 47.61))

    def test_columns_and_tuples_say_the_same(self, windows):
        lon, lat = windows.centers()
        gsd, keys, bounds = windows.gsd_m(), windows.keys(), windows.bounds_px()
        assert len(windows) == len(list(windows)) == len(keys) > 100
        for index, window in enumerate(windows):
            assert windows[index] == window
            assert keys[index] == window.key
            assert window.center == pytest.approx((lon[index], lat[index]), abs=1e-12)
            assert window.gsd_m == pytest.approx(gsd[index])
            assert bounds[index].tolist() == [window.x, window.y, window.x + 256, window.y + 256]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_tiles_are_counted_once(self, layout):
        windows = TileGrid(16, *layout).cover(AreaOfInterest.from_bbox(-122.4, 47.55, -122.3, 47.65))
        assert windows.num_tiles() == len({tile for window in windows for tile in window.tiles})

    def test_slices_and_masks_are_windows(self, windows):
        assert list(windows[:3]) == list(windows)[:3]
        assert list(windows[windows.x == windows.x[0]]) == [window for window in windows if window.x == windows.x[0]]
        assert len(windows[:0]) == windows[:0].num_tiles() == 0

    def test_seattle_has_the_published_gsd(self, windows):
        assert windows.gsd_m().mean() == pytest.approx(0.402, abs=1e-3)


class TestRefused:
    @pytest.mark.parametrize("zoom", [-1, 24, 18.5])
    def test_zoom(self, zoom):
        with pytest.raises(GridError, match=f"zoom {zoom} is outside 0 to 23"):
            TileGrid(zoom)

    @pytest.mark.parametrize("size", [0, -256, 513])
    def test_size(self, size):
        with pytest.raises(GridError, match=rf"windows of {size} px do not fit at zoom 1; the size is 1 to 512 px"):
            TileGrid(1, size)

    @pytest.mark.parametrize("overlap", [0.3, -0.5, 1.0, 0.999, 2.0, float("nan")])
    def test_overlap(self, overlap):
        with pytest.raises(GridError, match="does not divide windows of 256 px evenly; the nearest that do: 0"):
            TileGrid(18, 256, overlap)

    def test_the_message_names_overlaps_that_work(self):
        with pytest.raises(GridError) as caught:
            TileGrid(18, 256, 0.45)
        named = [float(word) for word in str(caught.value).split(": ")[1].split(", ")]
        assert 0.5 in named
        assert all(TileGrid(18, 256, overlap).stride == round(256 * (1 - overlap)) for overlap in named)

    @given(st.integers(1, 700), st.floats(0, 0.999))
    def test_accepted_means_that_something_divides(self, size, overlap):
        stride = size * (1 - overlap)
        near = round(stride)
        divides = near >= 1 and (size % near == 0 or (near < size and size % (size - near) == 0))
        if abs(stride - near) < 0.01 and divides:
            assert TileGrid(18, size, overlap).stride == near
        else:
            with pytest.raises(GridError):
                TileGrid(18, size, overlap)

    def test_too_many(self):
        with pytest.raises(GridError, match="area 'bbox' has more than 50,000,000 windows at zoom 23"):
            TileGrid(23).cover(AreaOfInterest.from_bbox(-10, 40, 10, 60))


def test_a_million_windows_in_two_seconds():
    grid, area = TileGrid(21), AreaOfInterest.from_city("seattle")
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        count = len(grid.cover(area))
        seconds.append(time.perf_counter() - started)
    assert count > 1_000_000
    assert min(seconds) < 2.0
