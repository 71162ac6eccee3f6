"""Distance map of 80,000 references, k = 128, beside the published scripts' method at a size that it can hold.

Run: python benchmarks/distance_map.py
Peer: the full N x N haversine matrix and a top-k, as the published scripts do it (radians given, which they do not).
"""

from __future__ import annotations

import resource
import time

import numpy as np
import pyarrow as pa
import torch

from cvgl_data.geo import EARTH_RADIUS_M
from cvgl_data.neighbors import distance_map

K = 128
NUM_OURS = 80_000
NUM_PEER = 8_000


def city(num: int) -> pa.Table:
    """Return a square grid of references over London with 1 m of jitter."""
    side = int(np.ceil(np.sqrt(num)))
    row, column = np.divmod(np.arange(num), side)
    jitter = np.random.default_rng(0).uniform(-1e-5, 1e-5, (2, num))
    lon, lat = -0.3 + column * 0.0012 + jitter[0], 51.4 + row * 0.00075 + jitter[1]
    return pa.table({"id": [f"{index:06d}" for index in range(num)], "lon": lon, "lat": lat})


def full_matrix(table: pa.Table) -> np.ndarray:
    """Return the K nearest rows by the full distance matrix."""
    lam, phi = (torch.from_numpy(np.radians(table[name].to_numpy())) for name in ("lon", "lat"))
    half = torch.sin((phi[:, None] - phi) / 2) ** 2
    half += torch.cos(phi)[:, None] * torch.cos(phi) * torch.sin((lam[:, None] - lam) / 2) ** 2
    distance = 2 * EARTH_RADIUS_M * torch.asin(torch.sqrt(half))
    distance.fill_diagonal_(distance.max())
    return torch.topk(distance, K, largest=False).indices.numpy()


def seconds(function, *args) -> tuple[float, object]:
    started = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - started, result


def main() -> None:
    table = city(NUM_OURS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took, _ = seconds(distance_map, table, K)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"ours, {NUM_OURS:,} references: {took:.2f} s, {(peak - before) / 1024:.0f} MB above start")
    small = city(NUM_PEER)
    ours, found = seconds(distance_map, small, K)
    theirs, matrix = seconds(full_matrix, small)
    rows = np.stack(found["neighbor_rows"].to_numpy())
    same = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(rows, matrix, strict=True)])
    print(f"{NUM_PEER:,} references: ours {ours:.2f} s, full matrix {theirs:.2f} s, {theirs / ours:.1f} times as long")
    print(f"neighbors in common: {same:.4f}")


if __name__ == "__main__":
    main()
