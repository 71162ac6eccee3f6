"""Wayback releases, and every JSON answer of the Esri services, whole and garbled."""

import asyncio
import copy
import datetime
import itertools
import json
import math
import random

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources_esri import JPEG, JSON_TYPE, TILE, around, fetch, index, run, square

from cvgl_data.errors import FetchError, NoImagery, RecipeError, SourceStopped
from cvgl_data.sources.esri import EsriWayback
from cvgl_data.sources.esri.footprints import Capture, Footprints, parse_footprints
from cvgl_data.sources.esri.once import Once
from cvgl_data.sources.esri.refusals import tile_trouble
from cvgl_data.sources.esri.releases import Release, choose_release, parse_index
from cvgl_data.sources.esri.tilemap import UNKNOWN, Availability, parse_block
from cvgl_data.types import BBox, Fetched, LonLat, Outcome, Tile

NAMED = {"source": "esri", "item": "test"}


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads((golden / "api" / "esri" / "waybackdevconfig.json").read_bytes())


def test_the_recorded_index_sorts_by_date_and_not_by_number(recorded):
    releases = parse_index(recorded, **NAMED)
    assert len(releases) == len(recorded) == 109
    dates = [release.date for release in releases]
    assert dates == sorted(dates)
    assert (releases[0].date, releases[0].number) == ("2014-02-20", 10)
    newest = max(recorded.items(), key=lambda entry: entry[1]["itemTitle"])
    assert (str(releases[-1].number), f"World Imagery (Wayback {dates[-1]})") == (newest[0], newest[1]["itemTitle"])
    numbers = [release.number for release in releases]
    assert numbers != sorted(numbers)
    assert all(release.metadata_url.endswith("/MapServer") for release in releases)


def test_a_date_between_releases_is_the_one_before(recorded):
    releases = parse_index(recorded, **NAMED)
    for before, after in itertools.pairwise(releases):
        day = datetime.date.fromisoformat(after.date)
        assert choose_release(releases, after.date) is after
        assert choose_release(releases, (day - datetime.timedelta(1)).isoformat()) is before
    assert choose_release(releases) is choose_release(releases, "2999-12-31") is releases[-1]
    with pytest.raises(RecipeError, match=f"2014-02-19.* from 2014-02-20 to {releases[-1].date}"):
        choose_release(releases, "2014-02-19")


def test_damaged_entries_are_left_out():
    good = index("http://h")["10"]
    entries = {
        "10": good,
        "-10": good,
        "1e3": good,
        "²": good,
        "11": {**good, "itemURL": good["itemURL"].replace("/10/", "/12/")},
        "12": {**good, "itemURL": good["itemURL"].replace("/10/", "/12/"), "itemTitle": "World Imagery"},
        "13": {
            **good,
            "itemURL": good["itemURL"].replace("/10/", "/13/"),
            "itemTitle": "World Imagery (Wayback 2021-02-29)",
        },
        "14": {key: value for key, value in good.items() if key != "itemURL"},
        "15": None,
        "16": [],
        "17": "World Imagery (Wayback 2021-02-28)",
        "18": {"itemURL": 5, "itemTitle": None},
        "19": {
            **good,
            "itemURL": good["itemURL"].replace("/10/", "/19/"),
            "metadataLayerUrl": "javascript:alert(1)",
        },
        "20": {**good, "itemURL": good["itemURL"].replace("/10/", "/20/"), "metadataLayerUrl": "http://[oops"},
    }
    assert parse_index(entries, **NAMED) == [
        Release("2014-02-20", 10, "http://h/metadata_r01/MapServer"),
        Release("2014-02-20", 19, ""),
        Release("2014-02-20", 20, ""),
    ]


