"""The localization systems on the simulated world: the table "Localization" of docs/results.md.

Run: make demo
     python benchmarks/localizers.py --data demo/data [--test simulated/data] [--only hcnet ccvpe ...] [--jobs 2]
Every row is `cvgl-train run` of a smoke recipe, then `cvgl-train evaluate` on a test area where nothing was trained,
with headings known or unknown. What is finished is not done again. Positions lie anywhere in the references.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = [sys.executable, "-c", "from cvgl_cli.train import main; main()"]
UNKNOWN = "augment.heading_noise_deg=180"


class Row(NamedTuple):
    """One training, and how it is measured."""

    recipe: str
    headings: tuple[str, ...] = ("known",)
    overrides: tuple[str, ...] = ()
    begins_with: str = ""


ROWS = {
    "hcnet": Row("hcnet-smoke"),
    "hcnet, trained with unknown headings": Row(
        "hcnet-smoke", ("unknown",), (UNKNOWN, "options.headings=8", "optim.epochs=15")
    ),
    "ccvpe": Row("ccvpe-smoke"),
    "ccvpe, trained with unknown headings": Row("ccvpe-smoke", ("unknown",), (UNKNOWN, "optim.epochs=20")),
    "g2sweakly": Row("g2sweakly-smoke", ("known", "unknown")),
    "geodistill on g2sweakly": Row("geodistill-smoke", ("known", "unknown"), begins_with="g2sweakly"),
    "g2sweakly, 2 epochs more": Row("g2sweakly-smoke", ("known",), ("optim.epochs=4",)),
    "geodistill on ccvpe": Row("geodistill-ccvpe-smoke", begins_with="ccvpe"),
}


def folder_of(name: str, seed: int, out: Path) -> Path:
    return out / f"{name.replace(',', '').replace(' ', '-')}-seed{seed}"


def train(name: str, seed: int, data: Path, out: Path) -> float:
    """Train one row, unless that is done already; return the seconds it took."""
    row, run = ROWS[name], folder_of(name, seed, out)
    timed = run / "seconds.json"
    if timed.is_file():
        return float(json.loads(timed.read_text()))
    overrides = [*row.overrides, f"seed={seed}", "loader.workers=0"]
    if row.begins_with:
        overrides.append(f"encoder.pretrained={folder_of(row.begins_with, seed, out)}")
    settings = [part for override in overrides for part in ("--set", override)]
    begun = time.monotonic()
    _run([*PROGRAM, "run", row.recipe, "--data", str(data), "--out", str(run), "-q", *settings])
    seconds = time.monotonic() - begun
    timed.write_text(json.dumps(seconds))
    return seconds


def measure(name: str, heading: str, seed: int, test: Path, out: Path) -> dict[str, Any]:
    """Evaluate one row, unless that is done already."""
    run = folder_of(name, seed, out)
    kept = run / f"{heading}-{'-'.join(test.parts[-2:])}.json"
    if not kept.is_file():
        kept.write_text(
            _run([*PROGRAM, "evaluate", str(run), "--data", str(test), "--heading", heading, "--json", "-q"])
        )
    return dict(json.loads(kept.read_text()))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[3:])}\n{done.stderr[-2000:]}")
    return done.stdout


def whole(name: str, seed: int, data: Path, test: Path, out: Path) -> tuple[float, dict[str, dict[str, Any]]]:
    seconds = train(name, seed, data, out)
    return seconds, {heading: measure(name, heading, seed, test, out) for heading in ROWS[name].headings}


def cells(measures: dict[str, Any]) -> str:
    """Return mean, median, recall at 1, 3 and 5 m, and median and recall at 3 degrees of the heading."""
    within = measures["recall_within_m"]
    return (
        f"{measures['mean_error_m']:.2f} / {measures['median_error_m']:.2f} | "
        f"{' / '.join(f'{100 * within[limit]:.0f}' for limit in ('1', '3', '5'))} | "
        f"{measures['median_yaw_error_deg'] or 0:.1f} / {100 * (measures['yaw_within_deg']['3'] or 0):.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path, help="dataset whose test area counts; by default that of --data")
    parser.add_argument("--out", type=Path, default=Path("runs/localizers"))
    parser.add_argument("--only", nargs="+", choices=sorted(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time, a thread each")
    options = parser.parse_args()
    test = options.test or options.data
    done: dict[tuple[str, int], tuple[float, dict[str, dict[str, Any]]]] = {}
    for stage in (False, True):  # what begins with another run comes after it
        with ThreadPoolExecutor(options.jobs) as pool:
            waiting = {
                (name, seed): pool.submit(whole, name, seed, options.data, test, options.out)
                for seed in range(options.seeds)
                for name in options.only
                if bool(ROWS[name].begins_with) == stage
            }
            done |= {key: job.result() for key, job in waiting.items()}
    heads = ["system", "seed", "headings", "error, mean / median m", "within 1 / 3 / 5 m, %"]
    heads += ["heading, median deg / within 3, %", "in 95 % radius, %", "training"]
    print(f"| {' | '.join(heads)} |")
    print(f"|{'---|' * len(heads)}")
    first = next(iter(next(iter(done.values()))[1].values()))
    print(f"| centre of the reference | | | {cells(first['center'])} | | |")
    for (name, seed), (seconds, found) in done.items():
        for heading, report in found.items():
            inside = 100 * report["calibration"]["share_inside_radius95"]
            print(f"| {name} | {seed} | {heading} | {cells(report['whole'])} | {inside:.0f} | {seconds:.0f} s |")


if __name__ == "__main__":
    main()
