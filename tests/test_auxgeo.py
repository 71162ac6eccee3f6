import dataclasses
import math

import pytest
import torch
from toy_dataset import toy_dataset

from cvgl_data.errors import RecipeError
from cvgl_models.evaluation import evaluate
from cvgl_models.recipe import load_recipe
from cvgl_models.systems import create_system
from cvgl_models.systems.auxgeo import expected_cell, position_constraint
from cvgl_models.training import train
from cvgl_models.training.gradients import backward
from cvgl_models.transforms import Batch, flip, quarter_turn

torch.set_num_threads(1)

SMALL = ("views.query_height_px=16", "views.query_width_px=32", "views.reference_px=32", "loader.workers=0")
FAST = ("sampler.batch_size=8", "sampler.neighbor_select=4", "optim.epochs=2", "optim.warmup_epochs=1.0")


def recipe(*overrides, bev_px=32):
    return load_recipe("auxgeo-smoke", [*SMALL, f"views.bev_px={bev_px}", *overrides])


def with_cosines(cosine_hw):
    """Return a query and a map whose cells have these cosines with it."""
    cosine_hw = torch.as_tensor(cosine_hw, dtype=torch.float64)
    return torch.tensor([[1.0, 0.0]]).double(), torch.stack([cosine_hw, (1 - cosine_hw**2).sqrt()])[None]


def peak(height, low, side=12, row=4, column=9):
    cosine_hw = torch.full((side, side), low, dtype=torch.float64)
    cosine_hw[row, column] = height
    return with_cosines(cosine_hw)


def place(u, v, side=384):
    return torch.tensor([[u / side, v / side]], dtype=torch.float64)


@pytest.mark.parametrize(("side", "middle"), [(12, 5.5), (6, 2.5), (3, 1.0)])
def test_equal_cells_expect_the_middle(side, middle):
    query, grid = with_cosines(torch.zeros(side, side))
    torch.testing.assert_close(expected_cell(query, grid, 0.05), torch.tensor([[middle, middle]]).double())


def test_the_middle_of_a_reference_has_no_bias_at_any_grid():
    query, grid = with_cosines(torch.zeros(12, 12))
    assert position_constraint(query, grid, place(192, 192), 3) == pytest.approx(0.0, abs=1e-5)


def test_a_sharp_peak_is_where_it_is():
    query, grid = peak(1.0, -1.0)
    found = expected_cell(query, grid, 0.05)
    torch.testing.assert_close(found, torch.tensor([[9.0, 4.0]]).double(), atol=1e-12, rtol=0)
    assert position_constraint(query, grid, place(304, 144), 1) == pytest.approx(0.0, abs=1e-5)
    published_target = torch.tensor([304 / 32, 144 / 32])
    assert torch.linalg.vector_norm(published_target - found[0]) == pytest.approx(0.7071, abs=1e-4)


def test_a_soft_peak_is_drawn_towards_the_middle():
    query, grid = peak(0.5, 0.0)
    found = expected_cell(query, grid, 0.05)
    torch.testing.assert_close(found, torch.tensor([[8.97727, 4.00974]]).double(), atol=5e-6, rtol=0)
    # all other cells have the same share, so the expected column tells that of the peak
    rest = (12 * 66 - 9) / 143
    assert ((found[0, 0] - rest) / (9 - rest)).item() == pytest.approx(0.99355, abs=5e-6)


@pytest.mark.parametrize(("side", "px"), [(12, 12.2), (6, 24.5), (3, 48.9)])
def test_who_knows_the_cell_loses_the_distance_within_it(side, px):
    """The least loss that a grid allows, half of that of the published target."""
    steps = (torch.arange(96, dtype=torch.float64) + 0.5) / 96
    where = torch.cartesian_prod(steps, steps)
    cell = (where * side).long()
    cosine = torch.full((len(where), side, side), -1.0, dtype=torch.float64)
    cosine[torch.arange(len(where)), cell[:, 1], cell[:, 0]] = 1.0
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(len(where), -1)
    grid = torch.stack([cosine, (1 - cosine**2).sqrt()], 1)
    floor = position_constraint(query, grid, where, levels=1).item()
    exact = (math.sqrt(2) + math.log(1 + math.sqrt(2))) / 6  # mean distance from the middle of a unit square
    assert floor == pytest.approx(exact, rel=0.01)
    assert floor == pytest.approx(0.382, rel=0.01)
    assert floor * 384 / side == pytest.approx(px, rel=0.01)
    published = torch.linalg.vector_norm(where * side - expected_cell(query, grid, 0.05), dim=1).mean().item()
    assert published == pytest.approx(0.765, rel=0.01)


