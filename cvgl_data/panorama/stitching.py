"""Panoramas from perspective views and from tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from cvgl_data.errors import FetchError
from cvgl_data.panorama.sampling import Image, Map, basis_of, directions_of, remap, sample
from cvgl_data.types import Outcome


class View(NamedTuple):
    """A perspective image of the scene; ``fov_deg`` is the full horizontal angle."""

    image: Image
    heading_deg: float
    pitch_deg: float
    fov_deg: float


def from_views(views: Sequence[View | tuple[Image, float, float, float]], width: int, height: int) -> Image:
    """Stitch perspective views into a north-aligned panorama.

    Each pixel comes from the view that sees it most centrally. Six square views of 90 degrees (four round the horizon,
    one up, one down) are the cheapest full cover.

    Args:
        views: ``(image, heading_deg, pitch_deg, fov_deg)`` each; images (h, w[, C]) of one type.
        width: Columns of the result.
        height: Rows of the result.

    Returns:
        (height, width[, C]).

    Raises:
        ValueError: If some direction is seen by no view; a panorama is never filled up with black.
    """
    shots = [View(*view) for view in views]
    if not shots:
        raise ValueError("a panorama needs at least one view")
    shapes = tuple((view.image.shape[0], view.image.shape[1]) for view in shots)
    poses = tuple((view.heading_deg, view.pitch_deg, view.fov_deg) for view in shots)
    atlas_width = max(w for _, w in shapes)
    atlas = np.concatenate([_widened(view.image, atlas_width) for view in shots])
    if atlas.dtype == np.uint8:
        # The map ends at the outermost pixels' centers, so no border is ever seen; a constant one is the fastest.
        return remap(atlas, *_fixed_views_map(shapes, poses, width, height), border=cv2.BORDER_CONSTANT)
    return sample(atlas, _views_map(shapes, poses, width, height), wrap=False)


def _widened(image: Image, width: int) -> Image:
    """Return an image with zeros to its right."""
    missing = width - image.shape[1]
    return np.pad(image, [(0, 0), (0, missing)] + [(0, 0)] * (image.ndim - 2)) if missing else image


def from_tiles(
    tiles: Mapping[tuple[int, int], Image],
    width: int,
    height: int,
    tile_px: int = 512,
    out_width: int | None = None,
) -> Image:
    """Put the tiles of one panorama level together.

    Args:
        tiles: ``(column, row)`` to pixels. Tiles of the last column and row may come padded to ``tile_px`` or cut.
        width: Columns of the level, from the panorama's metadata (not from the zoom: cameras differ).
        height: Rows of the level.
        tile_px: Side of a full tile.
        out_width: Resize to this width, averaging where that is smaller; default: as it is.

    Returns:
        (height, width[, C]), or (out_width / 2, out_width[, C]).

    Raises:
        FetchError: ``truncated`` if a tile is missing, ``wrong_size`` if one has another size: a provider that silently
            sends smaller tiles would otherwise fill datasets with blurred panoramas.
    """
    columns, rows = -(-width // tile_px), -(-height // tile_px)
    canvas: Image | None = None
    for row in range(rows):
        for column in range(columns):
            item = f"tile {column},{row}"
            tile = tiles.get((column, row))
            if tile is None:
                raise FetchError(f"{item} of {columns}x{rows} is missing", item=item, outcome=Outcome.TRUNCATED)
            left, top = column * tile_px, row * tile_px
            w, h = min(tile_px, width - left), min(tile_px, height - top)
            if tile.shape[0] not in (h, tile_px) or tile.shape[1] not in (w, tile_px):
                found = f"{tile.shape[1]}x{tile.shape[0]}"
                raise FetchError(
                    f"{item} is {found} pixels, not {tile_px}x{tile_px}", item=item, outcome=Outcome.WRONG_SIZE
                )
            if canvas is None:
                canvas = np.empty((height, width, *tile.shape[2:]), tile.dtype)
            canvas[top : top + h, left : left + w] = tile[:h, :w]
    if canvas is None:
        raise ValueError(f"a panorama of {width}x{height} pixels has no tiles")
    if out_width and out_width != width:
        how = cv2.INTER_AREA if out_width < width else cv2.INTER_LINEAR
        resized: Image = cv2.resize(canvas, (out_width, out_width // 2), interpolation=how)
        return resized
    return canvas


@lru_cache(maxsize=4)
def _fixed_views_map(
    shapes: tuple[tuple[int, int], ...], poses: tuple[tuple[float, float, float], ...], width: int, height: int
) -> tuple[Image, Image]:
    """Return `_views_map` in OpenCV's fixed-point form: the same views come again and again."""
    x, y = _views_map(shapes, poses, width, height)
    whole, part = cv2.convertMaps(x.astype(np.float32), y.astype(np.float32), cv2.CV_16SC2)
    whole.flags.writeable = part.flags.writeable = False
    return whole, part


def _views_map(
    shapes: tuple[tuple[int, int], ...], poses: tuple[tuple[float, float, float], ...], width: int, height: int
) -> Map:
    """Return the map into the views stacked on top of each other."""
    directions = directions_of(width, height)
    best = np.full((height, width), -np.inf)
    x, y = np.zeros((height, width)), np.zeros((height, width))
    top = 0
    for (h, w), (heading_deg, pitch_deg, fov_deg) in zip(shapes, poses, strict=True):
        right, forward, up = np.tensordot(basis_of(heading_deg, pitch_deg), directions, axes=1)
        focal = w / 2 / math.tan(math.radians(fov_deg) / 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = w / 2 + focal * right / forward
            v = h / 2 - focal * up / forward
        slack = 1e-6  # directions on the very edge between two views belong to one of them
        seen = (forward > 0) & (u >= -slack) & (u <= w + slack) & (v >= -slack) & (v <= h + slack)
        owned = seen & (forward > best)
        best[owned] = forward[owned]
        x[owned] = np.clip(u[owned] - 0.5, 0, w - 1)  # never into a neighbor in the stack
        y[owned] = top + np.clip(v[owned] - 0.5, 0, h - 1)
        top += h
    if np.isinf(best).any():
        share = 100 * (1 - np.isinf(best).mean())
        raise ValueError(f"the {len(shapes)} views cover only {share:.1f} % of the panorama's pixels")
    return Map(x, y)
