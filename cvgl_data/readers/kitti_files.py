"""Files of the KITTI localization protocol as numbers: lists of frames, poses, calibrations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvgl_data.errors import DatasetError
from cvgl_data.readers.layout import Problems, read_lines
from cvgl_data.readers.listing import Files, Once, first_size

LIST_FOLDERS = (".", "splits", "dataLoader")
"""Where lists are looked for, in the folder of the dataset."""

_FRAME = re.compile(
    r"(?P<date>\d{4}_\d\d_\d\d)/(?P<drive>(?P=date)_drive_\d{4}_(?:sync|extract))/(?P<frame>\d{10})\.png"
)

Floats = NDArray[np.float64]


class Frame(NamedTuple):
    """One line of a list."""

    part: str
    date: str
    drive: str
    frame: str
    noise: tuple[float, float, float] | None
    repeat: int
    """How often the frame was listed before."""

    @property
    def id(self) -> str:
        """Name of the query."""
        return f"{self.drive}_{self.frame}" + (f"-{self.repeat + 1}" if self.repeat else "")

    @property
    def picture(self) -> str:
        """File of the picture, relative to the dataset's folder."""
        return f"raw_data/{self.date}/{self.drive}/image_02/data/{self.frame}.png"

    @property
    def oxts(self) -> str:
        """File of the pose."""
        return f"raw_data/{self.date}/{self.drive}/oxts/data/{self.frame}.txt"

    @property
    def satmap(self) -> str:
        """File of the overhead image."""
        return f"satmap/{self.date}/{self.drive}/{self.frame}.png"


def read_lists(
    folder: Path, parts: Sequence[str], lists: str, problems: Problems, *, repeats: bool = False
) -> list[Frame]:
    """Return the frames of some lists; what is wrong with lines, and missing files, are noted."""
    at = next((folder / name for name in ([lists] if lists else LIST_FOLDERS) if _has_lists(folder / name)), None)
    if at is None:
        problems.add(
            lists or folder, None, f"has no {parts[0]}_files.txt; give the folder of the lists, `?lists=FOLDER`"
        )
        return []
    files, once, count, frames = Files(folder, problems), Once(problems), dict[str, int](), list[Frame]()
    trained: set[str] = set()
    for part in parts:
        path = at / f"{part}_files.txt"
        for line in read_lines(path, problems):
            try:
                name, match, noise = parse_line(line.text, needs_noise=part != "train")
            except DatasetError as error:
                problems.add(path, line.number, str(error))
                continue
            repeat = count.get(f"{part} {name}", 0)
            frame = Frame(part, match["date"], match["drive"], match["frame"], noise, repeat)
            count[f"{part} {name}"] = repeat + 1
            if part == "train":
                trained.add(name)
            elif name in trained:
                problems.add(path, line.number, f"'{name}' is a duplicate of a training frame")
                continue
            if not repeats and not once.see(f"{part} {line.text.split()}", path, line.number, name):
                continue
            there = [files.require(file, path, line.number) for file in (frame.picture, frame.oxts, frame.satmap)]
            if all(there):
                frames.append(frame)
    if not frames and not problems.count:
        problems.add(at / f"{parts[0]}_files.txt", None, "lists nothing")
    return frames


def parse_line(text: str, *, needs_noise: bool) -> tuple[str, re.Match[str], tuple[float, float, float] | None]:
    """Return path, its parts, and the noise of a line of a list (``gt_x``, ``gt_y``, ``theta``).

    Raises:
        DatasetError: If it is no such line; without its place.
    """
    name, *columns = text.split()
    match = _FRAME.fullmatch(name)
    if match is None:
        raise DatasetError(
            f"'{name}' is no frame; it must be like 2011_09_26/2011_09_26_drive_0001_sync/0000000000.png"
        )
    if not columns and not needs_noise:
        return name, match, None
    if len(columns) != 3:
        raise DatasetError(f"{len(columns)} numbers follow the path, 3 are needed (gt_x, gt_y, theta)")
    try:
        ahead, left, turn = (float(column) for column in columns)
    except ValueError as error:
        raise DatasetError(str(error)) from None
    if not all(-1.0 <= number <= 1.0 for number in (ahead, left, turn)):  # false for NaN, too
        raise DatasetError(f"gt_x, gt_y, theta are {ahead:g}, {left:g}, {turn:g}; they must be in [-1, 1]")
    return name, match, (ahead, left, turn)


def read_poses(folder: Path, frames: Sequence[Frame], problems: Problems) -> Floats:
    """Return longitude, latitude and yaw (radians, 0 east, counter-clockwise) of the antenna, (N, 3)."""
    poses = np.full((len(frames), 3), np.nan)
    for row, frame in enumerate(frames):
        try:
            fields = [float(text) for text in (folder / frame.oxts).read_text(encoding="ascii").split()[:6]]
            lat, lon, yaw = fields[0], fields[1], fields[5]
        except (OSError, ValueError, IndexError) as error:
            reason = "fewer than 6 numbers" if isinstance(error, IndexError) else str(error)
            problems.add(frame.oxts, None, f"holds no pose: {reason}")
            continue
        if not (-85.0 <= lat <= 85.0 and -180.0 <= lon <= 180.0 and abs(yaw) <= 10.0):  # false for NaN, too
            problems.add(frame.oxts, 1, f"latitude {lat:g}, longitude {lon:g}, yaw {yaw:g} are no pose")
            continue
        poses[row] = lon, lat, yaw
    return poses


def read_cameras(folder: Path, frames: Sequence[Frame], problems: Problems) -> Floats:
    """Return fx, fy, cx, cy, width and height of the left color camera, pixels, (N, 6); one calibration per date.

    KITTI counts pixels from the centre of the first; here its corner is (0, 0), so ``cx`` and ``cy`` are half a pixel
    larger.
    """
    of_date: dict[str, Floats] = {}
    for frame in frames:
        if frame.date not in of_date:
            size = first_size(folder, [frame.picture], problems) or (0, 0)
            matrix = _projection(folder / "raw_data" / frame.date / "calib_cam_to_cam.txt", problems)
            fx, cx, fy, cy = matrix[[0, 2, 5, 6]].tolist()
            of_date[frame.date] = np.array([fx, fy, cx + 0.5, cy + 0.5, *size], np.float64)
    return np.array([of_date[frame.date] for frame in frames]).reshape(-1, 6)


def _projection(path: Path, problems: Problems) -> Floats:
    """Return the 12 numbers of the left color camera's projection after rectification."""
    lines = read_lines(path, problems)
    for line in lines:
        key, _, values = line.text.partition(":")
        if key.strip() == "P_rect_02":
            try:
                matrix = np.array([float(value) for value in values.split()])
            except ValueError as error:
                problems.add(path, line.number, str(error))
                return np.full(12, np.nan)
            if matrix.shape == (12,) and np.isfinite(matrix).all() and matrix[0] > 0 and matrix[5] > 0:
                return matrix
            problems.add(path, line.number, "P_rect_02 must be 12 numbers, focal lengths above 0")
            return np.full(12, np.nan)
    if lines:
        problems.add(path, None, "has no line P_rect_02")
    return np.full(12, np.nan)


def _has_lists(folder: Path) -> bool:
    return (folder / "train_files.txt").is_file()
