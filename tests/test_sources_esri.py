"""The Esri sources against a server of their contracts on loopback."""

import asyncio
import hashlib
import io
import logging
from collections import Counter
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiohttp import web
from fakes import tile_pixels
from PIL import Image

from cvgl_data.errors import FetchError, NoImagery, RecipeError, SourceStopped
from cvgl_data.http import Http
from cvgl_data.images import decode, encode_jpeg
from cvgl_data.sources.esri import EsriLive, EsriWayback, refusals
from cvgl_data.sources.esri import basemap as basemap_module
from cvgl_data.sources.esri.basemap import enlarged
from cvgl_data.types import Fetched, ImagerySource, Outcome, Tile

_SOURCES: tuple[type[ImagerySource], ...] = (EsriLive, EsriWayback)

TILE = Tile(41992, 93336, 18)  # the first of a block of 8x8, Seattle
TOKEN = "S3CR3T-t0ken/+="
JPEG = encode_jpeg(tile_pixels(Tile(0, 0, 4)))
JSON_TYPE = "application/json"


class Server:
    """A map service, a Wayback and its index; what they answer is changed by the tests."""

    def __init__(self):
        self.asked = Counter()  # path -> requests
        self.requests = []
        self.missing = set()
        self.tiles = {}  # Tile -> list of Responses as (status, content type, body, headers), the last one stays
        self.tilemap = self.block
        self.features = []
        self.query = self.footprints
        self.index = None
        self.copyright = (200, {"copyrightText": "Esri and many others"})
        self.url = ""

    def count(self, part):
        return sum(number for path, number in self.asked.items() if part in path)

    async def answer(self, request):
        await asyncio.sleep(0)
        self.asked[request.path] += 1
        self.requests.append(request)
        parts = request.path.strip("/").split("/")
        if parts[0] == "index.json":
            status, value = 200, self.index() if callable(self.index) else self.index
        elif parts[-1] == "query":
            status, value = self.query(request, parts[-2])
        elif "tilemap" in parts:
            numbers = [int(part) for part in parts[parts.index("tilemap") + 1 :]]
            if parts[0] == "wayback":
                release, *numbers = numbers
            else:
                release = None
            z, y, x, *size = numbers
            status, value = self.tilemap(Tile(x, y, z), tuple(size), release)
        elif "tile" in parts:
            return self.tile(Tile(int(parts[-1]), int(parts[-2]), int(parts[-3])))
        elif request.query.get("f") == "pjson":
            status, value = self.copyright
        else:
            return web.Response(status=400)
        if isinstance(value, bytes):
            return web.Response(status=status, body=value, content_type="text/html")
        return web.json_response(value, status=status)

    def tile(self, tile):
        if tile in self.tiles:
            answers = self.tiles[tile]
            status, kind, body, headers = answers.pop(0) if len(answers) > 1 else answers[0]
            return web.Response(status=status, body=body, headers={"Content-Type": kind, **headers})
        if tile in self.missing:
            return web.Response(status=404, text="missing")
        return web.Response(body=JPEG, content_type="image/jpeg", headers={"ETag": '"abc"', "X-Robots-Tag": "noai"})

    def block(self, first, size, release):
        width, height = size or (1, 1)
        tiles = [Tile(first.x + i, first.y + j, first.z) for j in range(height) for i in range(width)]
        data = [int(tile not in self.missing) for tile in tiles]
        if not any(data):
            return 422, {"error": {"code": 422, "message": "Tiles not present", "details": []}}
        at = {"left": first.x, "top": first.y, "width": width, "height": height}
        return 200, {"adjusted": False, "location": at, "data": data}

    def footprints(self, request, layer):
        return 200, {"features": self.features}


