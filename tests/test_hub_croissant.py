"""Croissant metadata: what the standard's own library makes of it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_tables as toy

from cvgl_data import hub
from cvgl_data.hub import croissant


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "toy"
    references, queries = toy.references(toy.windows(6, 6)), toy.scattered(120, 6, 6)
    toy.pack(out, references, queries)
    return out


def staged(packed: Path, folder: Path, **options) -> Path:
    hub.stage(packed, folder, repo_id="someone/toy", **options)
    return folder


def opened(folder: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own dependencies
        mlcroissant = pytest.importorskip("mlcroissant")
        return mlcroissant.Dataset(
            jsonld=json.loads((folder / croissant.CROISSANT).read_text()), mapping={croissant.REPOSITORY: str(folder)}
        )


@pytest.mark.parametrize("with_images", [False, True])
def test_the_standards_library_finds_nothing_wrong(packed, tmp_path, with_images):
    folder = staged(packed, tmp_path / "staged", with_images=with_images)
    dataset = opened(folder)
    assert not dataset.metadata.ctx.issues.errors
    # What only the author of a dataset can say; a date of ours would make the same dataset another one every day.
    missing = {text.split("schema.org/")[-1].split('"')[0] for text in dataset.metadata.ctx.issues.warnings}
    assert missing == {"datePublished", "version"}
    names = {record_set.name for record_set in dataset.metadata.record_sets}
    assert {"references_meta-gallery", "queries_meta-train", "pairs-train", "distance_map-gallery"} <= names
    assert ("queries-train" in names) is with_images


def test_records_can_be_read(packed, tmp_path):
    folder = staged(packed, tmp_path / "staged")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = opened(folder)
        first = next(iter(dataset.records("queries_meta-train")))
        neighbors = next(iter(dataset.records("distance_map-gallery")))
    row = pq.read_table(next((folder / "data/queries_meta").glob("train-*"))).slice(0, 1).to_pylist()[0]
    assert first["queries_meta-train/query_id"] == row["query_id"].encode()
    assert first["queries_meta-train/lon"] == row["lon"]
    assert first["queries_meta-train/sha256"].decode() == row["sha256"]
    listed = pq.read_table(next((folder / "data/distance_map").glob("*"))).slice(0, 1).to_pylist()[0]
    assert list(neighbors["distance_map-gallery/neighbor_rows"]) == listed["neighbor_rows"]


def test_images_can_be_read(packed, tmp_path):
    folder = staged(packed, tmp_path / "staged", with_images=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = next(iter(opened(folder).records("queries-train")))
    assert first["queries-train/image"].size == (96, 48)


def test_columns_are_those_of_the_files(packed, tmp_path):
    folder = staged(packed, tmp_path / "staged")
    document = json.loads((folder / croissant.CROISSANT).read_text())
    for record_set in document["recordSet"]:
        table = record_set["name"].rsplit("-", 1)[0]
        columns = pq.read_schema(next((folder / "data" / table).glob("*.parquet")))
        fields = {field["source"]["extract"]["column"]: field for field in record_set["field"]}
        assert list(fields) == columns.names
        assert all(
            field.get("repeated", False) is pa.types.is_list(columns.field(n).type) for n, field in fields.items()
        )
    assert document["license"] == ["https://choosealicense.com/licenses/cc0-1.0/"]
    assert document["creditText"] == "Nobody | nowhere"
