"""G2SWeakly: losses against golden numbers, decoding without bias, and a flat world in which it must find itself."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from pretended import Unread
from torch import Tensor, nn
from torch.nn import functional as F

from cvgl_data.errors import RecipeError, UnknownNameError
from cvgl_data.recipe import shipped_recipes
from cvgl_models.backbones.dense import DenseEncoder
from cvgl_models.backbones.dpt import DinoDpt
from cvgl_models.backbones.unet import SmallUNet, VggUNet
from cvgl_models.localization.pose import PosePrediction, wrap_deg, xy_m_from_uv
from cvgl_models.recipe import AugmentRecipe, EncoderRecipe, ModelRecipe, ViewRecipe, load_recipe
from cvgl_models.systems.g2sweakly import G2SWeakly, _top_of_parabola
from cvgl_models.systems.g2sweakly.losses import (
    exact_position_loss,
    noisy_position_loss,
    radius_cells,
    weak_metric_loss,
)
from cvgl_models.systems.g2sweakly.network import Grid, GroundMatcher, Templates
from cvgl_models.transforms import Batch

DISTANCES = torch.tensor([[0.2, 0.9, 1.1], [1.0, 0.3, 0.8], [1.2, 0.7, 0.1]])
HEIGHT_M = 2.5


def recipe(reference_px: int = 64, query: str = "panorama", shared: bool = True, **options: Any) -> ModelRecipe:
    return ModelRecipe(
        name="test",
        system="g2sweakly",
        views=ViewRecipe(query=query, query_height_px=64, query_width_px=128, reference_px=reference_px),
        encoder=EncoderRecipe(backbone="cvgl_small_unet", pretrained=False, shared=shared),
        options={"lift": "image", "levels": [1], "overhang_share": 0.5, "width": 8, **options},
    )


def batch_of(size: int, side: int = 64, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        query=torch.rand(size, 3, 64, 128, generator=generator),
        reference=torch.rand(size, 3, side, side, generator=generator),
        uv=torch.rand(size, 2, generator=generator) * side,
        heading_deg=torch.zeros(size),
        gsd_m=torch.full((size,), 0.8),
    )


# Losses


def test_golden_weak_loss() -> None:
    assert weak_metric_loss(DISTANCES, count_diagonal=True).item() == pytest.approx(0.34843260, abs=1e-7)
    assert weak_metric_loss(DISTANCES).item() == pytest.approx(0.00185901, abs=1e-8)


def test_weak_loss_both_ways_is_the_mean_with_the_transpose() -> None:
    both = weak_metric_loss(DISTANCES, both_ways=True)
    assert both == pytest.approx((weak_metric_loss(DISTANCES) + weak_metric_loss(DISTANCES.T)).item() / 2)
    assert weak_metric_loss(DISTANCES) != weak_metric_loss(DISTANCES.T)


def test_what_is_ignored_is_no_negative() -> None:
    ignore = torch.zeros(3, 3, dtype=torch.bool)
    ignore[1, 0] = True  # reference 0 covers query 1 too
    kept = [
        math.log1p(math.exp(10 * (float(DISTANCES[m, m]) - float(DISTANCES[m, n]))))
        for m, n in itertools.permutations(range(3), 2)
        if (n, m) != (1, 0)
    ]
    assert weak_metric_loss(DISTANCES, ignore_NM=ignore) == pytest.approx(sum(kept) / 5)
    assert weak_metric_loss(DISTANCES, ignore_NM=torch.ones(3, 3, dtype=torch.bool)) == 0


def test_weak_loss_has_finite_gradients_at_any_distance() -> None:
    distance = torch.tensor([[4.0, 0.0], [0.0, 4.0]], requires_grad=True)
    weak_metric_loss(distance, sharpness=100.0).backward()
    assert distance.grad is not None
    assert distance.grad.isfinite().all()


@pytest.mark.parametrize(
    ("cells_m", "golden"),
    [
        (0.141560, [5, 9, 18, 36]),  # New York, at a quarter more than the native scale
        (0.126021, [5, 10, 20, 40]),  # Seattle
        (0.1958285, [4, 7, 13, 26]),  # KITTI
    ],
)
def test_golden_radii_of_noisy_positions(cells_m: float, golden: list[int]) -> None:
    cell_size_m = cells_m * torch.tensor([8.0, 4.0, 2.0, 1.0])
    assert radius_cells(5.0, cell_size_m).tolist() == golden


def test_noisy_position_loss_is_the_gap_to_the_window() -> None:
    distance = torch.full((2, 9, 9), 2.0)
    distance[:, 1, 1], distance[:, 6, 6] = 0.2, 0.5
    near = noisy_position_loss(distance, torch.tensor([[1.0, 2.0], [5.0, 7.0]]), torch.tensor([1.0, 1.0]))
    assert near == pytest.approx((0.0 + 0.3) / 2)
    assert noisy_position_loss(distance, torch.tensor([[40.0, 0.0]] * 2), torch.ones(2)) == pytest.approx(1.8)


def test_exact_position_loss_is_the_mean_over_all_other_places() -> None:
    torch.manual_seed(0)
    distance = torch.rand(2, 4, 4)
    rows, columns = (1, 3), (2, 0)
    total = 0.0
    for index in range(2):
        true = distance[index, rows[index], columns[index]]
        terms = F.softplus(10 * (true - distance[index]))
        terms[rows[index], columns[index]] = 0
        total += float(terms.sum()) / 15
    index_B2 = torch.tensor([[2.3, 0.9], [-5.0, 3.0]])
    assert exact_position_loss(distance, index_B2) == pytest.approx(total / 2)


# Places


@pytest.mark.parametrize(
    ("reference", "template"), [(64, 24), (65, 25), (128, 50), (78, 38), (179, 89), (155, 77), (33, 33)]
)
@pytest.mark.parametrize("overhang", [0.0, 0.25, 0.5])
def test_perfect_features_decode_to_exactly_zero(reference: int, template: int, overhang: float) -> None:
    grid = Grid(reference, template, min(int(template * overhang), template - 1))
    torch.manual_seed(0)
    top = (reference - template) // 2
    maps = torch.randn(1, 4, reference, reference)
    found = cosines(grid, maps, maps[:, :, top : top + template, top : top + template])
    assert found.shape[-1] == grid.places
    pose = PosePrediction.of_scores(found * 1e3, torch.tensor([0.7]), origin=(grid.origin, grid.origin))
    nearest = torch.round(pose.xy_m_B2 / 0.7)
    assert torch.equal(nearest, torch.zeros(1, 2))
    assert grid.origin == int(grid.origin)


@pytest.mark.parametrize("size", [(15, 7), (16, 8)])
def test_a_symmetric_peak_decodes_to_exactly_zero_and_shifts_by_cells(size: tuple[int, int]) -> None:
    grid = Grid(size[0], size[1], 2)
    offset = torch.arange(grid.places) - grid.origin
    for right, down in ((0, 0), (2, -1)):
        score = -((offset[None, :] - right).square() + (offset[:, None] - down).square())
        pose = PosePrediction.of_scores(score[None], torch.tensor([0.5]), origin=(grid.origin, grid.origin))
        assert pose.xy_m_B2.tolist() == [[right * 0.5, down * 0.5]]


@pytest.mark.parametrize("reference", range(16, 34))
def test_the_template_of_a_share_has_a_whole_origin(reference: int) -> None:
    for part, overhang in itertools.product((0.2, 0.4, 0.47, 1.0), (0.0, 0.5)):
        grid = Grid.of(reference, part, overhang)
        assert grid.origin == int(grid.origin)
        assert abs(grid.template - part * reference) <= 1
        if overhang and part < 1:
            assert grid.places >= reference  # every cell of the reference is a place


def cosines(grid: Grid, reference: Tensor, template: Tensor) -> Tensor:
    matcher = GroundMatcher.__new__(GroundMatcher)
    nn.Module.__init__(matcher)
    matcher.grids = [grid]
    return matcher.cosines(reference, Templates(template, None), 0, paired=True)


# A flat world: the panorama is made of the reference, so the place and the heading are known to a fraction of a cell


def test_it_finds_place_and_heading_in_a_flat_world(monkeypatch: pytest.MonkeyPatch) -> None:
    system, batch, place_m, heading = flat_world(monkeypatch)
    known = dataclasses.replace(batch, heading_prior_deg=torch.stack([heading, torch.zeros(4)], 1))
    pose = system.localize(known)
    assert torch.equal(pose.yaw_deg_B, heading)
    assert (pose.xy_m_B2 - place_m).norm(dim=1).max() < 0.25
    assert pose.origin == (32, 32)
    searched = system.localize(dataclasses.replace(batch, heading_prior_deg=torch.tensor([[0.0, 180.0]] * 4)))
    assert wrap_deg(searched.yaw_deg_B - heading).abs().max() < 1.5
    assert (searched.xy_m_B2 - place_m).norm(dim=1).max() < 0.4
    near = torch.stack([heading + 12, torch.full((4,), 20.0)], 1)
    searched = system.localize(dataclasses.replace(batch, heading_prior_deg=near))
    assert wrap_deg(searched.yaw_deg_B - heading).abs().max() < 1.5
    score = system.validation_score(known)
    assert score.shape == (4,)
    assert score.min() > 0.9
    wrong = torch.stack([heading + 60, torch.zeros(4)], 1)
    assert system.validation_score(dataclasses.replace(batch, heading_prior_deg=wrong)).mean() < score.mean() - 0.2


def test_the_mask_hides_what_it_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    system, batch, place_m, heading = flat_world(monkeypatch)
    batch = dataclasses.replace(batch, heading_deg=heading)
    mask = torch.ones(4, 1, 1, 128)
    mask[..., 20:60] = 0
    spoilt = dataclasses.replace(batch, query=torch.where(mask > 0, batch.query, 1 - batch.query.flip(-2)))
    plain, cell_m = system.score_map(batch, mask)
    masked, _ = system.score_map(spoilt, mask)
    assert torch.equal(cell_m, batch.gsd_m * 1.0)
    assert (plain - masked).abs().max() < 0.2  # only cells on the mask's edge see anything of it
    assert (plain - system.score_map(spoilt)[0]).abs().max() > 0.3
    pose = PosePrediction.of_scores(masked, cell_m)
    assert (pose.xy_m_B2 - place_m).norm(dim=1).max() < 0.4


def flat_world(monkeypatch: pytest.MonkeyPatch) -> tuple[G2SWeakly, Batch, Tensor, Tensor]:
    """Four references of smooth noise at 0.8 m per pixel and what a camera sees of them, with colors for features."""
    monkeypatch.setattr(DenseEncoder, "forward", lambda self, images: ([images - images.mean()], [None]))
    system = G2SWeakly(recipe(levels=[2])).eval()
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(4, 3, 24, 24, generator=generator)
    reference = F.interpolate(coarse, size=64, mode="bicubic", align_corners=False).clamp(0, 1)
    heading = torch.tensor([0.0, 35.0, -130.0, 171.0])
    uv = torch.tensor([[32.0, 32.0], [20.3, 40.7], [45.2, 18.9], [33.3, 27.1]])
    gsd_m = torch.full((4,), 0.8)
    place_m = xy_m_from_uv(uv, gsd_m, 64)
    rows, columns = torch.arange(64) + 0.5, torch.arange(128) + 0.5
    down = (rows / 64 - 0.5).clamp(min=0.5 / 64) * math.pi
    away_m = HEIGHT_M / down.tan()
    bearing = ((columns / 128 - 0.5) * 2 * math.pi)[None] + heading.deg2rad()[:, None]
    right_m = place_m[:, :1, None] + away_m[None, :, None] * bearing.sin()[:, None, :]
    down_m = place_m[:, 1:, None] - away_m[None, :, None] * bearing.cos()[:, None, :]
    grid = torch.stack([right_m, down_m], -1) / (0.8 * 32)
    query = F.grid_sample(reference, grid, padding_mode="border", align_corners=False)
    batch = Batch(query=query, reference=reference, heading_deg=torch.empty(0), uv=torch.empty(0), gsd_m=gsd_m)
    return system, batch, place_m, heading


def test_the_parabola_through_three_values() -> None:
    values = -(torch.arange(7.0)[:, None] - torch.tensor([2.3, 4.0, 5.4])).square()
    assert torch.allclose(_top_of_parabola(values), torch.tensor([2.3, 4.0, 5.4]), atol=1e-5)
    assert _top_of_parabola(torch.zeros(5, 1)).isfinite().all()


# Training


def test_without_positions_none_is_read() -> None:
    torch.manual_seed(0)
    system, batch = G2SWeakly(recipe()), batch_of(3)
    assert not system.selects_by_labels
    losses = []
    for uv in (batch.uv, torch.empty(0), torch.full((3, 2), torch.nan)):
        terms = system.training_step(dataclasses.replace(batch, uv=uv))
        assert set(terms) == {"weak"}
        losses.append(terms["weak"].item())
    assert len(set(losses)) == 1
    system.eval()
    blank = dataclasses.replace(batch, uv=torch.empty(0), heading_deg=torch.empty(0))
    assert system.localize(blank).xy_m_B2.isfinite().all()
    assert system.validation_score(blank).isfinite().all()


@pytest.mark.parametrize("positions", ["noisy", "exact"])
def test_positions_are_read_if_the_recipe_says_so(positions: str) -> None:
    torch.manual_seed(0)
    system, batch = G2SWeakly(recipe(positions=positions, levels=[0, 1])), batch_of(3)
    assert system.selects_by_labels
    terms = system.training_step(batch)
    assert set(terms) == {"weak", "position"}
    other = system.training_step(dataclasses.replace(batch, uv=64 - batch.uv))
    assert terms["position"] != other["position"]
    alone = G2SWeakly(recipe(positions=positions, weak_weight=0.0))
    assert set(alone.training_step(batch)) == {"position"}


def test_it_learns_to_tell_places_apart_without_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    _, batch, _, heading = flat_world(monkeypatch)
    monkeypatch.undo()
    torch.manual_seed(0)
    system = G2SWeakly(recipe(levels=[1]))
    optimizer = torch.optim.Adam(system.parameters(), 3e-3)
    batch = dataclasses.replace(batch, heading_deg=heading)
    losses = []
    for _ in range(8):
        loss = system.training_step(batch)["weak"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in system.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("positions", ["none", "noisy", "exact"])
def test_a_training_step_never_waits_for_the_device(positions: str) -> None:
    system, batch = G2SWeakly(recipe(positions=positions, confidence=True)), batch_of(3)
    with Unread():
        sum(system.training_step(batch).values()).backward()
    with pytest.raises(AssertionError, match="waits"), Unread():
        batch.uv.sum().item()


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_step_of_the_network_for_headings_does_not_either(epoch: int) -> None:
    camera = torch.tensor([[70.0, 0.0, 64.0], [0.0, 70.0, 32.0], [0.0, 0.0, 1.0]]).expand(3, 3, 3)
    network = {"heading": "network", "rotation_epochs": 1, "training_heading": "found"}
    noisy = AugmentRecipe(heading_noise_deg=10.0)
    system = G2SWeakly(dataclasses.replace(recipe(query="pinhole", **network), augment=noisy))
    system.begin_epoch(epoch)
    with Unread():
        sum(system.train().training_step(dataclasses.replace(batch_of(3), camera_B33=camera)).values()).backward()


def test_a_pinhole_camera_is_seen_as_far_as_it_reaches() -> None:
    camera = torch.tensor([[70.0, 0.0, 64.0], [0.0, 70.0, 32.0], [0.0, 0.0, 1.0]]).expand(3, 3, 3)
    batch = dataclasses.replace(batch_of(3), camera_B33=camera, heading_deg=torch.tensor([0.0, 90.0, 180.0]))
    for lift in ("image", "features"):
        system = G2SWeakly(recipe(query="pinhole", lift=lift))
        assert system.training_step(batch)["weak"].isfinite()
        _, encoded = system.matcher.encode(batch)
        weights = system.matcher.templates(batch, encoded, batch.heading_deg)[0].weights_NSS
        assert weights is not None
        half = weights.shape[-1] // 2
        assert weights[0, :half].sum() > 0 == weights[0, half:].sum()  # ahead is up
        assert weights[1, :, half:].sum() > 0 == weights[1, :, :half].sum()  # to the right
        assert weights[2, half:].sum() > 0 == weights[2, :half].sum()  # down


def test_cells_are_exact_whatever_the_encoder_makes_of_the_view() -> None:
    system = G2SWeakly(recipe(reference_px=64))
    gsd_m = torch.tensor([0.5, 0.6])
    assert torch.equal(system.matcher.cell_size_m(gsd_m, 64, 0), gsd_m * 2)
    [grid] = system.matcher.grids
    assert (grid.reference, grid.template, grid.padding) == (32, 12, 6)
    assert system.matcher.ground_px == 24


# Recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": []}, "levels"),
        ({"levels": [1, 0]}, "coarsest first"),
        ({"levels": [7]}, "levels 0 to 2"),
        ({"lift": "sky"}, "lift"),
        ({"overhang_share": 0.6}, "overhang_share"),
        ({"weak_weight": 0.0}, "no positions"),
        ({"template_shere": 0.3}, "template_shere"),
        ({"lift": "features"}, "encoder.shared"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        G2SWeakly(recipe(**changes))


def test_other_views_and_encoders_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"views\.query"):
        G2SWeakly(recipe(query="bev"))
    with pytest.raises(UnknownNameError, match="cvgl_small_unet"):
        DenseEncoder("cvgl_smal_unet", [0])


@pytest.mark.parametrize("name", [name for name in shipped_recipes("models") if name.startswith("g2sweakly-")])
def test_shipped_recipes_fit_together(name: str) -> None:
    shipped = load_recipe(name, ["encoder.pretrained=false"])
    with torch.device("meta"):  # the published sizes: large networks without their weights
        system = G2SWeakly(shipped)
    assert not system.selects_by_labels
    assert all(grid.origin == int(grid.origin) for grid in system.matcher.grids)
    published = {"g2sweakly-vigor": [128], "g2sweakly-kitti": [128], "g2sweakly-vigor-dino": [74, 296]}
    cells = [grid.reference for grid in system.matcher.grids]
    assert cells == published.get(name, cells)


# Encoders


def test_levels_of_the_encoders() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 56, 112)
    assert [tuple(each.shape) for each in VggUNet()(image)] == [
        (1, 256, 7, 14),
        (1, 64, 14, 28),
        (1, 16, 28, 56),
        (1, 4, 56, 112),
    ]
    assert [tuple(each.shape) for each in SmallUNet(levels=[0, 1])(image)] == [(1, 16, 14, 28), (1, 16, 28, 56)]
    dino = DinoDpt("dinov2_dpt_small", width=16)
    assert [tuple(each.shape) for each in dino(image)] == [(1, 256, 8, 16), (1, 64, 16, 32), (1, 16, 32, 64)]
    assert [each.shape[-1] for each in dino(torch.rand(1, 3, 100, 100))] == [14, 28, 56]  # 98 px, nothing is black


@pytest.mark.parametrize("name", ["vgg16_unet", "cvgl_small_unet", "dinov2_dpt_small"])
@pytest.mark.parametrize("side", [28, 45, 50])
def test_cells_are_foretold(name: str, side: int) -> None:
    encoder = DenseEncoder(name, [0, 1, 2], width=16).eval()
    maps, _ = encoder(torch.rand(1, 3, side, 2 * side))
    assert [each.shape[-2] for each in maps] == encoder.cells(side)
    assert [each.shape[-1] for each in maps] == encoder.cells(2 * side)


def test_the_vit_is_never_trained() -> None:
    dino = DinoDpt("dinov2_dpt_small", width=16, levels=[0]).train()
    assert not any(module.training for module in dino.vit.modules())
    dino(torch.rand(1, 3, 28, 28))[0].sum().backward()
    assert all(parameter.grad is None for parameter in dino.vit.parameters())
    heads = [parameter for name, parameter in dino.named_parameters() if not name.startswith("vit.")]
    assert sum(parameter.grad is not None for parameter in heads) == len(heads)


def test_maps_have_unit_length_as_a_whole_and_run_round_the_seam() -> None:
    torch.manual_seed(0)
    encoder = DenseEncoder("vgg16_unet", [0, 1], panorama=True, confidence=True).eval()
    image = torch.rand(2, 3, 32, 64)
    maps, confidences = encoder(image)
    assert all(torch.allclose(each.flatten(1).norm(dim=1), torch.ones(2)) for each in maps)
    assert all(each is not None and 0 < each.min() <= each.max() < 1 for each in confidences)
    rolled, _ = encoder(image.roll(16, -1))
    assert torch.allclose(rolled[1], maps[1].roll(4, -1), atol=1e-5)
