import dataclasses
import json
import logging
import math
import re

import localizers
import numpy as np
import pyarrow as pa
import pytest
from cvgl_cli.train import app
from localizers import recipe
from PIL import Image
from toy_dataset import CORNER, GSD_M, render_panorama, toy_dataset
from typer.testing import CliRunner

import cvgl_models.localization.evaluation as evaluation_module
import cvgl_models.serving as serving_module
from cvgl_data.errors import DatasetError, RecipeError
from cvgl_data.geo import distance_m, lonlat_from_pixel
from cvgl_models.localization.conditions import PoseConditions
from cvgl_models.localization.evaluation import cases, evaluate_poses
from cvgl_models.localization.refining import Refiner, lonlat_of
from cvgl_models.serving import geojson, locate, summary
from cvgl_models.systems import task_of
from cvgl_models.training import train


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


def test_evaluation(run, toy):
    report = evaluate_poses(run, toy)
    assert report.whole.num_pairs == 12
    assert report.whole.median_error_m < 0.5
    assert report.center.median_error_m > 20
    assert report.whole.recall_within_m["1"] > 0.9
    assert report.calibration["nll_per_m2"] < report.calibration["nll_per_m2_uniform"] - 3
    assert report.setting["protocol"] == "cross-area"
    folder = run / "eval" / "test"
    document = json.loads((folder / "metrics.json").read_text())
    assert document["whole"]["median_error_m"] == report.whole.median_error_m
    lines = (folder / "pairs.csv").read_text().splitlines()
    assert len(lines) == 13
    heads = lines[0].split(",")
    part = toy.select("test")
    places = dict(
        zip(
            part.queries["query_id"].to_pylist(),
            zip(part.queries["lon"].to_pylist(), part.queries["lat"].to_pylist(), strict=True),
            strict=True,
        )
    )
    for line in lines[1:]:
        row = dict(zip(heads, line.split(","), strict=True))
        away = float(distance_m(float(row["lon"]), float(row["lat"]), *places[row["query_id"]]))
        assert away == pytest.approx(float(row["error_m"]), abs=0.03)  # longitude and latitude agree with metres


def test_metrics_come_from_disk_and_never_from_elsewhere(run, toy, monkeypatch):
    evaluate_poses(run, toy)
    calls = []
    computed = evaluation_module._computed

    def counted(*args):
        calls.append(args)
        return computed(*args)

    monkeypatch.setattr(evaluation_module, "_computed", counted)
    evaluate_poses(run, toy)
    assert not calls
    evaluate_poses(run, toy, conditions=PoseConditions(heading_noise_deg=10.0))  # other conditions
    assert len(calls) == 1
    evaluate_poses(run, toy, random_init=True)  # other weights
    assert len(calls) == 2
    evaluate_poses(run, toy, conditions=PoseConditions(heading_noise_deg=10.0))
    evaluate_poses(run, toy, random_init=True)
    assert len(calls) == 2
    fewer = dataclasses.replace(
        toy,
        queries=toy.queries.set_column(
            toy.queries.schema.get_field_index("sha256"),
            "sha256",
            pa.array([f"x{i}" for i in range(toy.queries.num_rows)]),
        ),
    )
    evaluate_poses(run, fewer)  # other images
    assert len(calls) == 3
    index = fewer.pairs.schema.get_field_index("u")
    moved = fewer.pairs.set_column(index, fewer.pairs.schema.field(index), pa.array(fewer.pairs["u"].to_numpy() + 9.0))
    worse = evaluate_poses(run, dataclasses.replace(fewer, pairs=moved))  # the same images, other labels
    assert len(calls) == 4
    assert worse.whole.median_error_m == pytest.approx(9 * GSD_M, abs=0.5)
    evaluate_poses(run, fewer)
    assert len(calls) == 5
    (run / "eval" / "test" / "predictions.npz").write_bytes(b"damaged")
    evaluate_poses(run, fewer)
    assert len(calls) == 6
    assert {path.name for path in (run / "eval").iterdir()} >= {"test", "test-noise10", "test-untrained"}


def test_evaluation_of_a_retrieval_run(toy, tmp_path):
    from test_training import recipe as retrieval_recipe

    other = train(retrieval_recipe("optim.epochs=1"), toy, tmp_path / "retrieval")
    assert task_of(retrieval_recipe()) == "retrieval"
    assert task_of(recipe()) == "localization"
    with pytest.raises(RecipeError, match="localization run"):
        evaluate_poses(other, toy)
    with pytest.raises(RecipeError, match="localization run"):
        Refiner(other, toy)


