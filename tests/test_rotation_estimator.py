"""The network that reads a bearing error off the ground: signs and cells by oracles, what it learns from and reads."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from localizers import one_thread
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from toy_dataset import toy_dataset

from cvgl_data.errors import RecipeError
from cvgl_data.recipe import resolve
from cvgl_models.checkpoint import last_checkpoint
from cvgl_models.geometry.ground import ground_from_panorama
from cvgl_models.localization.conditions import without
from cvgl_models.localization.pose import wrap_deg
from cvgl_models.recipe import AugmentRecipe, EncoderRecipe, ModelRecipe, ViewRecipe, load_recipe
from cvgl_models.systems import LossTerms
from cvgl_models.systems.g2sweakly import G2SWeakly
from cvgl_models.systems.g2sweakly.rotation import RotationEstimator, cut_out, inside, motion_maps
from cvgl_models.training import train
from cvgl_models.transforms import Batch

CAMERA = torch.tensor([[70.0, 0.0, 64.0], [0.0, 70.0, 32.0], [0.0, 0.0, 1.0]])
HEIGHT_M = 2.5


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    with one_thread():
        yield


def recipe(query: str = "panorama", noise_deg: float = 10.0, **options: Any) -> ModelRecipe:
    base = {"lift": "image", "levels": [1], "overhang_share": 0.5, "width": 8, "template_share": 0.5}
    network = {"heading": "network", "rotation_epochs": 2}
    return ModelRecipe(
        name="test",
        system="g2sweakly",
        views=ViewRecipe(query=query, query_height_px=64, query_width_px=128, reference_px=64),
        encoder=EncoderRecipe(backbone="cvgl_small_unet", pretrained=False),
        augment=AugmentRecipe(heading_noise_deg=noise_deg),
        options=base | network | options,
    )


def smooth(size: int, side: int = 64, seed: int = 0, cells: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, cells, cells, generator=generator)
    return F.interpolate(coarse, size=side, mode="bicubic", align_corners=False).clamp(0, 1)


def batch_of(size: int = 3, query: str = "panorama", seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    prior = torch.tensor([[0.0, 10.0]]).repeat(size, 1)
    return Batch(
        query=torch.rand(size, 3, 64, 128, generator=generator),
        reference=smooth(size, seed=seed),
        heading_deg=torch.zeros(size),
        heading_prior_deg=prior,
        gsd_m=torch.full((size,), 0.8),
        camera_B33=CAMERA.repeat(size, 1, 1) if query == "pinhole" else None,
    )


def estimator(made: ModelRecipe) -> tuple[G2SWeakly, RotationEstimator]:
    system = G2SWeakly(made)
    assert system.rotation is not None
    return system, system.rotation


# Where things lie


@given(turns=st.integers(-4, 4), size=st.sampled_from([64, 40, 21]))
def test_a_cut_by_quarters_is_a_turned_crop(turns: int, size: int) -> None:
    map_BCAA = torch.rand(2, 3, 64 if size % 2 == 0 else 63, 64 if size % 2 == 0 else 63)
    cut = cut_out(map_BCAA, size, torch.zeros(2, 2), torch.full((2,), 90.0 * turns))
    first = (map_BCAA.shape[-1] - size) // 2
    crop = map_BCAA[..., first : first + size, first : first + size]
    # what lies to the right of the map comes to the top of a cut whose top points there: counter-clockwise
    assert torch.allclose(cut, torch.rot90(crop, turns, (-2, -1)), atol=1e-4)


@given(column=st.integers(0, 63), row=st.integers(0, 63), turn=st.floats(-180, 180))
def test_the_middle_of_a_cut_is_its_place(column: int, row: int, turn: float) -> None:
    map_BCAA = torch.rand(1, 2, 64, 64)
    place = (torch.tensor([[column, row]]) + 0.5 - 32) / 32
    cut = cut_out(map_BCAA, 5, place, torch.tensor([turn]))
    assert torch.allclose(cut[..., 2, 2], map_BCAA[..., row, column], atol=1e-4)


@given(column=st.integers(-6, 6), row=st.integers(-6, 6))
def test_inside_is_where_the_map_is(column: int, row: int) -> None:
    mask = inside(16, 12, torch.tensor([[column, row]]) / 8)
    index = torch.arange(12) + 2
    expected = ((index + row >= 0) & (index + row < 16))[:, None] & ((index + column >= 0) & (index + column < 16))
    assert torch.equal(mask[0], expected.float())


@given(heading=st.floats(-180, 180), error=st.floats(-30, 30), right=st.floats(-0.4, 0.4), down=st.floats(-0.4, 0.4))
@settings(max_examples=20)
def test_a_cut_is_what_a_panorama_of_that_bearing_error_shows(
    heading: float, error: float, right: float, down: float
) -> None:
    reference, gsd_m = smooth(1, cells=8), torch.tensor([0.8])
    place, assumed = torch.tensor([[right, down]]), torch.tensor([heading])
    query = panorama_of(reference, place, assumed + error)
    ground = ground_from_panorama(query, 24, gsd_m, HEIGHT_M)
    turned = cut_out(reference, 64, torch.zeros(1, 2), assumed)
    radians = math.radians(heading)
    in_frame = torch.tensor(
        [
            [
                right * math.cos(radians) + down * math.sin(radians),
                down * math.cos(radians) - right * math.sin(radians),
            ]
        ]
    )
    expected = cut_out(turned, 24, in_frame, torch.tensor([error]))
    assert (ground - expected).abs().mean() < 0.02
    assert (ground - cut_out(turned, 24, in_frame, torch.tensor([error + 90]))).abs().mean() > 0.05


def panorama_of(reference: Tensor, place_B2: Tensor, heading_deg_B: Tensor, height: int = 256) -> Tensor:
    """Return what cameras see at places (half sides) of a flat reference at 0.8 m per pixel."""
    side = reference.shape[-1]
    rows, columns = torch.arange(height) + 0.5, torch.arange(2 * height) + 0.5
    away_m = HEIGHT_M / ((rows / height - 0.5).clamp(min=0.5 / height) * math.pi).tan()
    bearing = ((columns / (2 * height) - 0.5) * 2 * math.pi)[None] + heading_deg_B.deg2rad()[:, None]
    offset = torch.stack([bearing.sin(), -bearing.cos()], -1)[:, None] * away_m[None, :, None, None]
    grid = place_B2[:, None, None] + offset / (0.8 * side / 2)
    return F.grid_sample(reference, grid, padding_mode="reflection", align_corners=False)


@given(angle=st.floats(-3, 3), right=st.floats(-0.5, 0.5), down=st.floats(-0.5, 0.5))
@settings(max_examples=15)
def test_the_maps_of_motion_solve_for_a_small_motion(angle: float, right: float, down: float) -> None:
    reference = smooth(1, side=96, cells=10)
    middle = cut_out(reference, 48, torch.zeros(1, 2), torch.zeros(1))
    ground = cut_out(reference, 48, torch.tensor([[right, down]]) / 48, torch.tensor([angle]))
    seen = torch.ones(1, 48, 48)
    seen[:, 30:] = 0  # what is not seen must not count, whatever is there
    ground[..., 30:, :] = 9.0
    sums = motion_maps(ground, middle, seen).sum((2, 3))[0].double()
    normal = sums[torch.tensor([[3, 4, 5], [4, 6, 7], [5, 7, 8]])]
    found = torch.linalg.solve(normal, sums[:3])
    # the last is the way of a cell half a side away from the middle
    assert (found - torch.tensor([right, down, math.radians(angle) * 24]).double()).abs().max() < 0.35


# What is learned


class _Reader(nn.Module):
    """In place of the network: the least-squares motion that its maps speak of, in units of the ranges."""

    def __init__(self, cells: int, reach_cells: float, range_deg: float) -> None:
        super().__init__()
        self.units = torch.tensor([reach_cells, reach_cells, math.radians(range_deg) * cells / 2])

    def forward(self, maps_B9SS: Tensor) -> Tensor:
        sums = maps_B9SS.sum((2, 3)).double()
        normal = sums[:, torch.tensor([[3, 4, 5], [4, 6, 7], [5, 7, 8]])]
        return (torch.linalg.solve(normal, sums[:, :3]) / self.units).float()


class _Colors(nn.Module):
    """In place of the encoder: the image itself, at half its size."""

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[None]]:
        return [F.avg_pool2d(images - 0.5, 2)], [None]


@pytest.mark.parametrize("query", ["panorama", "pinhole"])
def test_signs_and_units_of_the_estimate(query: str) -> None:
    """With an exact reader of motions, the bearing that is found is the true one."""
    system, rotation = estimator(recipe(query, rotation_passes=3))
    rotation.encoder = _Colors()
    rotation.network = _Reader(rotation.grid.template, rotation.reach_cells, 10.0)
    reference = smooth(6, cells=12)
    error = torch.tensor([-8.0, -4.0, -1.0, 1.0, 4.0, 8.0])
    place = torch.tensor([[0.0, 0.0], [0.2, -0.1], [-0.15, 0.1], [0.05, 0.3], [-0.3, -0.2], [0.1, 0.1]])
    assumed = torch.zeros(6) if query == "panorama" else torch.tensor([0.0, 40.0, -75.0, 130.0, 180.0, -20.0])
    sphere = panorama_of(reference, place, assumed + error)
    batch = Batch(query=sphere, reference=reference, gsd_m=torch.full((6,), 0.8))
    if query == "pinhole":
        batch = dataclasses.replace(batch, query=picture_of(sphere), camera_B33=CAMERA.repeat(6, 1, 1))
    found = rotation.heading_deg(batch, torch.stack([assumed, torch.full((6,), 10.0)], 1))
    away = wrap_deg(found - assumed - error).abs()
    assert away.median() < (0.7 if query == "panorama" else 1.5)  # a wedge is a smaller ground
    assert away.max() < (2.5 if query == "panorama" else 4.0)
    known = rotation.heading_deg(batch, torch.stack([assumed, torch.zeros(6)], 1))
    assert wrap_deg(known - assumed).abs().max() < 1e-4
    searched = system.localize(dataclasses.replace(batch, heading_prior_deg=torch.tensor([[0.0, 0.0]] * 6)))
    assert searched.yaw_deg_B.tolist() == [0.0] * 6


def picture_of(sphere: Tensor) -> Tensor:
    """Return pinhole pictures, 64 by 128 px, of what panoramas show about their centre column."""
    u, v = torch.arange(128) + 0.5, torch.arange(64) + 0.5
    right, down = ((u - 64) / 70).expand(64, 128), ((v - 32) / 70)[:, None].expand(64, 128)
    share_u = torch.atan2(right, torch.ones_like(right)) / math.pi
    share_v = torch.atan2(down, torch.hypot(right, torch.ones_like(right))) / (math.pi / 2)
    grid = torch.stack([share_u, share_v], -1).expand(len(sphere), -1, -1, -1)
    return F.grid_sample(sphere, grid, padding_mode="border", align_corners=False)


@pytest.mark.parametrize(("query", "lift"), [("panorama", "image"), ("pinhole", "image"), ("pinhole", "features")])
@pytest.mark.parametrize("view", ["place", "whole"])
def test_the_network_learns_from_references_alone(query: str, lift: str, view: str) -> None:
    system, rotation = estimator(recipe(query, lift=lift, rotation_view=view, levels=[0, 1]))
    batch = batch_of(query=query)
    blank = dataclasses.replace(
        batch,
        query=torch.full_like(batch.query, torch.nan),
        heading_deg=torch.empty(0),
        heading_prior_deg=torch.empty(0),
        uv=torch.empty(0),
    )
    values = []
    for each in (batch, blank, batch):
        torch.manual_seed(3)
        terms = system.train().training_step(each)
        assert set(terms) == {"rotation"} | ({"rotation_place"} if view == "place" else set())
        values.append(sum(terms.values()))
    assert values[0] == values[1] == values[2]
    values[0].backward()
    gradients = {name: each.grad for name, each in system.named_parameters() if each.grad is not None}
    assert set(gradients) == {f"rotation.{name}" for name, _ in rotation.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(
        bool(gradients[f"rotation.{name}"].any()) for name in ("network.out.weight", "encoder.network.out.0.weight")
    )


def test_what_a_drawn_camera_does_not_see_is_as_black_as_in_a_laid_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rotation = estimator(recipe("pinhole"))
    encoded: list[Tensor] = []
    monkeypatch.setattr(rotation, "_encoded", lambda images: (encoded.append(images), F.avg_pool2d(images, 2))[1])
    batch = dataclasses.replace(
        batch_of(2, "pinhole"), query=torch.ones(2, 3, 64, 128), reference=torch.ones(2, 3, 64, 64)
    )
    rotation.loss_terms(batch)
    rotation(batch, torch.zeros(2))
    _, drawn, _, laid = encoded
    assert len(drawn) == 8  # four cameras in each
    assert torch.equal(drawn[:2] > 0, laid > 0)
    assert 0.05 < (laid > 0).float().mean() < 0.5


def test_the_loss_of_an_estimate_of_zero_is_the_mean_of_what_is_drawn() -> None:
    _, rotation = estimator(recipe())
    nn.init.zeros_(rotation.network.out.weight)
    rotation.encoder = _Colors()
    with torch.no_grad():
        loss = rotation.loss_terms(batch_of(40))["rotation"].item()
    assert loss == pytest.approx(1.5, abs=0.12)  # three numbers, uniform in [-1, 1]


def test_it_learns_to_tell_the_bearing_error() -> None:
    """Colors for features, so that few steps are enough; a good part of the error must go."""
    _, rotation = estimator(recipe())
    rotation.encoder = _Colors()
    optimizer = torch.optim.Adam(rotation.parameters(), 3e-3)
    first = []
    for step in range(100):
        loss = rotation.loss_terms(batch_of(12, seed=step % 5))["rotation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first.append(loss.item())
    assert sum(first[-10:]) < 0.75 * sum(first[:10])
    reference = smooth(12, seed=99)
    error = torch.linspace(-9, 9, 12)
    query = panorama_of(reference, torch.zeros(12, 2), error)
    batch = Batch(query=query, reference=reference, gsd_m=torch.full((12,), 0.8))
    found = rotation.eval().heading_deg(batch, torch.tensor([[0.0, 10.0]]).repeat(12, 1))
    assert (found - error).abs().mean() < 0.65 * error.abs().mean()


# Where it belongs in a training


def test_first_the_network_is_trained_then_all_else() -> None:
    system, rotation = estimator(recipe())
    optimizer = torch.optim.AdamW(system.parameters(), 1e-2, weight_decay=0.1)
    for epoch in range(4):
        system.begin_epoch(epoch)
        system.train()
        before = {name: value.clone() for name, value in system.state_dict().items()}
        loss = sum(system.training_step(batch_of()).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        changed = {name for name, value in system.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all(name.startswith("rotation." if epoch < 2 else "matcher.") for name in changed)
        assert rotation.is_trained == float(epoch >= 2)
        assert system.eval().validation_score(batch_of()).sum() > 0 if epoch >= 2 else True
        assert epoch >= 2 or not system.validation_score(batch_of()).any()


@pytest.mark.parametrize("query", ["panorama", "pinhole"])
@pytest.mark.parametrize("label", ["label", "found"])
def test_with_found_headings_no_label_is_read(query: str, label: str) -> None:
    """What the label says makes a difference exactly where it may."""
    system, _ = estimator(recipe(query, training_heading=label))
    batch = batch_of(query=query)
    losses = []
    for epoch in (0, 2):
        system.begin_epoch(epoch)
        for heading in (batch.heading_deg, torch.full((3,), 77.0), torch.empty(0), torch.full((3,), torch.nan)):
            torch.manual_seed(1)
            told = dataclasses.replace(batch, heading_deg=heading)
            if label == "label" and epoch == 2 and (not len(heading) or heading.isnan().any()):
                continue
            losses.append((epoch, torch.stack([*system.train().training_step(told).values()]).sum().item()))
    for epoch in (0, 2):
        values = {loss for at, loss in losses if at == epoch}
        assert len(values) == (2 if epoch == 2 and label == "label" else 1)
        assert all(map(math.isfinite, values))


def test_found_headings_are_what_the_rest_is_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    system, rotation = estimator(recipe("pinhole", training_heading="found"))
    system.begin_epoch(2)
    told: list[Tensor] = []

    def heading_deg(batch: Batch, prior_B2: Tensor) -> Tensor:
        told.append(prior_B2)
        return torch.tensor([50.0, 60.0, 70.0])

    monkeypatch.setattr(rotation, "heading_deg", heading_deg)
    batch = dataclasses.replace(batch_of(query="pinhole"), heading_prior_deg=torch.tensor([[30.0, 10.0]] * 3))
    torch.manual_seed(1)
    found = system.train().training_step(batch)["weak"]
    assert torch.equal(told[0], batch.heading_prior_deg)
    same, _ = estimator(recipe("pinhole"))
    same.load_state_dict(system.state_dict())
    same.begin_epoch(2)
    labelled = same.train().training_step(dataclasses.replace(batch, heading_deg=torch.tensor([50.0, 60.0, 70.0])))
    assert found == labelled["weak"]


def test_score_maps_without_a_label_are_those_of_the_bearing_found() -> None:
    system, rotation = estimator(recipe())
    nn.init.constant_(rotation.network.out.bias, 0.4)
    system.eval()
    batch = dataclasses.replace(batch_of(), heading_deg=torch.empty(0))
    found = rotation.heading_deg(batch, batch.heading_prior_deg)
    assert (found.abs() > 1).all()
    labelled = system.score_maps(dataclasses.replace(batch, heading_deg=found))
    for own, other in zip(system.score_maps(batch), labelled, strict=True):
        assert torch.equal(own, other)
    known = dataclasses.replace(batch, heading_prior_deg=torch.zeros(3, 2))
    upright = system.score_map(dataclasses.replace(batch, heading_deg=torch.zeros(3)))[0]
    assert torch.allclose(system.score_map(known)[0], upright, atol=1e-5)
    assert torch.allclose(system.localize(batch).yaw_deg_B, found)


def test_a_wide_prior_is_looked_at_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    system, rotation = estimator(recipe())
    told: list[Tensor] = []

    def heading_deg(batch: Batch, prior_B2: Tensor) -> Tensor:
        told.append(prior_B2)
        return prior_B2[:, 0]

    monkeypatch.setattr(rotation, "heading_deg", heading_deg)
    batch = dataclasses.replace(batch_of(1), heading_prior_deg=torch.tensor([[5.0, 30.0]]))
    pose = system.eval().localize(batch)
    assert [prior[0].tolist() for prior in told] == [[-15.0, 10.0], [5.0, 10.0], [25.0, 10.0]]
    assert pose.yaw_deg_B.item() in (-15.0, 5.0, 25.0)
    peaks = [system.score_map(dataclasses.replace(batch, heading_deg=prior[:, 0]))[0].amax() for prior in told]
    assert pose.yaw_deg_B.item() == told[int(torch.stack(peaks).argmax())][0, 0]
    told.clear()
    system.localize(dataclasses.replace(batch, heading_prior_deg=torch.tensor([[5.0, 10.0]])))
    assert len(told) == 1


def test_estimates_stay_within_what_is_known() -> None:
    _, rotation = estimator(recipe(rotation_passes=3))
    nn.init.constant_(rotation.network.out.bias, 5.0)
    found = rotation.heading_deg(batch_of(), torch.tensor([[170.0, 10.0], [175.0, 10.0], [0.0, 2.0]]))
    assert torch.allclose(found, torch.tensor([180.0, -175.0, 2.0]))


@pytest.mark.parametrize(
    ("options", "noise_deg", "words"),
    [
        ({"heading": "guess"}, 10.0, "search, network"),
        ({"rotation_epochs": 0}, 10.0, "rotation_epochs"),
        ({"heading": "search"}, 10.0, "rotation_epochs"),
        ({"heading": "search", "rotation_epochs": 0, "training_heading": "found"}, 10.0, "training_heading"),
        ({}, 0.0, "heading_range_deg"),
        ({}, 180.0, "not above 90"),
        ({"heading_range_deg": 120.0}, 0.0, "at most 90"),
        ({"training_heading": "found", "heading_range_deg": 10.0}, 0.0, "heading_noise_deg"),
        ({"rotation_view": "half"}, 10.0, "place, whole"),
    ],
)
def test_what_does_not_fit_is_told(options: dict[str, Any], noise_deg: float, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        G2SWeakly(recipe(noise_deg=noise_deg, **options))


def test_the_recipe_for_kitti_has_a_network() -> None:
    shipped = load_recipe("g2sweakly-kitti")
    assert shipped.options["heading"] == "network"
    assert 0 < shipped.options["rotation_epochs"] < shipped.optim.epochs


# A training as a whole

TRAINING = {
    "name": "test",
    "system": "g2sweakly",
    "views": {"query_height_px": 64, "query_width_px": 128, "reference_px": 64, "camera_height_m": 2.5},
    "encoder": {"backbone": "cvgl_small_unet", "pretrained": False, "shared": True},
    "augment": {"heading_noise_deg": 10.0},
    "sampler": {"batch_size": 4},
    "optim": {"epochs": 2, "lr": 1e-3, "warmup_epochs": 0.1, "ema_decay": 0.9},
    "loader": {"workers": 0},
    "validation": {"every_n_epochs": 1, "batch_size": 8},
    "options": {
        "lift": "image", "levels": [1], "overhang_share": 0.5, "width": 8, "template_share": 0.5,
        "heading": "network", "rotation_epochs": 1, "training_heading": "found",
    },
}  # fmt: skip


def test_a_training_never_sees_a_heading_and_goes_on_as_if_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, made = toy_dataset(grid=3, test_grid=2), resolve(ModelRecipe, TRAINING, [])
    step, terms = G2SWeakly.training_step, []

    def without_labels(self: G2SWeakly, batch: Batch) -> LossTerms:
        found = step(self, without(batch, "uv", "heading_deg"))
        terms.append(set(found))
        return found

    whole = train(made, data, tmp_path / "whole")
    monkeypatch.setattr(G2SWeakly, "training_step", without_labels)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    scores = [line["validation_score"] for line in lines if "validation_score" in line]
    assert scores[0] == 0 < scores[1]  # weights of the first part are never the best ones
    per_epoch = max(line["step"] for line in lines) // 2
    for stop in (per_epoch - 1, per_epoch + 1):
        terms.clear()
        parts = train(made, data, tmp_path / f"parts{stop}", max_steps=stop)
        torch.rand(3)
        train(made, data, parts)
        assert terms == [{"rotation", "rotation_place"}] * per_epoch + [{"weak"}] * per_epoch
        for name in ("weights", "average"):
            own, other = (load_file(last_checkpoint(run) / f"{name}.safetensors") for run in (parts, whole))
            assert all(torch.equal(own[key], other[key]) for key in other)
