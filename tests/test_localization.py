import contextlib
import dataclasses
import json
import math

import localizers
import numpy as np
import pyarrow as pa
import pytest
import torch
from localizers import recipe
from toy_dataset import GSD_M, toy_dataset

import cvgl_models.localization.evaluation as evaluation_module
from cvgl_data.errors import DatasetError, RecipeError
from cvgl_data.geo import distance_m
from cvgl_data.selection import choose_ids
from cvgl_models.evaluation.conditions import Conditions
from cvgl_models.localization.conditions import PoseConditions, with_prior, without
from cvgl_models.localization.predicting import Collected, Show, in_order, localize, only_pairs, truth_and_poses
from cvgl_models.training import train
from cvgl_models.training.localizing import PoseValidator
from cvgl_models.transforms import Batch


@pytest.fixture(scope="module", autouse=True)
def _ready():
    with localizers.registered(), localizers.one_thread():
        yield


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=3, test_grid=2)


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    return train(recipe(), toy, tmp_path_factory.mktemp("runs") / "run")


def log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def measured(dataset, conditions=PoseConditions(), *overrides, split="test"):  # noqa: B008
    """Return truth and poses of the untrained system."""
    pairs = only_pairs(dataset.select(split), conditions.pairs)
    system, collected = localizers.NccLocalizer(recipe(*overrides)).eval(), Collected()
    with Show(pairs, recipe(*overrides), conditions) as show:
        for one in show.batches(in_order(len(show), 8)):
            collected.add(one, localize(system, one.batch, torch.device("cpu"), contextlib.nullcontext))
    return truth_and_poses(pairs, collected.arrays())


# What a model is shown and told


def test_places_are_found_far_better_than_by_chance(toy):
    truth, poses = measured(toy)
    error = np.hypot(*(poses.xy_m - truth.xy_m).T)
    assert np.median(np.hypot(*truth.xy_m.T)) > 20
    assert np.median(error) < 0.3  # of 2.4 m per pixel
    assert np.abs((poses.xy_m - truth.xy_m).mean(0)).max() < 0.2  # no bias


@pytest.mark.parametrize("noise_deg", [30.0, 180.0])
def test_headings_are_found_with_their_sign(toy, noise_deg):
    truth, poses = measured(toy, PoseConditions(heading_noise_deg=noise_deg), "options.num_yaws=24")
    away = np.abs((poses.yaw_deg - truth.yaw_deg + 180) % 360 - 180)
    assert np.abs(truth.yaw_deg).max() > noise_deg / 2
    assert (np.abs(truth.yaw_deg) <= noise_deg).all()
    assert np.median(away) < 8  # every 15 degrees one is tried
    assert np.median(np.hypot(*(poses.xy_m - truth.xy_m).T)) < 1.0


def test_turns_depend_on_id_and_seed_alone():
    conditions = PoseConditions(heading_noise_deg=20.0)
    names = [f"q{number}" for number in range(2000)]
    turns = conditions.turns_deg(names)
    assert np.array_equal(conditions.turns_deg(names[::-1])[::-1], turns)
    assert not np.array_equal(PoseConditions(heading_noise_deg=20.0, seed=1).turns_deg(names), turns)
    assert PoseConditions(heading_noise_deg=180.0).turns_deg(names) == pytest.approx(turns * 9)
    assert np.abs(turns).mean() == pytest.approx(10.0, rel=0.05)
    assert not PoseConditions().turns_deg(names).any()


def test_queries_drawn_by_their_ids_are_shown_at_all_headings():
    """Datasets are thinned out by a hash of seed and id, too: the same hash would leave a few headings only."""
    chosen = choose_ids([f"q{number}" for number in range(20_000)], 1000)
    turns = PoseConditions(heading_noise_deg=180.0).turns_deg(chosen)
    looks = Conditions(heading="unknown").headings_deg(chosen)
    for low in range(-180, 180, 60):
        assert ((turns >= low) & (turns < low + 60)).mean() == pytest.approx(1 / 6, abs=0.04)
        assert ((looks >= low + 180) & (looks < low + 240)).mean() == pytest.approx(1 / 6, abs=0.04)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, ""),
        ({"heading_noise_deg": 180.0, "seed": 3}, "unknown-seed3"),
        ({"heading_noise_deg": 20.0, "fov_deg": 90.0}, "fov90-noise20"),
        ({"pairs": "covering", "seed": 3}, "covering"),
    ],
)
def test_names_of_conditions(options, name):
    assert PoseConditions(**options).name == name


