"""G2SWeakly (ECCV 2024): a place is where the ground around the camera looks like the reference; learned from pairs.

The ground that a street-level image shows, taken for flat, is laid out as a template and compared with every place of
the reference. What is learned is that the best place in the own reference is better than the best one in any other.

Differences from the published code, most of them corrections: cells of template and reference are equally large; places
are decoded without the half-cell bias, and between cells; sampling runs round the panorama's seam; a mask counts once;
a confidence lies in (0, 1); the template may hang over the reference's edge; an unknown heading is found by trying
bearings, the same for panoramas and pinhole images, or by a network (`rotation`) that sees more than the published one.

Shapes: B pairs, M references, N queries, P x P places.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from cvgl_data.errors import RecipeError
from cvgl_models.localization.pose import PosePrediction
from cvgl_models.recipe import ModelRecipe, system_options
from cvgl_models.systems import LocalizationModule, LossTerms
from cvgl_models.systems.g2sweakly.losses import (
    exact_position_loss,
    noisy_position_loss,
    radius_cells,
    weak_metric_loss,
)
from cvgl_models.systems.g2sweakly.network import GroundMatcher
from cvgl_models.systems.g2sweakly.options import G2SWeaklyOptions
from cvgl_models.systems.g2sweakly.rotation import RotationEstimator
from cvgl_models.transforms import Batch

_FINER = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
"""Bearings tried around the best one, in steps of the first search."""


class G2SWeakly(LocalizationModule):
    """The system as a module.

    In training the bearing of a query is known (``batch.heading_deg``), unless ``options.training_heading`` says that
    it is to be found; its position is not, unless ``options.positions`` says so.

    Args:
        recipe: ``encoder.backbone``, ``.pretrained`` and ``.shared``, ``views``, ``options`` and
            ``augment.heading_noise_deg`` are read.

    Raises:
        RecipeError: If the recipe does not fit together.
    """

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        self.options = system_options(G2SWeaklyOptions, recipe)
        self.selects_by_labels = self.options.positions != "none"
        self.matcher = GroundMatcher(recipe.encoder, recipe.views, self.options)
        self.rotation: RotationEstimator | None = None
        if self.options.heading == "network":
            self.rotation = RotationEstimator(
                recipe.encoder, recipe.views, self.options, self.matcher, heading_range_deg(recipe, self.options)
            )
        self._epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        """Train the network for headings in the first epochs, all else in the others."""
        self._epoch = epoch
        if self.rotation is not None:
            self.rotation.is_trained.fill_(float(epoch >= self.options.rotation_epochs))

    def train(self, mode: bool = True) -> G2SWeakly:
        """Set training mode; the network for headings has it only where it is trained itself."""
        super().train(mode)
        if self.rotation is not None:
            self.rotation.eval()
        return self

    def training_step(self, batch: Batch) -> LossTerms:
        """Return the term ``rotation``, or ``weak`` and ``position``, as far as they have a weight."""
        options, matcher = self.options, self.matcher
        if self.rotation is not None and self._epoch < options.rotation_epochs:
            return self.rotation.train(self.training).loss_terms(batch)
        references, encoded = matcher.encode(batch)
        templates = matcher.templates(batch, encoded, self._heading_deg(batch, _prior(batch)))
        terms: dict[str, list[Tensor]] = {}
        for level, (reference_MCAA, template) in enumerate(zip(references, templates, strict=True)):
            if options.weak_weight:
                distance_MNPP = 2 - 2 * matcher.cosines(reference_MCAA, template, level, paired=False)
                weak = weak_metric_loss(
                    distance_MNPP.amin((2, 3)),
                    options.sharpness,
                    count_diagonal=options.count_diagonal,
                    both_ways=options.both_ways,
                    ignore_NM=batch.ignore,
                )
                terms.setdefault("weak", []).append(options.weak_weight * weak)
                distance_BPP = distance_MNPP.diagonal().permute(2, 0, 1)
            else:
                distance_BPP = 2 - 2 * matcher.cosines(reference_MCAA, template, level, paired=True)
            if options.positions != "none" and options.position_weight:
                loss = self._position_loss(batch, distance_BPP, level)
                terms.setdefault("position", []).append(options.position_weight * loss)
        return {name: torch.stack(values).mean() for name, values in terms.items()}

    @torch.no_grad()
    def oriented(self, batch: Batch) -> Batch:
        """Return the batch with the heading that training would take as its prior, of half-width 0."""
        heading_B = self._heading_deg(batch, _prior(batch))
        return dataclasses.replace(batch, heading_prior_deg=torch.stack([heading_B, torch.zeros_like(heading_B)], 1))

    def score_maps(self, batch: Batch, query_mask: Tensor | None = None) -> list[Tensor]:
        """Return the cosines of pairs at every level, (B, P, P), differentiable; arguments as of `score_map`."""
        references, encoded = self.matcher.encode(batch)
        templates = self.matcher.templates(batch, encoded, self._heading_deg(batch, _prior(batch)), query_mask)
        return [
            self.matcher.cosines(reference, template, level, paired=True)
            for level, (reference, template) in enumerate(zip(references, templates, strict=True))
        ]

    def score_map(self, batch: Batch, query_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the cosines of pairs at the last level (B, P, P), differentiable, and the metres per cell (B,).

        Args:
            batch: Positions are not read. The heading is ``heading_deg``; or, without or if it must not be read, what
                the network finds; or the centre of its prior.
            query_mask: (B, 1, h, w) of any size, 0 to 1: what of the queries counts.
        """
        return self.score_maps(batch, query_mask)[-1], self._cell_size_m(batch, -1)

    @torch.no_grad()
    def localize(self, batch: Batch) -> PosePrediction:
        """Return the map of the last level and its peak; a heading that is not known is found within its prior.

        The map of a searched heading holds at each place the score of the bearing that fits best there. Where more is
        unknown than the network has learned to tell, it looks from several bearings, and the one that fits best counts.
        """
        references, encoded = self.matcher.encode(batch)
        prior_B2 = _prior(batch)
        heading_B, width_B = prior_B2[:, 0], 2 * prior_B2[:, 1]

        def at(heading_deg_B: Tensor) -> Tensor:
            template = self.matcher.templates(batch, encoded, heading_deg_B)[-1]
            return self.matcher.cosines(references[-1], template, len(references) - 1, paired=True)

        count = self._num_bearings(width_B)
        if not count:
            cosine_BPP, yaw_B = at(heading_B), heading_B
        elif self.rotation is not None:
            found_KB = torch.stack([self.rotation.heading_deg(batch, part_B2) for part_B2 in _parts(prior_B2, count)])
            cosine_BPP, peak_KB = _peaks(at, found_KB)
            yaw_B = found_KB.gather(0, peak_KB.argmax(0)[None])[0]
        else:
            share_K = (torch.arange(count, device=heading_B.device) + 0.5) / count - 0.5
            cosine_BPP, peak_KB = _peaks(at, heading_B + share_K[:, None] * width_B)
            best_B = heading_B + share_K[peak_KB.argmax(0)] * width_B
            finer_K = torch.tensor(_FINER, device=heading_B.device)
            step_B = width_B / count
            finer_BPP, peak_KB = _peaks(at, best_B + finer_K[:, None] * step_B)
            cosine_BPP = torch.maximum(cosine_BPP, finer_BPP)
            yaw_B = best_B + (_top_of_parabola(peak_KB) * (_FINER[1] - _FINER[0]) + _FINER[0]) * step_B
            yaw_B = heading_B + (yaw_B - heading_B).clamp(-width_B / 2, width_B / 2)
        origin = self.matcher.grids[-1].origin
        return PosePrediction.of_scores(
            cosine_BPP / self.options.temperature,
            self._cell_size_m(batch, -1),
            origin=(origin, origin),
            yaw_deg_B=yaw_B,
            match_B=cosine_BPP.amax((1, 2)),
        )

    @torch.no_grad()
    def validation_score(self, batch: Batch) -> Tensor:
        """Return the probability (B,) with which each query is given its own reference among those of the batch.

        A heading that is not known is searched, for each reference on its own; or the network finds it, in the query's
        own reference, and as long as the network is not trained, all is worth nothing.
        """
        references, encoded = self.matcher.encode(batch)
        prior_B2 = _prior(batch)
        parts = _parts(prior_B2, max(1, self._num_bearings(2 * prior_B2[:, 1])))
        best_MN: Tensor | None = None
        for part_B2 in parts:
            heading_B = part_B2[:, 0] if self.rotation is None else self.rotation.heading_deg(batch, part_B2)
            template = self.matcher.templates(batch, encoded, heading_B)[-1]
            score_MN = self.matcher.cosines(references[-1], template, len(references) - 1, paired=False).amax((2, 3))
            best_MN = score_MN if best_MN is None else torch.maximum(best_MN, score_MN)
        assert best_MN is not None
        share_B = (best_MN / self.options.temperature).softmax(0).diagonal()
        return share_B if self.rotation is None else share_B * self.rotation.is_trained

    def _heading_deg(self, batch: Batch, prior_B2: Tensor) -> Tensor:
        """Return the bearing of each query: its label where there is one that may be read, else the best guess."""
        if self.options.training_heading == "label" and len(batch.heading_deg):
            return batch.heading_deg
        return prior_B2[:, 0] if self.rotation is None else self.rotation.heading_deg(batch, prior_B2)

    def _position_loss(self, batch: Batch, distance_BPP: Tensor, level: int) -> Tensor:
        side = batch.reference.shape[-1]
        grid = self.matcher.grids[level]
        index_B2 = (batch.uv.float() - side / 2) * (grid.reference / side) + grid.origin
        if self.options.positions == "exact":
            return exact_position_loss(distance_BPP, index_B2, self.options.sharpness)
        cell_m_B = self._cell_size_m(batch, level)
        return noisy_position_loss(distance_BPP, index_B2, radius_cells(self.options.position_error_m, cell_m_B))

    def _cell_size_m(self, batch: Batch, level: int) -> Tensor:
        return self.matcher.cell_size_m(batch.gsd_m, batch.reference.shape[-1], level)

    def _num_bearings(self, width_deg_B: Tensor) -> int:
        """Return how many bearings are tried, or looked from; 0 if all are known."""
        step_deg = self.options.search_step_deg if self.rotation is None else 2 * self.rotation.range_deg
        return math.ceil(float(width_deg_B.max()) / step_deg - 1e-6)