def test_pin_names_the_release_and_fetch_uses_it(monkeypatch):
    async def work(server, http):
        pins = []
        for release in ("", "2026-05-27", datetime.date(2026, 4, 30), "2020-01-01"):
            source = EsriWayback(release=release)
            pins.append((await source.pin(http))["release"])
            (fetched,) = await fetch(source, [TILE], http)
            assert fetched.release == pins[-1]
        with pytest.raises(RecipeError, match="2014-02-20 to 2026-05-28"):
            await EsriWayback(release="2013-01-01").pin(http)
        return pins, server

    pins, server = run(monkeypatch, work)
    assert pins == ["2026-05-28", "2026-04-30", "2026-04-30", "2014-02-20"]
    assert server.asked["/index.json"] == 5
    tail = f"18/{TILE.y}/{TILE.x}"
    base = "/wayback/WMTS/1.0.0/default028mm/MapServer/tile"
    assert [server.asked[f"{base}/{number}/{tail}"] for number in (10842, 49059, 10)] == [1, 2, 1]
    assert server.asked["/metadata_r05/MapServer/5/query"] == 1


@pytest.mark.parametrize("value", [[], {}, {"10": {}}, {"a": math.nan}, "<html>", None])
def test_without_an_index_nothing_goes_on(monkeypatch, value):
    async def work(server, http):
        server.index = value
        results = await fetch(EsriWayback(), around(TILE), http)
        return results, server.asked["/index.json"], server.count("/tile")

    results, asked, tiles = run(monkeypatch, work)
    assert all(isinstance(result, SourceStopped) for result in results)
    assert {result.outcome for result in results} == {Outcome.DECODE_ERROR}
    assert (asked, tiles) == (1, 0)


@pytest.mark.parametrize("status", [400, 404])
def test_a_wayback_that_does_not_understand_blocks_is_no_reason_to_warn(monkeypatch, caplog, status):
    async def work(server, http):
        server.tilemap = lambda first, size, release: (status, b"<html>")
        source = EsriWayback(captures=False)
        tiles = [Tile(TILE.x + 8 * column, TILE.y, 18) for column in range(4)]
        results = [await source.fetch(tile, http) for tile in tiles]
        source.close()
        return results, server.count("tilemap")

    results, asked = run(monkeypatch, work)
    assert [type(result) for result in results] == [Fetched] * 4
    assert asked == 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("slip", [b"<html>busy</html>", {"error": {"code": 503, "message": "busy"}}])
def test_what_comes_once_in_place_of_an_answer_is_a_slip(monkeypatch, slip):
    async def work(server, http):
        slipped = set()

        def slips(name, value):
            """Return the slip the first time something is asked for."""
            first = name not in slipped
            slipped.add(name)
            return slip if first else value

        index_value, block = server.index, server.block
        whole = {"features": [square(Tile(TILE.x >> 6, TILE.y >> 6, 12), 0, field="SAMP_RES")]}
        server.index = lambda: slips("index", index_value)
        server.tilemap = lambda *asked: (200, slips("tilemap", block(*asked)[1]))
        server.query = lambda request, layer: (200, slips("query", whole))
        server.missing = {Tile(TILE.x + 1, TILE.y, 18)}
        source = EsriWayback()
        source.recheck_wait_s = 0.0
        assert await source.read_attribution(http) == source.attribution == "Esri and many others"
        return await fetch(source, around(TILE), http), server

    results, server = run(monkeypatch, work)
    assert {result.captured for result in results if isinstance(result, Fetched)} == {"1970-01-01"}
    assert (server.asked["/index.json"], server.count("tilemap"), server.count("query")) == (2, 2, 2)
    assert (server.count("/tile/"), server.asked["/live/MapServer"]) == (63, 1)


@pytest.mark.parametrize(("zoom", "layer"), [(24, 0), (23, 0), (22, 1), (18, 5), (12, 11), (10, 13), (9, 13), (2, 13)])
def test_the_metadata_layer_follows_the_zoom(monkeypatch, zoom, layer):
    async def work(server, http):
        tile = Tile(TILE.x << zoom >> 18, TILE.y << zoom >> 18, zoom)
        feature = square(tile, 1714608000000, gsd_m=0.075, provider="Nearmap", field="SAMP_RES")
        server.query = lambda request, asked: (200, {"features": [feature] if asked == str(layer) else []})
        (fetched,) = await fetch(EsriWayback(tilemap="off"), [tile], http)
        query = next(request.query for request in server.requests if request.path.endswith("query"))
        edges = tuple(map(float, query["geometry"].split(",")))
        return fetched, edges, tile

    fetched, (west, south, east, north), tile = run(monkeypatch, work)
    assert (fetched.captured, fetched.provider, fetched.source_gsd_m) == ("2024-05-02", "Nearmap", 0.075)
    assert west - 1e-8 <= tile.center.lon <= east
    assert south <= tile.center.lat <= north + 1e-8


