"""The program against a server that fails, refuses, and is slow, and against disks that are full: what is promised.

Server and area are those of ``benchmarks/acquisition.py``, which shows the same at full size.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cvgl_data.fetch import reference_store
from cvgl_data.types import TILE_PX
from cvgl_data.workspace import Workspace

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))
import _fetch_clients as clients  # noqa: E402
import _fetch_tools as tools  # noqa: E402
import acquisition  # noqa: E402
import tile_server  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and resource limits of POSIX")

NUM = 400
CONNECTIONS = 8
"""What `Http` opens by default, which is also how many requests may leave at once."""

UNSAVED_ROWS = 200
"""What a kill may cost: the promise is 1 % of 20,000 tiles."""

MAIN = "from cvgl_cli.data import main; main()"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """What the benchmark shares between its sections, and with these tests."""
    folder = tmp_path_factory.mktemp("acquisition") / "panoramas"
    placeholder = clients.client_prepare(argparse.Namespace(out=folder))["placeholder"]
    return acquisition.Options(quick=True, placeholder=placeholder, panoramas=folder, peers=())


@pytest.fixture(scope="module")
def shared_server():
    with tools.serving(core=None) as running:
        yield running


@pytest.fixture
def server(shared_server):
    shared_server.ask("/reset")
    return shared_server


@pytest.fixture(scope="module")
def begun(options, shared_server, tmp_path_factory):
    """A fetch that ended early with some of its rows on disk."""
    folder = tmp_path_factory.mktemp("begun") / "out"
    words = options.cli("fetch", NUM, shared_server.base, folder, "--limit=300")[1:]
    state = {"CVGL_STATE_DIR": str(folder.parent / "state")}
    run([sys.executable, "-c", NO_SPACE_AFTER.format(left=5) + MAIN, *words], env={**os.environ, **state})
    assert 0 < len(rows_of(folder)) < 300
    return folder


def run(command, **settings):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **settings)


def rows_of(folder):
    with reference_store(Workspace(folder)) as store:
        return list(store.rows())


def unreadable(folder):
    return clients.client_check_readable(argparse.Namespace(out=folder))["unreadable"]


def is_original(row):
    path = clients.path_of(row["x"] // TILE_PX, row["y"] // TILE_PX)
    digest = hashlib.sha256(row["image"]).hexdigest()
    return row["image"] == tile_server.body_of(path) and row["sha256"] == digest


# The server itself: the proofs are worth what it is


def test_the_server_has_exactly_the_faults_asked_for():
    paths = [clients.path_of(x, y) for x, y in clients.tiles(4096)]
    rates = tile_server.rates_for(paths, acquisition.FAULT_COUNTS)
    found = Counter(tile_server.fault(path, rates) for path in paths)
    assert found.pop("") == 3450
    assert found == acquisition.FAULT_COUNTS
    assert tile_server.rates_for(paths, {}) == dict.fromkeys(tile_server.FAULTS, 0.0)


def test_the_servers_images():
    sizes = [len(body) for body in tile_server.bodies()]
    assert len(set(tile_server.bodies())) == 512
    assert 14_000 < sum(sizes) / 512 < 17_000
    assert len(tile_server.placeholder()) == 2521
    assert clients.kind_of_body(tile_server.placeholder()) == "placeholder"
    assert clients.kind_of_body(tile_server.bodies()[0]) == "good"
    assert clients.kind_of_body(tile_server.bodies()[0][:-100]) == "damaged"


def test_the_fullest_window():
    assert acquisition.most_in_window([0.0, 0.5, 1.0, 1.4, 1.45, 3.0], 1.0) == 4
    assert acquisition.most_in_window([], 1.0) == 0


# Faults


def test_every_fault_ends_as_its_class(options, tmp_path):
    counts = {"rate_limited": 4, "server_error": 10, "not_found": 8, "no_imagery": 14, "truncated": 9}
    rates = tile_server.rates_for([clients.path_of(*tile) for tile in clients.tiles(NUM)], counts)
    out = tmp_path / "out"
    with tools.serving(core=None, **rates) as server:
        declared = [f"--set=imagery.options.placeholder_sha256={options.placeholder}"]
        command = options.cli("fetch", NUM, server.base, out, *declared)
        done = run(command)
        assert done.returncode == 0, done.stderr
        stats = server.ask("/stats?detailed")
        rows = rows_of(out)
        again = run(command)
        assert again.returncode == 0, again.stderr
        assert server.ask("/stats")["requests"] == stats["requests"], "what failed for good was asked for again"
    good = [row for row in rows if row["status"] == "ok"]
    assert len(good) == NUM - counts["not_found"] - counts["no_imagery"]
    assert all(is_original(row) for row in good)
    statuses = Counter(row["status"] for row in rows)
    assert sum(statuses.values()) == NUM
    assert statuses["not_found"] + statuses["no_imagery"] == counts["not_found"] + counts["no_imagery"]
    assert set(statuses) <= {"ok", "not_found", "no_imagery"}
    assert all(row["error"] and row["image"] is None for row in rows if row["status"] != "ok")
    assert stats["requests"] == NUM + counts["rate_limited"] + counts["server_error"] + counts["truncated"]
    asked = {path: count for path, count in stats["asked"].items() if tile_server.fault(path, rates) == "not_found"}
    assert set(asked.values()) == {1}
    assert len(asked) == counts["not_found"]
    assert len(stats["retries_s"]) == counts["rate_limited"]
    for limited, retried in stats["retries_s"].values():
        assert retried - limited >= 1.0
        # The whole host is left alone, once the answer has arrived and what had been sent has been served.
        assert not [moment for moment in stats["times_s"] if limited + 0.5 < moment < limited + 1.0]


def test_the_server_sees_the_rate(options, server, tmp_path):
    done = run(options.cli("fetch", 200, server.base, tmp_path / "out", "--rate=50"))
    assert done.returncode == 0, done.stderr
    times = server.ask("/stats?detailed")["times_s"]
    assert len(times) == 200
    settled = times[50:]
    assert (len(settled) - 1) / (settled[-1] - settled[0]) == pytest.approx(50, rel=0.02)
    # One more than the client lets out: both ends of a second may count, and requests do not all travel equally fast.
    assert acquisition.most_in_window(times, 1.0) <= 50 + CONNECTIONS + 1


# Kills


def test_a_build_killed_again_and_again_ends_as_if_it_had_not_been(options, server, tmp_path):
    num = 1500
    whole = run(options.cli("build", num, server.base, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    command = options.cli("build", num, server.base, folder)
    server.ask("/reset")
    for moment in (1, 500, 1000):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while server.ask("/stats")["paths"] < moment:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not unreadable(folder)
        assert not (folder / "manifest.json").exists()
    again = run(command)
    assert again.returncode == 0, again.stderr
    assert acquisition.contents(folder) == acquisition.contents(tmp_path / "whole")
    assert not list(folder.rglob("*.part"))
    stats = server.ask("/stats?detailed")
    assert stats["paths"] == num
    assert stats["requests"] - num <= 3 * UNSAVED_ROWS


# Disks

NO_SPACE_AFTER = """
import errno, os
real, left = os.fsync, {left}
def fsync(descriptor):
    global left
    left -= 1
    if left < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(descriptor)
