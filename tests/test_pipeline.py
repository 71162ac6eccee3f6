"""Whole builds: what they leave, that they repeat byte for byte, and that they survive being killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvgl_data import pipeline, planning
from cvgl_data.dataset import open_dataset
from cvgl_data.errors import FetchError, RecipeError, WorkspaceError
from cvgl_data.recipe import DatasetRecipe, resolve
from cvgl_data.workspace import Workspace

WEST = {"name": "west", "bbox": [-122.3300, 47.6200, -122.3270, 47.6215]}
EAST = {"name": "east", "bbox": [-122.3200, 47.6200, -122.3170, 47.6215]}
TABLES = {
    "name": "toy",
    "areas": [WEST, EAST],
    "imagery": {"source": "simulated"},
    "panoramas": {"source": "simulated", "options": {"width": 256}, "width": 256, "max": 12},
    "split": {"protocol": "cross-area", "test_areas": ["east"], "block_m": 100},
}


def toy(*overrides: str) -> DatasetRecipe:
    return resolve(DatasetRecipe, TABLES, overrides)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {".cvgl", "report"} & set(path.relative_to(folder).parts)
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data set"
    report = pipeline.build(toy(), folder, workers=1)
    assert report.num_failed == 0
    assert report.outcomes["queries"] == {"ok": 24}
    return folder


def test_what_a_build_leaves(built):
    dataset = open_dataset(built, verify=True)
    train, test = dataset.select("train"), dataset.select("test")
    assert set(test.queries["area"].to_pylist()) == set(test.references["area"].to_pylist()) == {"east"}
    assert set(train.references["area"].to_pylist()) == {"west"}
    assert (test.positives() >= 0).all()
    assert not set(train.references["reference_id"].to_pylist()) & set(test.references["reference_id"].to_pylist())
    assert dataset.queries["heading_deg"].to_pylist() == [0.0] * dataset.queries.num_rows
    for key, column in (("query_id", dataset.queries), ("reference_id", dataset.references)):
        for name, digest in zip(column[key].to_pylist(), column["sha256"].to_pylist(), strict=True):
            assert hashlib.sha256(dataset.images[name]).hexdigest() == digest


def test_pairs_agree_with_the_tables(built):
    dataset = open_dataset(built)
    pairs = dataset.pairs.to_pydict()
    references = dataset.references.take(pa.array(pairs["reference_row"]))
    queries = dataset.queries.take(pa.array(pairs["query_row"]))
    assert references["reference_id"].to_pylist() == pairs["reference_id"]
    assert queries["query_id"].to_pylist() == pairs["query_id"]
    from cvgl_data.geo import distance_m, pixel_from_lonlat

    x, y = pixel_from_lonlat(queries["lon"].to_numpy(), queries["lat"].to_numpy(), 18)
    np.testing.assert_allclose(pairs["u"], x - references["x"].to_numpy(), atol=1e-6)
    np.testing.assert_allclose(pairs["v"], y - references["y"].to_numpy(), atol=1e-6)
    np.testing.assert_allclose(
        np.hypot(pairs["offset_east_m"], pairs["offset_north_m"]), pairs["distance_m"], rtol=5e-3
    )
    again = distance_m(*(t[c].to_numpy() for t in (queries, references) for c in ("lon", "lat")))
    np.testing.assert_allclose(pairs["distance_m"], again, rtol=1e-9)


def test_same_recipe_same_bytes(built, tmp_path):
    pipeline.build(toy(), tmp_path / "again", workers=2)
    assert contents(tmp_path / "again") == contents(built)


def test_building_again_changes_and_fetches_nothing(built):
    before = contents(built)
    parts = sorted((built / ".cvgl").rglob("part-*"))
    report = pipeline.build(toy(), built, workers=1)
    assert contents(built) == before
    assert sorted((built / ".cvgl").rglob("part-*")) == parts
    assert report.outcomes["queries"] == {"ok": 24}


def test_steps_one_by_one_give_the_same(built, tmp_path):
    with pipeline.start(toy(), tmp_path / "steps", workers=1) as begun:
        begun.fetch_queries()
        begun.fetch_references()
    for step in ("quality", "pair", "distance_map", "split", "pack"):
        with pipeline.resume(tmp_path / "steps") as begun:
            getattr(begun, step)()
    assert contents(tmp_path / "steps") == contents(built)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_stopped_goes_on(built, tmp_path, number):
    (tmp_path / "toy.toml").write_bytes((built / "recipe.toml").read_bytes())
    folder = tmp_path / "stopped"
    words = ["build", "--recipe", str(tmp_path / "toy.toml"), "--out", str(folder), "--workers", "1"]
    command = [str(Path(sys.executable).parent / "cvgl-data"), *words]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((folder / ".cvgl").glob("references/part-*.arrow")) and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.002)
    os.killpg(first.pid, number)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == (-number if number == signal.SIGKILL else 130), said
    assert "Traceback" not in said
    assert not (folder / "manifest.json").exists()
    rows_before = stored_rows(folder, "references") + stored_rows(folder, "queries")
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert contents(folder) == contents(built)
    rows = stored_rows(folder, "references") + stored_rows(folder, "queries")
    dataset = open_dataset(folder)
    assert rows_before > 0
    assert rows == dataset.references.num_rows + 24, "nothing may be fetched twice"


def stored_rows(folder: Path, store: str) -> int:
    paths = (folder / ".cvgl" / store).glob("part-*.arrow")
    return sum(pa.ipc.open_file(path).get_batch(0).num_rows for path in paths)


def test_signals_are_given_back(built):
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pipeline.start(toy(), built, workers=1) as begun:
            begun.fetch_references()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_recipe_in_the_same_folder(built):
    before = contents(built)
    with pytest.raises(WorkspaceError, match=r"grid.zoom: 18 -> 19"):
        pipeline.build(toy("grid.zoom=19"), built)
    assert contents(built) == before


def test_overwrite_starts_over(tmp_path):
    pipeline.build(toy("limit=2"), tmp_path / "x", workers=1)
    report = pipeline.build(toy("limit=3"), tmp_path / "x", workers=1, overwrite=True)
    assert report.outcomes["queries"] == {"ok": 6}
    assert open_dataset(tmp_path / "x").references.num_rows == 6


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(WorkspaceError, match="choose another folder"):
        pipeline.build(toy(), tmp_path / "photos", overwrite=True)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_two_processes_do_not_share_a_folder(tmp_path):
    with pipeline.start(toy(), tmp_path / "x"), pytest.raises(WorkspaceError, match="in use"):
        pipeline.build(toy(), tmp_path / "x")


def test_areas_that_overlap_share_no_reference(tmp_path):
    overlapping = {"name": "middle", "bbox": [-122.3280, 47.6200, -122.3240, 47.6215]}
    recipe = resolve(DatasetRecipe, {**TABLES, "areas": [WEST, overlapping], "split": {"protocol": "none"}})
    pipeline.build(recipe, tmp_path / "x", workers=1)
    dataset = open_dataset(tmp_path / "x")
    ids = dataset.references["reference_id"].to_pylist()
    assert len(ids) == len(set(ids))
    assert set(dataset.references["area"].to_pylist()) == {"west", "middle"}


def test_windows_cut_from_mosaics(tmp_path):
    recipe = toy("grid.overlap=0.5", "limit=30", "distance_map.k=8")
    pipeline.build(recipe, tmp_path / "x", workers=1)
    counts = np.bincount(open_dataset(tmp_path / "x").pairs["query_row"].to_numpy())
    assert counts.max() == 4


def test_panoramas_by_id(tmp_path, built):
    ids = sorted(open_dataset(built).queries["query_id"].to_pylist())[:3]
    (tmp_path / "ids.txt").write_text("\n".join([*ids, "no-such-panorama"]) + "\n")
    report = pipeline.build(toy(f"panoramas.pano_ids={tmp_path / 'ids.txt'}"), tmp_path / "x", workers=1)
    assert report.outcomes["queries"] == {"not_found": 1, "ok": 3}
    assert report.num_failed == 0
    failures = pq.read_table(tmp_path / "x" / "data" / "failures")
    assert failures["id"].to_pylist() == ["no-such-panorama"]


def test_real_folders_survive_byte_for_byte(tmp_path, golden):
    tables = {
        "name": "real",
        "imagery": {"source": "folder", "options": {"location": str(golden / "banepa")}},
        "panoramas": {"source": "folder", "options": {"location": str(golden / "strasbourg")}},
    }
    report = pipeline.build(resolve(DatasetRecipe, tables), tmp_path / "x")
    assert (report.num_covered, report.num_pairs) == (0, 0)
    dataset = open_dataset(tmp_path / "x")
    given = {path.read_bytes() for name in ("banepa", "strasbourg") for path in (golden / name).glob("*.[jt]*")}
    assert {bytes(image) for image in dataset.images.values()} == given
    assert set(dataset.references["zoom"].to_pylist()) == {19}


def test_nothing_to_be_had_is_an_error(tmp_path, golden):
    tables = {**TABLES, "imagery": {"source": "folder", "options": {"location": str(golden / "banepa")}}}
    with pytest.raises(FetchError, match="not one of the references"):
        pipeline.build(resolve(DatasetRecipe, tables), tmp_path / "x")


def test_only_what_the_recipe_asks_for_now_is_packed(tmp_path, golden):
    """The folder lost a picture since the first build; what was fetched of it is not packed again."""
    for name in ("banepa", "strasbourg"):
        shutil.copytree(golden / name, tmp_path / name)
    tables = {
        "name": "real",
        "imagery": {"source": "folder", "options": {"location": str(tmp_path / "banepa")}},
        "panoramas": {"source": "folder", "options": {"location": str(tmp_path / "strasbourg")}},
    }
    recipe = resolve(DatasetRecipe, tables)
    pipeline.build(recipe, tmp_path / "x")
    (tmp_path / "strasbourg" / "stra_1_1.jpg").unlink()
    pipeline.build(recipe, tmp_path / "x")
    pipeline.build(recipe, tmp_path / "fresh")
    assert contents(tmp_path / "x") == contents(tmp_path / "fresh")
    assert "stra_1_1.jpg" not in open_dataset(tmp_path / "x").images


def test_later_steps_do_not_need_the_sources(tmp_path, golden):
    shutil.copytree(golden / "banepa", tmp_path / "tiles")
    tables = {
        "name": "real",
        "imagery": {"source": "folder", "options": {"location": str(tmp_path / "tiles")}},
        "panoramas": {"source": "folder", "options": {"location": str(golden / "strasbourg")}},
    }
    pipeline.build(resolve(DatasetRecipe, tables), tmp_path / "x")
    before = contents(tmp_path / "x")
    shutil.rmtree(tmp_path / "tiles")
    with pipeline.resume(tmp_path / "x") as begun:
        begun.pair()
        begun.pack()
    assert contents(tmp_path / "x") == before


def test_manifest_names_every_file(built):
    manifest = json.loads((built / "manifest.json").read_text())
    assert set(manifest["files"]) == set(contents(built)) - {"manifest.json", "README.md"}
    assert all(entry["sha256"] == contents(built)[name] for name, entry in manifest["files"].items())


def test_areas_need_one_description_and_one_name():
    with pytest.raises(RecipeError, match="exactly one"):
        planning.areas(resolve(DatasetRecipe, {"name": "x", "areas": [{"city": "seattle", "file": "a.geojson"}]}))
    with pytest.raises(RecipeError, match="two areas"):
        planning.areas(resolve(DatasetRecipe, {"name": "x", "areas": [{"city": "seattle"}, {"city": "Seattle"}]}))


def test_a_folder_without_a_build_cannot_be_resumed(tmp_path):
    with pytest.raises(WorkspaceError, match="holds no build"), pipeline.resume(tmp_path):
        pass
    assert Workspace(tmp_path).recipe_tables() is None
    assert not list(tmp_path.glob(".cvgl"))
