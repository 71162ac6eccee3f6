"""From a batch to cosines between the ground around each camera and each place of each reference.

Shapes: B pairs, M references, N queries, C channels, A x A cells of a reference, S x S cells of a template, P x P
places, h x w cells of a query's map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cvgl_data.errors import RecipeError
from cvgl_models.backbones.dense import DenseEncoder
from cvgl_models.geometry.ground import ground_from_panorama, ground_from_pinhole
from cvgl_models.geometry.ncc import normalized_cross_correlation
from cvgl_models.recipe import EncoderRecipe, ViewRecipe
from cvgl_models.systems.g2sweakly.options import G2SWeaklyOptions
from cvgl_models.transforms import Batch


@dataclass(frozen=True, slots=True)
class Grid:
    """How a template lies on a reference, at one level."""

    reference: int
    """Cells of the reference, A."""
    template: int
    """Cells of the template, S."""
    padding: int
    """Cells by which the template may hang over."""

    @property
    def places(self) -> int:
        """P."""
        return self.reference + 2 * self.padding - self.template + 1

    @property
    def origin(self) -> float:
        """Index of the place at which the camera stands at the reference's centre."""
        return (self.reference - self.template) / 2 + self.padding

    @staticmethod
    def of(reference: int, template_share: float, overhang_share: float, step: int = 1) -> Grid:
        """Return the grid whose template is nearest to its share, such that the origin is a whole index.

        Args:
            reference: Cells.
            template_share: Of the reference's side.
            overhang_share: Of the template's side.
            step: The template differs from the reference by a multiple of twice this.
        """
        off = round(reference * (1 - template_share) / (2 * step)) * 2 * step
        template = min(max(reference - off, 1), reference)
        return Grid(reference, template, min(int(template * overhang_share), template - 1))


@dataclass(frozen=True, slots=True)
class Templates:
    """The ground around the cameras, at one level."""

    maps_NCSS: Tensor
    weights_NSS: Tensor | None
    """What each cell is worth, and whether it is seen; None: all alike."""


