import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data.errors import DatasetError, WorkspaceError
from cvgl_data.types import Outcome
from cvgl_data.workspace import Workspace
from cvgl_data.workspace import store as store_module
from cvgl_data.workspace.store import Store

RECIPE = {"name": "toy", "seed": 1, "grid": {"zoom": 18, "overlap": 0.0}, "areas": [{"city": "seattle"}]}
SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("status", pa.string())])


def row(key, status="ok", image=b"x"):
    return {"id": key, "image": image, "status": status}


def open_store(path):
    return Store(path, SCHEMA, "id")


def test_the_same_recipe_goes_on_and_another_is_refused(tmp_path):
    with Workspace(tmp_path / "d").open(RECIPE) as workspace:
        workspace.write_table("pairs", pa.table({"a": [1, 2]}))
    before = (tmp_path / "d/.cvgl/recipe.toml").read_bytes()
    with Workspace(tmp_path / "d").open(RECIPE) as workspace:
        assert workspace.read_table("pairs").to_pydict() == {"a": [1, 2]}
    other = {**RECIPE, "seed": 2, "grid": {"zoom": 19, "overlap": 0.0}}
    with pytest.raises(WorkspaceError, match=r"grid.zoom: 18 -> 19; seed: 1 -> 2.*--overwrite"):
        Workspace(tmp_path / "d").open(other)
    assert (tmp_path / "d/.cvgl/recipe.toml").read_bytes() == before
    with Workspace(tmp_path / "d").open(RECIPE) as workspace:  # the refusal has kept neither the lock nor anything else
        assert workspace.has_table("pairs")
        assert workspace.recipe_tables() == RECIPE


def test_overwrite_starts_over(tmp_path):
    folder = tmp_path / "d"
    with Workspace(folder).open(RECIPE) as workspace, workspace.store("references", SCHEMA, "id") as store:
        workspace.write_table("pairs", pa.table({"a": [1]}))
        store.append(row("a"))
    (folder / "data/queries").mkdir(parents=True)
    (folder / "data/queries/train-00000-of-00001.parquet").write_bytes(b"ours")
    (folder / "manifest.json").write_text("{}")
    (folder / "notes.txt").write_text("the user's")
    with Workspace(folder).open({**RECIPE, "seed": 2}, overwrite=True) as workspace:
        assert not workspace.has_table("pairs")
        assert len(workspace.store("references", SCHEMA, "id")) == 0
        assert workspace.recipe_tables()["seed"] == 2
    assert {entry.name for entry in folder.iterdir()} == {".cvgl", "notes.txt"}


def test_overwrite_starts_over_with_the_same_recipe_too(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "d"
    with Workspace(folder).open(RECIPE, overwrite=True) as workspace:
        assert not caplog.messages, "there was nothing to delete"
        workspace.write_table("pairs", pa.table({"a": [1]}))
        with workspace.store("references", SCHEMA, "id") as store:
            store.append(row("a"))
    (folder / "data/pairs").mkdir(parents=True)
    (folder / "data/mine.csv").write_text("the user's")
    with Workspace(folder).open(RECIPE, overwrite=True) as workspace:
        assert not workspace.has_table("pairs")
        assert len(workspace.store("references", SCHEMA, "id")) == 0
        assert workspace.recipe_tables() == RECIPE
    assert "deleting the build" in caplog.text
    assert [path.name for path in (folder / "data").iterdir()] == ["mine.csv"]


def test_a_build_killed_while_it_is_deleted_is_not_gone_on_with(tmp_path, monkeypatch):
    with Workspace(tmp_path / "d").open(RECIPE) as workspace, workspace.store("references", SCHEMA, "id") as store:
        store.append(row("a"))

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cvgl_data.workspace.shutil.rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            Workspace(tmp_path / "d").open(RECIPE, overwrite=True)
    with pytest.raises(WorkspaceError, match="--overwrite starts over"):
        Workspace(tmp_path / "d").open(RECIPE)
    with Workspace(tmp_path / "d").open(RECIPE, overwrite=True) as workspace:
        assert len(workspace.store("references", SCHEMA, "id")) == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(WorkspaceError, match="not empty and holds no cvgl build"):
        Workspace(tmp_path).open(RECIPE, overwrite=overwrite)
    with pytest.raises(WorkspaceError, match="is a file"):
        Workspace(tmp_path / "thesis.tex").open(RECIPE, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "x"
    assert not (tmp_path / ".cvgl").exists()


@pytest.mark.parametrize("manifest", ['{"manifest_version": 3, "name": "x"}', "[]", "{", '{"schema_version": "1"}'])
def test_a_manifest_of_something_else_makes_no_dataset(tmp_path, manifest):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(WorkspaceError, match="holds no cvgl build"):
        Workspace(folder).open(RECIPE, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def dataset_without_workspace(folder):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"schema_version": "1", "files": {}}))
    return folder