def with_source(server, sizes=None):
    """The documented answers: one tile each, with the release that holds it and the number of its bytes."""

    def answer(first, size, release):
        at = {"left": first.x, "top": first.y, "width": 1, "height": 1}
        if first in server.missing:
            return 200, {"valid": True, "data": [0], "location": at}
        value = {"valid": True, "data": [1], "location": at, "size": [(sizes or {}).get(first, len(JPEG))]}
        return 200, value if first.x % 2 else value | {"select": [49059]}

    server.tilemap = answer


def test_one_tile_answers_end_the_blocks_unless_asked_for_per_tile(monkeypatch):
    async def work(server, http):
        with_source(server)
        server.missing = {Tile(TILE.x + 1, TILE.y, 18)}
        results = {}
        for mode in ("block", "tile", "off"):
            before = server.count("tilemap"), server.count("/tile/")
            source = EsriWayback(tilemap=mode, captures=False)
            source.recheck_wait_s = 0.0
            first = await source.fetch(TILE, http)
            rest = await fetch(source, [tile for tile in around(TILE, 16) if tile != TILE], http)
            asked = server.count("tilemap") - before[0], server.count("/tile/") - before[1]
            results[mode] = ([first, *rest], asked)
        return results

    results = run(monkeypatch, work)
    assert {mode: asked for mode, (_, asked) in results.items()} == {
        "block": (1, 256),
        "tile": (256, 255),
        "off": (0, 256),
    }
    for found, _ in results.values():
        assert sum(isinstance(result, NoImagery) for result in found) == 1
    sources = {
        mode: {result.release_source for result in found if isinstance(result, Fetched)}
        for mode, (found, _) in results.items()
    }
    assert sources == {"block": {""}, "tile": {"2026-04-30", "2026-05-28"}, "off": {""}}


def test_blocks_with_releases_and_sizes_are_used_where_they_come(monkeypatch):
    async def work(server, http):
        def answer(first, size, release):
            at = {"left": first.x, "top": first.y, "width": 8, "height": 8}
            select = [49059, 10, None, 77777, 10842, 0, -1, 10] * 8
            data = [1] * 63 + [0]
            return 200, {"valid": True, "data": data, "location": at, "select": select, "size": [len(JPEG)] * 64}

        server.tilemap = answer
        return await fetch(EsriWayback(captures=False), around(TILE), http), server

    results, server = run(monkeypatch, work)
    row = [result.release_source for result in results[:8]]
    assert row == ["2026-04-30", "2014-02-20", "", "", "2026-05-28", "", "", "2014-02-20"]
    assert isinstance(results[-1], NoImagery)
    assert (server.count("tilemap"), server.count("/tile/")) == (1, 63)


def test_nothing_there_is_believed_only_of_a_service_that_knows_blocks(monkeypatch):
    async def work(server, http):
        empty = Tile(TILE.x + 8, TILE.y, 18)
        server.missing = {*around(empty), *around(Tile(TILE.x + 16, TILE.y, 18))}
        source = EsriWayback(captures=False)
        source.recheck_wait_s = 0.0
        counts = []
        for tile in (empty, TILE, Tile(TILE.x + 16, TILE.y, 18)):
            (result,) = await asyncio.gather(source.fetch(tile, http), return_exceptions=True)
            counts.append((isinstance(result, NoImagery), server.count("/tile/")))
        source.close()
        return counts

    assert run(monkeypatch, work) == [(True, 1), (False, 2), (True, 2)]


