"""Fetching tiles: ours and its peers against one loopback server, under load, latency, faults, a rate, and kills.

Run: python benchmarks/acquisition.py [--quick] [--only throughput|latency|memory|startup|faults|rate|kill]
The server (`tile_server.py`) is on core 1, the tool on core 0. Each peer is installed into an environment of its own
below build/bench-peers; one that cannot be is listed as such. Prints Markdown. CPU is user + system of the tool's whole
process tree, the marginal figure the difference between the two sizes; RSS is that of its largest process.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tile_server
from _fetch_clients import CONNECTIONS, ZOOM, bbox, path_of, tiles, xyz_options
from _fetch_tools import CORE_TOOL, Run, Server, Tool, ask, measured, ours, peers, serving

LATENCY_MS = 20
FAULT_COUNTS = {"rate_limited": 203, "server_error": 122, "not_found": 83, "no_imagery": 144, "truncated": 94}


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
        whole = measured(options.cli("build", num, server.base, root / "whole", "--no-report"))
        if whole.status:
            raise RuntimeError(f"the uninterrupted build failed: {whole.error}")
        fetching = measured(options.cli("fetch", num, server.base, root / "fetched"))
        expected = contents(root / "whole")
        folder = root / "killed"
        command = options.cli("build", num, server.base, folder, "--no-report")
        while len(rows) < kills:
            shutil.rmtree(folder, ignore_errors=True)
            server.ask("/reset")
            # Every second time while it fetches, which is the smaller part of a build.
            moment = rng.uniform(0.0, 1.0) * (fetching if len(rows) % 2 else whole).wall_s
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
    arguments = parser.parse_args()
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
