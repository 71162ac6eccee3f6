"""Fetching tiles: ours and its peers against one loopback server, under load, latency, faults, a rate, and kills.

Run: python benchmarks/acquisition.py [--quick] [--only throughput|latency|memory|startup|faults|rate|kill]
The server (`tile_server.py`) is on core 1, the tool on core 0. Each peer is installed into an environment of its own
below build/bench-peers; one that cannot be is listed as such. Prints Markdown. CPU is user + system of the tool's whole
process tree, the marginal figure the difference between the two sizes; RSS is that of its largest process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tile_server

HERE = Path(__file__).resolve()
PEERS = HERE.parent.parent / "build" / "bench-peers"
CORE_TOOL, CORE_SERVER = 0, 1
ZOOM, WEST, NORTH = 18, 41_900, 93_300
"""North-west corner of the area in tiles."""

SERVICE = "/arcgis/rest/services/World_Imagery/MapServer/tile"
CONNECTIONS = 64
LATENCY_MS = 20
FAULT_COUNTS = {"rate_limited": 203, "server_error": 122, "not_found": 83, "no_imagery": 144, "truncated": 94}
PLACEHOLDER_BYTES = 2521
QUIET = {"WANDB_MODE": "offline", "NO_ALBUMENTATIONS_UPDATE": "1"}
LIMIT_S = 900.0
"""A tool that takes longer is stopped and counted as failed."""


# What runs in the measured process: `acquisition.py --client NAME`, with the interpreter of the tool. Only the standard
# library is imported above, so that a client pays for what it uses and no more.


def shape(num: int) -> tuple[int, int]:
    """Return columns and rows of the most square rectangle of so many tiles."""
    rows = next(n for n in range(math.isqrt(num), 0, -1) if num % n == 0)
    return num // rows, rows


def tiles(num: int) -> list[tuple[int, int]]:
    """Return x and y of the tiles of the area, row by row."""
    columns, rows = shape(num)
    return [(WEST + column, NORTH + row) for row in range(rows) for column in range(columns)]


def path_of(x: int, y: int) -> str:
    return f"{SERVICE}/{ZOOM}/{y}/{x}"


def urls(num: int, base: str) -> list[str]:
    return [base + path_of(x, y) for x, y in tiles(num)]


def lonlat(x: float, y: float) -> tuple[float, float]:
    """Return the position of a point given in tiles."""
    return x / 2**ZOOM * 360 - 180, math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / 2**ZOOM))))


def bbox(num: int) -> tuple[float, float, float, float]:
    """Return west, south, east, north of the area in degrees, just inside its outer tiles."""
    columns, rows = shape(num)
    west, north = lonlat(WEST + 0.25, NORTH + 0.25)
    east, south = lonlat(WEST + columns - 0.25, NORTH + rows - 0.25)
    return west, south, east, north


def kind_of_body(body: bytes) -> str:
    """Return good, placeholder or damaged, from the outside."""
    if len(body) == PLACEHOLDER_BYTES:
        return "placeholder"
    return "good" if body[:2] == b"\xff\xd8" and body[-2:] == b"\xff\xd9" else "damaged"


def xyz_options(base: str, digest: str) -> dict[str, str]:
    """Return the options of our source; the placeholder's digest as a user would declare it."""
    return {"location": base + SERVICE + "/{z}/{y}/{x}", **({"placeholder_sha256": digest} if digest else {})}


