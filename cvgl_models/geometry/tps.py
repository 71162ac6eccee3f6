"""Thin-plate splines: the smoothest map of the plane that takes given points to given places.

Shapes: B images, C channels, K control points, H and W of the output. Points are (x, y); -1 and 1 are the outer edges
of output and input. A spline maps the output's coordinates to the input's: it takes control point k (the same in all
images) to its place k in the input (one set per image).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from cvgl_models.geometry.resampling import pixel_centers, resample


def control_points(rows: int = 6, columns: int = 10, extent: float = 0.9) -> Tensor:
    """Return a regular lattice of points, (K, 2) float64, row by row.

    Args:
        rows: Number in y.
        columns: Number in x.
        extent: The outermost ones lie so far from the middle, 1 the edge.

    Raises:
        ValueError: If there are fewer than two rows or columns, for which no spline is determined.
    """
    if rows < 2 or columns < 2:
        raise ValueError(f"a spline needs at least 2x2 control points, not {rows}x{columns}")
    y = torch.linspace(-extent, extent, rows, dtype=torch.float64)
    x = torch.linspace(-extent, extent, columns, dtype=torch.float64)
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 2)


class ThinPlateSpline:
    """The splines of one set of control points.

    All of their linear algebra is done once, in float64, so that a spline is one product of a fixed matrix with its
    places.

    Args:
        control_K2: Control points, not all on one line.

    Source:
        Bookstein, "Principal warps", 1989, with the kernel ``d**2 * log(d**2) / 2``.
    """

    def __init__(self, control_K2: Tensor) -> None:
        self.control_K2 = control_K2.detach().double().cpu()
        count = len(self.control_K2)
        self._kernel_KK = _kernel(self.control_K2, self.control_K2)
        plane_K3 = _plane(self.control_K2)
        system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
        system[:count, :count] = self._kernel_KK
        system[:count, count:] = plane_K3
        system[count:, :count] = plane_K3.T
        # Places enter as [places; 0], so only the first K columns of the inverse are ever used.
        self._system_LL = system
        self._solve_LK: Tensor = torch.linalg.inv(system)[:, :count]
        self._bending_KK = self._solve_LK[:count].T @ self._kernel_KK @ self._solve_LK[:count]
        self._held: dict[object, Tensor] = {}

    def coefficients(self, place_BK2: Tensor) -> Tensor:
        """Return (B, K + 3, 2) float64: the weights of the K kernels, then of 1, x and y."""
        right_BL2 = torch.nn.functional.pad(place_BK2.double(), (0, 0, 0, 3))
        solved_BL2: Tensor = torch.linalg.solve(self._system_LL.to(place_BK2.device), right_BL2)
        return solved_BL2

    def at(self, point_N2: Tensor, place_BK2: Tensor) -> Tensor:
        """Return where splines take points, (B, N, 2) float64."""
        features_NL = torch.cat([_kernel(point_N2, self.control_K2), _plane(point_N2)], 1)
        return features_NL.to(place_BK2.device) @ self.coefficients(place_BK2)

    def grid(self, place_BK2: Tensor, size_px: tuple[int, int]) -> Tensor:
        """Return where each output pixel looks, (B, H, W, 2) in float32 or finer."""
        kind = torch.promote_types(place_BK2.dtype, torch.float32)
        device = place_BK2.device
        matrix_NK = self._on(("matrix", size_px), kind, device, lambda: self._grid_matrix(size_px))
        stays_HW2 = self._on(("stays", size_px), kind, device, lambda: pixel_centers(*size_px))
        with torch.autocast(device.type, enabled=False):
            moved_BN2 = matrix_NK @ self._moved(place_BK2, kind)
        return stays_HW2 + moved_BN2.reshape(len(place_BK2), *size_px, 2)

    def bending_energy(self, place_BK2: Tensor) -> Tensor:
        """Return (B,): how much splines differ from affine maps, ``trace(w^T K w)`` of their kernels' weights w."""
        kind = torch.promote_types(place_BK2.dtype, torch.float32)
        bending_KK = self._on("bending", kind, place_BK2.device, lambda: self._bending_KK)
        with torch.autocast(place_BK2.device.type, enabled=False):
            moved_BK2 = self._moved(place_BK2, kind)
            energy_B: Tensor = torch.einsum("bkx,kl,blx->b", moved_BK2, bending_KK, moved_BK2)
        return energy_B

    def _moved(self, place_BK2: Tensor, kind: torch.dtype) -> Tensor:
        """Return how far places are from their control points: splines are linear in them, and 0 is exactly 0."""
        return place_BK2.to(kind) - self._on("control", kind, place_BK2.device, lambda: self.control_K2)

    def _grid_matrix(self, size_px: tuple[int, int]) -> Tensor:
        point_N2 = pixel_centers(*size_px).reshape(-1, 2)
        return torch.cat([_kernel(point_N2, self.control_K2), _plane(point_N2)], 1) @ self._solve_LK

    def _on(self, name: object, kind: torch.dtype, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        key = (name, kind, str(device))
        if key not in self._held:
            with torch.inference_mode(False):  # what is kept must serve training too, whoever asks first
                self._held[key] = make().to(device=device, dtype=kind)
        return self._held[key]


def thin_plate_spline(
    images_BChw: Tensor,
    place_BK2: Tensor,
    size_px: tuple[int, int],
    *,
    rows: int = 6,
    columns: int = 10,
    extent: float = 0.9,
    padding: str = "border",
) -> Tensor:
    """Return images bent by splines whose control points are a regular lattice.

    Args:
        images_BChw: Of any floating type.
        place_BK2: Where in the input the control points of the output look; those of `control_points` only resize.
        size_px: Height and width of the output.
        rows: Control points in y.
        columns: Control points in x.
        extent: See `control_points`.
        padding: ``border`` or ``zeros``.

    Returns:
        (B, C, H, W) of the images' type.
    """
    return resample(images_BChw, _lattice(rows, columns, extent).grid(place_BK2, size_px), padding)


@lru_cache(maxsize=8)
def _lattice(rows: int, columns: int, extent: float) -> ThinPlateSpline:
    return ThinPlateSpline(control_points(rows, columns, extent))


def _kernel(point_N2: Tensor, control_K2: Tensor) -> Tensor:
    """Return ``d**2 * log(d**2) / 2`` of all distances, (N, K)."""
    square_NK = (point_N2[:, None] - control_K2).square().sum(2)
    kernel_NK: Tensor = torch.special.xlogy(square_NK, square_NK) / 2
    return kernel_NK


def _plane(point_N2: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(point_N2[:, :1]), point_N2], 1)
