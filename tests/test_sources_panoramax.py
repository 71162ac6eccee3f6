import asyncio
import copy
import json

import mapbox_vector_tile
import numpy as np
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import FetchError, NoPanorama, RecipeError
from cvgl_data.http import Http, NotModified
from cvgl_data.images import encode_jpeg
from cvgl_data.sources.panoramax import BATCH, PanoramaxPanoramas, ref_of
from cvgl_data.sources.panoramax_items import captured_of, item_of, split
from cvgl_data.sources.vector_tiles import Point
from cvgl_data.types import Outcome, Panorama, PanoramaRef, PanoramaSource, Tile

_SOURCE: type[PanoramaSource] = PanoramaxPanoramas
ID = "c41b9734-8e81-421f-b2cb-04aeec8250c1"
JPEG = encode_jpeg(np.zeros((1024, 2048, 3), np.uint8))
SMALL = encode_jpeg(np.zeros((512, 1024, 3), np.uint8))


@pytest.fixture(scope="module")
def answer(golden):
    return json.loads((golden / "api/panoramax/search_item_strasbourg.json").read_text())


KEYS = {
    "azimuth": "view:azimuth",
    "pitch": "pers:pitch",
    "roll": "pers:roll",
    "status": "geovisio:status",
    "producer": "geovisio:producer",
}


def changed(answer, **properties):
    """Return the recorded answer with other properties; ``...`` removes one."""
    answer = copy.deepcopy(answer)
    own = answer["features"][0]["properties"]
    for name, value in properties.items():
        key = KEYS.get(name, name)
        own[key] = value
        if value is ...:
            del own[key]
    return answer


def read(answer):
    return item_of(answer, ID).panorama(JPEG)


def test_the_recorded_item(answer):
    panorama = read(answer)
    assert (panorama.lon, panorama.lat) == (7.731916, 48.50179)
    assert (panorama.heading_deg, panorama.pitch_deg, panorama.roll_deg) == (3.0, None, None)
    assert panorama.captured == "2022-05-30T17:23:19.423000Z"
    assert panorama.licence == "etalab-2.0"
    assert panorama.creator == "eurométropole de strasbourg"
    assert panorama.pose_source == "view:azimuth"
    item = item_of(answer, ID)
    assert item.href("sd").endswith("/derivates/c4/1b/97/34/8e81-421f-b2cb-04aeec8250c1/sd.jpg")
    assert item.href("hd").endswith("/main-pictures/c4/1b/97/34/8e81-421f-b2cb-04aeec8250c1.jpg")


@pytest.mark.parametrize(
    ("azimuth", "heading"), [(450.5, 90.5), (-90, 270.0), (360, 0.0), (-1e-20, 0.0), (None, None), (..., None)]
)
def test_azimuths_are_taken_modulo_360_and_missing_stays_missing(answer, azimuth, heading):
    panorama = read(changed(answer, azimuth=azimuth))
    assert panorama.heading_deg == heading
    assert panorama.pose_source == ("" if heading is None else "view:azimuth")


def test_pitch_and_roll_are_kept_and_brought_into_range(answer):
    panorama = read(changed(answer, pitch=0.4, roll=359.5))
    assert (panorama.pitch_deg, panorama.roll_deg) == (0.4, -0.5)
    with pytest.raises(FetchError, match="pitch is 91 degrees"):
        read(changed(answer, pitch=91, roll=0))


@pytest.mark.parametrize(
    ("camera", "outcome"),
    [
        ({"field_of_view": 360}, None),
        ({"field_of_view": 90, "sensor_array_dimensions": [5760, 2880]}, Outcome.WRONG_TYPE),
        ({"sensor_array_dimensions": [5760, 2880]}, None),
        ({"sensor_array_dimensions": [4000, 3000]}, Outcome.WRONG_TYPE),
        ({"field_of_view": None}, None),
        ({}, None),
        (None, None),
        ({"field_of_view": "360"}, Outcome.DECODE_ERROR),
        ({"sensor_array_dimensions": [5760]}, Outcome.DECODE_ERROR),
    ],
)
def test_flat_pictures_are_refused(answer, camera, outcome):
    answer = changed(answer)
    answer["features"][0]["properties"]["pers:interior_orientation"] = camera
    if outcome is None:
        read(answer)
        return
    with pytest.raises(FetchError) as caught:
        read(answer)
    assert (caught.value.outcome, caught.value.item) == (outcome, ID)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("ready", None),
        (..., None),
        (None, None),
        ("preparing", Outcome.SERVER_ERROR),
        ("hidden", Outcome.NOT_FOUND),
        (3, Outcome.DECODE_ERROR),
    ],
)
def test_only_ready_pictures_are_taken(answer, status, outcome):
    answer = changed(answer, status=status)
    if outcome is None:
        read(answer)
        return
    with pytest.raises(FetchError) as caught:
        read(answer)
    assert caught.value.outcome is outcome


