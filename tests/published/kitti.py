"""A small KITTI in the localization protocol: three drives in Karlsruhe, pictures through the real kind of camera."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cvgl_data.panorama.sampling import Map, sample
from cvgl_data.simulation import render_panorama
from published.pictures import DATE, WORLD, encode, overhead, stations, write

STREETS = (8.390, 49.010, 8.405, 49.018)
WIDTH, HEIGHT = 310, 94
FOCAL_PX, CENTER_U, CENTER_V = 180.0, 152.0, 43.0
"""A quarter of the published camera's, counted from the centre of the first pixel as KITTI does."""
AHEAD_M, RIGHT_M, CAMERA_HEIGHT_M = 1.08, 0.26, 1.65
DRIVES = {"train": ("2011_09_26", 1), "test1": ("2011_09_26", 1), "test2": ("2011_09_28", 34)}


class Shot(NamedTuple):
    part: str
    path: str
    lon: float
    lat: float
    """Of the camera."""
    bearing_deg: float
    noise: tuple[float, float, float] | None


def make(folder: Path, *, num: int = 6, num_test: int = 3) -> list[Shot]:
    """Write ``num`` frames to train and ``num_test`` for each test, with lists in the folder ``splits``."""
    counts = {"train": num, "test1": num_test, "test2": num_test}
    found = iter(stations(*STREETS, sum(counts.values())))
    rng = np.random.default_rng(2)
    shots, lists, frame = [], dict.fromkeys(counts, ""), 0
    for part, count in counts.items():
        date, drive = DRIVES[part]
        for _ in range(count):
            lon, lat = next(found)
            path = f"{date}/{date}_drive_{drive:04d}_sync/{frame:010d}.png"
            noise = None if part == "train" else tuple(float(share) for share in rng.uniform(-1, 1, 3).round(4))
            shot = Shot(part, path, lon, lat, float(WORLD.lane_heading_deg(lon, lat)), noise)
            lists[part] += path + ("" if noise is None else " " + " ".join(f"{share:.4f}" for share in noise)) + "\n"
            _write_shot(folder, shot)
            shots.append(shot)
            frame += 1
    for part, text in lists.items():
        write(folder / f"splits/{part}_files.txt", text)
    projection = [FOCAL_PX, 0, CENTER_U, 11.2, 0, FOCAL_PX, CENTER_V, 0.05, 0, 0, 1, 0.0027]
    for date, _ in DRIVES.values():
        numbers = " ".join(f"{number:.6e}" for number in projection)
        text = f"calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.95e-02\nP_rect_01: 1 2\nP_rect_02: {numbers}\n"
        write(folder / f"raw_data/{date}/calib_cam_to_cam.txt", text)
    return shots


def antenna(lon: float, lat: float, bearing_deg: float) -> tuple[float, float]:
    """Return where the antenna is for a camera: behind it and to the left, by plane geometry on the ground."""
    bearing = math.radians(bearing_deg)
    north_m = -AHEAD_M * math.cos(bearing) + RIGHT_M * math.sin(bearing)
    east_m = -AHEAD_M * math.sin(bearing) - RIGHT_M * math.cos(bearing)
    degree_m = 2 * math.pi * 6378137.0 / 360
    return lon + east_m / (degree_m * math.cos(math.radians(lat))), lat + north_m / degree_m


def yaw_rad(bearing_deg: float) -> float:
    """Return KITTI's yaw: 0 in the east, counter-clockwise, in (-pi, pi]."""
    yaw = math.radians(90 - bearing_deg)
    return math.atan2(math.sin(yaw), math.cos(yaw))


def picture(lon: float, lat: float, bearing_deg: float) -> np.ndarray:
    """Render what the camera sees: a pinhole picture cut out of a panorama."""
    whole = render_panorama(
        WORLD, lon, lat, heading_deg=bearing_deg, date=DATE, width=512, camera_height_m=CAMERA_HEIGHT_M
    )
    right, down = np.meshgrid(
        (np.arange(WIDTH) - CENTER_U) / FOCAL_PX, (np.arange(HEIGHT) - CENTER_V) / FOCAL_PX, indexing="xy"
    )
    azimuth, elevation = np.arctan(right), np.arctan2(-down, np.hypot(right, 1.0))
    x = (azimuth / (2 * np.pi) + 0.5) * whole.shape[1] - 0.5
    y = (0.5 - elevation / np.pi) * whole.shape[0] - 0.5
    return sample(whole, Map(x, y))


def _write_shot(folder: Path, shot: Shot) -> None:
    drive, _, name = shot.path.rpartition("/")
    frame = name.removesuffix(".png")
    lon, lat = antenna(shot.lon, shot.lat, shot.bearing_deg)
    image = encode(picture(shot.lon, shot.lat, shot.bearing_deg), "png")
    write(folder / f"raw_data/{drive}/image_02/data/{frame}.png", image)
    pose = [lat, lon, 112.8, 0.02, 0.001, yaw_rad(shot.bearing_deg)]
    write(folder / f"raw_data/{drive}/oxts/data/{frame}.txt", " ".join(f"{value:.14g}" for value in pose) + " 0" * 24)
    small = overhead(lon, lat, 19, 1280, size_px=320)
    stream = io.BytesIO()
    with Image.open(io.BytesIO(small)) as opened:
        opened.resize((1280, 1280), Image.Resampling.BILINEAR).save(stream, "PNG", compress_level=1)
    write(folder / f"satmap/{shot.path}", stream.getvalue())
