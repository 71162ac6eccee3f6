"""The commands behind fetching, as typed: what they print, write, keep and refuse."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
from cvgl_cli import data
from test_cli import run
from typer.testing import CliRunner

from cvgl_data import hub, pipeline
from cvgl_data.dataset import open_dataset
from cvgl_data.recipe import DatasetRecipe, resolve

TABLES = {
    "name": "toy",
    "areas": [{"name": "here", "bbox": [-122.3250, 47.6100, -122.3205, 47.6130]}],
    "imagery": {"source": "simulated"},
    "panoramas": {"source": "simulated", "max": 14, "width": 128, "options": {"width": 128}},
    "split": {"block_m": 90.0, "validation_fraction": 0.0},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "out"
    pipeline.build(resolve(DatasetRecipe, TABLES), folder, workers=1)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "out")


def typed(*words, code=0):
    done = CliRunner().invoke(data.app, [str(word) for word in words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.stdout


def parsed(*words, code=0):
    return json.loads(typed(*words, "--json", code=code))


def test_quality_drops_what_the_recipe_says_and_lists_it(folder):
    before = open_dataset(folder)
    rows = parsed("quality", folder)
    assert {row["kind"] for row in rows} == {"reference", "query"}
    assert all(row["num_dropped"] == 0 for row in rows)
    assert "undecodable" in typed("quality", folder)
    strict = ['quality.drop=["underexposed"]', "quality.luma_mean_min=254"]
    rows = parsed("quality", folder, *(word for value in strict for word in ("--set", value)))
    dropped = {row["kind"]: row["num_dropped"] for row in rows if row["check"] == "underexposed"}
    assert dropped["query"] == before.queries.num_rows
    pipeline_rows = {"reference": before.references.num_rows, "query": before.queries.num_rows}
    assert dropped == pipeline_rows, "every image is darker than that"


def test_a_dropped_query_is_in_no_split_and_in_the_failures(folder):
    measured = pq.read_table(folder / "data" / "quality").to_pylist()
    brightness = {row["id"]: row["luma_mean"] for row in measured if row["kind"] == "query"}
    limit = sorted(brightness.values())[3] + 1e-3
    typed("quality", folder, "--set", 'quality.drop=["underexposed"]', "--set", f"quality.luma_mean_min={limit}")
    gone = {name for name, value in brightness.items() if value < limit}
    for step in ("decentrality", "distance-map", "split", "pack"):
        typed(step, folder)
    after = open_dataset(folder, verify=True)
    assert gone.isdisjoint(after.queries["query_id"].to_pylist())
    failures = pq.read_table(folder / "data" / "failures").to_pylist()
    found = {row["id"]: (row["status"], row["error"]) for row in failures if row["kind"] == "query"}
    assert found == dict.fromkeys(gone, ("quality", "underexposed"))
    assert len(pq.read_table(folder / "data" / "quality")) == len(measured), "what was left out is in the table as well"
    assert typed("verify", folder) == ""


def test_split_takes_other_rules_without_fetching(folder):
    counts = parsed("split", folder, "--set", "split.protocol=random", "--set", "split.test_fraction=0.5")
    assert counts["test"] == pytest.approx(7, abs=1)
    saved = (folder / ".cvgl" / "recipe.toml").read_text()
    assert 'protocol = "random"' in saved
    counts = parsed("split", folder, "--set", "curation.max_queries_per_positive=1")
    assert counts[""] > 0
    refused = run("cvgl-data", "split", str(folder), "--set", "grid.zoom=17")
    assert refused.returncode == 1
    assert "another recipe (grid.zoom: 18 -> 17)" in refused.stderr
    assert (folder / ".cvgl" / "recipe.toml").read_text() != saved


@pytest.mark.parametrize("of", ["references", "queries", "queries-to-references"])
def test_distance_maps(folder, tmp_path, of):
    path = tmp_path / "map.parquet"
    typed("distance-map", folder, "--of", of, "--out", path, "--k", "4", "--legacy-degrees")
    found = pq.read_table(path)
    ids = open_dataset(folder).references["reference_id" if of == "references" else 0]
    assert found.num_rows == (len(ids) if of == "references" else 14)
    assert {len(row) for row in found["neighbor_rows"].to_pylist()} == {4}
    if of != "references":
        typed("distance-map", folder, "--of", of, code=2)


def test_packing_at_other_sizes_and_exports(folder, tmp_path):
    typed("pack", folder, "--pano-size", "64x32", "--reference-size", "64")
    assert (folder / "data" / "queries_64x32").is_dir()
    assert (folder / "data" / "references_64").is_dir()
    assert typed("verify", folder) == ""
    for kind in ("arrow", "webdataset"):
        typed("pack", folder, "--format", kind, "--out", tmp_path / kind)
        assert (tmp_path / kind / "queries").is_dir()
        typed("pack", folder, "--format", kind, code=2)
    typed("pack", folder, "--out", tmp_path / "x", code=2)
    assert "768x384" in run("cvgl-data", "pack", str(folder), "--pano-size", "wide").stderr


def test_looking(folder, tmp_path):
    tables = parsed("stats", folder)
    assert {"decentrality", "years", "sources", "quality"} <= tables.keys()
    assert "decentrality" in typed("stats", folder)
    typed("report", folder, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "image/webp" in page
    typed("report", folder, "--no-images")
    assert len((folder / "report" / "index.html").read_bytes()) < len(page)
    typed("decentrality", folder, "--figures", tmp_path / "figures", "--format", "svg")
    assert (tmp_path / "figures" / "map-here.svg").is_file()


def test_reimage(folder, tmp_path):
    report = parsed("reimage", folder, "--imagery", "simulated-map", "--out", tmp_path / "map", "--workers", "1")
    assert report["outcomes"]["references"]["ok"] == open_dataset(folder).references.num_rows
    wrong = run("cvgl-data", "reimage", str(folder), "--imagery", "simulated-mop", "--out", str(tmp_path / "no"))
    assert (wrong.returncode, "did you mean 'simulated-map'" in wrong.stderr) == (1, True)


def test_push_and_pull(folder, tmp_path, monkeypatch):
    files = {file["path"] for file in parsed("push", folder, "me/toy", "--dry-run")["files"]}
    assert {"README.md", "manifest.json", "croissant.json"} <= files
    assert not any(name.startswith(("data/references/", "data/queries/")) for name in files)
    hub.stage(folder, tmp_path / "staged", repo_id="me/toy")
    found = parsed("pull", tmp_path / "staged", "--out", tmp_path / "again", "--workers", "1")
    assert found["is_identical"]
    assert open_dataset(tmp_path / "again").queries.equals(open_dataset(folder).queries)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wrong = run("cvgl-data", "pull", "nobody", "--out", str(tmp_path / "no"))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
