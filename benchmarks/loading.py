"""Batches from memory-mapped shards beside the bare JPEG decoder, per core, and with several workers.

Run: python benchmarks/loading.py [--workers N]
Images: tiles of 384 x 384 and panoramas of 2048 x 1024 shown at 768 x 384 (3/8 of the size, which the decoder can
do by itself) and panoramas packed at 768 x 384; made with a seed, in shards with their index.
Limit: simplejpeg, which is libjpeg-turbo, on the same bytes at the same scale in a plain loop in one process. Both are
measured in turns, the best of several rounds counts. CPU time is that of all processes; on a machine that does other
work too, it is the fairer of the two.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import simplejpeg

from cvgl_data import schema
from cvgl_data.dataset import CrossViewDataset
from cvgl_data.readers.packed import PackedImages
from cvgl_data.shards.files import ShardFiles
from cvgl_data.shards.image_files import ImageWriter
from cvgl_models.batches import Views, data_loader
from cvgl_models.recipe import LoaderRecipe, ViewRecipe

sys.path.insert(0, str(Path(__file__).parent))
from packing import _queries, picture

ROUNDS = 3
PASSES = 4
"""So that starting processes, which happens once in a training, does not count for more than it does there."""
BATCH = 32
VIEWS = ViewRecipe(query_height_px=384, query_width_px=768, reference_px=384)


class Took(NamedTuple):
    """Seconds of one round."""

    wall_s: float
    cpu_s: float


def dataset(images: list[bytes], num: int, folder: Path) -> CrossViewDataset:
    """Write a shard of queries and open it."""
    table = _queries(images, num)
    files = ShardFiles(folder)
    writer = ImageWriter(files, "queries", "train", table.schema, 64, 500_000_000)
    writer.write(table)
    writer.close()
    files.put_in_place()
    (shard,) = folder.rglob("train-*.parquet")
    ids = table["query_id"]
    return CrossViewDataset(
        references=schema.REFERENCES.empty_table(),
        queries=table.drop_columns(["image"]),
        pairs=schema.PAIRS.empty_table(),
        distance_map=schema.DISTANCE_MAP.empty_table(),
        images=PackedImages([(shard, num)], ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([ids])),
    )


def cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def bare(images: list[memoryview], height: int, width: int) -> Took:
    wall, cpu = time.perf_counter(), cpu_s()
    for image in images:
        simplejpeg.decode_jpeg(image, min_height=height, min_width=width, min_factor=1.01)
    return Took(time.perf_counter() - wall, cpu_s() - cpu)


def ours(views: Views, workers: int) -> Took:
    """Load everything a few times in batches; starting and ending the processes counts. Seconds are those of once."""
    draw = np.random.default_rng(0)
    order = np.concatenate([draw.permutation(len(views)) for _ in range(PASSES)])
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    gc.collect()
    wall, cpu = time.perf_counter(), cpu_s()
    for (images,) in data_loader(views, batches, LoaderRecipe(workers=workers)):
        assert images.shape[1] == 3
    return Took((time.perf_counter() - wall) / PASSES, (cpu_s() - cpu) / PASSES)


def measure(title: str, images: list[bytes], num: int, views: ViewRecipe, workers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        opened = dataset(images, num, Path(folder))
        side = Views(opened, "query", views)
        encoded = [opened.images.view(name) for name in side.ids]
        height, width = views.query_size_px
        best: dict[str, Took] = {}
        for _ in range(ROUNDS):
            rounds = {"simplejpeg alone": bare(encoded, height, width)}
            rounds |= {f"{count} workers": ours(side, count) for count in workers}
            for name, took in rounds.items():
                old = best.get(name, took)
                best[name] = Took(min(old.wall_s, took.wall_s), min(old.cpu_s, took.cpu_s))
        limit = best.pop("simplejpeg alone")
        print(f"{title}: {num} images of {sum(map(len, encoded)) / num / 1000:.0f} kB to {width} x {height}")
        print(f"  simplejpeg alone, one core: {num / limit.wall_s:.0f}/s, {limit.cpu_s / num * 1e3:.3f} CPU ms each")
        one = best[f"{workers[0]} workers"]
        for name, took in best.items():
            print(
                f"  ours, {name}: {num / took.wall_s:.0f} images/s, {took.cpu_s / num * 1e3:.3f} CPU ms each, "
                f"{limit.cpu_s / took.cpu_s:.1%} of the limit per CPU second, {one.wall_s / took.wall_s:.2f} times one"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    workers = [1, 0, options.workers] if options.workers > 1 else [1, 0]
    panoramas = [picture(seed, 2048, 1024, 64, 90) for seed in range(20)]
    smaller = [picture(seed, 768, 384, 48, 90) for seed in range(20)]
    tiles = [picture(seed, 384, 384, 24, 90) for seed in range(20)]
    measure("panoramas", panoramas, 384, VIEWS, workers)
    measure("panoramas packed at the view's size", smaller, 1024, VIEWS, workers)
    square = ViewRecipe(query_height_px=384, query_width_px=384, reference_px=384)
    measure("tiles", tiles, 2048, square, workers)


if __name__ == "__main__":
    main()
