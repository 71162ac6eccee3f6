"""The weight of EP-BEV's branches that the validation split chooses: by hand, against an oracle, in runs."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from cvgl_cli.train import app
from safetensors.torch import load_file
from test_epbev import FAST, SMALL, alone, recipe, some_pairs
from toy_dataset import toy_dataset
from typer.testing import CliRunner

import cvgl_models.loading.resized as resized_module
import cvgl_models.serving as serving_module
import cvgl_models.systems.epbev as epbev_module
import cvgl_models.training.loop as training_module
from cvgl_data.errors import DatasetError, RecipeError
from cvgl_models.checkpoint import last_checkpoint
from cvgl_models.combining import combine
from cvgl_models.evaluation import embed
from cvgl_models.evaluation.embeddings import load_system
from cvgl_models.export import export_model, from_pretrained, traced_branch
from cvgl_models.gallery import open_gallery
from cvgl_models.recipe import load_recipe
from cvgl_models.retrieval import ranks
from cvgl_models.systems import create_system
from cvgl_models.systems.epbev import WEIGHTS, careful_choice, reciprocal_ranks
from cvgl_models.training import train
from cvgl_models.training.measured import Measured
from cvgl_models.training.ranks import Ranks
from cvgl_models.training.validation import Tunable

torch.set_num_threads(1)

CHOSEN = "options.panorama_weight=validation"
OFTEN = "validation.every_n_epochs=1"


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=4, test_grid=2)


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    return train(recipe(CHOSEN, OFTEN), toy, tmp_path_factory.mktemp("runs") / "epbev")


@pytest.fixture
def from_memory(toy, monkeypatch):
    for module in (resized_module, serving_module):
        monkeypatch.setattr(module, "open_dataset", lambda data: toy)


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def validations(folder):
    return [line for line in log(folder) if "panorama_weight" in line]


def weight_of(path):
    return round(load_file(path)["scale_2"][0].item() ** 2, 6)


def branches(*ahead):
    """Return embeddings by branch of queries whose positive is reference 0, and of two references.

    Each argument is a query: how far reference 1 is ahead of the positive, by branch.
    """
    queries = []
    for ahead_Q in zip(*ahead, strict=True):
        score_Q2 = torch.tensor([[-ahead / 2, ahead / 2] for ahead in ahead_Q], dtype=torch.float64)
        rest_QQ = torch.diag((1 - score_Q2.square().sum(1)).sqrt())
        queries.append(torch.cat([score_Q2, rest_QQ], 1).float())
    references = torch.eye(2, 2 + len(ahead))
    return queries, [references, references], np.zeros(len(ahead), np.int64)


def means(*arguments):
    return reciprocal_ranks(*arguments).mean(1).tolist()


BALANCED = [(0.1, -0.3), (-0.3, 0.1)]  # right below .75, right above .25
BELOW_HALF, BELOW_QUARTER, BELOW_26TH = (0.2, -0.2), (0.3, -0.1), (0.5, -0.02)


@pytest.mark.parametrize(
    ("queries", "weight"),
    [
        (BALANCED, 0.3),  # everything between is as good; both ends are, too: the lower one
        ([*BALANCED, *BALANCED, BELOW_HALF], 0.3),
        ([*BALANCED, BELOW_QUARTER, BELOW_QUARTER], 0.001),  # two are found for one that is lost
        (
            [*((b, a) for a, b in BALANCED), (-0.2, 0.2)],
            0.7,
        ),  # .55 to .7 are as good, and the panorama is the better one alone
        ([BELOW_26TH, (-0.1, 0.0)], 0.001),  # the top view decides, the panorama breaks its tie
        ([(0.9, -0.001), (-0.9, 0.0)], 0.001),
        ([(-0.001, 0.9), (0.0, -0.9)], 0.999),
        ([(-0.3, -0.1)], 0.001),  # found whatever the weight
        ([(0.3, 0.1)], 0.001),  # lost whatever the weight
    ],
)
def test_the_choice_by_hand(queries, weight):
    """So often that one query's difference is many standard errors."""
    chosen = careful_choice(reciprocal_ranks(*branches(*queries * 400), WEIGHTS))
    assert WEIGHTS[chosen] == weight


