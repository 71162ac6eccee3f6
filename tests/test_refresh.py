"""``--refresh``: what has not changed costs one short answer, what cannot be had leaves the good row alone."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from cvgl_cli import data
from fakes import FakePanoramas, tile_pixels
from typer.testing import CliRunner

from cvgl_data.errors import SourceStopped
from cvgl_data.fetch import fetch_queries, fetch_references, query_store, reference_store
from cvgl_data.http import Http
from cvgl_data.images import encode_jpeg
from cvgl_data.shards.verification import verify
from cvgl_data.sources import PANORAMAS
from cvgl_data.sources.xyz import XyzImagery
from cvgl_data.types import TILE_PX, Outcome, Panorama, Tile, Window
from cvgl_data.workspace import Workspace

ZOOM = 18
LEFT, TOP = 41999, 93333
WINDOWS = [Window(TILE_PX * (LEFT + i), TILE_PX * TOP, TILE_PX, ZOOM) for i in range(6)]
KEYS = [window.key for window in WINDOWS]


def picture(path, version=0):
    """Return an image that differs by path and version."""
    number = int(hashlib.sha256(f"{path}/{version}".encode()).hexdigest()[:6], 16)
    pixels = tile_pixels(Tile(LEFT, TOP, ZOOM)).astype(int) + np.array([number % 83, number % 89, number % 97])
    return encode_jpeg(np.clip(pixels, 0, 255).astype(np.uint8))


class Service:
    """Tiles and panoramas with ETags, which change as a test says.

    A request on the condition of the present ETag is answered by 304, like every server does.
    """

    def __init__(self):
        self.url = ""
        self.asked: Counter[str] = Counter()
        self.conditions: dict[str, list[str]] = {}
        self.not_modified = 0
        self.version: Counter[str] = Counter()
        self.status: dict[str, int] = {}
        self.bodies: dict[str, bytes] = {}
        self.has_etags = True

    async def answer(self, request):
        path = request.path
        self.asked[path] += 1
        condition = request.headers.get("If-None-Match")
        if condition is not None:
            self.conditions.setdefault(path, []).append(condition)
        if path in self.status:
            return web.Response(status=self.status[path])
        etag = f'"{path}-{self.version[path]}"'
        if condition == etag:
            self.not_modified += 1
            return web.Response(status=304)
        headers = {"ETag": etag, "Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"} if self.has_etags else {}
        body = self.bodies.get(path) or picture(path, self.version[path])
        return web.Response(body=body, headers=headers, content_type="image/jpeg")

    def forget(self):
        self.asked.clear()
        self.conditions.clear()
        self.not_modified = 0

    async def start(self):
        application = web.Application()
        application.router.add_get("/{tail:.*}", self.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner


@contextmanager
def serving():
    """Serve from a thread of its own: each fetch of a test has its own loop, as runs of the program have."""
    service, ready, stop = Service(), threading.Event(), asyncio.Event()
    loops = []

    async def serve():
        runner = await service.start()
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield service
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(30)


@pytest.fixture
def service():
    with serving() as served:
        yield served


@pytest.fixture
def workspace(tmp_path):
    with Workspace(tmp_path / "dataset").open({"name": "toy"}) as opened:
        yield opened


def path_of(window):
    return f"/{ZOOM}/{window.x // TILE_PX}/{window.y // TILE_PX}"


PATHS = [path_of(window) for window in WINDOWS]


def fetch(workspace, service, windows=WINDOWS, source=None, **options):
    """Fetch references; return how they ended and what was told."""
    source = source or XyzImagery(f"{service.url}/{{z}}/{{x}}/{{y}}", licence="CC0-1.0")
    told = []

    async def run():
        async with Http(rate_per_s=0, backoff_s=0.01, max_tries=2) as http:
            return await fetch_references(windows, "a", source, workspace, http, on_item=told.append, **options)

    counts = asyncio.run(run())
    assert Counter(told) == counts
    return counts


def rows(workspace):
    with reference_store(workspace) as store:
        return {row["reference_id"]: row for row in store.rows()}


def test_what_has_not_changed_keeps_its_row(workspace, service):
    assert fetch(workspace, service) == {Outcome.OK: 6}
    before = rows(workspace)
    assert before[KEYS[0]]["etag"] == f'"{PATHS[0]}-0"'
    assert before[KEYS[0]]["last_modified"] == "Mon, 02 Nov 2026 10:00:00 GMT"
    assert not service.conditions, "the first fetch has nothing to compare with"
    service.forget()
    assert fetch(workspace, service) == {Outcome.OK: 6}
    assert not service.asked, "without --refresh what is there is not asked for"
    assert fetch(workspace, service, refresh=True) == {Outcome.OK: 6}
    assert service.asked == dict.fromkeys(PATHS, 1)
    assert service.not_modified == 6
    assert service.conditions == {path: [f'"{path}-0"'] for path in PATHS}
    assert rows(workspace) == before


def test_what_has_changed_is_replaced_and_compared_anew(workspace, service):
    fetch(workspace, service)
    before = rows(workspace)
    service.version[PATHS[2]] = 1
    assert fetch(workspace, service, refresh=True) == {Outcome.OK: 6}
    after = rows(workspace)
    changed = after.pop(KEYS[2])
    assert changed["image"] == picture(PATHS[2], 1) != before.pop(KEYS[2])["image"]
    assert changed["sha256"] == hashlib.sha256(changed["image"]).hexdigest()
    assert changed["etag"] == f'"{PATHS[2]}-1"'
    assert after == before
    service.forget()
    fetch(workspace, service, refresh=True)
    assert service.not_modified == 6
    assert service.conditions[PATHS[2]] == [f'"{PATHS[2]}-1"']


FAILURES = {404: Outcome.NOT_FOUND, 401: Outcome.AUTH, 500: Outcome.SERVER_ERROR, 429: Outcome.RATE_LIMITED}


@pytest.mark.parametrize("status", FAILURES)
def test_what_cannot_be_had_leaves_the_good_row(workspace, service, status):
    fetch(workspace, service)
    before = rows(workspace)
    service.status[PATHS[1]] = status
    assert fetch(workspace, service, refresh=True) == {Outcome.OK: 5, FAILURES[status]: 1}
    assert rows(workspace) == before
    service.status.clear()
    assert fetch(workspace, service, refresh=True) == {Outcome.OK: 6}
    assert rows(workspace) == before


@pytest.mark.parametrize(
    ("body", "outcome"),
    [(b"<html>busy</html>", Outcome.WRONG_TYPE), (picture("x")[:-300], Outcome.TRUNCATED), (b"", Outcome.NO_IMAGERY)],
)
def test_what_is_no_image_leaves_the_good_row(workspace, service, body, outcome):
    fetch(workspace, service)
    before = rows(workspace)
    service.version[PATHS[1]] = 1
    service.bodies[PATHS[1]] = body or b""
    if not body:
        service.status[PATHS[1]] = 204
    assert fetch(workspace, service, refresh=True) == {Outcome.OK: 5, outcome: 1}
    assert rows(workspace) == before


def test_a_refresh_also_fetches_what_is_missing(workspace, service):
    fetch(workspace, service, WINDOWS[:2])
    service.status = {PATHS[2]: 404, PATHS[3]: 500}
    assert fetch(workspace, service, WINDOWS[:4]) == {Outcome.OK: 2, Outcome.NOT_FOUND: 1, Outcome.SERVER_ERROR: 1}
    service.status.clear()
    service.forget()
    counts = fetch(workspace, service, refresh=True)
    assert counts == {Outcome.OK: 5, Outcome.NOT_FOUND: 1}
    assert PATHS[2] not in service.asked, "what failed for good is asked for again with --retry-failed"
    assert service.not_modified == 2
    assert fetch(workspace, service, refresh=True, retry_failed=True) == {Outcome.OK: 6}


def test_what_came_without_an_etag_is_fetched_again(workspace, service):
    service.has_etags = False
    fetch(workspace, service)
    service.version[PATHS[0]] = 1
    service.forget()
    assert fetch(workspace, service, refresh=True) == {Outcome.OK: 6}
    assert service.asked == dict.fromkeys(PATHS, 1)
    assert not service.conditions
    assert rows(workspace)[KEYS[0]]["image"] == picture(PATHS[0], 1)


def test_windows_of_several_tiles_are_cut_again(workspace, service):
    across = Window(WINDOWS[0].x + 128, WINDOWS[0].y, TILE_PX, ZOOM)
    fetch(workspace, service, [across])
    before = rows(workspace)[across.key]
    service.version[PATHS[1]] = 1
    assert fetch(workspace, service, [across], refresh=True) == {Outcome.OK: 1}
    assert not service.conditions
    after = rows(workspace)[across.key]
    assert (before["etag"], after["etag"]) == ("", "")
    assert after["image"] != before["image"]


class Immutable(XyzImagery):
    is_immutable = True


def test_a_source_whose_tiles_never_change_is_asked_nothing(workspace, service):
    source = Immutable(f"{service.url}/{{z}}/{{x}}/{{y}}")
    fetch(workspace, service, WINDOWS[:4], source)
    before = rows(workspace)
    service.forget()
    assert fetch(workspace, service, WINDOWS[:4], source, refresh=True) == {Outcome.OK: 4}
    assert not service.asked
    assert rows(workspace) == before
    assert fetch(workspace, service, WINDOWS, source, refresh=True) == {Outcome.OK: 6}
    assert service.asked == dict.fromkeys(PATHS[4:], 1)


class UsedUp(XyzImagery):
    """Has a quota."""

    left = 0

    async def fetch(self, tile, http):
        if not self.left:
            raise SourceStopped("the quota is used up", source=self.name, item=str(tile), outcome=Outcome.QUOTA)
        self.left -= 1
        return await super().fetch(tile, http)


def test_a_source_that_stops_ends_the_run_and_keeps_what_was_fetched(workspace, service):
    fetch(workspace, service)
    for path in PATHS:
        service.version[path] = 1
    source = UsedUp(f"{service.url}/{{z}}/{{x}}/{{y}}")
    source.left = 3
    with pytest.raises(SourceStopped, match="the quota is used up"):
        fetch(workspace, service, source=source, refresh=True, in_flight=1)
    versions = [row["etag"][-2] for row in rows(workspace).values()]
    assert versions == list("111000"), "new rows are kept, and the others are as good as before"
    source.left = 99
    service.forget()
    assert fetch(workspace, service, source=source, refresh=True) == {Outcome.OK: 6}
    assert service.not_modified == 3
    assert [row["etag"][-2] for row in rows(workspace).values()] == list("111111")


# Panoramas


class Posts(FakePanoramas):
    """Panoramas whose images come from the service."""

    name = "posts"
    url = ""

    def __init__(self):
        places = {f"p{index}": (-122.3290 + 0.0002 * index, 47.6208) for index in range(5)}
        super().__init__(
            {key: Panorama(pano_id=key, image=b"", lon=lon, lat=lat) for key, (lon, lat) in places.items()}
        )

    async def fetch(self, pano_id, http):
        there = self.panoramas[pano_id]
        response = await http.get(f"{self.url}/{pano_id}", source=self.name, item=pano_id)
        return Panorama(
            pano_id=pano_id, image=response.body, lon=there.lon, lat=there.lat, heading_deg=0.0, **response.validators
        )


def fetch_panoramas(workspace, service, **options):
    source = Posts()
    source.url = service.url

    async def run():
        async with Http(rate_per_s=0, backoff_s=0.01, max_tries=2) as http:
            ids = sorted(source.panoramas)
            return await fetch_queries(ids, "a", source, workspace, http, align="keep", **options)

    counts = asyncio.run(run())
    with query_store(workspace) as store:
        return counts, {row["query_id"]: row for row in store.rows()}


def test_panoramas_are_refreshed_alike(workspace, service):
    counts, before = fetch_panoramas(workspace, service)
    assert counts == {Outcome.OK: 5}
    service.version["/p1"] = 1
    service.status["/p2"] = 500
    service.status["/p3"] = 404
    service.forget()
    counts, after = fetch_panoramas(workspace, service, refresh=True)
    assert counts == {Outcome.OK: 3, Outcome.SERVER_ERROR: 1, Outcome.NOT_FOUND: 1}
    assert service.not_modified == 2
    changed = after.pop("p1")
    assert changed["image"] == picture("/p1", 1)
    assert changed["etag"] == '"/p1-1"'
    del before["p1"]
    assert after == before


# The command


def test_a_build_is_refreshed_with_the_command(service, tmp_path, monkeypatch):
    monkeypatch.setitem(PANORAMAS._table, "posts", f"{__name__}:Posts")
    monkeypatch.setattr(Posts, "url", service.url)
    out = tmp_path / "out"
    words = ["--bbox", "-122.3300,47.6200,-122.3270,47.6215", f"--imagery=xyz:{service.url}/{{z}}/{{x}}/{{y}}"]
    words += ["--panoramas=posts", "--out", str(out), "--rate=0", "--set=panoramas.align=keep", "--quiet"]

    def invoke(*command):
        done = CliRunner().invoke(data.app, [*command, *words], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr

    invoke("build")
    first = (out / "manifest.json").read_bytes()
    number = service.asked.total()
    service.forget()
    invoke("build", "--refresh")
    assert service.not_modified == service.asked.total() == number
    assert (out / "manifest.json").read_bytes() == first, "nothing changed"

    changed = next(path for path in service.asked if path.startswith("/18/"))
    service.version[changed] = 1
    service.forget()
    invoke("fetch", "references", "--refresh")
    assert service.not_modified == service.asked.total() - 1 == number - 5 - 1
    invoke("build")
    gallery = pq.read_table(out / "data" / "references")
    assert hashlib.sha256(picture(changed, 1)).hexdigest() in gallery["sha256"].to_pylist()
    assert verify(out, decode=True) == []
