import asyncio
import json
import math
import time
from collections import Counter
from contextlib import asynccontextmanager
from functools import lru_cache
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import shapely
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import FetchError, NoPanorama, RecipeError, SourceStopped
from cvgl_data.geo import distance_m
from cvgl_data.http import Http
from cvgl_data.http.responses import Response
from cvgl_data.images import decode, encode_jpeg, image_size
from cvgl_data.sources import google, google_tiles
from cvgl_data.sources.google_static import GoogleStaticPanoramas, shows_nothing
from cvgl_data.sources.google_tiles import GoogleTilesPanoramas, Level, level_for
from cvgl_data.types import Outcome, PanoramaRef, PanoramaSource

_SOURCES: list[type[PanoramaSource]] = [GoogleStaticPanoramas, GoogleTilesPanoramas]
KEY = "AIzaTestKeyThatMustNotBeSeen"
SECRET = "vNIXE0xscrmjlyV-12Nj_BvUPaw="
AREA = AreaOfInterest.from_bbox(10.0, 45.0, 10.001, 45.0008, "block")


@lru_cache
def picture(width, height, seed=0):
    rows, columns = np.mgrid[0:height, 0:width]
    return encode_jpeg(np.stack([rows % 251, columns % 241, (rows + columns + 40 * seed) % 256], -1).astype(np.uint8))


def even(width, height, color=(228, 227, 223)):
    return encode_jpeg(np.full((height, width, 3), color, np.uint8))


class Google:
    """Both services, as documented; ``instead`` maps a path to an answer that is given in its place, then forgotten."""

    def __init__(self):
        self.asked = []
        self.paths = Counter()
        self.instead = {}
        self.always = {}
        self.panoramas = {"pano-a": (10.0002, 45.0003), "pano-b": (10.0007, 45.0005), "outside": (10.00101, 45.0005)}
        self.full = (16384, 8192)
        self.valid = set()
        self.lifetime_s = 3600.0
        self.delay_s = 0.0
        self.cancelled = 0
        self.finished = 0

    async def answer(self, request):
        self.asked.append(request)
        self.paths[request.path] += 1
        if request.query.get("key") != KEY:
            return web.json_response({"error": {"code": 403, "message": "no key"}}, status=403)
        given = self.instead.pop(request.path, None) or self.always.get(request.path)
        if given is not None:
            return given(request) if callable(given) else given
        if request.path.startswith("/static"):
            return self.static(request)
        if request.path == "/v1/createSession":
            body = await request.json()
            assert body["mapType"] == "streetview"
            token = f"session-token-number-{len(self.valid) + 1}/+"
            self.valid.add(token)
            await asyncio.sleep(self.delay_s)
            expiry = str(int(time.time() + self.lifetime_s))
            return web.json_response({"session": token, "expiry": expiry, "tileWidth": 512, "tileHeight": 512})
        if request.query.get("session") not in self.valid:
            return web.json_response({"error": {"status": "UNAUTHENTICATED", "message": "session"}}, status=401)
        return await self.tiles(request)

    def near(self, lat, lon, radius):
        away = {key: float(distance_m(lon, lat, *place)) for key, place in self.panoramas.items()}
        nearest = min(away, key=away.get)
        return nearest if away[nearest] <= radius else ""

    def static(self, request):
        query = request.query
        if request.path == "/static":
            return web.Response(body=picture(640, 640, int(query["heading"])), content_type="image/jpeg")
        pano = query.get("pano")
        if pano is None:
            lat, lon = map(float, query["location"].split(","))
            pano = self.near(lat, lon, float(query["radius"]))
        if pano not in self.panoramas:
            return web.json_response({"status": "ZERO_RESULTS"})
        lon, lat = self.panoramas[pano]
        found = {"pano_id": pano, "location": {"lat": lat, "lng": lon}, "date": "2022-07", "copyright": "© Somebody"}
        return web.json_response({"status": "OK", **found})

    async def tiles(self, request):
        if request.path == "/v1/streetview/panoIds":
            body = await request.json()
            assert len(body["locations"]) <= 100
            found = [self.near(place["lat"], place["lng"], body["radius"]) for place in body["locations"]]
            return web.json_response({"panoIds": found})
        pano = request.query["panoId"]
        if pano not in self.panoramas:
            return web.json_response({"error": {"status": "NOT_FOUND", "message": "no such panorama"}}, status=404)
        if request.path == "/v1/streetview/metadata":
            return web.json_response(self.metadata(pano))
        try:
            await asyncio.sleep(self.delay_s)
            self.finished += 1
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return web.Response(body=picture(512, 512), content_type="image/jpeg")

    def metadata(self, pano):
        lon, lat = self.panoramas[pano]
        pose = {"heading": 94.35, "tilt": 88.4, "roll": 1.7}
        size = {"imageWidth": self.full[0], "imageHeight": self.full[1], "tileWidth": 512, "tileHeight": 512}
        return {"panoId": pano, "lat": lat, "lng": lon, "date": "2023-01", "copyright": "© 2023 Google", **size, **pose}


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("CVGL_GOOGLE_KEY", KEY)
    monkeypatch.delenv("CVGL_GOOGLE_SIGNING_SECRET", raising=False)
    return Google()