@pytest.mark.parametrize("options", [{"heading_noise_deg": 181.0}, {"fov_deg": 0.0}, {"pairs": "all"}])
def test_conditions_out_of_range(options):
    with pytest.raises(RecipeError):
        PoseConditions(**options)


def test_a_model_gets_no_labels_but_the_prior(toy):
    pairs = only_pairs(toy.select("test"))
    with Show(pairs, recipe(), PoseConditions(heading_noise_deg=20.0)) as show:
        (one,) = show.batches([np.array([5, 0, 2])])
    assert len(one.batch.uv) == len(one.batch.heading_deg) == 0
    assert one.batch.heading_prior_deg.tolist() == [[0.0, 20.0]] * 3
    assert one.batch.gsd_m.tolist() == pytest.approx([GSD_M * 256 / 64] * 3, rel=1e-3)
    rows = pairs.pairs.take([5, 0, 2]).to_pylist()
    expected = [[(row["u"] - 128) * GSD_M, (row["v"] - 128) * GSD_M] for row in rows]
    assert one.xy_m_B2.tolist() == [pytest.approx(place, rel=1e-3) for place in expected]


def test_priors_of_pinhole_cameras():
    batch = Batch(
        query=torch.zeros(2, 3, 4, 8), heading_deg=torch.tensor([90.0, -30.0]), camera_B33=torch.eye(3).expand(2, 3, 3)
    )
    assert with_prior(batch, 0.0).heading_prior_deg.tolist() == [[90.0, 0.0], [-30.0, 0.0]]
    told = with_prior(batch, 10.0, torch.tensor([4.0, -9.0])).heading_prior_deg
    assert told.tolist() == [[86.0, 10.0], [-21.0, 10.0]]
    assert len(without(batch, "heading_deg").heading_deg) == 0


def test_a_pinhole_camera_is_told_a_heading_that_is_off(toy):
    part = toy.select("test")
    num = part.queries.num_rows
    headings = np.linspace(-170, 170, num)
    queries = part.queries.set_column(
        part.queries.schema.get_field_index("heading_deg"), part.queries.schema.field("heading_deg"), pa.array(headings)
    )
    camera = {"camera_fx_px": 90.0, "camera_fy_px": 80.0, "camera_cx_px": 64.0, "camera_cy_px": 31.0}
    camera |= {"image_width_px": 128.0, "image_height_px": 64.0, "camera_height_m": 1.65}
    for name, value in camera.items():
        queries = queries.append_column(name, pa.array([value] * num))
    pinholes = only_pairs(dataclasses.replace(part, queries=queries))
    views = ("views.query=pinhole", "views.query_width_px=64", "views.query_height_px=32")
    conditions = PoseConditions(heading_noise_deg=10.0)
    with Show(pinholes, recipe(*views), conditions) as show:
        (one,) = show.batches([np.arange(num)])
    center, half_width = one.batch.heading_prior_deg.T
    turns = conditions.turns_deg(pinholes.queries["query_id"].to_pylist())
    assert half_width.tolist() == [10.0] * num
    assert (one.yaw_deg_B - center).tolist() == pytest.approx(turns, abs=1e-4)
    assert one.yaw_deg_B.tolist() == pytest.approx(headings, abs=1e-4)
    assert one.heading_deg_B.tolist() == one.yaw_deg_B.tolist()  # what is ahead of the camera is longitudinal
    assert one.batch.camera_B33[0].tolist() == [[45.0, 0.0, 32.0], [0.0, 40.0, 15.5], [0.0, 0.0, 1.0]]
    with Show(pinholes, recipe(*views), PoseConditions(fov_deg=90.0)) as show:  # noqa: SIM117
        with pytest.raises(RecipeError, match="field of view"):
            list(show.batches([np.arange(2)]))


def test_the_middle_of_references_alone(toy):
    truth, poses = measured(toy, PoseConditions(), "views.reference_crop=0.75", "options.reach_m=12.0")
    inside = truth.decentrality < 0.9
    assert truth.side_m[0] == pytest.approx(0.75 * 256 * GSD_M, rel=1e-3)
    assert inside.sum() >= 5
    assert np.median(np.hypot(*(poses.xy_m - truth.xy_m)[inside].T)) < 0.3


