"""Top views of a packed dataset's panoramas, made once, for programs that do not make them themselves.

```
OUT/queries_bev_384/train-00000-of-00001.parquet    a query per row, its top view as the image
OUT/train/QUERY_ID.jpg                              the same as files
OUT/bev.json                                        how they were made
```
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray

from cvgl_data import schema
from cvgl_data.arrow_files import replace_file
from cvgl_data.dataset import CrossViewDataset, open_dataset
from cvgl_data.errors import CvglError, DatasetError, FetchError, RecipeError, WorkspaceError
from cvgl_data.images import decode
from cvgl_data.panorama.bev import to_bev
from cvgl_data.panorama.pose import north_align
from cvgl_data.shards.files import ShardFiles
from cvgl_data.shards.image_files import ImageWriter
from cvgl_data.types import Progress, Silent

MADE_FROM = "made_from_sha256"
"""Extra column: hash of the panorama."""
SCALE = "bev_m_per_px"
"""Extra column: ground metres per pixel of the top view, if the camera is as high as was said."""
SETTINGS = "bev.json"

_AT_ONCE = 64
_SHARD_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TopViews:
    """How top views are made. Exactly one of ``fov_deg``, ``meters_per_px`` and ``match_references`` says how large."""

    size_px: int = 384
    """Side."""
    fov_deg: float | None = None
    """Opening angle of a pinhole that looks straight down."""
    meters_per_px: float | None = None
    match_references: bool = False
    """Cover as much ground as the query's positive does."""
    camera_height_m: float = 2.5
    zenith_deg: tuple[float, float] = (0.0, 180.0)
    """Angle between the zenith and the panoramas' top edge, and their bottom edge."""
    oversample: int = 1
    """Sample this many times denser and average."""
    jpeg_quality: int = 90

    def __post_init__(self) -> None:
        given = [self.fov_deg is not None, self.meters_per_px is not None, self.match_references]
        if sum(given) != 1:
            raise RecipeError("give exactly one of a field of view, a scale, and to match the references")
        if not 0 < self.camera_height_m < math.inf:
            raise RecipeError(f"the camera's height must be positive and finite, not {self.camera_height_m}")
        if self.meters_per_px is not None and not 0 < self.meters_per_px < math.inf:
            raise RecipeError(f"the scale must be positive and finite, not {self.meters_per_px} metres per pixel")
        if not (self.size_px > 0 and self.oversample > 0 and 1 <= self.jpeg_quality <= 100):
            raise RecipeError("size and oversampling must be positive, and the quality from 1 to 100")
        try:
            self.draw(np.zeros((4, 8), np.uint8), 0.0, self.meters_per_px or 1.0, size_px=1)
        except ValueError as error:
            raise RecipeError(str(error)) from None

    def draw(self, pano: NDArray[Any], heading_deg: float, scale: float, size_px: int | None = None) -> NDArray[Any]:
        """Return the top view of one panorama at a scale (ground metres per pixel; unused with a field of view)."""
        return to_bev(
            pano,
            size_px or self.size_px,
            meters_per_px=None if self.fov_deg is not None else scale,
            fov_deg=self.fov_deg,
            camera_height_m=self.camera_height_m,
            heading_deg=heading_deg,
            zenith_deg=self.zenith_deg,
            oversample=self.oversample,
        )