@asynccontextmanager
async def running(service, monkeypatch):
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", service.answer)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    monkeypatch.setenv("CVGL_GOOGLE_STATIC_URL", f"{host}/static")
    monkeypatch.setenv("CVGL_GOOGLE_TILES_URL", f"{host}/v1/")
    try:
        async with Http(rate_per_s=0, connections=32, max_tries=2, backoff_s=0.001) as http:
            yield http
    finally:
        await runner.cleanup()


@pytest.fixture
def ask(service, monkeypatch):
    """Run ``work(source, http)`` against the service."""

    def run(kind, work, **options):
        async def main():
            async with running(service, monkeypatch) as http:
                return await work(kind(**options), http)

        return asyncio.run(main())

    return run


@pytest.fixture
def fetch(ask):
    return lambda kind, pano="pano-a": ask(kind, lambda source, http: source.fetch(pano, http))


@pytest.fixture
def failure(ask):
    """Return the error that fetching a panorama ends with, after looking whether it gives anything away."""

    def run(kind, pano="pano-a"):
        with pytest.raises(FetchError) as caught:
            ask(kind, lambda source, http: source.fetch(pano, http))
        assert caught.value.source == kind.name
        assert caught.value.item == pano
        assert KEY not in str(caught.value)
        assert "session-token" not in str(caught.value)
        return caught.value

    return run


@pytest.fixture
def discover(ask):
    async def collect(source, http):
        return [found async for found in source.discover(AREA, http)]

    return lambda kind, **options: ask(kind, collect, **options)


def everything(value):
    return lambda request: web.json_response(value)


# What both share


def test_url_signing_golden_vector():
    url = "https://maps.googleapis.com/maps/api/geocode/json?address=New+York&client=clientID"
    assert google.signed(url, SECRET) == f"{url}&signature=chaRF2hTJKOScPr-RQCEhZbSzIE="
    assert google.signed(url, SECRET.rstrip("=")) == google.signed(url, SECRET)
    assert google.signed(url + "x", SECRET) != google.signed(url, SECRET)
    with pytest.raises(RecipeError, match="base64") as caught:
        google.signed(url, "no/base64 secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "area",
    [
        AREA,
        AreaOfInterest.from_bbox(179.9995, -17.0, -179.9995, -16.9992),
        AreaOfInterest.from_bbox(20.0, 84.99, 20.01, 84.991),
        AreaOfInterest.from_geometry(shapely.Polygon([(5, 50), (5.003, 50.002), (5.001, 50.0001)]), "sliver"),
    ],
)
def test_every_point_of_an_area_lies_within_the_radius_of_a_location(area):
    grid = np.array(list(google.locations(area, 25.0)))
    west, south, east, north = area.bounds
    rng = np.random.default_rng(0)
    lon = west + rng.random(400) * ((east - west) % 360)
    lat = south + rng.random(400) * (north - south)
    inside = area.contains(lon, lat)
    away = distance_m(lon[inside, None], lat[inside, None], grid[None, :, 0], grid[None, :, 1])
    assert inside.sum() > 20
    assert away.min(axis=1).max() <= google.radius_m(25.0)
    assert (np.abs(grid[:, 0]) <= 180).all()
    assert len(grid) <= 3 + 2 * (area.area_km2 * 1e6 / 625 + 2 * math.sqrt(area.area_km2 * 1e6) * 4 / 25)
    assert list(google.locations(area, 25.0)) == [tuple(place) for place in grid]


