import dataclasses
import json
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import load_file
from toy_dataset import toy_dataset

import cvgl_models.training.loop as training_module
from cvgl_data.errors import CheckpointError, DatasetError, RecipeError, UnknownNameError, WorkspaceError
from cvgl_data.recipe import resolve
from cvgl_models.checkpoint import last_checkpoint, load_weights
from cvgl_models.recipe import ModelRecipe
from cvgl_models.run_folder import _git_revision as git_revision
from cvgl_models.run_folder import run_recipe
from cvgl_models.systems import create_system
from cvgl_models.training import learning_rate, train
from cvgl_models.training.feed import Images
from cvgl_models.training.optimizer import WeightAverage, create_optimizer
from cvgl_models.training.preparing import init_aggregators

TABLES = {
    "name": "tiny",
    "views": {"query": "bev", "query_height_px": 16, "bev_m": 60.0, "reference_px": 16},
    "encoder": {"backbone": "cvgl_small_cnn", "pretrained": False, "shared": False},
    "sampler": {"batch_size": 8, "neighbor_select": 4, "neighbor_range": 8},
    "optim": {"epochs": 3},
    "loader": {"workers": 0},
    "validation": {"every_n_epochs": 1},
}


def recipe(*overrides):
    return resolve(ModelRecipe, TABLES, overrides)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tiny networks lose by a second thread, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=4, test_grid=2)


@pytest.fixture(scope="module")
def uninterrupted(toy, tmp_path_factory):
    return train(recipe(), toy, tmp_path_factory.mktemp("runs") / "whole")


def final_weights(run):
    return load_file(last_checkpoint(run) / "weights.safetensors")


def log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_time(lines):
    timed = {"elapsed_s", "images_per_s", "data_wait_share"}
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(("step", "expected"), [(0, 0), (50, 5e-4), (100, 1e-3), (550, 5e-4), (1000, 0)])
def test_schedule(step, expected):
    assert learning_rate(step, 1000, 100, 1e-3) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [0, 5e-4, 1e-3, 5e-4, 1e-4, 0]), ("constant", [0, 5e-4, 1e-3, 1e-3, 1e-3, 1e-3])],
)
def test_other_schedules(schedule, expected):
    steps = (0, 50, 100, 550, 910, 1000)
    rates = [learning_rate(step, 1000, 100, 1e-3, schedule) for step in steps]
    assert rates == pytest.approx(expected, abs=1e-12)
    assert learning_rate(1, 1000, 0, 1e-3, schedule) == pytest.approx(1e-3, rel=2e-3)


def test_a_run_has_the_schedule_and_the_optimizer_of_its_recipe(toy, tmp_path):
    run = train(recipe("optim.schedule=constant", "optim.warmup_epochs=0", "optim.epochs=2"), toy, tmp_path / "run")
    assert {line["lr"] for line in log(run) if "lr" in line} == {recipe().optim.lr}
    system = create_system(recipe())
    made = create_optimizer(
        system, dataclasses.replace(recipe().optim, betas=(0.5, 0.9), eps=1e-7), torch.device("cpu")
    )
    assert {(group["betas"], group["eps"]) for group in made.param_groups} == {((0.5, 0.9), 1e-7)}


@pytest.mark.parametrize(
    ("step", "expected", "bound"),
    [
        (0, 0, 0),
        (5_092, 4.9995e-4, 5e-9),
        (10_185, 1e-3, 0),
        (203_700, 5.20133e-4, 5e-10),
        (407_399, 0, 2e-14),
        (407_400, 0, 0),
    ],
)
def test_schedule_of_the_published_run_on_cvcities(step, expected, bound):
    """162,954 pairs by 16 are 10,185 steps per epoch; the first of 40 epochs is the warm-up."""
    assert abs(learning_rate(step, 407_400, 10_185, 1e-3) - expected) <= bound


