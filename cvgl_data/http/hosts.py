"""How hard each host may be asked: rate, connections, pauses it asked for, and the quotas of its provider."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALLEST_SHARE = 1 / 16
"""A host that keeps refusing is asked with this share of the rate and connections it was to bear, never less."""

RECOVERY = 1 / 64
"""Share that each good answer gives back."""

LEASE = 50
LEASE_S = 1.0
"""Requests taken from a quota in one go, to use within this time: the file is not written for each of them."""

_DAY_BIN_S = 900


@dataclass(frozen=True, slots=True)
class Quota:
    """Requests that a provider allows to one group of its endpoints, over all runs of this user."""

    name: str
    per_minute: int | None = None
    per_day: int | None = None


class Host:
    """The gate in front of one host.

    A bucket of ``connections`` requests that refills at ``rate_per_s``, as many in flight at a time, and the pause it
    asked for. A refusal (429, 503) halves both, good answers give them back little by little: additive increase,
    multiplicative decrease.

    Args:
        name: Host and port.
        rate_per_s: Requests per second; 0 means no limit.
        connections: Requests in flight, and the bucket's depth.
    """

    def __init__(self, name: str, rate_per_s: float, connections: int) -> None:
        self.name = name
        self.share = 1.0
        """Of rate and connections, as far as the host bears them."""
        self.in_flight = 0
        """Connections in use."""
        self._rate_per_s = rate_per_s
        self._connections = connections
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next = 0.0  # when the next request may leave; lags behind the clock by at most a full bucket
        self._resume = 0.0
        self._slowed = 0.0

    async def enter(self) -> None:
        """Wait for a connection; `leave` gives it back."""
        while self.in_flight >= self._capacity():
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                self._wake()  # the place may have been ours already
                raise
        self.in_flight += 1

    def enter_now(self) -> bool:
        """Take a connection if there is one; what `enter` does when it need not wait."""
        if self.in_flight >= self._connections or self.share < 1.0 or self._waiting:
            return False
        self.in_flight += 1
        return True

    def leave(self) -> None:
        """Give a connection back."""
        self.in_flight -= 1
        if self._waiting:
            self._wake()

    @property
    def wait_s(self) -> float:
        """Seconds until the pause that the host asked for is over and the rate lets a request go."""
        return max(0.0, self._resume - time.monotonic(), self._next - time.monotonic())

    @property
    def pause_s(self) -> float:
        """Seconds for which the host asked to be left alone."""
        return max(0.0, self._resume - time.monotonic())

    def take_turn(self) -> bool:
        """Count one request against the rate; False if it has to wait, see `wait_s`."""
        if not self._rate_per_s and not self._resume:
            return True
        now = time.monotonic()
        if self._resume > now:
            return False
        if not self._rate_per_s:
            return True
        rate_per_s = self._rate_per_s * self.share
        self._next = max(self._next, now - (self._connections - 1) / rate_per_s)
        if self._next > now:
            return False
        self._next += 1 / rate_per_s
        return True

    def pause(self, seconds: float) -> None:
        """Let nothing pass for a while."""
        self._resume = max(self._resume, time.monotonic() + seconds)

    def refused(self, sent: float) -> None:
        """Slow down; refusals of requests that were ``sent`` before the last slowing say nothing new."""
        if sent >= self._slowed:
            self._slowed = time.monotonic()
            self.share = max(SMALLEST_SHARE, self.share / 2)

    def answered(self) -> None:
        """Go faster again, up to what was asked for."""
        if self.share < 1.0:
            self.share = min(1.0, self.share + RECOVERY)

    def _capacity(self) -> int:
        return max(1, round(self._connections * self.share))

    def _wake(self) -> None:
        free = self._capacity() - self.in_flight
        while free > 0 and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1


def state_folder() -> Path:
    """Return where limits are remembered between runs: ``CVGL_STATE_DIR``, or the user's folder for such things."""
    named = os.environ.get("CVGL_STATE_DIR", "")
    if named:
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_state_dir("cvgl", appauthor=False))


