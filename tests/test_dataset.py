"""Opening a dataset: tables, selection, images, and every way in which it can be damaged."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import toy_tables as toy

from cvgl_data.dataset import READERS, CrossViewDataset, open_dataset
from cvgl_data.errors import DatasetError, DatasetNotFoundError, SchemaError, UnknownNameError
from cvgl_data.neighbors import distance_map
from cvgl_data.recipe import DatasetRecipe, PackRecipe, SplitRecipe


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    """Two areas, references overlapping by half, several row groups."""
    west, east = toy.windows(9, 9, stride=128), toy.windows(9, 9, stride=128, x=toy.ORIGIN_X + 20 * 256)
    references = pa.concat_tables([toy.references(west, "west"), toy.references(east, "east")]).sort_by("reference_id")
    random = np.random.default_rng(0)
    x, y = random.uniform(0, 1280, (2, 160)), random.uniform(0, 1280, (2, 160))
    queries = [
        toy.queries(toy.ORIGIN_X + x[0], toy.ORIGIN_Y + y[0], "west", "a"),
        toy.queries(toy.ORIGIN_X + 20 * 256 + x[1], toy.ORIGIN_Y + y[1], "east", "b"),
    ]
    return references, pa.concat_tables(queries)


RECIPE = DatasetRecipe(
    name="toy",
    split=SplitRecipe(protocol="cross-area", test_areas=("east",), block_m=200, validation_fraction=0.3),
    pack=PackRecipe(shard_mb=0.001),  # a shard per row group
)


@pytest.fixture(scope="module")
def folder(tables, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "toy"
    toy.pack(out, *tables, recipe=RECIPE)
    return out


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def images(tables) -> dict[str, bytes]:
    return {row[table.column_names[0]]: row["image"]["bytes"] for table in tables for row in table.to_pylist()}


def test_open(folder, tables):
    dataset = open_dataset(folder, verify=True)
    references, queries = tables
    assert dataset.references.equals(references.drop_columns("image"))
    assert set(dataset.queries["split"].to_pylist()) == {"train", "validation", "test"}
    assert len(list((folder / "data/queries").glob("test-*.parquet"))) > 1
    by_id = {row["query_id"]: row for row in queries.drop_columns("image").to_pylist()}
    for row in dataset.queries.drop_columns("split").to_pylist():
        assert row == by_id[row["query_id"]]
    check_rows(dataset)
    assert dataset.distance_map.equals(distance_map(references, 8))


def check_rows(dataset: CrossViewDataset) -> None:
    queries, references = dataset.queries["query_id"].to_pylist(), dataset.references["reference_id"].to_pylist()
    for row in dataset.pairs.to_pylist():
        assert queries[row["query_row"]] == row["query_id"]
        assert references[row["reference_row"]] == row["reference_id"]


def test_select(folder):
    dataset = open_dataset(str(folder))
    for split, area in (("train", "west"), ("validation", "west"), ("test", "east")):
        part = dataset.select(split)
        assert set(part.queries["split"].to_pylist()) == {split}
        assert part.references["area"].to_pylist() == [area] * 81
        check_rows(part)
        assert set(part.pairs["query_id"].to_pylist()) <= set(part.queries["query_id"].to_pylist())
        # A map of the gallery alone has the same neighbors: no list reached 20 windows further.
        assert part.distance_map.equals(distance_map(part.references, 8))
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        dataset.select("tets")


def test_neighbors_outside_the_gallery_are_taken_out(folder):
    dataset = open_dataset(folder)
    wide = distance_map(dataset.references, 120)  # 80 of the own area, 40 of the other
    dataset = CrossViewDataset(dataset.references, dataset.queries, dataset.pairs, wide, dataset.images)
    part = dataset.select("test")
    rows = np.array(part.distance_map["neighbor_rows"].to_pylist())
    meters = np.array(part.distance_map["distances_m"].to_pylist())
    alone = distance_map(part.references, 80)
    np.testing.assert_array_equal(rows[:, :80], alone["neighbor_rows"].to_pylist())
    np.testing.assert_array_equal(meters[:, :80], alone["distances_m"].to_pylist())
    assert (rows[:, 80:] == -1).all()
    assert np.isinf(meters[:, 80:]).all()


def test_a_reference_of_another_area_that_covers_a_query_is_in_its_gallery(folder):
    dataset = open_dataset(folder)
    area = dataset.references["area"].to_pylist()
    first = dataset.pairs.filter(pa.array([name.startswith("b") for name in dataset.pairs["query_id"].to_pylist()]))
    row = first["reference_row"][0].as_py()
    area[row] = "elsewhere"
    index = dataset.references.schema.get_field_index("area")
    references = dataset.references.set_column(index, "area", pa.array(area))
    part = CrossViewDataset(references, dataset.queries, dataset.pairs, dataset.distance_map, dataset.images).select(
        "test"
    )
    assert part.references.num_rows == 81
    assert (part.positives() >= 0).all()


def test_positives_and_covering(folder):
    part = open_dataset(folder).select("test")
    positives = part.positives()
    indptr, rows = part.covering()
    assert positives.shape == (part.queries.num_rows,)
    assert indptr.shape == (part.queries.num_rows + 1,)
    assert indptr[-1] == len(rows) == part.pairs.num_rows
    for query in range(part.queries.num_rows):
        covering = rows[indptr[query] : indptr[query + 1]]
        assert covering[0] == positives[query]
        expected = [row["reference_row"] for row in part.pairs.to_pylist() if row["query_row"] == query]
        assert sorted(covering) == sorted(expected)


def test_queries_without_positive(tmp_path, tables):
    far = toy.queries(np.array([toy.ORIGIN_X - 9000.0] * 3), np.array([toy.ORIGIN_Y - 9000.0] * 3), "west")
    toy.pack(tmp_path / "out", tables[0], far)
    dataset = open_dataset(tmp_path / "out")
    assert dataset.positives().tolist() == [-1, -1, -1]
    assert dataset.covering()[0].tolist() == [0, 0, 0, 0]
    assert dataset.select("train").queries.num_rows == 0
    assert dataset.select("test").references.num_rows == 81


def test_images_are_the_input_bytes(folder, images):
    opened = open_dataset(folder).images
    kept = dict(opened)
    assert len(opened) == len(kept) > 300
    assert kept.items() <= images.items()
    assert isinstance(opened["b_00007"], bytes)
    assert opened.view("b_00007") == images["b_00007"]
    assert "b_00007" in opened
    with pytest.raises(KeyError):
        opened["nobody"]


def test_without_index_files_row_groups_are_read(copy, images):
    for index in copy.rglob("*.index.npy"):
        index.unlink()
    opened = open_dataset(copy).images
    for name in ("b_00007", "a_00003", "b_00159", next(iter(opened))):
        if name in opened:
            assert opened[name] == images[name]


def test_images_survive_pickling_and_forking(folder, images):
    opened = open_dataset(folder)
    assert opened.images["b_00001"] == images["b_00001"]
    again = pickle.loads(pickle.dumps(opened))
    assert again.images["b_00001"] == images["b_00001"]
    assert len(pickle.dumps(opened.images)) < 50_000, "no pixels are pickled"
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            names = ["b_00001", "b_00100", "b_00042"]
            assert pool.map(opened.images.__getitem__, names) == [images[name] for name in names]


def test_reader_prefix(folder, copy):
    assert open_dataset(f"packed:{folder}").references.num_rows == 162
    odd = copy.with_name("odd:name")
    copy.rename(odd)
    assert open_dataset(odd).references.num_rows == 162
    with pytest.raises(UnknownNameError, match=r"unknown reader 'pakced'.*did you mean 'packed'"):
        open_dataset(f"pakced:{folder}")


@pytest.mark.parametrize("name", [name for name in READERS if name != "hub"])
def test_every_reader_says_when_there_is_nothing(name, tmp_path):
    assert callable(READERS.load(name))
    with pytest.raises(DatasetNotFoundError, match="no dataset folder"):
        open_dataset(f"{name}:{tmp_path / 'nowhere'}")


def test_missing_and_unfinished(tmp_path, copy):
    with pytest.raises(FileNotFoundError, match="cvgl-data build --out"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match="holds no dataset"):
        open_dataset(tmp_path / "empty")
    (copy / "manifest.json").unlink()
    with pytest.raises(DatasetError, match=r"not finished.*manifest\.json; run the same build again"):
        open_dataset(copy)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"schema_version": "1", "files": {"a": {}}}', '{"schema_version": "1", "files": 3}']
)
def test_damaged_manifest(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=r"manifest\.json' is damaged"):
        open_dataset(copy)


def test_other_schema_version(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"schema_version": "99"}))
    with pytest.raises(SchemaError, match="schema version 99, this cvgl reads version 2"):
        open_dataset(copy)


def test_cut_missing_and_changed_files(copy):
    shard = sorted((copy / "data/queries").glob("test-*.parquet"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(
        DatasetError, match=f"{shard.name}' has {len(whole) - 100} bytes, the manifest says {len(whole)}"
    ):
        open_dataset(copy)
    shard.unlink()
    with pytest.raises(DatasetError, match=f"{shard.name}' is missing"):
        open_dataset(copy)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    shard.write_bytes(changed)
    open_dataset(copy)
    with pytest.raises(DatasetError, match=f"{shard.name}' is not what was packed"):
        open_dataset(copy, verify=True)


def test_unreadable_table_and_index(copy):
    table = copy / "data/pairs/test-00000-of-00001.parquet"
    whole = table.read_bytes()
    table.write_bytes(bytes(len(whole)))
    with pytest.raises(DatasetError, match=r"pairs/test-00000-of-00001\.parquet' cannot be read"):
        open_dataset(copy)
    table.write_bytes(whole)
    dataset = open_dataset(copy)
    for index in (copy / "data/queries").glob("_test-*.index.npy"):
        np.save(index, np.load(index) + 10**9)
    with pytest.raises(DatasetError, match="points outside its shard"):
        dataset.images["b_00001"]
    for index in (copy / "data/queries").glob("_test-*.index.npy"):
        index.write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="cannot be read"):
        dataset.images["b_00001"]


def test_opening_needs_nothing_heavy(folder):
    """Training runs with numpy and pyarrow alone (which itself looks for pandas)."""
    heavy = ["scipy", "datasets", "pydantic", "shapely", "geopandas", "aiohttp", "PIL", "cv2", "tomli_w", "torch"]
    code = (
        "import sys; from cvgl_data.dataset import open_dataset; "
        f"data = open_dataset({str(folder)!r}).select('test'); data.images[data.queries['query_id'][0].as_py()]; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
