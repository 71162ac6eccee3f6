"""What is known of a heading before it is looked for.

Shapes: B pairs. A prior is a centre and a half-width in degrees: 0 if the heading is known, 180 if nothing is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cvgl_models.localization.pose import wrap_deg
from cvgl_models.transforms import Batch


def heading_prior(batch: Batch) -> Tensor:
    """Return the batch's (B, 2) prior on the device of its queries; anything about 0 if it has none."""
    if len(batch.heading_prior_deg):
        return batch.heading_prior_deg.to(batch.query.device).float()
    anything_B2 = torch.zeros(len(batch.query), 2, device=batch.query.device)
    anything_B2[:, 1] = 180.0
    return anything_B2


def within_prior(heading_deg_B: Tensor, prior_B2: Tensor) -> Tensor:
    """Return headings moved to the nearest end of the prior where they lie outside it, in (-180, 180]."""
    away_B = wrap_deg(heading_deg_B - prior_B2[:, 0])
    return wrap_deg(prior_B2[:, 0] + away_B.clamp(-prior_B2[:, 1], prior_B2[:, 1]))
