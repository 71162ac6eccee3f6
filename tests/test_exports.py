"""Exports of a packed dataset: what other libraries make of them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import toy_tables as toy

from cvgl_data import schema, shards
from cvgl_data.errors import DatasetError
from cvgl_data.recipe import DatasetRecipe, PackRecipe, SplitRecipe


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    return toy.references(toy.windows(5, 5)), toy.scattered(120, 5, 5)


@pytest.fixture(scope="module")
def packed(tables, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "dataset"
    toy.pack(out, *tables)
    return out


def test_export_arrow(packed, tmp_path):
    import datasets

    out = tmp_path / "arrow"
    shards.export_arrow(packed, out)
    queries = datasets.load_from_disk(str(out / "queries"))
    assert set(queries) == set(schema.SPLITS)
    assert queries["train"][0]["image"].size == (96, 48)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["references", "queries", "pairs", "distance_map", "references_meta", "queries_meta"]
    )
    assert not (tmp_path / "arrow.tmp").exists()
    with pytest.raises(DatasetError, match="exists already"):
        shards.export_arrow(packed, out)


def test_a_damaged_dataset_is_not_exported(tables, tmp_path):
    toy.pack(tmp_path / "packed", *tables)
    shard = tmp_path / "packed/data/queries/train-00000-of-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"train-00000-of-00001\.parquet' is not what was packed"):
        shards.export_arrow(tmp_path / "packed", tmp_path / "arrow")
    assert not list(tmp_path.glob("arrow*"))


def rows_of(folder: Path, table: str, split: str) -> list[dict]:
    return pq.read_table(sorted((folder / "data" / table).glob(f"{split}-*.parquet")), partitioning=None).to_pylist()


def test_webdataset_holds_every_row(packed, tmp_path):
    out = tmp_path / "tars"
    written = shards.export_webdataset(packed, out)
    assert [path.relative_to(out).as_posix() for path in written] == [
        "queries/test-00000.tar",
        "queries/train-00000.tar",
        "queries/validation-00000.tar",
        "references/gallery-00000.tar",
    ]
    for path in written:
        expected = rows_of(packed, path.parent.name, path.name.split("-")[0])
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
            contents = [tar.extractfile(member).read() for member in members]
        ids = [next(iter(row.values())) for row in expected]
        assert [m.name for m in members] == [f"{name}.{suffix}" for name in ids for suffix in ("jpg", "json")]
        assert contents[::2] == [row.pop("image")["bytes"] for row in expected]
        assert [json.loads(content) for content in contents[1::2]] == expected
    # What joins them comes along.
    pairs = pq.read_table(packed / "data/pairs")
    assert pq.read_table(out / "pairs").sort_by("query_id").equals(pairs.sort_by("query_id"))
    assert pq.read_table(out / "distance_map").num_rows == 25


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # `datasets` leaves the tar open
def test_datasets_opens_webdataset(packed, tables, tmp_path):
    import datasets

    datasets.disable_progress_bars()
    shards.export_webdataset(packed, tmp_path / "tars")
    files = {split: str(tmp_path / f"tars/queries/{split}-*.tar") for split in schema.SPLITS}
    queries = datasets.load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert set(queries) == set(schema.SPLITS)
    first, expected = queries["train"][0], rows_of(packed, "queries", "train")[0]
    assert first["__key__"] == first["json"]["query_id"] == expected["query_id"]
    assert first["jpg"].size == (96, 48)
    assert first["json"]["lon"] == expected["lon"]
    assert sum(split.num_rows for split in queries.values()) == sum(
        len(rows_of(packed, "queries", split)) for split in schema.SPLITS
    )
    streamed = datasets.load_dataset("webdataset", data_files=files, split="test", streaming=True)
    assert next(iter(streamed))["jpg"].size == (96, 48)


def test_webdataset_is_the_same_twice_and_starts_anew_at_the_limit(packed, tmp_path):
    sizes = [len(shards.export_webdataset(packed, tmp_path / name, shard_mb=0.02)) for name in ("a", "b")]
    assert sizes[0] == sizes[1] > 4
    found = [
        {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    ]
    assert found[0] == found[1]
    tars = sorted((tmp_path / "a/references").iterdir())
    assert [path.name for path in tars] == [f"gallery-{number:05d}.tar" for number in range(len(tars))]
    assert all(path.stat().st_size < 50_000 for path in tars)
    ids = []
    for path in tars:
        with tarfile.open(path) as tar:
            ids += [name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")]
    assert ids == [row["reference_id"] for row in rows_of(packed, "references", "gallery")]


def test_ids_with_dots_slashes_and_other_letters_stay_whole(tables, tmp_path):
    references, queries = tables
    names = ["a.b/c d.jpg", "a_b", "z" * 150, "écluse"]
    queries = queries.slice(0, 4).set_column(0, "query_id", pa.array(names))
    recipe = DatasetRecipe(name="toy", split=SplitRecipe(protocol="none"))
    toy.pack(tmp_path / "packed", references, queries, recipe=recipe)
    (tars,) = [
        path for path in shards.export_webdataset(tmp_path / "packed", tmp_path / "out") if "queries" in str(path)
    ]
    with tarfile.open(tars) as tar:
        keys = [name.split(".")[0] for name in tar.getnames()[::2]]
        rows = [json.loads(tar.extractfile(name).read()) for name in tar.getnames()[1::2]]
    assert [row["query_id"] for row in rows] == sorted(names)
    assert keys[0] == "a%2Eb%2Fc%20d%2Ejpg"
    assert len(set(keys)) == 4
    assert not any("/" in key for key in keys)


def test_webdataset_refuses_what_it_should(packed, tables, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(DatasetError, match="exists already"):
        shards.export_webdataset(packed, tmp_path / "there")
    toy.pack(tmp_path / "cut", *tables)
    (tmp_path / "cut/data/distance_map/gallery-00000-of-00001.parquet").write_bytes(b"")
    with pytest.raises(DatasetError, match="has 0 bytes"):
        shards.export_webdataset(tmp_path / "cut", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.tmp").exists()


def test_a_dataset_without_images_is_not_exported_as_tars(packed, tmp_path):
    manifest = json.loads((packed / "manifest.json").read_text())
    meta = tmp_path / "meta"
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if "_meta/" in name}
    for name in manifest["files"]:
        (meta / name).parent.mkdir(parents=True, exist_ok=True)
        (meta / name).write_bytes((packed / name).read_bytes())
    (meta / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="holds no images to export"):
        shards.export_webdataset(meta, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_other_sizes_are_exported_too(tables, tmp_path):
    recipe = DatasetRecipe(name="toy", split=SplitRecipe(block_m=150), pack=PackRecipe(reference_size=24))
    toy.pack(tmp_path / "packed", *tables, recipe=recipe)
    written = shards.export_webdataset(tmp_path / "packed", tmp_path / "out")
    assert tmp_path / "out/references_24/gallery-00000.tar" in written
    shards.export_arrow(tmp_path / "packed", tmp_path / "arrow")
    import datasets

    smaller = datasets.load_from_disk(str(tmp_path / "arrow/references_24"))["gallery"]
    assert smaller[0]["image"].size == (24, 24)
    assert pc.all(pc.is_valid(smaller.data["resized_from_sha256"])).as_py()
