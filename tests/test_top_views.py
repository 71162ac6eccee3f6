"""`cvgl-data bev`: what it writes is the top view of what the dataset holds."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cvgl_cli._bev import bev_app
from PIL import Image
from typer.testing import CliRunner

from cvgl_data import pipeline
from cvgl_data.dataset import open_dataset
from cvgl_data.errors import RecipeError
from cvgl_data.recipe import DatasetRecipe, resolve
from cvgl_data.top_views import TopViews, write_top_views
from cvgl_models.geometry import bev_from_panorama

TABLES = {
    "name": "toy",
    "areas": [{"name": "here", "bbox": [-122.3250, 47.6100, -122.3215, 47.6120]}],
    "imagery": {"source": "simulated"},
    "panoramas": {"source": "simulated", "max": 8, "width": 256, "options": {"width": 256}},
    "split": {"block_m": 90.0, "validation_fraction": 0.0},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "out"
    pipeline.build(resolve(DatasetRecipe, TABLES), folder, workers=1)
    return folder


def typed(*words, code=0):
    done = CliRunner().invoke(bev_app, [str(word) for word in words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done


def rows_of(folder, table="queries_bev_48"):
    return [
        (path.name, row)
        for path in sorted((folder / table).glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image))).astype(float)


def test_every_query_has_its_top_view_at_the_scale_of_its_reference(built, tmp_path):
    out = tmp_path / "bev"
    counts = json.loads(
        typed(built, "--out", out, "--size", 48, "--match-references", "--quality", 100, "--json").stdout
    )
    dataset = open_dataset(built)
    rows = rows_of(out)
    assert sum(counts.values()) == len(rows) == dataset.queries.num_rows
    positive = dataset.positives()
    by_id = {row["query_id"]: (name, row) for name, row in rows}
    for number, query in enumerate(dataset.queries.to_pylist()):
        name, row = by_id[query["query_id"]]
        assert name.startswith(query["split"])
        assert (row["made_from_sha256"], row["lon"], row["area"]) == (query["sha256"], query["lon"], query["area"])
        reference = dataset.references.slice(int(positive[number]), 1).to_pylist()[0]
        assert row["bev_m_per_px"] * 48 == pytest.approx(reference["gsd_m"] * reference["size"])
        pano = torch.from_numpy(pixels(dataset.images[query["query_id"]])).permute(2, 0, 1)[None]
        expected = bev_from_panorama(pano, 48, row["bev_m_per_px"], 2.5, heading_deg=query["heading_deg"])
        away = np.abs(pixels(row["image"]["bytes"]) - expected[0].permute(1, 2, 0).numpy())
        assert away.mean() < 4, "more than JPEG and its halved colors lose"
    assert json.loads((out / "bev.json").read_text())["match_references"] is True


def test_images_load_as_images_and_bytes_are_reproducible(built, tmp_path):
    datasets = pytest.importorskip("datasets")
    one, two = tmp_path / "one", tmp_path / "two"
    for out, workers in ((one, 1), (two, 3)):
        write_top_views(built, out, TopViews(size_px=48, fov_deg=170.0), workers=workers, limit=3)
    for path in sorted(one.rglob("*.parquet")):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    files = {"train": str(next((one / "queries_bev_48").glob("train*.parquet")))}
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["image"].size == (48, 48)
    assert len(loaded) <= 3


def test_files(built, tmp_path):
    out = tmp_path / "bev"
    typed(built, "--out", out, "--size", 32, "--meters-per-px", 0.5, "--format", "files", "--limit", 2, "-q")
    queries = open_dataset(built).queries.to_pylist()
    found = sorted(out.glob("*/*.jpg"))
    assert 2 <= len(found) <= 6
    splits = {query["query_id"]: query["split"] for query in queries}
    assert all(splits[path.stem] == path.parent.name for path in found)
    assert pixels(found[0].read_bytes()).shape == (32, 32, 3)


def test_a_folder_is_replaced_only_if_it_holds_top_views(built, tmp_path):
    out = tmp_path / "bev"
    words = (built, "--out", out, "--fov", 170, "--size", 16, "--limit", 1, "-q")
    typed(*words)
    refused = typed(*words, code=1)
    assert "not empty" in str(refused.exception)
    typed(*words, "--overwrite")
    other = tmp_path / "photos"
    other.mkdir()
    (other / "holiday.jpg").write_bytes(b"precious")
    refused = typed(built, "--out", other, "--fov", 170, "--overwrite", code=1)
    assert "left alone" in str(refused.exception)
    assert (other / "holiday.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of"),
        ({"fov_deg": 170.0, "match_references": True}, "exactly one of"),
        ({"fov_deg": 190.0}, "between 0 and 180"),
        ({"meters_per_px": -1.0}, "must be positive"),
        ({"fov_deg": 170.0, "zenith_deg": (10.0, 20.0)}, "below the horizon"),
        ({"fov_deg": 170.0, "size_px": 0}, "must be positive"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(RecipeError, match=message):
        TopViews(**options)
