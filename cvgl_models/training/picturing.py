"""Pictures of what a system makes of a few pairs, in the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cvgl_models.batches import PairViews
from cvgl_models.pictures import write_pictures
from cvgl_models.systems import SystemModule
from cvgl_models.transforms import Batch

PICTURES = "pictures"
_PAIRS = 4


class Pictured:
    """The same few training pairs, as they are, each time.

    Args:
        pairs: The training pairs.
        run: Run folder; drawn to ``pictures/epoch-NNN.png`` in it.
    """

    def __init__(self, pairs: PairViews, run: Path) -> None:
        self._pairs, self._folder = pairs, run / PICTURES

    def draw(self, system: SystemModule, epoch: int, device: torch.device) -> None:
        """Write the pictures of a system that has some."""
        if type(system).pictures is SystemModule.pictures:
            return
        system.eval()
        with torch.no_grad():
            found = system.pictures(self._batch().to(device))
        if found:
            write_pictures(found, self._folder / f"epoch-{epoch + 1:03d}.png")

    def _batch(self) -> Batch:
        chosen = np.unique(np.linspace(0, len(self._pairs) - 1, _PAIRS).astype(np.int64))
        parts = zip(*(self._pairs[int(pair)] for pair in chosen), strict=True)
        images = {views.side: torch.stack(part) for views, part in zip(self._pairs.sides, parts, strict=True)}
        return self._pairs.pairs.batch(chosen, images, ignore_semi_positives=False)