def test_a_body_of_another_size_is_asked_for_again(monkeypatch):
    short, other = JPEG[:-100], JPEG + b"\0"

    async def work(server, http):
        tiles = [Tile(TILE.x + i, TILE.y, 18) for i in range(3)]
        with_source(server)
        bodies = [[short, JPEG], [short, JPEG[:-200]], [other]]
        server.tiles = {
            tile: [(200, "image/jpeg", body, {}) for body in row] for tile, row in zip(tiles, bodies, strict=True)
        }
        return await fetch(EsriWayback(tilemap="tile", captures=False), tiles, http)

    healed, failed, stale = run(monkeypatch, work)
    assert healed.image == JPEG
    assert failed.outcome is Outcome.TRUNCATED
    assert stale.image == other  # the tilemap is out of date: it must not lose tiles


def test_sizes_that_are_always_wrong_stop_costing_requests(monkeypatch):
    async def work(server, http):
        tiles = around(TILE)
        with_source(server, dict.fromkeys(tiles, 7))
        source = EsriWayback(tilemap="tile", captures=False)
        source.recheck_wait_s = 0.0
        for tile in tiles:
            await source.fetch(tile, http)
        source.close()
        return server.count("/tile/")

    assert run(monkeypatch, work) == 64 + 3


@pytest.mark.parametrize("zoom", [0, 1, 5, 11, 12, 13, 20])
def test_a_centre_on_the_edge_of_its_block_has_its_capture(monkeypatch, zoom):
    rng = random.Random(zoom)
    tiles = [Tile(rng.randrange(2**zoom), rng.randrange(2**zoom), zoom) for _ in range(20)]

    async def work(server, http):
        world = feature([box_ring(-180, -90, 180, 90)], SRC_DATE2=0)
        server.query = lambda request, layer: (200, {"features": [world]})
        return await fetch(EsriWayback(tilemap="off"), tiles, http)

    assert {result.captured for result in run(monkeypatch, work)} == {"1970-01-01"}


BOUNDS = BBox(0.0, 0.0, 10.0, 10.0)


def box_ring(west, south, east, north, *, clockwise=True):
    ring = [[west, south], [west, north], [east, north], [east, south], [west, south]]
    return ring if clockwise else ring[::-1]


def feature(rings, **attributes):
    return {"attributes": attributes, "geometry": {"rings": rings}}


def captures_of(*features, gsd_field="SRC_RES"):
    return Footprints(parse_footprints({"features": list(features)}, BOUNDS, gsd_field=gsd_field, **NAMED)[0])


@pytest.mark.parametrize("clockwise", [True, False])
def test_holes_islands_and_parts(clockwise):
    rings = [
        box_ring(0, 0, 4, 4),
        box_ring(1, 1, 3, 3, clockwise=not clockwise),
        box_ring(1.8, 1.8, 2.2, 2.2, clockwise=clockwise),
        box_ring(6, 6, 9, 9, clockwise=clockwise),
    ]
    for turn in range(4):
        found = captures_of(feature(rings[turn:] + rings[:turn], SRC_DATE2=0))
        inside = [bool(found.at(LonLat(at, at)).captured) for at in (0.5, 1.5, 2, 2.5, 3.5, 5, 7, 9.5)]
        assert inside == [True, False, True, False, True, False, True, False]


def test_the_finest_footprint_counts_then_the_newest():
    day_ms = 86_400_000
    found = captures_of(
        feature([box_ring(0, 0, 9, 9)], SRC_DATE2=9 * day_ms, NICE_DESC="no resolution"),
        feature([box_ring(0, 0, 8, 8)], SRC_DATE2=8 * day_ms, SRC_RES=0.5),
        feature([box_ring(0, 0, 6, 6)], SRC_DATE2=1 * day_ms, SRC_RES=0.3),
        feature([box_ring(0, 0, 5, 5)], SRC_DATE2=2 * day_ms, SRC_RES=0.3),
        feature([box_ring(0, 0, 1, 1)], SRC_DATE2=3 * day_ms, SRC_RES=0.1, MinMapLevel=19, MaxMapLevel=20),
    )
    days = [found.at(LonLat(at, at), 18).captured[-2:] for at in (8.5, 7.5, 5.5, 4.5, 0.5)]
    assert days == ["10", "09", "02", "03", "03"]
    assert [found.at(LonLat(0.5, 0.5), zoom).gsd_m for zoom in (18, 19, 20, 21)] == [0.3, 0.1, 0.1, 0.3]
    assert found.at(LonLat(8.5, 8.5)).provider == "no resolution"
    assert found.at(LonLat(9.5, 9.5)) == Capture()


