"""Reader of KITTI in the localization protocol: a car's pictures, each with an overhead image shifted and turned.

The layout is that of KITTI's raw data, ``raw_data/{date}/{drive}/{image_02,oxts}/data`` and
``raw_data/{date}/calib_cam_to_cam.txt``, with overhead images at ``satmap/{date}/{drive}/{frame}.png`` and the lists
``train_files.txt`` (19,655 frames), ``test1_files.txt`` (3,773, same drives) and ``test2_files.txt`` (7,542, other
drives), whose lines are ``{date}/{drive}/{frame}.png``, in tests followed by ``gt_x gt_y theta`` in [-1, 1].

A query is a pinhole picture and its reference not north-up, so some columns mean more than usual:

* queries: ``heading_deg`` is clockwise from the reference's top, ``source_heading_deg`` the compass bearing; ``lon``
  and ``lat`` are those of the camera, which `cvgl_data.readers.cameras` describes in further columns.
* references: ``top_bearing_deg`` is the compass bearing of the top; the square of ``x``, ``y``, ``size`` is the one
  with the same centre that is not turned; ``gsd_m`` is the protocol's constant.

Frames of a training list have no noise of their own: it is drawn from the seed and the frame's name, and stays.

Source: Geiger et al., "Vision meets Robotics: The KITTI Dataset"; Shi and Li, see `cvgl_data.readers.kitti_chain`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.errors import DatasetError, RecipeError
from cvgl_data.geo import lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.readers import kitti_chain as chain
from cvgl_data.readers.cameras import CAMERA, PICTURES
from cvgl_data.readers.kitti_files import Frame, read_cameras, read_lists, read_poses
from cvgl_data.readers.layout import FolderImages, Problems, assemble, one_of, require_folder
from cvgl_data.readers.listing import first_size
from cvgl_data.readers.tables import REFERENCES, build_table, pair_table, window_columns

PROTOCOLS = {"same-area": ("train", "test1"), "cross-area": ("train", "test2")}
TURNED = pa.schema([*REFERENCES, ("top_bearing_deg", pa.float64())], metadata=REFERENCES.metadata)

Floats = NDArray[np.float64]


def read(
    folder: Path,
    *,
    protocol: str = "same-area",
    shift_m: float = chain.SHIFT_M,
    rotation_deg: float = chain.ROTATION_DEG,
    seed: int = 0,
    lists: str = "",
    repeats: bool = False,
    validation: float = 0.0,
    neighbors: int = 0,
    verify: bool = False,
) -> CrossViewDataset:
    """Open KITTI.

    Args:
        folder: Holds ``raw_data`` and ``satmap``.
        protocol: ``same-area`` tests on the list test1, ``cross-area`` on test2.
        shift_m: Noise of the position, either way along and across the driving direction; applies to all lists.
        rotation_deg: Noise of the heading, either way; 0 for known headings, 180 for unknown ones.
        seed: Of the noise of training frames.
        lists: Folder of the lists, absolute or in ``folder``; by default one of ``.``, ``splits``, ``dataLoader``.
        repeats: Keep frames that a list names twice with the same noise. With different noise they are two samples
            anyway, the later one having the id of the frame and ``-2``.
        validation: Share of the training frames to hold out; 0 as published.
        neighbors: Length of the lists of the distance map; 0 for none.
        verify: Look at every image.

    Raises:
        DatasetNotFoundError: If this is not the folder of the dataset.
        DatasetError: If files are missing, misplaced, listed twice or unreadable; names the first, counts all.
        RecipeError: If the noise is negative or the shift leads out of the overhead images.
        UnknownNameError: If there is no such protocol.
    """
    parts = PROTOCOLS[one_of("protocol", protocol, PROTOCOLS)]
    _check_noise(shift_m, rotation_deg)
    require_folder(folder, "raw_data")
    require_folder(folder, "satmap")
    problems = Problems(folder)
    frames = read_lists(folder, parts, lists, problems, repeats=repeats)
    problems.check()
    poses = read_poses(folder, frames, problems)
    cameras = read_cameras(folder, frames, problems)
    size = first_size(folder, [frame.satmap for frame in frames[:1]], problems)
    if size not in (None, (chain.SATMAP_PX, chain.SATMAP_PX)):
        problems.add(frames[0].satmap, None, f"has {size} pixels, {chain.SATMAP_PX} square are needed")
    problems.check()

    noise = _noise(frames, seed)
    place = chain.place(noise, shift_m=shift_m, rotation_deg=rotation_deg)
    bearing_deg = chain.heading_from_yaw(poses[:, 2])
    crops = chain.crop_map(place, bearing_deg)
    queries = _queries(frames, poses, bearing_deg, place, cameras)
    references = _references(frames, poses, bearing_deg, place, crops)
    every = np.arange(len(frames))
    pairs = pair_table(
        queries,
        references,
        query_row=every,
        reference_row=every,
        positive=np.ones(len(frames), bool),
        uv=np.stack([place.u, place.v], 1),
    )
    dataset = assemble(
        folder,
        references=references,
        queries=queries,
        pairs=_with_offsets(pairs, references),
        reference_files=[frame.satmap for frame in frames],
        query_files=[frame.picture for frame in frames],
        validation=validation,
        neighbors=neighbors,
        verify=verify,
    )
    assert isinstance(dataset.images, FolderImages)
    return replace(dataset, images=CutImages(dataset.images, references["reference_id"].to_pylist(), crops))


class CutImages(Mapping[str, bytes]):
    """Pictures as they are, and overhead images cut on request, as PNG.

    Args:
        files: Both kinds of images, whole.
        reference_ids: (N,) ids of those to cut.
        crops: (N, 2, 3) maps of `cvgl_data.readers.kitti_chain.crop_map`.
    """

    def __init__(self, files: FolderImages, reference_ids: Sequence[str], crops: Floats) -> None:
        self.files = files
        self._rows = {name: row for row, name in enumerate(reference_ids)}
        self._crops = crops

    def __getitem__(self, key: str) -> bytes:
        if key not in self._rows:
            return self.files[key]
        try:
            with Image.open(io.BytesIO(self.files[key])) as satmap:
                image = chain.cut(satmap.convert("RGB"), self._crops[self._rows[key]])
        except UnidentifiedImageError:  # its own words hold an address in memory
            raise DatasetError(f"'{self.files.path(key)}' is no image, or cut short; fetch it again") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DatasetError(f"'{self.files.path(key)}' cannot be decoded: {error}") from None
        stream = io.BytesIO()
        image.save(stream, "PNG", compress_level=1)  # without loss; higher levels take longer than all the rest
        return stream.getvalue()

    def view(self, key: str) -> memoryview:
        """Return an image; raises KeyError if there is none of that id, DatasetError if it cannot be read."""
        return memoryview(self[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _check_noise(shift_m: float, rotation_deg: float) -> None:
    # In the worst case the corner of the cut image is a diagonal of both squares away from the antenna.
    reach_px = np.sqrt(2) * (shift_m / chain.GSD_M + chain.CROP_PX / 2) + 6.0
    if not (shift_m >= 0 and reach_px <= chain.SATMAP_PX / 2):
        longest = ((chain.SATMAP_PX / 2 - 6.0) / np.sqrt(2) - chain.CROP_PX / 2) * chain.GSD_M
        raise RecipeError(f"option 'shift_m' is {shift_m:g}; it must be in [0, {math.floor(10 * longest) / 10}]")
    if not 0 <= rotation_deg <= 180:
        raise RecipeError(f"option 'rotation_deg' is {rotation_deg:g}; it must be in [0, 180]")


def _noise(frames: Sequence[Frame], seed: int) -> chain.Noise:
    """Return the noise that lists give, and where they give none, drawn noise."""
    drawn = np.stack(chain.draw_noise([frame.id for frame in frames], seed), 1)
    for row, frame in enumerate(frames):
        if frame.noise is not None:
            drawn[row] = frame.noise
    return chain.Noise(*drawn.T)


def _queries(
    frames: Sequence[Frame], poses: Floats, bearing_deg: Floats, place: chain.Place, cameras: Floats
) -> pa.Table:
    east_m, north_m = chain.camera_offset_m(bearing_deg)
    x, y = pixel_from_lonlat(poses[:, 0], poses[:, 1], chain.ZOOM)
    lon, lat = lonlat_from_pixel(x + east_m / chain.GSD_M, y - north_m / chain.GSD_M, chain.ZOOM)
    return build_table(
        PICTURES,
        len(frames),
        {
            "query_id": [frame.id for frame in frames],
            "lon": lon,
            "lat": lat,
            "heading_deg": place.heading_deg,
            "source_heading_deg": bearing_deg,
            "pose_source": "oxts",
            "resampled": False,
            "captured": [frame.date.replace("_", "-") for frame in frames],
            "sequence": [frame.drive for frame in frames],
            "area": [f"kitti-{frame.part}" for frame in frames],
            "source": "kitti",
            "licence": "CC BY-NC-SA 3.0",
            "status": "ok",
            "split": ["train" if frame.part == "train" else "test" for frame in frames],
            **dict(zip(CAMERA, [*cameras.T, chain.CAMERA_HEIGHT_M], strict=True)),
        },
    )


def _references(
    frames: Sequence[Frame], poses: Floats, bearing_deg: Floats, place: chain.Place, crops: Floats
) -> pa.Table:
    middle = crops @ np.array([chain.CROP_PX / 2, chain.CROP_PX / 2, 1.0]) - chain.SATMAP_PX / 2
    x, y = pixel_from_lonlat(poses[:, 0], poses[:, 1], chain.ZOOM)
    lon, lat = lonlat_from_pixel(x + middle[:, 0], y + middle[:, 1], chain.ZOOM)
    return build_table(
        TURNED,
        len(frames),
        {
            "reference_id": [f"satmap_{frame.id}" for frame in frames],
            **window_columns(lon, lat, chain.CROP_PX, chain.ZOOM),
            "gsd_m": chain.GSD_M,
            "area": [f"kitti-{frame.part}" for frame in frames],
            "source": "google",
            "no_redistribute": True,
            "status": "ok",
            "top_bearing_deg": chain.top_bearing(bearing_deg, place.heading_deg),
        },
    )


def _with_offsets(pairs: pa.Table, references: pa.Table) -> pa.Table:
    """Return the pairs with offsets to the east and north although the references are turned."""
    top = np.radians(references["top_bearing_deg"].to_numpy()[pairs["reference_row"].to_numpy()])
    right_m, up_m = (pairs[name].to_numpy() for name in ("offset_east_m", "offset_north_m"))
    offsets = {
        "offset_east_m": right_m * np.cos(top) + up_m * np.sin(top),
        "offset_north_m": up_m * np.cos(top) - right_m * np.sin(top),
    }
    for name, values in offsets.items():
        index = pairs.schema.get_field_index(name)
        pairs = pairs.set_column(index, pairs.schema.field(index), pa.array(values))
    return pairs
