import dataclasses
import math

import numpy as np
import pytest
import torch
from toy_dataset import toy_dataset

from cvgl_data.errors import RecipeError, WorkspaceError
from cvgl_models.combining import combine
from cvgl_models.evaluation import embed, evaluate
from cvgl_models.metrics import outcomes
from cvgl_models.recipe import load_recipe
from cvgl_models.retrieval import ranks
from cvgl_models.serving import load_model, locate
from cvgl_models.systems import create_system
from cvgl_models.systems.sample4geo import Sample4Geo
from cvgl_models.training import train
from cvgl_models.transforms import Batch

torch.set_num_threads(1)

SMALL = ("views.query_height_px=16", "views.query_width_px=32", "views.reference_px=32", "views.bev_px=32")
FAST = ("sampler.batch_size=8", "sampler.neighbor_select=4", "optim.epochs=2", "optim.warmup_epochs=1.0")


def recipe(*overrides):
    return load_recipe("epbev-smoke", [*SMALL, *FAST, "loader.workers=0", *overrides])


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=4, test_grid=2)


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    return train(recipe(), toy, tmp_path_factory.mktemp("runs") / "epbev")


def some_pairs(count=5):
    draw = torch.Generator().manual_seed(0)
    return Batch(
        query=torch.rand(count, 3, 16, 32, generator=draw),
        bev=torch.rand(count, 3, 32, 32, generator=draw),
        reference=torch.rand(count, 3, 32, 32, generator=draw),
    )


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_one_index_gives_the_weighted_sum_of_both_similarities(weight):
    torch.manual_seed(0)
    system, batch = create_system(recipe(f"options.panorama_weight={weight}")).eval(), some_pairs()
    fused = system.embed_queries(batch) @ system.embed_references(batch).T
    one = system.panorama.embed_queries(batch) @ system.panorama.embed_references(batch).T
    above = dataclasses.replace(batch, query=batch.bev)
    two = system.bev.embed_queries(above) @ system.bev.embed_references(batch).T
    torch.testing.assert_close(fused, weight * one + (1 - weight) * two, atol=1e-6, rtol=0)
    torch.testing.assert_close(system.embed_queries(batch).norm(dim=1), torch.ones(5))


def test_fusion_finds_what_neither_branch_finds():
    """Both branches alone find one of two queries; their sum finds both."""
    one = torch.tensor([[0.50, 0.60], [0.20, 0.70]])
    two = torch.tensor([[0.40, 0.25], [0.65, 0.55]])

    def rows_with(score):
        """Return unit vectors (queries, references) whose products are the scores."""
        references = torch.cat([torch.eye(2), torch.zeros(2, 2)], 1)
        rest = (1 - score.square().sum(1)).sqrt()
        return torch.cat([score, torch.diag(rest)], 1), references

    (q1, r1), (q2, r2) = rows_with(one), rows_with(two)
    assert [ranks(q, r, [0, 1]).eq(0).float().mean().item() for q, r in ((q1, r1), (q2, r2))] == [0.5, 0.5]
    query, reference = (torch.cat(parts, 1) / math.sqrt(2) for parts in ((q1, q2), (r1, r2)))
    torch.testing.assert_close(2 * query @ reference.T, one + two)
    assert ranks(query, reference, [0, 1]).tolist() == [0, 0]
    swapped = [1, 0]  # of the gallery: both halves of a row move together
    assert ranks(query, reference[swapped], [1, 0]).tolist() == [0, 0]


def test_branches_are_trained_together_and_apart():
    torch.manual_seed(0)
    system, batch = create_system(recipe()).train(), some_pairs()
    terms = system.training_step(batch)
    assert terms.keys() == {"panorama", "bev"}
    terms["bev"].backward()
    assert all(p.grad is None for p in system.panorama.parameters())
    assert all(p.grad is not None for p in system.bev.parameters())
    assert isinstance(system.bev, Sample4Geo)
    assert {*system.panorama.parameters()}.isdisjoint(system.bev.parameters())


