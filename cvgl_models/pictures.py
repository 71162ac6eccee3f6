"""Images that a model makes of a few pairs, put on one sheet for people to look at.

Shapes: N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_BAR, _GAP = 20, 8
_BACKGROUND, _INK = "#ffffff", "#1c1c1c"


def write_pictures(pictures: Mapping[str, Tensor], out_png: Path, *, height_px: int = 160) -> Path:
    """Draw one row per pair and one column per name.

    Args:
        pictures: Images in [0, 1] by name, (N, 3, height, width) each; sizes may differ between names.
        out_png: Where to write; a file that is there is replaced as a whole.
        height_px: Height of a row; widths follow.

    Raises:
        ValueError: If there is nothing to draw, or names differ in N.
    """
    counts = {len(images) for images in pictures.values()}
    if len(counts) != 1 or not counts.pop():
        raise ValueError("pictures must be the same number of images, at least one, under each name")
    widths = {name: round(images.shape[-1] / images.shape[-2] * height_px) for name, images in pictures.items()}
    num_rows = len(next(iter(pictures.values())))
    size = (_GAP + sum(width + _GAP for width in widths.values()), _GAP + _BAR + num_rows * (height_px + _GAP))
    sheet = Image.new("RGB", size, _BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    left = _GAP
    for name, images in pictures.items():
        pen.text((left, _GAP // 2), name, _INK, font)
        for row, image in enumerate(images):
            pixels = (image.detach().float().clamp(0, 1) * 255).round().permute(1, 2, 0).cpu().numpy()
            drawn = Image.fromarray(pixels.astype(np.uint8)).resize((widths[name], height_px), Image.Resampling.LANCZOS)
            sheet.paste(drawn, (left, _BAR + _GAP + row * (height_px + _GAP)))
        left += widths[name] + _GAP
    out_png.parent.mkdir(parents=True, exist_ok=True)
    part = out_png.with_name(out_png.name + ".part")
    sheet.save(part, "PNG")
    part.replace(out_png)
    return out_png