def test_pairs_of_every_covering_reference(toy):
    part = toy.select("test")
    first = part.pairs.slice(0, 1).to_pylist()[0]
    semi = {**first, "reference_row": 1, "reference_id": part.references["reference_id"][1].as_py()}
    semi |= {"relation": "semi_positive", "u": 3.0, "v": 200.0, "decentrality": 0.97}
    more = dataclasses.replace(
        part, pairs=pa.concat_tables([part.pairs, pa.Table.from_pylist([semi], part.pairs.schema)])
    )
    assert only_pairs(more).pairs.num_rows == part.pairs.num_rows
    covering = only_pairs(more, "covering")
    assert covering.pairs.num_rows == part.pairs.num_rows + 1
    assert covering.pairs["query_id"].to_pylist()[:2] == [first["query_id"]] * 2
    assert covering.pairs["reference_id"].to_pylist()[:2] == [first["reference_id"], semi["reference_id"]]
    few = only_pairs(more, max_pairs=3)
    assert few.pairs.num_rows == few.queries.num_rows == 3
    for row in few.pairs.to_pylist():
        assert few.queries["query_id"][row["query_row"]].as_py() == row["query_id"]
        assert few.references["reference_id"][row["reference_row"]].as_py() == row["reference_id"]
    with pytest.raises(DatasetError, match="nothing to localize"):
        only_pairs(dataclasses.replace(part, pairs=part.pairs.slice(0, 0)))


def test_a_limited_field_of_view(toy):
    pairs = only_pairs(toy.select("test"))
    conditions = PoseConditions(fov_deg=90.0, heading_noise_deg=180.0)
    limit = evaluation_module._limit(conditions, recipe())
    with (
        Show(pairs, recipe(), conditions, limit=limit) as show,
        Show(pairs, recipe(), PoseConditions(heading_noise_deg=180.0)) as whole,
    ):
        (one,), (full,) = show.batches([np.arange(4)]), whole.batches([np.arange(4)])
    assert torch.equal(one.batch.query[..., 48:80], full.batch.query[..., 48:80])
    assert not one.batch.query[..., :48].any()
    assert not one.batch.query[..., 80:].any()


# Training


def test_a_run_selects_by_the_median_error(run):
    lines = [line for line in log(run) if "validation_median_error_m" in line]
    assert len(lines) == 2
    assert all(line["validation_median_error_m"] < 1 for line in lines)
    losses = [line["nll"] for line in log(run) if "nll" in line]
    assert losses[-1] < losses[0]  # it learns how sure it may be
    assert (run / "best.safetensors").is_file()


def test_the_best_weights_are_kept(toy, tmp_path, monkeypatch):
    errors = iter([3.0, 1.0, 2.0])

    def predicted(self, batch):
        found = original(self, batch)
        return dataclasses.replace(found, xy_m_B2=found.xy_m_B2 + offset[0])

    offset, original = [0.0], localizers.NccLocalizer.localize

    def validated(values):
        if values["step"] % 6 == 1:
            offset[0] = next(errors, 2.0)

    monkeypatch.setattr(localizers.NccLocalizer, "localize", predicted)
    run = train(recipe("optim.epochs=3"), toy, tmp_path / "run", on_step=validated)
    steps = [line["step"] for line in log(run) if "validation_median_error_m" in line]
    medians = [line["validation_median_error_m"] for line in log(run) if "validation_median_error_m" in line]
    from safetensors import safe_open

    with safe_open(run / "best.safetensors", framework="pt") as file:
        assert int(file.metadata()["step"]) == steps[int(np.argmin(medians))]


def test_stopped_and_resumed_is_the_same(run, toy, tmp_path):
    parts = train(recipe(), toy, tmp_path / "run", max_steps=3)
    train(recipe(), toy, parts)
    plain = [
        [{key: value for key, value in line.items() if not key.endswith(("_s", "share"))} for line in log(each)]
        for each in (run, parts)
    ]
    assert plain[0] == plain[1]