class Ledger:
    """What limits remember between runs: requests counted against quotas, and hosts that asked to be left alone.

    Quotas count over the minute and the 24 hours that have just passed, so they hold whenever the provider's own day
    begins. A kill may leave up to `LEASE` requests counted that were never sent.

    Args:
        path: JSON file, shared with every other process of this user; made when there is something to remember.
        clock: Seconds since the epoch.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self.parked: dict[str, float] = {name: float(until) for name, until in _read(path).get("parked", {}).items()}
        """Host to when it may be asked again, seconds since the epoch."""
        self._leases: dict[str, tuple[float, int]] = {}

    def take(self, host: str, quota: Quota) -> float:
        """Count one request against a quota.

        Returns:
            0, or the seconds until the quota lets a request pass; nothing was counted then.
        """
        name = f"{quota.name}@{host}"
        now = self._clock()
        taken, left = self._leases.get(name, (0.0, 0))
        if left and now - taken < LEASE_S:
            self._leases[name] = (taken, left - 1)
            return 0.0
        with self._locked() as state:
            bins = state.setdefault("quotas", {}).setdefault(name, {"minute": {}, "day": {}})
            if left:
                _count(bins, taken, -left)
            room, wait_s = _room(bins, quota, now)
            granted = min(LEASE, room)
            if granted:
                _count(bins, now, granted)
        self._leases[name] = (now, max(0, granted - 1))
        return 0.0 if granted else wait_s

    def park(self, host: str, seconds: float) -> None:
        """Remember that a host asked to be left alone for longer than a run may wait."""
        until = self._clock() + seconds
        with self._locked() as state:
            parked = state.setdefault("parked", {})
            parked[host] = max(until, parked.get(host, 0.0))
        self.parked[host] = until

    def parked_s(self, host: str) -> float:
        """Return for how many more seconds a host wants to be left alone."""
        left_s = self.parked.get(host, 0.0) - self._clock()
        if left_s <= 0.0:
            self.parked.pop(host, None)
        return max(0.0, left_s)

    def close(self) -> None:
        """Give back what was taken and not used."""
        unused = {name: lease for name, lease in self._leases.items() if lease[1]}
        self._leases.clear()
        if unused:
            with self._locked() as state:
                for name, (taken, left) in unused.items():
                    _count(state["quotas"][name], taken, -left)

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        """Yield the file's content, to be changed; other processes wait."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            if sys.platform != "win32":
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            state = _read(self._path)
            yield state
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(state), encoding="utf-8")
            os.replace(part, self._path)


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):  # a damaged file forgets, which is better than never to run again
        state = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(state, dict):
            return state
    return {}


def _count(bins: dict[str, dict[str, int]], at: float, number: int) -> None:
    for period, key in (("minute", str(int(at))), ("day", str(int(at) // _DAY_BIN_S))):
        bins[period][key] = bins[period].get(key, 0) + number


def _room(bins: dict[str, dict[str, int]], quota: Quota, now: float) -> tuple[int, float]:
    """Return how many requests may be counted now, and after how many seconds there is more room."""
    room, wait_s = LEASE, 0.0
    for period, limit, length_s, bin_s in (
        ("minute", quota.per_minute, 60, 1),
        ("day", quota.per_day, 86_400, _DAY_BIN_S),
    ):
        # A bin counts until the last moment of it is a whole period ago.
        counted = {key: n for key, n in bins[period].items() if (int(key) + 1) * bin_s + length_s > now and n}
        bins[period] = counted
        if limit is None:
            continue
        room = min(room, max(0, limit - sum(counted.values())))
        if sum(counted.values()) >= limit:
            wait_s = max(wait_s, (min(map(int, counted)) + 1) * bin_s + length_s - now)
    return room, wait_s