os.fsync = fsync
"""


def assert_one_line(done, *words):
    """The program failed, said why in one line, and did not fall over."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    for word in words:
        assert word in lines[-1]


def assert_goes_on(command, folder, server, num_rows):
    """What was on disk is not asked for again, and the build ends whole."""
    assert not unreadable(folder)
    before = server.ask("/stats")["requests"]
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert server.ask("/stats")["requests"] - before == NUM - num_rows
    rows = rows_of(folder)
    assert len(rows) == NUM
    assert all(is_original(row) for row in rows)


@pytest.mark.parametrize("left", [1, 5])
def test_a_full_disk(options, server, tmp_path, left):
    folder = tmp_path / "out"
    command = options.cli("fetch", NUM, server.base, folder)
    done = run([sys.executable, "-c", NO_SPACE_AFTER.format(left=left) + MAIN, *command[1:]])
    assert_one_line(done, str(folder), "No space left on device")
    num_rows = len(rows_of(folder)) if (folder / ".cvgl" / "references").is_dir() else 0
    assert_goes_on(command, folder, server, num_rows)
    if left == 5:
        assert num_rows > 0, "nothing had been kept"


def test_a_limit_on_file_sizes(options, server, tmp_path):
    """A quota, in effect: the system itself refuses to write on."""
    folder = tmp_path / "out"
    command = options.cli("fetch", NUM, server.base, folder)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = run(command, preexec_fn=limit)
    assert_one_line(done, str(folder), "File too large")
    assert_goes_on(command, folder, server, len(rows_of(folder)))


