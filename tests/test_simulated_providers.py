import asyncio
import base64
import hashlib
import hmac
import json
import math
import os
import signal
from contextlib import asynccontextmanager

import aiohttp
import cv2
import mapbox_vector_tile
import mercantile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvgl_data import simulated_providers as sim
from cvgl_data.errors import RecipeError
from cvgl_data.images import decode, image_size
from cvgl_data.panorama import View, from_tiles, from_views, north_align
from cvgl_data.simulated_providers import Coverage, Faults, SimulatedProviders
from cvgl_data.simulated_providers.cache import Cache
from cvgl_data.simulation import World
from cvgl_data.sources.simulated import SimulatedImagery, SimulatedPanoramas
from cvgl_data.types import BBox, Tile

BOX = BBox(-122.336, 47.605, -122.332, 47.608)
STATIONS = list(World(0).stations(BOX, 10.0))
NOWHERE = (0.0, 88.0)
OPTIONS = {"workers": 1, "panorama_width": 512, "holes": 0.0}
OAUTH = {"Authorization": f"OAuth {sim.MAPILLARY_TOKEN}"}


class Client:
    """A plain client: get returns status, headers, and the body, decoded if it is JSON."""

    def __init__(self, session, served):
        self.session = session
        self.served = served
        self.url = served.url

    def env(self, name):
        return self.served.environment[f"CVGL_{name}_URL"]

    async def ask(self, url, method="GET", headers=None, **options):
        url = url if url.startswith("http") else self.url + url
        async with self.session.request(method, url, headers=headers, **options) as response:
            return response.status, response.headers, await response.read()

    async def json(self, url, status=200, **options):
        found, headers, body = await self.ask(url, **options)
        assert found == status, (found, body[:300])
        assert "json" in headers["Content-Type"]
        return json.loads(body)

    async def image(self, url, **options):
        status, headers, body = await self.ask(url, **options)
        assert (status, headers["Content-Type"]) == (200, "image/jpeg"), body[:300]
        return body


@asynccontextmanager
async def running(**options):
    async with SimulatedProviders(**{**OPTIONS, **options}).serve() as served, aiohttp.ClientSession() as session:
        yield Client(session, served)


def serve_and(check, **options):
    async def run():
        async with running(**options) as client:
            return await check(client)

    return asyncio.run(run())


def key_of(lon, lat):
    return f"{round(lon * 1e7)}_{round(lat * 1e7)}"


def panorama(station, **options):
    """Return the panorama that the world shows there, by its own source."""

    async def run():
        source = SimulatedPanoramas(workers=1, width=OPTIONS["panorama_width"], **options)
        return await source.fetch(key_of(*station))

    return asyncio.run(run())


def psnr(a, b):
    return 10 * math.log10(255**2 / max(np.mean((a.astype(float) - b.astype(float)) ** 2), 1e-9))


# --- ids


positions = st.tuples(st.integers(-1_800_000_000, 1_800_000_000), st.integers(-900_000_000, 900_000_000))


@given(positions)
def test_ids_give_their_position_back(position):
    lon, lat = (part / 1e7 for part in position)
    uuid = sim.panoramax_id(lon, lat)
    assert sim.panoramax_position(uuid) == (lon, lat)
    assert (len(uuid), uuid[14], uuid[19] in "89ab") == (36, "4", True)
    google = sim.google_id(lon, lat)
    assert sim.google_position(google) == (lon, lat)
    assert len(google) == 22
    number = sim.mapillary_id(lon, lat)
    assert sim.mapillary_position(number) == (lon, lat)
    assert int(number) < 2**63


@given(st.text(max_size=40), st.integers(0, 35))
def test_other_texts_are_no_ids(text, at):
    for read in (sim.panoramax_position, sim.google_position):
        assert read(text) is None
    uuid = sim.panoramax_id(1.0, 2.0)
    if uuid[at] != "-":
        changed = uuid[:at] + ("0" if uuid[at] != "0" else "1") + uuid[at + 1 :]
        assert sim.panoramax_position(changed) is None
    google = sim.google_id(1.0, 2.0)
    assert sim.google_position(google[:-1] + chr(ord(google[-1]) + 1)) is None


def test_numbers_beyond_the_earth_are_no_ids():
    assert sim.mapillary_position(str(2**63)) is None
    assert sim.mapillary_position("12a") is None


# --- faults


