"""Logged values: ``metrics.jsonl`` always, TensorBoard and Weights & Biases if the recipe asks for them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvgl_data.errors import RecipeError
from cvgl_models.recipe import ModelRecipe
from cvgl_models.run_folder import METRICS, TENSORBOARD, WANDB

logger = logging.getLogger(__name__)


def check_loggers(recipe: ModelRecipe) -> None:
    """Import what the recipe wants to log with, before anything is written.

    Raises:
        RecipeError: If it is not installed.
    """
    wanted = {"log.tensorboard": "torch.utils.tensorboard"} if recipe.log.tensorboard else {}
    wanted |= {"log.wandb_project": "wandb"} if recipe.log.wandb_project else {}
    for key, module in wanted.items():
        package = module.rpartition(".")[2]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise RecipeError(f"recipe key '{key}' needs the package {package}; install it or unset the key") from error


class RunLog:
    """The log of one sitting.

    Args:
        run: Run folder.
        recipe: Its ``log``.
        step: Step that training goes on from; what was logged later is dropped and will be logged again.
    """

    def __init__(self, run: Path, recipe: ModelRecipe, step: int) -> None:
        _drop_later_lines(run / METRICS, step)
        self._file = (run / METRICS).open("a", encoding="utf-8")
        self._board = _tensorboard(run, step) if recipe.log.tensorboard else None
        self._wandb = _wandb(run, recipe) if recipe.log.wandb_project else None

    def write(self, values: Mapping[str, float]) -> None:
        """Log the values of a step; ``step`` is among them. What is not finite becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(finite) + "\n")
        step = int(values["step"])
        shown = {name: value for name, value in finite.items() if name != "step" and value is not None}
        if self._board is not None:
            for name, value in shown.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(shown, step=step)

    def flush(self) -> None:
        """Make sure that what was logged is on disk."""
        self._file.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """End the log."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _tensorboard(run: Path, step: int) -> Any:
    module = importlib.import_module("torch.utils.tensorboard")
    return module.SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)


def _wandb(run: Path, recipe: ModelRecipe) -> Any:
    """Begin or go on with the run at W&B; a service that cannot be reached is no reason not to train."""
    module = importlib.import_module("wandb")
    (run / WANDB).mkdir(exist_ok=True)
    try:
        return module.init(
            project=recipe.log.wandb_project,
            name=run.name,
            id=hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(run),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
    except Exception as error:
        logger.warning("nothing is logged to Weights & Biases: %s", error)
        return None


def _drop_later_lines(log: Path, step: int) -> None:
    """Take out what was logged after the checkpoint that training goes on from; it will be logged again."""
    if not log.is_file():
        return
    kept = []
    text = log.read_text(encoding="utf-8")
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # a line cut short by a kill
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    if "".join(kept) != text:
        log.write_text("".join(kept), encoding="utf-8")