def test_levels_are_averages_of_the_map_before_normalization():
    draw = torch.Generator().manual_seed(0)
    query, grid = torch.randn(3, 8, generator=draw), torch.randn(3, 8, 12, 12, generator=draw)
    where = torch.rand(3, 2, generator=draw)
    levels = [position_constraint(query, grid, where, levels=count) for count in (1, 2, 3, 9)]
    assert levels[0] < levels[1] < levels[2] == levels[3]  # 3 cells cannot be halved
    halved = grid.unflatten(2, (6, 2)).unflatten(4, (6, 2)).mean((3, 5))
    alone = position_constraint(query, halved, where, levels=1)
    torch.testing.assert_close(levels[1] - levels[0], alone)


def test_several_sums_of_a_map_count_as_their_sum():
    draw = torch.Generator().manual_seed(0)
    parts, grid = torch.randn(3, 2, 8, generator=draw), torch.randn(3, 8, 4, 4, generator=draw)
    where = torch.rand(3, 2, generator=draw)
    together = position_constraint(parts.flatten(1), grid, where)
    torch.testing.assert_close(together, position_constraint(parts.sum(1), grid, where))


def test_pairs_that_were_moved_out_do_not_count():
    draw = torch.Generator().manual_seed(0)
    query, grid = torch.randn(2, 8, generator=draw), torch.randn(2, 8, 4, 4, generator=draw)
    both = position_constraint(query, grid, torch.tensor([[0.2, 0.7], [1.1, 0.5]]))
    first = position_constraint(query[:1], grid[:1], torch.tensor([[0.2, 0.7]]))
    torch.testing.assert_close(both, first)
    assert position_constraint(query, grid, torch.tensor([[-0.2, 0.7], [1.1, 0.5]])) == 0


def test_turned_and_mirrored_labels_mark_the_same_pixel():
    """A white pixel at column 100, row 37 is where the label says after any turn and mirroring."""
    for turns, pixel in [(0, (100, 37)), (1, (37, 283)), (2, (283, 346)), (3, (346, 100))]:
        for mirrored in (False, True):
            reference = torch.zeros(1, 3, 384, 384)
            reference[0, :, 37, 100] = 1
            batch = Batch(
                query=torch.zeros(1, 3, 8, 16),
                reference=reference,
                bev=reference.clone(),
                uv=torch.tensor([[100.5, 37.5]]),
                heading_deg=torch.zeros(1),
            )
            batch = quarter_turn(batch, torch.tensor([turns]), "panorama")
            assert tuple((batch.uv[0] - 0.5).long().tolist()) == pixel
            batch = flip(batch, torch.tensor([mirrored]))
            column, row = (batch.uv[0] - 0.5).long().tolist()
            assert batch.reference[0, 0, row, column] == 1
            assert batch.bev[0, 0, row, column] == 1


def some_pairs(resolved, count=6):
    draw = torch.Generator().manual_seed(0)
    side = resolved.views.reference_px
    return Batch(
        query=torch.rand(count, 3, *resolved.views.query_size_px, generator=draw),
        reference=torch.rand(count, 3, side, side, generator=draw),
        bev=torch.rand(count if resolved.views.bev_px else 0, 3, 32, 32, generator=draw),
        uv=torch.rand(count, 2, generator=draw) * side,
        heading_deg=torch.zeros(count),
        query_row=torch.arange(count),
        reference_row=torch.arange(count),
    )