@pytest.mark.parametrize(("num", "weight"), [(0, 0.001), (1, 0.001), (2, 0.3)])
def test_one_query_is_no_reason_to_leave_the_better_branch(num, weight):
    """Whatever their number: one that differs makes a standard error of just its difference, two are more than that."""
    for count in (10, 1000):
        queries = [BALANCED[0]] * count + [BALANCED[1]] * num
        assert WEIGHTS[careful_choice(reciprocal_ranks(*branches(*queries), WEIGHTS))] == weight


def test_a_single_query_decides_nothing():
    assert careful_choice(torch.tensor([[0.5], [1.0], [0.5]], dtype=torch.float64)) == 1
    assert careful_choice(torch.tensor([[0.5, 0.5], [1.0, 0.5], [0.5, 0.5]], dtype=torch.float64)) == 0


def test_the_mean_by_hand():
    """Of four queries all, three or two are first, the others second; a tie and NaN make a query second."""
    made = branches(*BALANCED, BELOW_HALF, BELOW_QUARTER)
    assert means(*made, (0.1, 0.3, 0.6, 0.9)) == pytest.approx([0.875, 0.875, 0.75, 0.625])
    ties = branches((0.2, -0.2), (0.0, 0.0), (-0.2, -0.2))
    assert means(*ties, (0.4, 0.5)) == pytest.approx([2.5 / 3, 2 / 3])
    ties[0][0][2] = torch.nan
    assert means(*ties, (0.4, 0.5)) == pytest.approx([2 / 3, 1.5 / 3])


@pytest.mark.parametrize("block", [1, 7 * 40, 2**24])
def test_the_mean_is_that_of_ranks_in_the_fused_index(block, monkeypatch):
    monkeypatch.setattr(epbev_module, "_BLOCK", block)
    draw = torch.Generator().manual_seed(0)
    positives = torch.randint(0, 40, (25,), generator=draw).numpy()
    query, reference = [], []
    for noise in (0.5, 1.5):
        made = torch.nn.functional.normalize(torch.randn(40, 8, generator=draw), dim=1)
        made[17] = made[3]  # twice the same
        reference.append(made)
        near = made[positives] + noise * torch.randn(25, 8, generator=draw)
        query.append(torch.nn.functional.normalize(near, dim=1))
    query[1][5], reference[0][9] = torch.nan, torch.nan
    expected = []
    for weight in WEIGHTS:
        fused = [
            torch.cat([math.sqrt(weight) * one, math.sqrt(1 - weight) * two], 1) for one, two in (query, reference)
        ]
        expected.append((1 / (1 + ranks(*fused, positives).double())).mean().item())
    assert means(query, reference, positives, WEIGHTS) == pytest.approx(expected, abs=1e-12)
    assert len({*expected}) > 10


def test_weights_to_choose_from():
    assert list(WEIGHTS) == sorted(WEIGHTS)
    assert min(WEIGHTS) <= 0.01
    assert max(WEIGHTS) >= 0.99
    assert all(0 < weight < 1 for weight in WEIGHTS)
    assert {round(1 - weight, 6) for weight in WEIGHTS} == {*WEIGHTS}  # no side is preferred


@pytest.mark.parametrize("now", [0.001, 0.5, 0.999])
def test_the_choice_does_not_depend_on_the_weight_there_is(now):
    """Branches are read from the fused embeddings, so these may have any weight; what comes back has the chosen one."""
    torch.manual_seed(0)
    system, batch = create_system(recipe(CHOSEN)).eval(), some_pairs(12)
    positives = np.arange(12)
    with torch.no_grad():
        assert isinstance(system, Tunable)
        _, _, expected = system.tuned(system.embed_queries(batch), system.embed_references(batch), positives)
        system.adopt({"panorama_weight": now})
        assert system.panorama_weight == now
        query, reference, found = system.tuned(system.embed_queries(batch), system.embed_references(batch), positives)
        assert system.panorama_weight == now  # choosing changes nothing yet
        assert found == pytest.approx(expected)
        system.adopt({"validation_recall_at_1": 0.5, **found})
        torch.testing.assert_close(query, system.embed_queries(batch), atol=1e-6, rtol=0)
        torch.testing.assert_close(reference, system.embed_references(batch), atol=1e-6, rtol=0)
        torch.testing.assert_close(query.norm(dim=1), torch.ones(12))
    assert found["panorama_weight"] == system.panorama_weight != 0.5
    system.adopt({})
    assert system.panorama_weight == found["panorama_weight"]


