"""Every way to a panorama, against a smooth field on the sphere that is sampled analytically, and what it costs."""

import math
import time

import cv2
import numpy as np
import pytest

from cvgl_data.images import decode, encode_jpeg
from cvgl_data.panorama import View, from_tiles, from_views, north_align
from cvgl_data.panorama.pose import _fast_pose_map, _pose_map
from cvgl_data.sources import google_static, google_tiles
from cvgl_data.sources.google_tiles import level_for

WIDTH, HEIGHT = 2048, 1024
CUBE = [(0, 0), (90, 0), (180, 0), (270, 0), (0, 90), (0, -90)]
BELT_8 = [(45 * i, 0) for i in range(8)]
POSES = [(30.0, 0.0, 0.0), (94.35, 1.6, 1.72), (200.0, -5.0, 8.0)]


def field(east, north, up):
    """Three smooth colors of directions, between 0 and 255; the finest wave is 15 degrees long."""
    east, north, up = 3 * east, 3 * north, 3 * up
    red = 127.5 + 60 * np.sin(5 * east + 2 * north) + 50 * np.cos(6 * north - 3 * up)
    green = 127.5 + 70 * np.cos(4 * up - 3 * east) + 40 * np.sin(7 * north + 2 * east)
    blue = 127.5 + 80 * np.sin(3 * east - 5 * up + 1) + 30 * np.cos(8 * north)
    return np.stack([red, green, blue], axis=-1)


def as_uint8(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def direction(azimuth, elevation):
    return np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth), np.sin(elevation)


def level(width, height):
    """The field as a north-aligned panorama."""
    azimuth = -np.pi + 2 * np.pi * (np.arange(width) + 0.5) / width
    elevation = np.pi / 2 - np.pi * (np.arange(height) + 0.5) / height
    return field(*direction(*np.meshgrid(azimuth, elevation)))


def perspective(heading_deg, pitch_deg, fov_deg=90, size=640):
    """The field through a pinhole, by the formulas of right and up for a given sight."""
    h, p = math.radians(heading_deg), math.radians(pitch_deg)
    sight = np.array(direction(h, p))
    right = np.array([math.cos(h), -math.sin(h), 0.0])
    up = np.array([-math.sin(p) * math.sin(h), -math.sin(p) * math.cos(h), math.cos(p)])
    step = (np.arange(size) + 0.5 - size / 2) / (size / 2 / math.tan(math.radians(fov_deg) / 2))
    rays = sight + step[None, :, None] * right - step[:, None, None] * up
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    return as_uint8(field(*np.moveaxis(rays, -1, 0)))


