"""A transformation drawn into the image that it samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ALONG_ROWS, _ALONG_COLUMNS = (1.0, 0.35, 0.1), (0.1, 0.9, 1.0)


def draw_mesh(image_B3SS: Tensor, grid_BHW2: Tensor, *, rows: int = 8, columns: int = 16, side_px: int = 256) -> Tensor:
    """Return images with lines along which some rows (orange) and columns (cyan) of a grid look.

    Args:
        image_B3SS: In [0, 1].
        grid_BHW2: Places in the image, -1 and 1 its edges; what lies outside is not drawn.
        rows: Lines along rows, evenly spaced; the outermost ones are drawn.
        columns: Lines along columns.
        side_px: Side of the result.

    Returns:
        (B, 3, side_px, side_px).
    """
    drawn_B3SS = F.interpolate(image_B3SS.float(), (side_px, side_px), mode="bilinear", align_corners=False)
    drawn_B3SS = drawn_B3SS.clone(memory_format=torch.contiguous_format)
    dense_px = 4 * side_px  # points on a line, enough to leave no gap unless the line is very long
    grid_B2HW = grid_BHW2.float().permute(0, 3, 1, 2)
    lines = (
        (F.interpolate(grid_B2HW, (rows, dense_px), mode="bilinear", align_corners=True), _ALONG_ROWS),
        (F.interpolate(grid_B2HW, (dense_px, columns), mode="bilinear", align_corners=True), _ALONG_COLUMNS),
    )
    for points_B2hw, color in lines:
        pixel_B2n = ((points_B2hw.flatten(2) + 1) / 2 * side_px).floor().long()
        inside_Bn = ((pixel_B2n >= 0) & (pixel_B2n < side_px)).all(1)
        index_Bn = (pixel_B2n[:, 1] * side_px + pixel_B2n[:, 0]).clamp(0, side_px**2 - 1)
        for image_3SS, index_n, inside_n in zip(drawn_B3SS, index_Bn, inside_Bn, strict=True):
            ink_31 = torch.tensor(color, device=image_3SS.device)[:, None]
            image_3SS.reshape(3, -1)[:, index_n[inside_n]] = ink_31
    return drawn_B3SS