def laid_on_ground(
    batch: Batch,
    map_BChw: Tensor,
    size: int,
    cell_size_m_B: Tensor,
    camera_height_m: float,
    heading_deg_B: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return maps of queries laid on the ground (B, C, S, S), and which cells a camera sees; None: all.

    Args:
        batch: ``camera_B33``, and the size of ``query`` that it belongs to.
        map_BChw: Maps that cover the queries, or the queries themselves.
        size: S.
        cell_size_m_B: Metres per cell.
        camera_height_m: Height of the camera above the ground.
        heading_deg_B: Bearing of the queries' centre columns; None: 0, the grid's top.
    """
    if batch.camera_B33 is None:
        return ground_from_panorama(map_BChw, size, cell_size_m_B, camera_height_m, heading_deg_B), None
    image_px = (batch.query.shape[-2], batch.query.shape[-1])
    return ground_from_pinhole(
        map_BChw, image_px, batch.camera_B33, size, cell_size_m_B, camera_height_m, heading_deg_B
    )


class GroundMatcher(nn.Module):
    """Encoders of both views, projection and correlation.

    Args:
        encoder: ``backbone``, ``pretrained`` and ``shared``.
        views: Sizes and the camera's height.
        options: ``lift``, ``levels``, sizes of the template.

    Attributes:
        grids: Of each level.

    Raises:
        RecipeError: If the recipe does not fit together.
        UnknownNameError: If there is no such encoder.
        CheckpointError: If weights cannot be had or do not fit.
    """

    def __init__(self, encoder: EncoderRecipe, views: ViewRecipe, options: G2SWeaklyOptions) -> None:
        super().__init__()
        if views.query not in ("panorama", "pinhole"):
            raise RecipeError(
                'this system lays panoramas or pinhole images on the ground itself; set views.query to "panorama" '
                'or "pinhole"'
            )
        from_above = options.lift == "image"
        if encoder.shared and views.query == "panorama" and not from_above:
            raise RecipeError(
                "recipe key 'encoder.shared' is true, but a panorama's encoder runs round its seam and a reference's "
                'does not; set it to false, or options.lift to "image"'
            )
        self._options, self._views = options, views

        def create(*, panorama: bool) -> DenseEncoder:
            return DenseEncoder(
                encoder.backbone,
                options.levels,
                pretrained=encoder.pretrained,
                panorama=panorama,
                width=options.width,
                confidence=options.confidence,
            )

        self.reference = create(panorama=False)
        self.query = self.reference if encoder.shared else create(panorama=views.query == "panorama" and not from_above)
        side = views.reference_px
        cells = self.reference.cells(side)
        self.grids = [Grid.of(each, options.template_share, options.overhang_share) for each in cells]
        self.ground_px = 0
        if from_above:
            self.ground_px, self.grids = self._from_above(side, cells)
        self.to(memory_format=torch.channels_last)

    def encode(self, batch: Batch) -> tuple[list[Tensor], list[tuple[Tensor, Tensor | None]]]:
        """Return maps (B, C, A, A) of the references, and what is laid on the ground of the queries, per level."""
        references, _ = self.reference(batch.reference)
        if self._options.lift == "image":
            return references, [(batch.query, None)]
        maps, confidences = self.query(batch.query)
        return references, list(zip(maps, confidences, strict=True))

    def templates(
        self,
        batch: Batch,
        encoded: list[tuple[Tensor, Tensor | None]],
        heading_deg_B: Tensor,
        query_mask: Tensor | None = None,
    ) -> list[Templates]:
        """Lay queries on the ground, per level.

        Args:
            batch: ``gsd_m``, ``camera_B33``.
            encoded: Of `encode`.
            heading_deg_B: Bearing of the queries' centre columns.
            query_mask: (B, 1, h, w) of any size: what of the queries counts.
        """
        side, gsd_m_B = batch.reference.shape[-1], batch.gsd_m.float()
        laid = []
        if self._options.lift == "image":
            image_BCSS, _ = self._laid(batch, encoded[0][0], self.ground_px, gsd_m_B, heading_deg_B)
            maps, confidences = self.query(image_BCSS)
            laid = list(zip(maps, confidences, strict=True))
        made = []
        for level, grid in enumerate(self.grids):
            cell_size_m_B = self.cell_size_m(gsd_m_B, side, level)
            if laid:
                map_BCSS, confidence = laid[level]
                seen_BSS = self._seen(batch, grid.template, cell_size_m_B, heading_deg_B)
            else:
                (features, confidence) = encoded[level]
                map_BCSS, seen_BSS = self._laid(batch, features, grid.template, cell_size_m_B, heading_deg_B)
                if confidence is not None:
                    confidence, _ = self._laid(batch, confidence, grid.template, cell_size_m_B, heading_deg_B)
            weights = [seen_BSS] if seen_BSS is not None else []
            weights += [confidence[:, 0]] if confidence is not None else []
            if query_mask is not None:
                kept, _ = self._laid(batch, query_mask.float(), grid.template, cell_size_m_B, heading_deg_B)
                weights.append(kept[:, 0])
            weights_BSS = torch.stack([each.float() for each in weights]).prod(0) if weights else None
            made.append(Templates(map_BCSS, weights_BSS))
        return made

    def cosines(self, reference_MCAA: Tensor, templates: Templates, level: int, *, paired: bool) -> Tensor:
        """Return the cosine at every place: (M, N, P, P), or (B, P, P) of the pairs."""
        grid = self.grids[level]
        return normalized_cross_correlation(
            reference_MCAA, templates.maps_NCSS, templates.weights_NSS, padding=grid.padding, paired=paired
        )

    def cell_size_m(self, gsd_m_B: Tensor, side_px: int, level: int) -> Tensor:
        """Return the exact metres per cell of a level."""
        return gsd_m_B.float() * (side_px / self.grids[level].reference)

    def _laid(
        self, batch: Batch, maps: Tensor, size: int, cell_size_m_B: Tensor, heading_deg_B: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return laid_on_ground(batch, maps, size, cell_size_m_B, self._views.camera_height_m, heading_deg_B)

    def _seen(self, batch: Batch, size: int, cell_size_m_B: Tensor, heading_deg_B: Tensor) -> Tensor | None:
        if batch.camera_B33 is None:
            return None
        return self._laid(batch, batch.query[:, :1], size, cell_size_m_B, heading_deg_B)[1]

    def _from_above(self, side_px: int, cells: list[int]) -> tuple[int, list[Grid]]:
        """Return the size of the ground image and the grids that its maps make."""
        options = self._options
        ground = Grid.of(side_px, options.template_share, 0.0, step=max(1, side_px // min(cells)))
        made = self.query.cells(ground.template)
        if any(rows * side_px != all_rows * ground.template for rows, all_rows in zip(made, cells, strict=True)):
            raise RecipeError(
                f"the encoder makes {made} cells of a ground {ground.template} px wide, but {cells} of a reference of "
                f"{side_px} px, so their scales differ; change views.reference_px or options.template_share, or set "
                'options.lift to "features"'
            )
        paddings = [min(int(rows * options.overhang_share), rows - 1) for rows in made]
        return ground.template, [Grid(*sizes) for sizes in zip(cells, made, paddings, strict=True)]
