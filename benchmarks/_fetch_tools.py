"""The tools that `acquisition.py` compares, how they are installed, run and measured, and the server beside them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _fetch_clients import CONNECTIONS, HERE, urls

PEERS = HERE.parent.parent / "build" / "bench-peers"
CORE_TOOL, CORE_SERVER = 0, 1

QUIET = {"WANDB_MODE": "offline", "NO_ALBUMENTATIONS_UPDATE": "1"}
LIMIT_S = 900.0
"""A tool that takes longer is stopped and counted as failed."""


def client(name: str, python: str = sys.executable, **values: Any) -> list[str]:
    """Return the command line of a client."""
    words = [f"--{key}={value}" for key, value in values.items()]
    return [python, str(HERE.parent / "_fetch_clients.py"), name, *words]


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