@pytest.mark.parametrize("kind", _SOURCES)
def test_sources_say_what_they_cost_and_ask(kind, monkeypatch):
    monkeypatch.delenv("CVGL_GOOGLE_KEY", raising=False)  # plans need no key
    source = kind()
    assert source.attribution == "© Google"
    assert source.terms.must_accept
    assert not source.terms.redistributable
    assert source.terms.name == "google"
    assert "verify" in source.cost().note or "price" in source.cost().note
    for spacing_m in (0, -5, math.nan, math.inf, 2000):
        with pytest.raises(RecipeError, match="spacing_m"):
            kind(spacing_m=spacing_m)


def test_costs():
    static, tiles = GoogleStaticPanoramas().cost(), GoogleTilesPanoramas().cost()
    assert static.usd * 1000 == pytest.approx(42.0)
    assert static.requests == {"maps.googleapis.com": 7}
    assert tiles.requests == {"tile.googleapis.com": 9}
    assert tiles.per_day == 1875
    assert GoogleStaticPanoramas().discovery(AREA) == {"maps.googleapis.com": len(list(google.locations(AREA, 25.0)))}
    assert GoogleTilesPanoramas().discovery(AREA).keys() == {"tile.googleapis.com"}


@pytest.mark.parametrize("kind", _SOURCES)
def test_a_missing_key_is_named(kind, ask, monkeypatch):
    monkeypatch.delenv("CVGL_GOOGLE_KEY")
    with pytest.raises(RecipeError, match="CVGL_GOOGLE_KEY"):
        ask(kind, lambda source, http: source.fetch("pano-a", http))


@pytest.mark.parametrize("kind", _SOURCES)
@pytest.mark.parametrize("pano", ["", "two words", "line\n", "é", "x" * 300])
def test_what_is_no_id_is_not_asked_for(kind, pano, failure, service):
    assert isinstance(failure(kind, pano), NoPanorama)
    assert not service.asked


@pytest.mark.parametrize("kind", _SOURCES)
@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (403, f"The provided API key {KEY} is invalid.", Outcome.AUTH),
        (403, "This project has exceeded its daily quota for this API.", Outcome.QUOTA),
        (400, "API key not valid. Please pass a valid API key.", Outcome.AUTH),
    ],
)
def test_a_refused_key_or_a_used_up_quota_stops_the_run(kind, status, body, outcome, failure, service):
    service.always["/static" if kind is GoogleStaticPanoramas else "/v1/createSession"] = lambda request: web.Response(
        status=status, text=body
    )
    error = failure(kind)
    assert isinstance(error, SourceStopped)
    assert error.outcome is outcome


def test_error_pages_are_not_repeated():
    page = b"<html><body>A robot is sorry"
    error = google.refusal(Response("http://h/", 403, {}, page), source="google", item="x")
    assert "robot" not in str(error)
    assert "HTTP 403" in str(error)


# Static API


def test_six_views_make_a_panorama(fetch, service):
    panorama = fetch(GoogleStaticPanoramas)
    assert image_size(panorama.image) == (2048, 1024)
    assert (panorama.lon, panorama.lat) == service.panoramas["pano-a"]
    assert (panorama.heading_deg, panorama.pitch_deg, panorama.roll_deg, panorama.upright) == (0.0, None, None, None)
    assert (panorama.captured, panorama.creator) == ("2022-07", "© Somebody")
    assert panorama.pose_source == "static-views"
    assert service.paths == {"/static/metadata": 1, "/static": 6}
    poses = {(request.query["heading"], request.query["pitch"]) for request in service.asked[1:]}
    assert poses == {("0", "0"), ("90", "0"), ("180", "0"), ("270", "0"), ("0", "90"), ("0", "-90")}
    for request in service.asked[1:]:
        assert list(request.query) == ["size", "pano", "heading", "pitch", "fov", "return_error_code", "key"]
        assert request.query["return_error_code"] == "true"
        assert (request.query["size"], request.query["fov"]) == ("640x640", "90")


@pytest.mark.parametrize("pano", ["pano-a", "CAoSL/EFGMVFpcE5rX_-zZ~", "a&b=c+d%2F,'\"(!)*;:@$?#", "[\\]^`{|}"])
def test_signatures_fit_the_urls_as_they_arrive(pano, fetch, service, monkeypatch):
    monkeypatch.setenv("CVGL_GOOGLE_SIGNING_SECRET", SECRET)
    service.panoramas[pano] = (10.0, 45.0)
    fetch(GoogleStaticPanoramas, pano)
    assert len(service.asked) == 7
    for request in service.asked:
        assert request.query["pano"] == pano
        unsigned = request.raw_path.rpartition("&signature=")[0]
        assert google.signed(unsigned, SECRET) == request.raw_path


