"""A localization system that is honest and needs no training: the top view of the query, correlated with the reference.

Its one weight is how sure it is: scores are correlations times that.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cvgl_data.recipe import resolve
from cvgl_models.geometry import bev_from_panorama
from cvgl_models.localization.decode import log_density
from cvgl_models.localization.pose import PosePrediction, wrap_deg, xy_m_from_uv
from cvgl_models.recipe import ModelRecipe
from cvgl_models.systems import SYSTEMS, LocalizationModule

TABLES = {
    "name": "ncc",
    "system": "ncc",
    "views": {"query_height_px": 64, "query_width_px": 128, "reference_px": 64, "camera_height_m": 2.5},
    "augment": {"flip": 0.0, "rotate": 0.0, "color": 0.0, "blur": 0.0, "cut": 0.0},
    "sampler": {"batch_size": 4, "use_distance_map": False},
    "optim": {"epochs": 2, "lr": 0.3, "warmup_epochs": 0.0, "precision": "fp32"},
    "loader": {"workers": 0},
    "validation": {"every_n_epochs": 1, "batch_size": 8},
}


def recipe(*overrides):
    """Return the recipe of these systems for the toy dataset."""
    return resolve(ModelRecipe, TABLES, overrides)


@contextmanager
def registered():
    """Let recipes name the systems below: ``ncc``, ``ncc-weak``, ``ncc-cheat``."""
    ours = {"ncc": NccLocalizer, "ncc-weak": WeakLocalizer, "ncc-cheat": CheatingLocalizer}
    load = SYSTEMS.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SYSTEMS, "load", lambda name: ours.get(name) or load(name))
        yield


@contextmanager
def one_thread():
    """Tiny networks lose by a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def masked_ncc(reference_CHW, template_Ctt, mask_tt):
    """Return the correlation of a masked template at every place of a reference, over what overlaps, (H, W)."""
    reach = mask_tt.shape[-1] // 2
    padded = F.pad(reference_CHW, (reach,) * 4)
    seen = F.pad(torch.ones_like(reference_CHW[:1]), (reach,) * 4)

    def sums(image_CHW, kernel_Ctt):
        return F.conv2d(image_CHW[None], kernel_Ctt[None])[0, 0]

    num = sums(seen, mask_tt[None]) * len(reference_CHW)
    mask_Ctt = mask_tt.expand_as(template_Ctt)
    seen_CHW = seen.expand_as(padded)
    of_reference, of_template = sums(padded, mask_Ctt), sums(seen_CHW, mask_Ctt * template_Ctt)
    covariance = sums(padded, mask_Ctt * template_Ctt) - of_reference * of_template / num
    spread = (sums(padded**2, mask_Ctt) - of_reference**2 / num) * (
        sums(seen_CHW, mask_Ctt * template_Ctt**2) - of_template**2 / num
    )
    return covariance / spread.clamp(min=1e-8).sqrt()


class NccLocalizer(LocalizationModule):
    """The system; ``options`` of the recipe: ``reach_m``, ``num_yaws``."""

    def __init__(self, recipe):
        super().__init__()
        self.camera_height_m = recipe.views.camera_height_m
        self.reach_m = float(recipe.options.get("reach_m", 14.0))
        self.num_yaws = int(recipe.options.get("num_yaws", 36))
        self.log_sureness = nn.Parameter(torch.tensor(2.0))

    def training_step(self, batch):
        """Return the negative log-density of the true places."""
        found = self._predicted(batch)
        true_m = xy_m_from_uv(batch.uv, batch.gsd_m, batch.reference.shape[-1])
        return {"nll": self._nll(found, true_m)}

    def localize(self, batch):
        """Return the place of the best correlation, over the headings that the prior allows."""
        assert len(batch.uv) == len(batch.heading_deg) == 0, "labels have come to the model"
        return self._predicted(batch)

    def _nll(self, found, true_m):
        density = log_density(found.score_map_BHW, found.cell_size_m_B, found.origin, true_m)
        return -density.clamp(min=-30).mean().float()

    def _predicted(self, batch):
        maps, yaws = [], []
        for index in range(len(batch.query)):
            center, half = batch.heading_prior_deg[index].tolist()
            count = 1 if half == 0 else max(round(self.num_yaws * half / 180), 2)
            tried = [center + (2 * (k + 0.5) / count - 1) * half for k in range(count)]
            found = [self._map(batch, index, yaw) for yaw in tried]
            peaks = torch.stack([one.max() for one in found])
            best = int(peaks.argmax())
            maps.append(found[best])
            yaws.append(tried[best])
        return PosePrediction.of_scores(
            torch.stack(maps) * self.log_sureness.exp(),
            batch.gsd_m,
            yaw_deg_B=wrap_deg(torch.tensor(yaws)),
            match_B=torch.stack([one.max() for one in maps]).detach(),
        )

    def _map(self, batch, index, yaw_deg):
        """Return the correlations of one pair if the centre column looked there."""
        gsd_m = float(batch.gsd_m[index])
        width = batch.query.shape[-1]
        # the column that looks north comes to the middle
        north_up = batch.query[index : index + 1].roll(round(yaw_deg / 360 * width), -1)
        reach = round(self.reach_m / gsd_m)
        size = 2 * reach + 1
        template = bev_from_panorama(north_up, size, gsd_m, self.camera_height_m)[0]
        away = torch.hypot(*torch.meshgrid(*[torch.arange(float(size)) - reach] * 2, indexing="ij")) * gsd_m
        mask = ((away <= self.reach_m) & (away >= 1.0)).float()
        return masked_ncc(batch.reference[index], template, mask)


class WeakLocalizer(NccLocalizer):
    """The same, without positions: a pair has to fit better than other pairs of its batch."""

    selects_by_labels = False

    def training_step(self, batch):
        """Return how badly own references fit, compared with the next ones."""
        return {"contrast": F.softplus(-self._lead(batch) * self.log_sureness.exp()).mean()}

    def validation_score(self, batch):
        """Return the lead of the own reference over the next one."""
        assert not len(batch.uv), "positions have come to the criterion"
        return self._lead(batch)

    def _lead(self, batch):
        others = torch.roll(torch.arange(len(batch.query)), 1)
        leads = []
        for index, other in enumerate(others.tolist()):
            alien = type(batch)(query=batch.query, reference=batch.reference.roll(index - other, 0), gsd_m=batch.gsd_m)
            leads.append(self._map(batch, index, 0.0).max() - self._map(alien, index, 0.0).max())
        return torch.stack(leads)


class CheatingLocalizer(WeakLocalizer):
    """Claims to need no positions and yet reads them."""

    def training_step(self, batch):
        """Return a loss of the positions."""
        return {"nll": (self.log_sureness * batch.uv[:, 0]).mean()}