@asynccontextmanager
async def serving(monkeypatch, server=None):
    server = server or Server()
    application = web.Application()
    application.router.add_get("/{tail:.*}", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    server.index = index(server.url)
    monkeypatch.setenv("CVGL_ESRI_URL", f"{server.url}/live/MapServer/")
    monkeypatch.setenv("CVGL_WAYBACK_URL", f"{server.url}/wayback")
    monkeypatch.setenv("CVGL_WAYBACK_CONFIG_URL", f"{server.url}/index.json")
    try:
        yield server
    finally:
        await runner.cleanup()


def index(url, **more):
    def entry(number, date, name):
        return {
            "itemTitle": f"World Imagery (Wayback {date})",
            "itemURL": f"{url}/wayback/WMTS/1.0.0/default028mm/MapServer/tile/{number}/{{level}}/{{row}}/{{col}}",
            "metadataLayerUrl": f"{url}/metadata_{name}/MapServer",
        }

    return {
        "10842": entry(10842, "2026-05-28", "r05"),
        "49059": entry(49059, "2026-04-30", "r04"),
        "10": entry(10, "2014-02-20", "r01"),
        "x": entry(11, "2027-01-01", "r99"),
        **more,
    }


def square(tile, date_ms, *, gsd_m=0.3, provider="Maxar", levels=(None, None), field="SRC_RES"):
    """A feature that covers one tile, clockwise as Esri has it."""
    west, south, east, north = tile.bounds
    ring = [[west, south], [west, north], [east, north], [east, south], [west, south]]
    attributes = {"SRC_DATE2": date_ms, field: gsd_m, "NICE_DESC": provider}
    attributes |= {"MinMapLevel": levels[0], "MaxMapLevel": levels[1]}
    return {"attributes": attributes, "geometry": {"rings": [ring]}}


def run(monkeypatch, work, **http_options):
    """Serve, and return what ``work(server, http)`` returns."""

    async def main():
        async with serving(monkeypatch) as server, Http(rate_per_s=0, backoff_s=0.001, **http_options) as http:
            return await work(server, http)

    return asyncio.run(main())


async def fetch(source, tiles, http):
    source.recheck_wait_s = 0.0
    try:
        return await asyncio.gather(*(source.fetch(tile, http) for tile in tiles), return_exceptions=True)
    finally:
        source.close()


def fetch_one(monkeypatch, answers, source=EsriLive, **options):
    """Return what one tile ends as when the server has these answers for it, and how often it was asked."""

    async def work(server, http):
        server.tiles[TILE] = [(*answer, {})[:4] for answer in answers]
        (result,) = await fetch(source(**{"captures": False, "tilemap": "off", **options}), [TILE], http)
        return result, server.count("/tile/")

    return run(monkeypatch, work)


def around(tile, side=8):
    return [Tile(tile.x + i, tile.y + j, tile.z) for j in range(side) for i in range(side)]


def test_sixty_four_tiles_take_one_tilemap_one_query_and_one_credit(monkeypatch):
    async def work(server, http):
        server.features = [square(Tile(TILE.x >> 6, TILE.y >> 6, 12), 1714608000000)]
        server.missing = {TILE, Tile(TILE.x + 3, TILE.y + 5, 18)}
        source = EsriLive()
        results = await fetch(source, around(TILE), http)
        return server, source, results

    server, source, results = run(monkeypatch, work)
    lost = [tile for tile, result in zip(around(TILE), results, strict=True) if isinstance(result, NoImagery)]
    assert set(lost) == server.missing
    good = next(result for result in results if isinstance(result, Fetched))
    assert good == Fetched(
        image=JPEG, captured="2024-05-02", provider="Maxar", source_gsd_m=0.3, etag='"abc"', robots="noai"
    )
    assert (server.count("tilemap"), server.count("query"), server.count("/tile/")) == (1, 1, 62)
    assert server.asked["/live/MapServer"] == 1
    assert source.attribution == "Esri and many others"
    assert server.asked[f"/live/MapServer/tilemap/18/{TILE.y}/{TILE.x}/8/8"] == 1
    assert all(r.query.get("blankTile") == "false" for r in server.requests if "/tile/" in r.path)
    query = next(request.query for request in server.requests if request.path.endswith("/4/query"))
    assert (query["geometryType"], query["inSR"], query["outSR"]) == ("esriGeometryEnvelope", "4326", "4326")
    west, south, east, north = map(float, query["geometry"].split(","))
    assert west < TILE.center.lon < east
    assert south < TILE.center.lat < north


def test_an_empty_block_costs_one_request(monkeypatch):
    async def work(server, http):
        server.missing = set(around(TILE))
        return server, await fetch(EsriLive(), around(TILE), http)

    server, results = run(monkeypatch, work)
    assert all(type(result) is NoImagery for result in results)
    assert (server.count("tilemap"), server.count("/tile/"), server.count("query")) == (1, 0, 0)


def clipped(server):
    def answer(first, size, release):
        at = {"left": first.x, "top": first.y, "width": 8, "height": 2}
        return 200, {"adjusted": True, "location": at, "data": [0] * 8 + [1] * 8}

    return answer, 56


def shifted(server):
    def answer(first, size, release):
        at = {"left": first.x + 100, "top": first.y, "width": 8, "height": 8}
        return 200, {"location": at, "data": [0] * 64}

    return answer, 64


def older(server):
    def answer(first, size, release):
        at = {"left": first.x, "top": first.y, "width": 8, "height": 8}
        return 200, {"valid": True, "location": at, "data": [0] * 32 + [1] * 32}

    return answer, 32


def invalid(server):
    def answer(first, size, release):
        at = {"left": first.x, "top": first.y, "width": 8, "height": 8}
        return 200, {"valid": False, "location": at, "data": [0] * 64}

    return answer, 64


def page(server):
    return lambda first, size, release: (200, b"<html>busy</html>"), 64


def gone(server):
    return lambda first, size, release: (404, b"<html>what tilemap?</html>"), 64


def refused(server):
    return lambda first, size, release: (200, {"error": {"code": 499, "message": "Token Required"}}), 64


def empty_in_200(server):
    return lambda first, size, release: (200, {"error": {"code": 422, "message": "Tiles not present"}}), 0


def too_short(server):
    def answer(first, size, release):
        at = {"left": first.x, "top": first.y, "width": 8, "height": 8}
        return 200, {"location": at, "data": [0] * 63}

    return answer, 64


def single(server):
    def answer(first, size, release):
        at = {"left": first.x, "top": first.y, "width": 1, "height": 1}
        return 200, {"location": at, "data": [0]}

    return answer, 64


@pytest.mark.parametrize(
    "case", [clipped, shifted, older, invalid, page, gone, refused, empty_in_200, too_short, single]
)
def test_what_a_tilemap_does_not_tell_is_fetched(monkeypatch, case):
    async def work(server, http):
        server.tilemap, expected = case(server)
        results = await fetch(EsriLive(captures=False), around(TILE), http)
        return expected, sum(isinstance(result, Fetched) for result in results), server.count("/tile/")

    expected, fetched, asked = run(monkeypatch, work)
    assert fetched == asked == expected


def test_a_tilemap_that_keeps_failing_is_left_alone(monkeypatch, caplog):
    async def work(server, http):
        server.tilemap = gone(server)[0]
        source = EsriLive(captures=False)
        source.recheck_wait_s = 0
        for column in range(10):
            await source.fetch(Tile(TILE.x + 8 * column, TILE.y, 18), http)
        source.close()
        return server.count("tilemap")

    assert run(monkeypatch, work) == 3
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_blocks_at_low_zooms_end_with_the_world(monkeypatch):
    async def work(server, http):
        results = await fetch(EsriLive(captures=False), [Tile(1, 0, 1), Tile(0, 0, 0)], http)
        return server.asked, results

    asked, results = run(monkeypatch, work)
    assert all(isinstance(result, Fetched) for result in results)
    assert {path for path in asked if "tilemap" in path} == {
        "/live/MapServer/tilemap/1/0/0/2/2",
        "/live/MapServer/tilemap/0/0/0/1/1",
    }


PLACEHOLDER = b"\xff\xd8" + bytes(2517) + b"\xff\xd9"


@pytest.fixture
def placeholder(monkeypatch):
    """A body of the placeholder's length whose digest is taken for the placeholder's."""
    assert len(PLACEHOLDER) == refusals.PLACEHOLDER_BYTES
    monkeypatch.setattr(refusals, "PLACEHOLDER_MD5", hashlib.md5(PLACEHOLDER).hexdigest())
    return PLACEHOLDER


def test_the_placeholder_is_the_one_that_was_probed():
    assert (refusals.PLACEHOLDER_BYTES, refusals.PLACEHOLDER_MD5) == (2521, "f27d9de7f80c13501f470595e327aa6d")
    assert not refusals.is_placeholder(PLACEHOLDER)  # the length alone is not enough


def test_a_placeholder_is_asked_for_twice_and_never_kept(monkeypatch, placeholder):
    blank = (200, "image/jpeg", placeholder)
    result, asked = fetch_one(monkeypatch, [blank, blank])
    assert isinstance(result, NoImagery)
    assert (result.outcome, result.item, asked) == (Outcome.NO_IMAGERY, str(TILE), 2)
    result, asked = fetch_one(monkeypatch, [blank, (200, "image/jpeg", JPEG)])
    assert (result.image, asked) == (JPEG, 2)


def test_the_header_gives_an_unknown_placeholder_away(monkeypatch):
    result, asked = fetch_one(monkeypatch, [(200, "image/png", JPEG, {"blank-tile": "True"})])
    assert isinstance(result, NoImagery)
    assert asked == 2


def test_the_wait_before_a_placeholder_is_asked_for_again(monkeypatch, placeholder):
    waits = []

    async def work(server, http):
        server.tiles[TILE] = [(200, "image/jpeg", placeholder, {})]
        source = EsriLive(captures=False, tilemap="off")
        original = asyncio.sleep
        monkeypatch.setattr(basemap_module.asyncio, "sleep", lambda s: waits.append(s) or original(0))
        with pytest.raises(NoImagery):
            await source.fetch(TILE, http)
        source.close()
        return [request.headers.get("Cache-Control") for request in server.requests if "/tile/" in request.path]

    assert run(monkeypatch, work) == [None, "no-cache"]  # or a cache in between repeats itself
    assert EsriLive.recheck_wait_s in waits


def error_body(code, message="no"):
    return b'{"error":{"code":%d,"message":"%s","details":[]}}' % (code, message.encode())


@pytest.mark.parametrize(
    ("answer", "kind", "outcome", "requests"),
    [
        ((404, "text/html", b"<html>"), NoImagery, Outcome.NO_IMAGERY, 1),
        ((204, "image/jpeg", b""), NoImagery, Outcome.NO_IMAGERY, 1),
        ((200, JSON_TYPE, error_body(498)), SourceStopped, Outcome.AUTH, 1),
        ((200, "image/jpeg", error_body(499)), SourceStopped, Outcome.AUTH, 1),
        ((200, "text/plain", b" \n" + error_body(403)), SourceStopped, Outcome.AUTH, 1),
        ((498, JSON_TYPE, error_body(498)), SourceStopped, Outcome.AUTH, 1),
        ((401, "text/html", b""), SourceStopped, Outcome.AUTH, 1),
        ((403, "text/html", b"<html>"), FetchError, Outcome.AUTH, 1),
        ((200, JSON_TYPE, error_body(503)), FetchError, Outcome.SERVER_ERROR, 2),
        ((200, JSON_TYPE, error_body(500)), FetchError, Outcome.SERVER_ERROR, 2),
        ((200, JSON_TYPE, error_body(429)), FetchError, Outcome.RATE_LIMITED, 2),
        ((200, JSON_TYPE, error_body(404)), NoImagery, Outcome.NO_IMAGERY, 1),
        ((200, JSON_TYPE, error_body(400)), FetchError, Outcome.WRONG_TYPE, 1),
        ((200, JSON_TYPE, b'{"error": "down"}'), FetchError, Outcome.WRONG_TYPE, 1),
        ((200, JSON_TYPE, b'{"currentVersion": 11}'), FetchError, Outcome.WRONG_TYPE, 1),
        ((200, JSON_TYPE, b'{"error": {"code": '), FetchError, Outcome.WRONG_TYPE, 1),
        ((200, "text/html; charset=utf-8", b"<html>maintenance</html>"), FetchError, Outcome.WRONG_TYPE, 1),
        ((410, "text/html", b""), FetchError, Outcome.NOT_FOUND, 1),
    ],
)
@pytest.mark.parametrize("source", [EsriLive, EsriWayback])
def test_what_is_no_image_has_its_outcome(monkeypatch, source, answer, kind, outcome, requests):
    result, asked = fetch_one(monkeypatch, [answer], source)
    assert type(result) is kind
    assert (result.outcome, result.source, result.item, asked) == (outcome, source.name, str(TILE), requests)


def test_a_passing_error_in_200_passes(monkeypatch):
    result, _ = fetch_one(monkeypatch, [(200, JSON_TYPE, error_body(503)), (200, "image/jpeg", JPEG)])
    assert result.image == JPEG
    result, _ = fetch_one(monkeypatch, [(200, "application/octet-stream", JPEG)])
    assert result.image == JPEG


def test_the_token_goes_to_its_own_service_only_and_into_no_message(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)

    async def work(server, http):
        refusal = {"error": {"code": 498, "message": f"Invalid token {TOKEN}"}}
        server.tiles[TILE] = [(200, JSON_TYPE, error_body(498, f"bad {TOKEN}"), {})]
        server.tiles[Tile(1, 1, 4)] = [(403, "text/html", b"", {})]
        server.query = lambda request, layer: (200, refusal)
        server.copyright = (200, refusal)
        monkeypatch.setenv("CVGL_ESRI_TOKEN", TOKEN)
        source = EsriLive()
        assert TOKEN not in repr(vars(source))
        results = await fetch(source, [TILE, Tile(0, 0, 4), Tile(1, 1, 4)], http)
        live = list(server.requests)
        wayback = await fetch(EsriWayback(), [Tile(0, 0, 4)], http)
        return live, server.requests[len(live) :], results, wayback

    live, later, results, wayback = run(monkeypatch, work)
    assert [type(result) for result in results] == [SourceStopped, Fetched, SourceStopped]
    assert isinstance(wayback[0], Fetched)
    assert {request.query.get("token") for request in live} == {TOKEN}
    assert {request.query.get("token") for request in later} == {None}
    said = " ".join([*map(str, results), *(record.getMessage() for record in caplog.records)])
    assert "no capture dates around" in said
    assert TOKEN not in said


def test_the_token_chooses_the_host(monkeypatch):
    assert EsriLive().url(TILE) == (
        "https://services.arcgisonline.com/arcgis/rest/services/World_Imagery/MapServer/tile/18/93336/41992"
    )
    monkeypatch.setenv("CVGL_ESRI_TOKEN", TOKEN)
    assert EsriLive().url(TILE).startswith("https://ibasemaps-api.arcgis.com/arcgis/rest/services/World_Imagery/")


def test_captures_fall_back_silently_for_the_tile_and_say_so_once(monkeypatch, caplog):
    async def work(server, http):
        server.query = lambda request, layer: (200, b"<html>busy</html>")
        server.copyright = (404, {})
        source = EsriLive()
        results = await fetch(source, around(TILE), http)
        return results, server.count("query"), source.attribution

    results, queries, attribution = run(monkeypatch, work)
    assert {(result.captured, result.provider, result.source_gsd_m) for result in results} == {("", "", None)}
    assert queries == 2  # a page instead of JSON is asked for twice
    assert attribution == basemap_module.ATTRIBUTION
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if "capture dates" in text]) == 1
    assert len(warnings) == 2


