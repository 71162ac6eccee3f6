import asyncio
import hashlib
import io
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeImagery, FakePanoramas, tile_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvgl_data import geo, schema
from cvgl_data.aoi import AreaOfInterest
from cvgl_data.errors import FetchError, RecipeError
from cvgl_data.fetch import discover_queries, fetch_queries, fetch_references, query_store, reference_store
from cvgl_data.fetch import engine as module
from cvgl_data.fetch.mosaic import TileCache
from cvgl_data.http import Http
from cvgl_data.images import decode, encode_jpeg, image_size
from cvgl_data.panorama import north_align
from cvgl_data.selection import choose, choose_ids, read_pano_ids
from cvgl_data.sources.folder import FolderPanoramas
from cvgl_data.types import TILE_PX, Outcome, Panorama, PanoramaRef, Tile, Window
from cvgl_data.workspace import Workspace

ZOOM = 18
RECIPE = {"name": "toy"}


@pytest.fixture
def workspace(tmp_path):
    with Workspace(tmp_path / "dataset").open(RECIPE) as opened:
        yield opened


def window(x, y, size=TILE_PX, zoom=ZOOM):
    return Window(x, y, size, zoom)


GRID = [window(TILE_PX * (41999 + i), TILE_PX * (93333 + j)) for j in range(4) for i in range(5)]


def references(workspace, source, windows=GRID, **options):
    return asyncio.run(fetch_references(windows, "seattle", source, workspace, Http(), **options))


def stored(workspace):
    with reference_store(workspace) as store:
        return {row["reference_id"]: row for row in store.rows()}


def test_a_window_that_is_a_tile_keeps_the_tiles_bytes(workspace):
    source = FakeImagery()
    seen = []
    assert references(workspace, source, on_item=seen.append) == {Outcome.OK: 20}
    assert seen == [Outcome.OK] * 20
    rows = stored(workspace)
    assert list(rows) == sorted(found.key for found in GRID)
    for found in GRID:
        row = rows[found.key]
        tile = found.tiles[0]
        original = encode_jpeg(tile_pixels(tile))
        assert row["image"] == original
        assert row["sha256"] == hashlib.sha256(original).hexdigest()
        assert (row["x"], row["y"], row["size"], row["zoom"]) == found
        assert (row["lon"], row["lat"]) == pytest.approx(found.center)
        assert row["gsd_m"] == pytest.approx(geo.gsd_m(found.center.lat, ZOOM))
        assert (row["area"], row["source"], row["licence"], row["status"]) == ("seattle", "fake", "CC0-1.0", "ok")
        assert (row["captured"], row["release"]) == (f"2024-0{tile.x % 9 + 1}-01", "r1")


def test_stored_rows_have_the_columns_of_the_schema(workspace):
    references(workspace, FakeImagery(), GRID[:1])
    with reference_store(workspace) as store:
        schema.check(store.table().schema, schema.REFERENCES, "store", with_image=False)


@pytest.mark.parametrize("tile_px", [256, 512])
def test_other_windows_are_cut_from_their_tiles_once(workspace, tile_px):
    scale = tile_px // TILE_PX
    source = FakeImagery(tile_px)
    x, y = 41999 * TILE_PX, 93333 * TILE_PX
    windows = [window(x + 128 * i, y + 128 * j) for j in range(5) for i in range(5)]
    windows += [window(x + 37, y + 201, size=300), window(x, y, size=512)]
    assert references(workspace, source, windows) == {Outcome.OK: 27}
    assert set(source.asked.values()) == {1}, "overlapping windows fetched a tile twice"
    tiles = [[tile_pixels(Tile(41999 + i, 93333 + j, ZOOM), tile_px) for i in range(4)] for j in range(4)]
    canvas = np.concatenate([np.concatenate(row, axis=1) for row in tiles])
    for key, row in stored(workspace).items():
        found = next(candidate for candidate in windows if candidate.key == key)
        left, top, side = (found.x - x) * scale, (found.y - y) * scale, found.size * scale
        truth = canvas[top : top + side, left : left + side]
        image = decode(row["image"])
        assert image.shape == truth.shape == (side, side, 3)
        assert np.abs(image.astype(int) - truth).mean() < 2.0
        months = sorted({tile.x % 9 + 1 for tile in found.tiles})
        assert row["captured"] == "/".join(f"2024-0{month}-01" for month in dict.fromkeys((months[0], months[-1])))


