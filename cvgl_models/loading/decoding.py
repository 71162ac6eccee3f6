"""From encoded images to views: decode at the scale that is needed, resize what is left, roll to north.

Shapes: H and W of the view. Pixels are uint8 (H, W, 3), as decoders write them; views are uint8 (3, H, W).
"""

from __future__ import annotations

import io
import math
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from cvgl_models.geometry import bev_from_panorama
from cvgl_models.geometry.bev import WHOLE_SPHERE
from cvgl_models.recipe import ViewRecipe

try:
    import simplejpeg
except ImportError:  # Pillow decodes everything, more slowly
    simplejpeg = None

Pixels = NDArray[np.uint8]
Encoded = bytes | memoryview
AnyImage = TypeVar("AnyImage", Pixels, Tensor)

_BEV_OVERSAMPLE = 4


def is_jpeg(image: Encoded) -> bool:
    """Whether the first bytes are those of a JPEG."""
    return bytes(image[:2]) == b"\xff\xd8"


def decode(image: Encoded, min_height: int = 0, min_width: int = 0, out: Pixels | None = None) -> Pixels:
    """Return an encoded image as (H, W, 3) RGB.

    A JPEG may come out smaller than it is, though not smaller than asked for: its decoder can scale for free.

    Args:
        image: Bytes of any format Pillow reads.
        min_height: Height that will do; 0 for full size.
        min_width: Width that will do; 0 for full size.
        out: Contiguous (H, W, 3); may be written to, and is what is returned if the image fits exactly.

    Raises:
        ValueError: If the bytes cannot be decoded.
    """
    if simplejpeg is not None and is_jpeg(image):
        # min_factor: the scale must not be off by a hair, or 3/8 of 2048 would miss 768
        scale = {"min_height": min_height, "min_width": min_width, "min_factor": 1.01}
        try:
            if out is None:
                return _decoded(image, scale)
            height, width, _, _ = simplejpeg.decode_jpeg_header(image, **scale)
            return _decoded(image, scale, out if out.shape == (height, width, 3) else None)
        except ValueError:
            pass  # CMYK and other rarities: Pillow's turn
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if min_height and min_width:
                opened.draft("RGB", (min_width, min_height))
            return np.asarray(opened.convert("RGB"))
    except UnidentifiedImageError:  # its own words hold an address in memory
        raise ValueError("it is cut short, or not an image of a known format") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _decoded(image: Encoded, scale: dict[str, Any], out: Pixels | None = None) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(image, buffer=out, **scale)
    return pixels


def _write_panorama(image: Encoded, heading_deg: float, out: Pixels) -> None:
    height, width, _ = out.shape
    # The decoder must not write to where a rolled image is read from.
    pixels = decode(image, height, width, out if heading_deg == 0 else None)
    whole, part = _shift_px(heading_deg, pixels.shape[1])
    if part < 1e-6:
        _write(_rolled_whole(pixels, whole), out)
        return
    view = _quantized(_resized(_rolled(_planes(pixels), heading_deg), (height, width)))
    out[:] = view.permute(1, 2, 0).numpy()


def _write_reference(image: Encoded, crop: float, out: Pixels) -> None:
    if crop == 1:
        _write(decode(image, out.shape[0], out.shape[1], out), out)
        return
    pixels = decode(image, math.ceil(out.shape[0] / crop), math.ceil(out.shape[1] / crop))
    _write(np.ascontiguousarray(middle(pixels, crop, 0)), out)


def middle(image: AnyImage, crop: float, first_axis: int) -> AnyImage:
    """Return the middle of an image, ``crop`` of each side, in whole pixels; its sides are two axes in a row."""
    margins = [round(side * (1 - crop) / 2) for side in image.shape[first_axis : first_axis + 2]]
    inside = tuple(slice(margin, -margin if margin else None) for margin in margins)
    part: AnyImage = image[(slice(None),) * first_axis + inside]
    return part


