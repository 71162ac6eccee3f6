"""KITTI: the chain against its five steps, signs, statistics of the noise, and files that are wrong."""

from __future__ import annotations

import io
import math
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from published import make

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, RecipeError, SchemaError, UnknownNameError
from cvgl_data.geo import distance_m, lonlat_from_pixel, pixel_from_lonlat, wrap_deg
from cvgl_data.readers import kitti_chain as chain
from cvgl_data.readers.cameras import intrinsics
from cvgl_data.readers.kitti_files import parse_line

GSD_M = 0.1958285  # of the protocol's description, rounded
SHARES = st.floats(-1, 1)


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kitti")
    return folder, make("kitti", folder)


@pytest.fixture
def copy(kitti, tmp_path):
    shutil.copytree(kitti[0], tmp_path / "kitti")
    return tmp_path / "kitti"


def step_by_step(satmap, yaw_deg, noise, shift_m=20.0, rotation_deg=10.0):
    """The protocol as it is described: five steps, each of which resamples. List values are negated on load."""
    shift_x, shift_y = -noise[0], -noise[1]
    radius_px = shift_m / GSD_M

    def moved(image, right, down):
        return image.transform(image.size, Image.Transform.AFFINE, (1, 0, right, 0, 1, down), Image.Resampling.BILINEAR)

    image = satmap.rotate(-yaw_deg, Image.Resampling.BILINEAR)
    image = moved(image, 1.08 / GSD_M, 0.26 / GSD_M)
    image = moved(image, shift_x * radius_px, -shift_y * radius_px)
    image = image.rotate(noise[2] * rotation_deg, Image.Resampling.BILINEAR)
    return image.crop((384, 384, 896, 896))


def one_noise(noise):
    return chain.Noise(*(np.array([share]) for share in noise))


def spot(x, y, sigma_px=2.0):
    """A bright spot that interpolation keeps in place, in a black square of 1280 pixels."""
    v, u = np.mgrid[:1280, :1280] + 0.5
    pixels = 255 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * sigma_px**2))
    return Image.fromarray(pixels.astype(np.uint8))


def centroid(image):
    pixels = np.asarray(image, float)
    v, u = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
    return (pixels * u).sum() / pixels.sum(), (pixels * v).sum() / pixels.sum()


def camera_in_satmap(yaw_deg):
    """Where the camera is in a north-up image centred on the antenna: ahead and to the right of it."""
    yaw = math.radians(yaw_deg)
    east_m = 1.08 * math.cos(yaw) + 0.26 * math.sin(yaw)
    north_m = 1.08 * math.sin(yaw) - 0.26 * math.cos(yaw)
    return 640 + east_m / GSD_M, 640 - north_m / GSD_M


def test_the_constants_are_the_protocols():
    assert pytest.approx(0.1958285, abs=5e-8) == chain.GSD_M
    assert pytest.approx(100.26, abs=0.005) == chain.GSD_M * chain.CROP_PX
    assert pytest.approx(102.13, abs=0.005) == chain.SHIFT_M / chain.GSD_M
    assert pytest.approx(5.515, abs=5e-4) == chain.CAMERA_AHEAD_M / chain.GSD_M
    assert pytest.approx(1.328, abs=5e-4) == chain.CAMERA_RIGHT_M / chain.GSD_M


@pytest.mark.parametrize("index", range(6))
def test_a_white_pixel_at_the_camera_lands_where_the_formula_says(index):
    rng = np.random.default_rng(index)
    noise, yaw_deg = rng.uniform(-1, 1, 3), float(rng.uniform(-180, 180))
    rotation_deg = [10.0, 20.0, 40.0, 180.0, 0.0, 90.0][index]
    place = chain.place(one_noise(noise), rotation_deg=rotation_deg)
    pixel = spot(*camera_in_satmap(yaw_deg))
    theirs = centroid(step_by_step(pixel, yaw_deg, noise, rotation_deg=rotation_deg))
    assert math.dist(theirs, (place.u[0], place.v[0])) < 1  # measured: below 0.1

    bearing_deg = chain.heading_from_yaw(np.radians([yaw_deg]))
    ours = centroid(chain.cut(pixel, chain.crop_map(place, bearing_deg)[0]))
    assert math.dist(ours, (place.u[0], place.v[0])) < 0.1


