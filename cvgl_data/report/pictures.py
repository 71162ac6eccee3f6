"""Small pictures inside the page: thumbnails, and one mosaic per area as the map's background."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from cvgl_data.report.placement import Placement

THUMBNAIL_PX = {"query": 200, "reference": 128}
"""Width of a thumbnail; the height follows."""

MOSAIC_SIDE_PX = 2000
TILES_AT_MOST = 6_000
"""References opened for all mosaics together."""

_THUMBNAIL_QUALITY = 50
_MOSAIC_QUALITY = 60
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, KeyError)

Ints = NDArray[np.int64]


class Thumbnails:
    """Thumbnails by id, as data URIs, up to a number of bytes.

    Args:
        images: Encoded images by id.
        max_bytes: What all of them may take in the page.
    """

    def __init__(self, images: Mapping[str, bytes], max_bytes: int) -> None:
        self._images = images
        self._left = max_bytes
        self.uris: dict[str, str] = {}
        """In the order in which they were asked for; "" where there is no image or it cannot be decoded."""

    def add(self, items: Mapping[str, str]) -> bool:
        """Make the thumbnails of some images, all or none; returns whether there was room.

        Args:
            items: Id to kind, ``query`` or ``reference``.
        """
        new = {name: self._make(name, kind) for name, kind in items.items() if name not in self.uris}
        size = sum(map(len, new.values()))
        if size > self._left:
            return False
        self._left -= size
        self.uris.update(new)
        return True

    def _make(self, name: str, kind: str) -> str:
        try:
            return data_uri(thumbnail(self._images[name], THUMBNAIL_PX[kind]), "image/webp")
        except _BROKEN:
            return ""


def thumbnail(image: bytes, width: int) -> bytes:
    """Return a WebP of the given width at most, of the same shape; two thirds of a JPEG that looks alike.

    Raises:
        OSError, ValueError: If it cannot be decoded.
    """
    small = _reduced(image, width)
    if small.width > width:
        small = small.resize((width, max(round(small.height * width / small.width), 1)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=_THUMBNAIL_QUALITY, method=2)
    return stream.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes as a URI that needs no request."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def mosaic(
    place: Placement, images: Mapping[str, bytes], ids: pa.ChunkedArray, *, max_px: int, max_tiles: int
) -> tuple[bytes, float, tuple[float, float, float, float]] | None:
    """Paint the references of an area into one picture, transparent where there are none.

    Of too many windows those of one tiling are enough where they overlap, or every second, third, ... in each
    direction, painted larger.

    Args:
        place: The area.
        images: Encoded images by id.
        ids: All ``reference_id``.
        max_px: Pixels of the picture.
        max_tiles: References to open.

    Returns:
        WebP (JPEG has no transparency), its pixels per median window, and its west, north, east and south edges in
        world units; None if the area has no references, or spreads so thin that they could not be seen.
    """
    if not len(place.west):
        return None
    west, north = place.west.min(), place.north.min()
    wide, high = (place.west + place.side).max() - west, (place.north + place.side).max() - north
    median = float(np.median(place.side))
    scale = min(MOSAIC_SIDE_PX / max(wide, high), (max_px / (wide * high)) ** 0.5, 256 / median)
    rows, side = _chosen(place, max_tiles)
    if not len(rows) or side.min() * scale < 1:
        return None
    canvas = Image.new("RGBA", (max(round(wide * scale), 1), max(round(high * scale), 1)))
    for row, spread, name in zip(rows.tolist(), side.tolist(), _names(ids, place.reference_rows[rows]), strict=True):
        left, top = ((value[row] - start) * scale for value, start in ((place.west, west), (place.north, north)))
        box = tuple(round(value) for value in (left, top, left + spread * scale, top + spread * scale))
        size = (max(box[2] - box[0], 1), max(box[3] - box[1], 1))
        try:
            tile = _reduced(images[name], max(size))
        except _BROKEN:
            continue
        canvas.paste(tile.resize(size, Image.Resampling.BOX, reducing_gap=2.0), box[:2])
    stream = io.BytesIO()
    canvas.save(stream, "WEBP", quality=_MOSAIC_QUALITY, method=4)
    return stream.getvalue(), median * scale, (west, north, west + wide, north + high)


def _chosen(place: Placement, max_tiles: int) -> tuple[Ints, NDArray[np.float64]]:
    """Return the windows to paint and how large: all, or the first one in each cell of a grid, as large as the cell."""
    if len(place.side) <= max_tiles:
        return np.arange(len(place.side)), place.side
    pitch = place.side
    while True:
        cells = np.stack([np.floor(place.west / pitch + 1e-9), np.floor(place.north / pitch + 1e-9), pitch], 1)
        order = np.lexsort((place.west, place.north))
        _, first = np.unique(cells[order], axis=0, return_index=True)
        if len(first) <= max(max_tiles, 1) or pitch.min() > 2:
            rows = np.sort(order[first])
            return rows, pitch[rows]
        pitch = pitch * max(2.0, np.floor((len(first) / max(max_tiles, 1)) ** 0.5))


def _names(ids: pa.ChunkedArray, rows: Ints) -> Iterator[str]:
    return iter(ids.take(pa.array(rows)).to_pylist())


def _reduced(image: bytes, side: int) -> Image.Image:
    """Decode an image at no more than it takes for a side of so many pixels."""
    if image[:2] == b"\xff\xd8":
        return Image.fromarray(simplejpeg.decode_jpeg(image, colorspace="RGB", min_width=side, min_height=1))
    with Image.open(io.BytesIO(image)) as opened:
        return opened.convert("RGB")
