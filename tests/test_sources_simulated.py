"""The simulated sources: contract, determinism over processes, errors, and what becomes of worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg

from cvgl_data.errors import FetchError, NoImagery, NoPanorama, RecipeError
from cvgl_data.geo import wrap_deg
from cvgl_data.sources import IMAGERY, PANORAMAS, open_imagery, open_panoramas
from cvgl_data.sources.simulated import SimulatedImagery, SimulatedMap, SimulatedPanoramas
from cvgl_data.types import BBox, PanoramaRef, Tile

TILE = Tile(41994, 91537, 18)


def area(west: float = -122.336, south: float = 47.616, east: float = -122.332, north: float = 47.619):
    """An area of interest: the eastern half of a box."""
    return SimpleNamespace(
        bounds=BBox(west, south, east, north), contains=lambda lon, lat: np.asarray(lon) > (west + east) / 2
    )


async def collect(found: AsyncIterator[PanoramaRef]) -> list[PanoramaRef]:
    return [ref async for ref in found]


def discover(**options: object) -> list[PanoramaRef]:
    return asyncio.run(collect(SimulatedPanoramas(workers=1, **options).discover(area(), None)))


def test_registries_build_all_three():
    for source in (
        open_imagery("simulated", {"seed": 3}, workers=1),
        open_imagery("simulated-map", {}, workers=1),
        open_panoramas("simulated", {"width": 64}, workers=1),
    ):
        assert source.licence == "CC0-1.0"
        assert source.attribution
        source.close()
    assert IMAGERY.load("simulated").name == PANORAMAS.load("simulated").name == "simulated"


def test_tiles_are_jpegs_of_the_size_asked_for():
    source = SimulatedImagery(tile_px=64, date="2022-01-31", workers=1)
    fetched = asyncio.run(source.fetch(TILE, None))
    assert simplejpeg.decode_jpeg(fetched.image).shape == (64, 64, 3)
    assert fetched.captured == "2022-01-31"
    assert fetched == asyncio.run(source.fetch(TILE, None))
    source.close()
    source = SimulatedMap(tile_px=128, workers=1)
    drawn = asyncio.run(source.fetch(TILE, None))
    assert simplejpeg.decode_jpeg(drawn.image).shape == (128, 128, 3)
    source.close()


def test_discovery_is_stable_inside_the_area_and_spaced():
    refs = discover(every_m=20.0)
    assert refs == discover(every_m=20.0)
    assert len({ref.pano_id for ref in refs}) == len(refs) > 40
    assert all(-122.334 < ref.lon <= -122.332 and 47.616 <= ref.lat <= 47.619 for ref in refs)
    assert len(discover(every_m=40.0)) < 0.7 * len(refs)
    assert discover(every_m=20.0, seed=1) != refs


def test_panorama_follows_from_its_id():
    ref = discover()[0]
    source = SimulatedPanoramas(width=128, tilt_deg=3.0, workers=1)
    pano = asyncio.run(source.fetch(ref.pano_id, None))
    again = asyncio.run(SimulatedPanoramas(width=128, tilt_deg=3.0, workers=1).fetch(ref.pano_id, None))
    source.close()
    assert pano == again
    assert (pano.lon, pano.lat) == (ref.lon, ref.lat)
    assert pano.pano_id == ref.pano_id == f"{round(ref.lon * 1e7)}_{round(ref.lat * 1e7)}"
    assert simplejpeg.decode_jpeg(pano.image).shape == (64, 128, 3)
    assert pano.captured == "2023-06-15"


def test_headings_follow_the_streets_and_tilts_their_limit():
    source = SimulatedPanoramas(width=32, tilt_deg=2.0, workers=1)
    world = source._world

    async def fetch() -> None:
        refs = await collect(source.discover(area(), None))
        panos = [await source.fetch(ref.pano_id, None) for ref in refs[:60]]
        for pano in panos:
            lane = world.lane_heading_deg(pano.lon, pano.lat)
            assert lane is not None
            assert abs(wrap_deg(pano.heading_deg - lane)) <= 4.001
            assert 0 <= pano.heading_deg < 360
            assert max(abs(pano.pitch_deg), abs(pano.roll_deg)) <= 2.0
        assert len({pano.heading_deg for pano in panos}) == len(panos)
        assert np.std([pano.pitch_deg for pano in panos]) > 0.5

    asyncio.run(fetch())
    source.close()


@pytest.mark.parametrize(
    "pano_id", ["", "x", "1_2_3", "-1223337654", "99999999999_0", "1800000001_0", "0_900000000", "01_2", "١_2"]
)
def test_ids_that_are_no_position(pano_id: str):
    with pytest.raises(NoPanorama, match="lon_lat"):
        asyncio.run(SimulatedPanoramas(workers=1).fetch(pano_id, None))


def test_positions_off_the_lanes():
    source = SimulatedPanoramas(workers=1)
    ref = discover()[0]
    missing = 0
    for step in range(1, 60):
        lon, lat = round(ref.lon * 1e7) + 90 * step, round(ref.lat * 1e7) + 60 * step
        if source._world.lane_heading_deg(lon / 1e7, lat / 1e7) is None:
            missing += 1
            with pytest.raises(NoPanorama, match="not on a lane"):
                asyncio.run(source.fetch(f"{lon}_{lat}", None))
    assert missing > 5


@pytest.mark.parametrize("tile", [Tile(0, 0, 23), Tile(-1, 0, 3), Tile(8, 0, 3), Tile(0, 8, 3), Tile(0, 0, -1)])
def test_tiles_that_do_not_exist(tile: Tile):
    with pytest.raises(NoImagery, match="no tile"):
        asyncio.run(SimulatedImagery(workers=1).fetch(tile, None))


@pytest.mark.parametrize(
    "options",
    [
        {"date": "June"},
        {"date": 20230615},
        {"tile_px": 0},
        {"quality": 101},
        {"workers": -1},
        {"quality": True},
        {"tile_px": 100.5},
        {"seed": "1"},
    ],
)
def test_bad_options_name_themselves(options: dict[str, object]):
    with pytest.raises(RecipeError, match=f"'{next(iter(options))}'"):
        SimulatedImagery(**options)


@pytest.mark.parametrize("options", [{"width": 65}, {"tilt_deg": 90}, {"every_m": 0}, {"camera_height_m": "2"}])
def test_bad_panorama_options_name_themselves(options: dict[str, object]):
    with pytest.raises(RecipeError, match=f"'{next(iter(options))}'"):
        SimulatedPanoramas(**options)


def test_processes_give_the_same_bytes_and_can_be_closed():
    tiles = [Tile(TILE.x + k, TILE.y, 18) for k in range(4)]

    async def fetch(workers: int) -> list[bytes]:
        source = SimulatedImagery(tile_px=32, workers=workers)
        images = [fetched.image for fetched in await asyncio.gather(*(source.fetch(tile, None) for tile in tiles))]
        source.close()
        source.close()
        return images

    assert asyncio.run(fetch(2)) == asyncio.run(fetch(1))


def test_a_dead_worker_is_a_fetch_error_and_the_next_item_is_served():
    async def fetch() -> None:
        source = SimulatedImagery(tile_px=32, workers=2)
        await source.fetch(TILE, None)
        await source.fetch(TILE, None)
        for process in source._workers._executor._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(FetchError, match="worker process died"):
            await asyncio.gather(*(source.fetch(TILE, None) for _ in range(20)))
        assert (await source.fetch(TILE, None)).image
        source.close()

    asyncio.run(fetch())


SCRIPT = """
import asyncio
from cvgl_data.sources.simulated import SimulatedImagery
from cvgl_data.types import Tile

async def main():
    source = SimulatedImagery(tile_px=32, workers=2)
    try:
        await asyncio.gather(*(source.fetch(Tile(41994 + k, 91537, 18), None) for k in range(3)))
        print(*source._workers._executor._processes, flush=True)
        while True:
            await asyncio.gather(*(source.fetch(Tile(41994 + k, 91537, 18), None) for k in range(8)))
    finally:
        source.close()

if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("stopped")
"""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_quietly_with_their_parent(how: signal.Signals, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert workers
        # A terminal sends Ctrl-C to the whole group.
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
        rest, errors = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert rest.strip() == "stopped"
        assert errors == ""
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
