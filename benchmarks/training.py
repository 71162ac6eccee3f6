"""A training step of a retrieval recipe at full size, beside a plain loop written as the published code does it.

Run: python benchmarks/training.py [--steps 20] [--tiny] [--recipe auxgeo-vigor --set optim.micro_batch=32]
Needs CUDA, but for --tiny, which only tries the code. The plain loop is that of `sample4geo`, and runs for it only.
Ours: bf16 autocast, channels last, uint8 images made float and augmented on the device, fused AdamW. Plain: fp16
autocast with a gradient scaler, channels first, normalized float32 images from the host, AdamW as it comes, clipping by
value. Both: no compilation, the same network with random weights, the same batch of random images, InfoNCE both ways.
The FLOPs are those of forward and backward as PyTorch counts them, once; MFU is their rate over the given peak.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cvgl_models.recipe import ModelRecipe, load_recipe
from cvgl_models.systems import create_system
from cvgl_models.training import autocast
from cvgl_models.training.gradients import backward
from cvgl_models.transforms import Augment, Batch

TINY = [
    "encoder.backbone=cvgl_small_cnn",
    "views.query_height_px=32",
    "views.query_width_px=64",
    "views.reference_px=32",
    "sampler.batch_size=4",
]
WARM_UP = 3


def images(recipe: ModelRecipe) -> dict[str, torch.Tensor]:
    """Return uint8 views as the loader gives them: channels last, pinned where that helps."""
    size, side, above = recipe.sampler.batch_size, recipe.views.reference_px, recipe.views.bev_px
    shapes = {"query": (size, *recipe.views.query_size_px, 3), "reference": (size, side, side, 3)}
    if above:
        shapes["bev"] = (size, above, above, 3)
    made = {name: torch.randint(256, shape, dtype=torch.uint8).permute(0, 3, 1, 2) for name, shape in shapes.items()}
    return {name: view.pin_memory() if torch.cuda.is_available() else view for name, view in made.items()}


def ours(recipe: ModelRecipe, device: torch.device) -> Callable[[], None]:
    system = create_system(recipe).to(device).train()
    optimizer = torch.optim.AdamW(system.parameters(), lr=recipe.optim.lr, fused=device.type == "cuda")
    augment = Augment(recipe.augment, recipe.views.query)
    views = images(recipe)
    num, generator = recipe.sampler.batch_size, torch.Generator().manual_seed(0)

    def step() -> None:
        batch = Batch(
            **views,
            uv=torch.full((num, 2), recipe.views.reference_px / 2),
            heading_deg=torch.zeros(num),
            query_row=torch.arange(num),
            reference_row=torch.arange(num),
        )
        batch = augment(batch.to(device), generator)
        micro_batch = recipe.optim.micro_batch
        backward(system, batch, context=lambda: autocast("auto", device), micro_batch=micro_batch)
        torch.nn.utils.clip_grad_norm_(system.parameters(), recipe.optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain(recipe: ModelRecipe, device: torch.device) -> Callable[[], None]:
    network = create_system(recipe).encoder.query.backbone.to(device, memory_format=torch.contiguous_format).train()
    scale = torch.nn.Parameter(torch.tensor(2.6593, device=device))
    optimizer = torch.optim.AdamW([*network.parameters(), scale], lr=recipe.optim.lr)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=device.type == "cuda")
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    views = [(view.float() / 255 - mean) / std for view in images(recipe).values()]
    views = [view.contiguous().pin_memory() if torch.cuda.is_available() else view.contiguous() for view in views]
    labels = torch.arange(len(views[0]), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            query, reference = (F.normalize(network(view.to(device)), dim=1) for view in views)
            logits = scale.exp() * query @ reference.T
            smooth = {"label_smoothing": recipe.optim.label_smoothing}
            loss = (F.cross_entropy(logits, labels, **smooth) + F.cross_entropy(logits.T, labels, **smooth)) / 2
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_value_(network.parameters(), 100.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loss.item()  # it is shown in every step

    return step


def seconds_per_step(step: Callable[[], None], num_steps: int) -> float:
    for _ in range(WARM_UP):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--recipe", default="sample4geo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the recipe")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 peak; H100 and H200 SXM: 989")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        print("not measured: a training step at full size needs a CUDA device; --tiny tries the code without one")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = load_recipe(options.recipe, ["encoder.pretrained=false", *(TINY if options.tiny else []), *options.set])
    num_images = len(images(recipe)) * recipe.sampler.batch_size
    took = {}
    loops = {"plain": plain, "ours": ours} if recipe.system == "sample4geo" else {"ours": ours}
    for name, make in loops.items():
        torch.manual_seed(0)
        step = make(recipe, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with FlopCounterMode(display=False) as counter:
            step()
        took[name] = seconds_per_step(step, options.steps)
        rate = counter.get_total_flops() / took[name]
        print(
            f"{name}: {num_images / took[name]:.1f} images/s, {took[name] * 1e3:.1f} ms per step, "
            f"{rate / 1e12:.3f} TFLOP/s, MFU {rate / options.peak_tflops / 1e12:.1%}"
            + (f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else "")
        )
        del step
    if "plain" in took:
        print(f"ours / plain: {took['plain'] / took['ours']:.2f} times the images/s")


if __name__ == "__main__":
    main()