def top_view(
    pano: Tensor, side: int, views: ViewRecipe, heading_deg: float, zenith_deg: tuple[float, float] = WHOLE_SPHERE
) -> Tensor:
    """Return the uint8 (3, V, V) top view, V = ``side``, of a float (1, 3, H, W) panorama, on its device.

    Args:
        pano: Upright panorama.
        side: V.
        views: Scale and camera.
        heading_deg: Bearing of the panorama's centre column.
        zenith_deg: Angles from the zenith to its upper and lower edge.

    Raises:
        ValueError: If a whole panorama is not twice as wide as high.
    """
    rolled = _rolled(pano, heading_deg)
    step_m = views.bev_m / side
    bev = bev_from_panorama(
        rolled, side, step_m, views.camera_height_m, zenith_deg=zenith_deg, oversample=_BEV_OVERSAMPLE
    )
    return _quantized(bev)


def scaled_view(image: Tensor, size: tuple[int, int], heading_deg: float = 0.0) -> Tensor:
    """Return a decoded uint8 (3, h, w) image as a uint8 (3, H, W) view, on its device."""
    return _quantized(_resized(_rolled(image[None].float(), heading_deg), size))


def view_of(image: Encoded, side: str, views: ViewRecipe, heading_deg: float = 0.0) -> Tensor:
    """Return an image as the uint8 (3, H, W) view that the recipe asks for.

    Args:
        image: An encoded reference, or equirectangular panorama.
        side: ``query``, ``bev`` or ``reference``.
        views: Kind and size of the view.
        heading_deg: Bearing of the panorama's centre column; the view is rolled so that it looks north.

    Raises:
        ValueError: If the image cannot be decoded, or is not twice as wide as high and a top view is asked for.
    """
    side_px = views.bev_px if side == "bev" else views.reference_px
    out = np.empty((*(views.query_size_px if side == "query" else (side_px, side_px)), 3), np.uint8)
    write_view(image, side, views, heading_deg, out)
    return torch.from_numpy(out).permute(2, 0, 1).contiguous()


def write_view(
    image: Encoded,
    side: str,
    views: ViewRecipe,
    heading_deg: float,
    out: Pixels,
    zenith_deg: tuple[float, float] = WHOLE_SPHERE,
) -> None:
    """Write what `view_of` returns to ``out``, (H, W, 3); ``zenith_deg`` is that of `top_view`."""
    if side == "reference":
        _write_reference(image, views.reference_crop, out)
    elif side == "bev" or views.query == "bev":
        out[:] = top_view(_planes(decode(image)), out.shape[0], views, heading_deg, zenith_deg).permute(1, 2, 0).numpy()
    else:
        _write_panorama(image, heading_deg, out)


def _write(pixels: Pixels, out: Pixels) -> None:
    """Write decoded pixels at the size of ``out``, unless the decoder has put them there already."""
    if pixels.shape == out.shape:
        if pixels.ctypes.data != out.ctypes.data:
            out[:] = pixels
        return
    planes = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)[None]
    size = (out.shape[0], out.shape[1])
    # On uint8 with the channels last, PyTorch filters as fast as the best image libraries.
    view = F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)
    out[:] = view[0].permute(1, 2, 0).numpy()


def _shift_px(heading_deg: float, width: int) -> tuple[int, float]:
    """Return whole columns and the rest to roll by; the bearing of column u is heading + (u - W / 2) * 360 / W."""
    shift_px = heading_deg / 360.0 * width
    whole = int(np.floor(shift_px))
    return whole, shift_px - whole


def _rolled_whole(pixels: Pixels, columns: int) -> Pixels:
    return pixels if columns % pixels.shape[1] == 0 else np.roll(pixels, columns, axis=1)


def _rolled(pano: Tensor, heading_deg: float) -> Tensor:
    whole, part = _shift_px(heading_deg, pano.shape[-1])
    rolled = pano.roll(whole, -1) if whole else pano
    return rolled if part < 1e-6 else torch.lerp(rolled, pano.roll(whole + 1, -1), part)


def _planes(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)


def _quantized(image: Tensor) -> Tensor:
    return image[0].round().clamp(0, 255).to(torch.uint8)
