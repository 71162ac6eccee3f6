"""Every system on a pretended CUDA device: nothing lies on the wrong one, and a training step waits for nothing."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, cast

import pytest
import torch
from pretended import CUDA, Device, pretended_device
from torch._subclasses.fake_tensor import unset_fake_temporarily

from cvgl_models.recipe import AugmentRecipe, ModelRecipe, load_recipe
from cvgl_models.systems import LocalizationModule, RetrievalModule, create_system
from cvgl_models.transforms import Augment, Batch

RECIPES: list[tuple[str, list[str]]] = [
    ("sample4geo-smoke", []),
    ("cvcities-smoke", []),
    ("auxgeo-smoke", ["sampler.semi_positive_policy=soft"]),
    ("epbev-smoke", []),
    ("safa-smoke", ["options.front_end=stn-affine"]),
    ("safa-smoke", ["options.front_end=stn-composed"]),
    ("safa-smoke", ["options.front_end=stn-tps", "options.bending_weight=0.1"]),
    ("ccvpe-smoke", ["options.heading=direction"]),
    ("ccvpe-smoke", []),
    ("hcnet-smoke", ["options.start=center", "options.known_scale=false"]),
    ("hcnet-smoke", ["options.headings=8"]),
    ("hcnet-smoke", ["views.query=pinhole"]),
    ("g2sweakly-smoke", ["options.positions=noisy"]),
    ("g2sweakly-smoke", ["options.positions=exact"]),
    ("g2sweakly-smoke", ["views.query=pinhole", "options.lift=features", "options.confidence=true"]),
    ("geodistill-smoke", []),
    (
        "geodistill-smoke",
        ["options.heading=network", "augment.heading_noise_deg=45", "options.heading_backbone=cvgl_small_pyramid"],
    ),
    ("geodistill-ccvpe-smoke", []),
]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    with pretended_device(monkeypatch) as found:
        yield found


def batch_of(recipe: ModelRecipe, size: int = 4) -> Batch:
    views = recipe.views
    (height, width), side, noise_deg = views.query_size_px, views.reference_px, recipe.augment.heading_noise_deg
    camera = torch.tensor([[[width * 0.6, 0, width / 2], [0, width * 0.6, height / 2], [0, 0, 1.0]]])
    return Batch(
        query=torch.rand(size, 3, height, width),
        reference=torch.rand(size, 3, side, side),
        bev=torch.rand(size, 3, views.bev_px, views.bev_px) if views.bev_px else torch.empty(0),
        uv=torch.full((size, 2), side / 2.3),
        heading_deg=torch.zeros(size),
        gsd_m=torch.full((size,), 0.5),
        heading_prior_deg=torch.tensor([[0.0, noise_deg]]).repeat(size, 1),
        camera_B33=camera.repeat(size, 1, 1) if views.query == "pinhole" else None,
        query_row=torch.arange(size),
        reference_row=torch.arange(size),
        ignore=torch.zeros(size, size) if recipe.sampler.semi_positive_policy == "soft" else None,
    )


def moved(device: Device, batch: Batch) -> Batch:
    parts = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
    return Batch(**{name: None if part is None else device.tensor(part) for name, part in parts.items()})


@pytest.mark.parametrize(("name", "overrides"), RECIPES, ids=[" ".join([name, *more]) for name, more in RECIPES])
def test_a_training_step_stays_on_the_device_and_waits_for_nothing(device, name, overrides):
    with unset_fake_temporarily():
        torch.manual_seed(0)
        recipe = load_recipe(name, [*overrides, "encoder.pretrained=false"])
        system, batch = create_system(recipe), batch_of(recipe)
        if recipe.system == "geodistill":
            cast(Any, system)._can_be_trained = True  # it begins with a trained run; here weights are not looked at
        own = copy.deepcopy(system)
    system, batch = device.module(own), moved(device, batch)
    if not getattr(system, "selects_by_labels", True):
        batch = dataclasses.replace(batch, uv=torch.empty(0, device=CUDA))
    system.train()
    with device.listed():  # what is made once and kept may be waited for
        system.training_step(batch)
    with device.listed() as found:
        terms = system.training_step(batch)
    assert found == []
    assert {term.device for term in terms.values()} == {CUDA}


@pytest.mark.parametrize(("name", "overrides"), RECIPES, ids=[" ".join([name, *more]) for name, more in RECIPES])
def test_inference_stays_on_the_device(device, name, overrides):
    with unset_fake_temporarily():
        recipe = load_recipe(name, [*overrides, "encoder.pretrained=false"])
        system, batch = copy.deepcopy(create_system(recipe)), batch_of(recipe)
    system = device.module(system).eval()
    batch = dataclasses.replace(
        moved(device, batch), uv=torch.empty(0, device=CUDA), heading_deg=torch.empty(0, device=CUDA)
    )
    with torch.no_grad(), device.listed():
        if isinstance(system, RetrievalModule):
            found = [system.embed_queries(batch), system.embed_references(batch)]
        else:
            assert isinstance(system, LocalizationModule)
            pose = system.localize(batch)
            found = [pose.xy_m_B2, pose.yaw_deg_B, pose.radius95_m_B, pose.score_map_BHW]
            if not system.selects_by_labels:
                found.append(system.validation_score(batch))
    assert {each.device for each in found} == {CUDA}


@pytest.mark.parametrize("query", ["panorama", "bev", "pinhole"])
def test_random_changes_wait_for_nothing(device, query):
    with unset_fake_temporarily():
        every = dict.fromkeys(("flip", "rotate", "color", "color_together", "blur", "cut"), 1.0)
        turned = {"turn_deg": 45.0} if query == "bev" else {"heading_noise_deg": 45.0}
        augment = Augment(AugmentRecipe(**every, **turned, zoom=0.1, shift=0.1), query)
        views = dataclasses.replace(
            load_recipe("hcnet-smoke").views, query="pinhole" if query == "pinhole" else "panorama"
        )
        batch = batch_of(ModelRecipe(name="", views=views))
        generator = torch.Generator().manual_seed(0)
    if query == "bev":
        batch = dataclasses.replace(batch, query=batch.reference)
    batch = moved(device, batch)
    with device.listed(is_mixed=False) as found:
        changed = augment(batch, generator)
    assert found == []
    assert changed.query.device == changed.uv.device == changed.heading_deg.device == CUDA


def test_what_is_waited_for_is_listed(device):
    value = device.tensor(torch.rand(4))
    with device.listed() as found:
        value.max().item()
        value.index_put_((value > 0.5,), value.sum())
        value + torch.tensor([1.0]).to(CUDA)
        value + torch.tensor([1.0], device=CUDA)
        value.new_tensor([1.0])
        torch.tensor([1.0]).to(CUDA, non_blocking=True)  # from memory that can be paged
        value.cpu()
    assert len(found) == 7
    with device.listed() as found:
        value + torch.tensor([1.0]).pin_memory().to(CUDA, non_blocking=True)
        value * 2 + torch.zeros(4, device=CUDA)
    assert found == []
    with pytest.raises(RuntimeError, match="device"):
        value + torch.rand(4)
