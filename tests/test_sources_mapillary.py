import asyncio
import copy
import json
import math
from collections import Counter

import mapbox_vector_tile
import numpy as np
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import FetchError, NoPanorama, RecipeError, SourceStopped
from cvgl_data.http import Http, NotModified
from cvgl_data.images import encode_jpeg
from cvgl_data.panorama import north_align
from cvgl_data.sources import mapillary
from cvgl_data.sources.mapillary import (
    BATCH,
    MapillaryPanoramas,
    captured_of,
    panorama_of,
    pose_from_rotation,
    ref_of,
    rotation_matrix,
)
from cvgl_data.sources.mapillary_graph import ENTITIES, entity_of
from cvgl_data.sources.vector_tiles import Point
from cvgl_data.types import Outcome, Panorama, PanoramaRef, PanoramaSource, Tile

_SOURCE: type[PanoramaSource] = MapillaryPanoramas
JPEG = encode_jpeg(np.zeros((1024, 2048, 3), np.uint8))
SMALL = encode_jpeg(np.zeros((512, 1024, 3), np.uint8))
TOKEN = "MLY|12|S3CR3T"
SIGNED = "oh=SIGNED"

angles = st.floats(-3.2, 3.2)
rotations = st.tuples(angles, angles, angles)


@pytest.fixture(scope="module")
def entities(golden):
    return json.loads((golden / "api/mapillary/images_spherical_3records.json").read_text())["data"]


def difference_deg(first, second):
    return abs((first - second + 180.0) % 360.0 - 180.0)


def test_headings_of_the_recorded_rotations_are_the_recorded_computed_angles(entities):
    for entity in entities:
        heading_deg, pitch_deg, roll_deg = pose_from_rotation(tuple(entity["computed_rotation"]))
        assert difference_deg(heading_deg, entity["computed_compass_angle"]) < 1e-6
        assert abs(pitch_deg) < 15
        assert abs(roll_deg) < 15
    assert difference_deg(entities[0]["compass_angle"], entities[0]["computed_compass_angle"]) > 120  # it does matter


def test_the_recorded_entities(entities):
    panorama = panorama_of(entity_of(entities[0], "1386976845208976"), JPEG)
    assert (panorama.lon, panorama.lat) == (4.1447180519741, 39.865000210806)
    assert panorama.heading_deg == pytest.approx(165.86355589155)
    assert panorama.pitch_deg == pytest.approx(10.970, abs=1e-3)
    assert panorama.captured == "2023-05-09T10:47:44Z"
    assert (panorama.creator, panorama.licence) == ("trekviewhq", "CC-BY-SA-4.0")
    assert panorama.pose_source == "computed_rotation"
    assert panorama_of(entity_of(entities[1], "1447075489494186"), JPEG).captured == "2021-08-28T10:20:36Z"


@given(rotations)
def test_rotation_matrices_are_those_of_scipy(rotation):
    expected = Rotation.from_rotvec(rotation).as_matrix()
    np.testing.assert_allclose(rotation_matrix(rotation), expected, atol=1e-12)


def smooth(azimuth, elevation):
    """Field on the sphere that tells every orientation apart."""
    x, y, z = np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth), np.sin(elevation)
    return x + 0.5 * y * z + 0.3 * z - 0.7 * x * y


