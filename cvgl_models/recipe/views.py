"""What the network is shown: views, how they are changed, how they get into memory."""

from __future__ import annotations

from dataclasses import dataclass

from cvgl_data.errors import RecipeError
from cvgl_models.recipe.checks import STRICT, at_least, one_of, positive, share, share_below_one


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRecipe:
    """What the encoder is shown."""

    __pydantic_config__ = STRICT
    query: str = "panorama"
    """``panorama``; ``bev``: the top view of its ground, as if the ground were flat; or ``pinhole``: images of a camera
    with known intrinsics, shown as they are."""
    query_height_px: int = 384
    query_width_px: int = 768
    """Size of a panorama; a ``bev`` is square and has ``query_height_px`` pixels a side."""
    reference_px: int = 384
    reference_crop: float = 1.0
    """Share of a reference's side that is shown, its middle; places outside are outside the view."""
    bev_px: int = 0
    """Side of a top view that is made of each panorama besides; 0: none."""
    bev_m: float = 60.0
    """Side of the top view on the ground; a camera that looks down with a field of view of f degrees sees
    ``2 * camera_height_m * tan(f / 2)``."""
    camera_height_m: float = 2.5
    """Height of the camera above the ground, for the top view."""

    def __post_init__(self) -> None:
        one_of("views.query", self.query, "panorama", "bev", "pinhole")
        positive(
            views__query_height_px=self.query_height_px,
            views__query_width_px=self.query_width_px,
            views__reference_px=self.reference_px,
            views__reference_crop=self.reference_crop,
            views__bev_m=self.bev_m,
            views__camera_height_m=self.camera_height_m,
        )
        at_least(0, views__bev_px=self.bev_px)
        share(views__reference_crop=self.reference_crop)
        if self.bev_px and self.query != "panorama":
            raise RecipeError("recipe key 'views.bev_px' needs 'views.query = \"panorama\"'")
        if self.query == "panorama" and self.query_width_px % 4:
            raise RecipeError(f"recipe key 'views.query_width_px' must be a multiple of 4, not {self.query_width_px}")

    @property
    def query_size_px(self) -> tuple[int, int]:
        """Height and width of what the encoder gets for a query."""
        return self.query_height_px, self.query_height_px if self.query == "bev" else self.query_width_px


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentRecipe:
    """Random changes of the training pairs; the probability of each lies in [0, 1]."""

    __pydantic_config__ = STRICT
    flip: float = 0.5
    """Mirror both views."""
    rotate: float = 0.75
    """Turn the reference by 90, 180 or 270 degrees and the query with it."""
    turn_deg: float = 0.0
    """Turn both views together by up to this angle more, either way (``bev`` only)."""
    heading_noise_deg: float = 0.0
    """Turn each panorama alone by up to this angle, either way: its bearing is then unknown to the model. The picture
    of a pinhole camera stays as it is, and what is told of its bearing is off by as much."""
    zoom: float = 0.0
    """Scale each view by up to this share, either way, independently."""
    shift: float = 0.0
    """Move the reference by up to this share of its side; what comes into view is mirrored."""
    color: float = 0.5
    """Change brightness, contrast, saturation and hue of each view independently."""
    color_strength: float = 0.15
    color_together: float = 0.0
    """Change both views in the same way, with ``color_strength`` too; what they have in common stays so."""
    blur: float = 0.3
    """Blur or sharpen."""
    cut: float = 0.3
    """Cut out ``cut_holes`` rectangles of 10 to 20 % of the height."""
    cut_holes: int = 12

    def __post_init__(self) -> None:
        share(
            augment__flip=self.flip,
            augment__rotate=self.rotate,
            augment__shift=self.shift,
            augment__color=self.color,
            augment__color_strength=self.color_strength,
            augment__color_together=self.color_together,
            augment__blur=self.blur,
            augment__cut=self.cut,
        )
        share_below_one(augment__zoom=self.zoom)
        at_least(
            0,
            augment__turn_deg=self.turn_deg,
            augment__heading_noise_deg=self.heading_noise_deg,
            augment__cut_holes=self.cut_holes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderRecipe:
    """How images get into memory; ``workers``, ``memory_mb`` and ``prefetch`` change speed, never a result."""

    __pydantic_config__ = STRICT
    workers: int = -1
    """Processes that decode; -1: one per core; 0: none."""
    memory_mb: int = 2000
    """Keep decoded views in memory when all of them fit in this; otherwise decode in every epoch."""
    prefetch: int = 4
    """Batches that are decoded ahead."""
    decode: str = "cpu"
    """``cpu``; ``gpu``: the accelerator decodes, in every epoch; its views differ by a level or two."""
    use_resized: bool = True
    """Read images that were packed at exactly the size of the view, where there are any."""
    on_error: str = "raise"
    """A training image that cannot be decoded: ``raise`` ends the run; ``skip`` takes the next pair instead."""

    def __post_init__(self) -> None:
        one_of("loader.decode", self.decode, "cpu", "gpu")
        one_of("loader.on_error", self.on_error, "raise", "skip")
        at_least(-1, loader__workers=self.workers)
        at_least(0, loader__memory_mb=self.memory_mb)
        positive(loader__prefetch=self.prefetch)
