"""Localizers trained and tested on published layouts as they lie on disk: a car's camera, and panoramas.

At this size only that all parts fit together can be seen, not that anything is learned: what is shown and told in
training is true, errors are finite, and what is found keeps to what was told.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from localizers import one_thread
from published import make

from cvgl_models.batches import open_for_views
from cvgl_models.localization.conditions import PoseConditions
from cvgl_models.localization.evaluation import evaluate_poses, predict
from cvgl_models.localization.predicting import truth_and_poses
from cvgl_models.recipe import load_recipe
from cvgl_models.systems import SYSTEMS
from cvgl_models.training import train

QUICK = (
    *("optim.epochs=1", "optim.precision=fp32", "sampler.batch_size=2", "sampler.min_distance_m=0.0"),
    *("loader.workers=0", "validation.batch_size=2", "encoder.pretrained=false"),
)
PICTURE = ("views.query_height_px=32", "views.query_width_px=128", "views.reference_px=64")
PANORAMA = ("views.query_height_px=32", "views.query_width_px=64", "views.reference_px=64")
HCNET = ("encoder.backbone=cvgl_small_pyramid", "options.stride=8", "options.top_view_px=64", "options.hidden=16")
CCVPE = (
    *("encoder.backbone=cvgl_small_pyramid", "options.query_stride=8", "options.coarsest_stride=16"),
    *("options.channels=[4, 2]", "options.direction_channels=[16, 8]", "options.head_channels=16"),
)
G2SWEAKLY = (
    *('views.query="pinhole"', "views.camera_height_m=1.65", *PICTURE, "augment.heading_noise_deg=10.0"),
    *("encoder.backbone=cvgl_small_unet", "augment.rotate=0.0"),
)
KITTI_NOISE_DEG = 10.0


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kitti")
    make("kitti", folder)
    return f"kitti:{folder}?validation=0.3"


@pytest.fixture(scope="module")
def vigor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vigor")
    make("vigor", folder, cities=("NewYork", "Seattle"), grid=4, queries=8, pixels=64, width=128)
    return f"vigor:{folder}?protocol=cross-area&train=NewYork&test=Seattle"


def away_deg(one, other):
    """Return the angle between bearings, in [0, 180]."""
    return np.abs((np.asarray(one) - np.asarray(other) + 180) % 360 - 180)


def trained(recipe, data, out, monkeypatch):
    """Train; return the run and what each training pair was told: centre, half-width, and its true heading."""
    kind, told = SYSTEMS.load(recipe.system), []
    step = kind.training_step

    def noting(self, batch):
        told.append(np.column_stack([batch.heading_prior_deg.numpy(), batch.heading_deg.numpy()]))
        return step(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "training_step", noting)
        train(recipe, data, out)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for line in logged for value in line.values())
    assert sum("loss" in line for line in logged) == len(told) >= 2
    assert any(name.startswith("validation_") for line in logged for name in line) == data.startswith("kitti")
    return np.concatenate(told)


def check_training(told, noise_deg, column_deg=0.0):
    """Everything told is true; what is told is off by all kinds of angles, and says by how much at most."""
    center, half_width, truth = told.T
    assert (half_width == noise_deg).all()
    off = away_deg(center, truth)
    assert off.max() <= noise_deg + column_deg / 2 + 1e-3
    assert len(np.unique(off.round(3))) > 3


def check_test(run, data, noise_deg):
    """Errors are finite, and the headings found lie within what was told."""
    conditions = PoseConditions(heading_noise_deg=noise_deg)
    report = evaluate_poses(run, data, conditions=conditions)
    assert math.isfinite(report.whole.mean_error_m)
    assert report.whole.median_yaw_error_deg <= 2 * noise_deg
    opened = open_for_views(data, load_recipe(run / "recipe.toml").views)
    found = predict(run, opened, "test", conditions=conditions)
    truth, poses = truth_and_poses(found.dataset, found.values)
    assert len(poses.yaw_deg) >= 3
    turns = conditions.turns_deg(found.dataset.queries["query_id"].to_pylist())
    turns = turns[found.dataset.pairs["query_row"].to_numpy()]
    assert np.ptp(turns) > noise_deg / 10
    told = truth.yaw_deg - turns  # of panoramas 0: they are turned, and what is told is not
    assert away_deg(poses.yaw_deg, told).max() <= noise_deg + 1e-3
    assert np.isfinite(poses.xy_m).all()
    assert (np.abs(poses.xy_m).max(1) <= truth.side_m).all()
    return told


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hcnet-kitti", (*HCNET, "options.iterations=2")),
        ("ccvpe-kitti", (*CCVPE, "options.columns_per_bin=4")),
    ],
)
def test_recipes_for_kitti(name, options, kitti, tmp_path, monkeypatch):
    """The shipped recipe, made small: its cameras are told headings that are off in training as they are at test."""
    recipe = load_recipe(name, [*QUICK, *PICTURE, *options])
    assert recipe.views.query == "pinhole"
    told = trained(recipe, kitti, tmp_path / "run", monkeypatch)
    check_training(told, KITTI_NOISE_DEG)
    assert away_deg(check_test(tmp_path / "run", kitti, KITTI_NOISE_DEG), 0).min() > 45  # references are turned


@pytest.mark.parametrize(
    ("name", "distilled", "options"),
    [
        ("g2sweakly-smoke", "geodistill-smoke", {}),
        ("g2sweakly-kitti", "geodistill-kitti", {"rotation_epochs": 1}),
    ],
)
def test_weak_supervision_on_kitti(name, distilled, options, kitti, tmp_path, monkeypatch):
    """A localizer that sees no position, and one that is distilled from it; both search a heading, or find it."""
    first, second = tmp_path / "first", tmp_path / "second"
    own = [f"options.{key}={value}" for key, value in options.items()]
    recipe = load_recipe(name, [*QUICK, *G2SWEAKLY, *own, f"optim.epochs={1 + len(options)}"])
    check_training(trained(recipe, kitti, first, monkeypatch), KITTI_NOISE_DEG)
    check_test(first, kitti, KITTI_NOISE_DEG)
    own = [f"options.localizer_options.{key}={value}" for key, value in options.items()]
    own += [f"encoder.pretrained={first}", "options.kept_fov_deg=[270.0, 300.0]", "options.ema_every=1"]
    recipe = load_recipe(distilled, [*QUICK, *G2SWEAKLY, *own])
    check_training(trained(recipe, kitti, second, monkeypatch), KITTI_NOISE_DEG)
    check_test(second, kitti, KITTI_NOISE_DEG)


@pytest.mark.parametrize(
    ("name", "options", "noise_deg", "column_deg"),
    [
        ("hcnet-vigor", (*PANORAMA, *HCNET, "options.iterations=2"), 45.0, 360 / 64),
        ("ccvpe-vigor", (*PANORAMA, *CCVPE, "options.num_bins=8"), 180.0, 360 / 64),
    ],
)
def test_recipes_for_vigor(name, options, noise_deg, column_deg, vigor, tmp_path, monkeypatch):
    told = trained(load_recipe(name, [*QUICK, *options]), vigor, tmp_path / "run", monkeypatch)
    check_training(told, noise_deg, column_deg)
    assert np.abs(check_test(tmp_path / "run", vigor, noise_deg)).max() < 1e-6
