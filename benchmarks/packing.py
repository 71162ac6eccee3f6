"""How fast rows with images are packed, beside a plain Parquet writer and the `datasets` library.

Run: python benchmarks/packing.py [--folder DIR]
Rows: 10,000 tiles of about 10 kB and 300 panoramas of about 390 kB, made with a seed. All writers get the same rows in
the same batches, in one run; the best of several.
Peers: `pyarrow.parquet.ParquetWriter` with the same layout (image column uncompressed and PLAIN, same row groups),
which writes neither index nor hashes; `Dataset.from_generator(...).to_parquet(...)`, as most projects do it.
Also measured: how much memory streaming takes, and how fast images are packed at a smaller size for training.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from cvgl_data import schema, shards
from cvgl_data.neighbors import distance_map
from cvgl_data.recipe import DatasetRecipe, PackRecipe
from cvgl_data.shards.files import ShardFiles
from cvgl_data.shards.image_files import ImageWriter, open_writer, write_group
from cvgl_data.shards.resizing import Size, resize_table
from cvgl_data.types import Window

NUM_TILES, NUM_PANORAMAS = 10_000, 300
DISTINCT = 40
"""Images of each kind that differ in more than their last bytes."""
TILES_AT_ONCE, PANORAMAS_AT_ONCE = 64, 64
"""Rows per batch, as the store of fetched images gives them."""
REPEATS = 7


def picture(seed: int, width: int, height: int, detail: int, quality: int) -> bytes:
    """Return a JPEG of smooth color with some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (detail // 2, detail, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = random.normal(0, 5, pixels.shape[:2])[..., None].astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _distinct(images: list[bytes], number: int) -> bytes:
    """Return an image that no other row has: bytes after a JPEG's end mean nothing."""
    return images[number % len(images)] + number.to_bytes(4, "little")


def _references(images: list[bytes], num: int) -> pa.Table:
    windows = sorted(
        (Window(10_748_928 + 256 * (i % 100), 23_436_032 + 256 * (i // 100), 256, 18) for i in range(num)),
        key=lambda window: window.key,
    )
    return pa.Table.from_pylist(
        [
            {
                "reference_id": window.key,
                "image": {"bytes": _distinct(images, number), "path": None},
                **window._asdict(),
                **window.center._asdict(),
                "gsd_m": window.gsd_m,
                "area": "seattle",
                "source": "bench",
                "release": "2024-05",
                "captured": "2024-05-01",
                "licence": "CC0-1.0",
                "no_redistribute": False,
                "status": "ok",
                "sha256": hashlib.sha256(_distinct(images, number)).hexdigest(),
            }
            for number, window in enumerate(windows)
        ],
        schema.REFERENCES,
    )


def _queries(images: list[bytes], num: int, start: int = 0) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "query_id": f"pano_{number:06d}",
                "image": {"bytes": _distinct(images, number), "path": None},
                "lon": -122.33 + number % 100 * 1e-3,
                "lat": 47.60 + number // 100 * 1e-3,
                "heading_deg": 0.0,
                "pitch_deg": 0.0,
                "roll_deg": 0.0,
                "upright": True,
                "captured": "2024-06-01",
                "area": "seattle",
                "source": "bench",
                "licence": "CC0-1.0",
                "status": "ok",
                "sha256": hashlib.sha256(_distinct(images, number)).hexdigest(),
            }
            for number in range(start, num)
        ],
        schema.QUERIES,
    )


def shards_with_hashes(table: pa.Table, at_once: int, rows_per_group: int, out: Path) -> None:
    """Write shards, their indexes and hashes, as packing does."""
    files = ShardFiles(out)
    kind = table.schema.metadata[schema.NAME_KEY].decode()
    writer = ImageWriter(files, kind, "train", table.schema, rows_per_group, 500_000_000)
    for batch in table.to_batches(max_chunksize=at_once):
        writer.write(pa.Table.from_batches([batch]))
    writer.close()
    files.put_in_place()


def shards_alone(table: pa.Table, at_once: int, rows_per_group: int, out: Path) -> None:
    """Write the same Parquet files and nothing else."""
    out.mkdir()
    with open_writer(out / "ours.parquet", table.schema) as writer:
        for number, group in enumerate(groups(table, at_once, rows_per_group)):
            write_group(writer, group, number * rows_per_group)


def groups(table: pa.Table, at_once: int, rows_per_group: int) -> Iterator[pa.Table]:
    """Yield row groups, put together from batches."""
    held, num_held = [], 0
    for batch in table.to_batches(max_chunksize=at_once):
        held.append(batch)
        num_held += batch.num_rows
        while num_held >= rows_per_group:
            rows = pa.Table.from_batches(held)
            yield rows.slice(0, rows_per_group)
            held, num_held = rows.slice(rows_per_group).to_batches(), num_held - rows_per_group
    if num_held:
        yield pa.Table.from_batches(held)


def plain_pyarrow(table: pa.Table, at_once: int, rows_per_group: int, out: Path) -> None:
    """Write the same columns in the same row groups to one file."""
    out.mkdir()
    others = [field.name for field in table.schema if field.name != "image"]
    compression = {"image.bytes": "none", "image.path": "zstd"} | dict.fromkeys(others, "zstd")
    with pq.ParquetWriter(
        out / "plain.parquet", table.schema, compression=compression, use_dictionary=others, write_statistics=others
    ) as writer:
        for group in groups(table, at_once, rows_per_group):
            writer.write_table(group, row_group_size=rows_per_group)


def hugging_face(table: pa.Table, at_once: int, rows_per_group: int, out: Path) -> None:
    """Write them with `datasets`: generator, its cache, one Parquet file."""
    import datasets

    def rows() -> Iterator[dict[str, object]]:
        for batch in table.to_batches(max_chunksize=at_once):
            yield from batch.to_pylist()

    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_generator(rows, features=_features(table.schema), cache_dir=str(out / "cache"))
    dataset.to_parquet(out / "datasets.parquet")


def _features(columns: pa.Schema) -> object:
    import datasets

    kinds = {"double": "float64"}
    return datasets.Features(
        {
            field.name: datasets.Image()
            if field.name == "image"
            else datasets.Value(kinds.get(str(field.type), str(field.type)))
            for field in columns
        }
    )


def seconds(write: Callable[..., None], folder: Path, *args: object) -> tuple[float, float, float]:
    """Return seconds without and with waiting for the disk, and seconds of all cores."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    started, cpu = time.perf_counter(), time.process_time()
    write(*args, out)
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    for path in out.rglob("*.parquet"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return took, time.perf_counter() - started, cpu


def compare(folder: Path, title: str, table: pa.Table, at_once: int, rows_per_group: int) -> None:
    megabytes = table["image"].nbytes / 1e6
    methods = (shards_alone, shards_with_hashes, plain_pyarrow, hugging_face)
    runs = []
    for number in range(REPEATS):
        # The slowest of them goes on spending disk and cores after it is done, so it goes last, and fewer times.
        some = methods if number < 2 else methods[:-1]
        runs += [(method, *seconds(method, folder, table, at_once, rows_per_group)) for method in some]
    best = {method: [min(run[part] for run in runs if run[0] is method) for part in (1, 2, 3)] for method in methods}
    print(f"{title}: {table.num_rows:,} rows, {megabytes:.0f} MB")
    for method, (took, synced, cpu) in best.items():
        rates = (
            f"{megabytes / took:.0f} MB/s, {megabytes / synced:.0f} with fsync, {megabytes / cpu:.0f} per CPU second"
        )
        print(f"  {method.__name__}: {rates}")
    for mine in methods[:2]:
        against = ", ".join(
            f"{best[peer][0] / best[mine][0]:.2f} times as fast as {peer.__name__} "
            f"({best[peer][1] / best[mine][1]:.2f} with fsync, {best[peer][2] / best[mine][2]:.2f} by CPU seconds)"
            for peer in methods[2:]
        )
        print(f"  {mine.__name__}: {against}")


def resizing(title: str, table: pa.Table, size: Size) -> None:
    """Print how fast images are made smaller."""
    for workers in (1, 2):
        started, cpu = time.perf_counter(), time.process_time()
        smaller = resize_table(table, size, workers)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
        mean = pc.mean(pc.binary_length(pc.struct_field(smaller["image"], "bytes"))).as_py() / 1000
        print(
            f"{title} to {size.name}, {workers} threads: {table.num_rows / took:.0f}/s, "
            f"{table.num_rows / cpu:.0f} per CPU second, {mean:.0f} kB each"
        )


def streamed(out: Path, panorama_size: str) -> tuple[float, float]:
    """Pack rows that are made one batch at a time; returns megabytes of images, and of memory above the start."""
    images = [picture(seed, 2048, 1024, 128, 84) for seed in range(4)]
    references = _references([picture(0, 224, 224, 32, 82)], 400)
    num = 2400 if not panorama_size else 600
    names = [f"pano_{number:06d}" for number in range(num)]

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, num, 64):
            yield from _queries(images, min(num, start + 64), start).to_batches()

    splits = pa.table({"query_id": names, "split": ["train"] * num, "reason": [""] * num})
    pairs, near = schema.PAIRS.empty_table(), distance_map(references, 8)
    recipe = DatasetRecipe(name="streamed", pack=PackRecipe(panorama_size=panorama_size))
    before = _memory_mb("VmRSS")
    shards.pack(
        out,
        recipe,
        references=references.to_batches(),
        queries=batches(),
        pairs=pairs,
        distance_map=near,
        splits=splits,
        failures=schema.FAILURES.empty_table(),
    )
    size = sum(path.stat().st_size for path in (out / "data" / "queries").glob("*.parquet"))
    return size / 1e6, _memory_mb("VmHWM") - before


def _memory_mb(key: str) -> float:
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="write here instead of the system's temporary folder")
    parser.add_argument("--only", choices=("tiles", "panoramas", "resize", "memory"))
    options = parser.parse_args()
    wanted = {options.only} if options.only else {"tiles", "panoramas", "resize", "memory"}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        tiles = _references([picture(seed, 224, 224, 32, 82) for seed in range(DISTINCT)], NUM_TILES)
        panoramas = _queries([picture(seed, 2048, 1024, 128, 84) for seed in range(DISTINCT)], NUM_PANORAMAS)
        if "tiles" in wanted:
            compare(folder, "tiles", tiles, TILES_AT_ONCE, shards.REFERENCES_PER_GROUP)
        if "panoramas" in wanted:
            compare(folder, "panoramas", panoramas, PANORAMAS_AT_ONCE, shards.QUERIES_PER_GROUP)
        if "resize" in wanted:
            resizing("panoramas 2048x1024", panoramas, Size("queries", 768, 384))
            resizing("tiles 224x224", tiles.slice(0, 2000), Size("references", 160, 160))
        if "memory" in wanted:
            for size in ("", "768x384"):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    megabytes, peak = pool.apply(streamed, (folder / f"streamed{size}", size))
                print(f"pack, {megabytes:.0f} MB of panoramas{' and ' * bool(size)}{size}: {peak:.0f} MB above start")


if __name__ == "__main__":
    main()