def directions(width):
    azimuth = -np.pi + 2 * np.pi * (np.arange(width) + 0.5) / width
    elevation = np.pi / 2 - np.pi * (np.arange(width // 2) + 0.5) / (width // 2)
    return np.meshgrid(azimuth, elevation)


LEVEL_TO_VERTICAL = [
    (0.0, 0.0, 0.0),  # looks straight up
    (math.pi, 0.0, 0.0),  # straight down
    (math.pi / 2, 0.0, 0.0),  # level, to the north
]


@pytest.mark.parametrize("rotation", LEVEL_TO_VERTICAL)
def test_level_and_vertical_views(rotation):
    heading_deg, pitch_deg, roll_deg = pose_from_rotation(rotation)
    expected = {0.0: 90.0, math.pi: -90.0, math.pi / 2: 0.0}[rotation[0]]
    assert pitch_deg == pytest.approx(expected, abs=1e-6)
    check_against_rotation(rotation, heading_deg, pitch_deg, roll_deg)


@given(rotations)
@settings(max_examples=25)
def test_re_rendering_with_the_pose_is_sampling_with_the_rotation(rotation):
    check_against_rotation(rotation, *pose_from_rotation(rotation))


def check_against_rotation(rotation, heading_deg, pitch_deg, roll_deg):
    """The camera sees ``smooth(d_cam)``; world direction d must show it at ``d_cam = R d``."""
    width = 512
    azimuth, elevation = directions(width)
    panorama = smooth(azimuth, elevation)
    world = np.stack([np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth), np.sin(elevation)])
    x, y, z = np.tensordot(Rotation.from_rotvec(rotation).as_matrix(), world, axes=1)
    expected = smooth(np.arctan2(x, z), np.arcsin(np.clip(-y, -1, 1)))
    np.testing.assert_allclose(north_align(panorama, heading_deg, pitch_deg, roll_deg), expected, atol=2e-2)


@pytest.mark.parametrize(
    ("missing", "heading", "pose_source"),
    [
        (["computed_rotation"], 165.86355589155, "computed_compass_angle"),
        (["computed_rotation", "computed_compass_angle"], 43.370713358692, "compass_angle"),
        (["computed_rotation", "computed_compass_angle", "compass_angle"], None, ""),
    ],
)
@pytest.mark.parametrize("is_null", [True, False])
def test_poses_fall_back_and_say_where_they_come_from(entities, missing, heading, pose_source, is_null):
    entity = {key: value for key, value in entities[0].items() if key not in missing}
    entity |= dict.fromkeys(missing) if is_null else {}
    panorama = panorama_of(entity_of(entity, entity["id"]), JPEG)
    assert (panorama.heading_deg, panorama.pose_source) == (heading, pose_source)
    assert panorama.pitch_deg is None
    assert panorama.roll_deg is None


def test_positions_fall_back_too(entities):
    entity = {**entities[0], "computed_geometry": None}
    assert panorama_of(entity_of(entity, entity["id"]), JPEG).lon == 4.1446528999722
    with pytest.raises(FetchError, match="has no position"):
        entity_of({**entity, "geometry": None}, entity["id"])


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"is_pano": False}, Outcome.WRONG_TYPE),
        ({"camera_type": "perspective"}, Outcome.WRONG_TYPE),
        ({"camera_type": "fisheye", "is_pano": None}, Outcome.WRONG_TYPE),
        ({"camera_type": "equirectangular"}, None),
        ({"camera_type": None}, None),
        ({"is_pano": None}, None),
        ({"is_pano": None, "camera_type": None}, Outcome.DECODE_ERROR),
        ({"is_pano": "true"}, Outcome.DECODE_ERROR),
        ({"id": "1"}, Outcome.DECODE_ERROR),
        ({"id": 1386976845208976}, Outcome.DECODE_ERROR),
        ({"computed_rotation": [1.0, 2.0]}, Outcome.DECODE_ERROR),
        ({"computed_rotation": [1e300, 0.0, 0.0]}, Outcome.DECODE_ERROR),
        ({"computed_rotation": [float("nan"), 0.0, 0.0]}, Outcome.DECODE_ERROR),
        ({"computed_compass_angle": float("inf")}, Outcome.DECODE_ERROR),
        ({"captured_at": "2023"}, Outcome.DECODE_ERROR),
        ({"captured_at": 10**400}, Outcome.DECODE_ERROR),
        ({"captured_at": -(10**17)}, Outcome.DECODE_ERROR),
        ({"computed_geometry": {"coordinates": [181.0, 0.0]}}, Outcome.DECODE_ERROR),
        ({"creator": None}, None),
        ({"creator": {"username": "\ud800"}}, Outcome.DECODE_ERROR),
        ({"camera_type": "\udfff"}, Outcome.DECODE_ERROR),
    ],
)
def test_entities_are_checked(entities, change, outcome):
    def read():
        return panorama_of(entity_of({**entities[0], **change}, entities[0]["id"]), JPEG)

    if outcome is None:
        assert read().creator == ("" if "creator" in change else "trekviewhq")
        return
    with pytest.raises(FetchError) as caught:
        read()
    assert (caught.value.outcome, caught.value.item) == (outcome, entities[0]["id"])


