"""Columns of queries that are pictures of a pinhole camera, and the camera's matrix at any size of the picture."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cvgl_data.errors import SchemaError
from cvgl_data.readers.tables import QUERIES
from cvgl_data.schema import FURTHER

CAMERA = tuple(name for name in FURTHER["queries"].names if name.startswith(("camera_", "image_")))
"""Further columns: intrinsics in pixels of the stored picture, (0, 0) its corner; its size; height above the ground."""

PICTURES = pa.schema([*QUERIES, *((name, pa.float64()) for name in CAMERA)], metadata=QUERIES.metadata)


def intrinsics(queries: pa.Table, height_px: int, width_px: int) -> NDArray[np.float64]:
    """Return the cameras' matrices for pictures resized to a height and width, (Q, 3, 3).

    Pixel (u, v) of the resized picture, (0, 0) its corner, shows ``(x, y, z)``, right, down and ahead of the camera,
    where ``(u z, v z, z)`` is the matrix times it.

    Raises:
        SchemaError: If the queries are no pictures of a pinhole camera.
    """
    if missing := [name for name in CAMERA if name not in queries.column_names]:
        raise SchemaError(
            f"queries have no column '{missing[0]}'; they are no pictures of a camera with known intrinsics"
        )
    fx, fy, cx, cy, width, height, _ = (np.asarray(queries[name].to_numpy(), np.float64) for name in CAMERA)
    matrices = np.zeros((queries.num_rows, 3, 3))
    matrices[:, 0, 0], matrices[:, 0, 2] = fx * width_px / width, cx * width_px / width
    matrices[:, 1, 1], matrices[:, 1, 2] = fy * height_px / height, cy * height_px / height
    matrices[:, 2, 2] = 1.0
    return matrices
