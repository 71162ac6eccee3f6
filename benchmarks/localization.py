"""Images per second of `hcnet` and `ccvpe` at their published sizes, from views in memory to metres and degrees.

Run: python benchmarks/localization.py [--rounds 20] [--tiny] [--systems hcnet ccvpe]
A picture is a panorama (hcnet 1024x512, ccvpe 640x320) and a reference (512x512), float and on the device already;
its pose, score map, radius and heading are computed, top view included, and waited for. On a GPU bf16 autocast is used,
on a processor float32. Weights are random: they do not change the speed. HC-Net's paper says 30 a second, CCVPE's 14.
--tiny takes the smoke recipes, to try the code.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from cvgl_models.recipe import ModelRecipe, load_recipe
from cvgl_models.systems.ccvpe import CCVPE
from cvgl_models.systems.hcnet import HCNet
from cvgl_models.training import autocast
from cvgl_models.transforms import Batch

SYSTEMS = {"hcnet": HCNet, "ccvpe": CCVPE}
WARM_UP = 3


def views(recipe: ModelRecipe, size: int, device: torch.device) -> Batch:
    """Random pictures of the recipe's sizes whose headings are known to 45 degrees."""
    generator = torch.Generator().manual_seed(0)
    side = recipe.views.reference_px
    return Batch(
        query=torch.rand(size, 3, *recipe.views.query_size_px, generator=generator),
        reference=torch.rand(size, 3, side, side, generator=generator),
        heading_prior_deg=torch.tensor([[0.0, 45.0]]).repeat(size, 1),
        gsd_m=torch.full((size,), 0.14),
    ).to(device)


def seconds(system: HCNet | CCVPE, batch: Batch, device: torch.device, rounds: int) -> list[float]:
    """Return the seconds of each round; the pose is read on the host, so all has been computed."""
    found = []
    for number in range(WARM_UP + rounds):
        started = time.perf_counter()
        with torch.inference_mode(), autocast("auto", device):
            pose = system.localize(batch)
        torch.cat([pose.xy_m_B2, pose.yaw_deg_B[:, None], pose.radius95_m_B[:, None]], 1).tolist()
        if number >= WARM_UP:
            found.append(time.perf_counter() - started)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--systems", nargs="+", choices=sorted(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} processor threads"
    kind = "bf16" if device.type == "cuda" else "fp32"
    print(f"{name}, {kind}, torch {torch.__version__}, median of {options.rounds} rounds")
    for key in options.systems:
        recipe = load_recipe(f"{key}-{'smoke' if options.tiny else 'vigor'}", ["encoder.pretrained=false"])
        system = SYSTEMS[key](recipe).to(device).eval()
        millions = sum(parameter.numel() for parameter in system.parameters()) / 1e6
        for size in options.batch:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = seconds(system, views(recipe, size, device), device, options.rounds)
            median = statistics.median(taken)
            memory = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if device.type == "cuda" else ""
            print(
                f"{recipe.name}: batch {size:2d}: {size / median:8.1f} images/s, {1e3 * median / size:7.2f} ms each "
                f"(fastest {size / min(taken):.1f} images/s), {millions:.1f} M parameters{memory}"
            )


if __name__ == "__main__":
    main()