def junk():
    """Values of every JSON type, ``NaN`` and huge integers included."""
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400))
    return st.recursive(plain, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each))


@given(st.data())
@settings(max_examples=300)
def test_garbled_entities_raise_nothing_but_fetch_errors(entities, data):
    entity = copy.deepcopy(entities[0])
    pano_id = entity["id"]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(entities[0])))
        inner = entity.get(name)
        if isinstance(inner, dict) and inner and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(junk())
        elif isinstance(inner, list) and inner and data.draw(st.booleans()):
            inner[data.draw(st.integers(0, len(inner) - 1))] = data.draw(junk())
        elif data.draw(st.booleans()):
            entity[name] = data.draw(junk())
        else:
            entity.pop(name, None)
    try:
        read = entity_of(entity, pano_id)
        panorama = panorama_of(read, JPEG)
        read.thumb("thumb_original_url")
    except FetchError as error:
        assert error.item == pano_id  # noqa: PT017 - only sometimes
        return
    panorama.creator.encode()
    assert -180 <= panorama.lon <= 180
    assert -90 <= panorama.lat <= 90
    assert panorama.heading_deg is None or 0 <= panorama.heading_deg < 360
    assert panorama.pitch_deg is None or -90 <= panorama.pitch_deg <= 90


@given(junk())
def test_anything_but_an_entity_is_a_fetch_error(answer):
    with pytest.raises(FetchError):
        entity_of(answer, "1")


@given(st.dictionaries(st.sampled_from(["id", "is_pano", "captured_at"]), junk()))
def test_garbled_records_raise_nothing_but_fetch_errors(properties):
    try:
        ref = ref_of(Point(7.0, 48.0, properties, "14/1/1#0"))
    except FetchError as error:
        assert error.item == "14/1/1#0"  # noqa: PT017 - only sometimes
        return
    assert ref is None or ref.pano_id.isdigit()


def test_dates_keep_their_milliseconds():
    assert captured_of(1507560881000, "i") == "2017-10-09T14:54:41Z"
    assert captured_of(1507560881250, "i") == "2017-10-09T14:54:41.250000Z"
    assert captured_of(None, "i") == ""


def test_options_are_checked_and_costs_are_told(monkeypatch):
    monkeypatch.delenv("CVGL_MAPILLARY_TOKEN", raising=False)
    with pytest.raises(RecipeError, match="must be one of 256, 1024, 2048, original"):
        MapillaryPanoramas(size="4096")
    cost = MapillaryPanoramas(size=2048).cost()  # planning needs no token
    assert cost.requests["graph.mapillary.com"] == 1.0
    assert cost.bytes == 500e3
    block = AreaOfInterest.from_bbox(0.001, 0.001, 0.05, 0.005)
    assert MapillaryPanoramas().discovery(block) == {"tiles.mapillary.com": 3.0}
    assert not MapillaryPanoramas.terms.must_accept