@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        ("ZERO_RESULTS", NoPanorama, Outcome.NOT_FOUND),
        ("NOT_FOUND", NoPanorama, Outcome.NOT_FOUND),
        ("OVER_QUERY_LIMIT", SourceStopped, Outcome.QUOTA),
        ("REQUEST_DENIED", SourceStopped, Outcome.AUTH),
        ("INVALID_REQUEST", FetchError, Outcome.NOT_FOUND),
        ("UNKNOWN_ERROR", FetchError, Outcome.SERVER_ERROR),
        ("A_STATUS_OF_NEXT_YEAR", FetchError, Outcome.DECODE_ERROR),
    ],
)
@pytest.mark.parametrize("code", [200, 403])
def test_statuses_of_the_metadata(status, kind, outcome, code, failure, service):
    answer = {"status": status, "error_message": f"said about {KEY}"}
    service.instead["/static/metadata"] = lambda request: web.json_response(answer, status=code)
    error = failure(GoogleStaticPanoramas)
    if (status, code) == ("A_STATUS_OF_NEXT_YEAR", 403):
        kind, outcome = SourceStopped, Outcome.AUTH
    assert type(error) is kind
    assert error.outcome is outcome
    assert service.paths["/static"] == 0


@pytest.mark.parametrize(
    ("view", "outcome"),
    [
        (even(640, 640), Outcome.CONSTANT_TILE),
        (picture(256, 256), Outcome.WRONG_SIZE),
        (picture(640, 640)[:-500], Outcome.TRUNCATED),
        (b"<html>sorry</html>", Outcome.WRONG_TYPE),
        (b'{"status": "UNKNOWN_ERROR"}', Outcome.SERVER_ERROR),
        (b'{"status": ', Outcome.WRONG_TYPE),
        (b"", Outcome.TRUNCATED),
    ],
)
def test_one_bad_view_fails_the_panorama(view, outcome, failure, service):
    service.instead["/static"] = lambda request: web.Response(body=view, content_type="image/jpeg")
    assert failure(GoogleStaticPanoramas).outcome is outcome


@pytest.mark.parametrize(("status", "kind"), [(404, NoPanorama), (400, FetchError), (500, FetchError)])
def test_views_that_are_refused(status, kind, failure, service):
    service.always["/static"] = lambda request: web.Response(status=status)
    error = failure(GoogleStaticPanoramas)
    assert type(error) is kind
    assert error.outcome is (Outcome.SERVER_ERROR if status == 500 else Outcome.NOT_FOUND)


def test_placeholders_and_even_skies_are_told_apart():
    sorry = np.full((640, 640, 3), (228, 227, 223), np.uint8)
    sorry[310:330, 200:440:2] = 60  # a line of text
    assert shows_nothing(decode(encode_jpeg(sorry)), is_pole=False)
    assert shows_nothing(np.full_like(sorry, 128), is_pole=True)
    assert not shows_nothing(np.full_like(sorry, 255), is_pole=True)  # an overexposed sky
    assert shows_nothing(np.full_like(sorry, 255), is_pole=False)
    assert not shows_nothing(decode(picture(640, 640)), is_pole=False)


def test_static_discovery(discover, service):
    refs = discover(GoogleStaticPanoramas)
    assert [ref.pano_id for ref in refs] == ["pano-a", "pano-b"]
    assert (refs[0].lon, refs[0].lat, refs[0].captured) == (10.0002, 45.0003, "2022-07")
    assert {request.query["source"] for request in service.asked} == {"outdoor"}
    assert service.paths.keys() == {"/static/metadata"}  # the free one
    assert GoogleStaticPanoramas().discovery(AREA) == {urlsplit(str(service.asked[0].url)).netloc: len(service.asked)}
    assert discover(GoogleStaticPanoramas) == refs
    assert len(service.asked) > 2 * len(discover(GoogleStaticPanoramas, spacing_m=60.0))


