"""``[options]`` of a G2SWeakly recipe."""

from __future__ import annotations

from dataclasses import dataclass

from cvgl_data.errors import RecipeError
from cvgl_models.recipe.checks import at_least, one_of, positive, share


@dataclass(frozen=True, slots=True, kw_only=True)
class G2SWeaklyOptions:
    """``[options]`` of a recipe."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    lift: str = "features"
    """What is laid out on the ground: ``features`` of the street-level image, or the ``image`` itself, whose features
    are then taken from above. Only with ``image`` can one encoder serve both views well."""
    levels: tuple[int, ...] = (1,)
    """Levels of the encoder, coarsest first; all are trained, the last one decides."""
    width: int = 0
    """Inner channels of the encoder; 0: its own default."""
    template_share: float = 0.4
    """Side of the ground that is compared, as a share of the reference's side."""
    overhang_share: float = 0.0
    """Share of the template that may hang over the reference's edge. With 0 the camera is looked for no nearer to the
    edge than half the template; with 0.5, everywhere."""
    confidence: bool = False
    """Learn how much each cell of the ground is worth."""
    sharpness: float = 10.0
    """Of the weak loss."""
    both_ways: bool = False
    """Weak loss over references as well as over queries."""
    count_diagonal: bool = False
    """Weak loss as the published code has it, which differs by a constant."""
    weak_weight: float = 1.0
    positions: str = "none"
    """Labels that are used: ``none``; ``noisy``, which are ``position_error_m`` off at most; ``exact``."""
    position_weight: float = 1.0
    position_error_m: float = 5.0
    temperature: float = 0.03
    """Cosines are divided by it to give log-probabilities."""
    search_step_deg: float = 10.0
    """Bearings that are tried where the heading is unknown; around the best, four times as many."""
    heading: str = "search"
    """Who finds a heading that is not known: ``search`` tries bearings; ``network`` reads it off, having learned that
    from references alone in the first ``rotation_epochs``."""
    rotation_epochs: int = 0
    """Epochs in which the network alone is trained. Then it stays as it is, and the rest is trained."""
    heading_range_deg: float = 0.0
    """Greatest error of a bearing that the network sees in training; 0: ``augment.heading_noise_deg``."""
    rotation_view: str = "place"
    """What the network sees: at the ``place`` where the ground fits best, the difference times the derivatives of the
    reference's map; or, as published, the difference on the ``whole`` reference."""
    rotation_passes: int = 1
    """How often the network looks, each time from the bearing it found before; once as published."""
    rotation_cameras: int = 4
    """Cameras that are drawn in each reference of a batch, while the network is trained."""
    rotation_place_weight: float = 0.3
    """How much finding that place counts beside the bearing, while the network is trained."""
    training_heading: str = "label"
    """Bearings that the rest is trained with: the ``label``, or what the network has ``found``."""

    def __post_init__(self) -> None:
        one_of("lift", self.lift, "features", "image")
        one_of("heading", self.heading, "search", "network")
        one_of("rotation_view", self.rotation_view, "place", "whole")
        one_of("training_heading", self.training_heading, "label", "found")
        one_of("positions", self.positions, "none", "noisy", "exact")
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[0] < 0:
            raise RecipeError(f"recipe key 'levels' must be numbers of levels, coarsest first, not {self.levels}")
        share(template_share=self.template_share)
        if not 0 <= self.overhang_share <= 0.5:
            raise RecipeError(f"recipe key 'overhang_share' must lie in [0, 0.5], not {self.overhang_share}")
        positive(
            template_share=self.template_share,
            sharpness=self.sharpness,
            position_error_m=self.position_error_m,
            temperature=self.temperature,
            search_step_deg=self.search_step_deg,
            rotation_passes=self.rotation_passes,
            rotation_cameras=self.rotation_cameras,
        )
        at_least(
            0,
            rotation_epochs=self.rotation_epochs,
            heading_range_deg=self.heading_range_deg,
            rotation_place_weight=self.rotation_place_weight,
        )
        at_least(0, weak_weight=self.weak_weight, position_weight=self.position_weight, width=self.width)
        if not self.weak_weight and (self.positions == "none" or not self.position_weight):
            raise RecipeError("recipe key 'weak_weight' is 0 and there are no positions to learn from")
        self._check_heading()

    def _check_heading(self) -> None:
        if self.heading == "network":
            if not self.rotation_epochs:
                raise RecipeError("recipe key 'heading' is \"network\", which is never trained; set 'rotation_epochs'")
            if self.heading_range_deg > 90:
                raise RecipeError(f"recipe key 'heading_range_deg' must be at most 90, not {self.heading_range_deg}")
        elif self.rotation_epochs or self.training_heading == "found":
            key = "rotation_epochs" if self.rotation_epochs else "training_heading"
            raise RecipeError(f"recipe key '{key}' is for a network; set 'heading' to \"network\" too")
