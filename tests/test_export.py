import json

import numpy as np
import pytest
import torch
from test_serving import fresh, run, toy  # noqa: F401

import cvgl_models.export as export_module
from cvgl_data.errors import CheckpointError, HubError, RecipeError, WorkspaceError
from cvgl_models.evaluation import evaluate
from cvgl_models.evaluation.calibration import calibrate
from cvgl_models.evaluation.embeddings import load_system
from cvgl_models.export import export_model, export_onnx, from_pretrained, push_model, traced_branch
from cvgl_models.serving import load_model, locate
from cvgl_models.transforms import Batch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def exported(fresh, toy, tmp_path):  # noqa: F811
    evaluate(fresh, toy)
    calibrate(fresh, toy, split="train")
    return export_model(fresh, tmp_path / "exported", name="Tiny", licence="cc0-1.0")


def test_embeddings_are_identical_after_the_round_trip(fresh, exported, toy):  # noqa: F811
    before, after = load_model(fresh), from_pretrained(exported)
    images = [toy.images[name] for name in toy.references["reference_id"].to_pylist()[:5]]
    np.testing.assert_array_equal(after.embed_references(images), before.embed_references(images))
    images = [toy.images[name] for name in toy.queries["query_id"].to_pylist()[:5]]
    np.testing.assert_array_equal(after.embed_queries(images, 30.0), before.embed_queries(images, [30.0] * 5))


def test_folder_and_card(exported):
    files = sorted(path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file())
    expected = ["README.md", "calibration.json", "config.json", "metrics/test.json", "model.safetensors", "recipe.toml"]
    assert files == expected
    config = json.loads((exported / "config.json").read_text())
    assert (config["library_name"], config["embedding_size"]) == ("cvgl", 256)
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: cvgl\n")
    assert "license: cc0-1.0\n" in card
    recall = json.loads((exported / "metrics" / "test.json").read_text())["recall_at_1"]
    assert f"| test cross-area | 27 | 9 | {100 * recall:.1f} % |" in card


def test_an_exported_model_does_what_its_run_does(fresh, exported, toy, tmp_path):  # noqa: F811
    photo = tmp_path / "photo.png"
    photo.write_bytes(toy.images[toy.queries["query_id"][0].as_py()])
    (one,), (two,) = locate(fresh, [photo], toy), locate(exported, [photo], toy)
    assert one == two
    assert one.confidence is not None
    assert evaluate(exported, toy).recall_at_10 == evaluate(fresh, toy).recall_at_10


def test_measures_of_other_weights_are_not_shown(fresh, toy, tmp_path):  # noqa: F811
    evaluate(fresh, toy)
    path = fresh / "eval" / "test" / "metrics.json"
    report = json.loads(path.read_text())
    report["setting"]["weights"] = "other"
    path.write_text(json.dumps(report))
    evaluate(fresh, toy, "validation", random_init=True)
    out = export_model(fresh, tmp_path / "exported")
    assert "Nothing was measured" in (out / "README.md").read_text()
    assert list((out / "metrics").iterdir()) == []


def test_export_overwrites_nothing_but_exports(fresh, exported, tmp_path):  # noqa: F811
    with pytest.raises(WorkspaceError, match="--overwrite"):
        export_model(fresh, exported)
    (exported / "mine.txt").write_text("mine")
    export_model(fresh, exported, overwrite=True)
    assert (exported / "mine.txt").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(WorkspaceError, match=r"choose another folder$"):
        export_model(fresh, tmp_path / "other", overwrite=True)


def test_weights_are_not_downloaded_to_be_replaced(fresh, exported):  # noqa: F811
    for folder in (fresh, exported):
        path = folder / "recipe.toml"
        path.write_text(path.read_text().replace("pretrained = false", "pretrained = true"))
        assert load_system(folder)[1].encoder.pretrained is True


def test_what_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="no run folder"):
        from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no model folder 'nowhere'"):
        from_pretrained("nowhere")
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE|cannot be reached|cached"):
        from_pretrained("somebody/something")
    with pytest.raises(CheckpointError, match="no exported model"):
        push_model(tmp_path, "user/name")


def test_push_and_load_back(exported, monkeypatch, tmp_path, toy):  # noqa: F811
    sent = {}

    class Api:
        def create_repo(self, repo_id, private, exist_ok):
            sent["repo"] = (repo_id, private, exist_ok)
            return f"https://hub.example/{repo_id}"

        def upload_folder(self, *, folder_path, **options):
            from fnmatch import fnmatch

            for path in folder_path.rglob("*"):
                name = path.relative_to(folder_path).as_posix()
                if path.is_file() and any(fnmatch(name, pattern) for pattern in options["allow_patterns"]):
                    copy = tmp_path / "hub" / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path / "hub"))
    (exported / "secret.txt").write_text("not ours")
    locate(exported, [], toy)
    assert push_model(exported, "user/name", private=True) == "https://hub.example/user/name"
    assert sent["repo"] == ("user/name", True, True)
    names = sorted(path.relative_to(tmp_path / "hub").as_posix() for path in (tmp_path / "hub").rglob("*.*"))
    assert "secret.txt" not in names
    assert not any(name.startswith("eval") for name in names)
    images = [toy.images[toy.queries["query_id"][0].as_py()]]
    one, two = from_pretrained("user/name"), from_pretrained(exported)
    np.testing.assert_array_equal(one.embed_queries(images), two.embed_queries(images))
    with pytest.raises(HubError, match="no repository id"):
        push_model(exported, "no name")


@pytest.mark.parametrize("side", ["query", "reference"])
def test_traced_branches_give_the_same_embeddings_at_any_batch_size(run, side):  # noqa: F811
    system, resolved, _ = load_system(run)
    traced = traced_branch(system.cpu(), resolved, side).module()
    for size in (1, 3):
        images = torch.rand(size, 3, 16, 16)
        with torch.no_grad():
            embed = system.embed_queries if side == "query" else system.embed_references
            expected = embed(Batch(**{side: images}))
        torch.testing.assert_close(traced(images), expected, rtol=1e-5, atol=1e-6)


def test_onnx_needs_its_packages(run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(export_module, "_is_installed", lambda name: name != "onnxscript")
    with pytest.raises(RecipeError, match="takes onnxscript; install with"):
        export_onnx(run, tmp_path)


def test_onnx_gives_the_same_embeddings(run, tmp_path):  # noqa: F811
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    system, _, _ = load_system(run)
    for path, side in zip(export_onnx(run, tmp_path), ("query", "reference"), strict=True):
        images = torch.rand(3, 3, 16, 16)
        with torch.no_grad():
            embed = system.embed_queries if side == "query" else system.embed_references
            expected = embed(Batch(**{side: images})).numpy()
        (found,) = runtime.InferenceSession(str(path)).run(None, {"image": images.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)
