"""The simulated world: exact geometry, determinism, variety, and what dates change."""

from __future__ import annotations

import datetime
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from cvgl_data.geo import gsd_m, lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.simulation import (
    World,
    render_map,
    render_panorama,
    render_tile,
    season,
    solids,
    trace_panorama,
    trace_tile,
)
from cvgl_data.types import BBox, Tile

WORLD = World(0)
JUNE = datetime.date(2023, 6, 15)
SEATTLE = BBox(-122.336, 47.616, -122.326, 47.622)
TILE = Tile(41994, 91537, 18)

# Places in four cities on both hemispheres with poses of every sign.
POSES = [
    (SEATTLE, 0.0, 0.0, 0.0),
    (SEATTLE, 137.0, 0.0, 0.0),
    (SEATTLE, 250.0, 6.0, -4.0),
    (BBox(151.20, -33.88, 151.21, -33.87), 30.0, -5.0, 8.0),
    (BBox(103.85, 1.29, 103.86, 1.30), 301.0, 3.0, 9.0),
    (BBox(18.06, 59.33, 18.07, 59.34), 88.0, 0.0, -12.0),
]


def station(bounds: BBox, number: int = 7) -> tuple[float, float]:
    return next(itertools.islice(WORLD.stations(bounds, 40.0), number, None))


def square_round(lon: float, lat: float, half_m: float) -> BBox:
    zoom = 20
    x, y = pixel_from_lonlat(lon, lat, zoom)
    half = half_m / float(gsd_m(lat, zoom))
    west, north = lonlat_from_pixel(x - half, y - half, zoom)
    east, south = lonlat_from_pixel(x + half, y + half, zoom)
    return BBox(float(west), float(south), float(east), float(north))


def look_down(
    layer: np.ndarray, heading: float, pitch: float, roll: float, size: int, half_m: float, height: float = 2.5
) -> np.ndarray:
    """Back-project a panorama to flat ground, north up, by the formulas of the pose alone."""
    grid = (np.arange(size) + 0.5) / size * 2 * half_m - half_m
    east, south = np.meshgrid(grid, grid)
    ray = np.stack([east, -south, np.full_like(east, -height)], axis=-1)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    psi, theta, rho = np.radians([heading, pitch, roll])
    forward = np.array([np.cos(theta) * np.sin(psi), np.cos(theta) * np.cos(psi), np.sin(theta)])
    level = np.array([np.cos(psi), -np.sin(psi), 0.0])
    above = np.cross(level, forward)
    right = np.cos(rho) * level - np.sin(rho) * above
    up = np.sin(rho) * level + np.cos(rho) * above
    rows, cols = layer.shape[:2]
    u = cols * (0.5 + np.arctan2(ray @ right, ray @ forward) / (2 * np.pi)) - 0.5
    v = rows * (0.5 - np.arcsin(np.clip(ray @ up, -1, 1)) / np.pi) - 0.5
    wide = np.concatenate([layer[:, -2:], layer, layer[:, :2]], axis=1)
    if layer.ndim == 2:
        return map_coordinates(wide, [v, u + 2], order=0, mode="nearest")
    return np.stack(
        [map_coordinates(wide[..., c].astype(float), [v, u + 2], order=1, mode="nearest") for c in range(3)], -1
    )


def back_projection_error(
    bounds: BBox, pose: tuple[float, float, float], assumed: tuple[float, float, float] | None = None
) -> tuple[float, float]:
    """Return mean absolute difference in levels, and the share of ground compared, within 10 m."""
    lon, lat = station(bounds)
    heading, pitch, roll = pose
    seen = trace_panorama(
        WORLD, lon, lat, heading_deg=heading, pitch_deg=pitch, roll_deg=roll, date=JUNE, shadows=False
    )
    size, half = 200, 10.0
    above = trace_tile(WORLD, square_round(lon, lat, half), size, date=JUNE, shadows=False)
    down = look_down(seen.image, *(assumed or pose), size, half)
    ground = look_down(seen.label, *pose, size, half) == solids.GROUND
    grid = np.abs(np.arange(size) + 0.5 - size / 2) / size * 2 * half
    near = np.hypot(*np.meshgrid(grid, grid)) <= 10.0
    depth = look_down(seen.depth_m, *pose, size, half)
    assert np.all(depth[ground & near] < math.hypot(10.5, 2.5))
    mask = near & ground & (above.label == solids.GROUND)
    return float(np.abs(down - above.image)[mask].mean()), float(mask.sum() / near.sum())


