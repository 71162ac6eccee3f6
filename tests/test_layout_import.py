"""Importing published layouts: packed or linked, with the labels that are wrong reported."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cvgl_cli._layouts import layouts_app
from published import make
from typer.testing import CliRunner

from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, RecipeError, SchemaError
from cvgl_data.layouts import import_layout
from cvgl_data.neighbors import distance_map
from cvgl_data.readers.layout import FolderImages
from cvgl_data.shards.verification import verify

OPTIONS = {
    "vigor": "?cities=NewYork,Seattle",
    "dress": "?cities=London,Rio",
    "cvcities": "?train=manila&test=london",
    "cvglobal": "?zoom=19&size=256",
}
SIZES = {
    "vigor": {"cities": ("NewYork", "Seattle"), "grid": 4, "queries": 6},
    "dress": {"cities": ("London", "Rio"), "grid": 3, "queries": 6},
    "cvcities": {"cities": ("london", "maynila"), "queries": 4},
    "cvglobal": {"train": 4, "test": 3},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for layout, size in SIZES.items():
        make(layout, folder / layout, pixels=32, width=64, **size)
    return folder


def location(made, layout):
    return f"{layout}:{made / layout}{OPTIONS[layout]}"


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("layout", OPTIONS)
def test_the_same_dataset(made, layout, link, tmp_path):
    done = import_layout(location(made, layout), tmp_path / "out", link=link, neighbors=5, verify=True)
    there, here = open_dataset(location(made, layout)), open_dataset(tmp_path / "out", verify=True)
    assert isinstance(here.images, FolderImages) == link
    assert done.references == here.references.num_rows == there.references.num_rows
    assert sum(done.queries.values()) == there.queries.num_rows

    for name, id_name in (("references", "reference_id"), ("queries", "query_id")):
        one, other = (getattr(dataset, name).sort_by(id_name) for dataset in (there, here))
        hashes = {"sha256", "raw_sha256"}
        for column in one.column_names:
            values = one[column].to_pylist()
            if one.schema.field(column).type == pa.string():
                values = [value or "" for value in values]  # text that is not known
            if column not in hashes or link:
                assert other[column].to_pylist() == values, column
    keys = ["query_id", "reference_id"]
    one, other = (dataset.pairs.drop_columns(["query_row", "reference_row"]) for dataset in (there, here))
    order = [(key, "ascending") for key in keys]
    assert one.sort_by(order).equals(other.sort_by(order))
    ids = {
        name: getattr(here, table)[name].to_pylist() for table, name in (("queries", keys[0]), ("references", keys[1]))
    }
    for row in here.pairs.to_pylist():
        assert ids["query_id"][row["query_row"]] == row["query_id"]
        assert ids["reference_id"][row["reference_row"]] == row["reference_id"]
    assert all(here.images[name] == there.images[name] for name in there.images)
    assert here.distance_map.equals(distance_map(here.references, 5))
    assert here.select("test").queries.num_rows == there.select("test").queries.num_rows > 0


def test_the_same_bytes_again(made, tmp_path):
    manifests = []
    for name in ("a", "b"):
        import_layout(location(made, "dress"), tmp_path / name, neighbors=4)
        manifests.append(json.loads((tmp_path / name / "manifest.json").read_text())["files"])
    assert manifests[0] == manifests[1]


def test_vigors_original_labels_are_found_wrong(made, tmp_path):
    done = import_layout(location(made, "vigor"), tmp_path / "out", neighbors=2)
    found = {(row.labels, row.city): row for row in done.checks}
    assert set(found) == {
        (labels, city) for labels in ("corrected", "original", "tables") for city in ("NewYork", "Seattle")
    }
    assert [row.agrees for row in done.checks] == [row.labels != "original" for row in done.checks]
    seattle = found["original", "Seattle"]
    assert seattle.mean_px > 15
    assert seattle.scale == pytest.approx(0.882, abs=0.002)
    assert seattle.labeled_gsd_m == pytest.approx(0.114, abs=0.0003)
    assert seattle.gsd_m == pytest.approx(0.1007, abs=0.0001)
    assert found["corrected", "Seattle"].mean_px < 0.6


def test_wrong_labels_that_are_imported_are_found_in_the_tables(made, tmp_path):
    done = import_layout(f"{location(made, 'vigor')}&labels=original", tmp_path / "out", neighbors=2)
    tables = {row.city: row for row in done.checks if row.labels == "tables"}
    assert not tables["Seattle"].agrees
    assert tables["Seattle"].mean_px == pytest.approx(
        next(row.mean_px for row in done.checks if (row.labels, row.city) == ("original", "Seattle")), rel=1e-3
    )


def test_validation_and_what_lies_beside_it(made, tmp_path):
    done = import_layout(f"{location(made, 'cvcities')}&validation=0.5", tmp_path / "out", neighbors=2)
    assert done.queries == {"train": 2, "validation": 2, "test": 4} or done.queries["validation"] >= 1
    assert open_dataset(tmp_path / "out").select("validation").queries.num_rows == done.queries["validation"]


def test_windows_that_nobody_knows_cannot_be_packed(made, tmp_path):
    unknown = f"cvglobal:{made / 'cvglobal'}"
    with pytest.raises(DatasetError, match=r"shards need the window .* 'x' of 7; .* or import with --link"):
        import_layout(unknown, tmp_path / "out", neighbors=2)
    assert not (tmp_path / "out").exists()
    assert import_layout(unknown, tmp_path / "out", neighbors=2, link=True).references == 7


def test_places_that_are_taken(made, tmp_path):
    import_layout(location(made, "cvglobal"), tmp_path / "out", neighbors=2, link=True)
    with pytest.raises(DatasetError, match="holds a dataset already"):
        import_layout(location(made, "cvglobal"), tmp_path / "out", neighbors=2)
    done = import_layout(f"{location(made, 'cvglobal')}&maps=map", tmp_path / "out", link=True, overwrite=True)
    assert open_dataset(tmp_path / "out").references["reference_id"][0].as_py().startswith("map/")
    assert done.pairs == 7
    packed = import_layout(location(made, "cvglobal"), tmp_path / "out", neighbors=2, overwrite=True)
    assert not isinstance(open_dataset(tmp_path / "out", verify=True).images, FolderImages)
    assert packed.references == 7
    with pytest.raises(DatasetError, match="holds shards; name another folder for a linked import"):
        import_layout(location(made, "cvglobal"), tmp_path / "out", neighbors=2, link=True, overwrite=True)
    for text in ("/data/VIGOR", f"packed:{tmp_path}", "hub:a/b"):
        with pytest.raises(RecipeError, match="names no published layout; write it like vigor:FOLDER"):
            import_layout(text, tmp_path / "new")


@pytest.fixture
def linked(made, tmp_path):
    shutil.copytree(made / "dress", tmp_path / "images")
    import_layout(f"dress:{tmp_path / 'images'}{OPTIONS['dress']}", tmp_path / "linked", link=True, neighbors=3)
    return tmp_path / "linked"


def test_a_linked_dataset_opens_like_any_other(linked):
    dataset = open_dataset(linked)
    assert open_dataset(f"linked:{linked}").queries.equals(dataset.queries)
    copied = pickle.loads(pickle.dumps(dataset.images))
    name = dataset.queries["query_id"][0].as_py()
    assert copied[name] == dataset.images[name]
    assert sum(path.stat().st_size for path in linked.rglob("*") if path.is_file()) < 100_000  # no images


def test_images_that_moved(linked):
    images = linked.parent / "images"
    images.rename(linked.parent / "elsewhere")
    with pytest.raises(DatasetError, match=r"has 30 problems:\n.* is missing; root= names the folder"):
        open_dataset(linked)
    assert open_dataset(f"linked:{linked}?root={linked.parent / 'elsewhere'}", verify=True).queries.num_rows == 12


def test_a_damaged_linked_dataset(linked):
    description = json.loads((linked / "linked.json").read_text())
    image = next((linked.parent / "images/Rio/panorama").iterdir())
    image.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"1 problem:\n  Rio/panorama/.*: not an image"):
        open_dataset(linked, verify=True)
    (linked / "tables/pairs.parquet").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"pairs.parquet' cannot be read"):
        open_dataset(linked)
    pq.write_table(pa.table({"query_id": ["a"]}), linked / "tables/pairs.parquet")
    with pytest.raises(SchemaError, match="has no column 'reference_id'"):
        open_dataset(linked)
    (linked / "linked.json").write_text(json.dumps(description | {"schema_version": "0"}))
    with pytest.raises(SchemaError, match="has schema version 0"):
        open_dataset(linked)
    (linked / "linked.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"linked.json' is damaged"):
        open_dataset(linked)
    (linked / "linked.json").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"has no linked.json"):
        open_dataset(f"linked:{linked}")


def test_the_command(made, tmp_path):
    def typed(*words, code=0):
        done = CliRunner().invoke(layouts_app, [str(word) for word in words])
        assert done.exit_code == code, done.output + repr(done.exception)
        return done

    source = f"{made / 'vigor'}{OPTIONS['vigor']}"
    done = typed("import", "vigor", source, "--out", tmp_path / "a", "--neighbors", 3, "--json", "--quiet")
    found = json.loads(done.stdout)
    assert (found["references"], found["queries"]) == (32, {"train": 6, "test": 6})
    wrong = [row for row in found["checks"] if not row["agrees"]]
    assert {(row["labels"], row["city"]) for row in wrong} == {("original", "NewYork"), ("original", "Seattle")}
    shown = typed("import", "vigor", source, "--out", tmp_path / "b", "--link", "--check-images")
    assert "Places in pixels against coordinates" in shown.output
    assert "original labels of Seattle are" in shown.output
    packed, linked = (open_dataset(tmp_path / name).pairs.sort_by("query_id") for name in "ab")
    assert np.array_equal(packed["u"].to_numpy(), linked["u"].to_numpy())


def test_what_few_datasets_know_is_kept(tmp_path):
    """Angles of partial panoramas, cameras and bearings come out of shards and of links as they went in."""
    for layout, table, names in [
        ("cvusa", "queries", ["zenith_top_deg", "zenith_bottom_deg"]),
        ("kitti", "queries", ["camera_fx_px", "camera_cy_px", "image_width_px", "camera_height_m"]),
        ("kitti", "references", ["top_bearing_deg"]),
    ]:
        make(layout, tmp_path / layout)
        location = f"{layout}:{tmp_path / layout}"
        done = [import_layout(location, tmp_path / f"{layout}-packed", neighbors=2, overwrite=True).folder]
        if layout != "kitti":  # its references are cut when they are read
            done.append(import_layout(location, tmp_path / f"{layout}-linked", neighbors=2, link=True).folder)
        key = "query_id" if table == "queries" else "reference_id"
        there = getattr(open_dataset(location), table).sort_by(key)
        for folder in done:
            here = getattr(open_dataset(folder), table).sort_by(key)
            for name in names:
                assert here[name].to_pylist() == there[name].to_pylist()
                assert here[name].null_count == 0
        assert verify(done[0]) == []


def test_references_that_are_not_north_up(tmp_path):
    make("kitti", tmp_path / "kitti")
    done = import_layout(f"kitti:{tmp_path / 'kitti'}", tmp_path / "out", neighbors=2)
    assert [row.agrees for row in done.checks] == [True, True]
    assert max(row.max_px for row in done.checks) < 1e-3
    with pytest.raises(DatasetError, match="are made from its files when they are read and cannot be linked"):
        import_layout(f"kitti:{tmp_path / 'kitti'}", tmp_path / "linked", neighbors=2, link=True)