def client_ours(arguments: argparse.Namespace) -> dict[str, int]:
    """Fetch as `cvgl-data` does, on the loop that it uses."""
    import uvloop

    from cvgl_data.fetch import fetch_references
    from cvgl_data.http import Http
    from cvgl_data.sources import open_imagery
    from cvgl_data.types import TILE_PX, Window
    from cvgl_data.workspace import Workspace

    source = open_imagery("xyz", xyz_options(arguments.base, arguments.placeholder))
    windows = (Window(x * TILE_PX, y * TILE_PX, TILE_PX, ZOOM) for x, y in tiles(arguments.num))
    options: dict[str, Any] = {"in_flight": 2 * CONNECTIONS}
    if arguments.verify != "header":
        options["verify"] = arguments.verify

    async def run(workspace: Workspace) -> Counter[Any]:
        async with Http(rate_per_s=0, connections=CONNECTIONS) as http:
            return await fetch_references(windows, "bench", source, workspace, http, **options)

    with Workspace(arguments.out).open({"name": "bench"}) as workspace:
        return {outcome.value: count for outcome, count in uvloop.run(run(workspace)).items()}


def client_aiohttp(arguments: argparse.Namespace) -> dict[str, int]:
    """GET and forget: what no tool on top of it can pass."""
    import aiohttp
    import uvloop

    found: Counter[str] = Counter()

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector) as session:
            left = iter(urls(arguments.num, arguments.base))

            async def worker() -> None:
                for url in left:
                    async with session.get(url) as response:
                        found[kind_of_body(await response.read())] += 1

            await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))

    uvloop.run(run())
    return dict(found)


def client_streetlevel(arguments: argparse.Namespace) -> dict[str, int]:
    from streetlevel.util import download_files_async

    return dict(Counter(map(kind_of_body, asyncio.run(download_files_async(urls(arguments.num, arguments.base))))))