def test_what_a_run_leaves(uninterrupted, toy):
    assert {path.name for path in uninterrupted.iterdir()} == {
        "recipe.toml", "environment.json", "metrics.jsonl", "best.safetensors", "checkpoints",
    }  # fmt: skip
    assert run_recipe(uninterrupted) == recipe()
    environment = json.loads((uninterrupted / "environment.json").read_text())
    assert environment["data"]["num_references"] == toy.references.num_rows
    steps = [line for line in log(uninterrupted) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 3 * 5 + 1))
    assert set(steps[0]) == {
        "loss", "info_nce", "lr", "grad_norm", "elapsed_s", "epoch", "step", "images_per_s", "data_wait_share",
    }  # fmt: skip
    assert all(line["images_per_s"] > 0 and 0 <= line["data_wait_share"] <= 1 for line in steps)
    assert sum("validation_recall_at_1" in line for line in log(uninterrupted)) == 3
    assert last_checkpoint(uninterrupted).name == "step-00000015"


def test_the_same_again_is_bit_identical(uninterrupted, toy, tmp_path):
    assert same(final_weights(train(recipe(), toy, tmp_path / "again")), final_weights(uninterrupted))
    assert not same(final_weights(train(recipe("seed=1"), toy, tmp_path / "other")), final_weights(uninterrupted))


@pytest.mark.parametrize("stop_at", [3, 5, 12])
def test_stopped_and_resumed_is_bit_identical(uninterrupted, toy, tmp_path, stop_at):
    run = train(recipe(), toy, tmp_path / "run", max_steps=stop_at)
    assert last_checkpoint(run).name == f"step-{stop_at:08d}"
    train(recipe(), toy, run)
    assert same(final_weights(run), final_weights(uninterrupted))
    assert same(load_file(run / "best.safetensors"), load_file(uninterrupted / "best.safetensors"))
    assert without_time(log(run)) == without_time(log(uninterrupted))


def test_killed_between_checkpoints_and_resumed_is_bit_identical(uninterrupted, toy, tmp_path):
    class Killed(BaseException):
        pass

    def kill(values):
        if values["step"] == 8:
            raise Killed

    with pytest.raises(Killed):
        train(recipe(), toy, tmp_path / "run", on_step=kill)
    log_file = tmp_path / "run" / "metrics.jsonl"
    log_file.write_text(log_file.read_text() + '{"step": 9, "lo')
    (tmp_path / "run" / "checkpoints" / "step-00000008.tmp").mkdir()
    train(recipe(), toy, tmp_path / "run")
    assert same(final_weights(tmp_path / "run"), final_weights(uninterrupted))
    assert without_time(log(tmp_path / "run")) == without_time(log(uninterrupted))


def test_resume_with_dropout_is_bit_identical(toy, tmp_path, monkeypatch):
    def with_dropout(recipe):
        system = create_system(recipe)
        for encoder in (system.encoder.query, system.encoder.reference):
            encoder.backbone.head = torch.nn.Sequential(torch.nn.Dropout(0.5), encoder.backbone.head)
        return system

    monkeypatch.setattr(training_module, "create_system", with_dropout)
    whole = train(recipe("optim.epochs=1"), toy, tmp_path / "whole")
    parts = train(recipe("optim.epochs=1"), toy, tmp_path / "parts", max_steps=2)
    torch.rand(7)
    assert same(final_weights(train(recipe("optim.epochs=1"), toy, parts)), final_weights(whole))


@pytest.mark.parametrize("workers", [0, 2])
def test_decoding_in_every_epoch_gives_the_same(uninterrupted, toy, tmp_path, workers):
    run = train(recipe("loader.memory_mb=0", f"loader.workers={workers}"), toy, tmp_path / "run", max_steps=5)
    short = train(recipe(), toy, tmp_path / "short", max_steps=5)
    assert same(final_weights(run), final_weights(short))


def test_a_finished_run_is_left_alone(uninterrupted, toy):
    before = (uninterrupted / "metrics.jsonl").stat().st_mtime_ns
    train(recipe(), toy, uninterrupted)
    assert (uninterrupted / "metrics.jsonl").stat().st_mtime_ns == before


