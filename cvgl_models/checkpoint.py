"""Weights and the state of a training: written under a temporary name and renamed, so whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cvgl_data.errors import CheckpointError, WorkspaceError
from cvgl_models.backbones import load_strictly, read_weights
from cvgl_models.run_folder import CHECKPOINTS

_WEIGHTS, _AVERAGE, _STATE = "weights.safetensors", "average.safetensors", "state.pt"


def save_checkpoint(run: Path, model: nn.Module, state: Mapping[str, Any], average: nn.Module | None = None) -> Path:
    """Write weights and training state; the previous checkpoint goes once this one is complete.

    Args:
        run: Run folder.
        model: Its weights are saved.
        state: Plain values and tensors only, with ``step``.
        average: A moving average of the model.

    Raises:
        WorkspaceError: If it cannot be written; the previous checkpoint stays.
    """
    folder = run / CHECKPOINTS / f"step-{state['step']:08d}"
    partial = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_weights(partial / _WEIGHTS, model, {"step": str(state["step"])})
        if average is not None:
            save_weights(partial / _AVERAGE, average, {"step": str(state["step"])})
        with _told(partial):
            torch.save(dict(state), partial / _STATE)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(partial, folder)
    except WorkspaceError:
        shutil.rmtree(partial, ignore_errors=True)  # half a checkpoint takes the room that is missing
        raise
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other)
    return folder


def last_checkpoint(run: Path) -> Path | None:
    """Return the newest complete checkpoint."""
    folders = sorted(path for path in (run / CHECKPOINTS).glob("step-????????") if path.is_dir())
    return folders[-1] if folders else None


def load_checkpoint(folder: Path, model: nn.Module, average: nn.Module | None = None) -> dict[str, Any]:
    """Load the weights into the model, those of its average into that, and return the training state.

    Raises:
        CheckpointError: If something is missing, damaged, or does not fit.
    """
    load_weights(folder / _WEIGHTS, model)
    if average is not None:
        load_weights(folder / _AVERAGE, average)
    try:
        state: dict[str, Any] = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"'{folder / _STATE}' cannot be read: {error}; delete '{folder}' to start again"
        ) from error
    return state


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write the model's tensors, each shared one once, replacing the file atomically.

    Raises:
        WorkspaceError: If it cannot be written.
    """
    partial = path.with_name(f"{path.name}.tmp")
    with _told(path):
        try:
            save_file(_unique_tensors(model), partial, metadata=metadata)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say what cannot be written; torch and safetensors have errors of their own for a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, RuntimeError):  # torch speaks of a position in the file
            reason = "less arrived on the disk than was written"
        raise WorkspaceError(
            f"'{path}' cannot be written ({reason}); what is there is kept: "
            "make room, or name another folder, and run again"
        ) from error


def load_weights(path: Path, model: nn.Module) -> dict[str, str]:
    """Load what `save_weights` wrote and return its metadata.

    Raises:
        CheckpointError: Saying what is missing or does not fit.
    """
    weights = read_weights(path)
    alias = _aliases(model)
    if doubled := sorted(alias.keys() & weights.keys()):
        raise CheckpointError(
            f"weights in '{path}' do not fit: they have unknown {doubled[0]}, which this model shares"
        )
    load_strictly(
        model, {**weights, **{key: weights[first] for key, first in alias.items() if first in weights}}, str(path)
    )
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _aliases(model: nn.Module) -> dict[str, str]:
    """Return, for every further name of a shared tensor, the first one."""
    first: dict[int, str] = {}
    return {
        key: name
        for key, value in model.state_dict(keep_vars=True).items()
        if (name := first.setdefault(id(value), key)) != key
    }


def _unique_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    aliases = _aliases(model)
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items() if key not in aliases}