@pytest.mark.parametrize("weight", [0.0, 0.05, 0.3, 0.5, 1.0])
def test_a_number_gives_what_it_always_gave(weight):
    torch.manual_seed(0)
    system, batch = create_system(recipe(f"options.panorama_weight={weight}")).eval(), some_pairs()
    above = dataclasses.replace(batch, query=batch.bev)
    query = [system.panorama.embed_queries(batch), system.bev.embed_queries(above)]
    reference = [system.panorama.embed_references(batch), system.bev.embed_references(batch)]
    for found, (one, two) in (
        (system.embed_queries(batch), query),
        (system.embed_references(batch), reference),
    ):
        assert torch.equal(found, torch.cat([math.sqrt(weight) * one, math.sqrt(1 - weight) * two], 1))
    assert {name.split(".")[0] for name in system.state_dict()} == {"panorama", "bev"}  # weights of old still fit
    assert system.tuned(query[0], reference[0], np.arange(5))[2] == {}
    system.adopt({"panorama_weight": 0.7})
    assert system.panorama_weight == weight


def test_the_chosen_weight_changes_no_gradient():
    systems = []
    for options in ("options.panorama_weight=0.5", CHOSEN):
        torch.manual_seed(0)
        system = create_system(recipe(options)).train()
        system.adopt({"panorama_weight": 0.02})
        sum(system.training_step(some_pairs()).values()).backward()
        systems.append(system)
    for one, two in zip(*(system.parameters() for system in systems), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_a_run_keeps_the_weight_that_does_best_on_validation(run, toy):
    """Recomputed from the embeddings of the best weights, by another way of ranking."""
    best = next(line for line in validations(run) if line["step"] == best_step(run))
    assert best["panorama_weight"] == weight_of(run / "best.safetensors") == load_system(run)[0].panorama_weight
    embedded = embed(run, toy, "validation")
    half = embedded.query_QD.shape[1] // 2
    parts = [
        [
            torch.nn.functional.normalize(torch.tensor(np.array(side)[:, part]), dim=1)
            for part in (slice(0, half), slice(half, None))
        ]
        for side in (embedded.query_QD, embedded.reference_RD)
    ]
    positives, scores, recalls = embedded.dataset.positives(), {}, {}
    for weight in WEIGHTS:
        fused = [torch.cat([math.sqrt(weight) * one, math.sqrt(1 - weight) * two], 1) for one, two in parts]
        rank = ranks(*fused, positives)
        scores[weight] = 1 / (1 + rank.double().numpy())
        recalls[weight] = (rank < 1).double().mean().item()
    mean = {weight: score.mean() for weight, score in scores.items()}
    assert best["panorama_weight"] == spoken_for(scores)
    assert best["validation_mean_reciprocal_rank"] == pytest.approx(mean[best["panorama_weight"]])
    assert best["validation_recall_at_1"] == pytest.approx(recalls[best["panorama_weight"]])
    assert min(mean.values()) < max(mean.values())


def spoken_for(scores):
    """Return the weight by the rule of one standard error, from the reciprocal ranks of each weight."""
    mean = {weight: score.mean() for weight, score in scores.items()}
    best = scores[max(mean, key=mean.get)]
    behind = {weight: best - score for weight, score in scores.items()}
    as_good = [
        weight
        for weight, difference in behind.items()
        if difference.mean() <= difference.std(ddof=1) / math.sqrt(len(difference)) + 1e-9
    ]
    return as_good[0] if mean[WEIGHTS[0]] >= mean[WEIGHTS[-1]] else as_good[-1]


def best_step(folder):
    from safetensors import safe_open

    with safe_open(folder / "best.safetensors", "pt") as file:
        return int(file.metadata()["step"])


def choices(monkeypatch, *scripted):
    """Let validation choose given weights with given recalls."""
    waiting = iter(scripted)

    def measure(self, embed):
        del embed
        weight, recall = next(waiting)
        self.chosen = {"panorama_weight": weight}
        return recall, 1.0

    monkeypatch.setattr(training_module.Validator, "measure", measure)


def test_each_checkpoint_has_its_own_weight(toy, tmp_path, monkeypatch):
    """The best one stays with its own when later ones choose another; a resumed run goes on with the last one."""
    choices(monkeypatch, (0.2, 0.9), (0.7, 0.1))
    options = (CHOSEN, OFTEN, "optim.ema_decay=0.5")
    steps = len(log(train(recipe(*options), toy, tmp_path / "whole"))) - 2
    assert [line["panorama_weight"] for line in validations(tmp_path / "whole")] == [0.2, 0.7]
    assert weight_of(tmp_path / "whole" / "best.safetensors") == 0.2
    for name in ("weights", "average"):
        assert weight_of(last_checkpoint(tmp_path / "whole") / f"{name}.safetensors") == 0.7
    choices(monkeypatch, (0.2, 0.9), (0.7, 0.1))
    for stop in (steps // 2, steps // 2 + 1):  # at the end of an epoch, and in the middle of one
        train(recipe(*options), toy, tmp_path / "parts", max_steps=stop)
        for name in ("weights", "average"):
            assert weight_of(last_checkpoint(tmp_path / "parts") / f"{name}.safetensors") == 0.2
    train(recipe(*options), toy, tmp_path / "parts")
    for name in ("best.safetensors", f"checkpoints/step-{steps:08d}/average.safetensors"):
        one, two = (load_file(tmp_path / part / name) for part in ("whole", "parts"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_no_test_label_is_read(toy, tmp_path, monkeypatch, run):
    """Without any pair of the test split, everything is chosen as before."""
    rows = toy.select("test").queries["query_id"].to_pylist()
    kept = [name not in rows for name in toy.pairs["query_id"].to_pylist()]
    blind = dataclasses.replace(toy, pairs=toy.pairs.filter(kept))
    again = train(recipe(CHOSEN, OFTEN), blind, tmp_path / "blind")
    assert validations(again) == validations(run)


def test_without_validation_queries_the_weights_stay_equal(toy, tmp_path, caplog):
    split = toy.queries["split"].to_pylist()
    none = dataclasses.replace(
        toy,
        queries=toy.queries.set_column(
            toy.queries.schema.get_field_index("split"),
            "split",
            [["test" if name == "validation" else name for name in split]],
        ),
    )
    out = train(recipe(CHOSEN, "optim.epochs=1"), none, tmp_path / "run")
    assert "settings that would be chosen by them stay as they begin" in caplog.text
    assert weight_of(out / "best.safetensors") == 0.5
    runs = [alone(kind, toy, tmp_path / kind, "optim.epochs=1") for kind in ("panorama", "bev")]
    with pytest.raises(DatasetError, match="no validation queries to choose the weight by"):
        combine(*runs, tmp_path / "both", panorama_weight="validation", data=none)
    with pytest.raises(RecipeError, match="name the dataset"):
        combine(*runs, tmp_path / "both", panorama_weight="validation")
    assert not (tmp_path / "both").exists()


def typed(*words, code=0):
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def test_train_evaluate_locate_export_on_the_command_line(run, toy, from_memory, tmp_path):
    """All see the weight, and none is told of it."""
    resolved = load_recipe("epbev-smoke")
    assert resolved.options == {"panorama_weight": "validation"}
    out = tmp_path / "run"
    overrides = [word for item in (*SMALL, *FAST, "loader.workers=0", OFTEN) for word in ("--set", item)]
    typed("run", "epbev-smoke", "--data", "toy", "--out", out, "-q", *overrides)
    assert validations(out) == validations(run)
    weight = weight_of(out / "best.safetensors")
    assert weight != 0.5
    report = json.loads(typed("evaluate", out, "--data", "toy", "--no-calibration", "--json", "-q").stdout)
    assert {group["name"] for group in report["groups"] if group["kind"] == "branch"} == {"panorama", "bev"}
    embedded = embed(out, toy)
    half = embedded.query_QD.shape[1] // 2
    np.testing.assert_allclose(np.linalg.norm(embedded.query_QD[:, :half], axis=1), math.sqrt(weight), atol=1e-5)
    photo = tmp_path / "one.jpg"
    photo.write_bytes(toy.images[toy.select("test").queries["query_id"][0].as_py()])
    (found,) = json.loads(typed("locate", out, photo, "--data", "toy", "--json", "-q").stdout)
    gallery = open_gallery(out)[2]
    row = gallery.references["reference_id"].to_pylist().index(found["candidates"][0]["reference_id"])
    np.testing.assert_allclose(np.linalg.norm(gallery.embedding_RD[row, :half]), math.sqrt(weight), atol=1e-5)
    assert found["candidates"][0]["score"] == pytest.approx(
        float(embedded.query_QD[0] @ gallery.embedding_RD[row]), abs=1e-5
    )
    typed("export", out, "--out", tmp_path / "exported", "-q")
    model = from_pretrained(tmp_path / "exported")
    np.testing.assert_allclose(model.embed_queries([photo])[0], embedded.query_QD[0], atol=1e-5)
    assert weight_of(tmp_path / "exported" / "model.safetensors") == weight


def test_a_traced_branch_has_the_weight(run, tmp_path):
    system, resolved, _ = load_system(export_model(run, tmp_path / "out"))
    batch = some_pairs(3)
    with torch.no_grad():
        found = traced_branch(system.cpu(), resolved, "query").module()(batch.query, batch.bev)
        torch.testing.assert_close(found, system.embed_queries(batch), rtol=1e-5, atol=1e-6)


def test_combine_on_the_command_line(toy, from_memory, tmp_path):
    runs = [alone(kind, toy, tmp_path / kind) for kind in ("panorama", "bev")]
    out = tmp_path / "both"
    typed("combine", *runs, "--out", out, "--panorama-weight", "validation", "--data", "toy", "-q")
    (line,) = log(out)
    assert line["panorama_weight"] == weight_of(out / "best.safetensors")
    one, two = (embed(run, toy, "validation") for run in runs)
    similar = [np.array(each.query_QD) @ np.array(each.reference_RD).T for each in (one, two)]
    scores = {}
    for weight in WEIGHTS:
        fused = weight * similar[0] + (1 - weight) * similar[1]
        positive = fused[np.arange(len(fused)), one.dataset.positives()]
        scores[weight] = 1 / (fused >= positive[:, None]).sum(1)
    assert line["panorama_weight"] == spoken_for(scores)
    assert line["validation_mean_reciprocal_rank"] == pytest.approx(scores[line["panorama_weight"]].mean())
    assert json.loads((out / "environment.json").read_text())["data"].keys() == {"panorama", "bev", "validation"}
    typed("combine", *runs, "--out", tmp_path / "fixed", "--panorama-weight", "0.3", "-q")
    assert load_system(tmp_path / "fixed")[0].panorama_weight == 0.3
    assert not (tmp_path / "fixed" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--panorama-weight", "validation"),
        ("--panorama-weight", "0.3", "--data", "toy"),
        ("--panorama-weight", "1.5"),
        ("--panorama-weight", "nan"),
        ("--panorama-weight", "test"),
    ],
)
def test_wrong_weights_on_the_command_line(words, tmp_path):
    typed("combine", "a", "b", "--out", tmp_path / "both", *words, code=2)


def test_wrong_weight_in_a_recipe():
    with pytest.raises(RecipeError, match=r"'options\.panorama_weight' is 'test', expected 'validation' or a number"):
        create_system(recipe("options.panorama_weight=test"))


@pytest.mark.parametrize("average", ["0.0", "0.9"])
def test_all_processes_take_the_weight_of_the_first(toy, tmp_path, monkeypatch, average):
    """What this one chose itself does not count: rounding may have it choose otherwise."""
    said = []

    def of_first(self, value):
        del self
        if isinstance(value, Measured):
            said.append(value.values["panorama_weight"])
            return Measured(value.score, {**value.values, "panorama_weight": 0.123})
        return value

    monkeypatch.setattr(Ranks, "of_first", of_first)
    out = train(recipe(CHOSEN, "optim.epochs=1", f"optim.ema_decay={average}"), toy, tmp_path / "run")
    assert len(said) == 1
    assert said[0] != 0.123
    assert [line["panorama_weight"] for line in validations(out)] == [0.123]
    for path in (out / "best.safetensors", *last_checkpoint(out).glob("*.safetensors")):
        assert weight_of(path) == 0.123
