"""Quality checks on one core: tiles of 256 px, panoramas of 2048 x 1024, and the search for near-duplicates.

Run: taskset -c 0 python benchmarks/quality.py
Images are those of the simulated world; each is checked several times, under different ids and positions.
Peer: what the checks would cost if images were decoded in full with Pillow, as dataset scripts do, before any measure.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import time

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from cvgl_data import schema
from cvgl_data.fetch.rows import QUERY_ROWS, REFERENCE_ROWS
from cvgl_data.quality import assess
from cvgl_data.quality.repeats import repeated_anywhere, repeated_nearby
from cvgl_data.recipe import QualityRecipe
from cvgl_data.sources.simulated import SimulatedImagery, SimulatedPanoramas, pano_id_at
from cvgl_data.types import BBox, Tile

DISTINCT_TILES, DISTINCT_PANORAMAS = 250, 16
NUM_TILES, NUM_PANORAMAS = 2_000, 320
NUM_POINTS = 200_000
BATCH = 64


def render() -> tuple[list[bytes], list[bytes]]:
    """Return tiles and panoramas of the simulated Seattle."""
    imagery, panoramas = SimulatedImagery(workers=1), SimulatedPanoramas(workers=1)
    stations = list(panoramas._world.stations(BBox(-122.325, 47.61, -122.320, 47.615), 50.0))[:DISTINCT_PANORAMAS]

    async def fetch() -> tuple[list[bytes], list[bytes]]:
        tiles = [
            await imagery.fetch(Tile(41_984 + index % 25, 91_550 + index // 25, 18)) for index in range(DISTINCT_TILES)
        ]
        seen = [await panoramas.fetch(pano_id_at(lon, lat)) for lon, lat in stations]
        return [tile.image for tile in tiles], [panorama.image for panorama in seen]

    try:
        return asyncio.run(fetch())
    finally:
        imagery.close()
        panoramas.close()


def batches(kind: pa.Schema, images: list[bytes], num: int):
    """Yield store batches of images in turn, 12 m apart."""
    for start in range(0, num, BATCH):
        rows = []
        for index in range(start, min(start + BATCH, num)):
            image = images[index % len(images)]
            row = {kind.names[0]: f"{index:07d}", "image": image, "lon": -122.3 + index * 1.6e-4, "lat": 47.6}
            row |= {
                "sha256": hashlib.sha256(image + b"%d" % index).hexdigest(),
                "status": "ok",
                "captured": "2023-06-15",
            }
            if "zoom" in kind.names:
                row |= {"x": 256 * index, "y": 0, "size": 256, "zoom": 18}
            rows.append(row)
        yield pa.RecordBatch.from_pylist(rows, schema=kind)


def with_pillow(images: list[bytes], num: int) -> None:
    """Decode in full and take the variance of the Laplacian, nothing else."""
    for index in range(num):
        with Image.open(io.BytesIO(images[index % len(images)])) as opened:
            cv2.Laplacian(np.asarray(opened.convert("L")), cv2.CV_64F).var()


def seconds(function, *args, **kwargs) -> float:
    started = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - started


def main() -> None:
    cv2.setNumThreads(1)
    tiles, panoramas = render()
    recipe = QualityRecipe()
    for name, images, num, kind in (
        ("tiles", tiles, NUM_TILES, REFERENCE_ROWS),
        ("panoramas", panoramas, NUM_PANORAMAS, QUERY_ROWS),
    ):
        prepared = list(batches(kind, images, num))
        none = {"references": iter(()), "queries": iter(())}
        table = "references" if kind.metadata[schema.NAME_KEY] == b"references" else "queries"
        took = seconds(assess, **none | {table: iter(prepared)}, recipe=recipe)
        peer = seconds(with_pillow, images, num)
        print(f"{num:,} {name}: all checks {num / took:,.0f}/s; Pillow and one Laplacian {num / peer:,.0f}/s")

    rng = np.random.default_rng(0)
    side_deg = 0.2  # 200,000 panoramas on 20 km x 15 km
    lon, lat = -122.4 + rng.uniform(0, side_deg, NUM_POINTS), 47.5 + rng.uniform(0, side_deg * 0.7, NUM_POINTS)
    hashes = rng.integers(0, 2**64, NUM_POINTS, np.uint64)
    everyone = np.ones(NUM_POINTS, bool)
    took = seconds(repeated_nearby, lon, lat, hashes, everyone, recipe.duplicate_within_m, recipe.query_duplicate_bits)
    print(f"{NUM_POINTS:,} queries, near-duplicates within {recipe.duplicate_within_m:g} m: {took:.2f} s")
    took = seconds(repeated_anywhere, hashes, everyone, recipe.reference_duplicate_bits)
    print(f"{NUM_POINTS:,} references, near-duplicates anywhere: {took:.2f} s")


if __name__ == "__main__":
    main()