def test_captures_that_keep_failing_are_left_alone(monkeypatch):
    async def work(server, http):
        server.query = lambda request, layer: (400, {})
        source = EsriLive(tilemap="off")
        for column in range(6):
            await source.fetch(Tile(TILE.x + 64 * column, TILE.y, 18), http)
        source.close()
        return server.count("query")

    assert run(monkeypatch, work) == 3


def test_an_outage_of_the_captures_fails_the_tiles_and_then_the_source(monkeypatch):
    async def work(server, http):
        usual, server.query = server.query, lambda request, layer: (503, {})
        source = EsriLive(tilemap="off")
        failed = []
        for column in range(3):  # three blocks
            with pytest.raises(FetchError) as caught:
                await source.fetch(Tile(TILE.x + 64 * column, TILE.y, 18), http)
            failed.append(caught.value)
        source.close()
        server.query = usual
        return failed, await fetch(EsriLive(tilemap="off"), [TILE], http)

    failed, healed = run(monkeypatch, work)
    assert {error.outcome for error in failed} == {Outcome.SERVER_ERROR}
    assert [type(error) for error in failed] == [FetchError, FetchError, SourceStopped]
    assert "captures=false" in str(failed[-1])
    assert isinstance(healed[0], Fetched)


def test_full_answers_are_split_until_all_footprints_are_known(monkeypatch):
    """A footprint per tile in one block of zoom 12: more than an answer can hold, until its sixteenth does."""
    corner = Tile(TILE.x >> 6 << 6, TILE.y >> 6 << 6, 18)
    dates = {}
    for j in range(16):
        for i in range(16):
            dates[Tile(corner.x + 4 * i, corner.y + 4 * j, 18)] = 86_400_000 * (16 * j + i)

    async def work(server, http):
        features = [(tile.center, square(tile, date)) for tile, date in dates.items()]

        def query(request, layer):
            west, south, east, north = map(float, request.query["geometry"].split(","))
            inside = [feature for (lon, lat), feature in features if west <= lon <= east and south <= lat <= north]
            answer = {"features": inside[:100]}
            return 200, answer | ({"exceededTransferLimit": True} if len(inside) > 100 else {})

        server.query = query
        tiles = list(dates)
        return await fetch(EsriLive(tilemap="off"), tiles, http), server.count("query")

    results, queries = run(monkeypatch, work)
    days = [str(np.datetime64(0, "D") + day) for day in range(256)]
    assert [result.captured for result in results] == days
    assert queries == 5