def write_top_views(
    data: str | Path,
    out: Path,
    how: TopViews,
    *,
    format_: Literal["parquet", "files"] = "parquet",
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Make the top view of every query of a dataset.

    Panoramas whose pose is known are turned upright and north first. The same settings on the same panoramas give the
    same bytes.

    Args:
        data: Dataset folder.
        out: Folder to write to; new or empty.
        how: Scale and size.
        format_: ``parquet`` keeps the queries' columns beside the images; ``files`` are JPEG images by id.
        limit: The first so many queries of each split only.
        workers: Threads; 0 means one per core.
        overwrite: Delete what the folder holds.
        progress: Told what is going on.

    Returns:
        Number of top views by split.

    Raises:
        WorkspaceError: If the folder is not empty.
        DatasetError: If a panorama cannot be decoded or has no positive to match; names it.
    """
    dataset, progress = open_dataset(data), progress or Silent()
    if out.exists() and not out.is_dir():
        raise WorkspaceError(f"'{out}' is a file; name a folder")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise WorkspaceError(f"'{out}' is not empty; name another folder, or give --overwrite")
        if not (out / SETTINGS).is_file():
            raise WorkspaceError(f"'{out}' holds no top views and is left alone; name another folder")
        shutil.rmtree(out)
    scale_Q = _scales(dataset, how)
    split_Q = np.array(dataset.queries["split"].to_pylist(), dtype=object)
    rows_of = {split: np.flatnonzero(split_Q == split)[:limit] for split in schema.SPLITS}
    rows_of = {split: rows for split, rows in rows_of.items() if len(rows)}
    progress.stage("top views", sum(map(len, rows_of.values())))
    out.mkdir(parents=True, exist_ok=True)
    _write_settings(out, how)  # first, so that what an interruption leaves is known for what it is
    columns = _columns(dataset, how)
    files = ShardFiles(out)
    for split, rows in rows_of.items():
        writer = ImageWriter(files, _table_name(how), split, columns, _AT_ONCE, _SHARD_BYTES)
        for some, images in _drawn(dataset, rows, scale_Q, how, workers):
            if format_ == "files":
                _write_files(out / split, dataset.queries["query_id"].take(some).to_pylist(), images)
            else:
                writer.write(_table(dataset, some, images, scale_Q, columns))
            progress.advance(len(images))
        if format_ == "parquet":
            writer.close()
    files.put_in_place()
    return {split: len(rows) for split, rows in rows_of.items()}


def _scales(dataset: CrossViewDataset, how: TopViews) -> NDArray[np.float64]:
    """Return the ground metres per pixel of each query's top view."""
    num_queries = dataset.queries.num_rows
    if not how.match_references:
        per_px = how.meters_per_px
        if per_px is None:
            assert how.fov_deg is not None
            per_px = 2 * how.camera_height_m * math.tan(math.radians(how.fov_deg) / 2) / how.size_px
        return np.full(num_queries, per_px)
    positive_Q = dataset.positives()
    if (positive_Q < 0).any():
        lost = dataset.queries["query_id"][int(np.flatnonzero(positive_Q < 0)[0])].as_py()
        raise DatasetError(f"no reference covers query '{lost}', whose scale its top view is to have; give a scale")
    side_m_R = dataset.references["gsd_m"].to_numpy() * dataset.references["size"].to_numpy()
    return np.asarray(side_m_R[positive_Q] / how.size_px, np.float64)


def _drawn(
    dataset: CrossViewDataset, rows: NDArray[np.int64], scale_Q: NDArray[np.float64], how: TopViews, workers: int
) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
    """Yield some rows at a time with their top views."""
    queries = dataset.queries
    ids: list[str] = queries["query_id"].to_pylist()
    pose_Q3 = np.stack([queries[name].to_numpy().astype(float) for name in ("heading_deg", "pitch_deg", "roll_deg")], 1)
    pose_Q3 = np.nan_to_num(pose_Q3)  # unknown: taken for upright and north, as everywhere

    def draw(row: int) -> bytes:
        try:
            pano = decode(dataset.images[ids[row]])
            heading_deg, pitch_deg, roll_deg = pose_Q3[row].tolist()
            if pitch_deg or roll_deg:
                pano, heading_deg = north_align(pano, heading_deg, pitch_deg, roll_deg), 0.0
            view = how.draw(pano, heading_deg, float(scale_Q[row]))
        except KeyError:
            raise DatasetError(f"panorama of query '{ids[row]}' is missing; fetch it again") from None
        except (FetchError, ValueError) as error:
            raise DatasetError(f"panorama of query '{ids[row]}' has no top view: {error}") from None
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(view), quality=how.jpeg_quality, colorspace="RGB", colorsubsampling="420"
        )
        return encoded

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            yield some, list(pool.map(draw, some.tolist()))


def _columns(dataset: CrossViewDataset, how: TopViews) -> pa.Schema:
    """Return the queries' columns with the image, and what the top view adds."""
    fields = [field for field in dataset.queries.schema if field.name != "split"]
    fields.insert(1, pa.field("image", schema.IMAGE))
    fields += [pa.field(MADE_FROM, pa.string()), pa.field(SCALE, pa.float64())]
    metadata = {
        schema.VERSION_KEY: schema.VERSION.encode(),
        schema.NAME_KEY: _table_name(how).encode(),
        b"cvgl_bev": json.dumps(asdict(how)).encode(),
    }
    return pa.schema(fields, metadata=metadata)


def _table(
    dataset: CrossViewDataset,
    rows: NDArray[np.int64],
    images: list[bytes],
    scale_Q: NDArray[np.float64],
    columns: pa.Schema,
) -> pa.Table:
    """Return queries with their top views, which look north."""
    known = dataset.queries.take(pa.array(rows))
    level = pa.array(np.zeros(len(rows)))
    changed = {
        "image": pa.StructArray.from_arrays(
            [pa.array(images, pa.binary()), pa.nulls(len(images), pa.string())], fields=list(schema.IMAGE)
        ),
        "heading_deg": level,
        "pitch_deg": level,
        "roll_deg": level,
        "sha256": pa.array([hashlib.sha256(image).hexdigest() for image in images]),
        MADE_FROM: known["sha256"],
        SCALE: pa.array(scale_Q[rows]),
    }
    return pa.table([changed[name] if name in changed else known[name] for name in columns.names], columns)


def _write_files(folder: Path, ids: list[str], images: list[bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for item, image in zip(ids, images, strict=True):
        if not re.fullmatch(r"[\w.=@,+ -]+", item) or item.startswith("."):
            raise CvglError(f"query '{item}' cannot be the name of a file; write Parquet instead")
        (folder / f"{item}.jpg").write_bytes(image)


def _write_settings(out: Path, how: TopViews) -> None:
    text = json.dumps(asdict(how), indent=2) + "\n"

    def write(part: Path) -> None:
        part.write_text(text, encoding="utf-8")

    replace_file(out / SETTINGS, write)


def _table_name(how: TopViews) -> str:
    return f"queries_bev_{how.size_px}"