def test_evaluation_measures_both_branches_and_the_fusion(run, toy):
    report = evaluate(run, toy)
    found = {group.name: group for group in report.groups if group.kind == "branch"}
    assert found.keys() == {"panorama", "bev"}
    embedded = embed(run, toy)
    from cvgl_models.evaluation import truth

    facts = truth(embedded.dataset)
    half = embedded.query_QD.shape[1] // 2
    for name, part in (("panorama", slice(0, half)), ("bev", slice(half, None))):
        query, reference = np.array(embedded.query_QD)[:, part], np.array(embedded.reference_RD)[:, part]
        alone = outcomes(query * math.sqrt(2), reference * math.sqrt(2), facts)
        assert found[name].recall_at_1 == pytest.approx(np.mean(alone.rank == 0))
        assert found[name].num_queries == report.num_queries
    heads, rows = report.group_table()
    assert {row[0] for row in rows} >= {"branch panorama", "branch bev"}
    assert len(heads) == len(rows[0])


def test_pictures_are_located_from_both_views(run, toy, tmp_path):
    name = toy.select("test").queries["query_id"][0].as_py()
    path = tmp_path / "one.jpg"
    path.write_bytes(toy.images[name])
    (found,) = locate(run, [path], toy, top_k=3)
    assert len(found.candidates) == 3
    embedded = embed(run, toy)
    (mine,) = load_model(run).embed_queries([path])
    np.testing.assert_allclose(mine, embedded.query_QD[0], atol=1e-5)


def alone(kind, toy, out, *overrides):
    """Train one branch as a run of its own."""
    height = ["views.query=bev", "views.query_height_px=32"] if kind == "bev" else []
    views = [*SMALL[:-1], "views.bev_px=0", *height]
    tables = ["system=sample4geo", "options={}", *views, *FAST, "loader.workers=0", *overrides]
    return train(load_recipe("epbev-smoke", tables), toy, out)


def test_two_runs_are_combined(toy, tmp_path):
    """The branches of the combined run are the runs; what does not go together is refused by name."""
    runs = [alone(kind, toy, tmp_path / kind) for kind in ("panorama", "bev")]
    folder = combine(*runs, tmp_path / "both", panorama_weight=0.3)
    report = evaluate(folder, toy)
    branches = {group.name: group.recall_at_5 for group in report.groups if group.kind == "branch"}
    assert branches == {
        kind: evaluate(run, toy).recall_at_5 for kind, run in zip(("panorama", "bev"), runs, strict=True)
    }
    both, one, two = (embed(run, toy) for run in (folder, *runs))
    fused = np.array(both.query_QD) @ np.array(both.reference_RD).T
    parts = [np.array(each.query_QD) @ np.array(each.reference_RD).T for each in (one, two)]
    np.testing.assert_allclose(fused, 0.3 * parts[0] + 0.7 * parts[1], atol=1e-5)
    with pytest.raises(RecipeError, match="on 'bev'; this branch takes one of 'sample4geo' on 'panorama'"):
        combine(runs[1], runs[0], tmp_path / "wrong")
    other = alone("bev", toy, tmp_path / "other", "views.reference_px=16")
    with pytest.raises(RecipeError, match=r"differ in 'views\.reference_px'"):
        combine(runs[0], other, tmp_path / "wrong")
    with pytest.raises(WorkspaceError, match="both"):
        combine(*runs, folder, panorama_weight=0.5)


def test_wrong_recipes():
    with pytest.raises(RecipeError, match=r"set views\.bev_px"):
        create_system(load_recipe("epbev-smoke", ["views.bev_px=0"]))
    with pytest.raises(RecipeError, match=r"'options\.panorama_weight' must lie in \[0, 1\]"):
        create_system(recipe("options.panorama_weight=1.5"))
