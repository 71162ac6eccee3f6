"""A small SAFA, and pairs to show it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cvgl_models.recipe import load_recipe
from cvgl_models.systems.safa import Safa
from cvgl_models.transforms import Batch


def recipe(front_end, *overrides):
    return load_recipe("safa-smoke", [f'options.front_end="{front_end}"', *overrides])


def system(front_end, *overrides):
    torch.manual_seed(0)
    return Safa(recipe(front_end, *overrides))


def batch(size=4, side=64, query_px=(64, 128)):
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.rand(size, 3, 8, 8 * ratio, generator=generator) for ratio in (2, 1)]
    query, reference = (
        F.interpolate(images, px, mode="bicubic").clamp(0, 1)
        for images, px in zip(coarse, (query_px, (side, side)), strict=True)
    )
    return Batch(query=query, reference=reference, uv=torch.full((size, 2), side / 2), heading_deg=torch.zeros(size))