def test_windows_that_would_be_cut_inside_a_pixel_are_refused(workspace):
    x, y = 41999 * TILE_PX, 93333 * TILE_PX
    source = FakeImagery(300)
    for off in (window(x + 100, y), window(x, y + 100), window(x, y, size=100)):
        with pytest.raises(RecipeError, match=r"tiles of 300 px \(tile_px\)"):
            references(workspace, source, [off])
    assert not source.asked
    exact = [window(x, y), window(x + 128, y + 64), window(x, y, size=512)]
    assert references(workspace, source, exact) == {Outcome.OK: 3}
    assert [image_size(stored(workspace)[found.key]["image"])[0] for found in exact] == [300, 300, 600]


def test_windows_across_the_antimeridian_ask_for_tiles_of_this_world(workspace):
    world = TILE_PX * 2**ZOOM
    source = FakeImagery()
    references(workspace, source, [window(world - 128, 0), window(world, TILE_PX)])
    assert {tile.x for tile in source.asked} == {0, 2**ZOOM - 1}
    assert all(-180 <= row["lon"] < 180 for row in stored(workspace).values())


def test_failures_are_rows_and_retried_by_class(workspace):
    source = FakeImagery()
    tiles = [found.tiles[0] for found in GRID]
    source.failures = {
        tiles[0]: [Outcome.NO_IMAGERY],
        tiles[1]: [Outcome.TIMEOUT],
        tiles[2]: [Outcome.AUTH],
        tiles[3]: [Outcome.RATE_LIMITED, Outcome.RATE_LIMITED],
    }
    assert references(workspace, source) == {
        Outcome.OK: 16,
        Outcome.NO_IMAGERY: 1,
        Outcome.TIMEOUT: 1,
        Outcome.AUTH: 1,
        Outcome.RATE_LIMITED: 1,
    }
    failed = stored(workspace)[GRID[1].key]
    assert (failed["image"], failed["sha256"], failed["status"]) == (None, None, "timeout")
    assert "SECRET" not in failed["error"]
    assert "timeout at" in failed["error"]
    before = source.asked.copy()
    counts = references(workspace, source)
    assert source.asked - before == {tiles[1]: 1, tiles[3]: 1}
    assert counts == {Outcome.OK: 17, Outcome.NO_IMAGERY: 1, Outcome.AUTH: 1, Outcome.RATE_LIMITED: 1}
    before = source.asked.copy()
    assert references(workspace, source, retry_failed=True) == {Outcome.OK: 20}
    assert source.asked - before == {tiles[0]: 1, tiles[2]: 1, tiles[3]: 1}


def test_a_missing_tile_fails_the_mosaic(workspace):
    source = FakeImagery()
    source.failures[Tile(42000, 93333, ZOOM)] = [Outcome.NO_IMAGERY] * 9
    found = window(41999 * TILE_PX + 128, 93333 * TILE_PX)
    assert references(workspace, source, [found]) == {Outcome.NO_IMAGERY: 1}
    assert stored(workspace)[found.key]["image"] is None


def png(size=(256, 256)):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = encode_jpeg(np.zeros((256, 256, 3), np.uint8))


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (GOOD + b"\0" * 40, "ok"),  # padding after the end is legal
        (png(), "ok"),
        (b"<html>quota exceeded</html>", "wrong_type"),
        (b'{"error": 1}', "wrong_type"),
        (GOOD[: len(GOOD) * 6 // 10], "truncated"),
        (png()[:-20], "truncated"),
        (png((512, 512)), "wrong_size"),
        (encode_jpeg(np.zeros((128, 128, 3), np.uint8)), "wrong_size"),
        (b"\xff\xd8\xff" + b"\0" * 50 + b"\xff\xd9", "decode_error"),
        (b"II*\0", "decode_error"),
    ],
)
def test_bodies_are_checked_from_the_outside(workspace, body, outcome):
    source = FakeImagery()
    source.bodies[GRID[0].tiles[0]] = body
    assert references(workspace, source, GRID[:1]) == {Outcome(outcome): 1}