def client_contextily(arguments: argparse.Namespace) -> dict[str, int]:
    """One array; cells are not told apart, so all of them count as good."""
    import contextily

    template = arguments.base + SERVICE + "/{z}/{y}/{x}"
    options = {"zoom": ZOOM, "source": template, "ll": True, "n_connections": CONNECTIONS, "use_cache": False}
    image, _ = contextily.bounds2img(*bbox(arguments.num), **options)
    return {"good": image.shape[0] * image.shape[1] // 256**2}


# What looks at the results afterwards: also a process of its own, so that this one stays small (a child's peak RSS
# begins with its parent's).


def client_check_ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare every row with what the server sends for its path without faults."""
    from cvgl_data.fetch import reference_store
    from cvgl_data.types import TILE_PX
    from cvgl_data.workspace import Workspace

    rows: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    with reference_store(Workspace(arguments.out)) as store:
        for row in store.rows():
            statuses[row["status"]] += 1
            if row["status"] == "ok":
                good = tile_server.body_of(path_of(row["x"] // TILE_PX, row["y"] // TILE_PX))
                is_whole = row["image"] == good and row["sha256"] == hashlib.sha256(good).hexdigest()
                rows[
                    "good" if is_whole else "placeholder" if len(row["image"]) == PLACEHOLDER_BYTES else "damaged"
                ] += 1
    return {**rows, "statuses": dict(statuses)}


def client_check_img2dataset(arguments: argparse.Namespace) -> dict[str, Any]:
    import pyarrow.parquet

    rows: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    for path in sorted(Path(arguments.out).glob("*.parquet")):
        for row in pyarrow.parquet.read_table(path, columns=["status", "jpg"]).to_pylist():
            statuses[row["status"]] += 1
            if row["status"] == "success":
                rows[kind_of_body(row["jpg"])] += 1
    return {**rows, "statuses": dict(statuses)}


def client_check_readable(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read in full every file of a dataset folder that bears its final name."""
    import pyarrow
    import pyarrow.parquet

    unreadable, rows = [], 0
    for path in sorted(Path(arguments.out).rglob("*")):
        try:
            if path.suffix == ".arrow":
                table = pyarrow.ipc.open_file(str(path)).read_all()
                table.validate(full=True)
                rows += table.num_rows if path.parent.name == "references" else 0
            elif path.suffix == ".parquet":
                pyarrow.parquet.read_table(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            unreadable.append(f"{path}: {error}")
    return {"unreadable": unreadable, "rows": rows}


def client_prepare(arguments: argparse.Namespace) -> dict[str, str]:
    """Make a folder with one small panorama at the area's north-west corner; return what a recipe has to know."""
    import inspect

    from PIL import Image

    from cvgl_data.sources.xyz import XyzImagery

    exif = Image.Exif()
    lon, lat = lonlat(WEST + 0.5, NORTH + 0.5)
    exif[0x8825] = {1: "N", 2: (lat, 0.0, 0.0), 3: "W", 4: (-lon, 0.0, 0.0)}
    Path(arguments.out).mkdir(parents=True)
    Image.linear_gradient("L").resize((128, 64)).convert("RGB").save(Path(arguments.out) / "p.jpg", exif=exif)
    is_taken = "placeholder_sha256" in inspect.signature(XyzImagery).parameters
    return {"placeholder": hashlib.sha256(tile_server.placeholder()).hexdigest() if is_taken else ""}


CLIENTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    name.removeprefix("client_").replace("_", "-"): found
    for name, found in list(globals().items())
    if name.startswith("client_")
}


def client(name: str, python: str = sys.executable, **values: Any) -> list[str]:
    """Return the command line of a client."""
    words = [f"--{key}={value}" for key, value in values.items()]
    return [python, str(HERE), "--client", name, *words]


def ask(name: str, **values: Any) -> Any:
    """Run a client that is not measured and return its answer."""
    done = subprocess.run(client(name, **values), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# Measuring


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run of one tool."""

    wall_s: float
    cpu_s: float
    rss_mb: float
    status: int
    started_s: float
    said: str
    stats: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> int:
        """Rows kept although they are placeholders or damaged."""
        return int(self.found.get("placeholder", 0) + self.found.get("damaged", 0))

    @property
    def error(self) -> str:
        """The error of a tool that failed, fit for a table."""
        lines = [line for line in self.said.splitlines() if line.strip()]
        named = [line for line in lines if line.startswith("error:") or "Error: " in line.split(" ", 1)[0] + " "]
        return (named or lines)[-1][:90].replace("|", "/") if self.status and lines else ""


def measured(command: Sequence[str], environment: dict[str, str] | None = None) -> Run:
    """Run a command on the tool's core and measure its process tree."""
    with tempfile.TemporaryFile("w+") as said:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            preexec_fn=lambda: os.sched_setaffinity(0, {CORE_TOOL}),
            start_new_session=True,
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - started > LIMIT_S:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.002)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    cpu = usage.ru_utime + usage.ru_stime
    return Run(wall, cpu, usage.ru_maxrss / 1024, process.returncode, started, text)


@dataclass(frozen=True, slots=True)
class Server:
    """A running tile server."""

    base: str

    def ask(self, path: str) -> Any:
        """Return the server's statistics, from ``/stats``, ``/stats?detailed`` or ``/reset``."""
        with urllib.request.urlopen(self.base + path, timeout=60) as response:
            return json.load(response)


@contextlib.contextmanager
def serving(core: int | None = CORE_SERVER, **options: float | str) -> Iterator[Server]:
    """Run a tile server; options as on its command line."""
    given = options if core is None else {"core": core, **options}
    words = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    command = [sys.executable, str(HERE.with_name("tile_server.py")), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True, slots=True)
class Tool:
    """A way to fetch the tiles of the area: its name, and the command line of (number, base URL, new folder)."""

    name: str
    command: Callable[[int, str, Path], list[str]]
    check: str = ""
    """The client that looks at the results; empty if the tool's own process does."""
    most: int = 10**9
    """More tiles than that are not asked of it."""

    def run(self, num: int, server: Server) -> Run:
        """Fetch so many tiles into a new folder and look at the result."""
        with tempfile.TemporaryDirectory(prefix="cvgl-bench-") as folder:
            (Path(folder) / "urls.txt").write_text("\n".join(urls(num, server.base)) + "\n")
            command = self.command(num, server.base, Path(folder))
            server.ask("/reset")
            run = measured(command, QUIET)
            stats = server.ask("/stats?detailed")
            found: dict[str, Any] = {}
            with contextlib.suppress(RuntimeError, ValueError, IndexError):
                if self.check:
                    found = ask(self.check, out=Path(folder) / "out")
                elif not run.status:
                    found = json.loads(run.said.splitlines()[-1])
        return Run(run.wall_s, run.cpu_s, run.rss_mb, run.status, run.started_s, run.said, stats, found)


def ours(placeholder: str, verify: str = "header") -> Tool:
    return Tool(
        f"cvgl, verify={verify}",
        lambda num, base, folder: client(
            "ours", num=num, base=base, out=folder / "out", verify=verify, placeholder=placeholder
        ),
        check="check-ours",
    )


def img2dataset(name: str, bin_folder: Path, *words: str) -> Tool:
    settings = ["--output_format=parquet", "--processes_count=1", "--resize_mode=no", "--number_sample_per_shard=5000"]

    def command(num: int, base: str, folder: Path) -> list[str]:
        places = ["--url_list", str(folder / "urls.txt"), "--output_folder", str(folder / "out")]
        return [str(bin_folder / "img2dataset"), *places, *settings, "--thread_count", str(CONNECTIONS), *words]

    return Tool(name, command, check="check-img2dataset")


def own_client(name: str, python: Path, title: str, most: int = 10**9) -> Tool:
    return Tool(title, lambda num, base, folder: client(name, python=str(python), num=num, base=base), most=most)


def install(name: str) -> tuple[Path, str]:
    """Install a peer into its own environment; return its ``bin`` folder and its version, or raise RuntimeError."""
    bin_folder = PEERS / name / "bin"
    finished = PEERS / name / "installed"
    if not finished.exists():
        shutil.rmtree(PEERS / name, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(PEERS / name)],
            [str(bin_folder / "python"), "-m", "pip", "install", "--quiet", name],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1])
        finished.touch()
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return bin_folder, subprocess.run(
        [bin_folder / "python", "-c", code], capture_output=True, text=True
    ).stdout.strip()