def test_licence_and_creator_are_the_items_own(answer):
    plain = changed(answer, license=..., producer=...)
    assert read(plain).licence == ""
    assert read(plain).creator == "eurométropole de strasbourg"
    plain["features"][0]["providers"] = [{"name": "host", "roles": ["host"]}, {"name": "me", "roles": ["producer"]}]
    assert read(plain).creator == "me"
    plain["features"][0]["providers"] = [{"name": "host", "roles": ["host"]}]
    assert read(plain).creator == "host"
    del plain["features"][0]["providers"]
    assert read(plain).creator == ""


@pytest.mark.parametrize(
    "coordinates",
    [[7.7], [7.7, 91.0], [181.0, 48.5], ["7.7", 48.5], [float("nan"), 48.5], [7.7, float("inf")], [7.7, 10**400], None],
)
def test_positions_that_make_no_sense_are_decode_errors(answer, coordinates):
    answer = changed(answer)
    answer["features"][0]["geometry"]["coordinates"] = coordinates
    with pytest.raises(FetchError, match=r"geometry\.coordinates") as caught:
        read(answer)
    assert caught.value.outcome is Outcome.DECODE_ERROR


def test_another_picture_than_the_one_asked_for_is_an_error(answer):
    other = copy.deepcopy(answer)
    other["features"][0]["id"] = "another"
    with pytest.raises(FetchError, match="it is about 1 other pictures") as caught:
        item_of(other, ID)
    assert not isinstance(caught.value, NoPanorama)
    other["features"] += answer["features"]
    item_of(other, ID)
    with pytest.raises(NoPanorama):
        item_of({"features": []}, ID)


@pytest.mark.parametrize("href", ["file:///etc/passwd", "sd.jpg", "http://[", "http://h:99999/", ""])
def test_image_addresses_are_checked(answer, href):
    answer = copy.deepcopy(answer)
    answer["features"][0]["assets"]["sd"]["href"] = href
    with pytest.raises(FetchError, match="address of its sd image"):
        item_of(answer, ID).href("sd")


def test_half_a_surrogate_pair_does_not_get_through(answer):
    with pytest.raises(FetchError, match="surrogates not allowed") as caught:
        read(changed(answer, license="\ud800"))
    str(caught.value).encode()


def test_dates():
    assert captured_of("2021-10-24 12:01:31+00", "i") == "2021-10-24T12:01:31Z"
    assert captured_of("2021-10-24T14:01:31.500+02:00", "i") == "2021-10-24T12:01:31.500000Z"
    assert captured_of("2021-10-24T12:01:31", "i") == "2021-10-24T12:01:31Z"
    assert captured_of("", "i") == ""
    for text in ("yesterday", "0001-01-01T00:00:00+10:00"):
        with pytest.raises(FetchError, match="is no date"):
            captured_of(text, "i")


def junk():
    """Values of every JSON type, ``NaN`` and huge integers included."""
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400))
    return st.recursive(plain, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each))


def places(value, path=()):
    """Return the paths of everything inside a JSON value."""
    found = [path] if path else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += places(child, (*path, key))
    return found


@given(st.data())
@settings(max_examples=300)
def test_garbled_items_raise_nothing_but_fetch_errors(answer, data):
    garbled = copy.deepcopy(answer)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(places(garbled)))
        value = garbled
        for key in parents:
            value = value[key]
        if data.draw(st.booleans()):
            value[last] = data.draw(junk())
        else:
            del value[last]
        if not garbled:
            break
    try:
        item = item_of(garbled, ID)
        panorama = item.panorama(JPEG)
        item.href("sd")
    except FetchError as error:
        assert error.item == ID  # noqa: PT017 - only sometimes
        return
    assert -180 <= panorama.lon <= 180
    assert -90 <= panorama.lat <= 90
    assert panorama.heading_deg is None or 0 <= panorama.heading_deg < 360
    for text in (panorama.licence, panorama.creator, panorama.captured):
        text.encode()


