"""GeoDistill: masks, loss and moving average against golden numbers, and what a training step may and may not do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pretended import Unread
from torch import Tensor, nn

from cvgl_data.errors import CheckpointError, RecipeError
from cvgl_models.checkpoint import load_weights, save_weights
from cvgl_models.localization.pose import PosePrediction, wrap_deg
from cvgl_models.recipe import AugmentRecipe, EncoderRecipe, ModelRecipe, ViewRecipe, load_recipe
from cvgl_models.run_folder import BEST, open_run
from cvgl_models.systems import SYSTEMS, LocalizationModule, LossTerms
from cvgl_models.systems.g2sweakly import G2SWeakly
from cvgl_models.systems.geodistill import GeoDistill, Localizer
from cvgl_models.systems.geodistill.distillation import Teacher, distillation_loss
from cvgl_models.systems.geodistill.masking import fov_mask, half_masks
from cvgl_models.systems.geodistill.orientation import Bins
from cvgl_models.transforms import Batch

LOCALIZER = {"lift": "image", "levels": [0, 1], "overhang_share": 0.5, "width": 8}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def base_recipe(**changes: Any) -> ModelRecipe:
    recipe = ModelRecipe(
        name="test",
        system="g2sweakly",
        views=ViewRecipe(query_height_px=64, query_width_px=128, reference_px=64),
        encoder=EncoderRecipe(backbone="cvgl_small_unet", pretrained=False),
        options=LOCALIZER,
    )
    return dataclasses.replace(recipe, **changes)


def recipe_from(run: Path | bool, noise_deg: float = 0.0, **options: Any) -> ModelRecipe:
    base = base_recipe()
    pretrained = str(run) if isinstance(run, Path) else run
    return dataclasses.replace(
        base,
        system="geodistill",
        options={"localizer_options": LOCALIZER, **options},
        encoder=dataclasses.replace(base.encoder, pretrained=pretrained),
        augment=AugmentRecipe(heading_noise_deg=noise_deg),
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of a localizer."""
    folder = tmp_path / "run"
    open_run(folder, base_recipe(), {}, overwrite=False)
    save_weights(folder / BEST, G2SWeakly(base_recipe()), {})
    return folder


def batch_of(size: int = 3, noise_deg: float = 0.0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        query=torch.rand(size, 3, 64, 128, generator=generator),
        reference=torch.rand(size, 3, 64, 64, generator=generator),
        heading_deg=(torch.rand(size, generator=generator) * 2 - 1) * noise_deg,
        heading_prior_deg=torch.tensor([[0.0, noise_deg]]).expand(size, 2),
        gsd_m=torch.full((size,), 0.8),
    )


# Masks


@pytest.mark.parametrize(("kept", "columns"), [(180, 320), (239, 215), (360, 0)])
def test_golden_columns_of_a_gap(kept: int, columns: int) -> None:
    mask = fov_mask(50, 640, (kept, kept + 1e-3))
    assert mask.shape == (50, 1, 1, 640)
    assert (mask == 0).sum((1, 2, 3)).tolist() == [columns] * 50


@pytest.mark.parametrize("wraps", [True, False])
def test_golden_share_of_what_is_hidden(wraps: bool) -> None:
    mask = fov_mask(4000, 640, (180.0, 240.0), wraps=wraps)
    hidden = (mask == 0).sum((1, 2, 3))
    assert hidden.min() >= 215
    assert hidden.max() <= 320
    assert (mask == 0).float().mean() == pytest.approx(0.418, abs=0.01)


def test_a_gap_is_one_piece_and_runs_round_the_seam_only_where_it_may() -> None:
    around = fov_mask(500, 128, (180.0, 240.0))[:, 0, 0]
    inside = fov_mask(500, 128, (180.0, 240.0), wraps=False)[:, 0, 0]
    for mask in (around, inside):
        edges = (mask != mask.roll(1, -1)).sum(1)
        assert set(edges.tolist()) == {2}
    at_seam = (around[:, 0] == 0) & (around[:, -1] == 0)
    assert 0.2 < at_seam.float().mean() < 0.6  # 0.41 of all places of a gap
    assert not ((inside[:, 0] == 0) & (inside[:, -1] == 0)).any()
    assert (around == 0).float().mean(0).std() < 0.04  # every column is hidden as often
    assert (inside[:, 0] == 0).any()
    assert (inside[:, -1] == 0).any()