def peers() -> tuple[list[Tool], list[str]]:
    """Return the peers that could be installed, and a line about each that could not."""
    found, notes = [own_client("aiohttp", Path(sys.executable), "aiohttp + uvloop, GET only")], []
    for name in ("img2dataset", "streetlevel", "contextily"):
        try:
            bin_folder, version = install(name)
        except (RuntimeError, OSError) as error:
            notes.append(f"{name}: **not measured**, could not be installed: {error}")
            continue
        title = f"{name} {version}"
        if name == "img2dataset":
            raw = ["--disable_all_reencoding", "True", "--extract_exif", "False", "--compute_hash", "None"]
            found.append(img2dataset(f"{title}, checked", bin_folder, "--skip_reencode", "True"))
            found.append(img2dataset(f"{title}, raw", bin_folder, *raw))
        else:
            # A mosaic of 20,000 RGBA tiles takes more memory than a small machine has.
            most = 4096 if name == "contextily" else 10**9
            found.append(own_client(name, bin_folder / "python", title, most))
    return found, notes


# Sections: each prints a table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) + " |")
    print(flush=True)


def repeated(
    tools: Sequence[Tool], sizes: Sequence[int], num_runs: int, server: Server
) -> dict[tuple[str, int], list[Run]]:
    """Run every tool at every size, in random order, after one run of each that does not count."""
    jobs = [(tool, num) for tool in tools for num in sizes if num <= tool.most]
    for tool in tools:
        tool.run(min(sizes), server)
    order = jobs * num_runs
    random.Random(0).shuffle(order)
    runs: dict[tuple[str, int], list[Run]] = {(tool.name, num): [] for tool, num in jobs}
    for tool, num in order:
        runs[tool.name, num].append(tool.run(num, server))
    return runs