def test_the_heading_points_to_what_is_ahead():
    """A second spot, 30 m ahead of the camera, lies in the direction of ``heading_deg`` from the first."""
    yaw_deg, noise = 130.0, (0.4, -0.7, 0.9)
    x, y = camera_in_satmap(yaw_deg)
    x += 30 / GSD_M * math.cos(math.radians(yaw_deg))
    y -= 30 / GSD_M * math.sin(math.radians(yaw_deg))
    u, v = centroid(step_by_step(spot(x, y), yaw_deg, noise))
    place = chain.place(one_noise(noise))
    seen_deg = math.degrees(math.atan2(u - place.u[0], place.v[0] - v)) % 360
    assert seen_deg == pytest.approx(place.heading_deg[0], abs=0.1)
    assert place.heading_deg[0] == pytest.approx(90 - 9)


def test_one_interpolation_shows_what_five_steps_show():
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    satmap = coarse.resize((1280, 1280), Image.Resampling.BICUBIC)
    noise, yaw_deg = (-0.8, 0.3, -0.5), 71.0
    place = chain.place(one_noise(noise))
    ours = chain.cut(satmap, chain.crop_map(place, chain.heading_from_yaw(np.radians([yaw_deg])))[0])
    difference = np.asarray(ours, int) - np.asarray(step_by_step(satmap, yaw_deg, noise), int)
    assert 1 < difference.mean() < 2  # each of the three further steps cuts fractions of a level off
    assert difference.std() < 1


@given(SHARES, SHARES, SHARES, st.sampled_from([0.0, 10.0, 180.0]))
def test_the_turn_moves_no_camera_nearer(ahead, left, turn, rotation_deg):
    place = chain.place(one_noise((ahead, left, turn)), rotation_deg=rotation_deg)
    away_px = math.hypot(place.u[0] - 256, place.v[0] - 256)
    assert away_px * GSD_M == pytest.approx(20 * math.hypot(ahead, left), abs=1e-4)


def test_the_map_of_a_crop_keeps_lengths_and_angles():
    noise = chain.draw_noise([str(number) for number in range(50)])
    bearing_deg = np.random.default_rng(0).uniform(0, 360, 50)
    turn = chain.crop_map(chain.place(noise, rotation_deg=180.0), bearing_deg)[:, :, :2]
    np.testing.assert_allclose(turn @ turn.transpose(0, 2, 1), np.broadcast_to(np.eye(2), (50, 2, 2)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turn), 1)


def test_statistics_of_the_protocol():
    """A list as long as test1 comes out like test1: 15.334 m, 16.028 m, 5.00 degrees, 4.88 %, 4.77 %."""
    rng = np.random.default_rng(0)
    listed = chain.statistics(chain.Noise(*rng.uniform(-1, 1, (3, 3773))))
    sigma_m = 20 * 0.285 / math.sqrt(3773)
    assert listed.mean_error_m == pytest.approx(15.334, abs=4 * sigma_m)
    assert listed.median_error_m == pytest.approx(16.028, abs=8 * sigma_m)
    assert listed.mean_turn_deg == pytest.approx(5.0, abs=0.2)
    assert listed.lateral_below_1m == pytest.approx(0.0488, abs=0.015)
    assert listed.longitudinal_below_1m == pytest.approx(0.0477, abs=0.015)

    many = chain.statistics(chain.draw_noise([str(number) for number in range(100_000)]))
    assert many.mean_error_m == pytest.approx(20 * (math.sqrt(2) + math.asinh(1)) / 3, abs=0.06)
    assert many.median_error_m == pytest.approx(20 * math.sqrt(2 / math.pi), abs=0.08)
    assert many.mean_turn_deg == pytest.approx(5, abs=0.03)
    assert many.lateral_below_1m == pytest.approx(0.05, abs=0.003)
    assert many.longitudinal_below_1m == pytest.approx(0.05, abs=0.003)