@pytest.mark.parametrize("kind", _SOURCES)
def test_discovery_goes_on_after_an_answer_that_cannot_be_read(kind, discover, service):
    path = "/static/metadata" if kind is GoogleStaticPanoramas else "/v1/streetview/metadata"
    service.instead[path] = lambda request: web.Response(text="<html>")
    found = discover(kind)
    errors = [one for one in found if isinstance(one, FetchError)]
    assert [error.outcome for error in errors] == [Outcome.WRONG_TYPE]
    assert errors[0].item
    assert any(isinstance(one, PanoramaRef) for one in found)


# Map Tiles API


@pytest.mark.parametrize(
    ("width", "wanted", "level", "num_tiles"),
    [
        (16384, 2048, Level(2, 2048, 1024, 512), 8),
        (13312, 2048, Level(3, 3328, 1664, 512), 28),
        (13312, 1664, Level(2, 1664, 832, 512), 8),
        (13312, 6656, Level(4, 6656, 3328, 512), 91),
        (13312, 13312, Level(5, 13312, 6656, 512), 338),
        (16384, 16384, Level(5, 16384, 8192, 512), 512),
        (3328, 2048, Level(3, 3328, 1664, 512), 28),
        (1664, 2048, Level(2, 1664, 832, 512), 8),
        (512, 2048, Level(0, 512, 256, 512), 1),
        (100, 2048, Level(0, 100, 50, 512), 1),
    ],
)
def test_levels(width, wanted, level, num_tiles):
    assert level_for(width, width // 2, at_least=wanted) == level
    assert len(level.grid) == num_tiles


def test_tiles_make_a_panorama(fetch, service):
    panorama = fetch(GoogleTilesPanoramas)
    assert image_size(panorama.image) == (2048, 1024)
    assert (panorama.lon, panorama.lat) == service.panoramas["pano-a"]
    assert panorama.heading_deg == 94.35
    assert panorama.pitch_deg == pytest.approx(1.6)
    assert panorama.roll_deg == 1.7
    assert (panorama.captured, panorama.creator) == ("2023-01", "© 2023 Google")
    assert panorama.pose_source == "map-tiles"
    assert service.paths["/v1/createSession"] == 1
    tiles = {path for path in service.paths if "/tiles/" in path}
    assert tiles == {f"/v1/streetview/tiles/2/{x}/{y}" for x in range(4) for y in range(2)}
    level = np.tile(decode(picture(512, 512)), (2, 4, 1))
    assert np.abs(decode(panorama.image).astype(float) - level).mean() < 2


def test_the_grid_of_a_13312_camera(fetch, service):
    service.full = (13312, 6656)
    fetch(GoogleTilesPanoramas)
    tiles = {path for path in service.paths if "/tiles/" in path}
    assert tiles == {f"/v1/streetview/tiles/3/{x}/{y}" for x in range(7) for y in range(4)}


def test_edge_tiles_may_come_cut(fetch, service):
    service.full = (13312, 6656)
    for y in range(4):
        service.instead[f"/v1/streetview/tiles/3/6/{y}"] = web.Response(body=picture(256, 512 if y < 3 else 128))
    assert image_size(fetch(GoogleTilesPanoramas).image) == (2048, 1024)


@pytest.mark.parametrize(
    ("tile", "outcome"),
    [
        (picture(256, 256), Outcome.WRONG_SIZE),
        (picture(512, 512)[:-500], Outcome.TRUNCATED),
        (b"<html>sorry</html>", Outcome.WRONG_TYPE),
    ],
)
def test_a_bad_tile_fails_the_panorama(tile, outcome, failure, service):
    service.instead["/v1/streetview/tiles/2/3/1"] = web.Response(body=tile, content_type="image/jpeg")
    assert failure(GoogleTilesPanoramas).outcome is outcome


def test_the_first_failure_in_order_is_the_one_that_is_told():
    """Whoever fails first: the same panorama has the same error row in every build."""
    ended = []

    async def one(name, delay_s, fails):
        await asyncio.sleep(delay_s)
        ended.append(name)
        if fails:
            raise ValueError(name)

    async def all_of_them():
        work = [one("a", 0.05, False), one("b", 0.02, True), one("c", 0.0, True), one("d", 0.5, False)]
        await google.together(work)

    with pytest.raises(ValueError, match="b"):
        asyncio.run(all_of_them())
    assert ended == ["c", "b", "a"]  # what comes before a failure is waited for, what comes after is not


def test_a_failing_tile_cancels_the_others(failure, service):
    service.full = (13312, 6656)
    service.delay_s = 5.0
    service.always["/v1/streetview/tiles/3/0/0"] = lambda request: web.Response(status=404)
    service.valid.add("known")
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GoogleTilesPanoramas, "_session", lambda self, http, item: asyncio.sleep(0, "known"))
        error = failure(GoogleTilesPanoramas)
    assert error.outcome is Outcome.NOT_FOUND
    assert time.monotonic() - started < 4.0
    assert service.finished == 0
    assert service.cancelled == 27