def test_halves_make_a_whole() -> None:
    left, right = half_masks(2, 8)
    assert torch.equal(left + right, torch.ones(2, 1, 1, 8))
    assert left[0, 0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


# Distillation


def test_golden_distillation() -> None:
    scores = torch.tensor([[[0.9, 0.5], [0.1, -0.2]]])
    share = (scores.flatten(1) / 0.06).softmax(1)[0]
    assert share.tolist() == pytest.approx([0.998727, 1.27101e-3, 1.61754e-6, 1.0899e-8], rel=1e-4)
    assert distillation_loss(scores, scores, 0.06, 0.06).item() == pytest.approx(0.0097686, abs=1e-6)


def test_no_gradient_reaches_the_teacher_nor_a_student_that_agrees() -> None:
    teacher = torch.randn(2, 5, 5, requires_grad=True)
    student = teacher.detach().clone().requires_grad_()
    distillation_loss(student, teacher, 0.06, 0.06).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5
    other = torch.randn(2, 5, 5, requires_grad=True)
    distillation_loss(other, teacher, 0.06, 0.06).backward()
    assert other.grad is not None
    assert other.grad.abs().max() > 1e-2


def test_a_cold_teacher_points_at_its_peak() -> None:
    teacher, student = torch.randn(1, 4, 4), torch.randn(1, 4, 4)
    loss = distillation_loss(student, teacher, 0.5, 1e-4)
    log = (student.flatten() / 0.5).log_softmax(0)
    assert loss == pytest.approx(-log[teacher.argmax()].item(), rel=1e-5)


def test_places_that_are_ruled_out_do_not_spoil_the_loss() -> None:
    teacher, student = torch.randn(1, 4, 4), torch.randn(1, 4, 4)
    teacher[0, 0], student[0, 0] = -torch.inf, -torch.inf
    expected = distillation_loss(student[:, 1:], teacher[:, 1:], 0.1, 0.1)
    assert distillation_loss(student, teacher, 0.1, 0.1) == pytest.approx(expected.item(), rel=1e-5)


# Teacher


class _Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def test_golden_moving_average_of_a_constant_student() -> None:
    student = _Student()
    teacher = Teacher(student, 0.9, 1)
    student.weight.data.fill_(1.0)
    student.count.fill_(7)
    for _ in range(20):
        teacher.follow(student)
    assert teacher.model.weight[0].item() == pytest.approx(0.8784233, abs=1e-6)
    assert teacher.model.count == 7
    assert not teacher.model.weight.requires_grad
    assert teacher.model.frozen is student.frozen
    assert not teacher.train().model.training


def test_it_follows_after_every_so_many_steps_even_if_the_training_is_resumed() -> None:
    student = _Student()
    teacher = Teacher(student, 0.5, 3)
    student.weight.data.fill_(1.0)
    seen = []
    for step in range(6):
        if step == 4:
            resumed = Teacher(student, 0.5, 3)
            resumed.load_state_dict(teacher.state_dict())
            teacher = resumed
        teacher.follow(student)
        seen.append(teacher.model.weight[0].item())
    assert seen == [0.0, 0.0, 0.5, 0.5, 0.5, 0.75]


# The system


def test_it_begins_with_the_weights_of_a_run(run: Path) -> None:
    system, trained = GeoDistill(recipe_from(run)), G2SWeakly(base_recipe())
    load_weights(run / BEST, trained)
    for model in (system.student, system.teacher.model):
        for own, other in zip(model.parameters(), trained.parameters(), strict=True):
            assert torch.equal(own, other)
    of_file = GeoDistill(recipe_from(run / BEST))
    assert torch.equal(next(of_file.student.parameters()), next(trained.parameters()))


def test_a_step_trains_the_student_alone_and_the_teacher_follows(run: Path) -> None:
    system = GeoDistill(recipe_from(run, momentum=0.9))
    optimizer = torch.optim.SGD([each for each in system.parameters() if each.requires_grad], 0.1)
    before = [each.clone() for each in system.teacher.model.parameters()]
    for step in range(2):
        system.train()
        terms = system.training_step(batch_of())  # it has no positions
        assert set(terms) == {"distillation"}
        if step:
            break
        terms["distillation"].backward()
        optimizer.step()
    assert all(each.grad is None for each in system.teacher.parameters())
    students = list(system.student.parameters())
    assert any(each.grad is not None and each.grad.abs().max() > 0 for each in students)
    for was, own, new in zip(before, system.teacher.model.parameters(), students, strict=True):
        assert torch.allclose(own, 0.9 * was + 0.1 * new, atol=1e-6)


def test_normalization_keeps_its_statistics(run: Path) -> None:
    system = GeoDistill(recipe_from(run)).train()
    buffers = [each.clone() for each in system.student.buffers()]
    system.training_step(batch_of())["distillation"].backward()
    assert all(torch.equal(was, now) for was, now in zip(buffers, system.student.buffers(), strict=True))
    assert not any(module.training for module in system.teacher.modules())


def test_without_a_gap_student_and_teacher_agree(run: Path) -> None:
    system = GeoDistill(recipe_from(run, kept_fov_deg=[359.9999, 360.0])).train()
    hidden_columns = torch.tensor(1 / 360 * 128).round()
    assert hidden_columns == 0
    system.training_step(batch_of())["distillation"].backward()
    gradient = torch.cat([each.grad.flatten() for each in system.student.parameters() if each.grad is not None])
    masked = GeoDistill(recipe_from(run)).train()
    masked.training_step(batch_of())["distillation"].backward()
    other = torch.cat([each.grad.flatten() for each in masked.student.parameters() if each.grad is not None])
    assert gradient.norm() < 1e-3 * other.norm()


def test_prediction_and_selection_need_no_labels(run: Path) -> None:
    blank = dataclasses.replace(batch_of(), heading_deg=torch.empty(0))
    for who in ("teacher", "student"):
        system = GeoDistill(recipe_from(run, predict_with=who)).eval()
        assert not system.selects_by_labels
        assert system.localize(blank).xy_m_B2.isfinite().all()
        score = system.validation_score(blank)
        assert score.shape == (3,)
        assert 0 <= score.min() <= score.max() <= 1


def test_agreement_is_one_where_nothing_is_hidden(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = GeoDistill(recipe_from(run)).eval()
    whole = torch.ones(3, 1, 1, 128)
    monkeypatch.setattr("cvgl_models.systems.geodistill.half_masks", lambda *_: (whole, whole))
    assert system.validation_score(batch_of()).tolist() == [1.0, 1.0, 1.0]


class _Peak(LocalizationModule):
    """A localizer of somebody else: scores are a weight times what is seen of each column."""

    def __init__(self, recipe: ModelRecipe) -> None:
        super().__init__()
        del recipe
        self.weight = nn.Parameter(torch.tensor(2.0))

    def training_step(self, batch: Batch) -> LossTerms:
        return {"nothing": self.weight * batch.query.mean()}

    def score_map(self, batch: Batch, query_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen = batch.query.mean(1)
        return self.weight * (seen if query_mask is None else seen * query_mask[:, 0]), batch.gsd_m

    def localize(self, batch: Batch) -> PosePrediction:
        return PosePrediction.of_scores(*self.score_map(batch))


class _Mute(_Peak):
    score_map = None


def test_any_localizer_with_a_score_map_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"peak": _Peak, "mute": _Mute, "g2sweakly": G2SWeakly}
    monkeypatch.setattr(type(SYSTEMS), "load", lambda self, name: made[name])
    weights = tmp_path / "peak.safetensors"
    save_weights(weights, _Peak(base_recipe()), {})
    system = GeoDistill(dataclasses.replace(recipe_from(weights), options={"localizer": "peak"})).train()
    assert isinstance(system.student, Localizer)
    system.training_step(batch_of())["distillation"].backward()
    assert system.student.weight.grad.abs() > 0
    assert system.validation_score(batch_of()).shape == (3,)
    with pytest.raises(RecipeError, match="no score_map"):
        GeoDistill(dataclasses.replace(recipe_from(weights), options={"localizer": "mute"}))


def test_what_it_cannot_begin_with_is_refused(run: Path) -> None:
    with pytest.raises(RecipeError, match=r"encoder\.pretrained to its run folder"):
        GeoDistill(recipe_from(True))
    with pytest.raises(RecipeError, match="begins with a trained localizer"):
        GeoDistill(recipe_from(False)).training_step(batch_of())
    with pytest.raises(CheckpointError, match="nowhere"):
        GeoDistill(recipe_from(run.parent / "nowhere"))
    with pytest.raises(RecipeError, match="localizer_options"):
        GeoDistill(recipe_from(run, localizer_options={**LOCALIZER, "template_share": 0.3}))
    other = recipe_from(run)
    other = dataclasses.replace(other, views=dataclasses.replace(other.views, camera_height_m=2.0))
    with pytest.raises(RecipeError, match="views"):
        GeoDistill(other)
    for options, message in (
        ({"kept_fov_deg": [240.0, 180.0]}, "kept_fov_deg"),
        ({"heading": "stars"}, "heading"),
        ({"heading": "network"}, "heading_noise_deg"),
        ({"momentum": 1.0}, "momentum"),
    ):
        with pytest.raises(RecipeError, match=message):
            GeoDistill(recipe_from(run, **options))


def test_weights_of_a_finished_run_load_without_the_run_it_began_with(run: Path, tmp_path: Path) -> None:
    trained = GeoDistill(recipe_from(run))
    save_weights(tmp_path / "own.safetensors", trained, {})
    again = GeoDistill(recipe_from(False)).eval()
    load_weights(tmp_path / "own.safetensors", again)
    one, other = (each.eval().localize(batch_of()).xy_m_B2 for each in (trained, again))
    assert torch.equal(one, other)


# Heading


@pytest.mark.parametrize("half_width_deg", [45.0, 180.0])
def test_a_perfect_classifier_decodes_without_bias(half_width_deg: float) -> None:
    bins = Bins(round(2 * half_width_deg), half_width_deg)
    angle = torch.linspace(-half_width_deg, half_width_deg, 4001)[1:-1]
    one_hot = nn.functional.one_hot(bins.soft_labels(angle).argmax(1), bins.count).float() * 100
    error = wrap_deg(bins.decode(one_hot) - angle)
    assert error.abs().mean() <= 0.26
    assert error.mean().abs() < 0.01
    soft = wrap_deg(bins.decode(bins.soft_labels(angle).log()) - angle)
    inside = slice(None) if half_width_deg == 180 else slice(150, -150)
    assert soft[inside].abs().mean() < 0.12
    assert soft[inside].mean().abs() < 0.01


def test_the_published_decoding_is_a_degree_off() -> None:
    angle = torch.linspace(-45, 45, 9001)[:-1]
    label = ((angle + 45) / 90 * 89).floor()
    assert (label - 45 - angle).mean() == pytest.approx(-1.0, abs=0.01)


@given(st.floats(-179.999, 180.0, allow_nan=False))
def test_labels_run_round_the_ring(angle_deg: float) -> None:
    bins = Bins(72, 180.0)
    labels = bins.soft_labels(torch.tensor([angle_deg]))
    assert labels.sum().item() == pytest.approx(1, abs=1e-5)
    turned = bins.soft_labels(torch.tensor([angle_deg + 5.0]))
    assert torch.allclose(labels.roll(1, 1), turned, atol=1e-3)
    assert wrap_deg(bins.decode(labels.log()) - angle_deg).abs() < 0.6


def test_a_network_learns_and_tells_the_heading(run: Path) -> None:
    options = {"heading": "network", "heading_backbone": "cvgl_small_pyramid", "heading_hidden": 32}
    system = GeoDistill(recipe_from(run, noise_deg=45.0, **options)).train()
    batch = batch_of(4, noise_deg=45.0)
    optimizer = torch.optim.Adam([each for each in system.parameters() if each.requires_grad], 3e-3)
    first = None
    for _ in range(16):
        terms = system.training_step(batch)
        assert set(terms) == {"distillation", "heading"}
        first = first or terms["heading"].item()
        optimizer.zero_grad()
        terms["heading"].backward()
        optimizer.step()
    assert (
        terms["heading"] < 0.9 * first
    )  # soft labels have an entropy of 1.4, so there is not much more to learn in a few steps
    blank = dataclasses.replace(batch, heading_deg=torch.empty(0))
    pose = system.eval().localize(blank)
    assert pose.yaw_deg_B.abs().max() <= 45
    assert len(set(pose.yaw_deg_B.tolist())) > 1


@pytest.mark.parametrize(
    ("name", "begins_with"),
    [
        ("geodistill-smoke", "g2sweakly-smoke"),
        ("geodistill-simulated", "g2sweakly-simulated"),
        ("geodistill-vigor", "g2sweakly-vigor"),
        ("geodistill-vigor-dino", "g2sweakly-vigor-dino"),
        ("geodistill-kitti", "g2sweakly-kitti"),
        ("geodistill-ccvpe-smoke", "ccvpe-smoke"),
        ("geodistill-ccvpe-simulated", "ccvpe-simulated"),
    ],
)
def test_shipped_recipes_fit_what_they_begin_with(name: str, begins_with: str) -> None:
    shipped, inner = load_recipe(name), load_recipe(begins_with)
    assert shipped.encoder.pretrained == f"runs/{begins_with}"
    assert shipped.options["localizer"] == inner.system
    assert shipped.options["localizer_options"] == inner.options
    assert shipped.views == inner.views
    assert dataclasses.replace(shipped.encoder, pretrained=inner.encoder.pretrained) == inner.encoder
    assert shipped.augment == inner.augment


@pytest.mark.parametrize("name", ["geodistill-smoke", "geodistill-ccvpe-smoke"])
def test_shipped_systems_can_be_distilled(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["encoder.pretrained=false"])
    weights = tmp_path / "start.safetensors"
    save_weights(weights, GeoDistill(recipe).student, {})
    start = dataclasses.replace(recipe.encoder, pretrained=str(weights))
    system = GeoDistill(dataclasses.replace(recipe, encoder=start)).train()
    height, width = recipe.views.query_size_px
    side = recipe.views.reference_px
    batch = Batch(
        query=torch.rand(2, 3, height, width),
        reference=torch.rand(2, 3, side, side),
        heading_deg=torch.zeros(2),
        heading_prior_deg=torch.zeros(2, 2),
        gsd_m=torch.full((2,), 0.8),
    )
    system.training_step(batch)["distillation"].backward()
    assert any(each.grad is not None and each.grad.abs().max() > 0 for each in system.student.parameters())
    system.eval()
    blank = dataclasses.replace(batch, heading_deg=torch.empty(0))
    assert system.localize(blank).xy_m_B2.isfinite().all()
    assert system.validation_score(blank).isfinite().all()


def test_a_training_step_never_waits_for_the_device(run: Path) -> None:
    options = {"heading": "network", "heading_backbone": "cvgl_small_pyramid", "heading_hidden": 32}
    system = GeoDistill(recipe_from(run, noise_deg=45.0, **options)).train()
    batch = batch_of(3, noise_deg=45.0)
    with Unread():
        sum(system.training_step(batch).values()).backward()


def test_teacher_and_student_look_the_same_way(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bearing is settled once, by the teacher, from the whole view."""
    system, batch = GeoDistill(recipe_from(run, noise_deg=30.0)).train(), batch_of(3, noise_deg=30.0)
    told: list[tuple[bool, torch.Tensor]] = []
    for kind, module in (("teacher", system.teacher.model), ("student", system.student)):
        whole = module.score_maps

        def score_maps(given: Batch, mask: Any = None, kind: str = kind, whole: Any = whole) -> Any:
            told.append((kind == "teacher", given.heading_prior_deg))
            return whole(given, mask)

        monkeypatch.setattr(module, "score_maps", score_maps)
    system.training_step(batch)
    assert [is_teacher for is_teacher, _ in told] == [True, False]
    assert torch.equal(told[0][1], told[1][1])
    assert torch.equal(told[0][1][:, 0], batch.heading_deg)  # the label, where it may be read
    assert not told[0][1][:, 1].any()