@pytest.mark.parametrize(
    ("bim", "pcm", "terms"),
    [
        (True, True, {"info_nce", "panorama_bev", "bev_reference", "position"}),
        (True, False, {"info_nce", "panorama_bev", "bev_reference"}),
        (False, True, {"info_nce", "position"}),
        (False, False, {"info_nce"}),
    ],
)
def test_each_part_can_be_switched_off(bim, pcm, terms):
    options = [f"options.bim={str(bim).lower()}", f"options.pcm={str(pcm).lower()}"]
    resolved = recipe(*options, bev_px=32 if bim else 0)
    torch.manual_seed(0)
    system, batch = create_system(resolved), some_pairs(resolved)
    assert system.training_step(batch).keys() == terms
    scales = [name for name, _ in system.named_parameters() if name.endswith("logit_scale")]
    assert len(scales) == (3 if bim else 1)  # each with its own


def test_nothing_of_the_auxiliaries_is_left_at_inference():
    resolved = recipe()
    torch.manual_seed(0)
    system, batch = create_system(resolved).eval(), some_pairs(resolved)
    alone = Batch(query=batch.query)
    torch.testing.assert_close(system.embed_queries(alone), system.embed_pairs(batch)[0]["query"])
    assert system.query_views == ("query",)
    torch.manual_seed(0)
    views = dataclasses.replace(resolved.views, bev_px=0)
    plain = create_system(dataclasses.replace(resolved, system="sample4geo", options={}, views=views)).eval()
    torch.testing.assert_close(system.embed_queries(alone), plain.embed_queries(alone))


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_give_the_gradients_of_the_plain_step(micro_batch):
    """Without BatchNorm, with the terms of each pair alone and those of all pairs."""
    resolved = recipe()
    torch.manual_seed(0)
    system, batch = create_system(resolved), some_pairs(resolved)
    for module in system.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()

    def gradients(size):
        system.zero_grad()
        terms = backward(system, batch, micro_batch=size)
        return terms, {name: p.grad.clone() for name, p in system.named_parameters() if p.grad is not None}

    plain_terms, plain = gradients(0)
    terms, cached = gradients(micro_batch)
    assert plain.keys() == cached.keys()
    for name, gradient in plain.items():
        # entries that sum to next to nothing have no digits: each tensor is compared as a whole
        assert (cached[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    for name in plain_terms:
        torch.testing.assert_close(terms[name], plain_terms[name], rtol=1e-5, atol=1e-7)
    assert plain_terms["position"] > 0


@pytest.mark.parametrize(
    ("overrides", "bev_px", "message"),
    [
        (["options.bim=false"], 32, "takes a top view exactly for BIM"),
        ([], 0, "takes a top view exactly for BIM"),
        (["encoder.shared=false"], 32, "one encoder for all views"),
        (["options.pcm_temperature=0"], 32, r"'options\.pcm_temperature' must be positive"),
        (["options.bmi=true"], 32, r"options\.bmi.*did you mean"),
    ],
)
def test_wrong_recipes(overrides, bev_px, message):
    with pytest.raises(RecipeError, match=message):
        create_system(recipe(*overrides, bev_px=bev_px))


def test_a_map_of_another_space_is_refused():
    resolved = load_recipe("auxgeo-smoke", [*SMALL, "views.bev_px=32"])
    head = {"aggregator": "convap", "aggregator_options": {"out_channels": 7}}
    resolved = dataclasses.replace(resolved, encoder=dataclasses.replace(resolved.encoder, **head))
    with pytest.raises(RecipeError, match=r'set encoder\.aggregator to "average"'):
        create_system(resolved).training_step(some_pairs(resolved))


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=4, test_grid=2)


def test_a_run_from_data_to_metrics(toy, tmp_path):
    run = train(recipe(*FAST), toy, tmp_path / "run")
    report = evaluate(run, toy)
    assert report.num_queries == 12
    again = train(recipe(*FAST), toy, tmp_path / "again", max_steps=3)
    assert train(recipe(*FAST), toy, again) == again
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "again")]
    assert len(lines[0]) == len(lines[1]) > 3
    assert '"position"' in lines[0][0]
