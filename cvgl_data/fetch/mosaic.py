"""References from tiles: a window that is one tile is that tile, any other is cut from the tiles it touches."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from cvgl_data.errors import FetchError, RecipeError
from cvgl_data.http import Http
from cvgl_data.images import decode, encode_jpeg, image_size
from cvgl_data.types import TILE_PX, Fetched, ImagerySource, Outcome, Tile, Window

CACHE_BYTES = 32 * 1024 * 1024
"""Encoded tiles kept for the windows to come: two rows of a city with overlapping windows."""

SAMPLED = 256
"""One tile in so many is decoded in any case, so that a source of broken images is noticed."""


class TileCache:
    """Fetches each tile once, for all windows that ask for it at the same time or soon after.

    Args:
        source: Where from.
        http: Shared client.
        verify: ``header`` looks at images from the outside and decodes one in `SAMPLED`, ``decode`` decodes each.
        max_bytes: Forget the tiles that were not used for longest beyond this.
        is_shared: Whether windows have tiles in common; otherwise none is kept.

    Raises:
        RecipeError: If ``verify`` is neither.
    """

    def __init__(
        self,
        source: ImagerySource,
        http: Http,
        *,
        verify: str = "header",
        max_bytes: int = CACHE_BYTES,
        is_shared: bool = True,
    ) -> None:
        if verify not in ("header", "decode"):
            raise RecipeError(f"images are verified by header or decode, not by '{verify}'")
        self.source = source
        self._http = http
        self.is_shared = is_shared
        self._decodes_all = verify == "decode"
        self._expected = (source.tile_px, source.tile_px)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Tile, Fetched] = OrderedDict()
        self._in_flight: dict[Tile, asyncio.Task[Fetched]] = {}

    async def get(self, tile: Tile) -> Fetched:
        """Return a tile whose image has been checked.

        Raises:
            FetchError: If it cannot be had, or is not a complete image of the source's size.
        """
        if tile in self._kept:
            self._kept.move_to_end(tile)
            return self._kept[tile]
        task = self._in_flight.get(tile)
        if task is None:
            task = self._in_flight[tile] = asyncio.ensure_future(self.fetch(tile))
            task.add_done_callback(lambda done: self._arrived(tile, done))
        return await asyncio.shield(task)  # one window may be given up while another still waits

    def close(self) -> None:
        """Give up what is in flight and forget the rest."""
        for task in self._in_flight.values():
            task.cancel()
        self._kept.clear()

    async def fetch(self, tile: Tile, etag: str = "") -> Fetched:
        """Return a tile past the cache, checked.

        Args:
            tile: Which one.
            etag: Of the image that is here already, if it is.

        Raises:
            FetchError: As for `get`.
            NotModified: If the server still has the image of this ETag.
        """
        fetched = await self.source.fetch(tile, self._http.unless(etag) if etag else self._http)
        size = image_size(fetched.image)
        if size != self._expected:
            text = f"tile {tile} is {size[0]}x{size[1]} pixels, not {self.source.tile_px}x{self.source.tile_px}"
            raise FetchError(text, source=self.source.name, item=str(tile), outcome=Outcome.WRONG_SIZE)
        if self._decodes_all or (tile.x + 31 * tile.y) % SAMPLED == 0:
            decode(fetched.image)
        return fetched

    def _arrived(self, tile: Tile, task: asyncio.Task[Fetched]) -> None:
        del self._in_flight[tile]
        if task.cancelled() or task.exception() is not None:
            return
        self._kept[tile] = task.result()
        self._bytes += len(task.result().image)
        while self._bytes > self._max_bytes and self._kept:
            _, forgotten = self._kept.popitem(last=False)
            self._bytes -= len(forgotten.image)


async def cut(window: Window, tiles: TileCache, etag: str = "") -> Fetched:
    """Return the image of a window: its one tile as received, or a mosaic encoded once.

    Args:
        window: Which one.
        tiles: Where to get tiles.
        etag: Of the image that is here already, if it is one tile.

    Raises:
        FetchError: If a tile fails; a window is never filled up.
        NotModified: If the server still has the image of this ETag.
        RecipeError: If the window's edges lie inside pixels of the source's tiles.
    """
    if window.size == TILE_PX and not (window.x % TILE_PX or window.y % TILE_PX):
        tile = Tile(window.x // TILE_PX % 2**window.zoom, window.y // TILE_PX, window.zoom)
        return await (tiles.get(tile) if tiles.is_shared and not etag else tiles.fetch(tile, etag))
    tile_px = tiles.source.tile_px
    if any(edge * tile_px % TILE_PX for edge in (window.x, window.y, window.size)):
        raise RecipeError(
            f"window {window.key} cannot be cut exactly from tiles of {tile_px} px (tile_px); choose tiles of "
            f"a multiple of {TILE_PX} px, or windows that are one tile each (grid.size {TILE_PX}, grid.overlap 0)"
        )
    found = [await tiles.get(tile) for tile in window.tiles]
    return Fetched(
        image=await asyncio.to_thread(_mosaic, window, [fetched.image for fetched in found], tile_px),
        captured=_merged("/", (fetched.captured for fetched in found)),
        release=_merged("; ", (fetched.release for fetched in found)),
        release_source=_merged("; ", (fetched.release_source for fetched in found)),
        provider=_merged("; ", (fetched.provider for fetched in found)),
        source_gsd_m=max((fetched.source_gsd_m for fetched in found if fetched.source_gsd_m is not None), default=None),
        upsampled_from_zoom=min(
            (fetched.upsampled_from_zoom for fetched in found if fetched.upsampled_from_zoom is not None), default=None
        ),
        robots=_merged(", ", (fetched.robots for fetched in found)),
        licence=_merged("; ", (fetched.licence or tiles.source.licence for fetched in found)),
    )


def _mosaic(window: Window, images: list[bytes], tile_px: int) -> bytes:
    """Return the JPEG of a window from its tiles, row by row."""
    left_tile, top_tile = window.x // TILE_PX, window.y // TILE_PX
    columns = (window.x + window.size - 1) // TILE_PX - left_tile + 1
    canvas = np.empty((len(images) // columns * tile_px, columns * tile_px, 3), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * tile_px, index % columns * tile_px
        canvas[top : top + tile_px, left : left + tile_px] = decode(image)
    left = (window.x - left_tile * TILE_PX) * tile_px // TILE_PX
    top = (window.y - top_tile * TILE_PX) * tile_px // TILE_PX
    side = window.size * tile_px // TILE_PX
    return encode_jpeg(canvas[top : top + side, left : left + side])


def _merged(separator: str, values: Iterable[str]) -> str:
    """Return what the tiles say, each statement once; for dates that reads as an ISO 8601 interval."""
    distinct = sorted({value for value in values if value})
    if separator == "/" and len(distinct) > 2:
        distinct = [distinct[0], distinct[-1]]
    return separator.join(distinct)