def test_the_callers_random_numbers_are_left_alone(toy, tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    train(recipe(), toy, tmp_path / "run", max_steps=1)
    assert torch.equal(torch.rand(2), expected)


def test_stopping(toy, tmp_path):
    run = train(recipe(), toy, tmp_path / "run", should_stop=lambda: len(asked.append(1) or asked) > 3)
    assert 0 < int(last_checkpoint(run).name.removeprefix("step-")) < 15
    run = train(recipe(), toy, tmp_path / "short", time_limit_s=0.0)
    assert last_checkpoint(run) is None


asked = []


def test_another_recipe_in_the_same_folder(toy, tmp_path):
    run = train(recipe(), toy, tmp_path / "run", max_steps=1)
    with pytest.raises(WorkspaceError, match=r"optim\.lr: 0\.001 -> 0\.002"):
        train(recipe("optim.lr=2e-3"), toy, run)
    train(recipe("optim.lr=2e-3"), toy, run, max_steps=2, overwrite=True)
    assert run_recipe(run).optim.lr == 2e-3
    assert len(log(run)) == 2


def test_other_data_in_the_same_folder(toy, tmp_path):
    run = train(recipe(), toy, tmp_path / "run", max_steps=1)
    with pytest.raises(WorkspaceError, match="other data"):
        train(recipe(), toy_dataset(grid=4, test_grid=1), run)


def test_a_folder_that_is_no_run(toy, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(WorkspaceError, match="no run folder"):
            train(recipe(), toy, tmp_path, overwrite=overwrite)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["manifest.json", ".cvgl"])
def test_overwrite_never_touches_a_dataset(toy, tmp_path, name):
    for own in ("recipe.toml", "environment.json", name):
        (tmp_path / own).write_text("mine")
    with pytest.raises(WorkspaceError, match=r"holds a dataset .*; choose another folder$"):
        train(recipe(), toy, tmp_path, overwrite=True)
    assert all((tmp_path / own).read_text() == "mine" for own in ("recipe.toml", "environment.json", name))


def test_a_recipe_alone_makes_no_run_folder(toy, tmp_path):
    (tmp_path / "recipe.toml").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(WorkspaceError, match=r"no run folder; choose another folder$"):
            train(recipe(), toy, tmp_path, overwrite=overwrite)
    assert (tmp_path / "recipe.toml").read_text() == "mine"


def test_overwrite_deletes_the_run_and_nothing_else(toy, tmp_path):
    run = train(recipe(), toy, tmp_path / "run", max_steps=1)
    (run / "eval" / "test").mkdir(parents=True)
    (run / "best.safetensors").write_bytes(b"old")
    (run / "notes.txt").write_text("mine")
    train(recipe(), toy, run, max_steps=2, overwrite=True)
    assert not (run / "eval").exists()
    assert not (run / "best.safetensors").exists()
    assert (run / "notes.txt").read_text() == "mine"
    assert len(log(run)) == 2


@pytest.mark.parametrize("name", ["recipe.toml", "environment.json"])
def test_a_damaged_run_folder_is_an_error(toy, tmp_path, name):
    run = train(recipe(), toy, tmp_path / "run", max_steps=1)
    (run / name).write_text("{half")
    with pytest.raises(CheckpointError, match=rf"{name}' is damaged"):
        train(recipe(), toy, run)
    train(recipe(), toy, run, max_steps=1, overwrite=True)
    assert run_recipe(run) == recipe()


@pytest.mark.parametrize(("text", "message"), [("= half", "is damaged"), ("name = 'a'\nseed = -1", "'seed' must be")])
def test_a_damaged_recipe_of_a_run(tmp_path, text, message):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(CheckpointError, match=rf"recipe\.toml' .*{message}"):
        run_recipe(tmp_path)


def test_a_file_in_the_place_of_the_run_folder(toy, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WorkspaceError, match="file' is a file; choose another folder"):
        train(recipe(), toy, tmp_path / "file", overwrite=True)
    with pytest.raises(WorkspaceError, match=r"cannot be used: .*; choose another folder"):
        train(recipe(), toy, tmp_path / "file" / "run")


def test_the_git_revision_is_that_of_our_checkout(uninterrupted, tmp_path):
    package = tmp_path / "ours" / "cvgl_models"
    installed = tmp_path / "ours" / "venv" / "cvgl_models"
    installed.mkdir(parents=True)
    package.mkdir()
    assert git_revision(package) == ""
    as_somebody = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*as_somebody, *command], cwd=package.parent, check=True, capture_output=True)
    assert len(git_revision(package)) == 40
    assert git_revision(installed) == ""
    assert git_revision(tmp_path / "missing") == ""
    assert "git_revision" in json.loads((uninterrupted / "environment.json").read_text())