class Mapillary:
    """Graph API, tiles and image host on one loopback server, which notes what it is asked and with which token."""

    def __init__(self, entities):
        # The recorded addresses are redacted.
        self.entities = {entity["id"]: {**entity} for entity in entities}
        for entity in self.entities.values():
            del entity["thumb_original_url"]
        self.tiles = {}
        self.asked = Counter()
        self.batches = []
        self.tokens = set()
        self.image_headers = []
        self.refused_images = 0
        self.image = JPEG
        self.bad_ids = set()
        self.instead = None
        self.signatures = 0
        self.etag = ""

    async def graph(self, request):
        self.asked["graph"] += 1
        assert "If-None-Match" not in request.headers
        self.tokens.add(request.headers.get("Authorization"))
        if self.instead is not None:
            return self.instead()
        pano_id = request.match_info.get("id")
        ids = [pano_id] if pano_id else request.query["ids"].split(",")
        self.batches.append(ids)
        if self.bad_ids & set(ids):
            error = {"message": "Unsupported get request", "type": "GraphMethodException", "code": 100}
            return web.json_response({"error": error}, status=400)
        found = {each: self.entity(each, request) for each in ids if each in self.entities}
        if pano_id:
            return web.json_response(found[pano_id]) if found else web.json_response({"error": {}}, status=404)
        return web.json_response(found)

    def entity(self, pano_id, request):
        entity = self.entities[pano_id]
        if not isinstance(entity, dict):
            return entity
        self.signatures += 1
        url = f"http://{request.host}/cdn/{pano_id}.jpg?{SIGNED}{self.signatures}"
        fields = request.query["fields"].split(",")
        given = {"thumb_2048_url": url, "thumb_original_url": url, **entity}
        return {name: given[name] for name in fields if name in given}

    async def cdn(self, request):
        self.asked["cdn"] += 1
        self.image_headers.append((request.headers, request.path_qs))
        if self.etag and request.headers.get("If-None-Match") == self.etag and not self.refused_images:
            return web.Response(status=304, headers={"ETag": self.etag})
        if self.refused_images:
            self.refused_images -= 1
            return web.Response(status=403, text="URL signature expired")
        return web.Response(body=self.image, headers={"ETag": self.etag} if self.etag else {})

    async def tile(self, request):
        self.asked["tile"] += 1
        self.tokens.add(request.query.get("access_token"))
        if self.instead is not None:
            return self.instead()
        body = self.tiles.get(request.path.removeprefix("/vtp/"))
        return web.Response(status=404) if body is None else web.Response(body=body)

    def run(self, monkeypatch, work, token=TOKEN, **options):
        async def serve():
            application = web.Application()
            application.router.add_get("/vtp/{tail:.*}", self.tile)
            application.router.add_get("/cdn/{tail:.*}", self.cdn)
            application.router.add_get("/", self.graph)
            application.router.add_get("/{id}", self.graph)
            runner = web.AppRunner(application)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
            monkeypatch.setenv("CVGL_MAPILLARY_GRAPH_URL", f"http://127.0.0.1:{port}")
            monkeypatch.setenv("CVGL_MAPILLARY_TILES_URL", f"http://127.0.0.1:{port}/vtp/")
            source = MapillaryPanoramas(**options)
            try:
                async with Http(rate_per_s=0, max_tries=1) as http:
                    return await work(source, http)
            finally:
                source.close()
                await runner.cleanup()

        if token:
            monkeypatch.setenv("CVGL_MAPILLARY_TOKEN", token)
        else:
            monkeypatch.delenv("CVGL_MAPILLARY_TOKEN", raising=False)
        return asyncio.run(serve())

    def fetch(self, monkeypatch, *pano_ids, unless="", **options):
        async def work(source, http):
            clients = [http.unless(unless) if unless else http for _ in pano_ids]
            work = (source.fetch(each, client) for each, client in zip(pano_ids, clients, strict=True))
            return await asyncio.gather(*work, return_exceptions=True)

        return self.run(monkeypatch, work, **options)


@pytest.fixture
def server(entities):
    return Mapillary(entities)


def ids_of(entities):
    return [entity["id"] for entity in entities]


def test_concurrent_fetches_share_a_call_and_the_token_stays_with_the_api(monkeypatch, server, entities):
    ids = ids_of(entities)
    found = server.fetch(monkeypatch, *ids, ids[0], "404404")
    assert [each.pano_id for each in found[:4]] == [*ids, ids[0]]
    assert all(each.image == JPEG for each in found[:4])
    assert isinstance(found[4], NoPanorama)
    assert server.batches == [[*ids, "404404"]]
    assert server.tokens == {f"OAuth {TOKEN}"}
    for headers, path in server.image_headers:
        assert "Authorization" not in headers
        assert "S3CR3T" not in str(headers) + path


