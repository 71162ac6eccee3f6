"""The retrieval systems on the simulated world, several seeds each: the table "Systems" of docs/results.md.

Run: make demo
     python benchmarks/systems.py --data demo/data [--only auxgeo epbev epbev-equal safa top-views] [--seeds 3]
Every row is `cvgl-train run` of a smoke recipe with the overrides below, then `cvgl-train evaluate` on a test area
where nothing was trained: that of --data, or of another dataset, --test. The recipes were chosen by looking at the test
area of the demo; that of the recipe `simulated` was not looked at. What is finished is not done again.
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
from statistics import mean, stdev
from typing import Any

from safetensors.numpy import load_file

NO_BEV = ("views.bev_px=0", "options.bim=false")
ROWS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "auxgeo": {
        "sample4geo": ("auxgeo-smoke", (*NO_BEV, "options.pcm=false")),
        "auxgeo without BIM": ("auxgeo-smoke", NO_BEV),
        "auxgeo without PCM": ("auxgeo-smoke", ("options.pcm=false",)),
        "auxgeo": ("auxgeo-smoke", ()),
    },
    "top-views": {
        "sample4geo on top views": ("sample4geo-smoke", ()),
        "cvcities on top views": ("cvcities-smoke", ()),
    },
    "epbev": {"epbev": ("epbev-smoke", ())},  # the weight is chosen on the validation split
    "epbev-equal": {"epbev at equal weights": ("epbev-smoke", ("options.panorama_weight=0.5",))},
    "safa": {
        f"safa {name}": ("safa-smoke", (f"options.front_end={name}",))
        for name in ("none", "polar", "stn-affine", "stn-composed", "stn-tps")
    },
}
QUARTERS = ("0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00")


def measure(
    name: str, recipe: str, overrides: tuple[str, ...], seed: int, data: Path, test: Path, out: Path
) -> dict[str, Any]:
    """Train and evaluate one row with one seed, unless that is done already."""
    run = out / f"{name.replace(' ', '-')}-seed{seed}"
    kept = run / f"row-{'-'.join(test.parts[-2:])}.json"
    if kept.is_file():
        return {"panorama_weight": None, **json.loads(kept.read_text())}
    program = [sys.executable, "-c", "from cvgl_cli.train import main; main()"]
    settings = [part for override in (*overrides, f"seed={seed}", "loader.workers=0") for part in ("--set", override)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    train = [*program, "run", recipe, "--data", str(data), "--out", str(run), "-q", *settings]
    subprocess.run(train, check=True, env=alone, stderr=subprocess.DEVNULL)
    timed = run / "seconds.json"
    if not timed.is_file():
        timed.write_text(json.dumps(time.monotonic() - begun))
    seconds = json.loads(timed.read_text())
    evaluate = [*program, "evaluate", str(run), "--data", str(test), "--no-calibration", "--json", "-q"]
    report = json.loads(subprocess.run(evaluate, check=True, env=alone, capture_output=True, text=True).stdout)
    report["seconds"] = seconds
    scale = load_file(run / "best.safetensors").get("scale_2")  # of epbev, unless the recipe gives the weight
    report["panorama_weight"] = None if scale is None else round(float(scale[0]) ** 2, 6)
    kept.write_text(json.dumps(report))
    print(f"{name}, seed {seed}: recall@1 {report['recall_at_1']:.1%}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return dict(report)


def spread(values: list[float]) -> str:
    """Return mean and standard deviation in percent."""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}"


def row(name: str, reports: list[dict[str, Any]]) -> str:
    by_quarter = [
        spread([report["recall_at_1_by_decentrality"][quarter] for report in reports]) for quarter in QUARTERS
    ]
    found = [spread([report[key] for report in reports]) for key in ("recall_at_1", "recall_at_5", "recall_at_10")]
    error = mean(report["median_error_m"] for report in reports)
    return f"| {name} | {' | '.join(found)} | {error:.0f} m | {' | '.join(by_quarter)} |"


def branch_rows(name: str, reports: list[dict[str, Any]]) -> list[str]:
    """Return one line per branch of a system that has branches."""
    names = [group["name"] for group in reports[0]["groups"] if group["kind"] == "branch"]
    lines = []
    for branch in names:
        groups = [next(group for group in report["groups"] if group["name"] == branch) for report in reports]
        found = [spread([group[key] for group in groups]) for key in ("recall_at_1", "recall_at_5", "recall_at_10")]
        error = mean(group["median_error_m"] for group in groups)
        lines.append(f"| {name}, branch {branch} | {' | '.join(found)} | {error:.0f} m | | | | |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--test", type=Path, help="dataset whose test area counts; by default that of --data")
    parser.add_argument("--out", type=Path, default=Path("runs/systems"))
    parser.add_argument("--only", nargs="+", choices=sorted(ROWS), default=sorted(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time, a thread each")
    options = parser.parse_args()
    rows = {name: how for group in options.only for name, how in ROWS[group].items()}
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {
            (name, seed): pool.submit(
                measure, name, recipe, overrides, seed, options.data, options.test or options.data, options.out
            )
            for seed in range(options.seeds)
            for name, (recipe, overrides) in rows.items()
        }
        done = {name: [waiting[name, seed].result() for seed in range(options.seeds)] for name in rows}
    first = next(iter(done.values()))[0]
    print(f"{first['num_queries']:,} queries, {first['num_references']:,} references, {options.seeds} seeds, percent")
    heads = ["", "recall@1", "recall@5", "recall@10", "median error", *(f"D {quarter}" for quarter in QUARTERS)]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    print(f"| chance | {100 * first['chance_recall_at_1']:.1f} |{' |' * (len(heads) - 2)}")
    for name, reports in done.items():
        print(row(name, reports))
        for line in branch_rows(name, reports):
            print(line)
        print(f"{name}: {mean(report['seconds'] for report in reports):.0f} s of training each", file=sys.stderr)
    for name, reports in done.items():
        chosen = [f"{report['panorama_weight']:g}" for report in reports if report["panorama_weight"] is not None]
        if chosen:
            print(f"{name}: panorama_weight chosen on the validation split, seed by seed: {', '.join(chosen)}")


if __name__ == "__main__":
    main()