@given(st.dictionaries(st.sampled_from(["id", "type", "ts", "sequences", "first_sequence"]), junk()))
def test_garbled_records_raise_nothing_but_fetch_errors(properties):
    try:
        ref = ref_of(Point(7.0, 48.0, properties, "15/1/1#0"))
    except FetchError as error:
        assert error.item == "15/1/1#0"  # noqa: PT017 - only sometimes
        return
    assert ref is None or isinstance(ref.pano_id, str)


def test_collections_select():
    properties = {"id": "a", "type": "equirectangular", "sequences": '["s1","s2"]'}
    point = Point(7.0, 48.0, properties, "15/1/1#0")
    assert ref_of(point, "s2").pano_id == "a"
    assert ref_of(point, "s3") is None
    assert ref_of(point._replace(properties={**properties, "first_sequence": "s3"}), "s3").pano_id == "a"


def test_options_are_checked_and_costs_are_told(monkeypatch):
    with pytest.raises(RecipeError, match="must be sd or hd"):
        PanoramaxPanoramas(quality="thumb")
    assert PanoramaxPanoramas().cost().requests["api.panoramax.xyz"] == 1.0
    monkeypatch.setenv("CVGL_PANORAMAX_URL", "http://127.0.0.1:1/api/")
    assert "127.0.0.1:1" in PanoramaxPanoramas().cost().requests
    assert PanoramaxPanoramas().discovery(AreaOfInterest.from_bbox(0.001, 0.001, 0.015, 0.005)) == {"127.0.0.1:1": 2.0}
    assert not PanoramaxPanoramas.terms.must_accept


def tile_of(*pictures):
    features = [
        {"geometry": {"type": "Point", "coordinates": [x, y]}, "properties": properties}
        for x, y, properties in pictures
    ]
    layers = [{"name": "pictures", "features": features}]
    return mapbox_vector_tile.encode(layers, default_options={"y_coord_down": True})


def serve(monkeypatch, answers, work):
    """Run ``work(source, http)`` against a server of prepared answers; return its result and the paths asked for."""
    asked = []

    async def reply(request):
        asked.append(request.path_qs)
        found = answers.get(request.path_qs, answers.get(request.path))
        if callable(found):
            found = found(request)
        if found is None:
            return web.Response(status=404)
        if isinstance(found, web.Response):
            return found
        return web.Response(body=found) if isinstance(found, bytes) else web.json_response(found)

    async def run():
        application = web.Application()
        application.router.add_get("/{tail:.*}", reply)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        monkeypatch.setenv("CVGL_PANORAMAX_URL", f"http://127.0.0.1:{port}/api")
        try:
            async with Http(rate_per_s=0, max_tries=1) as http:
                return await work(PanoramaxPanoramas(), http)
        finally:
            await runner.cleanup()

    return asyncio.run(run()), asked


def fetch(monkeypatch, answers, pano_id=ID):
    async def work(source, http):
        try:
            return await source.fetch(pano_id, http)
        except FetchError as error:
            return error

    return serve(monkeypatch, answers, work)


def served(answer, asset=True):
    """Return what `serve` needs to offer the recorded item."""

    def search(request):
        local = copy.deepcopy(answer)
        assets = local["features"][0]["assets"]
        assets["sd"]["href"] = f"http://{request.host}/store/sd.jpg"
        if not asset:
            del assets["sd"]
        return web.json_response(local)

    headers = {"ETag": '"e"', "X-Robots-Tag": "noai"}
    image = lambda request: web.Response(body=JPEG, content_type="image/jpeg", headers=headers)  # noqa: E731
    return {"/api/search": search, "/store/sd.jpg": image, f"/api/pictures/{ID}/sd.jpg": image}


@pytest.mark.parametrize("asset", [True, False])
def test_fetching_takes_two_requests(monkeypatch, answer, asset):
    panorama, asked = fetch(monkeypatch, served(answer, asset))
    assert isinstance(panorama, Panorama)
    assert (panorama.pano_id, panorama.image, panorama.heading_deg) == (ID, JPEG, 3.0)
    assert (panorama.etag, panorama.robots) == ('"e"', "noai")
    assert asked == [f"/api/search?ids={ID}", "/store/sd.jpg" if asset else f"/api/pictures/{ID}/sd.jpg"]