def heading_range_deg(recipe: ModelRecipe, options: G2SWeaklyOptions) -> float:
    """Return the greatest error of a bearing that the network for headings is trained with.

    Raises:
        RecipeError: If there is none, or panoramas whose heading is to be found are never turned.
    """
    noise_deg, range_deg = recipe.augment.heading_noise_deg, options.heading_range_deg
    if options.training_heading == "found" and not noise_deg:
        raise RecipeError(
            "recipe key 'options.training_heading' is \"found\", but every heading is known; "
            "set augment.heading_noise_deg"
        )
    if not 0 < (range_deg or noise_deg) <= 90:
        raise RecipeError(
            f"the network for headings would learn errors of up to {range_deg or noise_deg:g} degrees, which must lie "
            "above 0 and not above 90; set options.heading_range_deg"
        )
    return range_deg or noise_deg


def _prior(batch: Batch) -> Tensor:
    """Return (B, 2) centre and half-width of what is known of the heading; without a prior it is known to be 0."""
    if len(batch.heading_prior_deg):
        return batch.heading_prior_deg.float()
    return batch.gsd_m.new_zeros(len(batch.gsd_m), 2, dtype=torch.float32)


def _parts(prior_B2: Tensor, count: int) -> list[Tensor]:
    """Return so many priors (B, 2) that share the range of a prior, in ascending order."""
    center_B, half_B = prior_B2.unbind(1)
    return [
        torch.stack([center_B + (2 * (number + 0.5) / count - 1) * half_B, half_B / count], 1)
        for number in range(count)
    ]


def _peaks(at: Callable[[Tensor], Tensor], heading_KB: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map of the best of K bearings at each place (B, P, P), and the peak of each bearing (K, B)."""
    best_BPP: Tensor | None = None
    peaks: list[Tensor] = []
    for heading_B in heading_KB:
        map_BPP = at(heading_B)
        peaks.append(map_BPP.amax((1, 2)))
        best_BPP = map_BPP if best_BPP is None else torch.maximum(best_BPP, map_BPP)
    assert best_BPP is not None
    return best_BPP, torch.stack(peaks)


def _top_of_parabola(value_KB: Tensor) -> Tensor:
    """Return where the highest of K equally spaced values would lie on the parabola through it and its neighbors."""
    at_B = value_KB.argmax(0).clamp(1, len(value_KB) - 2)
    before_B, here_B, after_B = (value_KB.gather(0, (at_B + step)[None])[0] for step in (-1, 0, 1))
    bend_B = before_B - 2 * here_B + after_B
    off_B = torch.where(bend_B < 0, 0.5 * (before_B - after_B) / bend_B.clamp(max=-1e-9), torch.zeros_like(bend_B))
    return at_B + off_B.clamp(-1.0, 1.0)