def test_splitting_ends(monkeypatch, caplog):
    async def work(server, http):
        server.query = lambda request, layer: (200, {"features": [], "exceededTransferLimit": True})
        (result,) = await fetch(EsriLive(tilemap="off"), [TILE], http)
        return result, server.count("query")

    result, queries = run(monkeypatch, work)
    assert (result.captured, queries) == ("", 1 + 4 + 16 + 64 + 256)
    assert "too many captures" in caplog.text


def test_upsampling_is_off_unless_asked_for(monkeypatch):
    async def work(server, http):
        server.missing = {TILE}
        (result,) = await fetch(EsriLive(captures=False), [TILE], http)
        return result

    assert isinstance(run(monkeypatch, work), NoImagery)


@pytest.mark.parametrize("source", [EsriLive, EsriWayback])
def test_a_missing_tile_is_cut_out_of_its_nearest_ancestor(monkeypatch, source):
    siblings = [Tile(TILE.x + i, TILE.y + j, 18) for j in range(4) for i in range(4)]

    async def work(server, http):
        server.missing = {*siblings, *(Tile(t.x >> 1, t.y >> 1, 17) for t in siblings)}
        grandparent = Tile(TILE.x >> 2, TILE.y >> 2, 16)
        image = encode_jpeg(tile_pixels(grandparent))
        server.tiles[grandparent] = [(200, "image/jpeg", image, {"ETag": '"other"'})]
        field = "SRC_RES" if source is EsriLive else "SAMP_RES"
        server.features = [square(grandparent, 0, gsd_m=1.2, levels=(10, 16), field=field)]
        return image, await fetch(source(upsample=True), siblings, http), server

    image, results, server = run(monkeypatch, work)
    assert {(r.upsampled_from_zoom, r.captured, r.source_gsd_m, r.etag) for r in results} == {
        (16, "1970-01-01", 1.2, "")
    }
    assert server.count(f"/tile/{'' if source is EsriLive else '10842/'}16/") == 1
    if source is EsriWayback:
        assert [path for path in server.asked if path.endswith("query")] == ["/metadata_r05/MapServer/7/query"]
    # Side by side they are the ancestor, enlarged as a whole.
    rows = [np.hstack([decode(r.image) for r in results[4 * j : 4 * j + 4]]) for j in range(4)]
    whole = Image.open(io.BytesIO(image)).convert("RGB").resize((1024, 1024), Image.Resampling.BICUBIC)
    error = np.vstack(rows).astype(float) - np.asarray(whole)
    assert np.sqrt((error**2).mean()) < 2.0
    assert np.abs(error).max() < 24