def test_an_even_panorama_is_refused(failure, service):
    for x in range(4):
        for y in range(2):
            service.instead[f"/v1/streetview/tiles/2/{x}/{y}"] = web.Response(body=even(512, 512))
    assert failure(GoogleTilesPanoramas).outcome is Outcome.CONSTANT_TILE


def test_a_new_http_status_is_an_error(failure, service):
    service.always["/v1/streetview/metadata"] = lambda request: web.Response(status=418)
    assert "418" in str(failure(GoogleTilesPanoramas))


@pytest.mark.parametrize(
    ("code", "kind", "outcome"),
    [
        (500, FetchError, Outcome.SERVER_ERROR),
        (429, FetchError, Outcome.RATE_LIMITED),
        (404, NoPanorama, Outcome.NOT_FOUND),
        (403, SourceStopped, Outcome.AUTH),
        ("new", FetchError, Outcome.DECODE_ERROR),
    ],
)
def test_errors_in_an_answer_of_200(code, kind, outcome, failure, service):
    service.always["/v1/streetview/metadata"] = everything({"error": {"code": code, "message": "It broke."}})
    error = failure(GoogleTilesPanoramas)
    assert type(error) is kind
    assert error.outcome is outcome


def test_an_id_that_does_not_resolve(failure):
    assert isinstance(failure(GoogleTilesPanoramas, "gone"), NoPanorama)
    assert isinstance(failure(GoogleStaticPanoramas, "gone"), NoPanorama)


@pytest.mark.parametrize(
    "change",
    [
        {"imageHeight": 8191},
        {"imageWidth": 512.5},
        {"imageWidth": "16384"},
        {"imageWidth": 10**30},
        {"imageWidth": True},
        {"tileWidth": 1, "tileHeight": 1},
        {"lat": 91.0},
        {"lng": math.nan},
        {"heading": math.inf},
        {"tilt": "level"},
        {"panoId": None},
        {"date": "yesterday"},
    ],
)
def test_metadata_that_makes_no_sense(change, failure, service):
    answer = {**service.metadata("pano-a"), **change}
    service.instead["/v1/streetview/metadata"] = everything(answer)
    assert failure(GoogleTilesPanoramas).outcome in (Outcome.DECODE_ERROR, Outcome.WRONG_SIZE)
    assert not any("/tiles/" in path for path in service.paths)


def test_unknown_poses_stay_unknown(fetch, service):
    answer = service.metadata("pano-a")
    service.instead["/v1/streetview/metadata"] = everything(
        {key: value for key, value in answer.items() if key not in ("heading", "tilt", "roll", "date", "copyright")}
    )
    panorama = fetch(GoogleTilesPanoramas)
    assert (panorama.heading_deg, panorama.pitch_deg, panorama.roll_deg) == (None, None, None)
    assert (panorama.captured, panorama.creator) == ("", "")


async def _both(source, http):
    return await asyncio.gather(source.fetch("pano-a", http), source.fetch("pano-b", http), return_exceptions=True)


def test_everyone_shares_one_session(ask, service):
    service.delay_s = 0.05
    ask(GoogleTilesPanoramas, _both)
    assert service.paths["/v1/createSession"] == 1


def test_a_session_is_renewed_before_it_expires(ask, service, monkeypatch):
    clock = SimpleNamespace(now=time.time())
    monkeypatch.setattr(google_tiles, "time", SimpleNamespace(time=lambda: clock.now))

    async def work(source, http):
        for seconds, sessions in ((0, 1), (3600 - 90, 1), (60, 2)):
            clock.now += seconds
            await source.fetch("pano-a", http)
            assert service.paths["/v1/createSession"] == sessions

    ask(GoogleTilesPanoramas, work)


def test_a_session_that_seems_over_is_used_all_the_same(ask, service):
    service.lifetime_s = -3600.0  # of this machine's clock
    ask(GoogleTilesPanoramas, _both)
    assert service.paths["/v1/createSession"] == 1


