import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data.errors import FetchError
from cvgl_data.panorama import View, from_tiles, from_views, north_align, to_bev
from cvgl_data.types import Outcome


def directions(width, height):
    """Unit vectors (east, north, up) of a north-aligned panorama's pixels, written out independently."""
    azimuth = -np.pi + 2 * np.pi * (np.arange(width) + 0.5) / width
    elevation = np.pi / 2 - np.pi * (np.arange(height) + 0.5) / height
    a, e = np.meshgrid(azimuth, elevation)
    return np.stack([np.cos(e) * np.sin(a), np.cos(e) * np.cos(a), np.sin(e)])


def axes(heading_deg, pitch_deg, roll_deg=0.0):
    """Camera right, forward, up in the world, from rotation matrices: about the axis of sight, up, to the bearing."""
    h, p, r = np.radians([heading_deg, pitch_deg, roll_deg])
    # The camera frame is right, forward, up; growing roll turns the horizon counter-clockwise, so the camera clockwise.
    roll = np.array([[np.cos(r), 0, np.sin(r)], [0, 1, 0], [-np.sin(r), 0, np.cos(r)]])
    pitch = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    heading = np.array([[np.cos(h), np.sin(h), 0], [-np.sin(h), np.cos(h), 0], [0, 0, 1]])
    return heading @ pitch @ roll


def field(d):
    east, north, up = d
    gray = 127.5 + 55 * np.sin(5 * east + 2 * north) + 45 * np.cos(6 * north - 3 * up) + 20 * np.sin(9 * up + 4 * east)
    return np.stack([gray, gray[:, ::-1], 255 - gray], axis=-1)


