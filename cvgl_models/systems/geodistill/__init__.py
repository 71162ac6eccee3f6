"""GeoDistill (ICCV 2025): a localizer improves without labels by agreeing with itself when it sees less.

A teacher sees the whole query, a student one with part of its field of view hidden; the student learns to give the
teacher's score map all the same, and the teacher follows the student slowly. Any localizer that has ``score_map`` can
be both.

Differences from the published code: hidden parts run round the seam of a panorama; the teacher computes no gradients;
its buffers follow too; normalization layers keep the statistics of the whole view; bearings are decoded without bias.

Shapes: B pairs, P x Q places, h x w cells of a mask.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from cvgl_data.errors import RecipeError
from cvgl_models.checkpoint import load_weights
from cvgl_models.localization.pose import PosePrediction
from cvgl_models.recipe import ModelRecipe, system_options
from cvgl_models.recipe.checks import one_of, positive, share_below_one
from cvgl_models.run_folder import BEST, run_recipe
from cvgl_models.systems import OF_SEMI_POSITIVES, SYSTEMS, LocalizationModule, LossTerms
from cvgl_models.systems.geodistill.distillation import Teacher, distillation_loss
from cvgl_models.systems.geodistill.masking import fov_mask, half_masks
from cvgl_models.systems.geodistill.orientation import Bins, OrientationNetwork
from cvgl_models.transforms import Batch

_AGREEMENT_M = 2.0


@runtime_checkable
class Localizer(Protocol):
    """A localization system that can be teacher and student."""

    def score_map(self, batch: Batch, query_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return differentiable scores (B, P, Q) and the metres per cell (B,).

        Args:
            batch: Without positions.
            query_mask: (B, 1, h, w) of any size, 0 to 1: what of the queries counts.
        """

    def localize(self, batch: Batch) -> PosePrediction:
        """Return where in its reference each query was taken, and which way it looks."""


@runtime_checkable
class OfLevels(Protocol):
    """A localizer with maps at several levels."""

    def score_maps(self, batch: Batch, query_mask: Tensor | None = None) -> list[Tensor]:
        """Return differentiable scores (B, P, Q) of each level; arguments as of `Localizer.score_map`."""


@runtime_checkable
class OfHeadings(Protocol):
    """A localizer that settles headings before it looks for places."""

    def oriented(self, batch: Batch) -> Batch:
        """Return the batch with a prior of half-width 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeoDistillOptions:
    """``[options]`` of a recipe."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    localizer: str = "g2sweakly"
    """System of teacher and student."""
    localizer_options: dict[str, Any] = field(default_factory=dict)
    """Its own options: those of the run that ``encoder.pretrained`` names."""
    kept_fov_deg: tuple[float, float] = (180.0, 240.0)
    """Field of view that the student keeps, from and below; of a pinhole image, 360 degrees are its whole width."""
    student_temperature: float = 0.06
    teacher_temperature: float = 0.06
    """Scores are divided by it; a lower one sharpens the teacher."""
    momentum: float = 0.9
    """What stays of the teacher's weights in an update."""
    ema_every: int = 1
    """Steps between two updates of the teacher; the published code has an epoch's worth."""
    predict_with: str = "teacher"
    """``teacher`` or ``student``."""
    heading: str = "localizer"
    """Who finds an unknown heading: the ``localizer``, or a ``network`` trained beside it on panoramas turned by up to
    ``augment.heading_noise_deg``."""
    heading_backbone: str = "efficientnet_b0"
    """Encoder of that network: of timm, or ``cvgl_small_pyramid``."""
    heading_pretrained: bool | str = False
    """Weights it begins with: ``true`` for timm's, or a file."""
    heading_bins: int = 90
    heading_hidden: int = 1024

    def __post_init__(self) -> None:
        one_of("predict_with", self.predict_with, "teacher", "student")
        one_of("heading", self.heading, "localizer", "network")
        low, high = self.kept_fov_deg
        if not 0 < low < high <= 360:
            raise RecipeError(f"recipe key 'kept_fov_deg' must be two ascending angles in (0, 360], not {low}, {high}")
        positive(
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            ema_every=self.ema_every,
            heading_bins=self.heading_bins,
            heading_hidden=self.heading_hidden,
        )
        share_below_one(momentum=self.momentum)


