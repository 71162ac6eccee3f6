"""A dataset made again from what was published of it: the same bytes, or a row for each image that differs."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import loopback_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy_tables import jpeg, windows

from cvgl_data import hub, pipeline, schema, shards
from cvgl_data.dataset import open_dataset
from cvgl_data.errors import DatasetError, HubError, NoImagery, NoPanorama, RecipeError, TermsError, WorkspaceError
from cvgl_data.hub import rehydration
from cvgl_data.hub.recipes import check_sources, without_paths
from cvgl_data.images import decode, encode_jpeg
from cvgl_data.pipeline import steps
from cvgl_data.recipe import DatasetRecipe, resolve
from cvgl_data.shards import verification
from cvgl_data.sources.simulated import SimulatedImagery, SimulatedPanoramas

TABLES = {
    "name": "toy",
    "areas": [
        {"name": "west", "bbox": [-122.3300, 47.6200, -122.3270, 47.6215]},
        {"name": "east", "bbox": [-122.3200, 47.6200, -122.3170, 47.6215]},
    ],
    "imagery": {"source": "simulated"},
    "panoramas": {"source": "simulated", "options": {"width": 256}, "width": 256, "max": 8},
    "split": {"protocol": "cross-area", "test_areas": ["east"], "block_m": 100},
    "distance_map": {"k": 4},
}
SETTINGS = {"workers": 1, "rate_per_s": 0.0}


@pytest.fixture(scope="module", autouse=True)
def _rendered_once():
    """Render each tile and panorama once for all tests: the source is not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        for source in (SimulatedImagery, SimulatedPanoramas):
            patch.setattr(source, "fetch", _remembering(source.fetch))
        yield


def _remembering(fetch):
    found = {}

    async def remember(self, item, http):
        if item not in found:
            found[item] = await fetch(self, item, http)
        return found[item]

    return remember


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "toy"
    pipeline.build(resolve(DatasetRecipe, TABLES), folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def published(built, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "toy"
    hub.stage(built, folder, repo_id="someone/toy")
    return folder


def data(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted((folder / "data").rglob("*"))
        if path.is_file()
    }


def test_what_is_published_holds_no_pixels(built, published):
    manifest = json.loads((published / "manifest.json").read_text())
    original = json.loads((built / "manifest.json").read_text())
    assert manifest["images"] is False
    there = {p.relative_to(published).as_posix() for p in published.rglob("*") if p.is_file()}
    assert there == {*manifest["files"], "manifest.json", "README.md"}
    assert {name.split("/")[1] for name in there if name.startswith("data/")} == {
        "references_meta",
        "queries_meta",
        "pairs",
        "distance_map",
        *(name for name in ("failures", "quality") if (built / "data" / name).is_dir()),
    }
    left_out = manifest["images_left_out"]
    assert {name: original["files"][name] for name in left_out} == left_out
    assert {*left_out, *(name for name in there if name.startswith("data/"))} == set(data(built))
    image = next(iter(open_dataset(built).images.values()))
    for path in published.rglob("*"):
        if path.is_file():
            assert image[:200] not in path.read_bytes()
            assert b"\xff\xd8\xff" not in path.read_bytes()


def test_the_same_bytes_come_back(built, published, tmp_path):
    pulled = hub.pull(published, tmp_path / "again", **SETTINGS)
    assert pulled.is_identical
    assert (pulled.rows, pulled.other_files, pulled.notes, pulled.num_failed) == ((), (), (), 0)
    assert data(tmp_path / "again") == data(built)
    assert verification.verify(tmp_path / "again") == []
    assert pulled.counts == json.loads((built / "manifest.json").read_text())["counts"]


def test_pulling_again_fetches_nothing_and_changes_nothing(published, tmp_path, monkeypatch):
    out = tmp_path / "again"
    hub.pull(published, out, **SETTINGS)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and ".cvgl" not in path.parts}

    async def refuse(*arguments):
        raise AssertionError("nothing is left to fetch")

    monkeypatch.setattr(SimulatedImagery, "fetch", refuse)
    monkeypatch.setattr(SimulatedPanoramas, "fetch", refuse)
    assert hub.pull(published, out, **SETTINGS).is_identical
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and ".cvgl" not in p.parts} == before