def test_a_dataset_without_its_workspace_is_ours(tmp_path):
    folder = dataset_without_workspace(tmp_path / "d")
    (folder / "recipe.toml").write_text("name = ")
    with pytest.raises(WorkspaceError, match=r"d/recipe\.toml' is damaged"):
        Workspace(folder).open(RECIPE)
    with Workspace(folder).open(RECIPE, overwrite=True) as workspace:
        assert workspace.recipe_tables() == RECIPE
    assert not (folder / "manifest.json").exists()


def test_what_is_no_folder_or_cannot_be_one_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkspaceError, match="file' is a file, not a dataset folder"):
        Workspace(tmp_path / "file").recipe_tables()
    assert Workspace(tmp_path / "file/below").recipe_tables() is None
    assert Workspace(tmp_path / "nowhere").recipe_tables() is None
    with pytest.raises(WorkspaceError, match=r"cannot work in '.*below' \(Not a directory\)"):
        Workspace(tmp_path / "file/below").open(RECIPE)


def test_a_damaged_recipe_is_named(tmp_path):
    Workspace(tmp_path / "d").open(RECIPE).close()
    (tmp_path / "d/.cvgl/recipe.toml").write_text("name = ")
    with pytest.raises(WorkspaceError, match=r"recipe\.toml' is damaged"):
        Workspace(tmp_path / "d").open(RECIPE)
    Workspace(tmp_path / "d").open(RECIPE, overwrite=True).close()
    assert Workspace(tmp_path / "d").recipe_tables() == RECIPE


def test_only_one_at_a_time(tmp_path):
    with Workspace(tmp_path / "d").open(RECIPE), pytest.raises(WorkspaceError, match="in use by another process"):
        Workspace(tmp_path / "d").open(RECIPE)
    Workspace(tmp_path / "d").open(RECIPE).close()


def test_missing_and_damaged_tables_are_named(tmp_path):
    with Workspace(tmp_path / "d").open(RECIPE) as workspace:
        with pytest.raises(WorkspaceError, match="has no 'pairs' yet"):
            workspace.read_table("pairs")
        (tmp_path / "d/.cvgl/pairs.arrow").write_bytes(b"ARROW1\0\0garbage")
        with pytest.raises(DatasetError, match=r"pairs\.arrow' is damaged"):
            workspace.read_table("pairs")


def test_rows_come_back_after_reopening_and_the_last_of_a_key_wins(tmp_path):
    with open_store(tmp_path) as store:
        store.append(row("b", "timeout", None))
        store.append(row("a", image=b"1"))
        store.flush()
        store.append(row("b", image=b"2"))
        assert store.outcome("b") is Outcome.OK
    with open_store(tmp_path) as store:
        assert list(store.rows()) == [row("a", image=b"1"), row("b", image=b"2")]
        assert list(store.rows(["b"])) == [row("b", image=b"2")]
        assert store.table().to_pydict() == {"id": ["a", "b"], "status": ["ok", "ok"]}
        assert "a" in store
        assert len(store) == 2
        with pytest.raises(KeyError):
            list(store.rows(["c"]))


def test_what_is_done_depends_on_the_class_of_failure(tmp_path):
    statuses = ("ok", "no_imagery", "timeout", "rate_limited", "auth", "decode_error")
    with open_store(tmp_path) as store:
        for status in statuses:
            store.append(row(status, status, None))
        assert [status for status in statuses if store.is_done(status)] == ["ok", "no_imagery", "auth", "decode_error"]
        assert [status for status in statuses if store.is_done(status, retry_failed=True)] == ["ok"]
        assert not store.is_done("never asked for")
        assert store.keys(Outcome.OK, Outcome.AUTH) == ["auth", "ok"]
        assert store.outcomes() == dict.fromkeys(map(Outcome, statuses), 1)
    store = open_store(tmp_path)
    assert [status for status in statuses if not store.is_done(status)] == ["timeout", "rate_limited"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["ok", "timeout"]), st.booleans()), max_size=30))
def test_a_store_is_a_dictionary_of_last_rows(tmp_path_factory, appended):
    folder = tmp_path_factory.mktemp("store")
    expected = {}
    with open_store(folder) as store:
        for index, (key, status, flush) in enumerate(appended):
            expected[key] = row(key, status, bytes([index]))
            store.append(expected[key])
            if flush:
                store.flush()
    with open_store(folder) as store:
        assert list(store.rows()) == [expected[key] for key in sorted(expected)]
        backwards = sorted(expected, reverse=True)
        assert [
            found["id"] for batch in store.batches(backwards, max_rows=3) for found in batch.to_pylist()
        ] == backwards


def test_an_empty_store_has_an_empty_table(tmp_path):
    store = open_store(tmp_path)
    assert store.table().num_rows == 0
    assert store.table().schema.names == ["id", "status"]
    assert list(store.rows()) == []


