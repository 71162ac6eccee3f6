"""Sources made of arithmetic, that count what they are asked and fail on demand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import numpy as np

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import FetchError, NoImagery, NoPanorama
from cvgl_data.http import Http
from cvgl_data.images import encode_jpeg
from cvgl_data.types import Fetched, ImagerySource, Outcome, Panorama, PanoramaRef, PanoramaSource, Tile


def tile_pixels(tile: Tile, tile_px: int = 256) -> np.ndarray:
    """Smooth field over global pixels, so that a mosaic has no seams."""
    rows, columns = np.mgrid[0:tile_px, 0:tile_px]
    x = (tile.x * tile_px + columns) / tile_px
    y = (tile.y * tile_px + rows) / tile_px
    channels = [np.sin(3 * x), np.cos(4 * y), np.sin(2 * x + 3 * y)]
    return np.stack([np.uint8(128 + 100 * channel) for channel in channels], axis=-1)


class FakeImagery:
    """Tiles of `tile_pixels`; ``failures`` maps tiles to what they raise instead, once per entry of the list."""

    name = "fake"
    attribution = "nobody"
    licence = "CC0-1.0"

    def __init__(self, tile_px: int = 256, max_zoom: int = 22, delay_s: float = 0.0) -> None:
        self.tile_px = tile_px
        self.max_zoom = max_zoom
        self.delay_s = delay_s
        self.asked: Counter[Tile] = Counter()
        self.failures: dict[Tile, list[Outcome]] = {}
        self.bodies: dict[Tile, bytes] = {}
        self.in_flight = 0
        self.most_in_flight = 0

    async def fetch(self, tile: Tile, http: Http) -> Fetched:
        self.asked[tile] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self.in_flight -= 1
        if self.failures.get(tile):
            outcome = self.failures[tile].pop(0)
            if outcome is Outcome.NO_IMAGERY:
                raise NoImagery(f"nothing at {tile}", source=self.name, item=str(tile))
            raise FetchError(f"{outcome} at {tile}?key=SECRET", source=self.name, item=str(tile), outcome=outcome)
        image = self.bodies.get(tile) or encode_jpeg(tile_pixels(tile, self.tile_px))
        return Fetched(image=image, captured=f"2024-0{tile.x % 9 + 1}-01", release="r1")

    def close(self) -> None:
        pass


class FakePanoramas:
    """Panoramas on given positions; ids in ``gone`` do not resolve."""

    name = "fake"
    attribution = "nobody"
    licence = "CC0-1.0"

    def __init__(self, panoramas: dict[str, Panorama], gone: tuple[str, ...] = ()) -> None:
        self.panoramas = panoramas
        self.gone = gone
        self.asked: Counter[str] = Counter()
        self.unreadable: list[FetchError] = []

    async def discover(self, area: AreaOfInterest, http: Http) -> AsyncIterator[PanoramaRef | FetchError]:
        for error in self.unreadable:
            yield error
        for panorama in self.panoramas.values():
            if area.contains(panorama.lon, panorama.lat):
                yield PanoramaRef(pano_id=panorama.pano_id, lon=panorama.lon, lat=panorama.lat)

    async def fetch(self, pano_id: str, http: Http) -> Panorama:
        self.asked[pano_id] += 1
        if pano_id in self.gone or pano_id not in self.panoramas:
            raise NoPanorama(f"no panorama {pano_id}", source=self.name, item=pano_id)
        return self.panoramas[pano_id]

    def close(self) -> None:
        pass


_IMAGERY: type[ImagerySource] = FakeImagery
_PANORAMAS: type[PanoramaSource] = FakePanoramas