@pytest.fixture
def upstream(published, monkeypatch):
    """Let the sources have another image, none, or an answer that comes to nothing, for chosen items."""
    references = pq.read_table(published / "data/references_meta")
    queries = pq.read_table(published / "data/queries_meta")
    positives = pq.read_table(published / "data/pairs")
    chosen = {
        "changed_tile": positives["reference_id"][0].as_py(),
        "changed_query": queries["query_id"][0].as_py(),
        "turned_query": queries["query_id"][1].as_py(),
        "gone_query": queries["query_id"][2].as_py(),
    }
    covered = set(positives["reference_id"].to_pylist())
    chosen["gone_tile"] = next(name for name in references["reference_id"].to_pylist() if name not in covered)
    fetch_tile, fetch_panorama = SimulatedImagery.fetch, SimulatedPanoramas.fetch

    async def tile(self, asked, http):
        key = f"{asked.z:02d}_{asked.x * 256:010d}_{asked.y * 256:010d}_256"
        if key == chosen["gone_tile"]:
            raise NoImagery("taken down", source="simulated", item=key)
        found = await fetch_tile(self, asked, http)
        return replace(found, image=_another(found.image)) if key == chosen["changed_tile"] else found

    async def panorama(self, pano_id, http):
        if pano_id == chosen["gone_query"]:
            raise NoPanorama("taken down", source="simulated", item=pano_id)
        found = await fetch_panorama(self, pano_id, http)
        if pano_id == chosen["changed_query"]:
            return replace(found, image=encode_jpeg(255 - decode(found.image)))
        return replace(found, heading_deg=found.heading_deg + 30.0) if pano_id == chosen["turned_query"] else found

    monkeypatch.setattr(SimulatedImagery, "fetch", tile)
    monkeypatch.setattr(SimulatedPanoramas, "fetch", panorama)
    return chosen


def _another(image: bytes) -> bytes:
    """Return a JPEG of the same picture with other bytes: a comment after its first marker."""
    return image[:2] + b"\xff\xfe\x00\x06more" + image[2:]


def test_what_changed_upstream_is_named_and_left_out(built, published, upstream, tmp_path):
    out = tmp_path / "pulled"
    pulled = hub.pull(published, out, **SETTINGS)
    assert {(row.kind, row.id): row.outcome for row in pulled.rows} == {
        ("reference", upstream["changed_tile"]): "changed",
        ("reference", upstream["gone_tile"]): "no_imagery",
        ("query", upstream["turned_query"]): "rerendered",
        ("query", upstream["gone_query"]): "not_found",
        ("query", upstream["changed_query"]): "changed",
    }
    before = open_dataset(built)
    for row in pulled.rows:
        assert hashlib.sha256(before.images[row.id]).hexdigest() == row.expected != row.found
        assert bool(row.found) == (row.outcome in ("changed", "rerendered"))
    assert not pulled.is_identical
    assert pulled.num_failed == 0
    after = open_dataset(out, verify=True)
    assert verification.verify(out) == []
    gone = {row.id for row in pulled.rows}
    # A reference that is gone takes along the queries that only it covers; they are listed, too.
    failures = {row["id"]: row["status"] for row in pq.read_table(out / "data/failures").to_pylist()}
    assert gone <= set(failures)
    uncovered = {name for name, status in failures.items() if status == "no_reference"}
    assert uncovered
    assert set(before.images) - set(after.images) == gone | uncovered
    for name, image in after.images.items():
        assert image == before.images[name]
    for lists in after.distance_map["neighbor_rows"].to_pylist():
        assert max(lists) < after.references.num_rows
        there = [row for row in lists if row >= 0]
        assert lists == there + [-1] * (len(lists) - len(there))


def test_changed_images_can_be_kept(built, published, upstream, tmp_path):
    out = tmp_path / "pulled"
    pulled = hub.pull(published, out, allow_changed=True, **SETTINGS)
    assert verification.verify(out) == []
    before, after = open_dataset(built), open_dataset(out)
    changed = {row.id: row.found for row in pulled.rows if row.found}
    assert len(changed) == 3
    assert set(before.images) - set(after.images) == {upstream["gone_tile"], upstream["gone_query"]}
    for name, image in after.images.items():
        assert hashlib.sha256(image).hexdigest() == changed.get(name, hashlib.sha256(before.images[name]).hexdigest())
    rows = {row["query_id"]: row for row in after.queries.to_pylist()}
    was = {row["query_id"]: row for row in before.queries.to_pylist()}
    turned, old = rows[upstream["turned_query"]], was[upstream["turned_query"]]
    assert turned["source_heading_deg"] == old["source_heading_deg"] + 30.0
    assert (turned["area"], turned["split"], turned["raw_sha256"]) == (old["area"], old["split"], old["raw_sha256"])
    failures = pq.read_table(out / "data/failures").to_pylist()
    assert {row["id"] for row in failures} == {upstream["gone_tile"], upstream["gone_query"]}