def test_faults_are_read_from_text():
    faults = Faults.parse("rate_limited=0.05, unavailable=0.03,latency_ms=20,retry_after_s=2,only=wayback+esri")
    expected = Faults(rate_limited=0.05, unavailable=0.03, latency_ms=20, retry_after_s=2, only="wayback+esri")
    assert faults == expected
    assert Faults.parse("") == Faults()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate_limitd=0.1", "did you mean 'rate_limited'"),
        ("rate_limited", "needs one value"),
        ("stall=1,stall=0", "needs one value"),
        ("stall=x", "must be a number"),
        ("retry_after_s=0.5", "a whole number"),
        ("stall=1.5", "from 0 to 1"),
        ("stall=nan", "from 0 to 1"),
        ("stall=0.6,html=0.6", "more than 1"),
        ("only=waybak", "did you mean 'wayback'"),
        ("latency_ms=-1", "0 or more"),
    ],
)
def test_wrong_faults_are_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        Faults.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holes": 1.5}, "holes"),
        ({"date": "June"}, "date"),
        ({"panorama_width": 31}, "width"),
        ({"releases": ()}, "empty"),
        ({"releases": (("2022-01-01", 1), ("2022-01-02", 1))}, "twice"),
        ({"releases": (("soon", 1),)}, "like 2023-06-15"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        SimulatedProviders(**options)


def test_faults_come_as_often_as_asked_and_end_as_they_should():
    """Every tile is asked for twice; each fault's count follows from the seed alone."""
    faults = Faults(
        rate_limited=0.1,
        unavailable=0.1,
        truncated=0.1,
        not_found=0.1,
        placeholder=0.1,
        wrong_size=0.1,
        error_in_200=0.1,
    )
    tiles = [Tile(41990 * 16 + x, 91530 * 16 + y, 22) for x in range(6) for y in range(6)]

    async def check(client):
        ends, base = {}, client.env("ESRI")
        for _attempt in (0, 1):
            for tile in tiles:
                try:
                    answer = await client.ask(f"{base}/tile/{tile.z}/{tile.y}/{tile.x}?blankTile=false")
                except aiohttp.ClientPayloadError:
                    answer = "truncated"
                ends.setdefault(tile, []).append(answer)
        return ends, client.served.stats(), client.served.log

    ends, stats, log = serve_and(check, faults=faults, seed=3)
    drawn = {tile: faults.pick(3, "esri", _esri_path(tile), "tile") for tile in tiles}
    expected = {name: list(drawn.values()).count(name) for name in set(drawn.values()) - {""}}
    permanent = ("not_found", "placeholder", "wrong_size", "error_in_200")
    assert stats["faults"] == {n: c * (2 if n in permanent else 1) for n, c in sorted(expected.items())}
    assert len(expected) == 7
    assert len(log) == 72
    for tile, name in drawn.items():
        first, second = ends[tile]
        again = first if name in permanent else second
        if name in permanent:
            assert (first[0], first[2]) == (second[0], second[2])
        else:
            assert image_size(second[2]) == (256, 256)
        match name:
            case "rate_limited":
                assert first[0] == 429
                assert first[1]["Retry-After"] == "1" or first[1]["Retry-After"].endswith("GMT")
            case "unavailable":
                assert first[0] == 503
            case "truncated":
                assert first == "truncated"
            case "not_found":
                assert again[0] == 404
            case "placeholder":
                assert (again[0], again[2]) == (200, sim.PLACEHOLDER)
            case "wrong_size":
                assert image_size(again[2]) == (128, 128)
            case "error_in_200":
                assert (again[0], "error" in json.loads(again[2])) == (200, True)
            case _:
                assert image_size(first[2]) == (256, 256)


def _esri_path(tile):
    return f"/arcgis/rest/services/World_Imagery/MapServer/tile/{tile.z}/{tile.y}/{tile.x}"


def test_retry_after_comes_in_both_forms():
    async def check(client):
        answers = [await client.ask(f"/wayback/tile/10/9/{y}/1") for y in range(20)]
        assert {status for status, _, _ in answers} == {429}
        return {headers["Retry-After"][-3:] for _, headers, _ in answers}

    assert serve_and(check, faults=Faults(rate_limited=1, retry_after_s=7)) == {"7", "GMT"}


def test_faults_can_be_limited_to_a_provider_and_meet_only_what_they_fit():
    async def check(client):
        wayback, _, _ = await client.ask("/wayback/tile/10/9/1/1?blankTile=false")
        config, headers, _ = await client.ask(client.env("WAYBACK_CONFIG"))
        return wayback, config, headers["Content-Type"]

    assert serve_and(check, faults=Faults(unavailable=1, only="wayback")) == (503, 200, "application/json")
    wayback, config, kind = serve_and(check, faults=Faults(html=1))
    assert (wayback, config) == (200, 200)
    assert kind.startswith("text/html")


def test_a_stall_ends_the_connection_and_does_not_keep_the_server():
    async def check(client):
        began = asyncio.get_running_loop().time()
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.session.post(client.env("GOOGLE_TILES") + "/v1/createSession")
        assert 0.15 < asyncio.get_running_loop().time() - began < 5
        return client.served.log[0]

    request = serve_and(check, faults=Faults(stall=1, stall_s=0.2))
    assert (request.status, request.fault, request.provider) == (0, "stall", "google-tiles")

    async def leave(client):
        with pytest.raises(TimeoutError):
            await client.ask("/wayback-config.json", timeout=aiohttp.ClientTimeout(total=0.2))
        return asyncio.get_running_loop().time()

    async def run():
        async with running(faults=Faults(stall=1, stall_s=300)) as client:
            left = await leave(client)
        return asyncio.get_running_loop().time() - left

    assert asyncio.run(run()) < 5


def test_latency_and_stats():
    async def check(client):
        began = asyncio.get_running_loop().time()
        await client.ask("/wayback-config.json")
        await client.ask("/esri/nothing?token=S3CR3T")
        assert asyncio.get_running_loop().time() - began >= 0.1
        assert (await client.ask("/unknown"))[0] == 404
        assert "S3CR3T" not in "".join(request.path for request in client.served.log)
        return await client.json("/stats")

    stats = serve_and(check, faults=Faults(latency_ms=50))
    assert stats["requests"] == {"esri": {"404": 1}, "wayback-config": {"200": 1}}
    assert stats["connections"]["total"] == 1
    assert stats["connections"]["open"] == 1


def test_serve_runs_until_it_is_interrupted():
    lines = []

    def announce(line):
        if not lines:
            os.kill(os.getpid(), signal.SIGINT)
        lines.append(line)

    sim.serve(SimulatedProviders(**OPTIONS), "127.0.0.1", 0, announce)
    assert lines[0].startswith("http://127.0.0.1:")
    assert f"export CVGL_PANORAMAX_URL={lines[0]}/panoramax/api" in lines
    assert len(lines) == 13


def test_a_port_in_use_is_one_clear_error():
    async def check(client):
        port = int(client.url.rpartition(":")[2])
        with pytest.raises(RecipeError, match="choose another port"):
            async with SimulatedProviders(**OPTIONS).serve(port=port):
                pass

    serve_and(check)


# --- Esri


TILE = Tile(41990, 91530, 18)


def test_live_tiles_are_those_of_the_simulated_source():
    async def check(client):
        url = f"{client.env('ESRI')}/tile/{TILE.z}/{TILE.y}/{TILE.x}?blankTile=false&token={sim.ESRI_TOKEN}"
        status, headers, body = await client.ask(url)
        assert (status, headers["Content-Type"]) == (200, "image/jpeg")
        expected = await SimulatedImagery(workers=1).fetch(TILE)
        assert body == expected.image
        same = await client.ask(url, headers={"If-None-Match": f'"other", {headers["ETag"]}'})
        assert (same[0], same[2], same[1]["ETag"]) == (304, b"", headers["ETag"])
        same = await client.ask(url, headers={"If-Modified-Since": headers["Last-Modified"]})
        assert same[0] == 304
        other = await client.ask(url, headers={"If-None-Match": '"other"'})
        assert (other[0], other[2]) == (200, body)
        assert headers["Last-Modified"] == "Thu, 15 Jun 2023 00:00:00 GMT"

    serve_and(check)


def test_missing_tiles_are_a_placeholder_or_not_found():
    assert len(sim.PLACEHOLDER) == 2521
    assert decode(sim.PLACEHOLDER).shape == (256, 256, 3)
    assert hashlib.md5(sim.PLACEHOLDER).hexdigest() == sim.PLACEHOLDER_MD5

    async def check(client):
        for base in (client.env("ESRI"), client.env("WAYBACK") + "/WMTS/1.0.0/default028mm/MapServer"):
            release = "" if base == client.env("ESRI") else "/10"
            status, headers, body = await client.ask(f"{base}/tile{release}/23/1/1")
            assert (status, headers["blank-tile"], headers["ETag"]) == (200, "true", '"vvvvvvvvvvvvf"')
            assert hashlib.sha256(body).hexdigest() == sim.PLACEHOLDER_SHA256
            status, headers, body = await client.ask(f"{base}/tile{release}/23/1/1?blankTile=false")
            assert (status, "blank-tile" in headers) == (404, False)
        status, _, _ = await client.ask("/wayback/tile/11/9/1/1")
        assert status == 404

    serve_and(check)


def test_tilemaps_say_which_tiles_exist():
    async def check(client):
        base = client.env("ESRI")
        left, top = TILE.x // 8 * 8, TILE.y // 8 * 8
        value = await client.json(f"{base}/tilemap/18/{top}/{left}/8/8?f=json")
        assert value["adjusted"] is False
        assert value["location"] == {"left": left, "top": top, "width": 8, "height": 8}
        coverage = Coverage(SimulatedProviders(**OPTIONS | {"holes": 0.3}))
        tiles = [Tile(left + i % 8, top + i // 8, 18) for i in range(64)]
        assert value["data"] == [int(coverage.exists(tile, None)) for tile in tiles]
        assert 30 < sum(value["data"]) < 60
        hole = tiles[value["data"].index(0)]
        assert (await client.ask(f"{base}/tile/18/{hole.y}/{hole.x}?blankTile=false"))[0] == 404
        # Clipped to the bundle of 128 x 128.
        row, column = 91530 // 128 * 128 + 126, 41990 // 128 * 128 + 120
        value = await client.json(f"{base}/tilemap/18/{row}/{column}/16/16?f=json")
        assert value["adjusted"] is True
        assert (value["location"]["width"], value["location"]["height"], len(value["data"])) == (8, 2, 16)
        status, headers, _ = await client.ask(f"{base}/tilemap/18/{row}/{column}/16/16")
        assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/html")
        value = await client.json(f"{base}/tilemap/23/0/0/8/8?f=json", status=422)
        assert value == {"error": {"code": 422, "message": "Tiles not present", "details": []}}

    serve_and(check, holes=0.3)


def test_tokens_are_checked_inside_a_success():
    async def check(client):
        base = client.env("ESRI")
        for path in (f"/tile/18/{TILE.y}/{TILE.x}?", "/tilemap/18/0/0/8/8?f=json&", "?f=json&", "/4/query?f=json&"):
            assert (await client.json(f"{base}{path}"))["error"]["code"] == 499
            assert (await client.json(f"{base}{path}token=wrong"))["error"]["code"] == 498
        assert "copyrightText" in await client.json(f"{base}?f=json&token={sim.ESRI_TOKEN}")

    serve_and(check, esri_token_required=True)


def test_the_service_describes_itself():
    async def check(client):
        for kind in ("json", "pjson"):
            status, _, body = await client.ask(f"{client.env('ESRI')}?f={kind}")
            assert status == 200
            assert "Vantor" in json.loads(body)["copyrightText"]
            assert json.loads(body)["maxRecordCount"] == 100
        _, headers, _ = await client.ask(client.env("ESRI"))
        assert headers["Content-Type"].startswith("text/html")

    serve_and(check)


FIELDS = "SRC_DATE,SRC_DATE2,SRC_RES,SRC_ACC,SAMP_RES,SRC_DESC,NICE_NAME,NICE_DESC,MinMapLevel,MaxMapLevel"


def test_footprints_at_a_point():
    async def check(client):
        lon, lat = TILE.center
        query = {
            "geometry": f"{lon},{lat}",
            "geometryType": "esriGeometryPoint",
            "inSR": "4326",
            "spatialRel": "esriSpatialRelIntersects",
            "outFields": FIELDS,
            "returnGeometry": "false",
            "f": "json",
        }
        url = f"{client.env('ESRI')}/4/query"
        value = await client.json(url, params=query)
        bands = [(f["attributes"]["MinMapLevel"], f["attributes"]["MaxMapLevel"]) for f in value["features"]]
        assert bands == [(0, 13), (14, 19), (20, 23)]
        attributes = value["features"][1]["attributes"]
        assert list(attributes) == FIELDS.split(",")
        assert (attributes["SRC_DATE"], attributes["SRC_DATE2"]) == (20230615, 1686787200000)
        assert "geometry" not in value["features"][0]
        assert await client.json(url, method="POST", data=query) == value
        for changed, code in (
            ({"outFields": "NOTHING"}, 400),
            ({"geometry": "1"}, 400),
            ({"geometry": "nan,1"}, 400),
            ({"geometry": "{}"}, 400),
            ({"inSR": "27700"}, 400),
            ({"geometry": ""}, 400),
        ):
            assert (await client.json(url, params=query | changed))["error"]["code"] == code
        mercator = mercantile.xy(lon, lat)
        point = {"x": mercator[0], "y": mercator[1], "spatialReference": {"wkid": 102100}}
        same = await client.json(url, params={**query, "inSR": "", "geometry": json.dumps(point)})
        assert same == value

    serve_and(check)


def test_footprints_of_an_area_come_a_hundred_at_a_time():
    async def check(client):
        url = f"{client.env('ESRI')}/4/query"
        query = {
            "geometry": "-122.5,47.5,-122.2,47.7",
            "geometryType": "esriGeometryEnvelope",
            "inSR": "4326",
            "outSR": "4326",
            "outFields": "*",
            "returnGeometry": "true",
            "f": "json",
        }
        value = await client.json(url, params=query)
        assert len(value["features"]) == 100
        assert value["exceededTransferLimit"] is True
        small = await client.json(url, params={**query, "geometry": "-122.336,47.605,-122.332,47.608"})
        assert "exceededTransferLimit" not in small
        for feature in small["features"]:
            ring = np.array(feature["geometry"]["rings"][0])
            assert (ring[0] == ring[-1]).all()
            (x1, y1), (x2, y2) = ring.min(0), ring.max(0)
            assert x1 <= -122.332
            assert x2 >= -122.336
            assert y1 <= 47.608
            assert y2 >= 47.605
            area = np.sum(ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1])
            assert area < 0  # clockwise
        meters = await client.json(url, params={**query, "outSR": "", "geometry": "-122.336,47.605,-122.332,47.608"})
        first = meters["features"][0]["geometry"]["rings"][0][0]
        assert first == pytest.approx(mercantile.xy(*small["features"][0]["geometry"]["rings"][0][0]))
        seen = [f["attributes"]["OBJECTID"] for f in value["features"]]
        more = await client.json(url, params={**query, "resultOffset": "100"})
        assert not set(seen) & {f["attributes"]["OBJECTID"] for f in more["features"]}

    serve_and(check)


# --- Wayback


def test_the_index_lists_releases_out_of_order_with_a_malformed_one():
    async def check(client):
        index = await client.json(client.env("WAYBACK_CONFIG"))
        assert sorted(index) == ["10", "239", "49059", "64001", "undefined"]
        entry = index["49059"]
        assert entry["itemTitle"] == "World Imagery (Wayback 2023-02-10)"
        assert entry["layerIdentifier"] == "WB_2023_R01"
        url = entry["itemURL"].replace("{level}", "18").replace("{row}", str(TILE.y)).replace("{col}", str(TILE.x))
        assert image_size(await client.image(url)) == (256, 256)
        assert entry["metadataLayerUrl"] == f"{client.url}/metadata/World_Imagery_Metadata_2023_r01/MapServer"

    serve_and(check)


def test_releases_show_the_day_on_which_a_tile_last_changed():
    """The tilemap's release, its size, the pixels and the metadata agree, over all releases of a few tiles."""
    ordered = sorted(SimulatedProviders().releases)
    days = {number: date for date, number in ordered}

    async def check(client):
        wayback = client.env("WAYBACK")
        kinds = set()
        for tile in (TILE, Tile(TILE.x + 70, TILE.y, 18), Tile(TILE.x, TILE.y + 70, 18)):
            bodies = {}
            for number in days:
                where = f"{number}/{tile.z}/{tile.y}/{tile.x}"
                value = await client.json(f"{wayback}/MapServer/tilemap/{where}")
                holder = value.get("select", [number])[0]
                assert (value["valid"], value["data"]) == (True, [1])
                assert days[holder] <= days[number]
                body = await client.image(f"{wayback}/WMTS/1.0.0/default028mm/MapServer/tile/{where}")
                assert value["size"] == [len(body)]
                assert bodies.setdefault(holder, body) == body
                captured = await self_captured(client, number, tile)
                assert captured == days[holder]
                kinds.add("select" in value)
            for holder, body in bodies.items():
                source = SimulatedImagery(workers=1, date=days[holder])
                assert (await source.fetch(tile)).image == body
            assert len(set(bodies.values())) == len(bodies)
        assert kinds == {True, False}

    async def self_captured(client, number, tile):
        index = await client.json(client.env("WAYBACK_CONFIG"))
        lon, lat = tile.center
        query = {
            "geometry": json.dumps({"x": lon, "y": lat, "spatialReference": {"wkid": 4326}}),
            "geometryType": "esriGeometryPoint",
            "outFields": "SRC_DATE2,NICE_DESC,SRC_DESC,SAMP_RES,SRC_ACC",
            "returnGeometry": "false",
            "f": "json",
        }
        value = await client.json(f"{index[str(number)]['metadataLayerUrl']}/5/query", params=query)
        assert len(value["features"]) == 1
        moment = value["features"][0]["attributes"]["SRC_DATE2"] / 1000
        return np.datetime64(int(moment), "s").astype("datetime64[D]").astype(str)

    serve_and(check)


def test_metadata_layers_follow_the_zoom():
    async def check(client):
        lon, lat = TILE.center
        query = {"geometry": f"{lon},{lat}", "geometryType": "esriGeometryPoint", "inSR": "4326"}
        query |= {"outFields": "MinMapLevel,MaxMapLevel", "returnGeometry": "false", "f": "json"}
        for layer in range(14):
            url = f"/metadata/World_Imagery_Metadata_2022_r01/MapServer/{layer}/query"
            (feature,) = (await client.json(url, params=query))["features"]
            low, high = feature["attributes"].values()
            assert low <= 23 - layer <= high
        world = query | {"geometryType": "esriGeometryEnvelope", "geometry": "-180,-85,180,85"}
        value = await client.json("/metadata/World_Imagery_Metadata_2022_r01/MapServer/13/query", params=world)
        assert len(value["features"]) == 100
        url = "/metadata/World_Imagery_Metadata_2022_r01/MapServer/14/query"
        assert "error" in await client.json(url, params=query)
        assert "error" in await client.json("/metadata/World_Imagery_Metadata_2001_r01/MapServer/5/query", params=query)

    serve_and(check)


def test_holes_go_back_to_where_a_tile_first_appears():
    coverage = Coverage(SimulatedProviders(**OPTIONS | {"holes": 0.1}))
    holders = [coverage.holder(Tile(41990 + x, 91530 + y, 18), 0) for x in range(30) for y in range(30)]
    latest = [coverage.holder(Tile(41990 + x, 91530 + y, 18), 3) for x in range(30) for y in range(30)]
    assert holders.count(None) > latest.count(None) > 50
    assert all(late is not None for early, late in zip(holders, latest, strict=True) if early is not None)


def test_a_tilemap_of_a_release_ends_with_zero():
    async def check(client):
        coverage = Coverage(SimulatedProviders(**OPTIONS | {"holes": 0.5}))
        tile = next(Tile(x, 91530, 18) for x in range(41990, 42090) if coverage.holder(Tile(x, 91530, 18), 3) is None)
        url = f"{client.env('WAYBACK')}/MapServer/tilemap/239/18/{tile.y}/{tile.x}"
        value = await client.json(url)
        assert value["data"] == [0]
        assert "size" not in value

    serve_and(check, holes=0.5)


# --- Panoramax


def test_panoramax_search_by_ids_box_and_place():
    async def check(client):
        api = client.env("PANORAMAX")
        box = ",".join(map(str, BOX))
        value = await client.json(f"{api}/search?bbox={box}&limit=1000")
        assert value["type"] == "FeatureCollection"
        found = {tuple(feature["geometry"]["coordinates"]): feature for feature in value["features"]}
        assert sorted(found) == sorted(STATIONS)
        few = await client.json(f"{api}/search?bbox={box}&limit=5")
        assert few["features"] == value["features"][:5]
        assert not any(link["rel"] == "next" for link in few["links"])
        assert len((await client.json(f"{api}/search?bbox={box}"))["features"]) == 10
        ids = [sim.panoramax_id(*station) for station in STATIONS[:3]]
        named = await client.json(f"{api}/search?ids={','.join(ids)},{sim.panoramax_id(*NOWHERE)}")
        assert [feature["id"] for feature in named["features"]] == ids
        lon, lat = STATIONS[0]
        near = await client.json(f"{api}/search?place_position={lon},{lat}&place_distance=0-30&limit=50")
        assert near["features"][0]["geometry"]["coordinates"] == [lon, lat]
        beyond = await client.json(f"{api}/search?place_position={lon},{lat}&place_distance=3-30&limit=50")
        assert beyond["features"] == [f for f in near["features"] if f["id"] != near["features"][0]["id"]]
        for interval, some in (("2023-06-15/..", True), ("2024-01-01/..", False), ("../2023-01-01", False)):
            answer = await client.json(f"{api}/search?bbox={box}&datetime={interval}")
            assert bool(answer["features"]) is some
        for wrong in ("bbox=1,2,3", "bbox=1,2,3,nan", "limit=0", "limit=1001", "place_position=1", "datetime=x"):
            answer = await client.json(f"{api}/search?{wrong}", status=400)
            assert answer["status_code"] == 400
        item = value["features"][0]
        assert await client.json(f"{api}/collections/{item['collection']}/items/{item['id']}") == item

    serve_and(check)


def test_panoramax_items_carry_poses_with_their_oddities():
    async def check(client):
        box = ",".join(map(str, BOX))
        value = await client.json(f"{client.env('PANORAMAX')}/search?bbox={box}&limit=1000")
        properties = [feature["properties"] for feature in value["features"]]
        azimuths = [entry["view:azimuth"] for entry in properties]
        assert 0 < sum(azimuth >= 360 for azimuth in azimuths) < len(azimuths) / 4
        unknown = [entry["pers:pitch"] is None for entry in properties]
        assert 0 < sum(unknown) < len(unknown) / 4
        assert len({entry["license"] for entry in properties}) > 1
        assert {entry["geovisio:status"] for entry in properties} == {"ready"}
        fields = {entry["pers:interior_orientation"]["field_of_view"] for entry in properties}
        assert fields == {360, 75}
        return value["features"]

    for feature in serve_and(check, tilt_deg=3.0)[:10]:
        truth = panorama_pose(feature["geometry"]["coordinates"], tilt_deg=3.0)
        entry = feature["properties"]
        assert entry["view:azimuth"] % 360.0 == pytest.approx(truth[0])
        if entry["pers:pitch"] is not None:
            assert (entry["pers:pitch"], entry["pers:roll"]) == truth[1:]
        assert entry["datetime"].startswith("2023-06-15T")


def panorama_pose(station, **options):
    found = panorama(station, **options)
    return found.heading_deg, found.pitch_deg, found.roll_deg


def test_panoramax_pictures_in_every_size():
    async def check(client):
        box = ",".join(map(str, BOX))
        value = await client.json(f"{client.env('PANORAMAX')}/search?bbox={box}&limit=100")
        kinds = {f["properties"]["pers:interior_orientation"]["field_of_view"]: f for f in value["features"]}
        assets = kinds[360]["assets"]
        truth = await SimulatedPanoramas(workers=1, width=512).fetch(key_of(*kinds[360]["geometry"]["coordinates"]))
        assert await client.image(assets["hd"]["href"]) == truth.image
        assert image_size(await client.image(assets["sd"]["href"])) == (2048, 1024)
        assert image_size(await client.image(assets["thumb"]["href"])) == (500, 250)
        status, headers, body = await client.ask(assets["thumb"]["href"].replace(".jpg", ".webp"))
        assert (status, headers["Content-Type"], image_size(body)) == (200, "image/webp", (500, 250))
        assert image_size(await client.image(kinds[75]["assets"]["sd"]["href"])) == (2048, 1536)
        status, headers, _ = await client.ask(assets["hd"]["href"])
        assert (await client.ask(assets["hd"]["href"], headers={"If-None-Match": headers["ETag"]}))[0] == 304
        gone = f"{client.env('PANORAMAX')}/pictures/{sim.panoramax_id(*NOWHERE)}/sd.jpg"
        assert (await client.json(gone, status=404))["status_code"] == 404

    serve_and(check)


def test_panoramax_vector_tiles_list_every_picture_within():
    tile = mercantile.tile(*STATIONS[0], 15)

    async def check(client):
        status, headers, body = await client.ask(f"{client.env('PANORAMAX')}/map/15/{tile.x}/{tile.y}.mvt")
        assert (status, "mapbox-vector-tile" in headers["Content-Type"]) == (200, True)
        empty = await client.ask(f"{client.env('PANORAMAX')}/map/14/{tile.x // 2}/{tile.y // 2}.mvt")
        assert (empty[0], empty[2]) == (200, b"")
        await client.json(f"{client.env('PANORAMAX')}/map/15/{2**15}/0.mvt", status=400)
        return body

    layers = mapbox_vector_tile.decode(serve_and(check), default_options={"y_coord_down": True})
    assert list(layers) == ["pictures"]
    bounds = mercantile.bounds(tile)
    inside = set(World(0).stations(BBox(*bounds), 10.0))
    found = {}
    for feature in layers["pictures"]["features"]:
        properties = feature["properties"]
        assert set(properties) == {"id", "account_id", "ts", "heading", "sequences", "type", "model", "resolution"}
        position = sim.panoramax_position(properties["id"])
        found[position] = feature["geometry"]["coordinates"]
        assert len(json.loads(properties["sequences"])) == 1
    assert inside < set(found)  # and those of the buffer
    for lon, lat in STATIONS[:20]:
        if (lon, lat) in inside:
            x, y = found[lon, lat]
            assert x / 4096 == pytest.approx((lon - bounds.west) / (bounds.east - bounds.west), abs=2e-4)
            assert y / 4096 == pytest.approx((bounds.north - lat) / (bounds.north - bounds.south), abs=2e-3)


# --- Mapillary


def test_mapillary_asks_for_its_token():
    async def check(client):
        graph = client.env("MAPILLARY_GRAPH")
        for headers in ({}, {"Authorization": "OAuth wrong"}, {"Authorization": f"Bearer {sim.MAPILLARY_TOKEN}"}):
            value = await client.json(f"{graph}/images?bbox=0,0,0.01,0.01", status=401, headers=headers)
            assert (value["error"]["code"], value["error"]["type"]) == (190, "OAuthException")
        tiles = client.env("MAPILLARY_TILES")
        assert (await client.ask(f"{tiles}/mly1_public/2/14/2624/5720"))[0] == 401
        assert (await client.ask(f"{tiles}/mly1_public/2/14/2624/5720?access_token=x"))[0] == 401

    serve_and(check)


def test_mapillary_entities_one_by_one_and_many():
    async def check(client):
        graph = client.env("MAPILLARY_GRAPH")
        ids = [sim.mapillary_id(*station) for station in STATIONS[:50]]
        one = await client.json(f"{graph}/{ids[0]}?fields=id,geometry,is_pano,thumb_2048_url", headers=OAUTH)
        assert set(one) == {"id", "geometry", "is_pano", "thumb_2048_url"}
        assert await client.json(f"{graph}/{ids[0]}", headers=OAUTH) == {"id": ids[0]}
        many = await client.json(f"{graph}/?ids={','.join(ids)}&fields=computed_rotation,sequence", headers=OAUTH)
        assert set(many) == set(ids)
        without = [row for row in many.values() if "computed_rotation" not in row]
        assert 0 < len(without) < 25
        value = await client.json(f"{graph}/images?image_ids={','.join(ids)}&fields=sequence", headers=OAUTH)
        assert [row["id"] for row in value["data"]] == ids
        await client.json(f"{graph}?ids={','.join(ids)},1", status=400, headers=OAUTH)
        value = await client.json(f"{graph}/{sim.mapillary_id(*NOWHERE)}", status=400, headers=OAUTH)
        assert (value["error"]["code"], value["error"]["error_subcode"]) == (100, 33)
        value = await client.json(f"{graph}/{ids[0]}?fields=height,nonsense", status=400, headers=OAUTH)
        assert "nonsense" in value["error"]["message"]

    serve_and(check)


def test_mapillary_search():
    async def check(client):
        search = f"{client.env('MAPILLARY_GRAPH')}/images?fields=id,is_pano,captured_at,geometry&bbox="
        box = ",".join(map(str, BOX))
        rows = (await client.json(f"{search}{box}", headers=OAUTH))["data"]
        assert {sim.mapillary_position(row["id"]) for row in rows} == set(STATIONS)
        panos = (await client.json(f"{search}{box}&is_pano=true", headers=OAUTH))["data"]
        assert panos == [row for row in rows if row["is_pano"]]
        assert 0 < len(panos) < len(rows)
        assert (await client.json(f"{search}{box}&limit=7", headers=OAUTH))["data"] == rows[:7]
        for bounds, some in (("start_captured_at=2023-06-16T00:00:00Z", False), ("end_captured_at=2023-06-16", True)):
            assert bool((await client.json(f"{search}{box}&{bounds}", headers=OAUTH))["data"]) is some
        full = (await client.json(f"{search}-122.34,47.6,-122.28,47.66", headers=OAUTH))["data"]
        assert len(full) == 2000
        for wrong in ("-122.4,47.5,-122.3,47.6", "1,2,3", f"{box}&limit=2001", "-122.2,47.5,-122.3,47.5"):
            assert (await client.json(f"{search}{wrong}", status=400, headers=OAUTH))["error"]["code"] == 100

    serve_and(check)


def test_mapillary_rotation_and_angles_agree_with_the_picture():
    """Stand the panorama upright by the rotation alone: it must be the one rendered level, facing north."""

    async def check(client):
        graph = client.env("MAPILLARY_GRAPH")
        fields = "computed_rotation,computed_compass_angle,computed_geometry,compass_angle,geometry,is_pano"
        ids = ",".join(sim.mapillary_id(*station) for station in STATIONS[:50])
        rows = await client.json(f"{graph}/?ids={ids}&fields={fields},thumb_original_url", headers=OAUTH)
        good = [row for row in rows.values() if "computed_rotation" in row and row["is_pano"]]
        for row in good:
            truth = row["computed_geometry"]["coordinates"]
            assert truth == list(sim.mapillary_position(row["id"]))
            assert 0 < mercantile.xy(*truth)[0] - mercantile.xy(*row["geometry"]["coordinates"])[0] + 5 < 10
        assert any(row["compass_angle"] != row["computed_compass_angle"] for row in good)
        row = good[0]
        return row, await client.image(row["thumb_original_url"])

    row, image = serve_and(check, tilt_deg=8.0, panorama_width=1024)
    turn, _ = cv2.Rodrigues(np.array(row["computed_rotation"]))
    forward = turn[2]  # the camera's z axis in the world: east, north, up
    heading_deg = math.degrees(math.atan2(forward[0], forward[1])) % 360
    pitch_deg = math.degrees(math.asin(forward[2]))
    level = np.array([math.cos(math.radians(heading_deg)), -math.sin(math.radians(heading_deg)), 0])
    roll_deg = math.degrees(math.atan2(-turn[0] @ np.cross(level, forward), turn[0] @ level))
    pose = panorama_pose(sim.mapillary_position(row["id"]), tilt_deg=8.0)
    assert (heading_deg, pitch_deg, roll_deg) == pytest.approx(pose, abs=1e-6)
    assert row["computed_compass_angle"] == pytest.approx(heading_deg, abs=1e-6)
    # The sphere itself: every pixel of the upright panorama, looked up through the rotation.
    pixels = decode(image)
    height, width = pixels.shape[:2]
    azimuth = (np.arange(width) + 0.5) / width * 2 * np.pi - np.pi
    elevation = (np.pi / 2 - (np.arange(height) + 0.5) / height * np.pi)[:, None]
    rays = np.stack(
        np.broadcast_arrays(np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth), np.sin(elevation))
    )
    x, y, z = np.tensordot(turn, rays, axes=1)
    u = (np.arctan2(x, z) / (2 * np.pi) + 0.5) * width - 0.5
    v = (0.5 + np.arcsin(np.clip(y, -1, 1)) / np.pi) * height - 0.5
    upright = cv2.remap(
        pixels, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    assert psnr(upright[2:-2], north_align(pixels, *pose)[2:-2]) > 40


def test_signed_addresses_expire():
    async def url_of(client):
        graph, image_id = client.env("MAPILLARY_GRAPH"), sim.mapillary_id(*STATIONS[0])
        row = await client.json(f"{graph}/{image_id}?fields=thumb_256_url", headers=OAUTH)
        return row["thumb_256_url"]

    async def check(client):
        url = await url_of(client)
        assert image_size(await client.image(url))[0] == 256
        assert (await client.ask(url.replace("oe=", "oe=1")))[0] == 403
        assert (await client.ask(url.partition("?")[0]))[0] == 403
        assert (await client.ask(url.replace("thumb_256", "thumb_2048")))[0] == 403

    serve_and(check)

    async def late(client):
        return (await client.ask(await url_of(client)))[0]

    assert serve_and(late, url_lifetime_s=-1.0) == 403

    async def refreshed(client):
        first = await url_of(client)
        statuses = [(await client.ask(first))[0], (await client.ask(first))[0]]
        return [*statuses, (await client.ask(await url_of(client)))[0]]

    assert serve_and(refreshed, faults=Faults(expired=1)) == [403, 403, 200]


def test_mapillary_vector_tiles():
    tile = mercantile.tile(*STATIONS[0], 14)

    async def check(client):
        base, query = client.env("MAPILLARY_TILES"), {"access_token": sim.MAPILLARY_TOKEN}
        bodies = []
        for tileset in ("mly1_public", "mly1_computed_public"):
            url = f"{base}/maps/vtp/{tileset}/2/14/{tile.x}/{tile.y}"
            status, _, body = await client.ask(url, params=query)
            assert status == 200
            bodies.append(body)
        return bodies

    everything, computed = (
        mapbox_vector_tile.decode(body, default_options={"y_coord_down": True})["image"]["features"]
        for body in serve_and(check, every_m=40.0)
    )
    assert 0 < len(computed) < len(everything)
    inside = set(World(0).stations(BBox(*mercantile.bounds(tile)), 40.0))
    assert {sim.mapillary_position(str(feature["properties"]["id"])) for feature in everything} == inside
    names = {"id", "sequence_id", "captured_at", "compass_angle", "is_pano"}
    assert {name for feature in everything for name in feature["properties"]} == names


# --- Google


def signed(path):
    secret = base64.urlsafe_b64decode(sim.GOOGLE_SIGNING_SECRET)
    digest = hmac.new(secret, path.encode(), hashlib.sha1).digest()
    return f"{path}&signature={base64.urlsafe_b64encode(digest).decode()}"


def test_google_static_metadata_statuses():
    async def check(client):
        lon, lat = STATIONS[0]
        url, pano = client.env("GOOGLE_STATIC") + "/metadata", sim.google_id(lon, lat)
        key = {"key": sim.GOOGLE_KEY}
        value = await client.json(url, params={"pano": pano, **key})
        assert value == {
            "copyright": "© Simulated World",
            "date": "2023-06",
            "location": {"lat": lat, "lng": lon},
            "pano_id": pano,
            "status": "OK",
        }
        near = await client.json(url, params={"location": f"{lat + 1e-5},{lon}", **key})
        assert near["status"] == "OK"
        for query, status in (
            ({"pano": sim.google_id(*NOWHERE)}, "ZERO_RESULTS"),
            ({"pano": "gone"}, "ZERO_RESULTS"),
            ({"location": f"{lat},{lon}", "radius": "0"}, "OK"),
            ({"location": f"{lat + 2e-6},{lon}", "radius": "0"}, "ZERO_RESULTS"),
            ({"location": "Pike Place"}, "NOT_FOUND"),
            ({"location": "95,0"}, "INVALID_REQUEST"),
            ({}, "INVALID_REQUEST"),
        ):
            assert (await client.json(url, params=query | key))["status"] == status, query
        for wrong in ({}, {"key": "x"}):
            assert (await client.json(url, params={"pano": pano, **wrong}))["status"] == "REQUEST_DENIED"

    serve_and(check)


def test_google_signatures_are_verified():
    async def check(client):
        pano = sim.google_id(*STATIONS[0])
        path = f"/google-static/maps/api/streetview?size=64x64&pano={pano}&heading=0&key={sim.GOOGLE_KEY}"
        good = signed(path)
        assert image_size(await client.image(good)) == (64, 64)
        assert (await client.ask(path))[0] == 403
        assert (await client.ask(good.replace("heading=0", "heading=1")))[0] == 403
        assert (await client.ask(good.replace(sim.GOOGLE_KEY, "other")))[0] == 403

    serve_and(check, google_signature_required=True)


def test_google_static_says_no_in_two_ways():
    async def check(client):
        url, key = client.env("GOOGLE_STATIC"), sim.GOOGLE_KEY
        lon, lat = STATIONS[0]
        nowhere = {"size": "80x60", "pano": sim.google_id(*NOWHERE), "key": key}
        gray = decode(await client.image(url, params=nowhere))
        assert gray.shape == (60, 80, 3)
        assert np.ptp(gray) == 0
        assert (await client.ask(url, params={**nowhere, "return_error_code": "true"}))[0] == 404
        here = {"size": "32x32", "location": f"{lat},{lon}", "key": key, "return_error_code": "true"}
        assert image_size(await client.image(url, params=here)) == (32, 32)
        for wrong in ({"size": "x"}, {"size": ""}, {"fov": "wide"}, {"pitch": "nan"}, {"location": ""}):
            assert (await client.ask(url, params=here | wrong))[0] == 400, wrong
        assert image_size(await client.image(url, params=here | {"size": "2000x100"})) == (640, 100)

    serve_and(check)


def test_six_static_views_make_the_panorama():
    async def check(client):
        views = []
        for heading, pitch in ((0, 0), (90, 0), (180, 0), (270, 0), (0, 90), (0, -90)):
            query = {"size": "320x320", "pano": sim.google_id(*STATIONS[0]), "heading": heading, "pitch": pitch}
            query |= {"fov": 90, "key": sim.GOOGLE_KEY, "return_error_code": "true"}
            body = await client.image(client.env("GOOGLE_STATIC"), params=query)
            views.append(View(decode(body), heading, pitch, 90))
        return views

    stitched = from_views(serve_and(check, tilt_deg=5.0, panorama_width=1024), 1024, 512)
    source = SimulatedPanoramas(workers=1, width=1024, tilt_deg=5.0)
    truth = asyncio.run(source.fetch(key_of(*STATIONS[0])))
    # Relative to the vehicle: turned north, but not upright.
    expected = north_align(decode(truth.image), truth.heading_deg)
    assert psnr(stitched, expected) > 28
    turned = [psnr(np.roll(stitched, columns, axis=1), expected) for columns in (-3, 3)]
    assert psnr(stitched, expected) > max(turned) + 3


async def session_of(client):
    body = {"mapType": "streetview", "language": "en-US", "region": "US"}
    url = f"{client.env('GOOGLE_TILES')}/v1/createSession?key={sim.GOOGLE_KEY}"
    return await client.json(url, method="POST", json=body)


def test_google_sessions():
    async def check(client):
        base, key = client.env("GOOGLE_TILES") + "/v1", f"key={sim.GOOGLE_KEY}"
        session = await session_of(client)
        assert (session["tileWidth"], session["tileHeight"], session["imageFormat"]) == (512, 512, "jpeg")
        assert int(session["expiry"]) > 1_700_000_000
        url = f"{base}/createSession"
        body = {"mapType": "streetview", "language": "en-US", "region": "US"}
        assert (await client.json(url, status=403, method="POST", json=body))["error"]["status"] == "PERMISSION_DENIED"
        await client.json(f"{url}?key=x", status=400, method="POST", json=body)
        await client.json(f"{url}?{key}", status=400, method="POST", json={"mapType": "streetview"})
        await client.json(f"{url}?{key}", status=400, method="POST", data=b"[")
        pano = sim.google_id(*STATIONS[0])
        value = await client.json(f"{base}/streetview/metadata?{key}&session=no&panoId={pano}", status=400)
        assert value["error"]["code"] == 400
        await client.json(f"{base}/streetview/metadata?{key}&panoId={pano}", status=400)

    serve_and(check)

    async def late(client):
        session = (await session_of(client))["session"]
        url = f"{client.env('GOOGLE_TILES')}/v1/streetview/metadata?key={sim.GOOGLE_KEY}&session={session}&panoId=x"
        return (await client.json(url, status=400))["error"]["message"]

    assert "expired" in serve_and(late, session_lifetime_s=-1.0)


def test_google_ids_at_locations_keep_their_order():
    async def check(client):
        query = f"key={sim.GOOGLE_KEY}&session={(await session_of(client))['session']}"
        url = f"{client.env('GOOGLE_TILES')}/v1/streetview/panoIds?{query}"
        here = [{"lat": lat, "lng": lon} for lon, lat in STATIONS[:3]]
        body = {"locations": [here[0], {"lat": 89.0, "lng": 0.0}, here[1], here[2]], "radius": 5}
        ids = (await client.json(url, method="POST", json=body))["panoIds"]
        assert ids[1] == ""
        assert [sim.google_position(ids[at]) for at in (0, 2, 3)] == STATIONS[:3]
        await client.json(url, status=400, method="POST", json={"locations": here * 34})
        for wrong in ({}, {"locations": []}, {"locations": [{"lat": 1}]}, {"locations": here, "radius": "far"}):
            await client.json(url, status=400, method="POST", json=wrong)

    serve_and(check)


def test_google_metadata_and_tiles_of_every_camera():
    async def check(client):
        query = {"key": sim.GOOGLE_KEY, "session": (await session_of(client))["session"]}
        base = client.env("GOOGLE_TILES") + "/v1/streetview"
        widths = {}
        for station in STATIONS[:80]:
            value = await client.json(f"{base}/metadata", params=query | {"panoId": sim.google_id(*station)})
            widths.setdefault(value["imageWidth"], (station, value))
        assert set(widths) == {13312, 16384, 3328}
        pixels = {}
        for width, level, across in ((13312, 2, 1664), (16384, 2, 2048), (3328, 2, 1664), (13312, 0, 416)):
            station, value = widths[width]
            assert (value["imageHeight"], value["tileWidth"]) == (width // 2, 512)
            at = query | {"panoId": value["panoId"]}
            columns, rows = -(-across // 512), -(-across // 1024)
            tiles = {}
            for x in range(columns):
                for y in range(rows):
                    tiles[x, y] = decode(await client.image(f"{base}/tiles/{level}/{x}/{y}", params=at))
                    assert tiles[x, y].shape == (512, 512, 3)
            for x, y in ((columns, 0), (0, rows)):
                await client.json(f"{base}/tiles/{level}/{x}/{y}", status=404, params=at)
            pixels[width, level] = from_tiles(tiles, across, across // 2)
            last = tiles[columns - 1, rows - 1]
            assert across % 512 == 0 or np.all(last[:, across % 512 + 16 :] < 8)  # padding is black
        station, value = widths[13312]
        deep = await client.image(f"{base}/tiles/5/25/12", params=query | {"panoId": value["panoId"]})
        assert image_size(deep) == (512, 512)
        at = query | {"panoId": widths[3328][1]["panoId"]}
        await client.json(f"{base}/tiles/4/0/0", status=404, params=at)
        thumbnail = await client.image(f"{base}/thumbnail", params=at | {"width": "300", "height": "200"})
        assert image_size(thumbnail) == (300, 200)
        await client.json(f"{base}/thumbnail", status=400, params=at | {"width": "601", "height": "200"})
        lon, lat = station
        near = await client.json(f"{base}/metadata", params=query | {"lat": str(lat), "lng": str(lon), "radius": "5"})
        assert near == value
        await client.json(f"{base}/metadata", status=404, params=query | {"panoId": sim.google_id(*NOWHERE)})
        await client.json(f"{base}/metadata", status=400, params=query | {"lat": "x"})
        return widths, pixels

    widths, pixels = serve_and(check, tilt_deg=5.0, panorama_width=1024)
    for (width, _), found in pixels.items():
        station, value = widths[width]
        source = SimulatedPanoramas(workers=1, width=1024, tilt_deg=5.0)
        truth = asyncio.run(source.fetch(key_of(*station)))
        assert value["heading"] == truth.heading_deg
        assert 90.0 - value["tilt"] == pytest.approx(truth.pitch_deg)
        assert value["roll"] == truth.roll_deg
        size = found.shape[1], found.shape[0]
        expected = cv2.resize(
            decode(truth.image), size, interpolation=cv2.INTER_AREA if size[0] < 1024 else cv2.INTER_LINEAR
        )
        assert psnr(found, expected) > 33
        for link in value["links"]:
            lon, lat = sim.google_position(link["panoId"])
            east, north = (lon - station[0]) * math.cos(math.radians(lat)), lat - station[1]
            assert math.degrees(math.atan2(east, north)) % 360 == pytest.approx(link["heading"], abs=0.01)


# --- all of it


def test_two_servers_answer_the_same():
    paths = (
        f"/esri/tile/18/{TILE.y}/{TILE.x}",
        f"/wayback/tile/10/18/{TILE.y}/{TILE.x}",
        "/wayback-config.json",
        f"/esri/tilemap/18/{TILE.y}/{TILE.x}/8/8?f=json",
        f"/panoramax/api/search?bbox={','.join(map(str, BOX))}&limit=20",
        f"/panoramax/api/pictures/{sim.panoramax_id(*STATIONS[0])}/sd.jpg",
        f"/google-static?size=64x64&heading=10&pano={sim.google_id(*STATIONS[0])}&key={sim.GOOGLE_KEY}",
        f"/mapillary-graph/{sim.mapillary_id(*STATIONS[0])}?access_token={sim.MAPILLARY_TOKEN}&fields=computed_rotation",
    )

    async def check(client):
        answers = [await client.ask(path) for path in paths]
        return [(status, body.replace(client.url.encode(), b"URL")) for status, _, body in answers]

    options = {"holes": 0.1, "faults": Faults(error_in_200=0.1, wrong_size=0.2)}
    first = serve_and(check, **options)
    assert serve_and(check, **options) == first
    assert serve_and(check, **options, seed=1) != first


def test_holes_hide_the_same_panoramas_everywhere_they_are_asked_for():
    async def check(client):
        box = ",".join(map(str, BOX))
        value = await client.json(f"{client.env('PANORAMAX')}/search?bbox={box}&limit=1000")
        found = {tuple(feature["geometry"]["coordinates"]) for feature in value["features"]}
        assert len(STATIONS) / 2 < len(found) < len(STATIONS)
        gone = next(station for station in STATIONS if station not in found)
        url = f"{client.env('PANORAMAX')}/pictures/{sim.panoramax_id(*gone)}/thumb.jpg"
        await client.json(url, status=404)

    serve_and(check, holes=0.2)


def test_one_picture_is_rendered_once_for_many_who_ask():
    async def check(client):
        url = f"{client.env('PANORAMAX')}/pictures/{sim.panoramax_id(*STATIONS[0])}/hd.jpg"
        bodies = await asyncio.gather(*(client.image(url) for _ in range(8)))
        assert len(set(bodies)) == 1

    serve_and(check)


def test_shares_of_faults_are_those_asked_for():
    faults = Faults(rate_limited=0.05, unavailable=0.03, truncated=0.02, not_found=0.02, placeholder=0.04)
    drawn = [faults.pick(0, "esri", f"/tile/18/{path // 64}/{path % 64}", "tile") for path in range(20_000)]
    for name in ("rate_limited", "unavailable", "truncated", "not_found", "placeholder"):
        share = getattr(faults, name)
        assert drawn.count(name) / 20_000 == pytest.approx(share, abs=4 * math.sqrt(share / 20_000))
    assert drawn != [faults.pick(1, "esri", f"/tile/18/{path // 64}/{path % 64}", "tile") for path in range(20_000)]
    # What does not fit the kind of answer is left out, not replaced.
    data = [faults.pick(0, "esri", f"/tile/18/{path // 64}/{path % 64}", "data") for path in range(20_000)]
    assert data == ["" if name in ("not_found", "placeholder") else name for name in drawn]


def test_the_cache_keeps_to_its_bytes_and_makes_nothing_twice_at_a_time():
    made = []

    async def make(key):
        made.append(key)
        await asyncio.sleep(0)
        if key == "bad":
            raise ValueError("bad")
        return key * 4

    async def check():
        cache = Cache(10, len)
        assert await asyncio.gather(*(cache.get("a", lambda: make("a")) for _ in range(3))) == ["aaaa"] * 3
        await cache.get("b", lambda: make("b"))
        await cache.get("a", lambda: make("a"))  # used again: b is the oldest now
        await cache.get("c", lambda: make("c"))
        assert made == ["a", "b", "c"]
        await cache.get("a", lambda: make("a"))
        await cache.get("b", lambda: make("b"))
        assert made == ["a", "b", "c", "b"]
        for _ in range(2):  # a failure is not kept
            with pytest.raises(ValueError, match="bad"):
                await cache.get("bad", lambda: make("bad"))
        assert made.count("bad") == 2
        leaving = asyncio.ensure_future(cache.get("long", lambda: make("long")))
        staying = asyncio.ensure_future(cache.get("long", lambda: make("long")))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == "long" * 4
        assert made.count("long") == 1
        await cache.close()

    asyncio.run(check())


def test_a_changed_picture_id_or_none_is_never_an_internal_error():
    """Whatever is asked for, the answer is one of the provider's own."""
    paths = (
        "/esri/tile/999999999/1/1",
        "/esri/tile/18/x/1",
        "/esri/tilemap/18/0/0/0/0?f=json",
        "/esri/4/query?f=json&geometry=1e400,1&geometryType=esriGeometryPoint&inSR=4326",
        '/esri/4/query?f=json&geometry=[1]&geometryType=esriGeometryEnvelope&inSR={"wkid":[]}',
        "/esri/4/query?f=json&geometry=0,0,1,1&resultOffset=99999999999999999999&inSR=4326",
        "/esri/4/query?f=kml&geometry=0,0,1,1&inSR=4326",
        "/wayback/tile/10/99/0/0",
        "/metadata/x/MapServer/5/query",
        "/panoramax/api/search?ids=,,x&limit=1",
        "/panoramax/api/search?bbox=0,0,0,91",
        "/panoramax/api/search?place_position=0,0&place_distance=a-b",
        "/panoramax/api/search?datetime=2023-01-01T00:00:00/..",
        "/panoramax/api/map/15/0/0.mvt",
        "/panoramax/api/map/99/0/0.mvt",
        "/panoramax/api/pictures/------------------------------------/sd.jpg",
        f"/mapillary-graph/0?access_token={sim.MAPILLARY_TOKEN}",
        f"/mapillary-graph/?ids=,&access_token={sim.MAPILLARY_TOKEN}",
        f"/mapillary-graph/images?bbox=0,0,0,0&access_token={sim.MAPILLARY_TOKEN}",
        "/mapillary-cdn/1/thumb_256_url.jpg?oe=zz&_nc=1&oh=1",
        "/mapillary-cdn/1/thumb_256_url.jpg?oe=1&_nc=1&oh=ä",
        f"/google-static?size=0x0&pano=x&key={sim.GOOGLE_KEY}",
        f"/google-static?size=10x10&location=90,180&key={sim.GOOGLE_KEY}",
        f"/google-static/metadata?location=0,0&radius=-1&key={sim.GOOGLE_KEY}",
        "/google-static/metadata?pano=ä&key=1&signature=ä",
        f"/google-static/metadata?pano=x&key={sim.GOOGLE_KEY}&signature=%C3%A4",
        "/google-tiles/v1/streetview/tiles/5/0/0?key=1&session=2",
        "/%00/%ff",
        "/esri/%ff",
    )

    async def check(client):
        return {path: (await client.ask(path))[0] for path in paths}

    statuses = serve_and(check)
    assert {path: status for path, status in statuses.items() if status >= 500} == {}
