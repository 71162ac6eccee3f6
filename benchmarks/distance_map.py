"""Distance maps at the size of DReSS, beside the bare KD-tree and the published scripts' method.

Run: python benchmarks/distance_map.py
Ceiling: `scipy.spatial.cKDTree.query` alone, which neither orders ties, nor leaves a row out of its own list, nor
builds a table. Peer: the full haversine matrix and a top-k, as the published scripts do it (radians given, which they
do not), at a size that it can hold.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.spatial import cKDTree

from cvgl_data.geo import EARTH_RADIUS_M, meters_from_chord, unit_sphere
from cvgl_data.neighbors import distance_map

K = 128
NUM_QUERIES, NUM_REFERENCES = 174_934, 422_760
NUM_SELF = 80_000
NUM_PEER = 8_000
CITIES = [(-0.1, 51.5), (139.7, 35.7), (151.2, -33.9), (103.8, 1.3), (-122.3, 47.6), (-87.6, 41.9), (-74, 40.7)]
CITIES += [(-122.4, 37.8)]


def references(num: int, num_cities: int = len(CITIES)) -> pa.Table:
    """Return square grids of references, about 70 m apart, of so many cities; full of ties."""
    city, place = np.divmod(np.arange(num), -(-num // num_cities))
    column, row = np.divmod(place, int(np.ceil(np.sqrt(num / num_cities))))
    corner = np.array(CITIES)[city]
    return _table("r", corner[:, 0] + column * 0.001, corner[:, 1] + row * 0.0006)


def queries(num: int, num_references: int) -> pa.Table:
    """Return queries spread evenly over the same grids."""
    city = np.arange(num) // -(-num // len(CITIES))
    side = np.sqrt(num_references / len(CITIES))
    east, north = np.random.default_rng(0).uniform(0, side, (2, num))
    corner = np.array(CITIES)[city]
    return _table("q", corner[:, 0] + east * 0.001, corner[:, 1] + north * 0.0006)


def _table(prefix: str, lon: np.ndarray, lat: np.ndarray) -> pa.Table:
    return pa.table({"id": [f"{prefix}{row:06d}" for row in range(len(lon))], "lon": lon, "lat": lat})


def _points(table: pa.Table) -> np.ndarray:
    return unit_sphere(table["lon"].to_numpy(), table["lat"].to_numpy())


def bare_tree(table: pa.Table, asking: pa.Table | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and rows as the tree gives them."""
    tree = cKDTree(_points(table))
    chord, rows = tree.query(_points(table if asking is None else asking), k=k, workers=-1)
    return meters_from_chord(chord).astype(np.float32), rows.astype(np.int32)


def ours(table: pa.Table, asking: pa.Table | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    found = distance_map(table, k, queries=asking)
    distances, rows = (found[name].combine_chunks().flatten() for name in ("distances_m", "neighbor_rows"))
    return distances.to_numpy().reshape(-1, k), rows.to_numpy().reshape(-1, k)


def full_matrix(table: pa.Table, asking: None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the same by the full distance matrix."""
    lam, phi = (np.radians(table[name].to_numpy()) for name in ("lon", "lat"))
    half = np.sin((phi[:, None] - phi) / 2) ** 2
    half += np.cos(phi)[:, None] * np.cos(phi) * np.sin((lam[:, None] - lam) / 2) ** 2
    distance = 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(half))
    np.fill_diagonal(distance, distance.max())
    near = np.argpartition(distance, k, axis=1)[:, :k]
    meters = np.take_along_axis(distance, near, 1)
    order = np.argsort(meters, axis=1)
    return np.take_along_axis(meters, order, 1).astype(np.float32), np.take_along_axis(near, order, 1)


METHODS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "ours": ours,
    "bare tree": bare_tree,
    "full matrix": full_matrix,
}


def _memory_mb(key: str) -> float:
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000


def measure(method: str, num: int, num_cities: int, num_queries: int, k: int) -> dict[str, Any]:
    """Run one method; meant for a process of its own, whose peak of memory it tells."""
    table = references(num, num_cities)
    asking = queries(num_queries, num) if num_queries else None
    small = references(500, 1)
    METHODS[method](small, None, k)  # imports, threads
    before, cpu, started = _memory_mb("VmRSS"), time.process_time(), time.perf_counter()
    distances, _ = METHODS[method](table, asking, k)
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"s": took, "cpu_s": cpu, "mb": _memory_mb("VmHWM") - before, "sum": distances.sum(axis=1, dtype=float)}


def run(*args: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, args)


def compare(title: str, peer: str, num: int, num_cities: int = len(CITIES), num_queries: int = 0) -> None:
    mine = run("ours", num, num_cities, num_queries, K)
    # The bare tree finds the row itself as well.
    theirs = run(peer, num, num_cities, num_queries, K + (peer == "bare tree" and not num_queries))
    print(f"{title}, k = {K}")
    for name, found in (("ours", mine), (peer, theirs)):
        print(f"  {name}: {found['s']:.2f} s, {found['cpu_s']:.2f} CPU s, {found['mb']:.0f} MB above start")
    apart = np.abs(mine["sum"] - theirs["sum"]).max() / K
    print(f"  {peer} / ours: {theirs['s'] / mine['s']:.2f} of the time; mean distances differ by up to {apart:.1e} m")


def main() -> None:
    title = f"{NUM_QUERIES:,} queries against {NUM_REFERENCES:,} references"
    compare(title, "bare tree", NUM_REFERENCES, num_queries=NUM_QUERIES)
    compare(f"{NUM_SELF:,} references among themselves", "bare tree", NUM_SELF, 1)
    compare(f"{NUM_PEER:,} references among themselves", "full matrix", NUM_PEER, 1)


if __name__ == "__main__":
    main()
