"""Packing: layout, bytes, what other libraries make of the files, and what happens when it goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import toy_tables as toy
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data import schema, shards
from cvgl_data.errors import DatasetError, SchemaError
from cvgl_data.neighbors import IDS_KEY, distance_map
from cvgl_data.pairing import pair
from cvgl_data.recipe import DatasetRecipe, PackRecipe, SplitRecipe, resolve
from cvgl_data.shards import card, files, image_files, image_index
from cvgl_data.splits import split

RECIPE = DatasetRecipe(name="toy", split=SplitRecipe(block_m=150))


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    return toy.references(toy.windows(8, 8)), toy.scattered(300, 9, 9)  # some queries lie outside


@pytest.fixture(scope="module")
def packed(tables, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "dataset"
    toy.pack(out, *tables)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def images_of(table: pa.Table) -> dict[str, bytes]:
    return {row[table.column_names[0]]: row["image"]["bytes"] for row in table.to_pylist()}


def test_layout_and_manifest(packed):
    manifest = json.loads((packed / "manifest.json").read_text())
    found = contents(packed)
    assert set(manifest["files"]) == set(found) - {"manifest.json", "README.md"}
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == len(found[name])
        assert entry["sha256"] == hashlib.sha256(found[name]).hexdigest()
        if name.endswith(".parquet"):
            assert entry["rows"] == pq.read_metadata(packed / name).num_rows
    assert manifest["schema_version"] == schema.VERSION
    assert manifest["sources"][0]["name"] == "toy"
    assert manifest["counts"]["references"] == 64
    assert sum(manifest["counts"]["queries"].values()) + sum(manifest["counts"]["failures"].values()) == 300
    assert str(packed) not in (packed / "manifest.json").read_text()
    assert "data/references/gallery-00000-of-00001.parquet" in found
    assert {"data/queries/train-00000-of-00001.parquet", "data/pairs/test-00000-of-00001.parquet"} <= set(found)
    assert resolve(DatasetRecipe, tomllib.loads((packed / "recipe.toml").read_text())).name == "toy"


def test_columns_are_stored_as_promised(packed):
    for table, expected, groups in (("references", schema.REFERENCES, 1000), ("queries", schema.QUERIES, 64)):
        for path in (packed / "data" / table).glob("*.parquet"):
            file = pq.ParquetFile(path)
            schema.check(file.schema_arrow, expected, path.name)
            assert file.schema_arrow.metadata[schema.VERSION_KEY].decode() == schema.VERSION
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                assert group.num_rows <= groups
                for index in range(group.num_columns):
                    chunk = group.column(index)
                    if chunk.path_in_schema == "image.bytes":
                        assert chunk.compression == "UNCOMPRESSED"
                        assert not chunk.has_dictionary_page
                        assert not chunk.is_stats_set
                    else:
                        assert chunk.compression == "ZSTD"
                    assert chunk.has_offset_index


def test_rows_join(packed, tables):
    references, queries = tables
    gallery = pq.read_table(packed / "data/references", columns=["reference_id"])["reference_id"].to_pylist()
    assert gallery == references["reference_id"].to_pylist()
    seen = []
    for name in schema.SPLITS:
        path = packed / f"data/queries/{name}-00000-of-00001.parquet"
        rows = pq.read_table(path, partitioning=None)
        assert images_of(rows).items() <= images_of(queries).items()
        ids = rows["query_id"].to_pylist()
        assert ids == sorted(ids)
        seen += ids
        pairs = pq.read_table(packed / f"data/pairs/{name}-00000-of-00001.parquet", partitioning=None)
        for pair_row in pairs.to_pylist():
            assert ids[pair_row["query_row"]] == pair_row["query_id"]
            assert gallery[pair_row["reference_row"]] == pair_row["reference_id"]
        assert set(pairs["query_id"].to_pylist()) == set(ids)
    failures = pq.read_table(packed / "data/failures")
    assert failures.schema.names == schema.FAILURES.names
    assert set(failures["status"].to_pylist()) == {"no_reference"}
    assert sorted(seen + failures["id"].to_pylist()) == queries["query_id"].to_pylist()


def test_index_gives_every_image(packed, tables):
    expected = images_of(tables[0]) | images_of(tables[1])
    assert len(list(packed.glob("data/*/*.index.npy"))) == 4
    for path in packed.glob("data/*/*.index.npy"):
        shard = path.with_name(path.name.removeprefix("_").removesuffix(".index.npy"))
        data, index = shard.read_bytes(), np.load(path)
        ids = pq.read_table(shard, partitioning=None).column(0).to_pylist()
        assert index.dtype == np.int64
        assert index.shape == (len(ids), 2)
        for name, (offset, length) in zip(ids, index.tolist(), strict=True):
            assert data[offset : offset + length] == expected[name]


@given(
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=400),
    group=st.integers(1, 150),
    page=st.sampled_from([64, 4096, 1 << 20]),
    version=st.sampled_from(["1.0", "2.0"]),
    crc=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_index_of_any_uncompressed_plain_file(sizes, group, page, version, crc, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "images.parquet"
    values = [np.random.default_rng(size).bytes(size) for size in sizes]
    table = pa.table(
        {"n": range(len(sizes)), "image": pa.array([{"bytes": value, "path": "p"} for value in values], schema.IMAGE)}
    )
    options = {"use_dictionary": False, "data_page_size": page, "data_page_version": version}
    pq.write_table(table, path, compression="none", row_group_size=group, write_page_checksum=crc, **options)
    data = path.read_bytes()
    assert [data[offset : offset + length] for offset, length in image_index.build(path).tolist()] == values


@given(
    sizes=st.lists(st.one_of(st.integers(0, 3000), st.integers(200_000, 400_000)), min_size=1, max_size=60),
    group=st.integers(1, 70),
    batch=st.integers(1, 70),
)
@settings(max_examples=25, deadline=None)
def test_index_of_what_was_written_needs_only_the_lengths(sizes, group, batch, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "images.parquet"
    images = [{"bytes": bytes([row % 251]) * size, "path": None} for row, size in enumerate(sizes)]
    table = pa.table({"n": list(range(len(sizes))), "image": pa.array(images, schema.IMAGE)})
    table = pa.Table.from_batches(table.to_batches(max_chunksize=batch))
    with image_files.open_writer(path, table.schema) as writer:
        for start in range(0, len(sizes), group):
            _, lengths = image_files.write_group(writer, table.slice(start, group), start)
            assert lengths.tolist() == sizes[start : start + group]
    index = image_files.index_of(path, np.array(sizes))
    np.testing.assert_array_equal(index, image_index.build(path))
    assert index[:, 1].tolist() == sizes
    with pytest.raises(DatasetError, match="does not hold the images"):
        image_files.index_of(path, np.array(sizes) + 1)


def test_index_refuses_what_it_cannot_slice(tmp_path):
    path = tmp_path / "images.parquet"
    images = [{"bytes": b"abc" * 100, "path": None}] * 20
    table = pa.table({"image": pa.array(images, schema.IMAGE)})
    for options in ({"compression": "zstd", "use_dictionary": False}, {"compression": "none", "use_dictionary": True}):
        pq.write_table(table, path, **options)
        with pytest.raises(DatasetError, match=r"images\.parquet.*expected UNCOMPRESSED PLAIN"):
            image_index.build(path)
    pq.write_table(
        table, path, compression="none", use_dictionary=False, column_encoding={"image.bytes": "DELTA_BYTE_ARRAY"}
    )
    with pytest.raises(DatasetError, match="expected PLAIN"):
        image_index.build(path)
    with_null = pa.table({"image": pa.array([*images, None], schema.IMAGE)})
    pq.write_table(with_null, path, compression="none", use_dictionary=False)
    with pytest.raises(DatasetError, match="one image per row"):
        image_index.build(path)
    with pytest.raises(DatasetError, match="no column 'picture'"):
        image_index.build(path, "picture")


def test_bytes_depend_on_nothing_but_the_rows(packed, tables, tmp_path):
    """Other batch sizes, plain binary images, extra columns, shuffled pairs: the same files."""
    references, queries = tables
    plain = queries.set_column(1, "image", pc.struct_field(queries["image"], "bytes")).append_column(
        "error", pa.nulls(300)
    )
    toy.pack(tmp_path / "again", references, plain, batch=5)
    assert contents(tmp_path / "again") == contents(packed)

    pairs = pair(queries, references)
    shards.pack(
        tmp_path / "third",
        RECIPE,
        references=toy.batches(references, 64),
        queries=toy.batches(queries, 1),
        pairs=pairs.set_column(2, "query_row", pa.array(np.zeros(pairs.num_rows, np.int32))),  # found anew by id
        distance_map=distance_map(references, 8),
        splits=split(queries, pairs, references, RECIPE.split, 0),
        failures=schema.FAILURES.empty_table(),
        credits=[shards.Credit(kind="imagery", name="toy", attribution="Nobody | nowhere", licence="CC0-1.0")],
    )
    assert contents(tmp_path / "third") == contents(packed)


def test_batches_do_not_show_in_pages_either(tables, tmp_path):
    """Images large enough for several pages: pyarrow ends a page where a chunk ends."""
    references, queries = tables[0], tables[1].slice(0, 60)
    images = [{"bytes": np.random.default_rng(seed).bytes(100_000 + seed), "path": None} for seed in range(60)]
    queries = queries.set_column(1, "image", pa.array(images, schema.IMAGE))
    for batch in (7, 64):
        toy.pack(tmp_path / str(batch), references, queries, batch=batch)
    assert contents(tmp_path / "7") == contents(tmp_path / "64")


def test_shards_start_anew_at_the_limit(tmp_path, tables, monkeypatch):
    monkeypatch.setattr(shards, "REFERENCES_PER_GROUP", 10)
    recipe = dataclasses.replace(RECIPE, pack=PackRecipe(shard_mb=1))
    references, queries = tables
    images = pa.array([{"bytes": bytes(100_000), "path": None}] * 64, schema.IMAGE)  # ten are 1 MB
    at = references.schema.get_field_index("image")
    toy.pack(tmp_path / "out", references.set_column(at, "image", images), queries, recipe=recipe)
    names = sorted(path.name for path in (tmp_path / "out/data/references").glob("*.parquet"))
    assert names == [f"gallery-{number:05d}-of-00007.parquet" for number in range(7)]
    ids = pq.read_table([tmp_path / "out/data/references" / name for name in names])["reference_id"]
    assert ids.to_pylist() == tables[0]["reference_id"].to_pylist()


def test_packing_again_replaces_everything(tmp_path, tables):
    references, queries = tables
    out = tmp_path / "out"
    toy.pack(out, references, queries)
    (out / "data/queries/train-00003-of-00009.parquet").write_bytes(b"stale")
    (out / "data/queries/train-00000.parquet.tmp").write_bytes(b"half")
    (out / "notes.txt").write_text("mine")
    (out / "data/mine").mkdir()
    for name in ("data/mine/raw.parquet", "data/mine/raw.tmp", "data/labels.csv"):
        (out / name).write_bytes(b"mine")
    few = queries.slice(0, 40)
    toy.pack(out, references, few)
    toy.pack(tmp_path / "fresh", references, few)
    assert contents(out) == contents(tmp_path / "fresh") | dict.fromkeys(
        ("notes.txt", "data/mine/raw.parquet", "data/mine/raw.tmp", "data/labels.csv"), b"mine"
    )


def test_every_table_that_is_packed_is_in_a_folder_known_as_ours(packed):
    names = {path.name for path in (packed / "data").iterdir()}
    listed = set(card.tables(json.loads((packed / "manifest.json").read_text())["files"]))
    assert listed < names
    assert all(files.is_table(name) for name in (*names, "quality", "queries_768x384", "references_384"))
    assert not any(files.is_table(name) for name in ("mine", "queries_768", "references_384x384", "references_old"))


def test_a_failed_packing_leaves_the_earlier_dataset_whole(tmp_path, tables):
    references, queries = tables
    out = tmp_path / "out"
    toy.pack(out, references, queries)
    before = contents(out)
    with pytest.raises(SchemaError, match="sorted by id"):
        toy.pack(out, references, queries.take(pa.array([*range(100), 200, 150])))
    assert contents(out) == before


def test_interrupted_in_the_middle_of_renaming(tmp_path, tables, monkeypatch):
    """Killed after the first file was replaced: no manifest, so nobody takes it for complete."""
    out = tmp_path / "out"
    toy.pack(out, *tables)
    calls = []

    def dies(source, target):
        calls.append(target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cvgl_data.shards.files.os.replace", dies)
        with pytest.raises(KeyboardInterrupt):
            toy.pack(out, *tables)
    assert calls
    assert not (out / "manifest.json").exists()
    toy.pack(out, *tables)
    assert (out / "manifest.json").exists()


def test_tables_that_do_not_belong_together(tmp_path, tables):
    references, queries = tables
    pairs = pair(queries, references)
    good = {
        "pairs": pairs,
        "distance_map": distance_map(references, 4),
        "splits": split(queries, pairs, references, RECIPE.split, 0),
        "failures": schema.FAILURES.empty_table(),
    }

    def pack(references=references, queries=queries, **changed):
        streams = {"references": toy.batches(references, 50), "queries": toy.batches(queries, 50)}
        return shards.pack(tmp_path / "out", RECIPE, **streams, **(good | changed))

    with pytest.raises(SchemaError, match="distance map is not of these references"):
        pack(references=references.slice(1))
    with pytest.raises(SchemaError, match="pairs name reference"):
        pack(references=references.slice(1), distance_map=distance_map(references.slice(1), 4))
    with pytest.raises(SchemaError, match="no row in the split table"):
        pack(splits=good["splits"].slice(1))
    ids = pa.array([references["reference_id"][0].as_py(), *queries["query_id"].to_pylist()[1:]])
    renamed = queries.set_column(0, "query_id", ids)
    all_test = pa.table([ids, pa.array(["test"] * 300), pa.array([""] * 300)], names=good["splits"].column_names)
    with pytest.raises(SchemaError, match="names both a query and a reference"):
        pack(queries=renamed, splits=all_test)
    with pytest.raises(SchemaError, match="no column 'lon'"):
        pack(queries=queries.drop_columns("lon"))
    images = [*queries["image"].to_pylist()[:2], {"bytes": None}, *queries["image"].to_pylist()[3:]]
    without = queries.set_column(1, "image", pa.array(images, schema.IMAGE))
    with pytest.raises(DatasetError, match="query_id 'pano_00002' has no image"):
        pack(queries=without)
    # The same ids, but rows of another table: those of queries against references, say.
    elsewhere = good["distance_map"].schema.with_metadata({IDS_KEY: b"of other rows"})
    with pytest.raises(SchemaError, match="distance map is not of these references"):
        pack(distance_map=good["distance_map"].cast(elsewhere))
    assert contents(tmp_path / "out") == {}
    assert pack()["counts"]["references"] == 64


def quality_of(references: pa.Table, queries: pa.Table) -> pa.Table:
    """One row for each image, in no order, and a column that the schema does not have."""
    ids = [(name, "query") for name in queries["query_id"].to_pylist()[::-1]]
    ids += [(name, "reference") for name in references["reference_id"].to_pylist()]
    rows = [
        {"id": name, "kind": kind, "area": "seattle", "keep": number % 7 != 0, "reason": "", "luma_mean": 3.5}
        for number, (name, kind) in enumerate(ids)
    ]
    return pa.Table.from_pylist(rows, schema.QUALITY).append_column("extra", pa.array(range(len(rows))))


def test_quality_is_packed_in_two_splits(tables, tmp_path, hub):
    references, queries = tables
    pairs = pair(queries, references)

    def pack(out, quality):
        return shards.pack(
            out,
            RECIPE,
            references=toy.batches(references, 50),
            queries=toy.batches(queries, 50),
            pairs=pairs,
            distance_map=distance_map(references, 4),
            splits=split(queries, pairs, references, RECIPE.split, 0),
            failures=schema.FAILURES.empty_table(),
            quality=quality,
        )

    quality = quality_of(references, queries)
    manifest = pack(tmp_path / "out", quality)
    for name, ids in (("references", references["reference_id"]), ("queries", queries["query_id"])):
        path = f"data/quality/{name}-00000-of-00001.parquet"
        assert manifest["files"][path]["rows"] == len(ids)
        found = pq.read_table(tmp_path / "out" / path, partitioning=None)
        schema.check(found.schema, schema.QUALITY, path)
        assert found.schema.names == [*schema.QUALITY.names, "extra"]
        assert found["id"].to_pylist() == sorted(ids.to_pylist())
        assert set(found["keep"].to_pylist()) == {True, False}
    files = {"references": str(tmp_path / "out/data/quality/references-*.parquet")}
    assert hub("parquet", data_files=files)["references"].num_rows == 64

    shuffled = quality.take(pa.array(np.random.default_rng(0).permutation(quality.num_rows)))
    pack(tmp_path / "again", shuffled)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    assert "data/quality/queries-00000-of-00001.parquet" not in pack(tmp_path / "out", None)["files"]
    assert not (tmp_path / "out/data/quality").exists()
    with pytest.raises(SchemaError, match="quality table has no column 'keep'"):
        pack(tmp_path / "out", quality.drop_columns("keep"))


STREAMED = """
import re, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
sys.path.insert(0, sys.argv[1])
import toy_tables as toy
from cvgl_data import schema, shards
from cvgl_data.neighbors import distance_map
from cvgl_data.recipe import DatasetRecipe