def test_a_wrong_recipe_leaves_nothing_behind_and_destroys_nothing(toy, tmp_path):
    with pytest.raises(RecipeError, match="only 16 references have training queries"):
        train(recipe("sampler.batch_size=17"), toy, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    run = train(recipe(), toy, tmp_path / "run", max_steps=1)
    for wrong, error in (("sampler.batch_size=17", RecipeError), ("encoder.backbone=cvgl_smal_cnn", UnknownNameError)):
        with pytest.raises(error):
            train(recipe(wrong), toy, run, overwrite=True)
    assert run_recipe(run) == recipe()
    assert last_checkpoint(run) is not None


def test_without_validation_queries_the_last_weights_are_the_best(toy, tmp_path):
    split = toy.queries["split"].to_pylist()
    queries = toy.queries.set_column(
        toy.queries.schema.get_field_index("split"), "split", [["train" if s == "validation" else s for s in split]]
    )
    run = train(recipe("optim.epochs=2"), dataclasses.replace(toy, queries=queries), tmp_path / "run")
    assert same(load_file(run / "best.safetensors"), final_weights(run))


def test_an_infinite_loss_is_an_error(toy, tmp_path, monkeypatch):
    def broken(recipe):
        system = create_system(recipe)
        torch.nn.init.constant_(system.encoder.query.backbone.head.weight, float("inf"))
        return system

    monkeypatch.setattr(training_module, "create_system", broken)
    with pytest.raises(DatasetError, match="the loss is nan at step 0"):
        train(recipe(), toy, tmp_path / "run")


def test_a_damaged_checkpoint_is_an_error(toy, tmp_path):
    run = train(recipe(), toy, tmp_path / "run", max_steps=1)
    (last_checkpoint(run) / "state.pt").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"state\.pt' cannot be read"):
        train(recipe(), toy, run)
    (last_checkpoint(run) / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights file"):
        train(recipe(), toy, run)


def test_shared_weights_are_saved_once_and_loaded_for_both(toy, tmp_path):
    run = train(recipe("encoder.shared=true"), toy, tmp_path / "run", max_steps=1)
    weights = final_weights(run)
    assert not any(key.startswith("encoder.reference") for key in weights)
    system = create_system(run_recipe(run))
    load_weights(last_checkpoint(run) / "weights.safetensors", system)
    assert torch.equal(system.encoder.reference.backbone.head.weight, weights["encoder.query.backbone.head.weight"])


def test_the_loss_goes_down(toy, tmp_path):
    plain = [f"augment.{name}=0.0" for name in ("flip", "rotate", "color", "blur", "cut")]
    run = train(recipe("optim.epochs=14", "optim.lr=2e-3", *plain), toy, tmp_path / "run")
    losses = [line["loss"] for line in log(run) if "loss" in line]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


MINING = ("sampler.similarity_every_n_epochs=1", "sampler.exclude_semi_positives=true")
AVERAGE = ("optim.ema_decay=0.9",)
EVERYTHING = (*MINING, *AVERAGE, "optim.optimizer=sgd", "optim.lr=0.01", "sampler.anchors=2")


@pytest.mark.parametrize("kill_at", [4, 7, 11])
def test_killed_with_everything_on_and_resumed_is_bit_identical(toy, tmp_path, kill_at):
    class Killed(BaseException):
        pass

    def kill(values):
        if values["step"] == kill_at:
            raise Killed

    whole = train(recipe(*EVERYTHING), toy, tmp_path / "whole")
    with pytest.raises(Killed):
        train(recipe(*EVERYTHING), toy, tmp_path / "run", on_step=kill)
    train(recipe(*EVERYTHING), toy, tmp_path / "run", max_steps=kill_at + 2)
    train(recipe(*EVERYTHING), toy, tmp_path / "run")
    assert same(final_weights(tmp_path / "run"), final_weights(whole))
    for name in ("best.safetensors", "checkpoints/step-00000015/average.safetensors"):
        assert same(load_file(tmp_path / "run" / name), load_file(whole / name))
    assert without_time(log(tmp_path / "run")) == without_time(log(whole))


def test_mined_neighbors_change_the_batches_and_are_kept(toy, tmp_path, uninterrupted):
    run = train(recipe(*MINING), toy, tmp_path / "run")
    first, then = ([line["loss"] for line in log(each) if "loss" in line] for each in (run, uninterrupted))
    assert first[:5] == then[:5]  # the first epoch has the distance map
    assert first[5:] != then[5:]
    state = torch.load(last_checkpoint(run) / "state.pt", weights_only=True)
    assert state["neighbors"]["epoch"] == 2
    assert state["neighbors"]["rows"].shape == (16, 8)
    assert all(r not in near for r, near in enumerate(state["neighbors"]["rows"].tolist()))


def test_the_average_is_what_is_validated_and_kept(toy, tmp_path, uninterrupted):
    steps = []
    run = train(recipe(*AVERAGE), toy, tmp_path / "run", on_step=lambda values: steps.append(values["step"]))
    assert steps == list(range(1, 16))
    assert same(final_weights(run), final_weights(uninterrupted))  # looking on changes nothing
    average = load_file(last_checkpoint(run) / "average.safetensors")
    assert not same(average, final_weights(run))
    assert any(line.get("validation_recall_at_1") is not None for line in log(run))
    assert load_file(run / "best.safetensors").keys() == average.keys()


def test_the_average_by_hand():
    system = create_system(recipe())
    average = WeightAverage(system, 0.5)
    name, weight = next(iter(system.named_parameters()))
    start = weight.detach().clone()
    expected = start.clone()
    for step in range(3):
        with torch.no_grad():
            weight.add_(1.0)
        average.update(system, step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weight.detach()
    torch.testing.assert_close(dict(average.system.named_parameters())[name], expected)
    assert not any(parameter.requires_grad for parameter in average.system.parameters())


def test_early_stop(toy, tmp_path, monkeypatch):
    recalls = iter([0.1, 0.3, 0.2, 0.3, 0.9])
    monkeypatch.setattr(training_module.Validator, "measure", lambda self, embed: (next(recalls), 1.0))
    options = ("optim.epochs=5", "optim.patience=2")
    run = train(recipe(*options), toy, tmp_path / "run")
    assert [line["validation_recall_at_1"] for line in log(run) if "validation_recall_at_1" in line] == [
        0.1,
        0.3,
        0.2,
        0.3,
    ]
    assert last_checkpoint(run).name == "step-00000020"
    before = (run / "metrics.jsonl").read_bytes()
    train(recipe(*options), toy, run)  # it is finished and stays so
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "options", [("optim.precision=fp16",), ("optim.precision=bf16",), ("optim.channels_last=false",)]
)
def test_other_ways_to_compute_come_to_the_same(toy, tmp_path, uninterrupted, options):
    options = (*options, "optim.epochs=1")
    run = train(recipe(*options), toy, tmp_path / "run", max_steps=3)
    train(recipe(*options), toy, run)
    losses = [[line["loss"] for line in log(each) if "loss" in line][:1] for each in (run, uninterrupted)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    whole = train(recipe(*options), toy, tmp_path / "whole")
    assert same(final_weights(whole), final_weights(run))
    if "optim.precision=fp16" in options:
        assert torch.load(last_checkpoint(run) / "state.pt", weights_only=True)["scaler"]["scale"] > 0


def test_a_network_that_cannot_be_compiled_runs_all_the_same(toy, tmp_path, monkeypatch, caplog, uninterrupted):
    def compile(function):
        def broken(batch):
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

        return broken

    monkeypatch.setattr(torch, "compile", compile)
    run = train(recipe("optim.compile=true"), toy, tmp_path / "run")
    assert [record.message for record in caplog.records if "compile" in record.message] == [
        "the network cannot be compiled and runs uncompiled: no compiler"
    ]
    assert same(final_weights(run), final_weights(uninterrupted))


def test_a_compiled_network_is_used_and_other_errors_come_through(toy, tmp_path, monkeypatch, uninterrupted):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda batch: calls.append(1) or function(batch))
    run = train(recipe("optim.compile=true", "optim.epochs=1"), toy, tmp_path / "run")
    assert len(calls) >= 10
    assert final_weights(run).keys() == final_weights(uninterrupted).keys()
    monkeypatch.setattr(torch, "compile", lambda function: lambda batch: [][0])
    with pytest.raises(IndexError):
        train(recipe("optim.compile=true"), toy, tmp_path / "broken")


class Recorder:
    """In place of TensorBoard and of W&B."""

    def __init__(self, *arguments, **options):
        self.arguments, self.options, self.logged, self.closed = arguments, options, [], False

    def add_scalar(self, name, value, step):
        self.logged.append((name, value, step))

    def log(self, values, step):
        self.logged += [(name, value, step) for name, value in values.items()]

    def flush(self):
        pass

    def close(self):
        self.closed = True

    finish = close


def test_other_logs(toy, tmp_path, monkeypatch):
    made = []

    def make(*arguments, **options):
        made.append(Recorder(*arguments, **options))
        return made[-1]

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=make))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=make))
    options = recipe("log.tensorboard=true", "log.wandb_project=city")
    run = train(options, toy, tmp_path / "run", max_steps=2)
    train(options, toy, run, max_steps=5)
    board, service, later = made[0], made[1], made[2]
    lines = [line for line in log(run) if "loss" in line]
    for each in (board, service):
        assert [entry for entry in each.logged if entry[0] == "loss"] == [
            ("loss", lines[n]["loss"], n + 1) for n in (0, 1)
        ]
        assert each.closed
    assert later.options["purge_step"] == 3
    assert service.options["mode"] == "offline"
    assert service.options["project"] == "city"
    assert any(name == "validation_recall_at_1" for name, _, _ in later.logged)