def as_uint8(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def psnr(image, truth):
    return 10 * math.log10(255**2 / np.mean((image.astype(float) - truth) ** 2))


def seen_by(heading_deg, pitch_deg, roll_deg, width=2048):
    """The field as a panorama camera with this pose records it."""
    camera = directions(width, width // 2)
    return field_of_world(np.tensordot(axes(heading_deg, pitch_deg, roll_deg), camera, axes=1))


def field_of_world(d):
    east, north, up = d
    gray = 127.5 + 55 * np.sin(5 * east + 2 * north) + 45 * np.cos(6 * north - 3 * up) + 20 * np.sin(9 * up + 4 * east)
    return np.repeat(gray[..., None], 3, axis=-1)


TRUTH = field_of_world(directions(2048, 1024))


@pytest.mark.parametrize("pose", [(30, 0, 0), (94.35, 1.6, 1.72), (200, -5, 8), (359.9, 40, -30)])
def test_full_pose_correction_agrees_with_the_analytic_field(pose):
    source = as_uint8(seen_by(*pose))
    assert psnr(north_align(source, *pose), TRUTH) >= 55


def test_turning_alone_does_not_correct_a_tilted_camera():
    source = as_uint8(seen_by(200, -5, 8))
    assert psnr(north_align(source, 200), TRUTH) < 25
    assert psnr(north_align(source, 200, 5, -8), TRUTH) < 25


def test_roll_sign_is_gpano():
    """Growing roll turns the horizon counter-clockwise in the image: it rises on the right, where less sky is left."""
    d = directions(512, 256)
    world = np.tensordot(axes(0, 0, 10), d, axes=1)
    is_sky = world[2] > 0
    right_of_center, left_of_center = is_sky[:, 256 + 64].sum(), is_sky[:, 256 - 64].sum()
    assert right_of_center < left_of_center
    upright = north_align(np.uint8(is_sky) * 255, 0, 0, 10) > 127
    assert np.abs(upright.sum(axis=0) - 128).max() <= 1


@given(st.integers(-64, 64))
def test_whole_columns_are_moved_bit_for_bit(columns):
    image = np.random.default_rng(1).integers(0, 256, (32, 64, 3), np.uint8)
    assert np.array_equal(north_align(image, columns * 360 / 64), np.roll(image, columns, axis=1))


@settings(max_examples=20, deadline=None)
@given(st.floats(-720, 720), st.floats(-89, 89), st.floats(-180, 180))
def test_a_constant_panorama_stays_constant(heading, pitch, roll):
    for dtype in (np.uint8, np.float64):
        image = np.full((16, 32, 3), 77, dtype)
        assert np.allclose(north_align(image, heading, pitch, roll), 77, atol=1e-9)


def test_float_and_integer_images_agree():
    source = seen_by(94.35, 1.6, 1.72, width=512)
    exact = north_align(source, 94.35, 1.6, 1.72)
    assert np.abs(north_align(as_uint8(source), 94.35, 1.6, 1.72) - exact).max() <= 2


def test_shrinking_averages_instead_of_aliasing():
    image = np.zeros((128, 256, 3), np.uint8)
    image[:, ::2] = 200
    assert np.abs(north_align(image, 3.3, width=64).astype(int) - 100).max() <= 1


def test_only_full_panoramas_can_be_aligned():
    with pytest.raises(ValueError, match="twice as wide"):
        north_align(np.zeros((10, 30, 3), np.uint8), 10)
    with pytest.raises(ValueError, match="even"):
        north_align(np.zeros((10, 20, 3), np.uint8), 10, width=15)


def perspective(heading_deg, pitch_deg, fov_deg, size):
    focal = size / 2 / math.tan(math.radians(fov_deg) / 2)
    u, v = np.meshgrid(np.arange(size) + 0.5 - size / 2, np.arange(size) + 0.5 - size / 2)
    camera = np.stack([u, np.full_like(u, focal), -v])
    camera /= np.linalg.norm(camera, axis=0)
    return as_uint8(field_of_world(np.tensordot(axes(heading_deg, pitch_deg), camera, axes=1)))


CUBE = [(0, 0), (90, 0), (180, 0), (270, 0), (0, 90), (0, -90)]


def test_six_cube_views_agree_with_the_analytic_field():
    views = [View(perspective(h, p, 90, 640), h, p, 90) for h, p in CUBE]
    assert psnr(from_views(views, 2048, 1024), TRUTH) >= 55


def test_a_panorama_with_holes_is_refused():
    views = [(perspective(h, 0, 90, 64), h, 0, 90) for h in (0, 90, 180, 270)]
    with pytest.raises(ValueError, match=r"cover only 4\d\.\d %"):
        from_views(views, 256, 128)
    with pytest.raises(ValueError, match="at least one"):
        from_views([], 256, 128)


def test_tiles_make_the_exact_level():
    level = np.random.default_rng(2).integers(0, 256, (50, 100, 3), np.uint8)
    padded = np.pad(level, [(0, 14), (0, 28), (0, 0)])
    grid = [(c, r) for c in range(4) for r in range(2)]
    for source in (padded, level):  # last column and row padded, or cut
        tiles = {(c, r): source[32 * r : 32 * r + 32, 32 * c : 32 * c + 32] for c, r in grid}
        assert np.array_equal(from_tiles(tiles, 100, 50, tile_px=32), level)
    assert from_tiles(tiles, 100, 50, tile_px=32, out_width=50).shape == (25, 50, 3)


def test_missing_and_shrunken_tiles_fail_the_panorama():
    tiles = {(c, 0): np.zeros((32, 32, 3), np.uint8) for c in range(2)}
    with pytest.raises(FetchError, match="tile 2,0 of 3x1 is missing") as missing:
        from_tiles(tiles, 96, 32, tile_px=32)
    assert missing.value.outcome is Outcome.TRUNCATED
    tiles[2, 0] = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(FetchError, match="16x16 pixels, not 32x32") as shrunken:
        from_tiles(tiles, 96, 32, tile_px=32)
    assert shrunken.value.outcome is Outcome.WRONG_SIZE


def ground_texture(east, north):
    return np.sin(2 * np.pi * east / 6) * np.cos(2 * np.pi * north / 8)


def ground_panorama(height, camera_height_m=2.5):
    """The flat textured ground as a level camera sees it; above the horizon only zeros."""
    d = directions(2 * height, height)
    with np.errstate(divide="ignore"):
        reach = np.where(d[2] < 0, -camera_height_m / d[2], 0.0)
    return np.where(d[2] < 0, ground_texture(reach * d[0], reach * d[1]), 0.0)


@pytest.mark.parametrize(
    ("height", "bounds"),
    [(1024, (1e-4, 5e-4, 2e-3, 1e-2)), (512, (1.2e-4, 1e-3, 4.4e-3, 2e-2))],
)
def test_bev_of_flat_ground_is_the_ground(height, bounds):
    bev = to_bev(ground_panorama(height), 256, meters_per_px=0.15)
    offset = (np.arange(256) + 0.5 - 128) * 0.15
    east, north = np.meshgrid(offset, -offset)
    error = np.abs(bev - ground_texture(east, north))
    for radius, bound in zip((5, 10, 15, 25), bounds, strict=True):
        assert error[np.hypot(east, north) < radius].mean() <= bound


def test_bev_of_a_turned_camera_is_the_same():
    panorama = ground_panorama(512)
    turned = np.roll(panorama, -128, axis=1)  # what was 45 degrees to the right is now in the centre
    assert np.allclose(to_bev(turned, 64, meters_per_px=0.2, heading_deg=45), to_bev(panorama, 64, meters_per_px=0.2))


def test_bev_turns_and_flips_with_the_panorama():
    panorama = np.random.default_rng(3).random((64, 128, 3))
    for size in (31, 32):
        bev = to_bev(panorama, size, fov_deg=170)
        turned = to_bev(np.roll(panorama, -32, axis=1), size, fov_deg=170)
        flipped = to_bev(panorama[:, ::-1], size, fov_deg=170)
        if size % 2:  # the very nadir has no azimuth
            bev[15, 15] = turned[15, 15] = flipped[15, 15] = 0
        assert np.abs(turned - np.rot90(bev, 1)).max() <= 1e-12
        assert np.abs(flipped - bev[:, ::-1]).max() <= 1e-12


def test_bev_of_integers_stays_within_one_level():
    panorama = np.random.default_rng(4).integers(0, 256, (64, 128, 3), np.uint8)
    exact = to_bev(panorama.astype(np.float64), 32, fov_deg=170)
    assert np.abs(to_bev(panorama, 32, fov_deg=170) - exact).max() <= 4.5  # OpenCV may round weights to 1/32
    assert (to_bev(np.full((64, 128, 3), 200, np.uint8), 32, fov_deg=170) == 200).all()


def test_bev_scales_agree():
    """tan(174.252 / 2 deg) is half of 99.6 m over 2.5 m: the fov that matches a z18 tile of that side."""
    panorama = np.random.default_rng(5).random((128, 256))
    fov_deg = 2 * math.degrees(math.atan(99.6 / (2 * 2.5)))
    assert fov_deg == pytest.approx(174.252, abs=1e-3)
    by_fov = to_bev(panorama, 64, fov_deg=fov_deg)
    by_scale = to_bev(panorama, 64, meters_per_px=99.6 / 64, camera_height_m=2.5)
    assert np.abs(by_fov - by_scale).max() < 1e-9


def test_bev_sampling_coordinates_of_the_literature():
    """Read (u, v) off panoramas of their own coordinates: top centre (1/2, .527778), left u = 1/4, nadir v = 1."""
    height, width, size = 1024, 2048, 385  # odd: the nadir is a pixel's centre
    u = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width)).copy()
    v = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width)).copy()
    fov_deg = 2 * math.degrees(
        math.atan(math.tan(math.radians(85)) * size / (size - 1))
    )  # centres of edge pixels at 85
    bev_u, bev_v = to_bev(u, size, fov_deg=fov_deg), to_bev(v, size, fov_deg=fov_deg)
    assert bev_u[0, 192] == pytest.approx(0.5, abs=1e-9)
    assert bev_v[0, 192] == pytest.approx(0.527778, abs=1e-6)
    assert bev_u[192, 0] == pytest.approx(0.25, abs=1e-9)
    assert bev_u[192, 384] == pytest.approx(0.75, abs=1e-9)
    assert bev_v[192, 192] == pytest.approx(1.0, abs=0.6 / height)


def test_bev_shows_nothing_above_the_horizon():
    panorama = np.zeros((64, 128), np.float64)
    panorama[:31] = 1.0
    assert to_bev(panorama, 64, fov_deg=179).max() == 0.0


def test_bev_wants_exactly_one_scale():
    image = np.zeros((4, 8), np.uint8)
    for scales in ({}, {"fov_deg": 90.0, "meters_per_px": 0.1}, {"fov_deg": 180.0}, {"meters_per_px": -1.0}):
        with pytest.raises(ValueError, match=r"fov_deg|positive"):
            to_bev(image, 4, **scales)