def test_cases_are_disjoint_and_sorted():
    error = np.array([5.0, math.inf, 1.0, 3.0, 2.0, 9.0, 4.0, 8.0, 0.5, 6.0])
    found = cases(error, 2)
    assert found["best"].tolist() == [8, 2]
    assert found["worst"].tolist() == [1, 5]
    assert set(found["median"].tolist()) == {6, 0}
    assert sum(len(part) for part in cases(error, 50).values()) <= 10
    assert cases(error[:2])["best"].tolist() == [0, 1]


def test_page(run, toy):
    evaluate_poses(run, toy, conditions=PoseConditions(heading_noise_deg=20.0), page=True)
    page = (run / "eval" / "test-noise20" / "index.html").read_text()
    evaluate_poses(run, toy, conditions=PoseConditions(heading_noise_deg=20.0), page=True)
    assert (run / "eval" / "test-noise20" / "index.html").read_text() == page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert data["error_curve"][-1][1] == 1.0
    assert len(data["vectors"]) == 12
    assert page.count('class="case"') == 12
    assert page.count("data:image/webp;base64,") == 24
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "{{" not in page
    assert "Headings known to ±20°" in page
    plain = evaluate_poses(run, toy, conditions=PoseConditions(heading_noise_deg=20.0), page=True, page_images=False)
    assert plain.whole.num_pairs == 12
    assert (run / "eval" / "test-noise20" / "index.html").read_text().count("data:image/webp;base64,") == 12


def test_the_haze_lies_where_the_map_says():
    from cvgl_models.localization.page import overlaid

    scores = np.full((10, 10), -50.0)
    scores[2, 7] = 0.0
    shown = overlaid(None, scores, np.array([-20.0, -20.0, 20.0, 20.0]), 80.0).astype(int)
    red = np.argwhere(shown[..., 0] - shown[..., 1] > 50) / 224  # the map is the middle half of the reference
    assert red.min(0) == pytest.approx([0.25 + 0.5 * 0.2, 0.25 + 0.5 * 0.7], abs=0.01)
    assert red.max(0) == pytest.approx([0.25 + 0.5 * 0.3, 0.25 + 0.5 * 0.8], abs=0.01)


# Second stage of `locate`


@pytest.fixture(scope="module")
def retrieval(toy, tmp_path_factory):
    from test_training import recipe as retrieval_recipe

    return train(retrieval_recipe("optim.epochs=1"), toy, tmp_path_factory.mktemp("runs") / "retrieval")


def photo(path, x_px, y_px, heading_deg=0.0):
    Image.fromarray(render_panorama(x_px, y_px, heading_deg=heading_deg).astype(np.uint8)).save(path)
    return path


def test_lonlat_of_places(toy):
    references = toy.references
    lon, lat = lonlat_of(references, np.array([3, 3]), np.array([[0.0, 0.0], [np.nan, 0.0]]))
    assert lon[0] == pytest.approx(references["lon"][3].as_py())
    assert lat[0] == pytest.approx(references["lat"][3].as_py())
    assert np.isnan(lon[1])
    lon, lat = lonlat_of(references, np.array([3]), np.array([[12.0, 30.0]]))
    assert lat[0] < references["lat"][3].as_py()
    assert lon[0] > references["lon"][3].as_py()


