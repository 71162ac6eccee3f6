import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from test_training import recipe
from toy_dataset import toy_dataset

import cvgl_models.evaluation.embeddings as embeddings_module
from cvgl_data.errors import CheckpointError, DatasetError, RecipeError, UnknownNameError, WorkspaceError
from cvgl_models.evaluation import Conditions, embed, evaluate, load_system, truth
from cvgl_models.evaluation.calibration import Calibration, calibrate, fit, lead, reliability
from cvgl_models.evaluation.conditions import seen_pixels
from cvgl_models.evaluation.truth import protocol, years_of
from cvgl_models.sheets import contact_sheet
from cvgl_models.training import train


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=4, test_grid=3)


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    return train(recipe("optim.epochs=1"), toy, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def fresh(run, tmp_path):
    """Return a copy of the run without its embeddings."""
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("recipe.toml", "environment.json", "best.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    return copy


def test_evaluate(fresh, toy):
    report = evaluate(fresh, toy)
    assert (report.num_queries, report.num_references, report.num_uncovered) == (27, 9, 0)
    folder = fresh / "eval" / "test"
    assert json.loads((folder / "metrics.json").read_text())["recall_at_1"] == report.recall_at_1
    query, reference = np.load(folder / "queries.npy"), np.load(folder / "references.npy")
    assert (query.shape, reference.shape) == ((27, 256), (9, 256))
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, atol=1e-5)
    truth = toy.select("test").positives()
    sims = query @ reference.T
    assert report.recall_at_1 == pytest.approx(np.mean(sims.argmax(1) == truth))
    assert report.chance_recall_at_1 == pytest.approx(1 / 9)


def test_embeddings_are_kept(fresh, toy, monkeypatch):
    first = evaluate(fresh, toy)
    monkeypatch.setattr(embeddings_module, "embed_views", None)
    assert evaluate(fresh, toy) == first
    with pytest.raises(TypeError):
        evaluate(fresh, toy, "validation")


def test_embeddings_of_other_weights_or_data_are_not_used(fresh, toy):
    before = np.array(embed(fresh, toy).reference_RD)
    other = toy_dataset(grid=4, test_grid=3, seed=5)
    column = other.queries.schema.get_field_index("sha256")
    hashes = [[f"other {row}" for row in range(other.queries.num_rows)]]
    embed(fresh, dataclasses.replace(other, queries=other.queries.set_column(column, "sha256", hashes)))
    meta = json.loads((fresh / "eval" / "test" / "query.json").read_text())
    again = embed(fresh, toy)
    assert meta != json.loads((fresh / "eval" / "test" / "query.json").read_text())
    np.testing.assert_array_equal(again.reference_RD, before)


@pytest.mark.parametrize("name", ["query.json", "queries.npy"])
def test_half_written_embeddings_are_computed_again(fresh, toy, name):
    first = np.array(embed(fresh, toy).query_QD)
    path = fresh / "eval" / "test" / name
    for size in (path.stat().st_size // 2, 0):
        path.write_bytes(path.read_bytes()[:size])
        np.testing.assert_array_equal(embed(fresh, toy).query_QD, first)


def test_no_room_for_embeddings(fresh, toy):
    (fresh / "eval").write_text("a file")
    with pytest.raises(WorkspaceError, match=r"cannot be made"):
        embed(fresh, toy)


def test_no_query_is_covered(fresh, toy):
    with pytest.raises(DatasetError, match="no query of split 'test' is covered by a reference; nothing to measure"):
        evaluate(fresh, dataclasses.replace(toy, pairs=toy.pairs.slice(0, 0)))


def test_untrained_only_on_purpose(toy, fresh):
    (fresh / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no trained weights"):
        evaluate(fresh, toy)
    report = evaluate(fresh, toy, random_init=True)
    assert report.num_references == 9
    assert (fresh / "eval" / "test-untrained" / "metrics.json").is_file()
    assert not (fresh / "eval" / "test").exists()


def test_untrained_weights_are_those_training_began_with(run):
    one, two = (load_system(run, random_init=True)[0] for _ in range(2))
    trained = load_system(run)[0]
    key = "encoder.query.backbone.head.weight"
    assert torch.equal(one.state_dict()[key], two.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], trained.state_dict()[key])


def test_a_stopped_run_can_be_evaluated(toy, tmp_path):
    run = train(recipe(), toy, tmp_path / "run", max_steps=2)
    assert not (run / "best.safetensors").exists()
    assert evaluate(run, toy).num_queries == 27


def test_weights_of_another_network(fresh, toy):
    text = (fresh / "recipe.toml").read_text().replace("shared = false", "shared = true")
    (fresh / "recipe.toml").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.safetensors' do not fit: they have unknown encoder\.reference"):
        evaluate(fresh, toy)


def test_no_run_and_no_split(tmp_path, run, toy):
    with pytest.raises(CheckpointError, match=r"no run folder: it has no recipe\.toml"):
        evaluate(tmp_path, toy)
    with pytest.raises(UnknownNameError, match="unknown split 'tset'; did you mean 'test'"):
        evaluate(run, toy, "tset")
    nobody = dataclasses.replace(toy, queries=toy.queries.slice(0, 0), pairs=toy.pairs.slice(0, 0))
    with pytest.raises(DatasetError, match="split 'test' has no queries"):
        evaluate(run, nobody)


def test_contact_sheet(run, toy, tmp_path):
    path = contact_sheet(run, toy, tmp_path / "sheets" / "test.png", num=3)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    assert sheet.height == pytest.approx(3 * sheet.width * 204 / 1464, rel=0.05)
    blue = (pixels == [0x2B, 0x6C, 0xB0]).all(-1)
    framed = (pixels == [0x1A, 0x96, 0x41]).all(-1) | (pixels == [0xD7, 0x19, 0x1C]).all(-1)
    assert blue.any()
    assert framed.sum() > 4 * blue.sum()
    assert contact_sheet(run, toy, tmp_path / "all.png", num=1000).is_file()


def test_contact_sheet_of_the_untrained_model(fresh, toy, tmp_path):
    (fresh / "best.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no trained weights"):
        contact_sheet(fresh, toy, tmp_path / "sheet.png", num=1)
    assert contact_sheet(fresh, toy, tmp_path / "sheet.png", num=1, random_init=True).is_file()
    assert (fresh / "eval" / "test-untrained").is_dir()


def with_column(table, name, values):
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


def test_metrics_and_table_of_queries(fresh, toy):
    report = evaluate(fresh, toy, legacy=True)
    assert report.setting["protocol"] == "cross-area"
    assert report.legacy["recall_at_1"] >= report.recall_at_1
    lines = (fresh / "eval" / "test" / "queries.csv").read_text().splitlines()
    assert len(lines) == 28
    ranks = [int(line.split(",")[4]) for line in lines[1:]]
    assert np.mean(np.array(ranks) == 1) == pytest.approx(report.recall_at_1)
    before = (fresh / "eval" / "test" / "metrics.json").read_bytes()
    evaluate(fresh, toy, legacy=True)
    assert (fresh / "eval" / "test" / "metrics.json").read_bytes() == before


def test_dates_and_protocols(toy):
    years = years_of(pa.array(["2021", "2021-07", "2021-07-31T10:00:00Z", "", None, "yesterday", "2021-13"]))
    np.testing.assert_allclose(years[:3], [2021.5, 2021 + 6.5 / 12, 2021 + (6 + 30.5 / 31) / 12])
    assert np.isnan(years[3:]).all()
    assert protocol(toy, "test") == "cross-area"
    assert protocol(toy, "validation") == "same-area"
    part = toy.select("test")
    dated = dataclasses.replace(
        part,
        queries=with_column(part.queries, "captured", ["2020"] * 27),
        references=with_column(part.references, "captured", ["2023"] * 8 + [""]),
    )
    gap = truth(dated).age_gap_years
    assert np.unique(gap[~np.isnan(gap)]).tolist() == [-3.0]
    assert np.isnan(gap).sum() == 3


def test_headings_depend_on_id_and_seed_alone():
    conditions = Conditions(fov_deg=90, heading="unknown")
    one, two = conditions.headings_deg(["a", "b", "c"]), conditions.headings_deg(["c", "a"])
    assert (one[0], one[2]) == (two[1], two[0])
    assert ((one >= 0) & (one < 360)).all()
    assert not np.array_equal(one, Conditions(fov_deg=90, seed=1).headings_deg(["a", "b", "c"]))
    many = conditions.headings_deg([str(number) for number in range(4000)])
    assert np.histogram(many, 4, (0, 360))[0] == pytest.approx([1000] * 4, abs=120)
    assert Conditions().headings_deg(["a"]).tolist() == [0.0]
    assert Conditions(fov_deg=90, fill="crop").headings_deg(["a"]).tolist() == [0.0]


def test_seen_pixels():
    seen = seen_pixels((4, 360), np.array([0.0, 180.0, 350.0]), 90.0, "panorama")
    assert seen.shape == (3, 1, 360)
    assert seen.sum((1, 2)).tolist() == [90, 90, 90]
    assert seen[0, 0, 135:225].all()
    assert seen[1, 0, :45].all()
    assert seen[1, 0, 315:].all()
    assert seen[2, 0, 125:215].all()
    bev = seen_pixels((8, 8), np.array([0.0, 90.0]), 90.0, "bev")
    assert bev[0, 0].all()  # north, at the top
    assert not bev[0, 4:].any()
    assert bev[1, :, 7].all()
    torch.testing.assert_close(bev[1], torch.rot90(bev[0], -1))


def test_limited_field_of_view_of_panoramas():
    views = torch.randint(1, 256, (2, 3, 4, 16), dtype=torch.uint8)
    (zero,) = Conditions(fov_deg=90, heading="unknown").limited(iter([views]), ["a", "b"], "panorama")
    (crop,) = Conditions(fov_deg=90, heading="unknown", fill="crop").limited(iter([views]), ["a", "b"], "panorama")
    assert torch.equal(crop, views[..., 6:10])
    assert torch.equal(zero[..., 6:10], crop)
    assert zero.sum() == crop.sum()
    known = Conditions(fov_deg=90)
    parts = torch.cat(list(known.limited(iter(views.split(1)), ["a", "b"], "panorama")))
    (whole,) = known.limited(iter([views]), ["a", "b"], "panorama")
    assert torch.equal(parts, whole)
    with pytest.raises(RecipeError, match="top views"):
        list(Conditions(fov_deg=90, fill="crop").limited(iter([views]), ["a", "b"], "bev"))


def test_unknown_heading_rolls_the_panorama(toy):
    part = toy.select("test")
    conditions = Conditions(heading="unknown", seed=3)
    turned = conditions.turned(part).queries["heading_deg"].to_numpy()
    looks = conditions.headings_deg(part.queries["query_id"].to_pylist())
    np.testing.assert_allclose((turned + looks) % 360, 0, atol=1e-3)
    assert Conditions(fov_deg=70).turned(part) is part


@pytest.mark.parametrize("wrong", [{"fov_deg": 0}, {"fov_deg": 361}, {"heading": "north"}, {"fill": "white"}])
def test_wrong_conditions(wrong):
    with pytest.raises(RecipeError):
        Conditions(**wrong)


def test_conditions_have_their_own_queries_and_share_the_gallery(fresh, toy):
    plain = embed(fresh, toy)
    hard = embed(fresh, toy, conditions=Conditions(fov_deg=90, heading="unknown"))
    assert hard.folder.name == "test-fov90-unknown"
    assert sorted(path.name for path in hard.folder.iterdir()) == ["queries.npy", "query.json"]
    assert not np.allclose(hard.query_QD, plain.query_QD)
    np.testing.assert_array_equal(hard.reference_RD, plain.reference_RD)
    report = evaluate(fresh, toy, conditions=Conditions(fov_deg=90, heading="unknown"))
    assert report.setting["conditions"]["fov_deg"] == 90
    assert (hard.folder / "metrics.json").is_file()


def drawn_scores(num, seed=0):
    rng = np.random.default_rng(seed)
    score, margin = rng.uniform(0.2, 0.9, num), rng.exponential(0.1, num)
    sure = 1 / (1 + np.exp(-(4 * (score - 0.5) + 12 * (margin - 0.1))))
    return score, margin, rng.random(num) < sure, sure


def test_confidence_comes_near_the_true_probability():
    score, margin, hit, _ = drawn_scores(2000)
    fitted = fit(score, margin, hit, 100)
    assert fitted.expected_calibration_error < 0.05
    score, margin, hit, sure = drawn_scores(4000, 1)
    said = fitted.confidence(score, margin)
    assert np.abs(said - sure).mean() < 0.03
    assert reliability(said, hit).expected_calibration_error < 0.04
    assert fitted.confidence(np.array([-np.inf]), np.array([-np.inf])).tolist() == [0.0]


@pytest.mark.parametrize("outcome", [True, False])
def test_confidence_is_never_certain(outcome):
    score, margin, _, _ = drawn_scores(30)
    said = fit(score, margin, np.full(30, outcome)).confidence(score, margin)
    assert ((said > 0) & (said < 1)).all()
    assert (said > 0.9).all() if outcome else (said < 0.1).all()
    constant = fit(np.ones(40), np.zeros(40), np.arange(40) < 10)
    assert constant.confidence(np.ones(1), np.zeros(1))[0] == pytest.approx(0.25, abs=0.05)
    with pytest.raises(ValueError, match="too few"):
        fit(score[:19], margin[:19], np.ones(19, bool))


def test_reliability_bins():
    found = reliability(np.array([0.1] * 5 + [0.9] * 5), np.array([False] * 5 + [True] * 5), bins=2)
    assert found.expected_calibration_error == pytest.approx(0.1)
    assert (found.num, found.share) == ((5, 5), (0.0, 1.0))
    assert np.isnan(reliability(np.empty(0), np.empty(0, bool)).expected_calibration_error)


def test_lead_over_another_place():
    windows = pa.table({"x": [0, 64, 256, 2048], "y": [0, 0, 0, 0], "size": [256] * 4, "zoom": [18] * 4})
    rows = np.array([[0, 1, 2, 3], [0, 1, -1, -1], [-1, -1, -1, -1]])
    scores = np.array([[0.9, 0.8, 0.6, 0.1], [0.9, 0.8, -np.inf, -np.inf], [-np.inf] * 4])
    score, margin = lead(rows, scores, windows)
    np.testing.assert_allclose(score, [0.9, 0.9, -np.inf])
    np.testing.assert_allclose(margin, [0.3, 0.1, -np.inf])


def test_calibration_is_kept_with_the_run(fresh, toy, caplog):
    assert calibrate(fresh, toy) is None
    assert "too few" in caplog.text
    fitted = calibrate(fresh, toy, split="train")
    path = fresh / "eval" / "calibration.json"
    assert Calibration.load(path) == fitted
    before = path.stat().st_mtime_ns
    assert calibrate(fresh, toy, split="train") == fitted
    assert path.stat().st_mtime_ns == before
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="is damaged"):
        Calibration.load(path)
    assert calibrate(fresh, toy, split="train") == fitted


def test_evaluation_says_how_far_confidences_are_off(fresh, toy):
    split = ["validation" if name == "train" else name for name in toy.queries["split"].to_pylist()]
    report = evaluate(fresh, dataclasses.replace(toy, queries=with_column(toy.queries, "split", split)))
    assert sum(report.calibration["num"]) == 27
    assert 0 <= report.calibration["expected_calibration_error"] <= 1
    assert "calibration error of the confidence" in dict(report.rows())
    assert evaluate(fresh, toy, calibrated=False).calibration is None
