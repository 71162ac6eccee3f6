"""What `verify` finds: every way in which a packed dataset can be wrong that is known to us, each by itself."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_tables as toy
from cvgl_cli import data
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cvgl_data.errors import DatasetError, DatasetNotFoundError, SchemaError
from cvgl_data.readers.packed import index_path
from cvgl_data.shards import image_index
from cvgl_data.shards.verification import Problem, verify

GALLERY = "data/references/gallery-00000-of-00001.parquet"
GALLERY_META = "data/references_meta/gallery-00000-of-00001.parquet"
TRAIN = "data/queries/train-00000-of-00001.parquet"
TRAIN_META = "data/queries_meta/train-00000-of-00001.parquet"
PAIRS = "data/pairs/train-00000-of-00001.parquet"
DISTANCES = "data/distance_map/gallery-00000-of-00001.parquet"
RECIPE = "recipe.toml"
GREY = toy.jpeg(99)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "data set"
    toy.pack(folder, toy.references(toy.windows(6, 6)), toy.scattered(60, 6, 6))
    return folder


@pytest.fixture
def folder(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "dataset")


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def change_manifest(folder, change):
    manifest = manifest_of(folder)
    change(manifest["files"])
    (folder / "manifest.json").write_text(json.dumps(manifest))


def declare(folder, *names, **more):
    """Let the manifest say of files what they are now."""

    def change(files):
        for name in names:
            content = (folder / name).read_bytes()
            files.setdefault(name, {}).update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), **more)

    change_manifest(folder, change)


def rewrite(folder, name, change):
    """Replace a table by a changed one, so that only a look inside tells."""
    path = folder / name
    table = change(pq.read_table(path, partitioning=None))
    pq.write_table(table, path, compression="none", use_dictionary=False)
    declare(folder, name, rows=table.num_rows)
    if index_path(path).is_file():
        np.save(index_path(path), image_index.build(path))
        declare(folder, index_path(path).relative_to(folder).as_posix())


def cell(table, column, row, value):
    """Return the table with one value replaced, or several if ``row`` is a slice."""
    values = table[column].to_pylist()
    values[row] = value
    at = table.schema.get_field_index(column)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def swapped(table, first, second):
    order = list(range(table.num_rows))
    order[first], order[second] = order[second], order[first]
    return table.take(order)


def column_of(folder, name, column):
    return pq.read_table(folder / name, columns=[column], partitioning=None)[column].to_pylist()


def with_image(image, row):
    """Return a change that puts an image into a row, its hash with it."""

    def change(table):
        table = cell(table, "image", row, {"bytes": image, "path": None})
        return cell(table, "sha256", row, hashlib.sha256(image).hexdigest())

    return change


def put_image(folder, name, meta, row, image):
    """Replace an image where everything says that this is the one."""
    rewrite(folder, name, with_image(image, row))
    rewrite(folder, meta, lambda table: cell(table, "sha256", row, hashlib.sha256(image).hexdigest()))


def test_a_sound_dataset_has_no_problems(packed):
    assert verify(packed) == []
    assert verify(packed, decode=True) == []


def test_a_table_written_anew_is_as_sound_as_before(folder):
    """What the other tests change is found for what they change, not for having been written by them."""
    for name in (GALLERY, GALLERY_META, TRAIN, TRAIN_META, PAIRS, DISTANCES):
        rewrite(folder, name, lambda table: table)
    assert verify(folder, decode=True) == []


# Files


def flip(folder, name, at):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[at] ^= 0x01
    path.write_bytes(content)


@pytest.mark.parametrize("name", [TRAIN, PAIRS, RECIPE, f"data/queries/_{TRAIN[13:]}.index.npy"])
def test_a_flipped_bit_in_any_file(folder, name):
    flip(folder, name, -1 if name == RECIPE else 12)
    assert (name, "", "is not what was packed, its sha256 differs from the manifest's") in shown(verify(folder))


def test_a_flipped_bit_in_an_image_names_file_and_image(folder):
    ids = column_of(folder, GALLERY, "reference_id")
    offset, length = image_index.build(folder / GALLERY)[7].tolist()
    flip(folder, GALLERY, offset + length // 2)
    found = verify(folder)
    assert [problem.where for problem in found] == [GALLERY, GALLERY]
    assert (found[0].item, found[0].what[:24]) == ("", "is not what was packed, ")
    assert found[1] == Problem(GALLERY, ids[7], "the image is not that of its sha256")


@pytest.mark.parametrize("name", [GALLERY, TRAIN, DISTANCES])
def test_a_truncated_file(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-100])
    found = verify(folder)
    assert found[0] == Problem(name, "", f"has {len(whole) - 100} bytes, the manifest says {len(whole)}")
    if name != DISTANCES:
        assert [(problem.where, problem.what[:14]) for problem in found[1:]] == [(name, "cannot be read")]


@pytest.mark.parametrize("name", [GALLERY, GALLERY_META, TRAIN_META, PAIRS, DISTANCES, RECIPE])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    assert (name, "", "is missing") in shown(verify(folder))


def test_a_missing_index_only_makes_reading_slow(folder):
    index_path(folder / GALLERY).unlink()
    assert verify(folder) == []


def test_files_that_nobody_declared(folder):
    name = "data/references/gallery-00001-of-00002.parquet"
    shutil.copy(folder / GALLERY, folder / name)
    (folder / "notes.txt").write_text("mine")
    (folder / "data" / "mine.csv").write_text("mine")
    assert verify(folder) == [Problem(name, "", "is not in the manifest")]


def test_a_wrong_hash_and_a_wrong_number_in_the_manifest(folder):
    change_manifest(folder, lambda files: files[RECIPE].update(sha256="0" * 64))
    assert shown(verify(folder)) == [(RECIPE, "", "is not what was packed, its sha256 differs from the manifest's")]
    declare(folder, RECIPE)
    change_manifest(folder, lambda files: files[GALLERY].update(rows=35))
    assert verify(folder) == [Problem(GALLERY, "", "has 36 rows, the manifest says 35")]


def shown(problems):
    return [(problem.where, problem.item, problem.what) for problem in problems]


# Images: every file is what the manifest says


@pytest.mark.parametrize(("name", "key"), [(GALLERY, "reference_id"), (TRAIN, "query_id")])
def test_an_image_that_is_not_that_of_its_hash(folder, name, key):
    rewrite(folder, name, lambda table: cell(table, "image", 4, {"bytes": toy.jpeg(77), "path": None}))
    item = column_of(folder, name, key)[4]
    assert verify(folder) == [Problem(name, item, "the image is not that of its sha256")]


def test_a_hash_that_differs_between_the_two_tables(folder):
    rewrite(folder, GALLERY_META, lambda table: cell(table, "sha256", 4, "0" * 64))
    item = column_of(folder, GALLERY, "reference_id")[4]
    assert verify(folder) == [Problem(GALLERY_META, item, "has another sha256 than the packed image's row")]


def test_a_reference_that_is_not_square(folder):
    put_image(folder, GALLERY, GALLERY_META, 2, toy.jpeg(1, 48, 40))
    item = column_of(folder, GALLERY, "reference_id")[2]
    assert verify(folder) == [Problem(GALLERY, item, "the image is 48x40, a reference is square")]


@pytest.mark.parametrize(
    ("image", "outcome"),
    [
        (b"", "truncated"),
        (b"<html>not here</html>", "wrong_type"),
        (toy.jpeg(1)[:-200], "truncated"),
        (b"\xff\xd8\xff" + b"\0" * 60 + b"\xff\xd9", "decode_error"),
    ],
)
def test_images_that_are_none(folder, image, outcome):
    put_image(folder, TRAIN, TRAIN_META, 0, image)
    (found,) = verify(folder)
    assert (found.where, found.item) == (TRAIN, column_of(folder, TRAIN, "query_id")[0])
    assert found.what.startswith(f"{outcome}: ")


def test_only_decoding_finds_what_is_broken_inside(folder):
    image = bytearray(toy.jpeg(3))
    image[len(image) // 2 :] = b"\xff\xd9"
    put_image(folder, GALLERY, GALLERY_META, 5, bytes(image))
    item = column_of(folder, GALLERY, "reference_id")[5]
    assert verify(folder) == []
    (found,) = verify(folder, decode=True)
    assert (found.where, found.item, found.what[:14]) == (GALLERY, item, "decode_error: ")


@pytest.mark.parametrize(
    ("column", "value"), [("lon", float("nan")), ("lat", float("inf")), ("lon", 180.5), ("lat", -91.0), ("lat", None)]
)
def test_positions_that_are_nowhere(folder, column, value):
    rewrite(folder, TRAIN, lambda table: cell(table, column, 3, value))
    (found, *_) = verify(folder)
    assert (found.where, found.item) == (TRAIN, column_of(folder, TRAIN, "query_id")[3])
    assert "is nowhere" in found.what


def test_the_antimeridian_and_the_poles_are_somewhere(folder):
    for row, (lon, lat) in enumerate([(180.0, 90.0), (-180.0, -90.0)]):
        rewrite(
            folder, TRAIN, lambda table, row=row, lon=lon, lat=lat: cell(cell(table, "lon", row, lon), "lat", row, lat)
        )
    assert verify(folder) == []


def test_rows_out_of_order(folder):
    rewrite(folder, GALLERY, lambda table: swapped(table, 3, 4))
    ids = column_of(folder, GALLERY, "reference_id")
    found = shown(verify(folder))
    assert (GALLERY, ids[4], f"comes after '{ids[3]}'") in found
    assert (GALLERY_META, "", "does not list the packed images in this order") in found


def test_a_row_twice(folder):
    rewrite(folder, TRAIN, lambda table: pa.concat_tables([table.slice(0, 1), table]))
    first = column_of(folder, TRAIN, "query_id")[0]
    assert (TRAIN, first, f"comes after '{first}'") in shown(verify(folder))


def test_a_query_in_two_splits(folder):
    """A leak: what a model is tested on would be what it was trained on."""
    test, test_meta = TRAIN.replace("train", "test"), TRAIN_META.replace("train", "test")
    for name, other in ((test, TRAIN), (test_meta, TRAIN_META)):
        leaked = pq.read_table(folder / other, partitioning=None).slice(0, 1)
        rewrite(folder, name, lambda table, leaked=leaked: leaked)
    pairs = PAIRS.replace("train", "test")
    (folder / pairs).unlink()
    change_manifest(folder, lambda files: files.pop(pairs))
    item = column_of(folder, TRAIN, "query_id")[0]
    assert verify(folder) == [Problem(TRAIN, item, "is in the split 'test' as well")]


def test_an_index_that_points_at_other_bytes(folder):
    index = index_path(folder / GALLERY)
    np.save(index, np.load(index)[::-1])
    name = index.relative_to(folder).as_posix()
    declare(folder, name)
    assert verify(folder) == [Problem(name, "", "does not lead to the images of its shard")]
    for damage in (b"not an array", index.read_bytes().replace(b"{", b"(", 1), b""):
        index.write_bytes(damage)
        declare(folder, name)
        assert verify(folder) == [Problem(name, "", "does not lead to the images of its shard")]


def test_a_shard_that_is_forgotten_in_the_manifest_and_on_disk(folder):
    for name in (GALLERY, index_path(folder / GALLERY).relative_to(folder).as_posix()):
        (folder / name).unlink()
        change_manifest(folder, lambda files, name=name: files.pop(name))
    found = shown(verify(folder))
    assert (GALLERY_META, "", "does not list the packed images in this order") in found
    assert any(where == PAIRS for where, _, _ in found)
    (folder / TRAIN_META).unlink()
    change_manifest(folder, lambda files: files.pop(TRAIN_META))
    assert ("data/queries_meta", "", "does not describe the split 'train'") in shown(verify(folder))


def test_a_table_without_a_column(folder):
    rewrite(folder, PAIRS, lambda table: table.drop_columns("u"))
    (found,) = verify(folder)
    assert found.where == PAIRS
    assert "'u'" in found.what


def test_a_shard_without_a_column(folder):
    path = folder / TRAIN
    table = pq.read_table(path, partitioning=None).drop_columns("lat")
    pq.write_table(table, path)
    declare(folder, TRAIN)
    (found, *_) = verify(folder)
    assert found.where == TRAIN
    assert "'lat'" in found.what


# Pairs


@pytest.mark.parametrize("kind", ["query", "reference"])
@pytest.mark.parametrize("row", [-1, 0, 10_000, None])
def test_pairs_that_lead_to_another_row(folder, kind, row):
    ids = column_of(folder, PAIRS, f"{kind}_id")
    at = next(index for index, item in enumerate(column_of(folder, PAIRS, f"{kind}_row")) if item != 0)
    rewrite(folder, PAIRS, lambda table: cell(table, f"{kind}_row", at, row))
    assert verify(folder) == [Problem(PAIRS, ids[at], f"{kind}_row {row} is not this {kind}'s row")]


@pytest.mark.parametrize(("relation", "number"), [("positive", 2), ("semi-positive", 0)])
def test_queries_without_their_one_positive(folder, relation, number):
    """A pair said twice, or the only one taken for a semi-positive."""

    def change(table):
        return (
            pa.concat_tables([table.slice(0, 1), table]) if number == 2 else cell(table, "relation", 0, "semi-positive")
        )

    rewrite(folder, PAIRS, change)
    assert column_of(folder, PAIRS, "relation")[0] == relation
    item = column_of(folder, PAIRS, "query_id")[0]
    assert verify(folder) == [Problem(PAIRS, item, f"has {number} positives")]


def test_a_pair_that_belongs_to_no_image(folder):
    rewrite(folder, PAIRS, lambda table: cell(table, "reference_id", 1, "18_nowhere"))
    (found,) = verify(folder)
    assert (found.where, found.item) == (PAIRS, "18_nowhere")


# Distance map


def test_a_distance_map_of_other_references(folder):
    problem = Problem(DISTANCES, "", "does not belong to these references in this order")
    rewrite(folder, DISTANCES, lambda table: swapped(table, 0, 1))
    assert verify(folder) == [problem]
    rewrite(folder, DISTANCES, lambda table: swapped(table, 0, 1).slice(0, 30))
    assert verify(folder) == [problem]


def test_neighbors_that_are_none(folder):
    ids = column_of(folder, DISTANCES, "id")
    lists = column_of(folder, DISTANCES, "neighbor_rows")
    wrong = {3: 3, 4: 36, 5: -2, 6: None}
    for row, value in wrong.items():
        lists[row][2] = value

    def change(table):
        return table.set_column(1, table.schema.field(1), pa.array(lists, table.schema.field(1).type))

    rewrite(folder, DISTANCES, change)
    found = verify(folder)
    assert [problem.item for problem in found] == [ids[row] for row in wrong]
    assert all("none of the other references'" in problem.what for problem in found)
    lists = [row[:-1] for row in lists]
    rewrite(folder, DISTANCES, change)
    assert verify(folder)[0] == Problem(DISTANCES, "", "has not one distance for each neighbor")


def test_short_lists_are_padded(folder):
    """Few references have fewer neighbors than asked for."""

    def change(table):
        lists = table["neighbor_rows"].to_pylist()
        lists[0] = [*lists[0][:-1], -1]
        return table.set_column(1, table.schema.field(1), pa.array(lists, table.schema.field(1).type))

    rewrite(folder, DISTANCES, change)
    assert verify(folder) == []


# Any bytes at all


@settings(max_examples=25)
@given(st.data())
def test_damage_is_found_and_never_an_exception(packed, tmp_path_factory, data):
    """Also where the manifest vouches for it: then it is found or does no harm."""
    folder = shutil.copytree(packed, tmp_path_factory.mktemp("damaged") / "dataset")
    names = [name for name in manifest_of(folder)["files"] if name.endswith((".parquet", ".npy"))]
    name = data.draw(st.sampled_from(names))
    content = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        from_end = data.draw(st.integers(1, min(len(content), 3000)))  # where tables describe themselves
        content[-from_end] ^= data.draw(st.integers(1, 255))
    if bytes(content) == (folder / name).read_bytes():
        return
    (folder / name).write_bytes(content)
    assert name in {problem.where for problem in verify(folder)}
    declare(folder, name)
    assert all(isinstance(problem, Problem) for problem in verify(folder, decode=True))


# The order of things, and what is said of them


def test_problems_come_in_a_fixed_order(folder):
    (folder / "recipe.toml").unlink()
    flip(folder, PAIRS, 12)
    flip(folder, TRAIN, -1)
    assert verify(folder) == verify(folder)
    assert [problem.where for problem in verify(folder)][:3] == [PAIRS, TRAIN, "recipe.toml"]


def test_progress_is_told(packed):
    class Told:
        stages: list[tuple[str, int | None]] = []  # noqa: RUF012 - of this test alone
        count = 0

        def stage(self, name, total):
            self.stages.append((name, total))

        def advance(self, count=1, note=None):
            self.count += count

    told = Told()
    verify(packed, progress=told)
    files = manifest_of(packed)["files"]
    rows = sum(
        entry["rows"]
        for name, entry in files.items()
        if name.startswith(("data/queries/", "data/references/")) and name.endswith(".parquet")
    )
    assert told.stages == [("files", len(files)), ("images", None)]
    assert told.count == len(files) + rows


def test_what_is_no_dataset_is_an_error_and_no_problem(folder, tmp_path):
    with pytest.raises(DatasetNotFoundError):
        verify(tmp_path / "nowhere")
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"schema_version": "', '"schema_version": "9'))
    with pytest.raises(SchemaError, match="schema version 9"):
        verify(folder)
    for text in (whole[:-50], "[]", "{}", whole.replace('"sha256"', '"sha"'), '{"schema_version": "2", "files": [1]}'):
        manifest.write_text(text)
        with pytest.raises(DatasetError, match="damaged"):
            verify(folder)
    manifest.unlink()
    with pytest.raises(DatasetError, match="not finished"):
        verify(folder)


# The command


def invoke(*words):
    return CliRunner().invoke(data.app, ["verify", *map(str, words)])


def test_exit_codes(packed, folder):
    done = invoke(packed, "--decode")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "is sound" in done.stderr
    done = invoke(packed, "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])

    rewrite(folder, GALLERY_META, lambda table: cell(table, "sha256", 4, "0" * 64))
    item = column_of(folder, GALLERY, "reference_id")[4]
    done = invoke(folder)
    assert done.exit_code == 3
    assert item in done.stdout
    assert "another sha256" in done.stdout
    assert "1 problems" in done.stderr
    done = invoke(folder, "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout) == [
        {"where": GALLERY_META, "item": item, "what": "has another sha256 than the packed image's row"}
    ]


@pytest.mark.parametrize("damage", ["[", "{}", "\xff"])
def test_a_damaged_manifest_is_one_line(folder, monkeypatch, capsys, damage):
    (folder / "manifest.json").write_bytes(damage.encode("latin-1"))
    monkeypatch.setattr(sys, "argv", ["cvgl-data", "verify", str(folder)])
    with pytest.raises(SystemExit) as ended:
        data.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (1, "")
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert "manifest.json' is damaged" in line


def test_every_image_is_looked_at(folder):
    """All of them wrong at once, in every split: nothing is sampled."""
    names = [name for name in manifest_of(folder)["files"] if name.startswith(("data/queries/", "data/references/"))]
    expected = []
    for name in sorted(name for name in names if name.endswith(".parquet")):
        key = "query_id" if "queries" in name else "reference_id"
        rewrite(folder, name, lambda table: cell(table, "image", slice(None), [{"bytes": GREY}] * table.num_rows))
        expected += [(name, item, "the image is not that of its sha256") for item in column_of(folder, name, key)]
    assert sorted(shown(verify(folder))) == sorted(expected)
    assert len(expected) > 36 + 40
