import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from cvgl_data.http import hosts as module
from cvgl_data.http.hosts import LEASE, Host, Ledger, Quota


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves, so that a busy machine changes nothing."""
    clock = SimpleNamespace(now=1_000_000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


def departures(host, clock, count):
    times = []
    for _ in range(count):
        while not host.take_turn():
            clock.now += host.wait_s
        times.append(clock.now)
    return np.array(times)


def test_a_bucket_lets_a_burst_pass_and_then_one_per_interval(clock):
    host = Host("h", 50, 3)
    start = clock.now
    np.testing.assert_allclose(departures(host, clock, 20) - start, np.maximum(0, np.arange(20) - 2) / 50, atol=1e-6)
    clock.now += 60  # idle: the bucket fills, but not beyond the burst
    times = departures(host, clock, 5)
    np.testing.assert_allclose(times - times[0], [0, 0, 0, 0.02, 0.04], atol=1e-6)


def test_a_pause_holds_everything_and_the_longest_counts(clock):
    host = Host("h", 0, 4)
    host.pause(5)
    host.pause(2)
    assert not host.take_turn()
    assert host.wait_s == host.pause_s == 5
    clock.now += 5
    assert host.take_turn()


def test_refusals_halve_once_per_wave_and_answers_recover(clock):
    host = Host("h", 16, 8)
    sent = clock.now
    clock.now += 1
    for _ in range(5):  # all of them left before the first refusal came back
        host.refused(sent)
    assert host.share == 0.5
    clock.now += 1
    host.refused(clock.now)
    assert host.share == 0.25
    times = departures(host, clock, 12)[-4:]
    np.testing.assert_allclose(np.diff(times), 1 / 4)
    for _ in range(20):
        clock.now += 1
        host.refused(clock.now)
    assert host.share == module.SMALLEST_SHARE
    for _ in range(1000):
        host.answered()
    assert host.share == 1.0


def test_connections_are_capped_and_shrink_with_the_share():
    async def main():
        host = Host("h", 0, 8)
        most = 0

        async def request():
            nonlocal most
            await host.enter()
            most = max(most, host.in_flight)
            await asyncio.sleep(0)
            host.leave()

        await asyncio.gather(*(request() for _ in range(50)))
        full, most = most, 0
        host.share = 0.25
        await asyncio.gather(*(request() for _ in range(50)))
        return full, most, host.in_flight

    assert asyncio.run(main()) == (8, 2, 0)


def test_a_cancelled_waiter_passes_its_place_on():
    async def main():
        host = Host("h", 0, 1)
        await host.enter()
        first, second = asyncio.ensure_future(host.enter()), asyncio.ensure_future(host.enter())
        await asyncio.sleep(0)
        host.leave()  # wakes the first, which is cancelled before it runs
        first.cancel()
        await asyncio.wait_for(second, 5)
        return host.in_flight

    assert asyncio.run(main()) == 1


def test_a_quota_holds_in_every_window_and_over_runs(tmp_path, clock):
    quota = Quota("tiles", per_minute=70, per_day=200)
    passed = []
    for _ in range(6):  # a new process each time
        ledger = Ledger(tmp_path / "limits.json", lambda: clock.now)
        for _ in range(100):
            if ledger.take("h", quota) == 0:
                passed.append(clock.now)
            clock.now += 0.3
        ledger.close()
    passed = np.array(passed)
    for length, limit in ((60, 70), (86_400, 200)):
        in_window = [np.sum((passed > end - length) & (passed <= end)) for end in passed]
        assert max(in_window) <= limit
    assert len(passed) == 200
    assert Ledger(tmp_path / "limits.json", lambda: clock.now).take("other host", quota) == 0


def test_a_used_up_quota_says_when_it_goes_on(tmp_path, clock):
    quota = Quota("tiles", per_day=10)
    ledger = Ledger(tmp_path / "limits.json", lambda: clock.now)
    assert [ledger.take("h", quota) for _ in range(10)] == [0.0] * 10
    wait_s = ledger.take("h", quota)
    assert 86_400 <= wait_s <= 86_400 + 900
    clock.now += wait_s
    assert ledger.take("h", quota) == 0


def test_a_kill_leaves_too_much_counted_rather_than_too_little(tmp_path, clock):
    quota = Quota("tiles", per_day=1000)
    Ledger(tmp_path / "limits.json", lambda: clock.now).take("h", quota)  # and dies
    counted = json.loads((tmp_path / "limits.json").read_text())["quotas"]["tiles@h"]["day"]
    assert sum(counted.values()) == LEASE


def test_a_parked_host_stays_parked_in_later_runs(tmp_path, clock):
    Ledger(tmp_path / "limits.json", lambda: clock.now).park("h", 3600)
    later = Ledger(tmp_path / "limits.json", lambda: clock.now)
    assert later.parked_s("h") == 3600
    assert later.parked_s("other") == 0
    clock.now += 3600
    assert later.parked_s("h") == 0


def test_a_damaged_file_is_forgotten(tmp_path, clock):
    (tmp_path / "limits.json").write_text("{half")
    assert Ledger(tmp_path / "limits.json", lambda: clock.now).take("h", Quota("q", per_day=5)) == 0
