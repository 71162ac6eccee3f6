"""What somebody who has never seen the programs ran into: slips that ended in a traceback, or misled."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from cvgl_cli import _options, data, train
from rich.console import Console
from test_cli import commands
from typer.testing import CliRunner

from cvgl_data.arrow_files import replace_file
from cvgl_data.errors import CheckpointError, CvglError, DatasetError, RecipeError, WorkspaceError
from cvgl_data.http import running
from cvgl_data.recipe import DatasetRecipe, PanoramaRecipe, load_toml, resolve
from cvgl_data.registry import did_you_mean
from cvgl_data.sources import IMAGERY, PANORAMAS
from cvgl_data.top_views import TopViews, write_top_views

BIN = Path(sys.executable).parent
BOX = ("--bbox", "-122.33,47.62,-122.329,47.621")
SIMULATED = ("--imagery", "simulated", "--panoramas", "simulated")


def typed(app, *words):
    """Return exit code, stdout and stderr of a command line, run here."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit | CvglError):
        raise done.exception
    return (1 if isinstance(done.exception, CvglError) else done.exit_code), done.stdout, done.stderr


# Help


@pytest.mark.parametrize("app", [data.app, train.app], ids=["data", "train"])
def test_the_version_is_told(app):
    from cvgl_data import __version__

    assert typed(app, "--version")[:2] == (0, f"cvgl {__version__}\n")


@pytest.mark.parametrize("app", [data.app, train.app], ids=["data", "train"])
def test_help_has_no_words_of_python(app):
    for words, _ in commands(app):
        shown = typed(app, *words, "--help")[1]
        for jargon in ("<list[str]", " range>", "<int>", "<float>"):
            assert jargon not in shown, (words, jargon)


def test_help_names_every_source():
    shown = " ".join(typed(data.app, "plan", "--help")[1].replace("simulated-\n", "simulated-").split())
    for registry, option in ((IMAGERY, "Imagery source:"), (PANORAMAS, "Panorama source:")):
        listed = shown.partition(option)[2].partition(".")[0].replace("- ", "-")
        assert {name.partition(":")[0].strip() for name in listed.split(",")} == set(registry)


# Wrong numbers and names


def test_a_huge_number_is_refused_and_a_long_time_is_told():
    code, _, _ = typed(data.app, "plan", *BOX, *SIMULATED, "--max-queries", 10**23)
    assert code == 1
    code, out, _ = typed(data.app, "plan", *BOX, "--imagery", "simulated", "--max-queries", 2**63 - 1)
    assert code == 0
    assert "over a million years" in out


def test_dates_between_which_no_day_lies_are_an_error():
    for after, before in (("2020", "2019"), ("2020-06", "2020-06"), ("2020", "2020-01-01"), ("2020-01-02", "2020")):
        with pytest.raises(ValueError, match="no day lies between"):
            PanoramaRecipe(captured_after=after, captured_before=before)
    for after, before in (("2019", "2020"), ("2020-01-01", "2020-01-02"), ("2020", "2020-02"), ("", "2019")):
        PanoramaRecipe(captured_after=after, captured_before=before)


def test_a_recipe_file_without_its_path_says_how_to_write_it():
    Path("mine").write_text('name = "mine"\n')
    with pytest.raises(RecipeError, match=r"write '\./mine'"):
        load_toml("mine", "datasets")
    with pytest.raises(RecipeError, match="is a folder"):
        load_toml(Path.cwd(), "datasets")


def test_a_message_lists_few_names():
    names = [f"name-{number:03}" for number in range(60)]
    told = did_you_mean("zzzzzz", names)
    assert "name-024" in told
    assert "name-025" not in told
    assert told.endswith("and 35 more")
    assert did_you_mean("zzzzzz", names[:3]) == "; known: name-000, name-001, name-002"


def test_a_scale_of_top_views_is_asked_for_by_the_names_of_the_options():
    for words in ((), ("--fov", "90", "--meters-per-px", "1")):
        code, _, err = typed(data.app, "bev", "somewhere", *words)
        assert code == 2
        assert "--fov" in err
        assert "--match-references" in err


