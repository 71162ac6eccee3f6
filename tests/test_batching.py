import asyncio

import pytest

from cvgl_data.errors import FetchError, NoPanorama, SourceStopped
from cvgl_data.sources.batching import CALLS, Batching
from cvgl_data.types import Outcome


class Provider:
    """Answers ``key.upper()``, and notes what it is asked; ``errors`` are raised for calls about such a key."""

    def __init__(self, errors=None, absent=(), delay_s=0.0):
        self.errors = errors or {}
        self.absent = absent
        self.delay_s = delay_s
        self.calls = []
        self.in_flight = self.most_in_flight = 0

    async def ask(self, keys):
        self.calls.append(list(keys))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self.delay_s)
        self.in_flight -= 1
        for key in keys:
            if key in self.errors:
                raise self.errors[key]
        if len(keys) == 1 and keys[0] in self.absent:
            raise NoPanorama(f"no {keys[0]}", source="s", item=keys[0])
        return {key: key.upper() for key in keys if key not in self.absent}


def gather(provider, *keys, size=50):
    async def run():
        batching = Batching(provider.ask, size)
        found = await asyncio.gather(*map(batching.get, keys), return_exceptions=True)
        assert not batching._batches  # nothing is kept
        return found

    return asyncio.run(run())


def test_what_is_wanted_at_the_same_time_is_one_call_and_each_key_is_in_it_once():
    provider = Provider()
    assert gather(provider, "a", "b", "a", "c", "b") == ["A", "B", "A", "C", "B"]
    assert provider.calls == [["a", "b", "c"]]


def test_calls_have_at_most_their_size_and_run_two_at_a_time():
    provider = Provider(delay_s=0.01)
    keys = [f"k{number:02d}" for number in range(23)]
    assert gather(provider, *keys, size=5) == [key.upper() for key in keys]
    assert [len(call) for call in provider.calls] == [5, 5, 5, 5, 3]
    assert [key for call in provider.calls for key in call] == keys
    assert provider.most_in_flight == CALLS


def test_what_comes_while_calls_are_under_way_goes_together_into_the_next():
    provider = Provider(delay_s=0.2)

    async def run():
        batching = Batching(provider.ask, 2)
        first = [asyncio.ensure_future(batching.get(key)) for key in "abcd"]
        await asyncio.sleep(0.05)  # both calls are under way
        late = []
        for key in "ef":
            late.append(asyncio.ensure_future(batching.get(key)))
            await asyncio.sleep(0.04)  # further apart than a call waits
        return await asyncio.gather(*first, *late)

    assert asyncio.run(run()) == list("ABCDEF")
    assert provider.calls == [["a", "b"], ["c", "d"], ["e", "f"]]


def test_values_are_not_kept():
    provider = Provider()

    async def run():
        batching = Batching(provider.ask, 50)
        return [await batching.get("a"), await batching.get("a")]

    assert asyncio.run(run()) == ["A", "A"]
    assert provider.calls == [["a"], ["a"]]


@pytest.mark.parametrize("outcome", [Outcome.CONNECTION, Outcome.RATE_LIMITED, Outcome.AUTH])
def test_an_error_that_no_key_is_to_blame_for_is_everyones_own(outcome):
    provider = Provider(errors={"b": FetchError("down", source="s", item="x", outcome=outcome)})
    errors = gather(provider, "a", "b", "c", "a")
    assert provider.calls == [["a", "b", "c"]]
    assert [(type(error), error.outcome, error.source, str(error)) for error in errors] == [
        (FetchError, outcome, "s", "down")
    ] * 4
    assert [error.item for error in errors] == ["a", "b", "c", "a"]
    assert len({id(error) for error in errors}) == 4


def test_a_source_that_stopped_is_not_asked_again():
    error = SourceStopped("no such key", source="s", item="a", outcome=Outcome.NOT_FOUND)
    provider = Provider(errors={"a": error})
    errors = gather(provider, "a", "b")
    assert [type(each) for each in errors] == [SourceStopped] * 2
    assert [each.item for each in errors] == ["a", "b"]
    assert provider.calls == [["a", "b"]]


@pytest.mark.parametrize(
    "outcome", [Outcome.NOT_FOUND, Outcome.SERVER_ERROR, Outcome.TIMEOUT, Outcome.WRONG_TYPE, Outcome.DECODE_ERROR]
)
def test_a_bad_key_spoils_nothing_for_the_others(outcome):
    provider = Provider(errors={"b": FetchError("bad", source="s", item="b", outcome=outcome)})
    first, bad, last = gather(provider, "a", "b", "c")
    assert (first, last) == ("A", "C")
    assert (bad.outcome, bad.item) == (outcome, "b")
    assert provider.calls == [["a", "b", "c"], ["a"], ["b"], ["c"]]


def test_a_key_that_is_left_out_is_asked_for_alone():
    provider = Provider(absent=("b",))
    first, gone = gather(provider, "a", "b")
    assert first == "A"
    assert isinstance(gone, NoPanorama)
    assert provider.calls == [["a", "b"], ["b"]]


def test_errors_that_take_the_place_of_a_value_are_raised():
    async def ask(keys):
        return {key: NoPanorama("gone", item="?") if key == "b" else key for key in keys}

    async def run():
        batching = Batching(ask, 50)
        return await asyncio.gather(*map(batching.get, "ab"), return_exceptions=True)

    value, error = asyncio.run(run())
    assert value == "a"
    assert isinstance(error, NoPanorama)
    assert error.item == "b"


def test_giving_up_one_leaves_the_others_and_closing_gives_up_all():
    provider = Provider(delay_s=0.05)

    async def run():
        batching = Batching(provider.ask, 50)
        tasks = [asyncio.ensure_future(batching.get(key)) for key in "ab"]
        await asyncio.sleep(0)
        tasks[0].cancel()
        kept = (await asyncio.gather(*tasks, return_exceptions=True))[1]
        last = asyncio.ensure_future(batching.get("c"))
        await asyncio.sleep(0)
        batching.close()
        with pytest.raises(asyncio.CancelledError):
            await last
        return kept, await batching.get("c"), batching

    kept, again, batching = asyncio.run(run())
    assert (kept, again) == ("B", "C")
    assert not batching._batches
    batching.close()


def test_closing_after_the_loop_has_ended_does_nothing():
    provider = Provider(delay_s=5.0)
    batching = Batching(provider.ask, 50)
    loop = asyncio.new_event_loop()
    task = loop.create_task(batching.get("a"))
    loop.run_until_complete(asyncio.sleep(0.03))
    loop.close()
    batching.close()
    assert not task.done()
    task._log_destroy_pending = False
    for batch in batching._batches.values():
        batch.task._log_destroy_pending = False
