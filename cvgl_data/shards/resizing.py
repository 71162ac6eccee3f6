"""Images at the size they are trained at: packed once more, so that no epoch decodes and shrinks the large ones."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from cvgl_data import schema
from cvgl_data.errors import DatasetError, FetchError
from cvgl_data.images import Pixels, decode, image_size
from cvgl_data.recipe import PackRecipe
from cvgl_data.shards.image_files import ImageWriter

JPEG_QUALITY = 90
"""Of images at another size: 94 kB at 768x384, of a panorama that has 390 kB."""

RESIZED_FROM = "resized_from_sha256"
"""Extra column: hash of the image as it is in the table of the originals."""

_MARGIN_PX = 4
"""What interpolation may look at beyond the seam of a panorama."""


@dataclass(frozen=True, slots=True)
class Size:
    """A size at which one kind of image is packed as well."""

    table: str
    """``references`` or ``queries``."""
    width: int
    height: int

    @property
    def name(self) -> str:
        """Name of the table: ``references_384``, ``queries_768x384``."""
        side = str(self.width) if self.table == "references" else f"{self.width}x{self.height}"
        return f"{self.table}_{side}"

    @property
    def columns(self) -> pa.Schema:
        """The columns of the originals, and `RESIZED_FROM`."""
        originals = schema.REFERENCES if self.table == "references" else schema.QUERIES
        metadata = {**originals.metadata, schema.NAME_KEY: self.name.encode()}
        return originals.append(pa.field(RESIZED_FROM, pa.string())).with_metadata(metadata)


def sizes(recipe: PackRecipe) -> dict[str, Size]:
    """Return the sizes that a recipe asks for, by kind of image."""
    found = {}
    if recipe.reference_size:
        found["references"] = Size("references", recipe.reference_size, recipe.reference_size)
    if recipe.panorama_size:
        width, height = map(int, recipe.panorama_size.split("x"))
        found["queries"] = Size("queries", width, height)
    return found


class ResizedWriter:
    """Writes rows with images as they are and, if asked to, at another size too, which takes all cores.

    Args:
        originals: Where rows go as they are.
        smaller: Where they go with images of this size, their hashes, and the hashes of the originals.
        size: What size that is.
    """

    def __init__(self, originals: ImageWriter, smaller: ImageWriter | None = None, size: Size | None = None) -> None:
        self._originals, self._smaller, self._size = originals, smaller, size

    def write(self, table: pa.Table) -> None:
        """Append rows.

        Raises:
            DatasetError: If an image cannot be decoded; names it.
        """
        self._originals.write(table)
        if self._smaller and self._size and table.num_rows:
            self._smaller.write(resize_table(table, self._size))

    def close(self) -> pa.Table:
        """Write the rest; returns all rows without their images."""
        if self._smaller:
            self._smaller.close()
        return self._originals.close()


def resize_table(table: pa.Table, size: Size, workers: int = 0) -> pa.Table:
    """Return the same rows with images of another size, their hashes, and the hashes of the originals.

    Args:
        table: Schema ``REFERENCES`` or ``QUERIES``.
        size: Size of the images.
        workers: Threads; 0 means one per core.

    Raises:
        DatasetError: If an image cannot be decoded; names it.
    """
    ids = table.column(0).to_pylist()
    originals = pc.struct_field(table["image"], "bytes").to_pylist()
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        images = list(pool.map(partial(_resized, size, table.column_names[0]), ids, originals))
    changed = {
        "image": _image_column(images),
        "sha256": pa.array([hashlib.sha256(image).hexdigest() for image in images], pa.string()),
        RESIZED_FROM: table["sha256"],
    }
    columns = size.columns
    return pa.table([changed[name] if name in changed else table[name] for name in columns.names], columns)


def resize(image: bytes, width: int, height: int, *, wraps: bool = False) -> bytes:
    """Return an image at another size, encoded once as JPEG; one that has this size already stays as it is.

    Pixels are averaged over the area that they come to cover, which does not alias; an enlarged image is interpolated.

    Args:
        image: Encoded image.
        width: Pixels.
        height: Pixels.
        wraps: Whether the left edge continues the right one, as in a panorama, and pixels on one side may be mixed
            with those on the other.

    Raises:
        FetchError: If it cannot be decoded.
    """
    if image_size(image) == (width, height):
        return image
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(resize_pixels(decode(image), width, height, wraps=wraps)),
        quality=JPEG_QUALITY,
        colorspace="RGB",
        colorsubsampling="420",
    )
    return encoded


def resize_pixels(pixels: Pixels, width: int, height: int, *, wraps: bool = False) -> Pixels:
    """Return pixels, shape (H, W, 3), at another size; see `resize`."""
    import cv2

    resized: Any = pixels
    old_height, old_width = pixels.shape[:2]
    smaller = (min(width, old_width), min(height, old_height))
    if smaller != (old_width, old_height):
        # The area of a pixel lies between the edges, so none reaches across the seam.
        resized = cv2.resize(resized, smaller, interpolation=cv2.INTER_AREA)
    if smaller == (width, height):
        return np.asarray(resized, np.uint8)
    cut = 0
    if wraps and width > old_width:
        # A margin that is a whole number of pixels before and after.
        period = old_width // math.gcd(old_width, width)
        margin = period * math.ceil(_MARGIN_PX / period)
        resized = np.pad(resized, ((0, 0), (margin, margin), (0, 0)), mode="wrap")
        cut = margin * width // old_width
    resized = cv2.resize(resized, (width + 2 * cut, height), interpolation=cv2.INTER_CUBIC)[:, cut : cut + width]
    return np.asarray(resized, np.uint8)


def _resized(size: Size, id_name: str, item: str, image: bytes) -> bytes:
    try:
        return resize(image, size.width, size.height, wraps=size.table == "queries")
    except FetchError as error:
        raise DatasetError(
            f"{id_name} '{item}' cannot be made {size.width}x{size.height} ({error}); check the quality of the images "
            "first, which leaves out what cannot be decoded"
        ) from None


def _image_column(images: Iterable[bytes]) -> pa.Array:
    content = pa.array(images, pa.binary())
    return pa.StructArray.from_arrays([content, pa.nulls(len(content), pa.string())], fields=list(schema.IMAGE))
