"""Normalized cross-correlation of all pairs of a batch: FFT against direct convolution, in one run.

Run: python benchmarks/ncc.py [--device cuda] [--repeats 5] [--threads N] [--backward]

Sizes are those of training: 8 references and templates of the smoke recipe, of G2SWeakly on VIGOR (levels 1 and 2) and
of GeoDistill with DINOv2 (level 2). The direct way is a convolution of every reference with every template; that both
give the same numbers is printed too. Medians of forward and, with --backward, of forward and backward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from cvgl_models.geometry.ncc import correlate_direct, correlate_fft, normalized_cross_correlation

SIZES = {
    "smoke level 1 (16 x 64 x 64, template 24, overhang 12)": (16, 64, 24, 12),
    "VIGOR VGG level 1 (64 x 128 x 128, template 51)": (64, 128, 51, 0),
    "VIGOR VGG level 2 (16 x 256 x 256, template 102)": (16, 256, 102, 0),
    "VIGOR DINO level 2 (16 x 296 x 296, template 118)": (16, 296, 118, 0),
}


def seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    """Return the median of some runs, after one that does not count."""
    taken = []
    for number in range(repeats + 1):
        begun = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if number:
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0: as many as it likes")
    parser.add_argument("--only", default="", help="sizes whose name contains this")
    parser.add_argument("--backward", action="store_true", help="also forward and backward")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # equal precision for both
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, {options.batch} x {options.batch} pairs, median of {options.repeats}")
    for name, (channels, side, template_side, padding) in SIZES.items():
        if options.only not in name:
            continue
        torch.manual_seed(0)
        reference = torch.randn(options.batch, channels, side, side, device=options.device)
        template = torch.randn(options.batch, channels, template_side, template_side, device=options.device)
        forwards: dict[str, Callable[[], Tensor]] = {
            "fft": lambda r=reference, t=template, p=padding: normalized_cross_correlation(  # type: ignore[misc]
                r, t, padding=p, correlate=correlate_fft
            ),
            "direct": lambda r=reference, t=template, p=padding: normalized_cross_correlation(  # type: ignore[misc]
                r, t, padding=p, correlate=correlate_direct
            ),
        }
        gap = (forwards["fft"]() - forwards["direct"]()).abs().max().item()
        taken = {way: seconds(run, options.repeats, options.device) for way, run in forwards.items()}
        print(f"{name}: greatest difference {gap:.1e}")
        show("forward", taken)
        if options.backward:
            reference.requires_grad_()
            template.requires_grad_()
            both = {
                way: seconds(lambda run=run: run().amax((2, 3)).sum().backward(), options.repeats, options.device)  # type: ignore[misc]
                for way, run in forwards.items()
            }
            show("forward and backward", both)


def show(what: str, taken: dict[str, float]) -> None:
    """Print one comparison."""
    faster = taken["direct"] / taken["fft"]
    print(f"  {what}: fft {taken['fft'] * 1e3:.1f} ms, direct {taken['direct'] * 1e3:.1f} ms, {faster:.1f} times")


if __name__ == "__main__":
    main()