def throughput(options: Options, **server_options: float) -> None:
    sizes = (1024, 4096) if options.quick else (4096, 20_000)
    tools = [ours(options.placeholder), ours(options.placeholder, "decode"), *options.peers]
    with serving(**server_options) as server:
        runs = repeated(tools, sizes, 1 if options.quick else 5, server)
    rows: list[list[object]] = []
    for (name, num), found in runs.items():
        good = [run for run in found if not run.status]
        if not good:
            rows.append([name, num, *["failed"] * 3, "", "", found[0].stats["requests"], "", "", found[0].error])
            continue
        cpu = statistics.median(run.cpu_s for run in good)
        marginal = ""
        small = [run.cpu_s for run in runs[name, sizes[0]] if not run.status]
        if num == sizes[1] and small and cpu > statistics.median(small):
            marginal = f"{(sizes[1] - sizes[0]) / (cpu - statistics.median(small)):,.0f}"
        wall = sorted(run.wall_s for run in good)
        between = statistics.median(run.stats["last_s"] - run.stats["first_s"] for run in good)
        last = good[-1]
        rows.append(
            [
                name,
                num,
                f"{wall[0]:.2f} / {statistics.median(wall):.2f}",
                f"{min(run.cpu_s for run in good):.2f} / {cpu:.2f}",
                f"{num / cpu:,.0f}",
                marginal,
                f"{num / between:,.0f}",
                f"{max(run.rss_mb for run in good):.0f}",
                last.stats["requests"],
                last.stats["connections"],
                f"{last.found.get('good', 0):,} / {last.wrong}",
            ]
        )
    columns = "tool, tiles, wall s (best / median), CPU s (best / median), tiles per CPU-s, marginal"
    columns += ", tiles/s at the server, peak RSS MB, requests, connections, good / wrong"
    print_table(columns.split(", "), rows)


def latency(options: Options) -> None:
    """The limit is connections / latency."""
    print(f"Limit at {CONNECTIONS} connections: {CONNECTIONS / LATENCY_MS * 1000:,.0f} tiles/s.\n")
    throughput(options, latency_ms=LATENCY_MS)


def memory(options: Options) -> None:
    rows = []
    with serving() as server:
        for num in (4096, 20_000) if options.quick else (20_000, 200_000):
            run = ours(options.placeholder).run(num, server)
            good = run.found.get("good", 0)
            rows.append([num, f"{run.rss_mb:.0f}", f"{run.wall_s:.1f}", f"{num / run.cpu_s:,.0f}", good])
    print_table(["tiles", "peak RSS MB", "wall s", "tiles per CPU-s", "good"], rows)


def startup(options: Options) -> None:
    rows = []
    for module in ("cvgl_data.fetch", "cvgl_cli.data"):
        runs = [measured([sys.executable, "-c", f"import {module}"]) for _ in range(4 if options.quick else 8)][1:]
        wall, cpu = (sorted(getattr(run, name) for run in runs) for name in ("wall_s", "cpu_s"))
        rows.append([f"import {module}", *(f"{v[0]:.2f} / {statistics.median(v):.2f}" for v in (wall, cpu))])
    with serving() as server, tempfile.TemporaryDirectory(prefix="cvgl-bench-") as folder:
        waits, cpus = [], []
        for index in range(3 if options.quick else 6):
            server.ask("/reset")
            run = measured(options.cli("fetch", 16, server.base, Path(folder) / str(index)))
            waits.append(server.ask("/stats")["first_s"] - run.started_s)
            cpus.append(run.cpu_s)
        waits, cpus = sorted(waits[1:]), sorted(cpus[1:])
        both = (f"{v[0]:.2f} / {statistics.median(v):.2f}" for v in (waits, cpus))
        rows.append(["cvgl-data fetch references: to the first request; CPU of the whole run (16 tiles)", *both])
    print_table(["what", "wall s (best / median)", "CPU s (best / median)"], rows)