def test_a_disk_that_is_full_when_the_shards_are_written(options, server, tmp_path):
    num, folder = 600, tmp_path / "out"
    command = options.cli("build", num, server.base, folder)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))  # less than the shard, more than a part

    done = run(command, preexec_fn=limit)
    assert len(rows_of(folder)) == num, "it was not the shard that did not fit"
    assert_one_line(done, str(folder), "File too large")
    assert not unreadable(folder)
    assert not (folder / "manifest.json").exists()
    again = run(command)
    assert again.returncode == 0, again.stderr
    assert server.ask("/stats")["requests"] == num


def without_override():
    """Let file modes count for root as well: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH are gone after the exec."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails for others than root, for whom modes count anyway


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("place", ["", ".cvgl", ".cvgl/references"])
def test_a_read_only_folder(options, server, begun, tmp_path, place):
    folder = tmp_path / "out"
    command = options.cli("fetch", NUM, server.base, folder, "--limit=300")
    if place:
        shutil.copytree(begun, folder)
    else:
        folder.mkdir()
    (folder / place).chmod(0o555)
    try:
        done = run(command, preexec_fn=without_override)
    finally:
        (folder / place).chmod(0o755)
    assert_one_line(done, str(folder), "ermission denied")
    assert not unreadable(folder)
    num_rows = len(rows_of(folder)) if place else 0
    assert num_rows >= (len(rows_of(begun)) if place else 0)
    server.ask("/reset")
    again = run(command)
    assert again.returncode == 0, again.stderr
    assert server.ask("/stats")["requests"] == 300 - num_rows
    rows = rows_of(folder)
    assert len(rows) == 300
    assert all(is_original(row) for row in rows)


# Secrets

TOKEN = "S3CR3T-tok~en.8f1e0b"


def visible(folder):
    """Return what anybody could read in a folder: every byte, and the text of compressed tables."""
    found = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet":
            found.append(pq.read_table(path).to_pandas().to_csv().encode())
            found.append(repr(pq.read_schema(path).metadata).encode())
        elif path.suffix == ".arrow":
            found.append(repr(pa.ipc.open_file(str(path)).read_all().to_pylist()).encode())
    return b"\n".join(found)


FAULTY = tile_server.rates_for(
    [clients.path_of(*tile) for tile in clients.tiles(64)],
    {"server_error": 2, "not_found": 3, "no_imagery": 2, "truncated": 2},
)
TOKEN_CASES = {
    "success": ({}, TOKEN, "build", 0),
    "faults": (FAULTY, TOKEN, "build", 0),
    "refused": ({}, TOKEN + "x", "fetch", 1),
    "no server": (None, TOKEN, "fetch", 1),
}


@pytest.mark.parametrize("case", TOKEN_CASES)
def test_a_token_is_seen_nowhere(options, tmp_path, monkeypatch, case):
    rates, token, step, status = TOKEN_CASES[case]
    monkeypatch.setenv("BENCH_TOKEN", TOKEN)
    monkeypatch.setenv("MY_TOKEN", token)
    monkeypatch.setenv("COLUMNS", "2000")  # a token broken over two lines of the log would not be found
    out = tmp_path / "out"
    with tools.serving(core=None, token_variable="BENCH_TOKEN", **(rates or {})) as server:
        base = server.base if rates is not None else "http://127.0.0.1:9"
        command = options.cli(step, 64, base, out, "-vv", *(["--limit=2"] if rates is None else []))
        command.remove("--quiet")
        at = next(index for index, word in enumerate(command) if word.startswith("--imagery="))
        # A name that every service gives its keys, and one that no list of such names would hold.
        command[at] += "?token=${MY_TOKEN}&subscription=${MY_TOKEN}"
        done = run(command)
        stats = server.ask("/stats")
    assert done.returncode == status, done.stderr
    if rates is not None:
        assert stats["requests"] > 0
        assert (stats["forbidden"] > 0) is (case == "refused")
    if case in ("faults", "no server"):
        assert "DEBUG" in done.stderr
        assert "tile/18" in done.stderr, "the log was not looked at at its most talkative"
    everything = visible(tmp_path) + done.stdout.encode() + done.stderr.encode()
    if case == "faults":
        assert b"HTTP 404" in everything, "the failures' texts were not looked at"
    assert b"MY_TOKEN" in everything, "the template is saved, with the variable's name"
    shown = [form for form in {token, quote(token, safe=""), token[2:-2]} if form.encode() in everything]
    assert not shown


# Start-up


def test_start_up_is_quick(tmp_path):
    code = "import cvgl_data.fetch, json, time; print(json.dumps(time.process_time()))"
    runs = [run([sys.executable, "-c", code]) for _ in range(2)]
    assert min(float(json.loads(done.stdout)) for done in runs) < 1.5
