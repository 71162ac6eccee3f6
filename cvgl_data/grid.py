"""The reference windows of an area: which squares of the global pixel grid its polygon touches.

The grid of a zoom is anchored at global pixel (0, 0) and goes round the world: a window may begin just west of the
antimeridian and end east of it. At the southern edge of the Mercator square, where there is nothing to go on to, a last
row of windows that would not fit is moved up until it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry import Polygon

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.aoi.vectors import made_valid
from cvgl_data.errors import GridError
from cvgl_data.geo import Floats, gsd_m, lonlat_from_pixel, pixel_from_lonlat
from cvgl_data.types import TILE_PX, Window

MAX_ZOOM = 23
MAX_WINDOWS = 50_000_000

_EDGE_ERROR_PX = 0.01
_TOUCH = 2.0**-41
"""Share of the world's side (18 micrometres on the ground) by which a window must reach into the area, so that rounding
does not make an area that ends on a grid line touch the windows beyond it."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows of one size and zoom in columns; indexing and iterating give `Window` tuples."""

    x: Ints
    """West edges in global pixels, shape (N,)."""
    y: Ints
    """North edges in global pixels, shape (N,)."""
    size: int
    zoom: int

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Window]:
        for x, y in zip(self.x.tolist(), self.y.tolist(), strict=True):
            yield Window(x, y, self.size, self.zoom)

    @overload
    def __getitem__(self, index: int) -> Window: ...

    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> Windows: ...

    def __getitem__(self, index: int | slice | NDArray[Any]) -> Window | Windows:
        if isinstance(index, slice | np.ndarray):
            return Windows(self.x[index], self.y[index], self.size, self.zoom)
        return Window(int(self.x[index]), int(self.y[index]), self.size, self.zoom)

    def keys(self) -> list[str]:
        """Return `Window.key` of each."""
        return [window.key for window in self]

    def centers(self) -> tuple[Floats, Floats]:
        """Return ``lon, lat`` of the centres, each of shape (N,), lon in [-180, 180)."""
        half = self.size / 2
        return lonlat_from_pixel((self.x + half) % world_px(self.zoom), self.y + half, self.zoom)

    def gsd_m(self) -> Floats:
        """Return ground metres per global pixel at the centres, shape (N,)."""
        return gsd_m(self.centers()[1], self.zoom)

    def bounds_px(self) -> Ints:
        """Return ``west, north, east, south`` in global pixels, shape (N, 4); east runs on beyond the antimeridian."""
        return np.column_stack([self.x, self.y, self.x + self.size, self.y + self.size])

    def num_tiles(self) -> int:
        """Return how many distinct XYZ tiles the windows touch, which is the number of imagery requests."""
        columns, rows = self.x // TILE_PX, self.y // TILE_PX
        last_columns, last_rows = (self.x + self.size - 1) // TILE_PX, (self.y + self.size - 1) // TILE_PX
        reach = range(-(-(self.size - 1) // TILE_PX) + 1)
        touched = [
            (((columns + right) % 2**self.zoom) << 32 | (rows + down))[
                (columns + right <= last_columns) & (rows + down <= last_rows)
            ]
            for right in reach
            for down in reach
        ]
        tiles = np.sort(np.concatenate(touched))
        return int(np.count_nonzero(np.diff(tiles))) + (len(tiles) > 0)


@dataclass(frozen=True, slots=True)
class TileGrid:
    """A regular grid of windows over the whole world.

    Args:
        zoom: Web-Mercator zoom level, 0 to 23.
        size: Side of a window in global pixels of that zoom.
        overlap: Share of the side that neighboring windows have in common: 0 makes each window one XYZ tile (size 256),
            0.5 is VIGOR's layout. The step, or the overlap in pixels, has to divide the size.

    Raises:
        GridError: If there is no such grid; the message names the nearest that exist.
    """

    zoom: int = 18
    size: int = 256
    overlap: float = 0.0

    def __post_init__(self) -> None:
        if self.zoom not in range(MAX_ZOOM + 1):
            raise GridError(f"zoom {self.zoom} is outside 0 to {MAX_ZOOM}")
        if self.size not in range(1, world_px(self.zoom) + 1):
            raise GridError(
                f"windows of {self.size} px do not fit at zoom {self.zoom}; the size is 1 to {world_px(self.zoom)} px"
            )
        strides = _strides(self.size)
        if not any(abs(self.size * (1.0 - self.overlap) - stride) < 0.01 for stride in strides):
            overlaps = [1.0 - stride / self.size for stride in strides]
            nearest = sorted(overlaps, key=lambda overlap: abs(overlap - self.overlap))[:6]
            raise GridError(
                f"overlap {self.overlap:g} does not divide windows of {self.size} px evenly; the nearest that do: "
                f"{', '.join(f'{overlap:.10g}' for overlap in sorted(nearest))}"
            )

    @property
    def stride(self) -> int:
        """Step from window to window in global pixels."""
        return round(self.size * (1.0 - self.overlap))

    def cover(self, area: AreaOfInterest) -> Windows:
        """Return all windows of the grid that have a part of the area in them, ordered by `Window.key`.

        The polygon decides, not its bounding box, and holes are left out. Its edges are straight in lon/lat; in
        Mercator pixels they are followed to within 0.01 px.

        Raises:
            GridError: If there are more than 50 million.
        """
        world = world_px(self.zoom)
        polygon = _in_pixels(area, self.zoom)
        if polygon.bounds[0] < self.size:  # windows across the antimeridian see this part east of it
            polygon = shapely.union_all([polygon, affinity.translate(polygon, xoff=world)])
        shapely.prepare(polygon)
        columns, rows = self._subdivide(polygon, area.name)
        x, y = columns * self.stride, np.minimum(rows * self.stride, world - self.size)
        order = np.lexsort((y, x))
        return Windows(x[order], y[order], self.size, self.zoom)

    def _subdivide(self, polygon: Any, name: str) -> tuple[Ints, Ints]:
        """Return column and row of every window that meets a prepared polygon.

        Blocks of windows are quartered from the whole down to single windows; a block inside the polygon is taken and a
        block outside is dropped without looking at its windows.
        """
        world = world_px(self.zoom)
        highest = world - self.size
        num_columns, num_rows = -(-world // self.stride), -(-highest // self.stride) + 1
        west, north, east, south = polygon.bounds
        last_row = num_rows - 1 if south > highest else south // self.stride
        last = np.array([min(east // self.stride, num_columns - 1), last_row], np.int64)
        first = np.clip(np.array([west - self.size, north - self.size]) // self.stride, 0, last).astype(np.int64)
        step = 1 << int(np.max(last - first)).bit_length()
        blocks = first[None, :]
        taken: list[tuple[Ints, int]] = []
        count = 0
        while len(blocks):
            ends = np.minimum(blocks + (step - 1), last)
            meets = shapely.intersects(polygon, self._boxes(blocks, ends, world * _TOUCH))
            blocks, ends = blocks[meets], ends[meets]
            whole = (
                np.ones(len(blocks), bool)
                if step == 1
                else shapely.contains_properly(polygon, self._boxes(blocks, ends, 0.0))
            )
            taken.append((blocks[whole], step))
            count += int(np.prod(ends[whole] - blocks[whole] + 1, axis=1).sum())
            if count > MAX_WINDOWS:
                raise GridError(
                    f"area '{name}' has more than {MAX_WINDOWS:,} windows at zoom {self.zoom}; "
                    "clip it or choose a lower zoom"
                )
            step //= 2
            blocks = _children(blocks[~whole], step, last)
        indices = np.concatenate([_expand(corner, side, last) for corner, side in taken])
        return indices[:, 0], indices[:, 1]

    def _boxes(self, first: Ints, last: Ints, margin_px: float) -> Any:
        """Return the squares from the first to the last window of blocks, made smaller by a margin."""
        highest = world_px(self.zoom) - self.size
        top = np.minimum(first[:, 1] * self.stride, highest)
        bottom = np.minimum(last[:, 1] * self.stride, highest) + self.size
        left, right = first[:, 0] * self.stride, last[:, 0] * self.stride + self.size
        return shapely.box(left + margin_px, top + margin_px, right - margin_px, bottom - margin_px)


def world_px(zoom: int) -> int:
    """Return the side of the Mercator square in global pixels."""
    return TILE_PX << zoom


def _strides(size: int) -> list[int]:
    """Return the steps that divide the size, or leave an overlap that does."""
    small = [number for number in range(1, math.isqrt(size) + 1) if size % number == 0]
    divisors = {*small, *(size // number for number in small)}
    return sorted(divisors | {size - divisor for divisor in divisors - {size}})


def _children(blocks: Ints, step: int, last: Ints) -> Ints:
    """Return the four quarters of each block, without those that begin beyond the last window."""
    quarters = np.array([[0, 0], [0, step], [step, 0], [step, step]])
    children = (blocks[:, None, :] + quarters).reshape(-1, 2)
    return np.asarray(children[(children <= last).all(axis=1)])


def _expand(blocks: Ints, step: int, last: Ints) -> Ints:
    """Return the index pairs of all windows in blocks, shape (N, 2)."""
    offsets = np.arange(step)
    columns = np.broadcast_to((blocks[:, 0, None] + offsets)[:, :, None], (len(blocks), step, step))
    rows = np.broadcast_to((blocks[:, 1, None] + offsets)[:, None, :], (len(blocks), step, step))
    exists = (columns <= last[0]) & (rows <= last[1])
    return np.column_stack([columns[exists], rows[exists]])


def _in_pixels(area: AreaOfInterest, zoom: int) -> Any:
    """Return the area's polygon in global pixels, its edges cut so short that they may be straight there."""
    parts = []
    for part in shapely.get_parts(area.geometry):
        shell, *holes = (_ring_in_pixels(ring, zoom) for ring in (part.exterior, *part.interiors))
        projected = Polygon(shell, holes)
        parts.append(projected if projected.is_valid else made_valid(projected))  # rings may touch by rounding
    return shapely.union_all(parts) if len(parts) > 1 else parts[0]


def _ring_in_pixels(ring: Any, zoom: int) -> Floats:
    lon, lat = shapely.get_coordinates(ring).T
    # y(lat) curves by sec * tan; a chord over an angle d strays from it by d^2 / 8 times the curvature.
    phi = np.radians(lat)
    steepest = np.radians(np.maximum(np.abs(lat[:-1]), np.abs(lat[1:])))
    curvature_px = world_px(zoom) / (2 * np.pi) * np.tan(steepest) / np.cos(steepest)
    bends = np.diff(lon) != 0.0
    pieces = np.ceil(np.abs(np.diff(phi)) * np.sqrt(curvature_px / (8 * _EDGE_ERROR_PX)) * bends)
    counts = np.maximum(pieces, 1).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    places = np.interp(np.arange(starts[-1] + 1), starts, np.arange(len(lon)))
    vertices = np.arange(len(lon))
    x, y = pixel_from_lonlat(np.interp(places, vertices, lon), np.interp(places, vertices, lat), zoom)
    return np.column_stack([x, y])
