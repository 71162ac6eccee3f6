"""Images that the user already has: a folder of tiles, a folder of panoramas. Their bytes are never changed."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import struct
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import DatasetNotFoundError, FetchError, NoImagery, NoPanorama, RecipeError
from cvgl_data.grid import Windows
from cvgl_data.http import Http
from cvgl_data.images import image_size
from cvgl_data.types import EARTH_CIRCUMFERENCE_M, TILE_PX, Fetched, Panorama, PanoramaRef, Tile

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
_ORDERS = {"x-y-z": (0, 1, 2), "z-x-y": (1, 2, 0)}
_MAX_ZOOM = 24

_MODEL_PIXEL_SCALE, _MODEL_TIEPOINT, _GEO_KEYS = 33550, 33922, 34735
_PROJECTED_CRS_KEY = 3072

_EXIF_ARTIST, _EXIF_IFD, _GPS_IFD = 315, 0x8769, 0x8825
_DATETIME_ORIGINAL, _OFFSET_ORIGINAL = 36867, 36881


_UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for damaged files, and for those that claim to be huge."""


class FolderImagery:
    """A folder of tiles, found by their names: ``z/x/y.ext``, or names that end in ``x-y-z`` or ``z-x-y``.

    GeoTIFFs without such a name are placed by their georeference if it is EPSG:3857 and exactly one tile. Which of the
    two name orders holds is found out by what is possible for all files together, and asked for if both are.

    Args:
        location: The folder, searched recursively.
        order: ``x-y-z`` or ``z-x-y``, if the names leave it open.
        attribution: Whom to credit.
        licence: Licence of the images; empty means unknown.

    Raises:
        DatasetNotFoundError: If there is no such folder.
        RecipeError: If it holds no images, none that can be read, or one that cannot be placed.
    """

    name = "folder"

    def __init__(self, location: str, order: str = "", attribution: str = "", licence: str = "") -> None:
        self.attribution = attribution
        self.licence = licence
        paths = _images_below(location, IMAGE_SUFFIXES)
        self._paths = _place(paths, order)
        self.max_zoom = max(tile.z for tile in self._paths)
        self.tile_px = _first_width(paths)

    @property
    def tiles(self) -> list[Tile]:
        """All tiles, sorted by zoom, then row by row."""
        return sorted(self._paths, key=lambda tile: (tile.z, tile.y, tile.x))

    def windows(self) -> Windows:
        """Return one window per tile of the deepest zoom, in the order of `tiles`."""
        tiles = [tile for tile in self.tiles if tile.z == self.max_zoom]
        x = np.array([tile.x for tile in tiles], np.int64) * TILE_PX
        y = np.array([tile.y for tile in tiles], np.int64) * TILE_PX
        return Windows(x, y, TILE_PX, self.max_zoom)

    async def fetch(self, tile: Tile, http: Http) -> Fetched:
        """Return the file's bytes; see `ImagerySource.fetch`."""
        path = self._paths.get(tile)
        if path is None:
            raise NoImagery(f"the folder has no tile {tile}", source=self.name, item=str(tile))
        return Fetched(image=await asyncio.to_thread(path.read_bytes))

    def close(self) -> None:
        """Do nothing; no file stays open."""


class FolderPanoramas:
    """A folder of equirectangular JPEGs with their position in EXIF GPS; a file's path inside the folder is its id.

    The heading of the centre column is XMP ``GPano:PoseHeadingDegrees`` or else EXIF ``GPSImgDirection``, taken as
    bearing from true north; pitch and roll are XMP ``GPano:PosePitchDegrees`` and ``PoseRollDegrees``. What a file does
    not say stays unknown.

    Args:
        location: The folder, searched recursively.
        attribution: Whom to credit.
        licence: Licence of the images; empty means unknown.

    Raises:
        DatasetNotFoundError: If there is no such folder.
        RecipeError: If it holds no JPEG.
    """

    name = "folder"

    def __init__(self, location: str, attribution: str = "", licence: str = "") -> None:
        self.attribution = attribution
        self.licence = licence
        root = Path(location)
        paths = _images_below(location, (".jpg", ".jpeg"))
        self._paths = {path.relative_to(root).as_posix(): path for path in paths}

    async def discover(self, area: AreaOfInterest, http: Http) -> AsyncIterator[PanoramaRef | FetchError]:
        """Yield the panoramas inside the area, sorted by id; see `PanoramaSource.discover`."""
        for pano_id in sorted(self._paths):
            try:
                panorama = await asyncio.to_thread(_read_panorama, self._paths[pano_id], pano_id)
            except NoPanorama as error:
                yield error
                continue
            if area.contains(panorama.lon, panorama.lat):
                yield PanoramaRef(pano_id=pano_id, lon=panorama.lon, lat=panorama.lat, captured=panorama.captured)

    async def fetch(self, pano_id: str, http: Http) -> Panorama:
        """Return the file's bytes and what its metadata say; see `PanoramaSource.fetch`."""
        path = self._paths.get(pano_id)
        if path is None:
            raise NoPanorama(f"the folder has no panorama '{pano_id}'", source=self.name, item=pano_id)
        panorama = await asyncio.to_thread(_read_panorama, path, pano_id)
        return replace(panorama, image=await asyncio.to_thread(path.read_bytes))

    def close(self) -> None:
        """Do nothing; no file stays open."""