@pytest.mark.skipif("CVGL_KITTI_LISTS" not in os.environ, reason="CVGL_KITTI_LISTS does not name the published lists")
@pytest.mark.parametrize(
    ("name", "num", "mean_m", "median_m"), [("1", 3773, 15.334, 16.028), ("2", 7542, 15.331, 16.041)]
)
def test_statistics_of_the_published_lists(name, num, mean_m, median_m):
    lines = (Path(os.environ["CVGL_KITTI_LISTS"]) / f"test{name}_files.txt").read_text().splitlines()
    noise = np.array([parse_line(line, needs_noise=True)[2] for line in lines if line.strip()])
    found = chain.statistics(chain.Noise(*noise.T))
    assert len(noise) == num
    assert (found.mean_error_m, found.median_error_m) == pytest.approx((mean_m, median_m), abs=5e-4)


def test_noise_depends_on_seed_and_frame_only():
    names = [f"frame {number}" for number in range(200)]
    one, same, other = (np.stack(chain.draw_noise(names, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.isclose(one, other).any()
    np.testing.assert_array_equal(np.stack(chain.draw_noise(names[::-1], 0)), one[:, ::-1])
    assert -1 <= one.min() < -0.9
    assert 0.9 < one.max() < 1
    assert np.abs(np.corrcoef(one) - np.eye(3)).max() < 0.25


def test_the_tables_say_where_cameras_are(kitti):
    folder, shots = kitti
    dataset = open_dataset(f"kitti:{folder}")
    queries, references, pairs = dataset.queries, dataset.references, dataset.pairs
    used = [shot for shot in shots if shot.part in ("train", "test1")]
    assert queries.num_rows == references.num_rows == pairs.num_rows == len(used) == 9
    assert queries["split"].to_pylist() == ["train"] * 6 + ["test"] * 3
    away_m = distance_m(
        queries["lon"].to_numpy(), queries["lat"].to_numpy(), [s.lon for s in used], [s.lat for s in used]
    )
    assert away_m.max() < 0.01
    np.testing.assert_allclose(queries["source_heading_deg"].to_numpy(), [s.bearing_deg % 360 for s in used])

    # From the reference's centre, turned by the bearing of its top, (u, v) leads to the camera.
    u, v = pairs["u"].to_numpy() - 256, pairs["v"].to_numpy() - 256
    bearing = np.radians(references["top_bearing_deg"].to_numpy()) + np.arctan2(u, -v)
    x, y = pixel_from_lonlat(references["lon"].to_numpy(), references["lat"].to_numpy(), 19)
    x, y = x + np.hypot(u, v) * np.sin(bearing), y - np.hypot(u, v) * np.cos(bearing)
    lon, lat = lonlat_from_pixel(x, y, 19)
    assert distance_m(lon, lat, [s.lon for s in used], [s.lat for s in used]).max() < 0.01
    np.testing.assert_allclose(pairs["offset_east_m"].to_numpy(), np.hypot(u, v) * GSD_M * np.sin(bearing), atol=1e-4)
    np.testing.assert_allclose(pairs["offset_north_m"].to_numpy(), np.hypot(u, v) * GSD_M * np.cos(bearing), atol=1e-4)
    bearing_deg = references["top_bearing_deg"].to_numpy() + queries["heading_deg"].to_numpy()
    np.testing.assert_allclose(wrap_deg(bearing_deg - [s.bearing_deg for s in used]), 0, atol=1e-9)
    assert pc.all(pairs["covers"]).as_py()
    assert dataset.select("test").queries.num_rows == dataset.select("test").references.num_rows == 3


def test_a_list_says_how_a_test_is_shifted(kitti):
    folder, shots = kitti
    for protocol, part in (("same-area", "test1"), ("cross-area", "test2")):
        pairs = open_dataset(f"kitti:{folder}?protocol={protocol}&rotation_deg=0").select("test").pairs
        ahead, left, _ = np.array([shot.noise for shot in shots if shot.part == part]).T
        np.testing.assert_allclose((pairs["u"].to_numpy() - 256) * GSD_M, 20 * ahead, atol=1e-5)  # right is ahead
        np.testing.assert_allclose((256 - pairs["v"].to_numpy()) * GSD_M, 20 * left, atol=1e-5)  # up is left


def test_references_are_cut_from_their_overhead_images(kitti):
    folder, shots = kitti
    dataset = open_dataset(f"kitti:{folder}", protocol="cross-area")
    for row in (0, 8):
        shot = [shot for shot in shots if shot.part != "test1"][row]
        key = dataset.references["reference_id"][row].as_py()
        assert dataset.images[key] == bytes(dataset.images.view(key)) == pickle.loads(pickle.dumps(dataset.images))[key]
        with Image.open(io.BytesIO(dataset.images[key])) as ours, Image.open(folder / "satmap" / shot.path) as satmap:
            assert (ours.format, ours.size, ours.mode) == ("PNG", (512, 512), "RGB")
            noise = shot.noise or tuple(
                share[0] for share in chain.draw_noise([dataset.queries["query_id"][row].as_py()])
            )
            theirs = step_by_step(satmap.convert("RGB"), 90 - shot.bearing_deg, noise)
            assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).mean() < 4  # measured: below 3; unturned: 25
            query = dataset.queries["query_id"][row].as_py()
            folder_of, _, name = shot.path.rpartition("/")
            assert dataset.images[query] == (folder / "raw_data" / folder_of / "image_02/data" / name).read_bytes()
    assert len(dataset.images) == len(list(dataset.images)) == 18
    with pytest.raises(KeyError):
        dataset.images["satmap_nothing"]


def test_the_camera_is_in_the_tables(kitti):
    """Intrinsics are in pixels of the stored picture from its corner; KITTI counts from the first pixel's centre."""
    queries = open_dataset(f"kitti:{kitti[0]}").queries
    row = {
        name: queries[name][0].as_py() for name in queries.column_names if "_px" in name or name == "camera_height_m"
    }
    assert row == {
        "camera_fx_px": 180.0,
        "camera_fy_px": 180.0,
        "camera_cx_px": 152.5,
        "camera_cy_px": 43.5,
        "image_width_px": 310.0,
        "image_height_px": 94.0,
        "camera_height_m": 1.65,
    }


def test_scaled_intrinsics_are_the_published_ones(copy):
    """At 1024 x 256 the protocol's camera is fx 582.98, fy 482.71, cx 496.24, cy 125.00, from pixel centres."""
    for path in (copy / "raw_data").glob("*/calib_cam_to_cam.txt"):
        path.write_text("P_rect_02: 707.0912 0 601.8873 46.88783 0 707.0912 183.1104 0.1178601 0 0 1 0.006203223\n")
    for path in (copy / "raw_data").rglob("*.png"):
        Image.new("L", (1242, 375)).save(path)
    queries = open_dataset(f"kitti:{copy}").queries
    matrices = intrinsics(queries, 256, 1024)
    half = np.array([[0, 0, 512 / 1242], [0, 0, 128 / 375], [0, 0, 0]])
    published = np.array([[582.98, 0, 496.24], [0, 482.71, 125.00], [0, 0, 1]])
    np.testing.assert_allclose(matrices - half, np.broadcast_to(published, (9, 3, 3)), atol=0.006)
    # The ground 10 m ahead and 2 m to the right is at (612.838, 204.650) of the protocol's picture.
    u, v, depth = matrices[0] @ [2, 1.65, 10]
    assert (u / depth - half[0, 2], v / depth - half[1, 2]) == pytest.approx((612.838, 204.650), abs=0.006)
    with pytest.raises(SchemaError, match="no column 'camera_fx_px'"):
        intrinsics(queries.drop_columns(["camera_fx_px"]), 256, 1024)


def test_options_of_the_noise(kitti):
    folder, _ = kitti
    place = f"kitti:{folder}"
    known = open_dataset(f"{place}?rotation_deg=0&shift_m=0")
    assert set(known.queries["heading_deg"].to_pylist()) == {90.0}
    np.testing.assert_allclose(known.pairs["u"].to_numpy(), 256)
    one, other = open_dataset(place), open_dataset(place, seed=1)
    same = np.isclose(one.pairs["u"].to_numpy(), other.pairs["u"].to_numpy())
    assert same.tolist() == [False] * 6 + [True] * 3  # lists fix the noise of tests
    with pytest.raises(RecipeError, match=r"option 'shift_m' is 90; it must be in \[0, 37\.6\]"):
        open_dataset(place, shift_m=90.0)
    with pytest.raises(RecipeError, match=r"option 'rotation_deg' is 200; it must be in \[0, 180\]"):
        open_dataset(place, rotation_deg=200.0)
    with pytest.raises(UnknownNameError, match="cross-area"):
        open_dataset(place, protocol="cross-aera")


def test_some_training_frames_can_validate(kitti):
    dataset = open_dataset(f"kitti:{kitti[0]}?validation=0.3")
    validation = dataset.select("validation")
    assert 0 < validation.queries.num_rows < 6
    assert dataset.select("test").queries.num_rows == 3


def problems_of(folder, **options):
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"kitti:{folder}", **options)
    return str(caught.value)


def test_missing_files_are_all_counted(copy):
    gone = [
        copy / "satmap/2011_09_26/2011_09_26_drive_0001_sync/0000000001.png",
        copy / "raw_data/2011_09_26/2011_09_26_drive_0001_sync/oxts/data/0000000003.txt",
        copy / "raw_data/2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000007.png",
    ]
    for path in gone:
        path.unlink()
    message = problems_of(copy)
    assert "has 3 problems" in message
    for path, place in zip(
        gone, ("train_files.txt, line 2", "train_files.txt, line 4", "test1_files.txt, line 2"), strict=True
    ):
        assert f"splits/{place}: '{path.relative_to(copy).as_posix()}' is missing" in message
    assert open_dataset(f"kitti:{kitti_without(copy, gone)}").queries.num_rows == 6


def kitti_without(folder, gone):
    """Take the frames of missing files out of the lists."""
    names = [f"{path.stem}.png" for path in gone]
    for path in (folder / "splits").iterdir():
        kept = [line for line in path.read_text().splitlines() if not any(name in line for name in names)]
        path.write_text("\n".join(kept))  # no newline at the end: the last line counts as well
    return folder


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("2011_09_26/2011_09_26_drive_0001_sync/0000000006.png 0.1 0.2", "2 numbers follow the path, 3 are needed"),
        ("2011_09_26/2011_09_26_drive_0001_sync/0000000006.png 0.1 0.2 nan", "must be in [-1, 1]"),
        ("2011_09_26/2011_09_26_drive_0001_sync/0000000006.png 0.1 -1.2 0", "must be in [-1, 1]"),
        ("2011_09_26/2011_09_26_drive_0001_sync/0000000006.png 0.1 x 0", "could not convert"),
        ("2011_09_28/2011_09_26_drive_0001_sync/0000000006.png 0 0 0", "is no frame"),
        ("2011_09_26/2011_09_26_drive_0001_sync/0000000000.png 0 0 0", "is a duplicate of a training frame"),
    ],
)
def test_a_wrong_line_is_named(copy, line, what):
    path = copy / "splits/test1_files.txt"
    path.write_text(path.read_text() + "\n" + line + "\n")
    message = problems_of(copy)
    assert "has 1 problem:" in message
    assert "splits/test1_files.txt, line 5: " in message
    assert what in message