class GeoDistill(LocalizationModule):
    """The system as a module.

    Args:
        recipe: ``encoder.pretrained`` is the run folder of a trained localizer, or one of its weights files, which must
            have been trained with the same ``encoder``, ``views`` and ``options.localizer_options``. (False makes the
            networks alone, for weights that are loaded later; that cannot be trained.)

    Raises:
        RecipeError: If the recipe does not fit together, or is another than the localizer's.
        CheckpointError: If the localizer's weights cannot be had or do not fit.
    """

    selects_by_labels = False

    unread = (*LocalizationModule.unread, *OF_SEMI_POSITIVES)

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.options = options = system_options(GeoDistillOptions, recipe)
        start = recipe.encoder.pretrained
        if start is True:
            raise RecipeError(
                "system 'geodistill' begins with a trained localizer; set encoder.pretrained to its run folder"
            )
        inner = dataclasses.replace(
            recipe,
            system=options.localizer,
            options=options.localizer_options,
            encoder=dataclasses.replace(recipe.encoder, pretrained=False),
        )
        localizer = SYSTEMS.load(options.localizer)(inner)
        if not isinstance(localizer, Localizer):
            raise RecipeError(f"system '{options.localizer}' has no score_map, so nothing can be distilled from it")
        if start:
            _load(localizer, Path(start), inner)
        self._can_be_trained = bool(start)
        self.student = localizer
        self.teacher = Teacher(localizer, options.momentum, options.ema_every)
        self.orientation: OrientationNetwork | None = None
        if options.heading == "network":
            half_width_deg = recipe.augment.heading_noise_deg
            if not half_width_deg:
                raise RecipeError("recipe key 'options.heading' is \"network\"; set augment.heading_noise_deg")
            encoder = dataclasses.replace(
                recipe.encoder,
                backbone=options.heading_backbone,
                pretrained=options.heading_pretrained if start else False,  # else weights are loaded later
            )
            bins = Bins(options.heading_bins, half_width_deg)
            self.orientation = OrientationNetwork(encoder, recipe.views, bins, options.heading_hidden)

    def training_step(self, batch: Batch) -> LossTerms:
        """Return the terms ``distillation`` and, with a network for it, ``heading``."""
        if not self._can_be_trained:
            raise RecipeError(
                "system 'geodistill' begins with a trained localizer; set encoder.pretrained to its run folder"
            )
        options = self.options
        self.teacher.follow(self.student)
        labelled = batch
        if isinstance(self.teacher.model, OfHeadings):
            batch = self.teacher.model.oriented(batch)  # by the whole view: the student would see less of it
        with torch.no_grad():
            targets = _maps(self.teacher.model, batch)
        mask = fov_mask(
            len(batch.query),
            batch.query.shape[-1],
            options.kept_fov_deg,
            wraps=batch.camera_B33 is None,
            device=batch.query.device,
        )
        found = _maps(self.student, _masked(batch, mask), mask)
        losses = [
            distillation_loss(own, target, options.student_temperature, options.teacher_temperature)
            for own, target in zip(found, targets, strict=True)
        ]
        terms = {"distillation": torch.stack(losses).mean()}
        if self.orientation is not None:
            terms["heading"] = self.orientation.loss(labelled, labelled.heading_prior_deg[:, 0])
        return terms

    @torch.no_grad()
    def localize(self, batch: Batch) -> PosePrediction:
        """Return what the teacher (or the student) finds, with the heading read off first where a network does that."""
        return cast(Localizer, self._judged()).localize(self._with_heading(batch))

    @torch.no_grad()
    def validation_score(self, batch: Batch) -> Tensor:
        """Return how well (B,) each half of a query gives the place that the whole query gives, in [0, 1].

        The bearing is that which the whole query gives.
        """
        yaw_B = self.localize(batch).yaw_deg_B
        batch = dataclasses.replace(batch, heading_prior_deg=torch.stack([yaw_B, torch.zeros_like(yaw_B)], 1))
        whole_BPQ, cell_size_m_B = cast(Localizer, self._judged()).score_map(batch)
        scores = []
        for mask in half_masks(len(batch.query), batch.query.shape[-1], batch.query.device):
            half_BPQ, _ = cast(Localizer, self._judged()).score_map(_masked(batch, mask), mask)
            away_B = (_peak(half_BPQ) - _peak(whole_BPQ)).norm(dim=1) * cell_size_m_B
            scores.append((-away_B / _AGREEMENT_M).exp())
        return torch.stack(scores).mean(0)

    def train(self, mode: bool = True) -> GeoDistill:
        """Set training mode; the localizers' normalization layers keep their statistics."""
        super().train(mode)
        for module in self.student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _judged(self) -> nn.Module:
        return self.teacher.model if self.options.predict_with == "teacher" else self.student

    def _with_heading(self, batch: Batch) -> Batch:
        """Return the batch with a prior whose heading is known, if there is a network that can tell it."""
        if self.orientation is None or not len(batch.heading_prior_deg):
            return batch
        center_B, half_width_B = batch.heading_prior_deg.float().unbind(1)
        found_B = self.orientation.bins.decode(self.orientation(batch, center_B))
        yaw_B = center_B + torch.maximum(torch.minimum(found_B, half_width_B), -half_width_B)
        return dataclasses.replace(batch, heading_prior_deg=torch.stack([yaw_B, torch.zeros_like(yaw_B)], 1))


def _maps(localizer: nn.Module, batch: Batch, mask: Tensor | None = None) -> list[Tensor]:
    if isinstance(localizer, OfLevels):
        return localizer.score_maps(batch, mask)
    return [cast(Localizer, localizer).score_map(batch, mask)[0]]


def _masked(batch: Batch, mask: Tensor) -> Batch:
    return dataclasses.replace(batch, query=batch.query * mask)


def _peak(score_map_BPQ: Tensor) -> Tensor:
    """Return (row, column) of each map's highest score, (B, 2) float32."""
    flat_B = score_map_BPQ.flatten(1).argmax(1)
    columns = score_map_BPQ.shape[-1]
    return torch.stack([torch.div(flat_B, columns, rounding_mode="floor"), flat_B % columns], 1).float()


def _load(localizer: nn.Module, start: Path, inner: ModelRecipe) -> None:
    """Load the weights of a run, having compared what decides whether they mean the same here."""
    run = start if start.is_dir() else start.parent
    if start.is_dir() or (run / "recipe.toml").is_file():
        theirs = run_recipe(run)
        for key, own, other in (
            ("system", inner.system, theirs.system),
            ("views", inner.views, theirs.views),
            ("encoder.backbone", inner.encoder.backbone, theirs.encoder.backbone),
            ("encoder.shared", inner.encoder.shared, theirs.encoder.shared),
            ("options.localizer_options", inner.options, theirs.options),
        ):
            if own != other:
                raise RecipeError(f"recipe key '{key}' is {own}, but the localizer in '{run}' was trained with {other}")
    load_weights(run / BEST if start.is_dir() else start, localizer)