def _images_below(location: str, suffixes: tuple[str, ...]) -> list[Path]:
    root = Path(location)
    if not root.is_dir():
        raise DatasetNotFoundError(f"there is no folder '{location}'")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not paths:
        raise RecipeError(f"folder '{location}' holds no images ({', '.join(suffixes)})")
    return paths


def _first_width(paths: Iterable[Path]) -> int:
    """Return the width of the first image that can be read; the others are checked when they are fetched."""
    reasons = []
    for path in paths:
        try:
            return image_size(path.read_bytes())[0]
        except (FetchError, OSError) as error:
            reasons.append(f"'{path}' cannot be read as an image ({error})")
    raise RecipeError(f"{reasons[0]}, nor can any other in its folder; repair them or name another folder")


def _place(paths: Iterable[Path], order: str) -> dict[Tile, Path]:
    """Find out which tile each file is."""
    if order and order not in _ORDERS:
        raise RecipeError(f"option 'order' must be one of {', '.join(_ORDERS)}, not '{order}'")
    placed: dict[Tile, Path] = {}
    named: list[tuple[Path, tuple[int, int, int]]] = []
    for path in paths:
        tile = _tile_of_folders(path)
        if tile is None:
            found = tuple(int(number) for number in re.findall(r"\d+", path.stem)[-3:])
            if len(found) == 3 and any(_arranged(found, key) for key in _ORDERS):
                named.append((path, found))
                continue
            tile = _tile_of_geotiff(path)
        _add(placed, tile, path)
    if named:
        chosen = order or _order_of([numbers for _, numbers in named], named[0][0])
        for path, numbers in named:
            tile = _arranged(numbers, chosen)
            if tile is None:
                raise RecipeError(f"'{path}' is no tile in the order {chosen}; rename it, or set the option 'order'")
            _add(placed, tile, path)
    return placed


def _add(placed: dict[Tile, Path], tile: Tile, path: Path) -> None:
    other = placed.setdefault(tile, path)
    if other is not path:
        raise RecipeError(f"'{other}' and '{path}' are both tile {tile}; remove one")


def _tile_of_folders(path: Path) -> Tile | None:
    parts = (path.parent.parent.name, path.parent.name, path.stem.removesuffix("@2x"))
    if not all(part.isascii() and part.isdigit() for part in parts):
        return None
    z, x, y = (int(part) for part in parts)
    return _arranged((z, x, y), "z-x-y")


def _arranged(numbers: tuple[int, ...], order: str) -> Tile | None:
    """Return the tile that three numbers name in the given order, if there is one."""
    x, y, z = (numbers[index] for index in _ORDERS[order])
    return Tile(x, y, z) if z <= _MAX_ZOOM and x < 2**z and y < 2**z else None


def _order_of(named: list[tuple[int, int, int]], example: Path) -> str:
    """Return the order in which all names are tiles, and fewer zooms occur if both are possible."""
    zooms = {}
    for order in _ORDERS:
        tiles = [_arranged(numbers, order) for numbers in named]
        if all(tiles):
            zooms[order] = len({tile.z for tile in tiles if tile})
    fewest = [order for order, count in zooms.items() if count == min(zooms.values())]
    if len(fewest) != 1:
        raise RecipeError(
            f"names such as '{example.name}' can be read as x-y-z and as z-x-y, or differently from file to file; "
            "set the option 'order'"
        )
    logger.info("file names are read as %s", fewest[0])
    return fewest[0]