def test_a_refused_session_is_renewed_once(ask, service):
    async def work(source, http):
        await source.fetch("pano-a", http)
        service.valid.clear()
        service.valid.add("another")  # so that tokens stay unique
        return await _both(source, http)

    panoramas = ask(GoogleTilesPanoramas, work)
    assert [panorama.pano_id for panorama in panoramas] == ["pano-a", "pano-b"]
    assert service.paths["/v1/createSession"] == 2


def test_a_session_may_be_refused_by_a_400_that_says_so(fetch, service):
    said = {"error": {"code": 400, "message": "session: The token has expired.", "status": "INVALID_ARGUMENT"}}
    service.instead["/v1/streetview/metadata"] = lambda request: web.json_response(said, status=400)
    fetch(GoogleTilesPanoramas)
    assert service.paths["/v1/createSession"] == 2


def test_sessions_that_are_always_refused_stop_the_run(ask, service):
    service.always["/v1/streetview/metadata"] = lambda request: web.Response(status=401)
    errors = ask(GoogleTilesPanoramas, _both)
    assert all(isinstance(error, SourceStopped) and error.outcome is Outcome.AUTH for error in errors)
    assert service.paths["/v1/createSession"] == 2


def test_everyone_hears_of_a_session_that_fails(ask, service):
    service.always["/v1/createSession"] = lambda request: web.Response(status=500)
    errors = ask(GoogleTilesPanoramas, _both)
    assert [error.item for error in errors] == ["pano-a", "pano-b"]
    assert {error.outcome for error in errors} == {Outcome.SERVER_ERROR}
    assert service.paths["/v1/createSession"] == 2  # one session, two tries


def test_one_source_serves_two_event_loops(service, monkeypatch):
    async def main(sources):
        async with running(service, monkeypatch) as http:
            sources.append(sources[0] if sources else GoogleTilesPanoramas())
            sources[0]._base = GoogleTilesPanoramas()._base  # the port is another
            sources[0]._token = ""
            return await sources[0].fetch("pano-a", http)

    sources = []
    assert asyncio.run(main(sources)).image == asyncio.run(main(sources)).image
    assert service.paths["/v1/createSession"] == 2


def test_tile_discovery(discover, service):
    refs = discover(GoogleTilesPanoramas, spacing_m=8.0)
    assert {ref.pano_id for ref in refs} == {"pano-a", "pano-b"}
    assert len(refs) == 2
    assert refs[0].captured == "2023-01"
    num = len(list(google.locations(AREA, 8.0)))
    assert num > 100
    assert service.paths["/v1/streetview/panoIds"] == math.ceil(num / 100)
    assert service.paths["/v1/streetview/metadata"] == 3  # each once, the one outside included
    (at_most,) = GoogleTilesPanoramas(spacing_m=8.0).discovery(AREA).values()
    assert at_most == 1 + math.ceil(num / 100) + num  # as if each location had a panorama of its own
    assert discover(GoogleTilesPanoramas, spacing_m=8.0) == refs


@pytest.mark.parametrize("answer", [{"panoIds": ["pano-a"]}, {"panoIds": None}, {}, {"panoIds": [1] * 15}])
def test_a_batch_that_does_not_fit_its_locations(answer, discover, service):
    service.always["/v1/streetview/panoIds"] = everything(answer)
    (error,) = discover(GoogleTilesPanoramas)
    assert error.outcome is Outcome.DECODE_ERROR
    assert "locations" in error.item


def test_a_refused_key_stops_discovery(discover, service):
    service.always["/static/metadata"] = everything({"status": "REQUEST_DENIED"})
    service.always["/v1/streetview/panoIds"] = lambda request: web.Response(status=403)
    for kind in _SOURCES:
        with pytest.raises(SourceStopped):
            discover(kind)


# Answers, recorded and garbled


class Canned:
    """An `Http` that gives one answer per ending of the address."""

    def __init__(self, answers, status=200):
        self.answers = answers
        self.status = status

    async def get(self, url, **options):
        return await self.request("GET", url, **options)

    async def request(self, method, url, **options):
        name = urlsplit(url).path.rpartition("/")[2]
        return Response("http://h/", self.status, {}, self.answers.get(name, b""))