def test_a_frame_may_be_tested_twice_with_other_noise(copy):
    path = copy / "splits/test1_files.txt"
    first = path.read_text().splitlines()[0]
    path.write_text(path.read_text() + first.split()[0] + " 0.5 0.25 0\n")
    test = open_dataset(f"kitti:{copy}").select("test")
    assert test.queries["query_id"].to_pylist()[-1] == test.queries["query_id"].to_pylist()[0] + "-2"
    assert test.pairs["u"].to_pylist()[-1] == pytest.approx(256 + 10 / GSD_M, abs=1e-3)
    path.write_text(path.read_text() + first + "\n")
    assert (
        "line 5: '2011_09_26/2011_09_26_drive_0001_sync/0000000006.png' is a duplicate of test1_files"
        in problems_of(copy)
    )
    assert open_dataset(f"kitti:{copy}?repeats=true").select("test").queries.num_rows == 5


def test_unreadable_poses_cameras_and_images(copy):
    (copy / "raw_data/2011_09_26/2011_09_26_drive_0001_sync/oxts/data/0000000002.txt").write_text(
        "49.0 8.4 112 0 0 nan"
    )
    (copy / "raw_data/2011_09_26/2011_09_26_drive_0001_sync/oxts/data/0000000004.txt").write_text("49.0 8.4 112")
    (copy / "raw_data/2011_09_26/calib_cam_to_cam.txt").write_text("P_rect_02: 1 2 3\n")
    Image.new("RGB", (640, 640)).save(copy / "satmap/2011_09_26/2011_09_26_drive_0001_sync/0000000000.png")
    message = problems_of(copy)
    assert "has 4 problems" in message
    assert "oxts/data/0000000002.txt, line 1: latitude 49, longitude 8.4, yaw nan are no pose" in message
    assert "oxts/data/0000000004.txt: holds no pose: fewer than 6 numbers" in message
    assert "calib_cam_to_cam.txt, line 1: P_rect_02 must be 12 numbers" in message
    assert "0000000000.png: has (640, 640) pixels, 1280 square are needed" in message


