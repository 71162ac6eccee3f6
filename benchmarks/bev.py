"""Top views of 32 panoramas of 1024x2048 pixels at 384x384, field of view 170 degrees.

Run: python benchmarks/bev.py [--device cpu|cuda] [--panoramas 32] [--rounds 15]
On a processor: one core, processor time (fairer than the clock where others work too), at most 12 ms per panorama.
Peers: OpenCV's remap with a map that is kept, and the way the published codes go (a grid for each image, no seam).
On an accelerator: the bytes that have to be moved (32-byte sectors of the panoramas that some pixel needs, the places,
the result), over the rate of a plain copy measured in the same run; at least 40 %. All methods take turns, and the
median of the rounds counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from cvgl_data.panorama import to_bev
from cvgl_models.geometry import bev, bev_from_panorama

HEIGHT, WIDTH, SIDE, FOV_DEG = 1024, 2048, 384, 170.0
CPU_MS, GPU_SHARE = 12.0, 0.4
SECTOR_BYTES = 32


def as_published(pano_BCHW: torch.Tensor) -> torch.Tensor:
    """Make a grid for this image and sample without a seam, as HC-Net and AuxGeo do."""
    focal = SIDE / 2 / np.tan(np.radians(FOV_DEG) / 2)
    offset = SIDE / 2 - torch.arange(SIDE, dtype=torch.float32)
    north, west = torch.meshgrid(offset, offset, indexing="ij")
    from_nadir = torch.atan2(torch.full_like(north, -focal), torch.hypot(north, west)) + torch.pi / 2
    u, v = 1 - (torch.atan2(west, north) + torch.pi) / (2 * torch.pi), 1 - from_nadir / torch.pi
    grid = torch.stack([2 * u - 1, 2 * v - 1], -1).to(pano_BCHW.device)
    return F.grid_sample(pano_BCHW, grid[None].expand(len(pano_BCHW), -1, -1, -1), align_corners=True)


def timed(
    methods: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return the median milliseconds of each method, which take turns."""
    taken: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 2):
        for name, method in methods.items():
            wait()
            begun = clock()
            method()
            wait()
            if turn >= 2:
                taken[name].append(1e3 * (clock() - begun))
    return {name: statistics.median(times) for name, times in taken.items()}


def on_cpu(count: int, rounds: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    panos = np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    planes = torch.from_numpy(panos[0]).permute(2, 0, 1)[None].float().contiguous()
    x, y = (part.astype(np.float32) for part in _map())
    wrapped = [cv2.copyMakeBorder(pano, 0, 0, 1, 1, cv2.BORDER_WRAP) for pano in panos[:1]]

    methods: dict[str, Callable[[], object]] = {
        "to_bev (numpy, uint8 to uint8)": lambda: [to_bev(pano, SIDE, fov_deg=FOV_DEG) for pano in panos],
        "bev_from_panorama (torch, float)": lambda: [
            bev_from_panorama(planes, SIDE, fov_deg=FOV_DEG) for _ in range(count)
        ],
        "cv2.remap, kept map, wrapped before": lambda: [
            cv2.remap(wrapped[0], x, y, cv2.INTER_LINEAR) for _ in range(count)
        ],
        "as published (grid per image)": lambda: [as_published(planes) for _ in range(count)],
    }
    print(f"{count} panoramas {WIDTH}x{HEIGHT} -> {SIDE}x{SIDE}, one core, ms each (bar for ours: {CPU_MS})")
    for name, ms in timed(methods, rounds, time.process_time).items():
        print(f"  {name:42s} {ms / count:6.2f}")


def _map() -> tuple[np.ndarray, np.ndarray]:
    """Return where each pixel looks in a panorama with one more column on each side."""
    center = (np.arange(SIDE) + 0.5 - SIDE / 2) * 2 * np.tan(np.radians(FOV_DEG) / 2) / SIDE
    east, north = np.meshgrid(center, -center)
    u = (np.arctan2(east, north) / (2 * np.pi) + 0.5) % 1.0 * WIDTH
    return u + 0.5, (1 - np.arctan(np.hypot(east, north)) / np.pi) * HEIGHT - 0.5


def bytes_needed(count: int, channels: int) -> int:
    """Return the bytes that must be read and written: touched sectors, places, results."""
    look = bev._shared_look(SIDE, bev.heights_per_px(SIDE, None, 1.0, FOV_DEG), 0.0, (0.0, 180.0),
                            (WIDTH, HEIGHT, 0), torch.float64, "cpu")  # fmt: skip
    place = look.grid_BSS2[0].reshape(-1, 2)
    x = ((place[:, 0] + 1) / 2 * WIDTH - 0.5).floor().long()
    y = ((place[:, 1] + 1) / 2 * HEIGHT - 0.5).floor().long()
    touched = torch.cat([(y + dy).clamp(max=HEIGHT - 1) * WIDTH + (x + dx) % WIDTH for dy in (0, 1) for dx in (0, 1)])
    sectors = (touched * 4 // SECTOR_BYTES).unique()
    return count * channels * (len(sectors) * SECTOR_BYTES + 4 * SIDE**2) + 8 * SIDE**2


def on_gpu(count: int, rounds: int) -> None:
    panos = torch.rand(count, 3, HEIGHT, WIDTH, device="cuda")
    target = torch.empty_like(panos)
    scale = torch.full((count,), 0.15, device="cuda")
    methods: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(panos),
        "bev_from_panorama": lambda: bev_from_panorama(panos, SIDE, fov_deg=FOV_DEG),
        "bev_from_panorama, a scale per image": lambda: bev_from_panorama(panos, SIDE, scale),
        "as published": lambda: as_published(panos),
    }
    taken = timed(methods, rounds, wait=torch.cuda.synchronize)
    copy_rate = 2 * panos.numel() * 4 / taken["copy"] / 1e6
    needed = bytes_needed(count, 3)
    share = needed / taken["bev_from_panorama"] / 1e6 / copy_rate
    print(f"{torch.cuda.get_device_name()}: a copy moves {copy_rate:.0f} GB/s")
    for name, ms in taken.items():
        print(f"  {name:42s} {ms:8.3f} ms for {count}")
    print(f"  top views must move {needed / 1e6:.0f} MB: {share:.0%} of the copy's rate (bar: {GPU_SHARE:.0%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--panoramas", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    (on_gpu if given.device == "cuda" else on_cpu)(given.panoramas, given.rounds)


if __name__ == "__main__":
    main()