@pytest.mark.parametrize(("bounds", "heading", "pitch", "roll"), POSES)
def test_ground_of_panorama_equals_tile(bounds: BBox, heading: float, pitch: float, roll: float):
    error, share = back_projection_error(bounds, (heading, pitch, roll))
    assert error <= 5.0
    assert share > 0.5


@pytest.mark.parametrize("wrong", [(-250.0, 6.0, -4.0), (250.0, -6.0, -4.0), (250.0, 6.0, 4.0), (253.0, 6.0, -4.0)])
def test_exactness_test_notices_a_wrong_pose(wrong: tuple[float, float, float]):
    pose = (250.0, 6.0, -4.0)
    right, _ = back_projection_error(SEATTLE, pose)
    assert back_projection_error(SEATTLE, pose, wrong)[0] > 1.5 * right


def test_heading_turns_columns():
    lon, lat = station(SEATTLE)
    north = trace_panorama(WORLD, lon, lat, date=JUNE, width=256).depth_m
    east = trace_panorama(WORLD, lon, lat, heading_deg=90.0, date=JUNE, width=256).depth_m
    # What was 64 columns right of the centre is at the centre when the camera looks east.
    same = np.isclose(np.roll(north, -64, axis=1), east, rtol=1e-5)
    assert same.mean() > 0.999


def test_pitch_raises_the_horizon_and_roll_turns_it():
    lon, lat = station(SEATTLE)

    def horizon(column: int, **pose: float) -> int:
        """First row from below whose ray does not go down."""
        depth = trace_panorama(WORLD, lon, lat, date=JUNE, width=512, camera_height_m=90.0, **pose).depth_m
        return int(np.isinf(depth[:, column]).sum())

    level = horizon(256)
    assert abs(level - 128) <= 1
    # Looking up lowers the horizon in the image: more sky; 10 degrees are 14.2 rows.
    assert abs(horizon(256, pitch_deg=10.0) - (level + 14.2)) <= 2
    # Counter-clockwise: the horizon sinks on the left and rises on the right.
    assert abs(horizon(128, roll_deg=10.0) - (level + 14.2)) <= 2
    assert abs(horizon(384, roll_deg=10.0) - (level - 14.2)) <= 2


def test_sun_stands_where_it_shines_from():
    """The brightest spot of the sky is the sun, and shadows fall away from it."""
    lon, lat = station(SEATTLE)
    east, north, up = season.sun_direction(JUNE, lat)
    seen = trace_panorama(WORLD, lon, lat, date=JUNE, width=1024)
    v = int(512 * (0.5 - math.asin(up) / math.pi))
    u = int(1024 * (0.5 + math.atan2(east, north) / (2 * math.pi)))
    if seen.label[v, u] == solids.SKY:
        assert seen.image[v, u].min() > 230
    assert math.isclose(math.hypot(east, north, up), 1.0)


@pytest.mark.parametrize(
    ("date", "lat", "noon_elevation"),
    [(datetime.date(2023, 6, 21), 47.6, 65.8), (datetime.date(2023, 12, 21), -33.9, 79.5), (JUNE, 23.4, 89.9)],
)
def test_sun_stays_below_its_noon(date: datetime.date, lat: float, noon_elevation: float):
    elevation = math.degrees(math.asin(season.sun_direction(date, lat)[2]))
    assert noon_elevation - 24.0 < elevation < noon_elevation


