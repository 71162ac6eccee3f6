"""`work_through`: what begins, what is kept, and what is told, whatever single items do."""

from __future__ import annotations

import asyncio
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_data.errors import FetchError, SourceStopped
from cvgl_data.fetch import engine
from cvgl_data.fetch.engine import work_through
from cvgl_data.types import Outcome
from cvgl_data.workspace.store import Store

SCHEMA = pa.schema([("key", pa.string()), ("image", pa.binary()), ("status", pa.string())])


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "rows", SCHEMA, "key") as opened:
        yield opened


def row(key, outcome=Outcome.OK):
    return {"key": key, "image": b"x", "status": outcome.value}


def go(store, work, num=20, **options):
    """Work through items "00", "01", ... and return the counts."""

    async def run():
        return await work_through(((f"{index:02d}", index) for index in range(num)), work, store, **options)

    return asyncio.run(run())


async def fine(key, item):
    return row(key)


def test_every_item_is_worked_on_once_and_told(store):
    told, begun = [], []

    async def work(key, item):
        begun.append((key, item))
        return row(key, Outcome.TIMEOUT if item % 5 == 0 else Outcome.OK)

    assert go(store, work, on_item=told.append) == {Outcome.OK: 16, Outcome.TIMEOUT: 4}
    assert begun == [(f"{index:02d}", index) for index in range(20)]
    assert Counter(told) == {Outcome.OK: 16, Outcome.TIMEOUT: 4}
    assert store.outcomes() == {Outcome.OK: 16, Outcome.TIMEOUT: 4}
    assert go(store, work, 0) == {}


def test_what_is_there_is_told_and_not_worked_on(store):
    outcomes = [Outcome.OK, Outcome.NOT_FOUND, Outcome.TIMEOUT]
    for index, outcome in enumerate(outcomes):
        store.append(row(f"{index:02d}", outcome))
    begun, told = [], []

    async def work(key, item):
        begun.append(item)
        return row(key)

    assert go(store, work, 4, on_item=told.append) == {Outcome.OK: 3, Outcome.NOT_FOUND: 1}
    assert begun == [2, 3]
    assert sorted(told) == [Outcome.NOT_FOUND] + [Outcome.OK] * 3
    assert go(store, work, 4, retry_failed=True) == {Outcome.OK: 4}
    assert begun == [2, 3, 1]


def test_a_refresh_works_on_what_is_there_and_good(store):
    for index, outcome in enumerate([Outcome.OK, Outcome.NOT_FOUND, Outcome.OK]):
        store.append(row(f"{index:02d}", outcome))
    begun = []

    async def work(key, item):
        begun.append(item)
        return Outcome.TIMEOUT if item == 2 else row(key)

    assert go(store, work, 4, refresh=True) == {Outcome.OK: 2, Outcome.NOT_FOUND: 1, Outcome.TIMEOUT: 1}
    assert begun == [0, 2, 3]
    assert store.outcome("02") is Outcome.OK, "an outcome without a row leaves the old row"


class Stopping:
    """Items take a while each; item ``stops_at`` meets the end of what the source gives."""

    def __init__(self, stops_at, error=None):
        self.stops_at = stops_at
        self.error = error or SourceStopped("the quota is used up", source="toy", outcome=Outcome.QUOTA)
        self.begun, self.ended = [], []

    async def __call__(self, key, item):
        self.begun.append(item)
        await asyncio.sleep(0.01)
        if item == self.stops_at:
            raise self.error
        await asyncio.sleep(0.03)
        self.ended.append(item)
        return row(key)


def test_a_source_that_stops_ends_the_run_and_keeps_what_is_in_flight(store):
    work, told = Stopping(9), []
    with pytest.raises(SourceStopped, match="the quota is used up") as caught:
        go(store, work, 40, in_flight=4, on_item=told.append)
    assert caught.value is work.error
    assert work.begun == list(range(12)), "something was begun after the source had stopped"
    assert work.ended == [index for index in range(12) if index != 9]
    assert store.keys() == [f"{index:02d}" for index in work.ended]
    assert told == [Outcome.OK] * 11
    again = Stopping(None)
    assert go(store, again, 40, in_flight=4) == {Outcome.OK: 40}
    assert sorted(again.begun) == [9, *range(12, 40)], "the item that met the end has no row, and is asked for again"


def test_what_was_kept_survives_on_disk(tmp_path):
    with Store(tmp_path / "rows", SCHEMA, "key") as store, pytest.raises(SourceStopped):
        go(store, Stopping(2), 10, in_flight=2)
    with Store(tmp_path / "rows", SCHEMA, "key") as store:
        assert store.keys() == ["00", "01", "03"]