def _tile_of_geotiff(path: Path) -> Tile:
    """Return the tile that a Web-Mercator GeoTIFF covers exactly."""
    hint = "name it z/x/y or x-y-z, or warp it to one EPSG:3857 tile"
    try:
        with Image.open(path) as image:
            tags: Any = getattr(image, "tag_v2", {})
            keys = _finite(tags.get(_GEO_KEYS))
            scale, tiepoint = _finite(tags.get(_MODEL_PIXEL_SCALE)), _finite(tags.get(_MODEL_TIEPOINT))
            width, height = image.size
    except _UNREADABLE as error:
        raise RecipeError(f"'{path}' cannot be read as an image ({error}); remove or repair it") from None
    if len(scale) < 2 or len(tiepoint) < 5 or min(scale[:2]) <= 0:
        raise RecipeError(f"'{path}' has neither tile numbers in its name nor a usable georeference; {hint}")
    crs = next((int(keys[at + 3]) for at in range(4, len(keys) - 3, 4) if keys[at] == _PROJECTED_CRS_KEY), None)
    if crs != 3857:
        raise RecipeError(f"'{path}' is georeferenced in EPSG:{crs}, not 3857; {hint}")
    half = EARTH_CIRCUMFERENCE_M / 2
    side_m = width * scale[0]
    zoom = round(math.log2(EARTH_CIRCUMFERENCE_M / side_m))
    tile_m = EARTH_CIRCUMFERENCE_M / 2**zoom
    x = (tiepoint[3] - tiepoint[0] * scale[0] + half) / tile_m
    y = (half - tiepoint[4] - tiepoint[1] * scale[1]) / tile_m
    off = max(abs(x - round(x)), abs(y - round(y)), abs(side_m / tile_m - 1), abs(height * scale[1] / tile_m - 1))
    if off > 0.25 / width or not 0 <= zoom <= _MAX_ZOOM:
        raise RecipeError(f"'{path}' is not exactly one tile of the XYZ grid; {hint}")
    return Tile(round(x), round(y), zoom)


def _finite(tag: Any) -> list[float]:
    """Return the numbers of a TIFF tag; none if it is missing or holds anything but finite numbers."""
    try:
        numbers: list[float] = np.ravel(np.asarray(() if tag is None else tag, np.float64)).tolist()
    except (TypeError, ValueError, ArithmeticError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _read_panorama(path: Path, pano_id: str) -> Panorama:
    """Return what the file says about itself, without its pixels."""
    try:
        with Image.open(path) as image:
            exif = image.getexif()
            xmp = image.info.get("xmp", b"")
    except _UNREADABLE as error:
        raise NoPanorama(f"'{pano_id}' is not a readable JPEG ({error})", source="folder", item=pano_id) from None
    gps, details = exif.get_ifd(_GPS_IFD), exif.get_ifd(_EXIF_IFD)
    lat, lon = _degrees(gps.get(2), gps.get(1), "S"), _degrees(gps.get(4), gps.get(3), "W")
    if lat is None or lon is None:
        raise NoPanorama(f"'{pano_id}' has no GPS position in its EXIF data", source="folder", item=pano_id)
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    heading = _gpano(text, "PoseHeadingDegrees")
    if heading is None:
        heading = _number(gps.get(17))
    return Panorama(
        pano_id=pano_id,
        image=b"",
        lon=lon,
        lat=lat,
        heading_deg=None if heading is None else heading % 360.0,
        pitch_deg=_gpano(text, "PosePitchDegrees"),
        roll_deg=_gpano(text, "PoseRollDegrees"),
        captured=_captured(details),
        creator=str(exif.get(_EXIF_ARTIST, "")).strip("\0 "),
    )


def _degrees(value: Any, hemisphere: Any, negative: str) -> float | None:
    """Return decimal degrees from EXIF's (degrees, minutes, seconds)."""
    if not isinstance(value, tuple) or len(value) != 3:
        return None
    degrees = float(value[0]) + float(value[1]) / 60 + float(value[2]) / 3600
    if not math.isfinite(degrees):
        return None
    return -degrees if str(hemisphere).strip("\0 ").upper() == negative else degrees


def _number(value: Any) -> float | None:
    """Return an EXIF rational; cameras write 0/0 for what they do not know."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _gpano(xmp: str, key: str) -> float | None:
    """Return a GPano number, written as an attribute or as an element."""
    match = re.search(rf"GPano:{key}(?:\s*=\s*[\"']|[^>]*>)\s*([-+]?[\d.]+)", xmp)
    return float(match[1]) if match else None


def _captured(details: Any) -> str:
    """Return EXIF's capture time as ISO 8601, with its offset from UTC if the camera recorded one."""
    match = re.match(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)", str(details.get(_DATETIME_ORIGINAL, "")))
    if not match or match[1] == "0000":
        return ""
    offset = re.match(r"[+-]\d\d:\d\d", str(details.get(_OFFSET_ORIGINAL, "")))
    return f"{match[1]}-{match[2]}-{match[3]}T{match[4]}{offset[0] if offset else ''}"