@pytest.mark.parametrize("height", [-1.0, 0.0, float("nan"), float("inf")])
def test_the_height_of_a_camera_is_positive_also_where_it_does_not_matter(height):
    with pytest.raises(RecipeError, match="height"):
        TopViews(fov_deg=90.0, camera_height_m=height)


# Folders and files


def test_top_views_do_not_go_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("cvgl_data.top_views.open_dataset", lambda data: None)
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="is a file"):
        write_top_views("data", tmp_path / "file", TopViews(fov_deg=90.0))


def test_top_views_of_the_folder_one_is_in_lie_beside_it(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("cvgl_data.top_views.write_top_views", lambda data, out, *_, **__: asked.append(out) or {})
    inside = tmp_path / "set"
    inside.mkdir()
    monkeypatch.chdir(inside)
    for named in (".", "../set"):
        assert typed(data.app, "bev", named, "--fov", "90")[0] == 0
    assert [path.resolve() for path in asked] == [tmp_path / "set-bev"] * 2


def test_a_folder_is_no_file_to_write(tmp_path):
    with pytest.raises(WorkspaceError, match=f"'{tmp_path}' is a folder"):
        replace_file(tmp_path, lambda path: path.touch())


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "make room"), (errno.EACCES, "another place"), (errno.ENOTDIR, "another place")]
)
def test_what_cannot_be_written_says_what_helps_and_leaves_nothing(tmp_path, number, said):
    def write(path):
        path.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(WorkspaceError, match=said):
        replace_file(tmp_path / "page", write)
    assert not list(tmp_path.glob("page*"))


def test_a_dataset_is_no_run(tmp_path):
    from cvgl_models.run_folder import run_recipe

    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "recipe.toml").write_text('name = "x"\nareas = []\n')
    with pytest.raises(CheckpointError, match="is a dataset, no run folder"):
        run_recipe(tmp_path)


def test_a_contact_sheet_is_a_picture_before_anything_is_measured(tmp_path):
    code, _, err = typed(train.app, "evaluate", tmp_path / "run", "--data", tmp_path, "--sheet", "sheet.foo")
    assert code == 2
    assert "--sheet" in err


def test_options_of_refining_need_a_run_to_refine_with():
    for words in (("--heading-noise", "20"), ("--refine-top", "3")):
        code, _, err = typed(train.app, "locate", "run", "photo.jpg", *words)
        assert code == 2
        assert "--refine" in err


def test_a_heading_is_a_bearing(tmp_path):
    from cvgl_models.serving import locate

    for heading in ("nan", "1e300"):
        assert typed(train.app, "locate", "run", "photo.jpg", "--heading", heading)[0] == 2
    with pytest.raises(DatasetError, match="compass bearing"):
        locate(tmp_path, [], heading_deg=float("nan"))


def test_when_nothing_could_be_had_the_first_reason_is_told(tmp_path):
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (64, 32)).save(pictures / "a.jpg")
    words = ("build", *BOX, "--imagery", "simulated", "--panoramas", f"folder:{pictures}", "--out", tmp_path / "out")
    done = CliRunner().invoke(data.app, [*map(str, words), "--limit", "1", "--workers", "1"])
    assert isinstance(done.exception, CvglError)
    assert "has no GPS position" in str(done.exception)


def test_everything_that_a_folder_holds_has_no_size_in_a_plan(tmp_path):
    from PIL import Image

    tile = tmp_path / "18" / "41985" / "91572.png"
    tile.parent.mkdir(parents=True)
    Image.new("RGB", (256, 256)).save(tile)
    code, out, _ = typed(data.app, "plan", "--imagery", f"folder:{tmp_path}", "--panoramas", "simulated")
    assert code == 0
    assert "508," not in out  # millions of km², the whole earth


# Terminals


def drawn(monkeypatch, width, columns, rows, is_terminal=True):
    shown = StringIO()
    monkeypatch.setattr(_options, "out_console", Console(file=shown, width=width, force_terminal=is_terminal))
    monkeypatch.setattr(sys, "stdout", shown)
    _options.table("Title", columns, rows)
    return [line for line in shown.getvalue().splitlines() if "Title" not in line]