def test_what_failed_in_passing_is_asked_for_again(built, published, tmp_path, monkeypatch):
    from cvgl_data.errors import FetchError
    from cvgl_data.types import Outcome

    fetch_tile = SimulatedImagery.fetch
    down = [True]

    async def tile(self, asked, http):
        if down and asked.x % 2:
            raise FetchError("busy", source="simulated", item=str(asked), outcome=Outcome.SERVER_ERROR)
        return await fetch_tile(self, asked, http)

    monkeypatch.setattr(SimulatedImagery, "fetch", tile)
    out = tmp_path / "pulled"
    first = hub.pull(published, out, **SETTINGS)
    assert first.num_failed == len(first.rows) > 0
    assert first.outcomes == {"server_error": len(first.rows)}
    down.clear()
    assert hub.pull(published, out, **SETTINGS).is_identical
    assert data(out) == data(built)


def test_an_interrupted_pull_goes_on(built, published, tmp_path, monkeypatch):
    asked = []
    fetch_panorama = SimulatedPanoramas.fetch

    async def panorama(self, pano_id, http):
        asked.append(pano_id)
        if len(asked) == 5:
            signal.raise_signal(signal.SIGINT)
        return await fetch_panorama(self, pano_id, http)

    monkeypatch.setattr(SimulatedPanoramas, "fetch", panorama)
    monkeypatch.setitem(rehydration.fetch.fetch_queries.__kwdefaults__, "in_flight", 1)
    out = tmp_path / "pulled"
    with pytest.raises(KeyboardInterrupt):
        hub.pull(published, out, **SETTINGS)
    assert not (out / "manifest.json").exists()
    assert len(asked) == 5  # what was in flight was kept, nothing new was begun
    assert hub.pull(published, out, **SETTINGS).is_identical
    assert len(asked) == len(set(asked)) == 16
    assert data(out) == data(built)


def test_nothing_at_all_is_an_error(published, tmp_path, monkeypatch):
    async def gone(self, item, http):
        raise NoPanorama("no such world", source="simulated", item=str(item))

    monkeypatch.setattr(SimulatedImagery, "fetch", gone)
    monkeypatch.setattr(SimulatedPanoramas, "fetch", gone)
    with pytest.raises(DatasetError, match=r"not one of 34 images could be had .*no such world"):
        hub.pull(published, tmp_path / "out", **SETTINGS)


