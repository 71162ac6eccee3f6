"""A dataset in memory: a flat, randomly colored ground near (0, 0), seen from above and from panoramas."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.geo import distance_m, lonlat_from_pixel
from cvgl_data.schema import DISTANCE_MAP, PAIRS, QUERIES, REFERENCES, without_image
from cvgl_data.types import Window

GSD_M = 0.5971642834779395
SIDE, ZOOM = 256, 18
CORNER = 2**25  # global pixel of (0, 0) at zoom 18
CAMERA_M = 2.5


def ground(east_m, north_m, seed=0):
    """Return the color of the ground, (..., 3) in [0, 255]: bilinear noise with cells of 8 m."""
    cells = np.random.default_rng(seed).integers(0, 256, (256, 256, 3)).astype(float)
    x, y = east_m / 8.0, north_m / 8.0
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    row = [cells[(y0 + dy) % 256, x0 % 256] * (1 - fx) + cells[(y0 + dy) % 256, (x0 + 1) % 256] * fx for dy in (0, 1)]
    return row[0] * (1 - fy) + row[1] * fy


def encode(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8)).save(stream, kind)
    return stream.getvalue()


def render_tile(window, size=32):
    center = (np.arange(size) + 0.5) / size * window.size
    x, y = np.meshgrid(window.x + center - CORNER, window.y + center - CORNER)
    return ground(x * GSD_M, -y * GSD_M)


def render_panorama(x_px, y_px, height=64, heading_deg=0.0):
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(2 * height) + 0.5, indexing="ij")
    azimuth = (columns / (2 * height) - 0.5) * 2 * np.pi + np.radians(heading_deg)
    down = np.maximum((rows / height - 0.5) * np.pi, 1e-3)
    away = np.minimum(CAMERA_M / np.tan(down), 1000.0)
    east, north = (x_px - CORNER) * GSD_M + away * np.sin(azimuth), -(y_px - CORNER) * GSD_M + away * np.cos(azimuth)
    sky = np.array([120.0, 170.0, 230.0])
    return np.where((rows < height / 2)[..., None], sky, ground(east, north))


def toy_dataset(grid=6, per_tile=3, seed=0, test_grid=4, heading_deg=0.0, pano_height=64):
    """Return ``grid**2`` training and ``test_grid**2`` test references with queries; one training row validates."""
    rng = np.random.default_rng(seed)
    windows = [
        ("a", Window(CORNER + c * SIDE, CORNER + r * SIDE, SIDE, ZOOM)) for r in range(grid) for c in range(grid)
    ]
    far = CORNER - (test_grid + 4) * SIDE
    windows += [
        ("b", Window(far + c * SIDE, far + r * SIDE, SIDE, ZOOM)) for r in range(test_grid) for c in range(test_grid)
    ]
    windows.sort(key=lambda item: item[1].key)
    images, references, queries, pairs = {}, [], [], []
    for row, (area, window) in enumerate(windows):
        images[window.key] = encode(render_tile(window))
        lon, lat = window.center
        references.append(
            {
                "reference_id": window.key,
                "x": window.x,
                "y": window.y,
                "size": SIDE,
                "zoom": ZOOM,
                "lon": lon,
                "lat": lat,
            }
            | {"gsd_m": window.gsd_m, "area": area, "source": "toy", "release": "", "captured": "", "licence": "CC0"}
            | {"sha256": window.key, "status": "ok"}
        )
        for number in range(per_tile):
            u, v = rng.uniform(0.15 * SIDE, 0.85 * SIDE, 2)
            x, y = window.x + u, window.y + v
            name = f"q{row:03d}_{number}"
            images[name] = encode(render_panorama(x, y, pano_height, heading_deg))
            lon, lat = (float(value) for value in lonlat_from_pixel(x, y, ZOOM))
            split = "test" if area == "b" else "validation" if number == per_tile - 1 and row % 3 == 0 else "train"
            queries.append(
                {
                    "query_id": name,
                    "lon": lon,
                    "lat": lat,
                    "heading_deg": heading_deg,
                    "pitch_deg": 0.0,
                    "roll_deg": 0.0,
                }
                | {"upright": True, "captured": "", "area": area, "source": "toy", "licence": "CC0", "creator": ""}
                | {"sha256": name, "status": "ok", "split": split}
            )
            du, dv = u - SIDE / 2, v - SIDE / 2
            pairs.append(
                {"query_id": name, "reference_id": window.key, "query_row": len(queries) - 1, "reference_row": row}
                | {"relation": "positive", "u": u, "v": v, "offset_east_m": du * GSD_M, "offset_north_m": -dv * GSD_M}
                | {"distance_m": float(np.hypot(du, dv) * GSD_M), "decentrality": float(max(abs(du), abs(dv)) / 128)}
                | {"decentrality_l2": float(np.hypot(du, dv) / 181.02), "iou": 0.5, "covers": True}
            )
    references = pa.Table.from_pylist(references, without_image(REFERENCES))
    lon, lat = references["lon"].to_numpy(), references["lat"].to_numpy()
    away = distance_m(lon[:, None], lat[:, None], lon, lat)
    np.fill_diagonal(away, np.inf)
    near = np.argsort(away, axis=1, kind="stable")[:, :8]
    return CrossViewDataset(
        references=references,
        queries=pa.Table.from_pylist(queries, without_image(QUERIES).append(pa.field("split", pa.string()))),
        pairs=pa.Table.from_pylist(pairs, PAIRS),
        distance_map=pa.table(
            [references["reference_id"], near.tolist(), np.take_along_axis(away, near, 1).tolist()], DISTANCE_MAP
        ),
        images=images,
    )