def test_a_narrow_terminal_cuts_text_but_no_number_and_no_first_column(monkeypatch):
    rows = [["rio-de-janeiro-and-more", "21,423,000", "a very long attribution of somebody"]]
    text = "\n".join(drawn(monkeypatch, 40, ["city", "references", "polygon by"], rows))
    assert "rio-de-janeiro-and-more" in text
    assert "21,423,000" in text
    assert "a very long a…" in text
    whole = "\n".join(drawn(monkeypatch, 40, ["city", "references", "polygon by"], rows, is_terminal=False))
    assert "attribution of somebody" in whole


def test_widths_are_fitted_from_the_widest():
    assert _options.fitted([10, 20, 30], [10, 5, 5], 40) == [10, 15, 15]
    assert _options.fitted([10, 20], [10, 5], 100) == [10, 20]
    assert _options.fitted([10, 20], [10, 5], 3) == [10, 5]


def test_a_locale_without_some_letters_ends_nothing():
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for extra in ((), ("--json",)):
        command = [str(BIN / "cvgl-data"), "plan", *BOX, *SIMULATED, *extra]
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
    json.loads(done.stdout)  # ASCII alone, and still JSON


def test_a_path_that_is_no_text_is_named():
    done = subprocess.run([str(BIN / "cvgl-data"), "show", b"no\xfftext"], capture_output=True)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: no dataset folder 'no\\udcfftext'")


def test_a_warning_in_a_pipe_is_one_line(capsys):
    _options.verbosity()
    import logging

    logging.getLogger("cvgl_data.test").warning("a warning of some length " * 20)
    assert len(capsys.readouterr().err.splitlines()) == 1


# Ctrl-C


def test_a_signal_while_the_loop_is_closed_is_not_lost():
    def late():
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    async def work(http, cancel):
        asyncio.get_running_loop().run_in_executor(None, late)  # closing the loop waits for it
        return 1

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            running.run(work)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_that_does_not_fetch_says_that_another_folder_is_needed(tmp_path):
    from cvgl_data.pipeline import resume
    from cvgl_data.recipe import to_toml

    recipe = resolve(DatasetRecipe, {"name": "x", "areas": [{"city": "seattle"}]})
    (tmp_path / ".cvgl").mkdir()
    (tmp_path / ".cvgl" / "recipe.toml").write_text(to_toml(recipe))
    with pytest.raises(WorkspaceError, match="another folder") as refused, resume(tmp_path, ["grid.zoom=17"]):
        pass
    assert "--overwrite" not in str(refused.value)  # which the command does not have


# One folder, one training; a full disk


def test_two_trainings_do_not_share_a_folder(tmp_path):
    from cvgl_models.run_folder import held_run

    run = tmp_path / "run"
    with held_run(run), pytest.raises(WorkspaceError, match="in use by another training"), held_run(run):
        pass
    with held_run(tmp_path / "run"):  # given back
        pass
    assert not list((tmp_path / "run").iterdir())


def test_training_holds_its_folder(tmp_path):
    from toy_dataset import toy_dataset

    from cvgl_models.recipe import load_recipe
    from cvgl_models.run_folder import held_run
    from cvgl_models.training import train as train_model

    small = ["sampler.batch_size=4", "sampler.neighbor_select=2", "sampler.neighbor_range=4", "views.reference_px=32"]
    recipe = load_recipe("demo", [*small, "views.query_height_px=32", "optim.epochs=1"])
    with held_run(tmp_path / "run"), pytest.raises(WorkspaceError, match="in use"):
        train_model(recipe, toy_dataset(), tmp_path / "run", max_steps=1)
    train_model(recipe, toy_dataset(), tmp_path / "run", max_steps=1)
    assert (tmp_path / "run" / "checkpoints").is_dir()


