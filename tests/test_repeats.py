"""Images that several places share: said in the packed rows and in the report, and never dropped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cvgl_cli import data
from fakes import FakeImagery, FakePanoramas
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cvgl_data import pipeline, planning, schema
from cvgl_data.dataset import open_dataset
from cvgl_data.fetch.repeats import LEAST, flagged, repeated
from cvgl_data.images import encode_jpeg
from cvgl_data.recipe import DatasetRecipe, resolve
from cvgl_data.shards.verification import verify
from cvgl_data.sources import IMAGERY, PANORAMAS
from cvgl_data.types import Outcome, Panorama, Tile

SEA = encode_jpeg(np.full((256, 256, 3), (20, 60, 110), np.uint8))
BBOX = [-122.3300, 47.6200, -122.3270, 47.6215]


def table(*hashes):
    return pa.table({"reference_id": [f"r{index}" for index in range(len(hashes))], "sha256": list(hashes)})


# Which ones


def test_three_are_suspicious_and_two_are_not():
    assert LEAST == 3
    assert repeated(table("a", "b", "a", "c", "b", "a")).to_pylist() == ["r0", "r2", "r5"]
    assert repeated(table("a", "b", "a", "b")).to_pylist() == []
    assert repeated(table("a", "b", "a", "b"), least=2).to_pylist() == ["r0", "r1", "r2", "r3"]


def test_nothing_is_no_repetition():
    assert repeated(table()).to_pylist() == []
    empty = schema.REFERENCES.empty_table()
    assert repeated(empty).to_pylist() == []


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30), st.integers(1, 5), st.integers(1, 7))
def test_repetitions_are_those_that_one_would_count(hashes, least, rows_per_chunk):
    """However the table is chunked."""
    found = pa.Table.from_batches(table(*hashes).to_batches(max_chunksize=rows_per_chunk), table("x").schema)
    counts = Counter(hashes)
    expected = [f"r{index}" for index, digest in enumerate(hashes) if counts[digest] >= least]
    assert repeated(found, least).to_pylist() == expected


def test_flags_change_the_status_and_nothing_else():
    whole = table("a", "b", "a", "a").append_column("status", pa.array(["ok"] * 4))
    whole = whole.append_column("more", pa.array([1, 2, 3, 4]))
    batches = list(flagged(whole.to_batches(max_chunksize=3), repeated(whole)))
    found = pa.Table.from_batches(batches)
    assert found["status"].to_pylist() == ["constant_tile", "ok", "constant_tile", "constant_tile"]
    assert found.schema == whole.schema
    assert found.drop_columns("status") == whole.drop_columns("status")
    untouched = pa.Table.from_batches(flagged(whole.to_batches(), repeated(whole, least=9)))
    assert untouched == whole


# In a build


class Sea(FakeImagery):
    """Where some tiles are open sea."""

    name = "sea"
    tiles: frozenset[Tile] = frozenset()

    def __init__(self):
        super().__init__()
        self.bodies = dict.fromkeys(self.tiles, SEA)


class Posts(FakePanoramas):
    name = "posts"

    def __init__(self):
        image = encode_jpeg(np.zeros((32, 64, 3), np.uint8))
        super().__init__(
            {
                f"p{index}": Panorama(pano_id=f"p{index}", image=image, lon=-122.3290 + 0.0002 * index, lat=47.6208)
                for index in range(4)
            }
        )


TABLES = {
    "name": "toy",
    "areas": [{"name": "bay", "bbox": BBOX}],
    "imagery": {"source": "sea"},
    "panoramas": {"source": "posts"},
    "split": {"protocol": "none"},
    "distance_map": {"k": 3},
}


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.setitem(IMAGERY._table, "sea", f"{__name__}:Sea")
    monkeypatch.setitem(PANORAMAS._table, "posts", f"{__name__}:Posts")
    return resolve(DatasetRecipe, TABLES)


def build(recipe, folder, monkeypatch, num_alike):
    """Build where every other tile is sea, until there are enough of them."""
    windows = list(planning.windows_of(recipe, planning.areas(recipe)[0], Sea()))
    assert len(windows) == 9
    monkeypatch.setattr(Sea, "tiles", frozenset(window.tiles[0] for window in windows[: 2 * num_alike : 2]))
    return pipeline.build(recipe, folder)


def packed(folder, name="references"):
    found = pq.read_table(folder / "data" / name, partitioning=None)
    return dict(zip(found["reference_id"].to_pylist(), found.select(["sha256", "status"]).to_pylist(), strict=True))


@pytest.mark.parametrize("num_alike", [0, 2, 3, 5])
def test_a_build_flags_three_equal_tiles_and_drops_none(recipe, monkeypatch, tmp_path, num_alike):
    report = build(recipe, tmp_path / "out", monkeypatch, num_alike)
    num_flagged = num_alike if num_alike >= 3 else 0
    rows = packed(tmp_path / "out")
    sea = hashlib.sha256(SEA).hexdigest()
    assert sum(row["sha256"] == sea for row in rows.values()) == num_alike
    assert len(rows) == report.outcomes["references"]["ok"] > 5
    expected = {key: row["sha256"] == sea and num_flagged > 0 for key, row in rows.items()}
    assert {key: row["status"] == Outcome.CONSTANT_TILE for key, row in rows.items()} == expected
    assert {row["status"] for row in rows.values()} <= {"ok", "constant_tile"}
    assert packed(tmp_path / "out", "references_meta") == rows
    assert report.num_constant == num_flagged
    assert report.num_failed == 0
    assert report.outcomes["references"].keys() == {"ok"}, "they were had, and are not asked for again"
    assert verify(tmp_path / "out", decode=True) == []
    dataset = open_dataset(tmp_path / "out")
    assert sum(bytes(dataset.images[key]) == SEA for key in rows) == num_alike


def test_building_again_flags_the_same(recipe, monkeypatch, tmp_path):
    first = build(recipe, tmp_path / "out", monkeypatch, 3)
    before = (tmp_path / "out" / "manifest.json").read_text()
    again = pipeline.build(recipe, tmp_path / "out")
    assert again == first
    assert (tmp_path / "out" / "manifest.json").read_text() == before


def test_the_command_warns(recipe, monkeypatch, tmp_path):
    build(recipe, tmp_path / "out", monkeypatch, 3)
    words = ["build", "--recipe", str(tmp_path / "out" / "recipe.toml"), "--out", str(tmp_path / "again")]
    done = CliRunner().invoke(data.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "3 references share their bytes with others" in done.stderr
    monkeypatch.setattr(Sea, "tiles", frozenset(sorted(Sea.tiles)[:2]))
    words[-1] = str(tmp_path / "calm")
    done = CliRunner().invoke(data.app, [*words, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["num_constant"] == 0