NUM, AT_ONCE = 832, 64
references = toy.references(toy.windows(3, 3))
row = toy.scattered(1, 3, 3)

def megabytes(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

def batches():
    for start in range(0, NUM, AT_ONCE):
        table = pa.concat_tables([row] * AT_ONCE)
        ids = [f"pano_{start + number:06d}" for number in range(AT_ONCE)]
        images = [{"bytes": np.random.default_rng(number).bytes(390_000), "path": None} for number in range(AT_ONCE)]
        table = table.set_column(0, "query_id", pa.array(ids)).set_column(1, "image", pa.array(images, schema.IMAGE))
        yield from table.combine_chunks().to_batches()

ids = [f"pano_{number:06d}" for number in range(NUM)]
def pack(out, batches, ids):
    shards.pack(
        Path(out),
        DatasetRecipe(name="streamed"),
        references=references.to_batches(),
        queries=batches,
        pairs=schema.PAIRS.empty_table(),
        distance_map=distance_map(references, 2),
        splits=pa.table({"query_id": ids, "split": ["train"] * len(ids), "reason": [""] * len(ids)}),
        failures=schema.FAILURES.empty_table(),
    )
pack(sys.argv[2] + "/small", [], [])  # imports
before = megabytes("VmRSS")
pack(sys.argv[2] + "/large", batches(), ids)
print(megabytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_324_mb_of_panoramas_take_at_most_260_mb_of_memory(tmp_path):
    """A batch, its copy in a split, and a row group of 25 MB each."""
    command = [sys.executable, "-c", STREAMED, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert sum(path.stat().st_size for path in tmp_path.glob("large/data/queries/*.parquet")) > 324_000_000
    assert float(done.stdout) < 260


def test_geopandas_draws_the_meta_tables(packed, tables):
    import geopandas

    windows = geopandas.read_parquet(packed / "data/references_meta")
    assert windows.crs == "OGC:CRS84"
    assert windows.geometry.is_valid.all()
    assert windows.geometry.exterior.is_ccw.all()
    assert "image" not in windows.columns
    window = toy.windows(8, 8)[0]
    shape = windows.set_index("reference_id").geometry[window.key]
    assert shape.bounds == pytest.approx(
        (window.bounds.west, window.bounds.south, window.bounds.east, window.bounds.north)
    )
    points = geopandas.read_parquet(packed / "data/queries_meta/train-00000-of-00001.parquet")
    assert (points.geometry.x == points["lon"]).all()
    assert (points.geometry.y == points["lat"]).all()


@pytest.fixture
def hub(tmp_path):
    """`datasets` without its bars; its cache goes to a private folder."""
    import datasets

    datasets.disable_progress_bars()
    return lambda folder, *args, **kwargs: datasets.load_dataset(
        str(folder), *args, cache_dir=str(tmp_path / "cache"), **kwargs
    )


def test_load_dataset_opens_every_table(packed, tables, hub):
    references = hub(packed, "references", split="gallery")
    assert references[5]["image"].size == (48, 48)
    queries = hub(packed, "queries", split="train")
    assert queries[0]["image"].size == (96, 48)
    assert queries[0]["heading_deg"] in (None, 0.0)
    assert set(hub(packed)) == {"train", "validation", "test"}, "queries are the default"
    assert hub(packed, "pairs", split="test").num_rows == hub(packed, "queries", split="test").num_rows
    neighbors = hub(packed, "distance_map", split="gallery").with_format("numpy")
    assert neighbors["neighbor_rows"][:].shape == (64, 8)
    assert hub(packed, "references_meta", split="gallery").num_rows == 64
    assert len(hub(packed, "queries_meta", split="train")[0]["geometry"]) == 21


def test_a_dataset_without_any_pair_loads(tables, tmp_path, hub):
    references = tables[0]
    far = toy.queries(np.array([toy.ORIGIN_X - 9000.0] * 3), np.array([toy.ORIGIN_Y - 9000.0] * 3))
    manifest = toy.pack(tmp_path / "out", references, far)
    assert manifest["counts"] == {"references": 64, "queries": {"test": 3}, "pairs": {"test": 0}, "failures": {}}
    assert hub(tmp_path / "out", "queries", split="test").num_rows == 3
    # `datasets` loads no empty split, so there is none.
    assert not (tmp_path / "out/data/pairs").exists()
    assert "config_name: pairs" not in (tmp_path / "out/README.md").read_text()


def test_card(packed):
    text = (packed / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    assert "Nobody \\| nowhere" in text
    assert "- config_name: queries\n  default: true\n" in text
    assert "split: train\n    path: data/queries/train-*.parquet" in text
