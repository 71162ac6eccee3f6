"""Work inside a program: one client, and signals that let it finish what is in flight."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import uvloop
from fakes import FakeImagery, FakePanoramas

from cvgl_data import planning
from cvgl_data.errors import FetchError
from cvgl_data.fetch import fetch_references, reference_store
from cvgl_data.http import Http, running
from cvgl_data.http.running import run
from cvgl_data.recipe import DatasetRecipe, resolve
from cvgl_data.sources import IMAGERY, PANORAMAS
from cvgl_data.types import TILE_PX, Outcome, Window
from cvgl_data.workspace import Workspace

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

BOTH = [signal.SIGINT, signal.SIGTERM]
WINDOWS = [Window(TILE_PX * (41999 + i), TILE_PX * 93333, TILE_PX, 18) for i in range(20)]


@pytest.fixture(autouse=True)
def _handlers():
    """Fail a test that leaves a handler behind, and do not let it harm the next."""
    before = {number: signal.getsignal(number) for number in BOTH}
    yield
    after = {number: signal.getsignal(number) for number in BOTH}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def send(number, after_s=0.01):
    asyncio.get_running_loop().call_later(after_s, os.kill, os.getpid(), number)


def test_the_result_of_the_work_is_returned():
    async def work(http, cancel):
        assert isinstance(http, Http)
        assert not cancel.is_set()
        return 7

    assert run(work) == 7


def test_the_quick_loop_is_used(monkeypatch):
    made = []

    def new_event_loop():
        made.append(asyncio.new_event_loop())
        return made[-1]

    monkeypatch.setattr(uvloop, "new_event_loop", new_event_loop)

    async def work(http, cancel):
        return asyncio.get_running_loop()

    assert run(work) is made[0]


def test_the_client_gets_its_settings_and_is_closed(monkeypatch):
    class Recorded(Http):
        settings: dict[str, object] = {}  # noqa: RUF012 - of this test alone
        closed = 0

        def __init__(self, **settings):
            super().__init__(**settings)
            Recorded.settings = settings

        async def __aexit__(self, *error):
            await super().__aexit__(*error)
            Recorded.closed += 1

    monkeypatch.setattr(running, "Http", Recorded)

    async def work(http, cancel):
        return None

    async def broken(http, cancel):
        raise FetchError("no")

    run(work, rate_per_s=3.0, connections=2)
    assert Recorded.settings == {"rate_per_s": 3.0, "connections": 2}
    with pytest.raises(FetchError, match="no"):
        run(broken)
    assert Recorded.closed == 2
    with pytest.raises(TypeError, match="rate_per_hour"):
        run(work, rate_per_hour=3.0)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_lets_the_work_finish_and_then_interrupts(number):
    seen = []

    async def work(http, cancel):
        send(number)
        await cancel.wait()
        await asyncio.sleep(0.02)
        seen.append("finished")

    with pytest.raises(KeyboardInterrupt):
        run(work)
    assert seen == ["finished"]


@pytest.mark.parametrize("number", BOTH)
def test_handlers_are_given_back(number):
    def mine(number, frame):
        raise AssertionError("not while work runs")

    before = signal.signal(number, mine)
    try:

        async def work(http, cancel):
            assert signal.getsignal(number) is not mine
            send(number)
            await cancel.wait()

        with pytest.raises(KeyboardInterrupt):
            run(work)
        assert signal.getsignal(number) is mine

        async def broken(http, cancel):
            raise FetchError("no")

        with pytest.raises(FetchError):
            run(broken)
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)


def test_an_error_after_a_signal_is_still_the_error():
    async def work(http, cancel):
        send(signal.SIGINT)
        await cancel.wait()
        raise FetchError("the disk, say")

    with pytest.raises(FetchError, match="the disk, say"):
        run(work)


def test_work_that_does_not_listen_is_ended():
    seen = []

    async def work(http, cancel):
        send(signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("cleaned up")

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(work, late_s=0.05)
    assert seen == ["cleaned up"]
    assert 0.05 <= time.monotonic() - started < 10


def test_work_that_cancels_itself_was_not_interrupted():
    async def work(http, cancel):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(work)


def test_fetching_has_the_time_to_keep_what_is_in_flight():
    from cvgl_data.fetch.engine import DRAIN_S

    assert DRAIN_S <= 10.0 < running.LATE_S


def test_a_second_signal_does_not_wait():
    async def work(http, cancel):
        send(signal.SIGINT, 0.01)
        send(signal.SIGINT, 0.05)
        await cancel.wait()
        await asyncio.sleep(60)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(work)
    assert time.monotonic() - started < 10


def test_a_second_sigterm_ends_the_program():
    code = (
        "import asyncio, os, signal\n"
        "from cvgl_data.http.running import run\n"
        "async def work(http, cancel):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await cancel.wait()\n"
        "    print('stopping', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    await asyncio.sleep(60)\n"
        "run(work)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "stopping\n")


def test_another_thread_may_run_work_too():
    found = []

    async def work(http, cancel):
        return threading.current_thread() is threading.main_thread()

    thread = threading.Thread(target=lambda: found.append(run(work)))
    thread.start()
    thread.join(30)
    assert found == [False]


# What it is for


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_while_fetching_keeps_what_is_in_flight(tmp_path, number):
    source = FakeImagery(delay_s=0.05)

    async def work(http, cancel):
        send(number, 0.02)
        return await fetch_references(WINDOWS, "a", source, workspace, http, in_flight=4, cancel=cancel)

    with Workspace(tmp_path / "out").open({"name": "toy"}) as workspace:
        with pytest.raises(KeyboardInterrupt):
            run(work)
        with reference_store(workspace) as store:
            assert store.outcomes() == {Outcome.OK: 4}
        assert source.asked.total() == 4


class EndlessPanoramas(FakePanoramas):
    """Lists an area for ever."""

    def __init__(self):
        super().__init__({})

    async def discover(self, area, http):
        send(signal.SIGINT)
        await asyncio.sleep(60)
        yield FetchError("never")


def test_asking_how_many_there_are_can_be_interrupted(monkeypatch):
    monkeypatch.setitem(IMAGERY._table, "fake", "fakes:FakeImagery")
    monkeypatch.setitem(PANORAMAS._table, "endless", f"{__name__}:EndlessPanoramas")
    tables = {
        "name": "toy",
        "areas": [{"name": "block", "bbox": [-122.33, 47.62, -122.327, 47.6215]}],
        "imagery": {"source": "fake"},
        "panoramas": {"source": "endless"},
    }
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        planning.plan(resolve(DatasetRecipe, tables), discover=True)
    assert time.monotonic() - started < 10
