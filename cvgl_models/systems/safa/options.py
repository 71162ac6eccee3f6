"""What a recipe can say about SAFA, in its table ``options``."""

from __future__ import annotations

from dataclasses import dataclass

from cvgl_data.errors import RecipeError
from cvgl_models.geometry.polar import CENTERS
from cvgl_models.recipe.checks import STRICT

FRONT_ENDS = ("none", "polar", "stn-affine", "stn-composed", "stn-tps")
TPS_STARTS = ("identity", "polar")


@dataclass(frozen=True, slots=True, kw_only=True)
class SafaOptions:
    """The system's own options."""

    __pydantic_config__ = STRICT
    front_end: str = "none"
    """What is done to the reference before its encoder. ``none``; ``polar``: the polar transform; ``stn-affine``,
    ``stn-composed``, ``stn-tps``: a transformation that a network of its own finds for each reference, affine, three
    affine ones with layers between, or a thin-plate spline. All but ``none`` give an image of the query's size."""
    polar_center: str = "pixel"
    """``pixel``, ``middle`` or ``published``, see `cvgl_models.geometry.polar.polar_map`."""
    guidance_weight: float = 1.0
    """Of the mean absolute difference between what a learned front end gives and the polar image."""
    bending_weight: float = 0.0
    """Of the bending energy of ``stn-tps``; the published code has none."""
    tps_rows: int = 6
    tps_columns: int = 10
    """Control points."""
    tps_extent: float = 0.9
    """How far out in the output the outermost control points lie, 1 the edge."""
    tps_bounded: bool = False
    """Keep the places of control points inside the reference, by a hyperbolic tangent."""
    tps_start: str = "identity"
    """Where control points look at first: ``identity`` resizes the reference, ``polar`` is near the polar transform."""
    map_stride: int = 8
    """Pixels of the image per cell of the map the attention works on."""
    margin_scale: float = 10.0
    """Of the soft-margin triplet loss."""
    mining_epochs: tuple[int, ...] = (20, 40, 60)
    """Epochs, counted from 0, at which the share of hard triplets changes."""
    mining_shares: tuple[float, ...] = (1.0, 0.1, 0.05, 0.01)
    """Share of the triplets that count, the hardest ones: at first, and from each of these epochs on."""

    def __post_init__(self) -> None:
        for key, value, known in (
            ("front_end", self.front_end, FRONT_ENDS),
            ("polar_center", self.polar_center, CENTERS),
            ("tps_start", self.tps_start, TPS_STARTS),
        ):
            if value not in known:
                raise RecipeError(f"recipe key 'options.{key}' is '{value}', expected one of: {', '.join(known)}")
        for key, number in (("guidance_weight", self.guidance_weight), ("bending_weight", self.bending_weight)):
            if not number >= 0:
                raise RecipeError(f"recipe key 'options.{key}' must be at least 0, not {number}")
        for key, number in (("margin_scale", self.margin_scale), ("tps_extent", self.tps_extent)):
            if not number > 0:
                raise RecipeError(f"recipe key 'options.{key}' must be positive, not {number}")
        if self.bending_weight and self.front_end != "stn-tps":
            raise RecipeError("recipe key 'options.bending_weight' needs the front end 'stn-tps'")
        if self.tps_bounded and self.tps_extent >= 1:
            raise RecipeError("recipe key 'options.tps_bounded' needs an 'options.tps_extent' below 1")
        if min(self.tps_rows, self.tps_columns) < 2:
            raise RecipeError("recipe keys 'options.tps_rows' and 'options.tps_columns' must be at least 2")
        self._check_mining()

    def _check_mining(self) -> None:
        if len(self.mining_shares) != len(self.mining_epochs) + 1:
            raise RecipeError("recipe key 'options.mining_shares' must have one number more than 'mining_epochs'")
        if list(self.mining_epochs) != sorted(self.mining_epochs):
            raise RecipeError("recipe key 'options.mining_epochs' must be in order")
        if not all(0 < share <= 1 for share in self.mining_shares):
            raise RecipeError("recipe key 'options.mining_shares' must be numbers in (0, 1]")

    @property
    def is_learned(self) -> bool:
        """Whether the front end has weights."""
        return self.front_end.startswith("stn-")

    def mining_share(self, epoch: int) -> float:
        """Return the share of hard triplets of an epoch, the first one being 0."""
        return self.mining_shares[sum(epoch >= start for start in self.mining_epochs)]
