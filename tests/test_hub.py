"""The real clients against a Hub on loopback: pushing, loading, pulling, and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import loopback_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_tables as toy
from loopback_hub import run, start

from cvgl_data.hub import staging
from cvgl_data.recipe import DatasetRecipe, PackRecipe, SplitRecipe

REPO = "someone/toy"
SMALL_SHARDS = DatasetRecipe(name="toy", split=SplitRecipe(block_m=150), pack=PackRecipe(shard_mb=0.05))


@pytest.fixture(scope="module")
def server():
    with loopback_hub.running() as hub:
        yield hub


@pytest.fixture(autouse=True)
def _fresh(server):
    server.reset()


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    return toy.references(toy.windows(8, 8)), toy.scattered(200, 8, 8)


def open_to_all(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("no_redistribute")
    return table.set_column(at, table.schema.field(at), pa.array([False] * table.num_rows))


@pytest.fixture(scope="module")
def packed(tables, tmp_path_factory) -> Path:
    """Return a dataset of many small shards."""
    out = tmp_path_factory.mktemp("packed") / "toy"
    toy.pack(out, *(open_to_all(table) for table in tables), recipe=SMALL_SHARDS)
    return out


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_complete(server, packed: Path, *, with_images: bool) -> dict[str, bytes]:
    """The repository holds exactly what its manifest says, and that is the dataset."""
    files = server.repos[REPO].files()
    manifest = json.loads(files["manifest.json"])
    assert set(files) == {*manifest["files"], "manifest.json", "README.md", ".gitattributes"}
    for name, entry in manifest["files"].items():
        assert (len(files[name]), sha256(files[name])) == (entry["bytes"], entry["sha256"])
    assert manifest["images"] is with_images
    for path in (packed / "data").rglob("*"):
        name = path.relative_to(packed).as_posix()
        if path.is_file() and (with_images or name in files):
            assert files[name] == path.read_bytes()
    return files


def test_push_with_images_then_load_dataset(server, packed, tmp_path):
    told = run(
        server,
        tmp_path / "user",
        f"""
        pushed = hub.push(Path({str(packed)!r}), {REPO!r}, with_images=True, private=True)
        from datasets import load_dataset
        rows = load_dataset({REPO!r}, "queries", split="train", streaming=True)
        first = next(iter(rows))
        default = next(iter(load_dataset({REPO!r}, split="test", streaming=True)))
        meta = load_dataset({REPO!r}, "references_meta", split="gallery")
        print(json.dumps(dict(
            id=first["query_id"], size=first["image"].size, pixel=first["image"].convert("RGB").getpixel((3, 3)),
            default=sorted(default), meta=meta.num_rows, commit=pushed.commit, url=pushed.url,
            files=[[file.path, file.bytes] for file in pushed.files])))
        """,
    )
    files = check_complete(server, packed, with_images=True)
    train = pq.read_table(packed / "data/queries", columns=["query_id", "image"])
    assert sorted((packed / "data/queries").glob("train-*"))[1:]  # several shards
    shown = (
        pq.read_table(sorted((packed / "data/queries").glob("train-*"))[0], partitioning=None).slice(0, 1).to_pylist()
    )
    assert told["id"] == shown[0]["query_id"]
    assert train.num_rows > 0
    from io import BytesIO

    from PIL import Image

    image = Image.open(BytesIO(shown[0]["image"]["bytes"])).convert("RGB")
    assert tuple(told["size"]) == image.size
    assert tuple(told["pixel"]) == image.getpixel((3, 3))
    assert "image" in told["default"]
    assert told["meta"] == 64
    assert server.repos[REPO].private
    assert told["commit"] == server.repos[REPO].branches["main"]
    assert told["files"] == sorted([name, len(content)] for name, content in files.items() if name != ".gitattributes")
    assert server.sent("POST", "/commit/")[0].status == 200


def test_push_without_images_then_load_dataset(server, packed, tmp_path):
    told = run(
        server,
        tmp_path / "user",
        f"""
        dry = hub.push(Path({str(packed)!r}), {REPO!r}, dry_run=True)
        pushed = hub.push(Path({str(packed)!r}), {REPO!r}, revision="v1")
        assert dry.files == pushed.files and not dry.commit
        pushed = hub.push(Path({str(packed)!r}), {REPO!r})
        from datasets import get_dataset_config_names, load_dataset
        first = next(iter(load_dataset({REPO!r}, "queries_meta", split="train", streaming=True)))
        default = load_dataset({REPO!r}, split="test")
        first["geometry"] = first["geometry"].hex()
        print(json.dumps(dict(first=first, columns=default.column_names, configs=get_dataset_config_names({REPO!r}))))
        """,
    )
    files = check_complete(server, packed, with_images=False)
    assert told["configs"] == ["pairs", "distance_map", "references_meta", "queries_meta"]
    assert "image" not in told["columns"]
    assert set(told["columns"]) > {"query_id", "lon", "lat", "sha256", "licence"}
    assert len(told["first"]["sha256"]) == 64
    assert not server.repos[REPO].private
    assert server.repos[REPO].files("v1") == files
    for name, content in files.items():
        assert b"\xff\xd8\xff" not in content, name  # no JPEG begins anywhere
        assert len(content) < 60_000 or name.startswith("report/figures/")
        if name.endswith(".parquet"):
            assert "image" not in pq.read_schema(pa.BufferReader(content)).names
    assert not [name for name in files if name.endswith(staging.INDEX_SUFFIX)]


def test_a_push_that_was_killed_goes_on(server, packed, tmp_path):
    code = f"""
        pushed = hub.push(Path({str(packed)!r}), {REPO!r}, with_images=True)
        print(json.dumps(pushed.num_bytes))
        """
    (tmp_path / "user").mkdir()
    stored = 6
    server.hold_after = stored
    process = start(server, tmp_path / "user", code)
    assert server.held.wait(60)
    time.sleep(0.2)  # whatever else is in flight
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(server.blobs) == stored
    assert "manifest.json" not in server.repos[REPO].files()
    server.release()
    server.calls.clear()
    there = set(server.blobs)
    total = run(server, tmp_path / "user", code)
    check_complete(server, packed, with_images=True)
    sent = {call.path.removeprefix("/lfs/"): call.num_bytes for call in server.sent("PUT", "/lfs/")}
    # What was stored is not sent again; what waited on the server when the client died may have been.
    assert not there & set(sent)
    assert sum(sent.values()) < total - sum(len(server.blobs[oid]) for oid in there) + 1
    commits = len(server.repos[REPO].messages)
    server.calls.clear()
    run(server, tmp_path / "user", code)
    assert not server.sent("PUT")
    assert len(server.repos[REPO].messages) == commits  # nothing to commit, either


@pytest.mark.parametrize("status", [409, 412, 503, 0])
def test_a_commit_that_is_refused_in_passing_is_sent_again(server, packed, tmp_path, status):
    server.faults.append(loopback_hub.Fault("POST", "/commit/", status, 2))
    run(server, tmp_path / "user", f"print(json.dumps(hub.push(Path({str(packed)!r}), {REPO!r}).commit))")
    files = check_complete(server, packed, with_images=False)
    answers = [call.status for call in server.sent("POST", "/commit/")]
    assert answers == [status, status, 200, 200]
    puts = [call.path for call in server.sent("PUT")]
    assert len(puts) == len(set(puts)) == sum(name.endswith(".parquet") for name in files)


def test_what_the_hub_refuses_for_good(server, packed, tmp_path):
    server.repos["someone/public"] = loopback_hub.Repo(private=False)
    server._add_commit(server.repos["someone/public"], "main", {}, "initial commit")
    told = run(
        server,
        tmp_path / "user",
        f"""
        import os
        folder = Path({str(packed)!r})
        told = dict(
            forbidden=tell(lambda: hub.push(folder, "forbidden/toy")),
            public=tell(lambda: hub.push(folder, "someone/public", private=True)),
            id=tell(lambda: hub.push(folder, "toy")),
            missing=tell(lambda: hub.pull("someone/nothing", Path("a"))),
            strange=tell(lambda: hub.pull("someone/public", Path("b"))),
            revision=tell(lambda: hub.pull("someone/public", Path("b"), revision="v9")),
            place=tell(lambda: hub.pull("no/such/place", Path("c"))),
        )
        os.environ["HF_TOKEN"] = "hf_wrong"
        told["wrong"] = tell(lambda: hub.push(folder, "someone/toy"))
        del os.environ["HF_TOKEN"]
        told["token"] = tell(lambda: hub.push(folder, "someone/toy"))
        print(json.dumps(told))
        """,
    )
    assert "may not write to 'forbidden/toy'" in told["forbidden"]["text"]
    assert "exists and is public" in told["public"]["text"]
    assert "like user/name" in told["id"]["text"]
    assert "there is no dataset 'someone/nothing' that you may see" in told["missing"]["text"]
    assert "holds no manifest.json" in told["strange"]["text"]
    assert "no such branch, tag or commit" in told["revision"]["text"]
    assert "neither a folder nor a dataset" in told["place"]["text"]
    assert "no longer valid" in told["wrong"]["text"]
    assert "no Hugging Face token; log in with `hf auth login`, or set HF_TOKEN" in told["token"]["text"]
    assert {answer["error"] for answer in told.values()} == {"HubError", "DatasetNotFoundError"}
    assert all("\n" not in answer["text"] and "hf_" not in answer["text"] for answer in told.values())
    assert not server.sent("PUT")
    assert not server.sent("POST", "/commit/")


def test_images_that_may_not_be_published_stay_here(server, tables, tmp_path):
    references, queries = (open_to_all(table) for table in tables)
    restricted = pa.array([row % 2 == 0 for row in range(references.num_rows)])
    at = references.schema.get_field_index("no_redistribute")
    references = references.set_column(at, references.schema.field(at), restricted)
    toy.pack(tmp_path / "toy", references, queries)
    told = run(
        server,
        tmp_path / "user",
        f"""
        folder, rows = Path({str(tmp_path / "toy")!r}), Path("rows.csv")
        print(json.dumps(tell(lambda: hub.push(folder, {REPO!r}, with_images=True, refused_to=rows))))
        """,
    )
    assert told["error"] == "RedistributionError"
    assert "32 references of 'toy': the source's terms forbid it (no_redistribute)" in told["text"]
    assert "\n" not in told["text"]
    assert server.calls == []
    assert server.repos == {}
    rows = (tmp_path / "user" / "rows.csv").read_text().splitlines()
    assert rows[0] == "id,kind,source,licence,reason"
    assert len(rows) == 33
    assert all(row.endswith(",reference,toy,CC0-1.0,no_redistribute") for row in rows[1:])


def test_a_smaller_push_leaves_no_shard_behind(server, packed, tables, tmp_path):
    toy.pack(tmp_path / "whole", *(open_to_all(table) for table in tables))
    told = run(
        server,
        tmp_path / "user",
        f"""
        hub.push(Path({str(packed)!r}), {REPO!r}, with_images=True)
        hub.push(Path({str(tmp_path / "whole")!r}), {REPO!r}, with_images=True)
        print(json.dumps(True))
        """,
    )
    assert told
    files = check_complete(server, tmp_path / "whole", with_images=True)
    assert len([name for name in files if name.startswith("data/references/gallery")]) == 1


def test_pull_with_images(server, packed, tmp_path):
    out = tmp_path / "out"
    told = run(
        server,
        tmp_path / "user",
        f"""
        hub.push(Path({str(packed)!r}), {REPO!r}, with_images=True)
        pulled = hub.pull({REPO!r}, Path({str(out)!r}))
        again = hub.pull({REPO!r}, Path({str(out)!r}))
        other = tell(lambda: hub.pull("someone/other", Path({str(out)!r})))
        from cvgl_data.hub import opening
        opened = opening.read(Path({REPO!r}), verify=True)
        tagged = opening.read({REPO + "@main"!r})
        name = opened.queries["query_id"][0].as_py()
        assert opened.images[name] == tagged.images[name]
        print(json.dumps([pulled.is_identical, again.is_identical, other["text"], opened.references.num_rows]))
        """,
    )
    assert told[:2] == [True, True]
    assert "was pulled from someone/toy, not from someone/other" in told[2]
    for path in (packed / "data").rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(packed)).read_bytes() == path.read_bytes()
    from cvgl_data.dataset import open_dataset

    dataset = open_dataset(out, verify=True)
    assert dataset.images == open_dataset(packed).images
    asked = [call.path for call in server.sent("GET", "/resolve/") if call.path.endswith(".parquet")]
    # The second pull downloaded nothing; then the cache was filled.
    assert {asked.count(path) for path in asked} == {2}
    assert told[3] == 64


def test_the_clients_own_way_of_uploading(server, packed, tmp_path):
    """Without ``HF_HUB_DISABLE_XET`` the client uploads in a pipeline of several commits."""
    pytest.importorskip("hf_xet")
    server.xet_folder = tmp_path / "xet"
    code = f"""
        hub.push(Path({str(packed)!r}), {REPO!r}, with_images=True)
        print(json.dumps(True))
        """
    server.faults.append(loopback_hub.Fault("POST", "/commit/", 503, 1))
    assert run(server, tmp_path / "user", code, HF_HUB_DISABLE_XET="0")
    files = server.repos[REPO].files()
    manifest = json.loads(files["manifest.json"])
    for name, entry in manifest["files"].items():
        if name.startswith("data/"):
            assert (files[name].oid, files[name].size) == (entry["sha256"], entry["bytes"])
    assert set(files) == {*manifest["files"], "manifest.json", "README.md", ".gitattributes"}
    assert not server.sent("PUT")
    stored = sum(path.stat().st_size for path in server.xet_folder.rglob("*") if path.is_file())
    commits = len(server.repos[REPO].messages)
    assert run(server, tmp_path / "user", code, HF_HUB_DISABLE_XET="0")
    assert len(server.repos[REPO].messages) == commits
    assert sum(path.stat().st_size for path in server.xet_folder.rglob("*") if path.is_file()) < 1.1 * stored


def test_a_card_that_was_edited_on_the_hub_does_no_harm(server, packed, tmp_path):
    out = tmp_path / "out"
    run(
        server, tmp_path / "user", f"print(json.dumps(hub.push(Path({str(packed)!r}), {REPO!r}, with_images=True).url))"
    )
    repo = server.repos[REPO]
    edited = repo.files()["README.md"] + b"My own words."
    server._add_commit(repo, "main", {**repo.files(), "README.md": edited}, "edit")
    code = f"""
        pulled = hub.pull({REPO!r}, Path({str(out)!r}))
        hub.push(Path({str(packed)!r}), {REPO!r}, with_images=True, keep_card=True)
        print(json.dumps(pulled.is_identical))
        """
    assert run(server, tmp_path / "user", code)
    assert repo.files()["README.md"] == (out / "README.md").read_bytes() == edited
    run(
        server, tmp_path / "user", f"print(json.dumps(hub.push(Path({str(packed)!r}), {REPO!r}, with_images=True).url))"
    )
    assert b"My own words." not in repo.files()["README.md"]


def test_the_users_own_card_does_not_keep_a_dataset_from_being_pushed(packed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    (copy / "README.md").write_text("My own words.")
    staging.stage(copy, tmp_path / "staged", repo_id=REPO)
    assert "# toy" in (tmp_path / "staged/README.md").read_text()
    assert (copy / "README.md").read_text() == "My own words."


def test_a_dataset_on_another_file_system(server, packed, tmp_path):
    """Where hard links end, the files that are pushed are symbolic links."""
    code = f"""
        import os
        def refuse(*paths):
            raise OSError(18, "Invalid cross-device link")
        os.link = refuse
        from cvgl_data.hub import staging
        staging.stage(Path({str(packed)!r}), Path("staged"), repo_id={REPO!r}, with_images=True)
        linked = [path.is_symlink() for path in Path("staged/data").rglob("*") if path.is_file()]
        hub.push(Path({str(packed)!r}), {REPO!r}, with_images=True)
        print(json.dumps(all(linked) and len(linked) > 10))
        """
    assert run(server, tmp_path / "user", code)
    check_complete(server, packed, with_images=True)