def test_an_empty_body_is_not_an_image():
    with pytest.raises(FetchError, match="empty"):
        image_size(b"")


def test_concurrency_is_bounded_and_the_windows_stay_an_iterator(workspace):
    source = FakeImagery(delay_s=0.005)
    pulled = []

    def windows():
        for found in GRID:
            pulled.append(len(pulled) - sum(source.asked.values()))
            yield found

    references(workspace, source, windows(), in_flight=3)
    assert source.most_in_flight == 3
    assert max(pulled) <= 3


def test_a_zoom_the_source_does_not_have_is_refused(workspace):
    with pytest.raises(RecipeError, match="ends at zoom 17, not 18"):
        references(workspace, FakeImagery(max_zoom=17))


def test_cancelling_keeps_what_is_in_flight_and_starts_nothing_new(workspace):
    async def run():
        source, cancel = FakeImagery(delay_s=0.02), asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, cancel.set)
        counts = await fetch_references(GRID, "a", source, workspace, Http(), in_flight=4, cancel=cancel)
        return source, counts

    source, counts = asyncio.run(run())
    assert counts == {Outcome.OK: 4}
    assert len(stored(workspace)) == source.asked.total() == 4
    source = FakeImagery()
    assert references(workspace, source) == {Outcome.OK: 20}
    assert source.asked.total() == 16


def test_what_hangs_is_given_up_after_the_drain(workspace, monkeypatch):
    monkeypatch.setattr(module, "DRAIN_S", 0.05)

    async def run():
        cancel = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, cancel.set)
        return await fetch_references(GRID, "a", FakeImagery(delay_s=60), workspace, Http(), cancel=cancel)

    assert asyncio.run(run()) == {}
    assert stored(workspace) == {}


def test_an_outer_cancellation_keeps_what_was_finished(workspace):
    async def run():
        source = FakeImagery(delay_s=0.3)
        task = asyncio.ensure_future(fetch_references(GRID, "a", source, workspace, Http(), in_flight=4))
        await asyncio.sleep(0.45)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert len(stored(workspace)) == 4


def test_a_mistake_in_a_source_is_not_hidden(workspace):
    class Broken(FakeImagery):
        async def fetch(self, tile, http):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        references(workspace, Broken())


def test_the_tile_cache_shares_requests_and_forgets():
    async def run():
        source = FakeImagery(delay_s=0.01)
        cache = TileCache(source, Http(), max_bytes=2 * len(encode_jpeg(tile_pixels(Tile(0, 0, 3)))))
        await asyncio.gather(*(cache.get(Tile(0, 0, 3)) for _ in range(5)))
        for x in (1, 2, 3, 0):
            await cache.get(Tile(x, 0, 3))
        return source.asked

    assert asyncio.run(run())[Tile(0, 0, 3)] == 2


# Queries