def test_terms_are_asked_for(published, tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(published, folder)
    republish(folder, "recipe.toml", lambda text: text.replace('source = "simulated"', 'source = "esri"', 1))
    with pytest.raises(TermsError, match="accept"):
        hub.pull(folder, tmp_path / "out", **SETTINGS)


def republish(folder: Path, name: str, change) -> None:
    """Change a published text and its hash."""
    path = folder / name
    path.write_text(change(path.read_text()))
    manifest = json.loads((folder / "manifest.json").read_text())
    content = path.read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_damage_is_seen_before_anything_is_fetched(published, tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(published, folder)
    path = next((folder / "data/pairs").glob("*.parquet"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="sha256 differs"):
        hub.pull(folder, tmp_path / "out", **SETTINGS)


def test_folders_that_are_not_a_pull(built, published, tmp_path):
    with pytest.raises(HubError, match="holds its images already"):
        hub.pull(built, tmp_path / "out", **SETTINGS)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("work of years")
    with pytest.raises(WorkspaceError, match="not empty"):
        hub.pull(published, mine, **SETTINGS)
    assert sorted(path.name for path in mine.iterdir()) == ["thesis.tex"]
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    with pytest.raises(WorkspaceError, match="not empty"):
        hub.pull(published, copy, **SETTINGS)
    assert data(copy) == data(built)


def test_local_files_are_asked_for(tmp_path):
    tables = {
        "name": "mine",
        "areas": [{"file": "/home/me/secret project/area.geojson"}, {"city": "seattle"}],
        "imagery": {"source": "folder", "options": {"location": "tiles/seattle", "licence": "CC0-1.0"}},
        "panoramas": {"source": "folder", "pano_ids": "ids.txt", "options": {"location": "C:\\me\\panos"}},
    }
    cleaned = without_paths(tables)
    assert cleaned["areas"] == [{"file": "local:area.geojson"}, {"city": "seattle"}]
    assert cleaned["imagery"]["options"] == {"location": "local:seattle", "licence": "CC0-1.0"}
    assert cleaned["panoramas"]["options"] == {"location": "local:panos"}
    assert "me" not in str(cleaned).replace("name", "")
    assert without_paths(cleaned) == cleaned
    with pytest.raises(RecipeError, match=r"--set imagery\.options\.location=PATH"):
        check_sources(cleaned)
    recipe = resolve(
        DatasetRecipe, cleaned, ["imagery.options.location=/mine/tiles", "panoramas.options.location=./panos"]
    )
    assert recipe.imagery.options["location"] == "/mine/tiles"


def test_keys_and_log_ins_do_not_leave(monkeypatch):
    location = "https://me:hunter2@tiles.example.org/{z}/{x}/{y}.jpg?key=abc123&style=${STYLE}"
    cleaned = without_paths({"imagery": {"source": "xyz", "options": {"location": location}}})
    shown = cleaned["imagery"]["options"]["location"]
    assert shown == "https://tiles.example.org/{z}/{x}/{y}.jpg?key=***&style=${STYLE}"


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Build a dataset of the user's own files, with smaller images and a quality table; ``files`` is beside it."""
    root = tmp_path_factory.mktemp("own")
    layout = windows(3, 3)
    _write_tiles(root / "files" / "tiles", layout)
    _write_panoramas(root / "files" / "panos", layout)
    recipe = resolve(
        DatasetRecipe,
        {
            "name": "own",
            "imagery": {"source": "folder", "options": {"location": str(root / "files/tiles"), "licence": "CC0-1.0"}},
            "panoramas": {"source": "folder", "options": {"location": str(root / "files/panos")}},
            "split": {"protocol": "none"},
            "distance_map": {"k": 3},
            "pack": {"panorama_size": "64x32", "reference_size": 64, "shard_mb": 0.05},
        },
    )
    ids = [("reference", window.key) for window in layout] + [("query", f"{number}.jpg") for number in range(4)]
    flags = [{"id": name, "kind": kind, "area": "own", "keep": True, "reason": ""} for kind, name in ids]
    quality = pa.Table.from_pylist(flags, schema.QUALITY).append_column("mine", pa.array(range(len(flags))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.shards, "pack", partial(shards.pack, quality=quality))
        pipeline.build(recipe, root / "built", workers=1)
    assert {path.name for path in (root / "built/data").iterdir()} >= {"quality", "queries_64x32", "references_64"}
    return root / "built"


def test_a_folder_source_is_pulled_from_ones_own_copy(own, tmp_path):
    hub.stage(own, tmp_path / "published", repo_id="someone/own")
    there = {path.relative_to(tmp_path / "published" / "data").parts[0] for path in tmp_path.rglob("*.parquet")}
    assert there >= {"quality", "references_meta", "queries_meta", "pairs", "distance_map"}
    assert not there & {"references", "queries", "references_64", "queries_64x32"}
    for path in (tmp_path / "published").rglob("*"):
        if path.is_file():
            assert str(own.parent).encode() not in path.read_bytes()
    with pytest.raises(RecipeError, match="author's machine"):
        hub.pull(tmp_path / "published", tmp_path / "out", **SETTINGS)
    pulled = hub.pull(tmp_path / "published", tmp_path / "out", overrides=own_copy(own, tmp_path), **SETTINGS)
    assert pulled.is_identical
    assert data(tmp_path / "out") == data(own)


def own_copy(own: Path, tmp_path: Path) -> list[str]:
    """Copy the author's files to somebody else's folder; returns where they are."""
    shutil.copytree(own.parent / "files", tmp_path / "copy")
    return [f"imagery.options.location={tmp_path}/copy/tiles", f"panoramas.options.location={tmp_path}/copy/panos"]


def test_push_then_pull_through_the_hub(own, tmp_path):
    overrides = own_copy(own, tmp_path)
    with loopback_hub.running() as server:
        told = loopback_hub.run(
            server,
            tmp_path / "user",
            f"""
            hub.push(Path({str(own)!r}), "someone/own", private=True)
            pulled = hub.pull("someone/own", Path({str(tmp_path / "out")!r}), overrides={overrides!r}, workers=1)
            print(json.dumps([pulled.is_identical, pulled.rows]))
            """,
        )
    assert told == [True, []]
    assert data(tmp_path / "out") == data(own)


def _write_tiles(folder: Path, layout) -> None:
    for number, window in enumerate(layout):
        path = folder / str(window.zoom) / str(window.x // 256) / f"{window.y // 256}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, 256, 256))


def _write_panoramas(folder: Path, layout) -> None:
    folder.mkdir(parents=True)
    for number, window in enumerate(layout[:4]):
        exif = Image.Exif()
        gps = exif.get_ifd(0x8825)
        lon, lat = window.center
        for at, (value, names) in enumerate(((lat, "NS"), (lon, "EW"))):
            degrees = abs(value)
            gps[1 + 2 * at] = names[value < 0]
            gps[2 + 2 * at] = (int(degrees), int(degrees % 1 * 60), degrees * 60 % 1 * 60)
        stream = io.BytesIO()
        Image.open(io.BytesIO(jpeg(60 + number, 128, 64))).save(stream, "JPEG", exif=exif)
        (folder / f"{number}.jpg").write_bytes(stream.getvalue())