def test_enlarging_keeps_the_place():
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[64:96, 128:160] = 255  # the child 4 along, 2 down, of 8x8
    image = encode_jpeg(pixels)
    assert decode(enlarged(image, Tile(8 * 5 + 4, 8 * 7 + 2, 18), 3)).mean() > 240
    assert decode(enlarged(image, Tile(8 * 5 + 2, 8 * 7 + 4, 18), 3)).mean() < 15


def test_no_stand_in_when_all_ancestors_are_missing_and_none_when_one_only_failed(monkeypatch):
    async def work(server, http):
        up = [Tile(TILE.x >> k, TILE.y >> k, 18 - k) for k in range(5)]
        server.missing = set(up[:4])
        (nothing,) = await fetch(EsriLive(captures=False, upsample=True), [TILE], http)
        server.missing = {TILE}
        server.tiles[up[1]] = [(500, "text/html", b"", {})]
        (failed,) = await fetch(EsriLive(captures=False, upsample=True), [TILE], http)
        server.tiles[up[1]] = [(200, "image/jpeg", JPEG[:-400], {})]
        (short,) = await fetch(EsriLive(captures=False, upsample=True), [TILE], http)
        (top,) = await fetch(EsriLive(captures=False, upsample=True), [Tile(0, 0, 0)], http)
        return nothing, failed, short, top

    nothing, failed, short, top = run(monkeypatch, work, max_tries=2)
    assert isinstance(nothing, NoImagery)
    assert failed.outcome is Outcome.SERVER_ERROR
    assert short.outcome is Outcome.TRUNCATED
    assert isinstance(top, Fetched)