def test_a_weak_system_trains_and_selects_without_positions(toy, tmp_path, monkeypatch):
    seen = []
    step = localizers.WeakLocalizer.training_step

    def training_step(self, batch):
        seen.append((len(batch.uv), batch.query_row.tolist(), batch.reference_row.tolist()))
        return step(self, batch)

    monkeypatch.setattr(localizers.WeakLocalizer, "training_step", training_step)
    run = train(recipe("system=ncc-weak", "sampler.min_distance_m=60"), toy, tmp_path / "run")
    assert seen
    assert {num for num, _, _ in seen} == {0}
    assert all(len(set(references)) == 4 for _, _, references in seen)
    queries = toy.select("train").queries
    lon, lat = queries["lon"].to_numpy(), queries["lat"].to_numpy()
    for _, rows, _ in seen:
        away = distance_m(lon[rows][:, None], lat[rows][:, None], lon[rows], lat[rows]) + np.eye(4) * 1e9
        assert away.min() >= 60
    lines = [line for line in log(run) if "validation_score" in line]
    assert len(lines) == 2
    assert all(line["validation_score"] > 0 for line in lines)
    assert not any("error" in name for line in log(run) for name in line)


def test_who_reads_positions_in_secret_fails(toy, tmp_path):
    with pytest.raises(IndexError):
        train(recipe("system=ncc-cheat"), toy, tmp_path / "run")


def test_a_weak_system_without_criterion_says_so(toy, tmp_path, monkeypatch):
    monkeypatch.delattr(localizers.WeakLocalizer, "validation_score")
    with pytest.raises(RecipeError, match="validation_score"):
        train(recipe("system=ncc-weak", "optim.epochs=1"), toy, tmp_path / "run")


def test_weights_that_diverged_are_never_the_best(toy, monkeypatch):
    monkeypatch.setattr(localizers.WeakLocalizer, "validation_score", lambda self, batch: torch.tensor(math.nan))
    weak = recipe("system=ncc-weak")
    validator = PoseValidator(toy.select("validation"), weak, localizers.WeakLocalizer(weak), torch.device("cpu"))
    assert validator.measure(localizers.WeakLocalizer(weak)).score == (-math.inf, -math.inf)


def test_without_validation_pairs_the_last_weights_count(toy):
    none = dataclasses.replace(toy.select("validation"), pairs=toy.pairs.slice(0, 0))
    validator = PoseValidator(none, recipe(), localizers.NccLocalizer(recipe()), torch.device("cpu"))
    assert all(math.isnan(value) for value in validator.measure(localizers.NccLocalizer(recipe())).score)


def test_the_criterion_sees_batches_like_those_of_training(toy, monkeypatch):
    seen = []

    def validation_score(self, batch):
        seen.append(batch.query_row.tolist())
        return torch.zeros(len(batch.query))

    monkeypatch.setattr(localizers.WeakLocalizer, "validation_score", validation_score)
    weak = recipe("system=ncc-weak", "sampler.min_distance_m=60", "sampler.batch_size=2")
    part = toy.select("train")
    PoseValidator(part, weak, localizers.WeakLocalizer(weak), torch.device("cpu")).measure(
        localizers.WeakLocalizer(weak)
    )
    pairs = only_pairs(part)
    lon, lat = (pairs.queries[name].to_numpy() for name in ("lon", "lat"))
    assert len(seen) == pairs.pairs.num_rows // 2
    for one, other in seen:
        assert float(distance_m(lon[one], lat[one], lon[other], lat[other])) >= 60


def test_what_retrieval_alone_can_do(toy, tmp_path):
    with pytest.raises(RecipeError, match="similarity_every_n_epochs"):
        train(recipe("sampler.similarity_every_n_epochs=1"), toy, tmp_path / "one")
    with pytest.raises(RecipeError, match="micro_batch"):
        train(recipe("optim.micro_batch=2"), toy, tmp_path / "two")


def test_training_with_unknown_headings_tells_so(toy, tmp_path, monkeypatch):
    told = []

    def training_step(self, batch):
        told.append((batch.heading_prior_deg.clone(), batch.heading_deg.clone()))
        return {"nothing": self.log_sureness * 0}

    monkeypatch.setattr(localizers.NccLocalizer, "training_step", training_step)
    train(recipe("augment.heading_noise_deg=40", "optim.epochs=1", "options.num_yaws=6"), toy, tmp_path / "run")
    prior, heading = (torch.cat(parts) for parts in zip(*told, strict=True))
    assert prior.tolist() == [[0.0, 40.0]] * len(prior)
    assert 20 < heading.abs().max() <= 41.5
