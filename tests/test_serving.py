import dataclasses
import json

import numpy as np
import pytest
import torch
from cvgl_cli.train import app
from PIL import Image
from test_training import recipe
from toy_dataset import render_panorama, toy_dataset
from typer.testing import CliRunner

import cvgl_models.gallery as gallery_module
import cvgl_models.serving as serving_module
from cvgl_data.errors import CheckpointError, DatasetError
from cvgl_data.geo import distance_m
from cvgl_models.evaluation.calibration import calibrate
from cvgl_models.gallery import open_gallery
from cvgl_models.serving import geojson, load_model, locate, summary
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
    """Return a copy of the run without its gallery."""
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("recipe.toml", "environment.json", "best.safetensors"):
        (copy / name).write_bytes((run / name).read_bytes())
    return copy


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(render_panorama(2**25 + 100.0, 2**25 + 100.0).astype(np.uint8)).save(path)
    return path


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


def test_one_broken_image_does_not_take_the_others_along(run, toy, photo, tmp_path):
    broken, gone = tmp_path / "broken.jpg", tmp_path / "gone.jpg"
    broken.write_bytes(b"broken")
    errors: list[DatasetError] = []
    found = locate(run, [gone, photo, broken, photo], toy, on_error=errors.append)
    assert [one.image for one in found] == [str(photo)] * 2
    assert found[0] == found[1]
    (alone,) = locate(run, [photo], toy)
    assert [one.reference_id for one in found[0].candidates] == [one.reference_id for one in alone.candidates]
    assert found[0].candidates[0].score == pytest.approx(alone.candidates[0].score, abs=1e-5)  # of a batch of one
    assert [str(error).split("'")[1] for error in errors] == [str(gone), str(broken)]
    assert locate(run, [gone, broken], toy, on_error=errors.append) == []
    assert len(errors) == 4


def test_broken_images_on_the_command_line(run, toy, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(serving_module, "open_dataset", lambda data: toy)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"broken")

    def typed(*images):
        return CliRunner().invoke(app, ["locate", str(run), *map(str, images), "--data", "toy", "--json", "-q"])

    done = typed(photo, broken)
    assert done.exit_code == 3
    assert [one["image"] for one in json.loads(done.stdout)] == [str(photo)]
    assert "broken.jpg' cannot be used" in done.stderr
    done = typed(broken, tmp_path / "gone.jpg")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == []
    assert "no image file" in done.stderr


def test_gallery_is_kept_and_needs_no_data_again(fresh, toy, photo, monkeypatch):
    with pytest.raises(CheckpointError, match="has no gallery yet"):
        locate(fresh, [photo])
    first = locate(fresh, [photo], toy)
    monkeypatch.setattr(gallery_module, "embed_all_references", None)
    assert locate(fresh, [photo]) == first
    assert locate(fresh, [photo], toy) == first
    _, _, gallery = open_gallery(fresh)
    assert gallery.references["reference_id"].to_pylist() == toy.references["reference_id"].to_pylist()
    assert gallery.embedding_RD.shape == (25, 256)


def test_gallery_of_other_data_or_weights_is_made_again(fresh, toy, photo):
    locate(fresh, [photo], toy)
    fewer = toy.select("test")
    assert len(open_gallery(fresh, fewer)[2].references) == 9
    facts = fresh / "eval" / "gallery" / "index.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "weights": "other"}))
    with pytest.raises(CheckpointError, match="gallery of other weights"):
        locate(fresh, [photo])
    assert len(open_gallery(fresh, toy)[2].references) == 25


@pytest.mark.parametrize("name", ["embeddings.safetensors", "references.parquet", "index.json"])
def test_damaged_gallery_is_made_again(fresh, toy, name):
    first = open_gallery(fresh, toy)[2]
    path = fresh / "eval" / "gallery" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(open_gallery(fresh, toy)[2].embedding_RD, first.embedding_RD)
    assert path.read_bytes() == whole


def test_near_searches_only_what_is_near(fresh, toy, photo):
    lon, lat = toy.references["lon"][20].as_py(), toy.references["lat"][20].as_py()
    (found,) = locate(fresh, [photo], toy, top_k=30, near=(lon, lat, 200.0))
    away = distance_m(lon, lat, toy.references["lon"].to_numpy(), toy.references["lat"].to_numpy())
    expected = {toy.references["reference_id"][int(row)].as_py() for row in np.flatnonzero(away <= 200)}
    assert {candidate.reference_id for candidate in found.candidates} == expected
    assert 1 < len(expected) < 25
    with pytest.raises(DatasetError, match="the nearest is"):
        locate(fresh, [photo], toy, near=(lon + 10, lat, 5.0))
    with pytest.raises(DatasetError, match="is no place"):
        locate(fresh, [photo], toy, near=(lat, 190.0, 5.0))


def test_confidence_and_outputs(fresh, toy, photo):
    (unsure,) = locate(fresh, [photo], toy)
    assert unsure.confidence is None
    assert "confidence unknown" in summary(unsure)
    calibrate(fresh, toy, split="train")
    (found,) = locate(fresh, [photo], toy, top_k=3)
    assert 0 < found.confidence < 1
    assert dataclasses.replace(found, confidence=None).candidates == unsure.candidates[:3]
    assert summary(found) == f"{photo}: {found.lon:.6f}, {found.lat:.6f} (confidence {found.confidence:.0%})"
    drawn = json.loads(json.dumps(geojson([found]), allow_nan=False))
    assert [feature["properties"]["rank"] for feature in drawn["features"]] == [1, 2, 3]
    assert drawn["features"][0]["geometry"]["coordinates"] == [found.lon, found.lat]
    assert drawn["features"][0]["properties"]["confidence"] == found.confidence


def test_model_embeds_as_the_gallery_was_embedded(fresh, toy):
    model = load_model(fresh)
    ids = toy.references["reference_id"].to_pylist()
    embedded = model.embed_references([toy.images[name] for name in ids])
    np.testing.assert_allclose(embedded, open_gallery(fresh, toy)[2].embedding_RD, atol=1e-6)
    with pytest.raises(DatasetError, match="no images"):
        model.embed_queries([])
    with pytest.raises(DatasetError, match="an image cannot be used"):
        model.embed_queries([b"broken"])
