"""The same dataset with other references: windows, queries, pairs and splits stay, and what is lost is said."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cvgl_data import pipeline
from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetNotFoundError
from cvgl_data.images import decode
from cvgl_data.recipe import DatasetRecipe, ImageryRecipe, resolve
from cvgl_data.shards import verification
from cvgl_data.types import Tile

BOX = [-122.3250, 47.6100, -122.3195, 47.6135]
KEPT = ("query_id", "reference_id", "relation", "u", "v", "decentrality", "distance_m")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "out"
    tables = {
        "name": "toy",
        "areas": [{"name": "here", "bbox": BOX}],
        "imagery": {"source": "simulated"},
        "panoramas": {"source": "simulated", "max": 12, "width": 128, "options": {"width": 128}},
        "split": {"block_m": 90.0, "validation_fraction": 0.0},
    }
    pipeline.build(resolve(DatasetRecipe, tables), folder, workers=1)
    return folder


def test_references_change_and_nothing_else(original, tmp_path):
    report = pipeline.reimage(original, tmp_path / "map", ImageryRecipe(source="simulated-map"), workers=1)
    before, after = open_dataset(original, verify=True), open_dataset(tmp_path / "map", verify=True)
    assert verification.verify(tmp_path / "map") == []
    windows = ["reference_id", "x", "y", "size", "zoom", "lon", "lat", "area"]
    assert after.references.select(windows).equals(before.references.select(windows))
    assert set(after.references["source"].to_pylist()) == {"simulated-map"}
    first = before.references["reference_id"][0].as_py()
    assert (decode(before.images[first]) != decode(after.images[first])).any()
    assert after.queries.equals(before.queries)
    assert {query: before.images[query] for query in before.queries["query_id"].to_pylist()} == {
        query: after.images[query] for query in after.queries["query_id"].to_pylist()
    }
    assert after.pairs.select(KEPT).equals(before.pairs.select(KEPT))
    assert after.distance_map.equals(before.distance_map)
    assert report.splits.get("", 0) == 0
    credits = {row["kind"]: row["name"] for row in pipeline.read_manifest(tmp_path / "map")["sources"]}
    assert credits == {"imagery": "simulated-map", "panoramas": "simulated"}

    again = pipeline.reimage(original, tmp_path / "map", ImageryRecipe(source="simulated-map"), workers=1)
    assert again.outcomes == report.outcomes


def test_a_source_without_tiles_leaves_queries_out_by_name(original, tmp_path):
    before = open_dataset(original)
    lost = before.pairs["reference_id"][0].as_py()
    for row in before.references.to_pylist():
        if row["reference_id"] == lost:
            continue
        tile = Tile(row["x"] // 256, row["y"] // 256, row["zoom"])
        path = tmp_path / "tiles" / str(tile.z) / str(tile.x) / f"{tile.y}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (256, 256), (tile.x % 256, tile.y % 256, 90)).save(path)
    source = ImageryRecipe(source="folder", options={"location": str(tmp_path / "tiles")})
    report = pipeline.reimage(original, tmp_path / "out", source, workers=1)
    after = open_dataset(tmp_path / "out")
    assert lost not in after.references["reference_id"].to_pylist()
    gone = {row["query_id"] for row in before.pairs.to_pylist() if row["reference_id"] == lost}
    kept = dict(zip(*(before.queries[name].to_pylist() for name in ("query_id", "split")), strict=True))
    assert dict(zip(*(after.queries[name].to_pylist() for name in ("query_id", "split")), strict=True)) == {
        query: split for query, split in kept.items() if query not in gone
    }
    assert report.splits[""] == len(gone) > 0
    failures = pq.read_table(tmp_path / "out" / "data" / "failures").to_pylist()
    assert {row["id"] for row in failures if row["status"] == "no_reference"} == gone


def test_only_a_dataset_can_be_reimaged(tmp_path):
    with pytest.raises(DatasetNotFoundError):
        pipeline.reimage(tmp_path / "none", tmp_path / "out", ImageryRecipe(source="simulated-map"))
    assert not (tmp_path / "out").exists()