@pytest.mark.parametrize(
    ("path", "body", "outcome"),
    [
        ("/api/search", None, Outcome.NOT_FOUND),
        ("/api/search", lambda request: web.Response(status=400, text="no uuid"), Outcome.NOT_FOUND),
        ("/api/search", {"features": []}, Outcome.NOT_FOUND),
        ("/api/search", {}, Outcome.DECODE_ERROR),
        ("/api/search", [], Outcome.DECODE_ERROR),
        ("/api/search", b"<html>busy</html>", Outcome.WRONG_TYPE),
        ("/api/search", b"", Outcome.WRONG_TYPE),
        ("/api/search", lambda request: web.Response(status=500), Outcome.SERVER_ERROR),
        ("/store/sd.jpg", None, Outcome.NOT_FOUND),
        ("/store/sd.jpg", b"<html>busy</html>", Outcome.WRONG_TYPE),
        ("/store/sd.jpg", SMALL, Outcome.WRONG_SIZE),
        ("/store/sd.jpg", JPEG[:200], Outcome.TRUNCATED),
        ("/store/sd.jpg", b"", Outcome.TRUNCATED),
        ("/store/sd.jpg", lambda request: web.Response(status=403), Outcome.AUTH),
    ],
)
def test_what_goes_wrong_has_its_class_and_names_the_panorama(monkeypatch, answer, path, body, outcome):
    error, _ = fetch(monkeypatch, {**served(answer), path: body})
    assert isinstance(error, FetchError)
    assert (error.outcome, error.item, error.source) == (outcome, ID, "panoramax")
    assert isinstance(error, NoPanorama) == (outcome is Outcome.NOT_FOUND)


@pytest.mark.parametrize("pano_id", ["", "a,b", "../x", "a b", "x" * 65])
def test_what_cannot_be_an_id_is_not_asked_for(monkeypatch, pano_id):
    error, asked = fetch(monkeypatch, {}, pano_id)
    assert isinstance(error, NoPanorama)
    assert asked == []


OTHERS = [f"00000000-0000-4000-8000-{number:012d}" for number in range(75)]


class Instance:
    """Searches among pictures that exist, and serves their images with an ETag."""

    def __init__(self, answer, ids, most=1000):
        self.feature = answer["features"][0]
        self.ids = list(ids)
        self.most = most
        self.searches = []
        self.conditions = []
        self.changes = {}

    def answers(self):
        paths = {f"/store/{pano_id}.jpg": self.image for pano_id in self.ids}
        return {"/api/search": self.search, **paths}

    def search(self, request):
        assert "If-None-Match" not in request.headers
        ids = request.query["ids"].split(",")
        self.searches.append(ids)
        if "bad" in ids:
            return web.Response(status=400, text="no uuid")
        limit = min(int(request.query.get("limit", "10")), self.most)
        found = [self.item(each, request) for each in ids if each in self.ids][:limit]
        return web.json_response({"type": "FeatureCollection", "features": found[::-1]})

    def item(self, pano_id, request):
        item = copy.deepcopy(self.feature) | {"id": pano_id}
        item["assets"]["sd"]["href"] = f"http://{request.host}/store/{pano_id}.jpg"
        return item | self.changes.get(pano_id, {})

    def image(self, request):
        condition = request.headers.get("If-None-Match")
        self.conditions.append(condition)
        headers = {"ETag": '"now"'}
        if condition == '"now"':
            return web.Response(status=304, headers=headers)
        return web.Response(body=JPEG, headers=headers)

    def fetch(self, monkeypatch, ids, etag=""):
        async def work(source, http):
            clients = [http.unless(etag) if etag else http for _ in ids]
            work = (source.fetch(each, client) for each, client in zip(ids, clients, strict=True))
            return await asyncio.gather(*work, return_exceptions=True)

        return serve(monkeypatch, self.answers(), work)[0]


def test_concurrent_fetches_share_a_search_of_at_most_fifty(monkeypatch, answer):
    instance = Instance(answer, OTHERS)
    found = instance.fetch(monkeypatch, OTHERS)
    assert [each.pano_id for each in found] == OTHERS
    assert instance.searches == [OTHERS[:BATCH], OTHERS[BATCH:]]


def test_pictures_that_a_search_leaves_out_are_asked_for_alone(monkeypatch, answer):
    instance = Instance(answer, OTHERS[:5], most=3)  # five exist, three fit into an answer
    found = instance.fetch(monkeypatch, OTHERS[:6])
    assert [each.pano_id for each in found[:5]] == OTHERS[:5]
    assert isinstance(found[5], NoPanorama)
    assert found[5].item == OTHERS[5]
    assert instance.searches == [OTHERS[:6], *([each] for each in OTHERS[3:6])]