def test_calls_ask_for_at_most_fifty(monkeypatch, server, entities):
    ids = [str(number) for number in range(1, 121)]
    server.entities = {each: {**entities[0], "id": each} for each in ids}
    found = server.fetch(monkeypatch, *ids)
    assert [each.pano_id for each in found] == ids
    assert [len(batch) for batch in server.batches] == [BATCH, BATCH, 20]
    assert sorted((each for batch in server.batches for each in batch), key=int) == ids


def test_a_source_can_be_used_by_one_run_after_another(monkeypatch, server, entities):
    ids = ids_of(entities)
    sources = []

    async def work(source, http):
        sources.append(source)
        given_up = asyncio.ensure_future(sources[0].fetch(ids[0], http))
        await asyncio.sleep(0)
        given_up.cancel()
        return await sources[0].fetch(ids[0], http) if len(sources) > 1 else None

    assert server.run(monkeypatch, work) is None
    sources[0]._graph_url = ""
    original = MapillaryPanoramas.__init__

    def again(source, **options):
        original(source, **options)
        sources[0]._graph_url = source._graph_url

    monkeypatch.setattr(MapillaryPanoramas, "__init__", again)
    assert server.run(monkeypatch, work).pano_id == ids[0]


def test_giving_one_panorama_up_leaves_the_others_of_its_call(monkeypatch, server, entities):
    first, second, _ = ids_of(entities)

    async def work(source, http):
        tasks = [asyncio.ensure_future(source.fetch(each, http)) for each in (first, second)]
        await asyncio.sleep(0.005)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    given_up, kept = server.run(monkeypatch, work)
    assert isinstance(given_up, asyncio.CancelledError)
    assert kept.pano_id == second


@pytest.mark.parametrize("entity", [{"id": "7"}, [], "nonsense", 3, True])
def test_a_malformed_entity_fails_alone(monkeypatch, server, entities, entity):
    ids = ids_of(entities)
    server.entities[ids[1]] = entity
    first, second, third = server.fetch(monkeypatch, *ids)
    assert isinstance(first, Panorama)
    assert isinstance(third, Panorama)
    assert isinstance(second, FetchError)
    assert second.item == ids[1]
    assert len(server.batches) == 1


def test_a_bad_id_that_spoils_the_call_fails_alone(monkeypatch, server, entities):
    ids = ids_of(entities)
    server.bad_ids = {"666"}
    *good, bad = server.fetch(monkeypatch, *ids, "666")
    assert [each.pano_id for each in good] == ids
    assert isinstance(bad, NoPanorama)
    assert (bad.item, "Unsupported get request" in str(bad)) == ("666", True)
    assert sorted(map(len, server.batches)) == [1, 1, 1, 1, 4]


@pytest.mark.parametrize("body", [b"<html>sign in", b'{"error": {"message": "busy", "code": 1}}'])
def test_one_unreadable_answer_is_no_loss_for_those_it_was_about(monkeypatch, server, entities, body):
    ids = ids_of(entities)

    def once():
        server.instead = None
        return web.Response(body=body)

    server.instead = once
    assert [each.pano_id for each in server.fetch(monkeypatch, *ids)] == ids
    assert server.asked["graph"] == 1 + len(ids)


def test_an_expired_address_is_asked_for_again_once(monkeypatch, server, entities):
    server.refused_images = 1
    (panorama,) = server.fetch(monkeypatch, entities[0]["id"])
    assert panorama.image == JPEG
    assert server.asked == {"graph": 2, "cdn": 2}
    assert len({path for _, path in server.image_headers}) == 2


def test_a_refresh_asks_together_and_for_images_that_changed(monkeypatch, server, entities):
    ids = ids_of(entities)
    server.etag = '"now"'
    kept = server.fetch(monkeypatch, *ids, unless='"now"')
    assert [type(each) for each in kept] == [NotModified] * len(ids)
    changed = server.fetch(monkeypatch, *ids, unless='"old"')
    assert [(each.pano_id, each.image, each.etag) for each in changed] == [(each, JPEG, '"now"') for each in ids]
    assert server.batches == [ids, ids]
    assert server.asked == {"graph": 2, "cdn": 2 * len(ids)}