def posed(heading_deg, pitch_deg, roll_deg, width=WIDTH):
    """The field as a panorama camera in this pose records it: roll about its sight, then pitch, then heading."""
    h, p, r = np.radians([heading_deg, pitch_deg, roll_deg])
    azimuth = -np.pi + 2 * np.pi * (np.arange(width) + 0.5) / width
    elevation = np.pi / 2 - np.pi * (np.arange(width // 2) + 0.5) / (width // 2)
    x, y, z = direction(*np.meshgrid(azimuth, elevation))  # right, forward, up in the camera's frame
    x, z = np.cos(r) * x + np.sin(r) * z, -np.sin(r) * x + np.cos(r) * z
    y, z = np.cos(p) * y - np.sin(p) * z, np.sin(p) * y + np.cos(p) * z
    x, y = np.cos(h) * x + np.sin(h) * y, -np.sin(h) * x + np.cos(h) * y
    return as_uint8(field(x, y, z))


def psnr_db(image, truth):
    return 10 * math.log10(255**2 / np.mean((image.astype(float) - truth) ** 2))


@pytest.fixture(scope="module")
def truth():
    return level(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def cube():
    return [View(perspective(h, p), h, p, 90) for h, p in CUBE]


def test_the_field_is_neither_flat_nor_clipped(truth):
    assert truth.min() > 0
    assert truth.max() < 255
    assert truth.std(axis=(0, 1)).min() > 30


def test_cube_views(truth, cube):
    assert psnr_db(from_views(cube, WIDTH, HEIGHT), truth) >= 55
    swapped = [cube[0], cube[1], cube[2], cube[3], cube[4]._replace(image=cube[5].image), cube[5]]
    assert psnr_db(from_views(swapped, WIDTH, HEIGHT), truth) < 30
    turned = [view._replace(heading_deg=view.heading_deg + 1) for view in cube]
    assert psnr_db(from_views(turned, WIDTH, HEIGHT), truth) < 40


def test_ten_views(truth):
    views = [View(perspective(h, p), h, p, 90) for h, p in [*BELT_8, (0, 90), (0, -90)]]
    assert psnr_db(from_views(views, WIDTH, HEIGHT), truth) >= 55


def test_eight_views_where_they_cover(truth):
    """The belt alone covers about half of the sphere, and is refused as a panorama."""
    views = [View(perspective(h, 0), h, 0, 90) for h, _ in BELT_8]
    with pytest.raises(ValueError, match=r"cover only (49|5\d)\.\d %|cover only 6\d\.\d %"):
        from_views(views, WIDTH, HEIGHT)
    # Black caps fill the holes, so what is compared is only what the eight see.
    black = np.zeros((640, 640, 3), np.uint8)
    whole = from_views([*views, View(black, 0, 90, 110), View(black, 0, -90, 110)], WIDTH, HEIGHT)
    belt = slice(HEIGHT * 55 // 180, HEIGHT * 125 // 180)  # within 35 degrees of the horizon
    assert psnr_db(whole[belt], truth[belt]) >= 55
    assert (whole[0] == 0).all()


@pytest.mark.parametrize("pose", [*POSES, (359.9, 40.0, -30.0), (0.0, 0.0, 180.0), (123.4, 89.0, 0.0)])
def test_full_pose_correction(pose, truth):
    assert psnr_db(north_align(posed(*pose), *pose), truth) >= 55


@pytest.mark.parametrize(("pose", "low", "high"), list(zip(POSES, (53, 18, 9), (56, 24, 16), strict=True)))
def test_turning_alone_is_worth_little_for_a_tilted_camera(pose, low, high, truth):
    """The literature's column roll: whole columns, no tilt."""
    columns = round(WIDTH * pose[0] / 360)
    assert low < psnr_db(np.roll(posed(*pose), columns, axis=1), truth) < high


@pytest.mark.parametrize(("error_deg", "most_db"), [(0.5, 40), (1.0, 34), (2.0, 28), (5.0, 21)])
def test_a_wrong_heading_shows(error_deg, most_db, truth):
    shifted = north_align(posed(30, 0, 0), 30 + error_deg)
    expected = field(*direction(*_turned(error_deg)))
    assert psnr_db(shifted, expected) >= 55
    assert psnr_db(shifted, truth) < most_db


def _turned(error_deg):
    azimuth = -np.pi + 2 * np.pi * (np.arange(WIDTH) + 0.5) / WIDTH - math.radians(error_deg)
    elevation = np.pi / 2 - np.pi * (np.arange(HEIGHT) + 0.5) / HEIGHT
    return np.meshgrid(azimuth, elevation)


@pytest.mark.parametrize(("full", "num_tiles"), [(16384, 8), (13312, 28), (3328, 28), (1664, 8)])
@pytest.mark.parametrize("is_padded", [True, False])
def test_tiles_of_both_cameras(full, num_tiles, is_padded, truth):
    size = level_for(full, full // 2)
    assert len(size.grid) == num_tiles
    image = as_uint8(level(size.width, size.height))
    if is_padded:
        image = np.pad(image, [(0, -size.height % 512), (0, -size.width % 512), (0, 0)])
    tiles = {(c, r): image[512 * r : 512 * r + 512, 512 * c : 512 * c + 512] for c, r in size.grid}
    assert psnr_db(from_tiles(tiles, size.width, size.height, out_width=WIDTH), truth) >= 55


@pytest.mark.parametrize("pose", [*POSES, (359.9, 40.0, -30.0), (0.0, 90.0, 0.0)])
@pytest.mark.parametrize("width", [2, 30, 512, 2048])
def test_the_fast_map_is_the_exact_one(pose, width):
    exact, fast = _pose_map(width, width, *pose), _fast_pose_map(width, width, *pose)
    apart = np.abs(exact.x - fast.x)
    assert np.minimum(apart, width - apart).max() < 0.01  # the most right beside a pole, where columns lie close
    assert np.abs(exact.y - fast.y).max() < 0.001
    assert -0.5001 <= fast.x.min() <= fast.x.max() <= width - 0.499


# What they cost. The goal is 40 ms of one core, with codecs, on an idle machine; a shared one is given twice that.
GOAL_MS, MARGIN = 40.0, 2.0


def median_cpu_ms(work, num=7):
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        work()  # the first builds the map
        spent = []
        for _ in range(num):
            before = time.process_time()
            work()
            spent.append(1e3 * (time.process_time() - before))
    finally:
        cv2.setNumThreads(threads)
    return sorted(spent)[num // 2]


def test_six_views_to_a_jpeg_in_time(cube):
    views = [encode_jpeg(view.image) for view in cube]
    spent_ms = median_cpu_ms(lambda: google_static.stitched(views))
    assert spent_ms <= GOAL_MS * MARGIN


@pytest.mark.parametrize("pose", POSES)
def test_a_pose_correction_in_time(pose):
    image = encode_jpeg(posed(*pose))
    spent_ms = median_cpu_ms(lambda: encode_jpeg(north_align(decode(image), *pose)))
    assert spent_ms <= GOAL_MS * MARGIN


@pytest.mark.parametrize("full", [16384, 13312])
def test_tiles_to_a_jpeg_in_time(full):
    size = level_for(full, full // 2)
    image = as_uint8(level(size.width, size.height))
    image = np.pad(image, [(0, -size.height % 512), (0, -size.width % 512), (0, 0)])
    tiles = {(c, r): encode_jpeg(image[512 * r : 512 * r + 512, 512 * c : 512 * c + 512]) for c, r in size.grid}
    spent_ms = median_cpu_ms(lambda: google_tiles.stitched(tiles, size))
    assert spent_ms <= GOAL_MS * MARGIN * (1 if full == 16384 else 2)  # 28 tiles are 3.5 times the pixels of 8