def faults(options: Options) -> None:
    num = 1024 if options.quick else 4096
    counts = {name: count * num // 4096 for name, count in FAULT_COUNTS.items()}
    rates = tile_server.rates_for([path_of(*tile) for tile in tiles(num)], counts)
    good = num - counts["not_found"] - counts["no_imagery"]
    ideal = num + counts["rate_limited"] + counts["server_error"] + counts["truncated"]
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    print(f"Ideal: {good:,} good, {ideal:,} requests, no retry sooner than 1 s after a 429.\n")
    tools = [ours(options.placeholder), ours(options.placeholder, "decode")]
    for peer in options.peers:
        tools.append(peer)
        if "checked" in peer.name:
            tools.append(Tool(f"{peer.name}, 2 retries", with_words(peer.command, "--retries=2"), peer.check))
    rows: list[list[object]] = []
    for tool in tools:
        with serving(**rates) as server:
            run = tool.run(num, server)
        asked = run.stats["asked"]
        missing = sum(count > 1 for path, count in asked.items() if tile_server.fault(path, rates) == "not_found")
        waits = [times[1] - times[0] for times in run.stats["retries_s"].values() if len(times) > 1]
        rows.append(
            [
                tool.name,
                int(run.found.get("good", 0)),
                int(run.found.get("placeholder", 0)),
                int(run.found.get("damaged", 0)),
                run.stats["requests"],
                f"{min(waits):.3f}" if waits else "no retry",
                missing,
                f"{run.wall_s:.1f}",
                run.error or ", ".join(f"{n} {name}" for name, n in top(run.found.get("statuses", {}))),
            ]
        )
    columns = "tool, good, placeholders kept, damaged kept, requests, soonest retry after 429 s"
    print_table([*columns.split(", "), "404s asked again", "wall s", "outcomes"], rows)


def with_words(command: Callable[..., list[str]], *words: str) -> Callable[..., list[str]]:
    """Return a command with more words at its end."""
    return lambda *values: [*command(*values), *words]


def top(statuses: dict[str, int]) -> list[tuple[str, int]]:
    return Counter(statuses).most_common(6)


def rate(options: Options) -> None:
    """What the server sees of ``--rate 50``: the pace after the first burst, and the fullest second."""
    per_s, num = 50, 300 if options.quick else 1500
    with serving() as server, tempfile.TemporaryDirectory(prefix="cvgl-bench-") as folder:
        measured(options.cli("fetch", num, server.base, Path(folder) / "out", f"--rate={per_s}"))
        times = server.ask("/stats?detailed")["times_s"]
    pace = fullest = 0.0
    if len(times) > 2 * per_s:
        settled = times[per_s:]  # whatever the burst is, it is over by then
        pace = (len(settled) - 1) / (settled[-1] - settled[0])
        fullest = most_in_window(times, 1.0)
    columns = ["asked for", "requests", "seen per s", "off", "fullest second", "fullest second after the first"]
    rest = most_in_window([moment for moment in times if moment > times[0] + 1.0], 1.0)
    print_table(columns, [[per_s, len(times), f"{pace:.2f}", f"{pace / per_s - 1:+.1%}", int(fullest), rest]])


def most_in_window(times: Sequence[float], width_s: float) -> int:
    """Return the largest number of times inside any window of that width."""
    first = most = 0
    for last, moment in enumerate(times):
        while moment - times[first] >= width_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file of a dataset, without the workspace."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".cvgl" not in path.parts]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def is_killed_at(moment_s: float, command: Sequence[str]) -> bool:
    """Start a command, kill it after so long, and return whether it was still running."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {CORE_TOOL}),
        start_new_session=True,
    )
    try:
        process.wait(moment_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait() == -signal.SIGKILL
    return False


def kill(options: Options) -> None:
    """SIGKILL whole builds at random moments, go on, and compare with one that was left alone."""
    num, kills = (2000, 3) if options.quick else (20_000, 20)
    rng = random.Random(0)
    rows: list[list[object]] = []
    with serving() as server, tempfile.TemporaryDirectory(prefix="cvgl-bench-") as name:
        root = Path(name)
        whole = measured(options.cli("build", num, server.base, root / "whole"))
        if whole.status:
            raise RuntimeError(f"the uninterrupted build failed: {whole.error}")
        expected = contents(root / "whole")
        folder = root / "killed"
        command = options.cli("build", num, server.base, folder)
        while len(rows) < kills:
            shutil.rmtree(folder, ignore_errors=True)
            server.ask("/reset")
            moment = rng.uniform(0.0, 1.0) * whole.wall_s
            if not is_killed_at(moment, command):
                continue  # it was done before
            before = server.ask("/stats")["requests"]
            found = ask("check-readable", out=folder)
            again = measured(command)
            stats = server.ask("/stats")
            is_same = not again.status and contents(folder) == expected
            twice = stats["requests"] - stats["paths"]
            row = [len(rows) + 1, f"{moment:.2f}", before, found["rows"], len(found["unreadable"])]
            rows.append([*row, f"{twice} ({twice / num:.2%})", "yes" if is_same else f"**no** {again.error}"])
    columns = "kill, at s, requests before, rows on disk, unreadable files, fetched twice, identical"
    print(f"{num:,} tiles; the uninterrupted build took {whole.wall_s:.1f} s.\n")
    print_table(columns.split(", "), rows)


SECTIONS: dict[str, Callable[[Options], None]] = {}


@dataclass(frozen=True, slots=True)
class Options:
    """What the sections share."""

    quick: bool
    placeholder: str
    """Digest that our source is told; empty if it takes none."""
    panoramas: Path
    peers: Sequence[Tool]

    def cli(self, step: str, num: int, base: str, out: Path, *words: str) -> list[str]:
        """Return the command line of ``cvgl-data``, as fast as it goes."""
        program = str(Path(sys.executable).parent / "cvgl-data")
        box = ",".join(f"{value:.9f}" for value in bbox(num))
        template = xyz_options(base, "")["location"]
        step_words = ["build"] if step == "build" else ["fetch", "references"]
        chosen = [f"--imagery=xyz:{template}", f"--panoramas=folder:{self.panoramas}", "--set=distance_map.k=8"]
        rest = [f"--bbox=bench={box}", f"--zoom={ZOOM}", "--rate=0", "--quiet", f"--out={out}"]
        return [program, *step_words, *chosen, *rest, *words]


SECTIONS.update(
    throughput=throughput, latency=latency, memory=memory, startup=startup, faults=faults, rate=rate, kill=kill
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller and once: does it work?")
    parser.add_argument("--only", choices=list(SECTIONS), help="this section")
    for name, kind, default in (("client", str, ""), ("num", int, 4096), ("base", str, ""), ("out", str, "")):
        parser.add_argument(f"--{name}", type=kind, default=default, help=argparse.SUPPRESS)
    parser.add_argument("--verify", default="header", help=argparse.SUPPRESS)
    parser.add_argument("--placeholder", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        print(json.dumps(CLIENTS[arguments.client](arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="cvgl-bench-") as folder:
        os.environ["CVGL_STATE_DIR"] = str(Path(folder) / "state")  # what is learnt about this server is nobody's
        known = ask("prepare", num=16, out=Path(folder) / "panoramas")
        found, notes = peers() if arguments.only in (None, "throughput", "latency", "faults") else ([], [])
        options = Options(arguments.quick, known["placeholder"], Path(folder) / "panoramas", found)
        print(
            f"Python {sys.version.split()[0]}, {os.cpu_count()} cores" + (", quick" if arguments.quick else "") + "\n"
        )
        for line in notes:
            print(line + "\n")
        for name, section in SECTIONS.items():
            if arguments.only in (None, name):
                print(f"## {name}\n\nLoad average before: {os.getloadavg()[0]:.2f}\n", flush=True)
                section(options)


if __name__ == "__main__":
    main()