@pytest.mark.parametrize("where", ["weights", "state"])
def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(tmp_path, monkeypatch, where):
    import torch
    from safetensors import SafetensorError

    from cvgl_models import checkpoint

    model = torch.nn.Linear(2, 2)
    before = checkpoint.save_checkpoint(tmp_path, model, {"step": 1})

    def full(*_, **__):
        raise SafetensorError("No space left on device") if where == "weights" else RuntimeError("unexpected pos 7")

    monkeypatch.setattr(*((checkpoint, "save_file") if where == "weights" else (torch, "save")), full)
    with pytest.raises(WorkspaceError, match=r"cannot be written .*make room"):
        checkpoint.save_checkpoint(tmp_path, model, {"step": 2})
    assert list((tmp_path / "checkpoints").iterdir()) == [before]
    assert checkpoint.last_checkpoint(tmp_path) == before


def test_a_full_disk_is_one_line_that_says_what_to_do():
    code = "from cvgl_cli._options import run; run(lambda: (_ for _ in ()).throw(OSError(28, 'full')), '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "error: full; make room and run again")


def test_folders_may_be_text(tmp_path):
    from cvgl_data.readers.packed import read
    from cvgl_models.serving import load_model, locate

    with pytest.raises(CvglError, match="holds no dataset"):
        read(str(tmp_path), resized=True)
    with pytest.raises(CheckpointError, match="is no run folder"):
        load_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="is no run folder"):
        locate(str(tmp_path), [])


# What was there before


def test_an_import_replaces_neither_a_build_nor_its_own_source(tmp_path):
    from cvgl_data.layouts import import_layout

    (tmp_path / "built" / ".cvgl").mkdir(parents=True)
    (tmp_path / "built" / "manifest.json").write_text("{}")
    with pytest.raises(DatasetError, match="holds a build"):
        import_layout(f"vigor:{tmp_path / 'VIGOR'}", tmp_path / "built", overwrite=True)
    (tmp_path / "VIGOR").mkdir()
    with pytest.raises(DatasetError, match="is the dataset to import"):
        import_layout(f"vigor:{tmp_path / 'VIGOR'}", tmp_path / "VIGOR", overwrite=True)
    assert (tmp_path / "built" / "manifest.json").read_text() == "{}"


def test_a_folder_may_have_a_colon_in_its_name():
    words = ("build", *BOX, *SIMULATED, "--max-queries", "2", "--limit", "2", "--workers", "1", "--no-report")
    small = ("--set", "panoramas.options.width=64", "--set", "panoramas.width=64")
    assert typed(data.app, *words, *small, "--out", "town:v2", "-q")[0] == 0
    assert typed(data.app, "verify", "town:v2", "-q")[0] == 0
    assert typed(data.app, "distance-map", "town:v2", "--of", "queries", "--out", "a:b.parquet", "-q")[0] == 0


def test_top_views_of_another_layout_need_a_folder():
    code, _, err = typed(data.app, "bev", "vigor:VIGOR", "--fov", "90")
    assert code == 2
    assert "--out" in err


def test_a_dry_run_is_json_if_asked_for():
    code, out, _ = typed(data.app, "build", *BOX, *SIMULATED, "--dry-run", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(typed(data.app, "plan", *BOX, *SIMULATED, "--json")[1])


def test_a_hub_that_does_not_answer_lacks_no_file():
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    from cvgl_data.errors import HubError
    from cvgl_data.hub.client import explained

    with pytest.raises(HubError, match="cannot be reached"), explained("user/name"):
        raise LocalEntryNotFoundError("no connection")
    with pytest.raises(HubError, match="lacks a file"), explained("user/name"):
        raise EntryNotFoundError("404")


def test_quiet_is_quiet_but_for_errors():
    words = ("build", *BOX, *SIMULATED, "--max-queries", "2", "--limit", "2", "--workers", "1", "--no-report")
    words = (*words, "--set", "panoramas.options.width=64", "--set", "panoramas.width=64", "--out", "town")
    done = subprocess.run([str(BIN / "cvgl-data"), *words, "--quiet"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Fetched" in done.stdout
    code, _, err = typed(data.app, "verify", "town")
    assert (code, err) == (0, "town is sound\n")
    done = subprocess.run([str(BIN / "cvgl-data"), "show", "nowhere", "-q"], capture_output=True, text=True)
    assert done.stderr.startswith("error: no dataset folder")