def test_options_are_checked():
    with pytest.raises(RecipeError, match="block or off, not 'tile'"):
        EsriLive(tilemap="tile")
    with pytest.raises(RecipeError, match="block or tile or off"):
        EsriWayback(tilemap="maybe")
    for release in ("yesterday", "2024-02-30", "20240201", "2024-W05-4"):
        with pytest.raises(RecipeError, match="must be a date"):
            EsriWayback(release=release)


def test_terms_and_cost_say_what_one_agrees_to(monkeypatch):
    for source in (EsriLive(), EsriWayback()):
        assert source.terms.must_accept
        assert not source.terms.redistributable
        assert (source.max_zoom, source.tile_px) == (23, 256)
    live, wayback = EsriLive().cost(), EsriWayback().cost()
    assert live.requests == {"services.arcgisonline.com": pytest.approx(1 + 1 / 64 + 1 / 4096)}
    assert set(wayback.requests) == {"wayback.maptiles.arcgis.com", "metadata.maptiles.arcgis.com"}
    assert EsriWayback(tilemap="tile", captures=False).cost().requests == {"wayback.maptiles.arcgis.com": 2.0}
    assert EsriLive(tilemap="off", captures=False).cost().requests == {"services.arcgisonline.com": 1.0}
    assert EsriWayback.is_immutable
    assert not EsriLive.is_immutable