def _cropped(run, folder):
    """Return a copy of the run that is shown the middle of references only."""
    copy = folder / "cropped"
    copy.mkdir()
    for name in ("recipe.toml", "environment.json", "best.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    text = (copy / "recipe.toml").read_text()
    assert "reference_crop = 1.0" in text
    (copy / "recipe.toml").write_text(text.replace("reference_crop = 1.0", "reference_crop = 0.8"))
    return copy


@pytest.mark.parametrize(
    ("said_deg", "noise_deg", "tolerance_deg"), [(70.0, 0.0, 0.01), (60.0, 20.0, 5.0), (0.0, 180.0, 5.0)]
)
def test_refined_place_and_heading(run, retrieval, toy, tmp_path, said_deg, noise_deg, tolerance_deg):
    x, y = CORNER + 256 + 90.0, CORNER + 256 + 150.0
    path = photo(tmp_path / "photo.png", x, y, heading_deg=70.0)
    near = (*(float(value) for value in lonlat_from_pixel(CORNER + 384.0, CORNER + 384.0, 18)), 40.0)  # one reference
    (found,) = locate(retrieval, [path], toy, near=near, heading_deg=said_deg, refine=run, heading_noise_deg=noise_deg)
    lon, lat = (float(value) for value in lonlat_from_pixel(x, y, 18))
    assert float(distance_m(found.lon, found.lat, lon, lat)) < 1.0
    assert abs((found.pose.heading_deg - 70.0 + 180) % 360 - 180) <= tolerance_deg
    assert (found.pose.lon, found.pose.lat) == (found.lon, found.lat)
    assert found.pose.radius95_m > 0
    (cut,) = locate(
        retrieval,
        [path],
        toy,
        near=near,
        heading_deg=said_deg,
        refine=_cropped(run, tmp_path),
        heading_noise_deg=noise_deg,
    )
    assert float(distance_m(cut.lon, cut.lat, lon, lat)) < 1.0
    point, *candidates = geojson([found])["features"]
    assert point["properties"]["rank"] == 0
    assert point["geometry"]["coordinates"] == [found.lon, found.lat]
    assert len(candidates) == 1
    assert re.search(r"±\d+\.\d m, heading \d+\.\d°", summary(found))


def test_the_best_of_several_references(run, retrieval, toy, tmp_path):
    x, y = CORNER + 256 + 90.0, CORNER + 256 + 150.0
    path = photo(tmp_path / "photo.png", x, y)
    (found,) = locate(retrieval, [path], toy, top_k=2, refine=run, refine_top=13)
    lon, lat = (float(value) for value in lonlat_from_pixel(x, y, 18))
    assert float(distance_m(found.lon, found.lat, lon, lat)) < 1.0
    assert len(found.candidates) == 2


def test_refining_needs_images(run, retrieval, toy, tmp_path):
    path = photo(tmp_path / "photo.png", CORNER + 100.0, CORNER + 100.0)
    locate(retrieval, [path], toy)
    with pytest.raises(DatasetError, match="--data"):
        locate(retrieval, [path], refine=run)
    refiner = Refiner(run, dataclasses.replace(toy, images={}))
    name = toy.references["reference_id"][0].as_py()
    with pytest.raises(DatasetError, match="is missing"):
        refiner.refine(path.read_bytes(), [name])
    with pytest.raises(DatasetError, match="no reference 'elsewhere'"):
        refiner.refine(path.read_bytes(), ["elsewhere"])
    with pytest.raises(RecipeError, match="heading noise"):
        refiner.refine(path.read_bytes(), [name], heading_noise_deg=200.0)
    assert refiner.refine(path.read_bytes(), []) is None
    with pytest.raises(DatasetError, match="the image cannot be used"):
        Refiner(run, toy).refine(b"broken", [name])


# Command line


@pytest.fixture
def from_memory(toy, monkeypatch):
    """Let every dataset folder be the toy; logging is afterwards what it was before the program configured it."""
    level, handlers = logging.root.level, logging.root.handlers[:]
    monkeypatch.setattr(evaluation_module, "open_for_views", lambda data, *args, **options: toy)
    monkeypatch.setattr(serving_module, "open_dataset", lambda data: toy)
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_evaluate_on_the_command_line(run, from_memory):
    runner = CliRunner()
    told = runner.invoke(app, ["evaluate", str(run), "--data", "toy", "--json", "--quiet", "--heading-noise", "10"])
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    assert report["setting"]["conditions"]["heading_noise_deg"] == 10
    assert report["whole"]["num_pairs"] == 12
    shown = runner.invoke(app, ["evaluate", str(run), "--data", "toy", "--quiet", "--page"])
    assert shown.exit_code == 0, shown.output
    for text in ("median error", "centre", "longitudinal within 1 m", "area b", "inside the 95 % radius"):
        assert text in shown.stdout
    assert (run / "eval" / "test" / "index.html").is_file()


@pytest.mark.parametrize(
    "options",
    [["--legacy"], ["--sheet", "x.png"], ["--fill", "crop"], ["--heading", "unknown", "--heading-noise", "3"]],
)
def test_options_of_the_other_task(run, from_memory, options):
    told = CliRunner().invoke(app, ["evaluate", str(run), "--data", "toy", "--quiet", *options])
    assert told.exit_code == 2


def test_locate_on_the_command_line(run, retrieval, from_memory, tmp_path):
    path = photo(tmp_path / "photo.png", CORNER + 100.0, CORNER + 100.0, heading_deg=30.0)
    command = ["locate", str(retrieval), str(path), "--data", "toy", "--refine", str(run), "--heading", "30", "--quiet"]
    told = CliRunner().invoke(app, [*command, "--json", "--refine-top", "3"])
    assert told.exit_code == 0, told.output
    (found,) = json.loads(told.stdout)
    assert found["pose"]["heading_deg"] == 30.0
    assert found["lon"] == found["pose"]["lon"]
    shown = CliRunner().invoke(app, command)
    assert "heading 30.0°" in shown.stdout
    shown = CliRunner().invoke(app, [*command, "--geojson"])
    assert json.loads(shown.stdout)["features"][0]["properties"]["heading_deg"] == 30.0
