"""The command lines: help, wrong input, exit codes, and the flags, which change only on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cvgl_cli import data, train
from typer.main import get_command
from typer.testing import CliRunner

BIN = Path(sys.executable).parent
APPS = {"cvgl-data": data.app, "cvgl-train": train.app}


def commands(app, path=()):
    """Yield (words, command) of every command."""
    command = get_command(app)
    stack = [(path, command)]
    while stack:
        words, command = stack.pop()
        if hasattr(command, "commands"):
            stack += [((*words, name), sub) for name, sub in command.commands.items()]
        else:
            yield words, command


def test_flags_are_frozen(golden):
    """Adding or renaming a flag is a decision: edit tests/golden/flags.json with it."""
    flags = {
        " ".join((program, *words)): sorted(name for item in command.params for name in item.opts)
        for program, app in APPS.items()
        for words, command in commands(app)
    }
    path = golden / "flags.json"
    assert flags == json.loads(path.read_text()), json.dumps(flags, indent=1)


@pytest.mark.parametrize("program", APPS)
def test_every_command_has_help(program):
    for words, command in commands(APPS[program]):
        shown = CliRunner().invoke(APPS[program], [*words, "--help"])
        assert shown.exit_code == 0, words
        assert command.help, words
        assert all(item.help for item in command.params if item.opts != ["--help"] and item.param_type_name == "option")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / words[0]), *words[1:]], capture_output=True, text=True)


SIMULATED = ("--imagery", "simulated", "--panoramas", "simulated")
BOX = ("--bbox", "-122.33,47.62,-122.329,47.621")

WRONG = {
    "unknown city": (["plan", "--city", "seatle", *SIMULATED], "did you mean 'seattle'"),
    "unknown imagery": (["plan", "--city", "seattle", "--imagery", "simulatd"], "did you mean 'simulated'"),
    "unknown panoramas": (
        ["build", *BOX, "--imagery", "simulated", "--panoramas", "simulatd"],
        "did you mean 'simulated'",
    ),
    "unknown key": (["plan", "--city", "seattle", "--set", "grid.zom=3"], "did you mean 'grid.zoom'"),
    "bad value": (["plan", "--city", "seattle", "--set", "grid.zoom=high"], "grid.zoom"),
    "unknown option of a source": (["plan", *BOX, *SIMULATED, "--set", "imagery.options.sed=1"], "imagery.options.sed"),
    "unknown recipe": (["plan", "--recipe", "dem"], "did you mean 'demo'"),
    "missing recipe file": (["plan", "--recipe", "./mine.toml"], "mine.toml"),
    "missing area file": (["plan", "--area-file", "nowhere.geojson", *SIMULATED], "nowhere.geojson"),
    "empty area": (["plan", "--bbox", "1,1,1,1", *SIMULATED], "bbox"),
    "polar area": (["plan", "--bbox", "0,84,10,89", *SIMULATED], "85.05"),
    "bad zoom": (["plan", "--city", "seattle", "--zoom", "40", *SIMULATED], "zoom 40"),
    "bad overlap": (["plan", "--city", "seattle", "--overlap", "0.3", *SIMULATED], "overlap 0.3"),
    "clip outside": (["plan", "--city", "seattle", "--clip", "0,0,1,1", *SIMULATED], "seattle"),
    "no area": (["plan", *SIMULATED], "--city"),
    "missing dataset": (["show", "nowhere"], "nowhere"),
    "zoom deeper than the source": (["build", *BOX, *SIMULATED, "--zoom", "23"], "ends at 22"),
    "negative limit": (["plan", *BOX, *SIMULATED, "--limit", "-5"], "limit"),
    "no neighbors": (["build", *BOX, *SIMULATED, "--set", "distance_map.k=0"], "distance_map"),
    "unknown alignment": (["build", *BOX, *SIMULATED, "--set", "panoramas.align=foo"], "panoramas"),
    "unknown test area": (["build", *BOX, *SIMULATED, "--test-area", "nowhere"], "nowhere"),
    "missing folder of tiles": (["build", "--imagery", "folder:nowhere", "--panoramas", "folder:x"], "nowhere"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_that_names_it(name):
    words, named = WRONG[name]
    done = run("cvgl-data", *words)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert named in lines[0]
    assert done.stdout == ""
    assert not list(Path().iterdir()), "wrong input must not leave anything behind"


@pytest.mark.parametrize(
    "text",
    ['areas = "x"', 'areas = ["seattle"]', 'imagery = "simulated"', 'split = "x"', "name = 3", "]", "caf\xe9 = 1"],
)
def test_a_recipe_of_wrong_types_is_one_line(tmp_path, text):
    path = tmp_path / "wrong.toml"
    path.write_bytes(text.encode("latin-1"))
    done = run("cvgl-data", "plan", "--recipe", str(path), *SIMULATED, "--clip", "0,0,1,1", "--test-area", "x")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr


def test_parquet_is_packed_in_place(tmp_path):
    done = run("cvgl-data", "pack", str(tmp_path), "--out", "elsewhere")
    assert done.returncode == 2
    assert "--out" in done.stderr


def test_training_without_torch_says_what_to_install(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [str(BIN / "cvgl-train"), "run", "demo", "--data", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "cvgl[train]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["build", "--bbox", "1,2,3"], ["nothing"], ["plan", "--zoom", "x"], ["show"]])
def test_wrong_usage_exits_with_2(words):
    assert run("cvgl-data", *words).returncode == 2


def test_train_names_what_is_missing():
    done = run("cvgl-train", "run", "demo", "--data", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere" in done.stderr
    done = run("cvgl-train", "evaluate", "runs/none", "--data", "nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_outside_the_network_part_exits_with_130(name):
    app = f"lambda: (os.kill(os.getpid(), signal.{name}), time.sleep(10))"
    code = f"import os, signal, time; from cvgl_cli._options import run; run({app}, 'kept')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (130, "kept")


def test_plan_as_json():
    done = run("cvgl-data", "plan", *BOX, *SIMULATED, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (area,) = found["areas"]
    assert [(cost["kind"], cost["requests"], cost["usd"]) for cost in found["costs"]] == [
        ("imagery", {}, 0.0),
        ("panoramas", {}, 0.0),
    ]
    assert area["num_references"] == area["num_tiles"] > 0
    assert area["gsd_m"] == pytest.approx(0.4025, abs=1e-3)


def test_cities_as_json():
    cities = json.loads(run("cvgl-data", "cities", "--json").stdout)
    assert len(cities) == 20
    assert {"key", "country", "licence", "datasets"} <= set(cities[0])


def test_dry_run_writes_nothing():
    done = run("cvgl-data", "build", *BOX, *SIMULATED, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not list(Path().iterdir())