def test_polar_night_still_has_light():
    assert season.sun_direction(datetime.date(2023, 12, 21), 80.0)[2] == pytest.approx(
        math.sin(math.radians(season.MIN_SUN_ELEVATION_DEG))
    )


def test_same_arguments_same_pixels():
    lon, lat = station(SEATTLE)
    first = render_panorama(WORLD, lon, lat, date=JUNE, width=256)
    assert np.array_equal(first, render_panorama(World(0), lon, lat, date=JUNE, width=256))
    assert not np.array_equal(first, render_panorama(World(1), lon, lat, date=JUNE, width=256))


def test_tiles_join_without_seams_and_zooms_agree():
    whole = render_tile(WORLD, TILE.bounds, 512, date=JUNE).astype(int)
    for child_x, child_y in itertools.product(range(2), range(2)):
        part = render_tile(WORLD, Tile(2 * TILE.x + child_x, 2 * TILE.y + child_y, 19).bounds, 256, date=JUNE).astype(
            int
        )
        quarter = whole[256 * child_y : 256 * child_y + 256, 256 * child_x : 256 * child_x + 256]
        # Only samples that fall on an edge may differ, by rounding.
        assert (np.abs(part - quarter).max(axis=-1) > 2).mean() < 0.002


@settings(max_examples=15, deadline=None)
@given(st.floats(-180, 180), st.floats(-84, 84), st.integers(0, 22), st.integers(-(2**63), 2**63 - 1), st.dates())
def test_any_place_zoom_seed_and_date_renders(lon: float, lat: float, zoom: int, seed: int, date: datetime.date):
    x, y = pixel_from_lonlat(lon, lat, zoom)
    side = 2**zoom
    tile = Tile(min(int(x // 256), side - 1), min(int(y // 256), side - 1), zoom)
    image = render_tile(World(seed), tile.bounds, 16, date=date)
    assert image.shape == (16, 16, 3)
    assert image.mean() > 20
    assert render_map(World(seed), tile.bounds, 16).mean() > 100


def test_the_world_closes_at_the_antimeridian():
    across = render_tile(WORLD, Tile(0, 130000, 18).bounds, 64, date=JUNE)
    west, south, east, north = Tile(0, 130000, 18).bounds
    around = render_tile(WORLD, BBox(west + 360, south, east + 360, north), 64, date=JUNE)
    assert (np.abs(across.astype(int) - around).max(axis=-1) > 2).mean() < 0.01


def test_places_differ():
    """Neighboring tiles and panoramas are told apart by more than noise."""
    tiles = [render_tile(WORLD, Tile(TILE.x + k, TILE.y, 18).bounds, 64, date=JUNE).astype(float) for k in range(8)]
    differences = [np.abs(a - b).mean() for a, b in itertools.combinations(tiles, 2)]
    assert min(differences) > 15


def test_all_kinds_of_things_appear():
    labels = set()
    for bounds in (SEATTLE, POSES[3][0], POSES[4][0]):
        for number in range(0, 60, 12):
            lon, lat = station(bounds, number)
            labels |= set(np.unique(trace_panorama(WORLD, lon, lat, date=JUNE, width=256).label).tolist())
    assert labels == set(range(6))


def test_dates_change_leaves_sun_and_cars():
    bounds = TILE.bounds
    summer = trace_tile(WORLD, bounds, 256, date=JUNE, shadows=False)
    winter = trace_tile(WORLD, bounds, 256, date=datetime.date(2023, 1, 15), shadows=False)
    next_day = trace_tile(WORLD, bounds, 256, date=datetime.date(2023, 6, 16), shadows=False)
    leaves = (summer.label == solids.VEGETATION) & (winter.label == solids.VEGETATION)

    def greenness(image: np.ndarray) -> float:
        return float((image[..., 1].astype(float) - image[..., 0])[leaves].mean())

    assert greenness(summer.image) > greenness(winter.image) + 10
    assert np.array_equal(summer.label == solids.BUILDING, next_day.label == solids.BUILDING)
    cars = summer.label == solids.VEHICLE
    assert (cars != (next_day.label == solids.VEHICLE)).sum() / cars.sum() > 0.1
    dark = {date: render_tile(WORLD, bounds, 256, date=date).mean() for date in (JUNE, datetime.date(2023, 12, 21))}
    assert dark[datetime.date(2023, 12, 21)] < dark[JUNE]


def test_shadows_only_darken():
    lit = trace_tile(WORLD, TILE.bounds, 128, date=JUNE, shadows=False).image.astype(int)
    real = trace_tile(WORLD, TILE.bounds, 128, date=JUNE).image.astype(int)
    assert (real <= lit + 1).all()
    assert (real < lit - 20).any(axis=-1).mean() > 0.03


def test_map_shows_buildings_where_the_tile_does():
    label = trace_tile(WORLD, TILE.bounds, 256, date=JUNE).label
    drawn = render_map(WORLD, TILE.bounds, 256).astype(int)
    building = (np.abs(drawn - (217, 208, 201)).sum(axis=-1) < 6) | (np.abs(drawn - (190, 176, 166)).sum(axis=-1) < 6)
    visible = (label == solids.BUILDING).mean()
    assert visible > 0.1
    assert building[label == solids.BUILDING].mean() > 0.85
    assert building[label == solids.GROUND].mean() < 0.05


def test_stations_are_on_lanes_and_clear():
    found = list(WORLD.stations(SEATTLE, 25.0))
    assert len(found) == len(set(found)) > 300
    for lon, lat in found[::40]:
        assert WORLD.lane_heading_deg(lon, lat) is not None
        below = trace_panorama(WORLD, lon, lat, date=JUNE, width=64)
        assert (below.label[-4:] == solids.GROUND).all()
        assert below.depth_m.min() >= 0.8
        roof = trace_tile(WORLD, square_round(lon, lat, 0.5), 4, date=JUNE).label
        assert not np.isin(roof, (solids.BUILDING, solids.VEHICLE)).any()


def test_stations_do_not_depend_on_the_box():
    whole = list(WORLD.stations(SEATTLE, 25.0))
    middle = -122.331
    left = list(WORLD.stations(SEATTLE._replace(east=middle), 25.0))
    right = list(WORLD.stations(SEATTLE._replace(west=middle), 25.0))
    assert set(whole) == set(left) | set(right)
    assert [item for item in whole if item in set(left)] == left
    # 25 m apart along every street of a city with some 20 km of street per square kilometer.
    assert 400 < len(whole) < 900


def test_stations_across_the_antimeridian():
    found = list(WORLD.stations(BBox(179.995, 10.0, -179.995, 10.005), 30.0))
    assert {lon > 0 for lon, _ in found} == {True, False}


def test_traffic_keeps_to_the_right():
    """Half a lane to the right of a car, the lane still runs its way; across the street it runs the other way."""
    opposite = 0
    for lon, lat in itertools.islice(WORLD.stations(SEATTLE, 40.0), 0, 120, 4):
        heading = WORLD.lane_heading_deg(lon, lat)
        assert heading is not None
        angle = math.radians(heading - 90.0)
        for meters in np.arange(0.5, 9.0, 0.5):
            away = meters / 111_195.0
            other = WORLD.lane_heading_deg(
                lon + away * math.sin(angle) / math.cos(math.radians(lat)), lat + away * math.cos(angle)
            )
            if other is not None and abs((other - heading + 180) % 360 - 180) > 150:
                opposite += 1
                break
    assert opposite >= 20


@pytest.mark.parametrize("options", [{"width": 255}, {"width": 0}, {"camera_height_m": 0.0}])
def test_impossible_cameras_are_refused(options: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(options))):
        render_panorama(WORLD, 0.0, 0.0, date=JUNE, **options)


def test_bounds_must_be_square():
    with pytest.raises(ValueError, match="square"):
        render_tile(WORLD, BBox(0.0, 0.0, 0.001, 0.002), date=JUNE)