def test_a_refresh_asks_again_for_an_address_that_expired(monkeypatch, server, entities):
    server.etag = '"now"'
    server.refused_images = 1
    (kept,) = server.fetch(monkeypatch, entities[0]["id"], unless='"now"')
    assert type(kept) is NotModified
    assert server.asked == {"graph": 2, "cdn": 2}


def test_an_address_refused_twice_is_given_up(monkeypatch, server, entities):
    server.refused_images = 5
    (error,) = server.fetch(monkeypatch, entities[0]["id"])
    assert isinstance(error, FetchError)
    assert not isinstance(error, SourceStopped)
    assert (error.outcome, error.item) == (Outcome.AUTH, entities[0]["id"])
    assert "/cdn/" in str(error)
    assert SIGNED not in str(error)
    assert server.asked == {"graph": 2, "cdn": 2}


@pytest.mark.parametrize(
    ("image", "outcome"),
    [
        (SMALL, Outcome.WRONG_SIZE),
        (b"<html>", Outcome.WRONG_TYPE),
        (JPEG[:200], Outcome.TRUNCATED),
        (b"", Outcome.TRUNCATED),
    ],
)
def test_images_are_checked_from_outside(monkeypatch, server, entities, image, outcome):
    server.image = image
    (error,) = server.fetch(monkeypatch, entities[0]["id"])
    assert (error.outcome, error.item) == (outcome, entities[0]["id"])
    assert SIGNED not in str(error)


def test_an_original_smaller_than_asked_for_is_taken(monkeypatch, server, entities):
    server.image = SMALL
    server.entities[entities[0]["id"]]["width"] = 1024
    (panorama,) = server.fetch(monkeypatch, entities[0]["id"])
    assert panorama.image == SMALL
    (error,) = server.fetch(monkeypatch, entities[0]["id"], entities[1]["id"], size="original")[1:]
    assert (error.outcome, error.item) == (Outcome.WRONG_SIZE, entities[1]["id"])


@pytest.mark.parametrize("url", [None, 5, "", "ftp://x/y", "http://[", "http://h:x/", "http://h/\ud800", "nonsense"])
def test_entities_without_an_address_are_decode_errors(monkeypatch, server, entities, url):
    server.entities[entities[0]["id"]]["thumb_2048_url"] = url
    (error,) = server.fetch(monkeypatch, entities[0]["id"])
    assert error.outcome is Outcome.DECODE_ERROR
    assert "thumb_2048_url" in str(error)


def graph_error(code, status, message="no"):
    return lambda: web.json_response({"error": {"message": message, "type": "T", "code": code}}, status=status)


REFUSALS = [
    (graph_error(190, 400, f"Invalid token {TOKEN}"), SourceStopped, Outcome.AUTH),
    (graph_error(190, 200), SourceStopped, Outcome.AUTH),
    (graph_error(0, 401), SourceStopped, Outcome.AUTH),
    (lambda: web.Response(status=403, text="<html>"), SourceStopped, Outcome.AUTH),
    (graph_error(4, 403), SourceStopped, Outcome.QUOTA),
    (graph_error(2, 400), FetchError, Outcome.SERVER_ERROR),
    (graph_error(100, 400), NoPanorama, Outcome.NOT_FOUND),
    (lambda: web.json_response({"error": "text"}, status=400), NoPanorama, Outcome.NOT_FOUND),
    (lambda: web.Response(status=404), NoPanorama, Outcome.NOT_FOUND),
    (lambda: web.Response(status=500), FetchError, Outcome.SERVER_ERROR),
    (lambda: web.Response(text="<html>busy"), FetchError, Outcome.WRONG_TYPE),
    (lambda: web.json_response([]), FetchError, Outcome.DECODE_ERROR),
]


@pytest.mark.parametrize(("instead", "kind", "outcome"), REFUSALS)
@pytest.mark.parametrize("count", [1, 2])
def test_refusals_of_the_graph_have_their_class(monkeypatch, server, entities, instead, kind, outcome, count):
    server.instead = instead
    ids = ids_of(entities)[:count]
    for pano_id, error in zip(ids, server.fetch(monkeypatch, *ids), strict=True):
        assert type(error) is kind
        assert (error.outcome, error.item, error.source) == (outcome, pano_id, "mapillary")
        assert "S3CR3T" not in str(error) + repr(error)


