"""What a student learns from a teacher's map, and how the teacher follows.

Shapes: B pairs, P x Q places.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def distillation_loss(
    student_BPQ: Tensor, teacher_BPQ: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Return the cross-entropy of the student's map under the teacher's, both softmaxes over all places.

    No gradient reaches the teacher. Places that the teacher rules out (-inf) count for nothing.

    Source:
        GeoDistill (ICCV 2025), 3.4.
    """
    target_BN = (teacher_BPQ.detach().float().flatten(1) / teacher_temperature).softmax(1)
    log_BN = (student_BPQ.float().flatten(1) / student_temperature).log_softmax(1)
    return -(target_BN * log_BN.masked_fill(target_BN == 0, 0.0)).sum(1).mean()


class Teacher(nn.Module):
    """A moving average of a student, never trained by gradients and always in evaluation mode.

    After so many steps in a row, ``momentum`` of its weights stays and the rest comes from the student; buffers are
    copied. What the student does not train itself is shared with it.

    Args:
        student: Where the average begins.
        momentum: What stays in an update.
        every: Steps between two updates.
    """

    num_steps: Tensor

    def __init__(self, student: nn.Module, momentum: float, every: int) -> None:
        super().__init__()
        shared = {id(each): each for each in student.parameters() if not each.requires_grad}
        self.model = copy.deepcopy(student, shared).requires_grad_(False).eval()
        self.momentum, self.every = momentum, every
        # On the device and in the checkpoint, so that nobody waits for it and a resumed training goes on with it.
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Take a step of the student in."""
        self.num_steps += 1
        is_due = self.num_steps % self.every == 0
        share = torch.where(is_due, 1 - self.momentum, 0.0)
        for own, new in zip(self.model.parameters(), student.parameters(), strict=True):
            if own is not new:
                own.lerp_(new, share.to(own.dtype))
        for buffer, newer in zip(self.model.buffers(), student.buffers(), strict=True):
            buffer.copy_(torch.where(is_due, newer, buffer))

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        del mode
        return super().train(False)