def test_a_cut_image_is_found_when_it_is_asked_for_or_looked_at(copy):
    path = copy / "satmap/2011_09_26/2011_09_26_drive_0001_sync/0000000001.png"
    path.write_bytes(path.read_bytes()[:5000])
    dataset = open_dataset(f"kitti:{copy}")
    with pytest.raises(DatasetError, match=r"0000000001\.png' (cannot be decoded|is no image)"):
        dataset.images["satmap_2011_09_26_drive_0001_sync_0000000001"]
    message = problems_of(copy, verify=True)
    assert "1 problem:" in message
    assert "0000000001.png" in message


def test_folders_that_are_not_there(copy):
    shutil.rmtree(copy / "splits")
    assert "has no train_files.txt; give the folder of the lists" in problems_of(copy)
    shutil.rmtree(copy / "satmap")
    with pytest.raises(DatasetNotFoundError, match="has no folder 'satmap'"):
        open_dataset(f"kitti:{copy}")


def test_lists_may_lie_elsewhere(copy, tmp_path):
    shutil.move(copy / "splits", tmp_path / "lists")
    assert open_dataset(f"kitti:{copy}?lists={tmp_path / 'lists'}").queries.num_rows == 9


def test_the_ground_in_a_picture_is_the_ground_in_its_reference(kitti):
    """Camera, place and heading together: the ground ahead has the same colors in the picture and from above."""
    dataset = open_dataset(f"kitti:{kitti[0]}", rotation_deg=60.0)
    pixels = {key: pixels_of(dataset.images[key]) for key in dataset.images}

    def agreement(turned_deg=0.0, moved_m=0.0):
        seen = []
        for row in range(dataset.queries.num_rows):
            query, pair, reference = (
                table.slice(row, 1).to_pylist()[0] for table in (dataset.queries, dataset.pairs, dataset.references)
            )
            ahead, right = (grid.ravel() for grid in np.meshgrid(np.arange(7, 25, 0.5), np.arange(-6, 6.1, 0.5)))
            x = query["camera_cx_px"] + query["camera_fx_px"] * right / ahead
            y = query["camera_cy_px"] + query["camera_fy_px"] * query["camera_height_m"] / ahead
            inside = (x > 1) & (x < query["image_width_px"] - 1) & (y < query["image_height_px"] - 1)
            heading = math.radians(query["heading_deg"] + turned_deg)
            u = pair["u"] + ((ahead + moved_m) * math.sin(heading) + right * math.cos(heading)) / reference["gsd_m"]
            v = pair["v"] - ((ahead + moved_m) * math.cos(heading) - right * math.sin(heading)) / reference["gsd_m"]
            sides = [(query["query_id"], x, y), (reference["reference_id"], u, v)]
            colors = [pixels[key][b[inside].astype(int), a[inside].astype(int)] for key, a, b in sides]
            seen.append(np.corrcoef(*(side.astype(float).ravel() for side in colors))[0, 1])
        return float(np.mean(seen))

    right = agreement()
    wrong = [agreement(turned_deg=30), agreement(turned_deg=-30), agreement(moved_m=8), agreement(moved_m=-8)]
    assert right > 0.45, (right, wrong)  # measured: 0.53
    assert right > max(wrong) + 0.1, (right, wrong)


def pixels_of(image):
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"))
