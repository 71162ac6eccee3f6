import asyncio

import mapbox_vector_tile
import mercantile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapbox_vector_tile.Mapbox import vector_tile_pb2

from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import FetchError, SourceStopped
from cvgl_data.sources.vector_tiles import AHEAD, Point, covering, discover, points
from cvgl_data.types import Outcome, PanoramaRef, Tile

TILE = Tile(2620, 5722, 14)


def encoded(features, layer="image", extent=4096):
    """Vector tile of ``(x, y, properties)``, y down."""
    features = [
        {"geometry": {"type": "Point", "coordinates": [x, y]}, "properties": properties}
        for x, y, properties in features
    ]
    options = {"y_coord_down": True, "extents": extent}
    return mapbox_vector_tile.encode([{"name": layer, "features": features}], default_options=options)


@given(st.integers(-80, 4176), st.integers(-80, 4176), st.sampled_from([256, 4096, 8192]))
def test_a_point_is_where_mercantile_puts_it(x, y, extent):
    (point,) = points(encoded([(x, y, {"id": 7})], extent=8192), TILE, "image", source="s")
    bounds = mercantile.xy_bounds(*TILE)
    east = bounds.left + x / 8192 * (bounds.right - bounds.left)
    north = bounds.top - y / 8192 * (bounds.top - bounds.bottom)
    np.testing.assert_allclose((point.lon, point.lat), mercantile.lnglat(east, north), atol=1e-9)
    assert point.properties == {"id": 7}
    (scaled,) = points(encoded([(extent // 2, extent // 4, {})], extent=extent), TILE, "image", source="s")
    assert (scaled.lon, scaled.lat) == pytest.approx(
        mercantile.lnglat((bounds.left + bounds.right) / 2, bounds.top - (bounds.top - bounds.bottom) / 4), abs=1e-9
    )


def test_a_neighbors_point_across_the_antimeridian_stays_in_range():
    (point,) = points(encoded([(4100, 0, {})]), Tile(2**14 - 1, 6000, 14), "image", source="s")
    assert -180.0 <= point.lon < -179.99


def test_other_layers_and_other_geometries_are_left_out():
    layers = [
        {"name": "sequence", "features": [{"geometry": "LINESTRING(0 0, 5 5)", "properties": {}}]},
        {
            "name": "image",
            "features": [
                {"geometry": "LINESTRING(0 0, 5 5)", "properties": {}},
                {"geometry": "MULTIPOINT(1 1, 2 2)", "properties": {"id": 1}},
            ],
        },
    ]
    body = mapbox_vector_tile.encode(layers)
    assert [point.properties for point in points(body, TILE, "image", source="s")] == [{"id": 1}] * 2
    assert points(body, TILE, "overview", source="s") == []
    assert points(b"", TILE, "image", source="s") == []


@pytest.mark.parametrize(
    "body",
    [
        b"<!DOCTYPE html><html><body>busy</body></html>",
        b'{"error": {"code": 190}}',
        b"\x08\x01",
        b"\x1a\xff",
        encoded([(1, 1, {"id": 1})])[:-3],
    ],
)
def test_what_is_no_vector_tile_is_one_clear_error(body):
    with pytest.raises(FetchError, match="tile 14/2620/5722 is not a vector tile") as caught:
        points(body, TILE, "image", source="s")
    assert (caught.value.outcome, caught.value.item) == (Outcome.DECODE_ERROR, "14/2620/5722")


def test_a_point_far_from_its_tile_fails_alone():
    good, bad = points(encoded([(1, 1, {}), (900_000, 1, {})]), TILE, "image", source="s")
    assert isinstance(good, Point)
    assert (bad.outcome, bad.item) == (Outcome.DECODE_ERROR, "14/2620/5722#1")


def test_a_point_without_a_position_fails_alone():
    tile = vector_tile_pb2.tile()
    tile.ParseFromString(encoded([(1, 1, {}), (2, 2, {})]))
    del tile.layers[0].features[0].geometry[:]
    bad, good = points(tile.SerializeToString(), TILE, "image", source="s")
    assert (bad.outcome, bad.item) == (Outcome.DECODE_ERROR, "14/2620/5722#0")
    assert isinstance(good, Point)


def test_a_tile_without_an_extent_is_malformed():
    tile = vector_tile_pb2.tile()
    tile.ParseFromString(encoded([(1, 1, {})]))
    tile.layers[0].extent = 0
    with pytest.raises(FetchError, match="its extent is 0"):
        points(tile.SerializeToString(), TILE, "image", source="s")


GOOD = encoded([(x, 3 * x, {"id": f"p{x}", "is_pano": bool(x % 2), "n": x * 1.5}) for x in range(20)])


@given(st.data())
def test_garbled_tiles_raise_nothing_but_fetch_errors(data):
    body = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        change = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "set":
            body[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del body[at : at + data.draw(st.integers(1, 5))]
        else:
            body[at:at] = data.draw(st.binary(max_size=4))
    try:
        found = points(bytes(body), TILE, "image", source="s")
    except FetchError as error:
        assert error.outcome is Outcome.DECODE_ERROR  # noqa: PT017 - only sometimes
        return
    for point in found:
        assert isinstance(point, FetchError) or (-180 <= point.lon <= 180 and -85.2 < point.lat < 85.2)


def test_the_tiles_of_an_area_are_those_that_mercantile_lists():
    area = AreaOfInterest.from_bbox(7.70, 48.55, 7.80, 48.62)
    expected = {(tile.x, tile.y, tile.z) for tile in mercantile.tiles(*area.bounds, 14)}
    tiles = covering(area, 14)
    assert set(tiles) == expected
    assert tiles == sorted(tiles)
    across = covering(AreaOfInterest.from_bbox(179.99, 0.001, -179.99, 0.01), 14)
    assert [tile.x for tile in across] == [0, 2**14 - 1]


def run(area, load, read=lambda point: PanoramaRef(pano_id=point.properties["id"], lon=point.lon, lat=point.lat)):
    async def collect():
        return [each async for each in discover(area, 14, "image", source="s", load=load, read=read)]

    return asyncio.run(collect())


def area_of(*tiles):
    west = min(tile.bounds.west for tile in tiles) + 1e-4
    east = max(tile.bounds.east for tile in tiles) - 1e-4
    return AreaOfInterest.from_bbox(west, tiles[0].bounds.south + 1e-4, east, tiles[0].bounds.north - 1e-4)


def test_discovery_is_sorted_clipped_and_free_of_repetition():
    right = Tile(TILE.x + 1, TILE.y, 14)
    bodies = {
        TILE: encoded(
            [(900, 900, {"id": "b"}), (800, 800, {"id": "a"}), (4099, 700, {"id": "edge"}), (0, 0, {"id": "o"})]
        ),
        right: encoded([(3, 700, {"id": "edge"}), (50, 50, {"id": "0"})]),
    }

    async def load(tile):
        await asyncio.sleep(0.01 if tile == TILE else 0.0)  # the second arrives first
        return bodies[tile]

    refs = run(area_of(TILE, right), load)
    assert [ref.pano_id for ref in refs] == ["a", "b", "edge", "0"]


def test_a_tile_or_a_record_that_fails_is_yielded_and_the_rest_goes_on():
    tiles = [Tile(TILE.x + column, TILE.y, 14) for column in range(4)]

    async def load(tile):
        if tile == tiles[0]:
            raise FetchError("busy", source="s", item=str(tile), outcome=Outcome.SERVER_ERROR)
        if tile == tiles[1]:
            return b"<html>"
        return encoded([(60, 60, {"id": "x" if tile == tiles[2] else "y"}), (50, 50, {"id": "bad"})])

    def read(point):
        if point.properties["id"] == "bad":
            raise FetchError("bad", source="s", item=point.item, outcome=Outcome.DECODE_ERROR)
        return PanoramaRef(pano_id=point.properties["id"], lon=point.lon, lat=point.lat)

    found = run(area_of(tiles[0], tiles[3]), load, read)
    assert [each.item if isinstance(each, FetchError) else each.pano_id for each in found] == [
        str(tiles[0]),
        str(tiles[1]),
        "x",
        f"{tiles[2]}#1",
        "y",
        f"{tiles[3]}#1",
    ]


def test_a_stopped_source_ends_discovery_and_leaves_nothing_running():
    state = {"running": 0, "most": 0}

    async def load(tile):
        state["running"] += 1
        state["most"] = max(state["most"], state["running"])
        try:
            if tile.x == TILE.x + 2:
                raise SourceStopped("no", source="s", item=str(tile))
            await asyncio.sleep(0.01 if tile.x < TILE.x + 2 else 60)
            return b""
        finally:
            state["running"] -= 1

    async def consume():
        area = area_of(TILE, Tile(TILE.x + 30, TILE.y, 14))
        with pytest.raises(SourceStopped):
            async for _ in discover(area, 14, "image", source="s", load=load, read=lambda point: None):
                pass
        return state["running"], len(asyncio.all_tasks())

    assert asyncio.run(consume()) == (0, 1)
    assert state["most"] <= AHEAD
