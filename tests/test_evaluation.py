import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_training import recipe
from toy_dataset import render_panorama, toy_dataset

import cvgl_models.evaluation as evaluation_module
from cvgl_data.errors import CheckpointError, DatasetError, UnknownNameError, WorkspaceError
from cvgl_models.evaluation import embed, evaluate, load_system
from cvgl_models.serving import locate
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
    assert json.loads((folder / "report.json").read_text())["recall_at_1"] == report.recall_at_1
    query, reference = np.load(folder / "queries.npy"), np.load(folder / "references.npy")
    assert (query.shape, reference.shape) == ((27, 256), (9, 256))
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1, atol=1e-5)
    truth = toy.select("test").positives()
    sims = query @ reference.T
    assert report.recall_at_1 == pytest.approx(np.mean(sims.argmax(1) == truth))
    assert report.chance_recall_at_1 == pytest.approx(1 / 9)


def test_embeddings_are_kept(fresh, toy, monkeypatch):
    first = evaluate(fresh, toy)
    monkeypatch.setattr(evaluation_module, "embed_views", None)
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
    assert (fresh / "eval" / "test-untrained" / "report.json").is_file()
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


def test_locate(run, toy, tmp_path):
    path = tmp_path / "somewhere.png"
    Image.fromarray(render_panorama(2**25 + 100.0, 2**25 + 100.0).astype(np.uint8)).save(path)
    turned = tmp_path / "turned.png"
    Image.fromarray(render_panorama(2**25 + 100.0, 2**25 + 100.0, heading_deg=90.0).astype(np.uint8)).save(turned)
    (found,) = locate(run, [path], toy, top_k=4)
    assert found.image == str(path)
    assert len(found.candidates) == 4
    scores = [candidate.score for candidate in found.candidates]
    assert scores == sorted(scores, reverse=True)
    ids = toy.references["reference_id"].to_pylist()
    row = ids.index(found.candidates[0].reference_id)
    assert (found.lon, found.lat) == (toy.references["lon"][row].as_py(), toy.references["lat"][row].as_py())
    (same,) = locate(run, [turned], toy, top_k=4, heading_deg=90.0)
    assert same.candidates[0].score == pytest.approx(found.candidates[0].score, abs=0.02)


def test_locate_without_images(run, toy, tmp_path):
    with pytest.raises(DatasetError, match="no image file"):
        locate(run, [tmp_path / "missing.jpg"], toy)
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"broken\.jpg' cannot be used"):
        locate(run, [tmp_path / "broken.jpg"], toy)
    assert locate(run, [], toy) == []


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