@pytest.mark.parametrize(
    ("fields", "captured"),
    [
        ({"SRC_DATE2": 1714608000000}, "2024-05-02"),
        ({"SRC_DATE2": 1714694399999}, "2024-05-02"),
        ({"SRC_DATE2": -86_400_000}, "1969-12-31"),
        ({"SRC_DATE2": None, "SRC_DATE": 20240502}, "2024-05-02"),
        ({"SRC_DATE2": "1714608000000"}, ""),
        ({"SRC_DATE2": True}, ""),
        ({"SRC_DATE2": math.nan, "SRC_DATE": 20240230}, ""),
        ({"SRC_DATE2": math.inf}, ""),
        ({"SRC_DATE2": 10**400}, ""),
        ({"SRC_DATE2": 9.9e12}, ""),
        ({"SRC_DATE": 99999999}, ""),
        ({}, ""),
    ],
)
def test_capture_days(fields, captured):
    assert captures_of(feature([box_ring(0, 0, 9, 9)], **fields)).at(LonLat(1, 1)).captured == captured


def test_unusable_features_are_left_out_and_the_rest_kept():
    ring = box_ring(0, 0, 9, 9)
    bad = [
        None,
        {},
        {"attributes": {}},
        feature([]),
        feature([[]]),
        feature([[[0, 0], [1, 1], [0, 0], [0, 0]]]),
        feature([[[0, 0], [math.nan, 1], [1, 1], [0, 0]]]),
        feature([[[0, 0], [10**400, 1], [1, 1], [0, 0]]]),
        feature([[[0, 0], [1000, 1], [1, 1], [0, 0]]]),
        feature([[[0], [1], [2], [0]]]),
        feature([[["0", "0"], [0, 1], [1, 1], [0, 0]]]),
        feature([box_ring(20, 20, 30, 30)]),
        {"attributes": [], "geometry": {"rings": [ring]}},
    ]
    good = feature([ring], SRC_DATE2=0, SRC_RES=-1, NICE_DESC="\ud800 a\n b", MinMapLevel="x")
    footprints, is_full = parse_footprints({"features": [*bad, good]}, BOUNDS, gsd_field="SRC_RES", **NAMED)
    assert [footprint.capture for footprint in footprints] == [Capture("1970-01-01", "? a b", None)]
    assert not is_full


def test_an_answer_that_may_lack_some_is_full():
    def is_full(value):
        return parse_footprints(value, BOUNDS, gsd_field="SRC_RES", **NAMED)[1]

    assert is_full({"features": [{}] * 100})
    assert not is_full({"features": [{}] * 99, "exceededTransferLimit": False})
    assert is_full({"features": [], "exceededTransferLimit": True})


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_the_join_agrees_with_counting_rings(seed):
    """Star-shaped rings, overlapping at will: inside is inside an odd number of them."""
    rng = np.random.default_rng(seed)
    rings = []
    for _ in range(rng.integers(1, 4)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 8))
        radii = rng.uniform(0.5, 4, 8)
        ring = rng.uniform(3, 7, 2) + np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
        rings.append([*ring.tolist(), ring[0].tolist()])
    # Two rings that cross share area, which no real footprint does; the odd rule holds for those that do not.
    polygons = [shapely.Polygon(ring) for ring in rings]
    if any(a.intersects(b) and not (a.covers(b) or b.covers(a)) for a in polygons for b in polygons):
        rings, polygons = rings[:1], polygons[:1]
    found = captures_of(feature(rings, SRC_DATE2=0))
    for lon, lat in rng.uniform(0, 10, (20, 2)):
        number = sum(polygon.contains(shapely.Point(lon, lat)) for polygon in polygons)
        assert bool(found.at(LonLat(lon, lat)).captured) == bool(number % 2)


