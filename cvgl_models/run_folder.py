"""The run folder: recipe, environment, log, weights.

```
recipe.toml        the resolved recipe            environment.json   versions, device, git revision, data
metrics.jsonl      one line per logged step       best.safetensors   weights that did best on the validation split
checkpoints/step-00000120/   weights.safetensors, average.safetensors (if there is one), state.pt (optimizer, position,
                   neighbors): where a resumed training goes on
tensorboard/, wandb/         if the recipe asks for them
eval/<split>/      see `cvgl_models.evaluation`
```
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cvgl_data.errors import CheckpointError, RecipeError, WorkspaceError
from cvgl_data.recipe import differences, resolve, to_tables, to_toml
from cvgl_models.recipe import ModelRecipe

RECIPE, ENVIRONMENT, METRICS, BEST, CHECKPOINTS, EVAL, TENSORBOARD, WANDB = (
    "recipe.toml",
    "environment.json",
    "metrics.jsonl",
    "best.safetensors",
    "checkpoints",
    "eval",
    "tensorboard",
    "wandb",
)
_OF_DATASETS = ("manifest.json", ".cvgl")


def open_run(run: Path, recipe: ModelRecipe, data: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make a run folder ready: new, or one of the same recipe and data.

    Args:
        run: The folder.
        recipe: Resolved recipe of this training.
        data: Fingerprint of the dataset.
        overwrite: Delete what another training left there, and nothing else.

    Raises:
        WorkspaceError: If the folder belongs to another recipe or dataset, is no run folder, or cannot be used.
        CheckpointError: If the recipe or the environment of the run is damaged.
    """
    try:
        if not _is_run(run):
            run.mkdir(parents=True, exist_ok=True)
        elif overwrite:
            _delete_run(run)
        else:
            _check_same(run, recipe, data)
            return
        write_text(run / ENVIRONMENT, json.dumps({**_environment(), "data": data}, indent=2) + "\n")
        write_text(run / RECIPE, to_toml(recipe))
    except OSError as error:
        raise WorkspaceError(f"run folder '{run}' cannot be used: {error}; choose another folder") from error


@contextmanager
def held_run(run: Path) -> Iterator[None]:
    """Hold a run folder, which is made if it is not there, for this process alone.

    Raises:
        WorkspaceError: If another process trains in it.
    """
    folder = -1
    if sys.platform != "win32":  # which cannot open folders
        with suppress(OSError):  # whoever opens the run says what is wrong
            run.mkdir(parents=True, exist_ok=True)
            folder = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if folder >= 0:
            _lock(folder, run)
        yield
    finally:
        if folder >= 0:
            os.close(folder)


def _lock(folder: int, run: Path) -> None:
    import fcntl

    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkspaceError(f"run folder '{run}' is in use by another training; wait for it or stop it") from None
    except OSError:  # a network's file system that locks no folders
        return


def run_recipe(run: Path) -> ModelRecipe:
    """Return the resolved recipe of a run.

    Raises:
        CheckpointError: If the folder is no run folder, or its recipe is damaged.
    """
    path = run / RECIPE
    if any((run / name).exists() for name in _OF_DATASETS):
        raise CheckpointError(f"'{run}' is a dataset, no run folder; train on it with `cvgl-train run` first")
    if not path.is_file():
        raise CheckpointError(f"'{run}' is no run folder: it has no {RECIPE}; train with `cvgl-train run` first")
    try:
        return resolve(ModelRecipe, _read_toml(path))
    except RecipeError as error:
        raise CheckpointError(f"'{path}' cannot be used: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _is_run(run: Path) -> bool:
    """Whether the folder is a run; one that is neither a run nor empty is an error."""
    if run.exists() and not run.is_dir():
        raise WorkspaceError(f"'{run}' is a file; choose another folder")
    for name in _OF_DATASETS:
        if (run / name).exists():
            raise WorkspaceError(f"folder '{run}' holds a dataset ('{name}'); choose another folder")
    if (run / ENVIRONMENT).is_file():
        return True
    if run.exists() and any(run.iterdir()):
        raise WorkspaceError(f"folder '{run}' is not empty and no run folder; choose another folder")
    return False


def _delete_run(run: Path) -> None:
    """Delete what a training or evaluation writes; other files stay."""
    for name in (
        METRICS,
        BEST,
        CHECKPOINTS,
        EVAL,
        TENSORBOARD,
        WANDB,
        RECIPE,
        ENVIRONMENT,
    ):  # the last one makes it a run: gone last
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_same(run: Path, recipe: ModelRecipe, data: Mapping[str, Any]) -> None:
    if not (run / RECIPE).is_file():
        raise WorkspaceError(f"run folder '{run}' has no {RECIPE}; choose another folder or pass --overwrite")
    # resolved again, a recipe of an earlier version has today's keys too
    changed = differences(to_tables(run_recipe(run)), to_tables(recipe))
    if changed:
        raise WorkspaceError(
            f"run folder '{run}' belongs to another recipe ({'; '.join(changed[:3])}); "
            "choose another folder or pass --overwrite"
        )
    if _read_json(run / ENVIRONMENT).get("data") != data:
        raise WorkspaceError(f"run folder '{run}' was trained on other data; choose another folder or pass --overwrite")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"'{path}' is damaged: {error}; choose another run folder or train again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"'{path}' is damaged: {error}; choose another run folder or train again") from error


def _environment() -> dict[str, Any]:
    packages: dict[str, str | None] = {}
    for name in ("cvgl", "torch", "torchvision", "timm", "numpy", "pyarrow", "pillow", "simplejpeg"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "python": platform.python_version(),
        "packages": packages,
        "device": device,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "git_revision": _git_revision(Path(__file__).parent),
    }


def _git_revision(package: Path) -> str:
    """Return the commit of the checkout that the package runs from, ``""`` if it runs from elsewhere."""
    command = ["git", "rev-parse", "--show-prefix", "HEAD"]
    try:
        done = subprocess.run(command, cwd=package, capture_output=True, check=True, timeout=10)
        prefix, revision = done.stdout.decode().splitlines()
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
    # installed inside somebody else's checkout, the package lies deeper
    return revision if prefix == f"{package.name}/" else ""