def test_recorded_answers_can_be_read(golden, service):
    folder = golden / "api" / "google"
    for name, pano, date in (
        ("metadata_ok", "_R1mwpMkiqa2p0zp48EBJg", "2019-08"),
        ("metadata_example", "vPnURflnc8AZu5NMLYRddw", "2014-04"),
    ):
        http = Canned({"metadata": (folder / f"{name}.json").read_bytes()})
        found = asyncio.run(GoogleStaticPanoramas()._metadata({"pano": pano}, http, pano))
        assert (found.pano_id, found.date, found.copyright) == (pano, date, "© Google")
    http = Canned({"metadata": (folder / "metadata_zero_results.json").read_bytes()})
    with pytest.raises(NoPanorama):
        asyncio.run(GoogleStaticPanoramas()._metadata({"pano": "x"}, http, "x"))
    names = {"createSession": "tiles_session.json", "metadata": "tiles_metadata.json"}
    http = Canned({key: (folder / name).read_bytes() for key, name in names.items()})
    found = asyncio.run(GoogleTilesPanoramas()._metadata("cvglMadeUpPanorama0001", http))
    assert (found.imageWidth, found.heading, found.tilt, found.roll) == (13312, 123.45, 88.75, 1.25)
    assert (found.lng, found.lat) == (-122.334567, 47.612345)


@pytest.mark.parametrize("kind", _SOURCES)
@pytest.mark.parametrize("field", ["copyright", "lng", "lat"])
def test_what_no_file_and_no_globe_takes_is_refused(kind, field, service):
    metadata = {key: value for key, value in _GOOD["metadata"].items() if key != "location"}
    place = {"lat": 45.0003, "lng": 10.0002}
    (metadata if field == "copyright" else place)[field] = "\ud800" if field == "copyright" else math.nan
    answer = {**metadata, **place, "location": place}
    bodies = {"createSession": _GOOD["createSession"], "metadata": answer}
    http = Canned({name: json.dumps(body).encode() for name, body in bodies.items()})
    with pytest.raises(FetchError, match=field) as caught:
        asyncio.run(kind().fetch("pano-a", http))
    assert (caught.value.outcome, caught.value.item) == (Outcome.DECODE_ERROR, "pano-a")


_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**400), st.just("\ud800")
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner), max_leaves=6
)
_NUM_LOCATIONS = len(list(google.locations(AREA, 30.0)))
_GOOD = {
    "createSession": {"session": "token-that-must-not-be-seen", "expiry": "99999999999"},
    "metadata": Google().metadata("pano-a")
    | {"status": "OK", "pano_id": "x", "location": {"lat": 45.0003, "lng": 10.0002}},
    "panoIds": {"panoIds": ["", "pano-a", *[""] * (_NUM_LOCATIONS - 2)]},
}


@st.composite
def garbled(draw):
    """One of the answers with a field replaced or lost, something else altogether, or bytes that are no JSON."""
    answers = {name: dict(value) for name, value in _GOOD.items()}
    which = draw(st.sampled_from(sorted(answers)))
    how = draw(st.sampled_from(["field", "lost", "value", "cut", "bytes"]))
    field = draw(st.sampled_from(sorted(answers[which])))
    if how == "field":
        answers[which][field] = draw(_values)
    elif how == "lost":
        del answers[which][field]
    elif how == "value":
        answers[which] = draw(_values)
    bodies = {name: json.dumps(value).encode() for name, value in answers.items()}
    if how == "cut":
        bodies[which] = bodies[which][: draw(st.integers(0, len(bodies[which]) - 1))]
    elif how == "bytes":
        bodies[which] = draw(st.binary(max_size=64) | st.just(b"<html></html>") | st.just(b"[" * 100_000))
    return bodies


@settings(max_examples=250)
@given(bodies=garbled(), status=st.sampled_from([200, 200, 200, 400, 401, 403, 404]))
def test_garbled_answers_are_errors_and_nothing_else(bodies, status):
    async def work(kind):
        http = Canned(bodies, status)
        source = kind(spacing_m=30.0)
        with pytest.raises(FetchError) as caught:  # no image comes in any case
            await source.fetch("pano-a", http)
        assert caught.value.item == "pano-a"
        assert "token-that-must" not in str(caught.value)
        try:
            async for found in source.discover(AREA, http):
                assert isinstance(found, PanoramaRef | FetchError)
                if isinstance(found, PanoramaRef):
                    assert AREA.contains(found.lon, found.lat)
        except SourceStopped:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CVGL_GOOGLE_KEY", KEY)
        for kind in _SOURCES:
            asyncio.run(work(kind))