def test_tilemap_answers():
    value = {"adjusted": False, "location": {"left": 8, "top": 16, "width": 2, "height": 2}, "data": [1, 0, 0, 1]}
    block = parse_block(value, release=5, **NAMED)
    assert [block.at(x, y).exists for y in (16, 17) for x in (8, 9)] == [True, False, False, True]
    assert block.at(7, 16) is block.at(10, 16) is block.at(8, 18) is UNKNOWN
    assert block.at(8, 16).release is None
    one = {"valid": True, "data": [1], "select": [39767], "size": [16127]}
    one["location"] = {"left": 182935, "top": 418669, "width": 1, "height": 1}
    assert parse_block(one, release=5, **NAMED).at(182935, 418669) == Availability(True, 39767, 16127)
    del one["select"], one["size"]
    assert parse_block(one, release=5, **NAMED).at(182935, 418669) == Availability(True, 5, None)


ANSWERS = {
    "index": index("http://h"),
    "tilemap": {
        "valid": True,
        "adjusted": False,
        "data": [1, 0, 1, 1],
        "select": [10, None, 10842, 49059],
        "size": [100, 0, 200, 300],
        "location": {"left": 8, "top": 8, "width": 2, "height": 2},
    },
    "footprints": {
        "exceededTransferLimit": False,
        "features": [
            feature([box_ring(0, 0, 4, 4)], SRC_DATE2=0, SRC_RES=0.3, NICE_DESC="A", MinMapLevel=1, MaxMapLevel=19),
            feature([box_ring(2, 2, 9, 9), box_ring(3, 3, 4, 4)], SRC_DATE2=None, SRC_DATE=20200101, SRC_RES=None),
        ],
    },
    "error": {"error": {"code": 498, "message": "Invalid token", "details": []}},
}

NUMBERS = [0, -1, 1, 2**63, 10**400, -(10**30), 1.5, 1e308, math.nan, math.inf, -math.inf]
TEXTS = ["", "1", "\ud800", "\0", "2026-05-28", "World Imagery (Wayback 9999-99-99)", "http://[", "http://h:x"]
SCALARS = st.sampled_from([None, True, *NUMBERS, *TEXTS, [], {}, [[]], {"code": 499}])