def test_flushing_by_rows_bytes_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FLUSH_ROWS", 3)
    monkeypatch.setattr(store_module, "FLUSH_BYTES", 100)
    store = open_store(tmp_path)

    def parts():
        store._wait()  # a thread writes them
        return len(list(tmp_path.glob("*.arrow")))

    store.append(row("a"))
    store.append(row("b"))
    assert parts() == 0
    store.append(row("c"))
    assert parts() == 1
    store.append(row("d", image=b"x" * 100))
    assert parts() == 2
    monkeypatch.setattr(store_module, "FLUSH_S", 0.0)
    store.append(row("e"))
    assert parts() == 3


def test_leftovers_are_deleted_and_damaged_parts_named(tmp_path):
    with open_store(tmp_path) as store:
        store.append(row("a", image=b"x" * 1000))
    (tmp_path / "part-000001.arrow.part").write_bytes(b"half")
    assert open_store(tmp_path).keys() == ["a"]
    assert not list(tmp_path.glob("*.part"))
    part = tmp_path / "part-000000.arrow"
    part.write_bytes(part.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"part-000000\.arrow' is damaged"):
        open_store(tmp_path)


def test_rows_of_another_version_are_refused(tmp_path):
    with open_store(tmp_path) as store:
        store.append(row("a"))
    with pytest.raises(WorkspaceError, match="other columns"):
        Store(tmp_path, SCHEMA.append(pa.field("more", pa.string())), "id")


APPEND_FOREVER = """
import os, sys
from pathlib import Path
import pyarrow as pa
from cvgl_data.workspace.store import Store

schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("status", pa.string())])
store = Store(Path(sys.argv[1]), schema, "id")
for index in range(10**6):
    store.append({"id": f"{index:07d}", "image": os.urandom(2000), "status": "ok"})
    print(index, flush=True)
"""


def test_a_killed_writer_loses_at_most_what_was_not_flushed(tmp_path):
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", APPEND_FOREVER, folder], stdout=subprocess.PIPE, text=True)
        with process:
            while (seen := int(process.stdout.readline())) < 400 + 50 * attempt:
                pass
            process.kill()
            rest = process.stdout.read().split("\n")[:-1]  # the last line may be cut
            appended = int(rest[-1] if rest else seen) + 1
        store = open_store(folder)
        assert store.keys() == [f"{index:07d}" for index in range(len(store))]
        assert appended - len(store) <= 2 * store_module.FLUSH_ROWS
        assert sum(len(found["image"]) for found in store.rows()) == 2000 * len(store)


def test_many_small_files_are_put_together_and_the_last_row_still_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FLUSH_ROWS", 1)
    monkeypatch.setattr(store_module, "MOST_SMALL", 10)
    monkeypatch.setattr(store_module, "SMALL_BYTES", 10_000)
    with open_store(tmp_path) as store:
        for index in range(40):
            store.append(row(f"{index % 30:03d}", status="timeout" if index < 5 else "ok", image=bytes([index]) * 1000))
    before = {found["id"]: found for found in open_store(tmp_path).rows()}
    assert len(before) == 30
    assert (before["003"]["image"], before["003"]["status"]) == (bytes([33]) * 1000, "ok")
    num_files = len(list(tmp_path.glob("*.arrow")))
    assert num_files <= 6
    merged = open_store(tmp_path)
    assert {found["id"]: found for found in merged.rows()} == before
    merged.append(row("003", image=b"new"))
    merged.close()
    assert next(open_store(tmp_path).rows(["003"]))["image"] == b"new"


def test_a_kill_while_files_are_put_together_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FLUSH_ROWS", 1)
    with open_store(tmp_path) as store:
        for index in range(12):
            store.append(row(f"{index % 8}", image=bytes([index])))
    before = list(open_store(tmp_path).rows())
    monkeypatch.setattr(store_module, "MOST_SMALL", 5)

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            open_store(tmp_path)
    assert list(open_store(tmp_path).rows()) == before


def test_a_full_disk_is_said_and_loses_nothing_written(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.append(row("a"))
    store.flush()

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        store.append(row("b"))
        with pytest.raises(WorkspaceError, match="No space left on device"):
            store.flush()
    assert open_store(tmp_path).keys() == ["a"]


def test_memory_does_not_grow_with_the_images(tmp_path):
    """Allocations of a store that holds 60 MB of images stay below one flush."""
    pool = pa.default_memory_pool()
    with open_store(tmp_path) as store:
        for index in range(120):
            store.append(row(f"{index:03d}", image=bytes(500_000)))
    allocated = pool.bytes_allocated()
    store = open_store(tmp_path)
    store.table()
    assert pool.bytes_allocated() - allocated < 1_000_000
    largest = 0
    for batch in store.batches(max_rows=8):
        largest = max(largest, pool.bytes_allocated() - allocated)
        assert batch.num_rows == 8
    assert largest < 20_000_000
