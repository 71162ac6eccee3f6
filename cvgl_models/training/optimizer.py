"""Optimizer, schedule and moving average."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from cvgl_models.recipe import OptimRecipe
from cvgl_models.systems import SystemModule


def learning_rate(step: int, total_steps: int, warmup_steps: int, base: float, schedule: str = "cosine") -> float:
    """Return the rate of a step: linear from 0 over the warm-up, then a ``cosine`` or ``linear`` to 0, or ``constant``.

    Example:
        >>> learning_rate(550, 1000, 100, 1e-3)
        0.0005
    """
    if step < warmup_steps:
        return base * step / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "constant":
        return base
    return base * ((1 - done) if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def create_optimizer(system: SystemModule, recipe: OptimRecipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW or SGD; vectors and scalars (biases, norms, the logit scale) are not decayed, frozen weights left out."""
    trained = [parameter for parameter in system.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = recipe.fused and device.type == "cuda"
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=fused)


class WeightAverage:
    """An exponential moving average of the weights of a system.

    The first steps count less than ``decay`` has it, ``min(decay, (1 + step) / (10 + step))``, or the random weights
    of the beginning would stay in the average for long. What is not trained by gradients (buffers) is copied.

    Args:
        system: Where the average begins.
        decay: What stays of the average in every step.
    """

    def __init__(self, system: SystemModule, decay: float) -> None:
        self.decay = decay
        self.system = copy.deepcopy(system).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, system: SystemModule, step: int) -> None:
        """Take the weights after a step (0, 1, ...) in."""
        keep = min(self.decay, (1 + step) / (10 + step))
        average: list[Tensor] = [parameter.data for parameter in self.system.parameters()]
        torch._foreach_lerp_(average, [parameter.data for parameter in system.parameters()], 1 - keep)
        for own, buffer in zip(self.system.buffers(), system.buffers(), strict=True):
            own.copy_(buffer)