def test_an_id_that_spoils_a_search_fails_alone(monkeypatch, answer):
    instance = Instance(answer, OTHERS[:2])
    first, bad, last = instance.fetch(monkeypatch, [OTHERS[0], "bad", OTHERS[1]])
    assert [first.pano_id, last.pano_id] == OTHERS[:2]
    assert isinstance(bad, NoPanorama)
    assert bad.item == "bad"


@pytest.mark.parametrize("change", [{"geometry": None}, {"properties": {"geovisio:status": 3}}, {"assets": {"sd": 1}}])
def test_a_malformed_item_fails_alone(monkeypatch, answer, change):
    instance = Instance(answer, OTHERS[:3])
    instance.changes[OTHERS[1]] = change
    first, bad, last = instance.fetch(monkeypatch, OTHERS[:3])
    assert [first.pano_id, last.pano_id] == [OTHERS[0], OTHERS[2]]
    assert (bad.outcome, bad.item) == (Outcome.DECODE_ERROR, OTHERS[1])
    assert len(instance.searches) == 1


def test_a_refresh_searches_together_and_asks_for_pictures_that_changed(monkeypatch, answer):
    instance = Instance(answer, OTHERS[:3])
    kept = instance.fetch(monkeypatch, OTHERS[:3], etag='"now"')
    assert [type(each) for each in kept] == [NotModified] * 3
    changed = instance.fetch(monkeypatch, OTHERS[:3], etag='"old"')
    assert [(each.pano_id, each.image, each.etag) for each in changed] == [(o, JPEG, '"now"') for o in OTHERS[:3]]
    assert instance.searches == [OTHERS[:3]] * 2
    assert sorted(instance.conditions) == ['"now"'] * 3 + ['"old"'] * 3


def test_answers_for_several_are_those_for_each(answer):
    other = {**answer["features"][0], "id": "other"}
    again = {**answer["features"][0], "again": True}
    mixed = {"features": [None, {"id": [ID]}, {"id": "stranger"}, other, *answer["features"], again]}
    assert split(mixed, [ID, "other", "missing"]) == {
        "other": {"features": [other]},
        ID: {"features": answer["features"]},
    }
    with pytest.raises(FetchError, match="features"):
        split({}, [ID])


@given(junk())
def test_garbled_answers_for_several_raise_nothing_but_fetch_errors(value):
    try:
        assert set(split({"features": value}, [ID, "other"])) <= {ID, "other"}
    except FetchError as error:
        assert error.outcome is Outcome.DECODE_ERROR  # noqa: PT017 - only sometimes


def test_discovery(monkeypatch):
    tile = Tile(17087, 11276, 15)
    area = AreaOfInterest.from_bbox(
        *(edge + shift for edge, shift in zip(tile.bounds, (1e-4, 1e-4, 0.02, -1e-4), strict=True))
    )
    round_view = {"type": "equirectangular", "ts": "2022-05-30 17:23:19+00", "heading": 3}
    pictures = [
        (2000, 2000, {"id": "b", **round_view}),
        (2100, 2000, {"id": "a", **round_view}),
        (2200, 2000, {"id": "flat", **round_view, "type": "flat"}),
        (2300, 2000, {"id": "untold"}),
        (2400, 2000, {"id": 5, **round_view}),
        (5, 5, {"id": "outside", **round_view}),
    ]
    answers = {
        f"/api/map/{tile}.mvt": tile_of(*pictures),
        f"/api/map/15/{tile.x + 1}/{tile.y}.mvt": web.Response(status=204),
        f"/api/map/15/{tile.x + 2}/{tile.y}.mvt": b"<html>busy</html>",
    }

    async def work(source, http):
        found = [each async for each in source.discover(area, http)]
        return found, list(source.discovery(area).values())

    (found, announced), asked = serve(monkeypatch, answers, work)
    assert announced == [len(asked)]
    refs = [each for each in found if isinstance(each, PanoramaRef)]
    errors = [each for each in found if isinstance(each, FetchError)]
    assert [(ref.pano_id, ref.captured) for ref in refs] == [
        ("a", "2022-05-30T17:23:19Z"),
        ("b", "2022-05-30T17:23:19Z"),
    ]
    assert [error.item for error in errors] == [f"{tile}#4", f"15/{tile.x + 2}/{tile.y}"]
    assert len(asked) == 3