def places(value, path=()):
    """Yield where something could be changed."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def garbled(draw):
    """One of the answers with up to four values replaced, removed, doubled or renamed."""
    name = draw(st.sampled_from(sorted(ANSWERS)))
    value = copy.deepcopy(ANSWERS[name])
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            if draw(st.booleans()):
                value = copy.deepcopy(draw(SCALARS))
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "remove", "double", "rename"]))
        if change == "replace" or (change == "double" and isinstance(parent, dict)):
            parent[path[-1]] = copy.deepcopy(draw(SCALARS))
        elif change == "double":
            parent.append(copy.deepcopy(parent[path[-1]]))
        else:
            removed = parent.pop(path[-1])
            if change == "rename" and isinstance(parent, dict):
                parent[draw(st.sampled_from(["a", "0", "error", "features", "\ud800"]))] = removed
    return value


def parsed(parse, value, **options):
    """Return what a parser makes of a value, ``None`` for the one error that it may raise."""
    try:
        return parse(value, **options, **NAMED)
    except FetchError as error:
        str(error).encode()  # to be stored
        return None if error.item == "test" else error


@settings(max_examples=600)
@given(garbled())
def test_garbled_answers_end_as_fetch_errors_or_are_read(value):
    """Each parser gets each kind of answer; what it returns can be used and stored."""
    releases = parsed(parse_index, value)
    if releases is not None:
        assert releases == sorted(releases)
        assert all(datetime.date.fromisoformat(release.date) for release in releases)
        assert choose_release(releases).date == releases[-1].date
    block = parsed(parse_block, value, release=5)
    if block is not None:
        assert len(block.tiles) == block.width * block.height
        assert block.at(block.left, block.top).exists is not None
    read = parsed(parse_footprints, value, bounds=BOUNDS, gsd_field="SRC_RES")
    if read is not None:
        capture = Footprints(read[0]).at(LonLat(1.0, 1.0), 18)
        assert capture.captured == "" or datetime.date.fromisoformat(capture.captured)
        assert capture.gsd_m is None or 0 < capture.gsd_m < math.inf
        capture.provider.encode()


class Answer:
    """What `tile_trouble` reads of a response."""

    url = "http://h/tile"

    def __init__(self, status, kind, body):
        self.status, self.headers, self.body = status, {"Content-Type": kind}, body


@settings(max_examples=300)
@given(garbled(), st.sampled_from([JSON_TYPE, "image/jpeg", "", "\xff;;"]), st.integers(0, 200), st.booleans())
def test_garbled_bodies_in_place_of_tiles(value, kind, cut, is_cut):
    body = json.dumps(value).encode()
    body = body[:cut] if is_cut else body
    trouble = tile_trouble(Answer(200, kind, body), has_token=False, **NAMED)
    assert trouble is None or isinstance(trouble, FetchError)
    if trouble is None:
        assert kind != JSON_TYPE  # the header of the image is looked at next
    else:
        str(trouble).encode()


@pytest.mark.parametrize("seed", range(3))
def test_no_garbled_side_answer_loses_a_tile(monkeypatch, seed):
    """Tilemap, footprints and credits in every state of decay: the tiles come all the same, or are said not to exist.

    A tilemap may be garbled into one that says a tile is missing, so its ``data`` stay ones.
    """
    rng = random.Random(seed)

    def decayed(value):
        text = json.dumps(value)
        at = rng.randrange(len(text))
        piece = rng.choice(["", "}", "null", '"x"', "NaN", "1e999", "<html>"])
        return (text[:at] + piece + text[at + rng.randrange(1, 30) :]).encode("utf-8", "replace")

    async def work(server, http):
        def tilemap(first, size, release):
            at = {"left": first.x, "top": first.y, "width": 8, "height": 8}
            select = [10] * 64
            return 200, decayed({"valid": True, "location": at, "select": select, "data": [1] * 64})

        server.tilemap = tilemap
        server.query = lambda request, layer: (200, decayed(ANSWERS["footprints"]))
        server.copyright = (200, decayed({"copyrightText": "x"}))
        results = []
        for column in range(12):
            tile = Tile(TILE.x + 64 * column, TILE.y, 18)
            results += await fetch(EsriWayback(), [tile], http)
        return results

    results = run(monkeypatch, work)
    assert [type(result) for result in results] == [Fetched] * 12
    assert {result.image for result in results} == {JPEG}


def test_once_survives_a_waiter_that_leaves_and_forgets_failures():
    async def main():
        once, calls = Once(2), []

        async def load(value):
            calls.append(value)
            await asyncio.sleep(0.01)
            if value < 0:
                raise FetchError("no")
            return value

        first = asyncio.ensure_future(once.get("a", lambda: load(1)))
        second = asyncio.ensure_future(once.get("a", lambda: load(2)))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == 1
        for _ in range(2):
            with pytest.raises(FetchError):
                await once.get("b", lambda: load(-1))
        assert calls == [1, -1, -1]
        await once.get("c", lambda: load(3))
        assert await once.get("a", lambda: load(9)) == 1
        await once.get("d", lambda: load(4))  # "c" was not used for longest
        assert await once.get("c", lambda: load(5)) == 5
        pending = asyncio.ensure_future(once.get("e", lambda: load(6)))
        await asyncio.sleep(0)
        once.close()
        with pytest.raises(asyncio.CancelledError):
            await pending

    asyncio.run(main())