def test_without_a_token_nothing_is_asked(monkeypatch, server, entities):
    (error,) = server.fetch(monkeypatch, entities[0]["id"], token="")
    assert isinstance(error, RecipeError)
    assert "CVGL_MAPILLARY_TOKEN" in str(error)
    assert not server.asked


@pytest.mark.parametrize("pano_id", ["", "1,2", "abc", "../me", "-1"])
def test_what_cannot_be_an_id_is_not_asked_for(monkeypatch, server, pano_id):
    (error,) = server.fetch(monkeypatch, pano_id)
    assert isinstance(error, NoPanorama)
    assert not server.asked


TILE = Tile(8542, 5638, 14)


def area():
    west, south, east, north = TILE.bounds
    return AreaOfInterest.from_bbox(west + 1e-4, south + 1e-4, east + 0.05, north - 1e-4)


def image_tile(*images):
    features = [
        {"geometry": {"type": "Point", "coordinates": [x, y]}, "properties": properties} for x, y, properties in images
    ]
    layers = [{"name": "image", "features": features}]
    return mapbox_vector_tile.encode(layers, default_options={"y_coord_down": True})


async def list_all(source, http):
    return [each async for each in source.discover(area(), http)]


@pytest.mark.parametrize("name", ["mly1_public", "mly1_computed_public"])
def test_discovery(monkeypatch, server, name):
    pano = {"is_pano": True, "captured_at": 1507560881000, "compass_angle": 3.5, "sequence_id": "s"}
    server.tiles[f"{name}/2/{TILE}"] = image_tile(
        (2000, 2000, {"id": 222, **pano}),
        (2100, 2000, {"id": 1933525276802129, **pano}),
        (2200, 2000, {"id": 333, **pano, "is_pano": False}),
        (2300, 2000, {"id": 444}),
        (2400, 2000, {"id": "no number", **pano}),
        (2, 2, {"id": 555, **pano}),
    )
    server.tiles[f"{name}/2/14/{TILE.x + 1}/{TILE.y}"] = b"<html>busy"
    found = server.run(monkeypatch, list_all, computed_tiles=name != "mly1_public")
    refs = [each for each in found if isinstance(each, PanoramaRef)]
    assert [(ref.pano_id, ref.captured) for ref in refs] == [
        ("1933525276802129", "2017-10-09T14:54:41Z"),
        ("222", "2017-10-09T14:54:41Z"),
    ]
    errors = [each for each in found if isinstance(each, FetchError)]
    assert [error.item for error in errors] == [f"{TILE}#4", f"14/{TILE.x + 1}/{TILE.y}"]
    assert server.tokens == {TOKEN}
    assert server.asked["tile"] > 2  # the third does not exist, and is empty
    assert list(MapillaryPanoramas().discovery(area()).values()) == [server.asked["tile"]]


@pytest.mark.parametrize(
    ("instead", "outcome"),
    [(graph_error(190, 400), Outcome.AUTH), (lambda: web.Response(status=403), Outcome.AUTH)],
)
def test_a_refused_token_ends_discovery(monkeypatch, server, instead, outcome):
    server.instead = instead
    with pytest.raises(SourceStopped) as caught:
        server.run(monkeypatch, list_all)
    assert caught.value.outcome is outcome
    assert "S3CR3T" not in str(caught.value)


def test_a_tile_that_fails_is_yielded_without_the_token(monkeypatch, server):
    server.instead = lambda: web.Response(status=500)
    found = server.run(monkeypatch, list_all)
    assert {error.outcome for error in found} == {Outcome.SERVER_ERROR}
    assert "S3CR3T" not in "".join(map(str, found))
    with pytest.raises(RecipeError, match="CVGL_MAPILLARY_TOKEN"):
        server.run(monkeypatch, list_all, token="")


def test_quotas_are_those_of_the_provider():
    assert (ENTITIES.per_minute, mapillary.TILES.per_day) == (60_000, 50_000)