def test_of_several_that_meet_the_end_the_first_is_told(store):
    errors = []

    async def work(key, item):
        await asyncio.sleep(0.01 * (5 - item))
        errors.append(SourceStopped(f"item {item}"))
        raise errors[-1]

    with pytest.raises(SourceStopped, match="item 4") as caught:
        go(store, work, 40, in_flight=5)
    assert caught.value is errors[0]
    assert len(errors) == 5
    assert store.keys() == []


def test_a_run_that_is_told_to_stop_and_stopped_tells_why(store):
    async def run():
        cancel = asyncio.Event()
        asyncio.get_running_loop().call_later(0.005, cancel.set)
        return await work_through(((str(index), index) for index in range(9)), Stopping(0), store, cancel=cancel)

    with pytest.raises(SourceStopped):
        asyncio.run(run())


def test_what_hangs_after_a_source_stopped_and_the_run_was_told_to_stop_is_given_up(store, monkeypatch):
    monkeypatch.setattr(engine, "DRAIN_S", 0.05)

    async def work(key, item):
        if item == 0:
            raise SourceStopped("no more")
        await asyncio.sleep(60)

    async def run():
        cancel = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, cancel.set)
        return await work_through(((str(index), index) for index in range(9)), work, store, cancel=cancel)

    with pytest.raises(SourceStopped, match="no more"):
        asyncio.run(run())


def test_a_mistake_is_raised_as_it_is_and_what_was_finished_is_kept(store):
    async def work(key, item):
        await asyncio.sleep(0.001 * item)
        if item == 6:
            raise ZeroDivisionError
        return row(key)

    with pytest.raises(ZeroDivisionError):
        go(store, work, 20, in_flight=2)
    assert store.keys()[:5] == ["00", "01", "02", "03", "04"]


def test_an_error_that_ends_no_run_is_for_the_work_to_keep(store):
    """A plain `FetchError` must have become a row before; that it was not is a mistake, not lost in silence."""

    async def work(key, item):
        raise FetchError("lost")

    with pytest.raises(FetchError, match="lost"):
        go(store, work, 3)


def test_a_listener_that_fails_ends_the_run(store):
    def told(outcome):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go(store, fine, 3, on_item=told, in_flight=1)
    assert store.keys() == ["00"]


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([*Outcome]), max_size=30),
    st.integers(1, 8),
    st.booleans(),
    st.integers(0, 30),
)
def test_counts_add_up(tmp_path_factory, outcomes, in_flight, refresh, num_there):
    """Each item is told once, whatever happens, in this run and in the next."""

    async def work(key, item):
        await asyncio.sleep(0)
        return row(key, outcomes[item])

    with Store(tmp_path_factory.mktemp("store"), SCHEMA, "key") as store:
        for index in range(min(num_there, len(outcomes))):
            store.append(row(f"{index:02d}"))
        told = []
        counts = go(store, work, len(outcomes), in_flight=in_flight, refresh=refresh, on_item=told.append)
        assert counts == Counter(told)
        assert counts.total() == len(outcomes)
        assert store.outcomes() == counts
        assert go(store, work, len(outcomes), in_flight=in_flight) == counts


# How it ends


def test_all_rows_are_on_disk_when_it_returns(store):
    go(store, fine, 3)
    parts = [pa.ipc.open_file(path).get_batch(0)["key"].to_pylist() for path in sorted(store.folder.glob("part-*"))]
    assert [key for part in parts for key in part] == ["00", "01", "02"]


def test_nothing_goes_on_after_it_returned(store):
    """What was under way has ended, also what needs a moment for that."""
    ended = []

    async def work(key, item):
        if item == 0:
            await asyncio.sleep(0.01)
            raise ZeroDivisionError
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            ended.append(item)

    async def run():
        with pytest.raises(ZeroDivisionError):
            await work_through(((str(index), index) for index in range(9)), work, store, in_flight=4)
        assert sorted(ended) == [1, 2, 3]

    asyncio.run(run())


def test_the_time_to_drain_begins_with_the_word_to_stop(store, monkeypatch):
    monkeypatch.setattr(engine, "DRAIN_S", 0.0)

    async def work(key, item):
        await asyncio.sleep(0.02)
        return row(key)

    assert go(store, work, 3) == {Outcome.OK: 3}


def test_whoever_ends_it_from_outside_is_told(store):
    async def work(key, item):
        await asyncio.sleep(0 if item == 0 else 60)
        return row(key)

    async def run():
        task = asyncio.ensure_future(work_through(((str(index), index) for index in range(9)), work, store))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert store.keys() == ["0"]