def test_a_log_that_cannot_be_had(toy, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RecipeError, match=r"'log\.wandb_project' needs the package wandb; install it or unset the key"):
        train(recipe("log.wandb_project=city"), toy, tmp_path / "run")
    assert not (tmp_path / "run").exists()

    def unreachable(**options):
        raise OSError("no route")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=unreachable))
    train(recipe("log.wandb_project=city"), toy, tmp_path / "run", max_steps=1)
    assert "nothing is logged to Weights & Biases: no route" in caplog.text


def test_a_run_of_an_earlier_version_goes_on(toy, tmp_path, uninterrupted):
    """Keys that came later have their defaults."""
    run = train(recipe(), toy, tmp_path / "run", max_steps=3)
    text = (run / "recipe.toml").read_text()
    kept = [line for line in text.splitlines() if not line.startswith(("ema_decay", "micro_batch", "anchors"))]
    assert len(kept) == len(text.splitlines()) - 3
    (run / "recipe.toml").write_text("\n".join(kept))
    train(recipe(), toy, run)
    assert same(final_weights(run), final_weights(uninterrupted))


def test_a_head_that_begins_with_what_it_sees(toy):
    options = ["encoder.aggregator=netvlad", "encoder.backbone=test_convnext", "encoder.shared=true"]
    chosen = recipe(*options, "views.query_height_px=64", "views.reference_px=64")
    images = Images(toy.select("train"), chosen)
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        system = create_system(chosen)
        before = {name: value.clone() for name, value in system.state_dict().items()}
        init_aggregators(system, images, torch.device("cpu"))
        weights.append(system.state_dict())
    changed = {name for name, value in before.items() if not torch.equal(value, weights[0][name])}
    assert "encoder.query.aggregator.centroids" in changed
    assert all(".aggregator." in name for name in changed)
    assert same(*weights)


def test_mining_goes_round_broken_images_that_are_skipped(toy, tmp_path):
    """They are looked at by nobody: neither trained on nor in the way of a search for neighbors."""
    name = toy.select("train").queries["query_id"][0].as_py()
    broken = dataclasses.replace(toy, images={**toy.images, name: b"no image"})
    mining = ("sampler.similarity_every_n_epochs=1", "optim.epochs=2")
    for memory_mb in (0, 100):
        options = (*mining, f"loader.memory_mb={memory_mb}")
        run = train(recipe(*options, "loader.on_error=skip"), broken, tmp_path / str(memory_mb))
        assert log(run)
        with pytest.raises(DatasetError, match=name):
            train(recipe(*options), broken, tmp_path / f"not-{memory_mb}")
