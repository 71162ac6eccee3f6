"""The whole story, as a user tells it: build, open, train, stop, go on, evaluate, locate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
BOXES = ("--clip", "train=-122.3250,47.6100,-122.3195,47.6140", "--clip", "test=-122.3450,47.6560,-122.3410,47.6590")
SMALL = ("--set", "panoramas.options.width=512", "--set", "panoramas.width=512", "--set", "split.block_m=200")
FAST = ("--set", "optim.epochs=12", "--set", "sampler.batch_size=16", "--set", "validation.every_n_epochs=12")


def cvgl(program: str, *words: str) -> str:
    done = subprocess.run([str(BIN / f"cvgl-{program}"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    sources = ("--imagery", "simulated", "--panoramas", "simulated")
    queries = ("--test-area", "test", "--max-queries", "200", "--set", "areas.1.max=60")
    out = ("--out", str(folder / "data"), "--json")
    told = cvgl("data", "build", "--city", "Seattle", "--zoom", "18", *sources, *BOXES, *queries, *SMALL, *out)
    assert json.loads(told)["outcomes"]["queries"] == {"ok": 260}
    return folder


def test_train_evaluate_locate(folder):
    data, run = str(folder / "data"), folder / "run"
    cvgl("train", "run", "demo", "--data", data, "--out", str(run), "--max-steps", "20", *FAST)
    cvgl("train", "run", "demo", "--data", data, "--out", str(run), *FAST)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert [step["step"] for step in steps if "loss" in step] == list(range(1, len(losses) + 1))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])

    sheet = folder / "sheet.png"
    trained = json.loads(cvgl("train", "evaluate", str(run), "--data", data, "--json", "--sheet", str(sheet)))
    untrained = json.loads(cvgl("train", "evaluate", str(run), "--data", data, "--json", "--untrained"))
    assert trained["num_queries"] == untrained["num_queries"] == 60
    assert trained["recall_at_10"] > untrained["recall_at_10"]
    assert sheet.stat().st_size > 100_000

    from cvgl_data import open_dataset

    dataset = open_dataset(folder / "data").select("test")
    photo = folder / "photo.jpg"
    photo.write_bytes(dataset.images[dataset.queries["query_id"][0].as_py()])
    (found,) = json.loads(cvgl("train", "locate", str(run), str(photo), "--data", data, "--json"))
    assert len(found["candidates"]) == 5
    assert (found["lon"], found["lat"]) == (found["candidates"][0]["lon"], found["candidates"][0]["lat"])


def test_the_hub_library_opens_what_was_built(folder, monkeypatch):
    import datasets

    datasets.disable_progress_bars()
    queries = datasets.load_dataset(str(folder / "data"), "queries", split="train")
    assert queries[0]["image"].size == (512, 256)
    references = datasets.load_dataset(str(folder / "data"), "references", split="gallery")
    assert references[0]["image"].size == (256, 256)
