"""Exact search and ranks of 50,000 queries in 100,000 references of 1,024 dimensions, beside faiss' flat index.

Run: python benchmarks/retrieval.py [--queries 50000 --references 100000] [--device cpu|cuda]
Peer: `faiss.IndexFlatIP.search` (top 10 only; it cannot give ranks), where faiss is installed. Limit: the bare matrix
product by NumPy in blocks of the same size. All get the same queries block by block in turns, because machines are
noisy, and the block's order changes. Memory is the growth of the process beyond the embeddings and a first small run.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads of one method must not take cores from another

import numpy as np
import torch

from cvgl_models.blockwise import QUERY_BLOCK, REFERENCE_BLOCK
from cvgl_models.retrieval import search, search_and_rank

K = 10
BLOCK = 2 * QUERY_BLOCK


def embeddings(num: int, dim: int, seed: int) -> np.ndarray:
    """Return random vectors of unit length."""
    values = np.random.default_rng(seed).standard_normal((num, dim), dtype=np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def bare_product(query: np.ndarray, reference: np.ndarray, out: np.ndarray) -> None:
    for top in range(0, len(query), QUERY_BLOCK):
        part = query[top : top + QUERY_BLOCK]
        for left in range(0, len(reference), REFERENCE_BLOCK):
            columns = reference[left : left + REFERENCE_BLOCK]
            np.matmul(part, columns.T, out=out[: part.shape[0] * len(columns)].reshape(part.shape[0], -1))


def memory_mb(key: str) -> float:
    """Return VmRSS or VmHWM of this process."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000


def on_cpu(num_queries: int, num_references: int, dim: int) -> None:
    query, reference = embeddings(num_queries, dim, 0), embeddings(num_references, dim, 1)
    positives = np.random.default_rng(2).integers(0, num_references, num_queries)
    query += reference[positives] * np.float32(0.12)  # about as hard as a real test set: some are found, some not
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    memory = np.empty(QUERY_BLOCK * REFERENCE_BLOCK, np.float32)
    found: dict[str, list[np.ndarray]] = {"ranks": [], "ours": [], "faiss": []}

    def ours(rows: slice) -> None:
        indices, _, ranks = search_and_rank(query[rows], reference, K, positives[rows])
        found["ours"].append(indices.numpy())
        found["ranks"].append(ranks.numpy())

    methods: dict[str, Callable[[slice], object]] = {
        "bare product (NumPy)": lambda rows: bare_product(query[rows], reference, memory),
        f"ours, top {K} and ranks": ours,
    }
    first = slice(0, min(64, num_queries))
    search(query[first], reference, K)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_mb("VmRSS")
    search_and_rank(query[: min(BLOCK, num_queries)], reference, K, positives[: min(BLOCK, num_queries)])
    print(f"memory of ours beyond the embeddings: {memory_mb('VmHWM') - before:.0f} MB above a small search")
    try:
        import faiss
    except ImportError:
        print("faiss is not installed; the bare product is the only comparison")
    else:
        index = faiss.IndexFlatIP(dim)
        index.add(reference)
        methods[f"faiss IndexFlatIP, top {K}"] = lambda rows: found["faiss"].append(index.search(query[rows], K)[1])
    seconds, cpu_seconds = dict.fromkeys(methods, 0.0), dict.fromkeys(methods, 0.0)
    for number, start in enumerate(range(0, num_queries, BLOCK)):
        rows = slice(start, min(start + BLOCK, num_queries))
        names = list(methods)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started, cpu_started = time.perf_counter(), time.process_time()
            methods[name](rows)
            cpu_seconds[name] += time.process_time() - cpu_started
            seconds[name] += time.perf_counter() - started
    flop = 2.0 * num_queries * num_references * dim
    print(f"{num_queries:,} x {num_references:,} x {dim}, {len(os.sched_getaffinity(0))} cores, fp32")
    for name, took in seconds.items():
        print(f"  {name}: {took:.1f} s ({cpu_seconds[name]:.1f} CPU s), {flop / took / 1e9:.0f} GFLOP/s")
    ranks = np.concatenate(found["ranks"])
    print(f"  recall@1 {np.mean(ranks < 1):.4f}, recall@10 {np.mean(ranks < 10):.4f}")
    if found["faiss"]:
        mine, theirs = np.concatenate(found["ours"]), np.concatenate(found["faiss"])
        print(f"  same top {K} as faiss: {np.mean((mine == theirs).all(axis=1)):.5f} of the queries")
        print(f"  faiss / ours: {seconds[f'faiss IndexFlatIP, top {K}'] / seconds[f'ours, top {K} and ranks']:.3f}")


def on_cuda(num_queries: int, num_references: int, dim: int) -> None:
    device = torch.device("cuda")
    query = torch.from_numpy(embeddings(num_queries, dim, 0)).to(device)
    reference = torch.from_numpy(embeddings(num_references, dim, 1)).to(device)
    positives = torch.randint(num_references, (num_queries,), device=device)
    for attempt in ("first", "second"):
        torch.cuda.synchronize()
        started = time.perf_counter()
        search_and_rank(query, reference, K, positives)
        torch.cuda.synchronize()
        took = time.perf_counter() - started
        print(f"{torch.cuda.get_device_name()}, {attempt} call: {took:.2f} s for top {K} and ranks")
    torch.cuda.synchronize()
    started = time.perf_counter()
    for part in query.split(4096):
        part @ reference.T
    torch.cuda.synchronize()
    print(f"  bare product: {time.perf_counter() - started:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--references", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    run = on_cpu if options.device == "cpu" else on_cuda
    run(options.queries, options.references, options.dim)


if __name__ == "__main__":
    main()
