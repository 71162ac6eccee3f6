"""What every localization system returns: a score map and what is read from it, with units.

Shapes: B pairs, H and W of the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvgl_models.localization.decode import decode_peak, radius95


@dataclass(frozen=True, slots=True, kw_only=True)
class PosePrediction:
    """Where in its reference each query was taken, and which way its centre column looks."""

    score_map_BHW: Tensor
    """float32 log-probabilities up to a constant: the softmax over all cells is the distribution of the place. A system
    with other scores (cosines) divides them by its temperature first; -inf is a place that cannot be."""
    cell_size_m_B: Tensor
    """Ground metres per cell."""
    origin: tuple[float, float]
    """Index (row, column) of the map, not always whole, that lies at the centre of the reference."""
    xy_m_B2: Tensor
    """Place in metres from the reference's centre: east (right), south (down). NaN where nothing was found."""
    yaw_deg_B: Tensor
    """Bearing of the query's centre column (top of a top view), clockwise from the reference's top, in (-180, 180]."""
    radius95_m_B: Tensor
    """Circle about the place that holds 95 % of the map's probability."""
    match_B: Tensor | None = None
    """How well query and reference fit, comparable over references; None: the maximum of the map is."""

    @staticmethod
    def of_scores(
        score_map_BHW: Tensor,
        cell_size_m_B: Tensor,
        *,
        origin: tuple[float, float] | None = None,
        yaw_deg_B: Tensor | None = None,
        match_B: Tensor | None = None,
    ) -> PosePrediction:
        """Read place and uncertainty from a score map.

        Args:
            score_map_BHW: As above, of any floating type.
            cell_size_m_B: Ground metres per cell.
            origin: None: the map is centred on the reference.
            yaw_deg_B: Any range; None: 0, as of queries that are turned to the reference's top.
            match_B: See above.
        """
        score_map_BHW, cell_size_m_B = score_map_BHW.float(), cell_size_m_B.float()
        if origin is None:
            origin = center_index(score_map_BHW.shape[-2]), center_index(score_map_BHW.shape[-1])
        xy_m_B2 = decode_peak(score_map_BHW, cell_size_m_B, origin)
        yaw_deg_B = torch.zeros_like(cell_size_m_B) if yaw_deg_B is None else wrap_deg(yaw_deg_B.float())
        return PosePrediction(
            score_map_BHW=score_map_BHW,
            cell_size_m_B=cell_size_m_B,
            origin=origin,
            xy_m_B2=xy_m_B2,
            yaw_deg_B=yaw_deg_B,
            radius95_m_B=radius95(score_map_BHW, cell_size_m_B, origin, xy_m_B2),
            match_B=match_B,
        )


def center_index(size: int) -> float:
    """Return the index at the middle of so many cells: whole for odd sizes, between two cells for even ones.

    Example:
        >>> center_index(5), center_index(4)
        (2.0, 1.5)
    """
    return (size - 1) / 2


def wrap_deg(angle_deg: Tensor) -> Tensor:
    """Return angles in (-180, 180]."""
    return 180 - (180 - angle_deg) % 360


def xy_m_from_uv(uv_B2: Tensor, gsd_m_B: Tensor, side_px: int) -> Tensor:
    """Return places in metres right and down of the centre from pixels of a view, (0, 0) its corner."""
    return (uv_B2 - side_px / 2) * gsd_m_B[:, None]


def uv_from_xy_m(xy_m_B2: Tensor, gsd_m_B: Tensor, side_px: int) -> Tensor:
    """Return pixels of a view from places in metres right and down of its centre."""
    return xy_m_B2 / gsd_m_B[:, None] + side_px / 2