def panorama(pano_id="p", heading=None, pitch=None, roll=None, width=128, lon=0.5, lat=0.5):
    gray = np.random.default_rng(1).integers(0, 256, (8, 16), np.uint8)  # JPEG would blur colours
    pixels = np.repeat(gray[..., None], 3, axis=2)
    pixels = np.asarray(Image.fromarray(pixels).resize((width, width // 2), Image.Resampling.BICUBIC))
    return Panorama(
        pano_id=pano_id,
        image=encode_jpeg(pixels),
        lon=lon,
        lat=lat,
        heading_deg=heading,
        pitch_deg=pitch,
        roll_deg=roll,
        captured="2024-05-01",
        creator="someone",
    )


def queries(workspace, source, ids, area="toy", **options):
    counts = asyncio.run(fetch_queries(ids, area, source, workspace, Http(), **options))
    with query_store(workspace) as store:
        schema.check(store.table().schema, schema.QUERIES, "store", with_image=False)
        return counts, {row["query_id"]: row for row in store.rows()}


POSES = ("heading_deg", "pitch_deg", "roll_deg", "upright")


@pytest.mark.parametrize(
    ("given_pose", "align", "pose", "is_kept"),
    [
        ((90.0, 2.0, 1.0), "keep", (90.0, 2.0, 1.0, False), True),
        ((90.0, None, None), "keep", (90.0, None, None, None), True),
        ((90.0, 0.0, 0.0), "keep", (90.0, 0.0, 0.0, True), True),
        ((90.0, 2.0, 1.0), "north", (0.0, 0.0, 0.0, True), False),
        ((90.0, 2.0, 1.0), "auto", (0.0, 0.0, 0.0, True), False),
        ((90.0, None, None), "north", (0.0, None, None, None), False),
        ((90.0, 2.0, None), "north", (0.0, None, None, None), False),
        ((None, 2.0, 1.0), "north", (None, 2.0, 1.0, False), True),
        ((0.0, 0.0, 0.0), "north", (0.0, 0.0, 0.0, True), True),
        ((360.0, None, None), "north", (0.0, None, None, None), True),
    ],
)
def test_poses_after_alignment(workspace, given_pose, align, pose, is_kept):
    original = panorama("p", *given_pose)
    counts, rows = queries(workspace, FakePanoramas({"p": original}), ["p"], align=align, width=128)
    row = rows["p"]
    assert counts == {Outcome.OK: 1}
    assert tuple(row[name] for name in POSES) == pose
    assert (row["image"] == original.image) is is_kept
    assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
    assert (row["lon"], row["lat"], row["area"], row["licence"], row["creator"]) == (
        0.5,
        0.5,
        "toy",
        "CC0-1.0",
        "someone",
    )
    if not is_kept:
        tilt = [value or 0.0 for value in given_pose[1:]] if pose[3] else [0.0, 0.0]
        expected = north_align(decode(original.image), given_pose[0], *tilt)
        assert np.abs(decode(row["image"]).astype(int) - expected).mean() < 2


def test_panoramas_are_brought_to_the_width(workspace):
    _, rows = queries(workspace, FakePanoramas({"p": panorama(heading=0.0, width=256)}), ["p"], width=128)
    assert image_size(rows["p"]["image"]) == (128, 64)


def test_the_users_own_panoramas_are_kept(workspace, golden):
    source = FolderPanoramas(str(golden / "strasbourg"))
    _, rows = queries(workspace, source, ["stra_1_1.jpg"])
    assert rows["stra_1_1.jpg"]["image"] == (golden / "strasbourg/stra_1_1.jpg").read_bytes()
    assert rows["stra_1_1.jpg"]["heading_deg"] == pytest.approx(233.73)


def test_panoramas_that_fail_are_rows(workspace):
    image = encode_jpeg(np.zeros((64, 200, 3), np.uint8))
    cropped = Panorama(pano_id="cropped", image=image, lon=0, lat=0, heading_deg=10.0)
    whole = encode_jpeg(np.zeros((64, 128, 3), np.uint8))
    broken = Panorama(pano_id="broken", image=whole[:300] + b"\xff\xd9", lon=0, lat=0, heading_deg=10.0)
    source = FakePanoramas({"cropped": cropped, "broken": broken}, gone=("gone",))
    _, rows = queries(workspace, source, ["cropped", "broken", "gone"], width=256)
    assert {key: row["status"] for key, row in rows.items()} == {
        "broken": "decode_error",
        "cropped": "wrong_size",
        "gone": "not_found",
    }
    assert "is 200x64" in rows["cropped"]["error"]
    assert rows["gone"]["area"] == "toy"


def test_the_area_may_depend_on_the_position(workspace):
    source = FakePanoramas({"e": panorama("e", lon=1.0), "w": panorama("w", lon=-1.0)})
    _, rows = queries(workspace, source, ["e", "w"], area=lambda lon, lat: "east" if lon > 0 else "west", align="keep")
    assert {key: row["area"] for key, row in rows.items()} == {"e": "east", "w": "west"}


@pytest.mark.parametrize("options", [{"align": "south"}, {"width": 127}, {"width": 0}])
def test_impossible_alignments_are_refused(workspace, options):
    with pytest.raises(RecipeError, match=r"panoramas\.(align|width)"):
        queries(workspace, FakePanoramas({}), [], **options)


def test_discovery_lists_what_is_inside_and_what_has_no_place(golden, tmp_path):
    area = AreaOfInterest.from_bbox(0, 0, 1, 1)
    source = FakePanoramas({"b": panorama("b"), "a": panorama("a"), "far": panorama("far", lon=5.0)})
    assert asyncio.run(discover_queries(source, area, Http())).pano_ids == ["a", "b"]
    lost = FetchError("page 3 makes no sense", source="fake", item="page 3", outcome=Outcome.DECODE_ERROR)
    source.unreadable = [lost]
    found = asyncio.run(discover_queries(source, area, Http(), limit=1))
    assert (found.pano_ids in (["a"], ["b"]), found.errors) == (True, [lost])


def test_what_discovery_could_not_read_ends_as_a_failed_row(workspace):
    lost = FetchError("no sense: https://h/p?key=S3CR3T", item="page 3", outcome=Outcome.DECODE_ERROR)
    counts, rows = queries(workspace, FakePanoramas({"a": panorama("a")}), ["a"], errors=[lost])
    assert counts == {Outcome.OK: 1, Outcome.DECODE_ERROR: 1}
    assert (rows["page 3"]["status"], rows["page 3"]["image"]) == ("decode_error", None)
    assert rows["page 3"]["error"] == "no sense: https://h/p?key=***"


# Selection

REFS = [
    PanoramaRef(pano_id=f"p{i:03d}", lon=-122.3 + 0.01 * math.sin(i), lat=47.6 + 0.01 * math.cos(1.7 * i))
    for i in range(300)
]


@settings(max_examples=20, deadline=None)
@given(st.permutations(REFS), st.sampled_from([0.0, 50.0, 200.0]), st.sampled_from([0, 10]), st.integers(0, 3))
def test_thinning_is_spaced_maximal_and_independent_of_order(shuffled, spacing_m, limit, seed):
    chosen = choose(shuffled, spacing_m=spacing_m, limit=limit, seed=seed)
    assert chosen == choose(REFS, spacing_m=spacing_m, limit=limit, seed=seed)
    assert [ref.pano_id for ref in chosen] == sorted(ref.pano_id for ref in chosen)
    assert len(chosen) <= (limit or len(REFS))
    lon, lat = np.array([ref[1:] for ref in map(as_tuple, chosen)]).T
    apart = geo.distance_m(lon[:, None], lat[:, None], lon, lat)
    np.fill_diagonal(apart, np.inf)
    assert apart.min() >= spacing_m * (1 - 1e-6)
    if not limit and spacing_m:  # nothing more fits in
        every_lon, every_lat = np.array([ref[1:] for ref in map(as_tuple, REFS)]).T
        assert geo.distance_m(every_lon[:, None], every_lat[:, None], lon, lat).min(axis=1).max() < spacing_m


def as_tuple(ref):
    return ref.pano_id, ref.lon, ref.lat


def test_seeds_choose_differently():
    assert choose(REFS, limit=10, seed=0) != choose(REFS, limit=10, seed=1)
    assert choose(REFS + REFS[:5]) == REFS
    assert choose([]) == []
    ids = [ref.pano_id for ref in REFS]
    assert choose_ids(ids, 10) == choose_ids(ids[::-1], 10)
    assert choose_ids(ids[::-1], 0) == ids


def test_lists_of_ids(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\n\n two \none\n")
    (tmp_path / "a.csv").write_text("lat,pano_id\n1,one\n2,two\n")
    pq.write_table(pa.table({"pano_id": ["one", "two"]}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.csv", "a.parquet"):
        assert read_pano_ids(tmp_path / name) == ["one", "two"]


def test_lists_of_ids_that_are_not(tmp_path):
    (tmp_path / "b.csv").write_text("id\none\n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    (tmp_path / "b.txt").write_text("\n\n")
    with pytest.raises(RecipeError, match="no file of panorama ids"):
        read_pano_ids(tmp_path / "nowhere.txt")
    for name, message in [
        ("b.csv", "cannot be read"),
        ("b.parquet", "cannot be read"),
        ("b.txt", "holds no panorama ids"),
    ]:
        with pytest.raises(RecipeError, match=message):
            read_pano_ids(tmp_path / name)
