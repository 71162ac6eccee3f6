"""Geometry and decoding against the simulated world, whose ground parts of panoramas equal its tiles."""

import contextlib
import datetime
import itertools

import localizers
import numpy as np
import pyarrow as pa
import pytest
import torch
from toy_dataset import encode

from cvgl_data.dataset import CrossViewDataset
from cvgl_data.geo import pixel_from_lonlat
from cvgl_data.pairing import pair
from cvgl_data.recipe import resolve
from cvgl_data.schema import DISTANCE_MAP, QUERIES, REFERENCES, without_image
from cvgl_data.simulation import World, render_panorama, render_tile
from cvgl_data.types import Window
from cvgl_models.localization.conditions import PoseConditions
from cvgl_models.localization.metrics import localization_report
from cvgl_models.localization.predicting import Collected, Show, in_order, localize, only_pairs, truth_and_poses
from cvgl_models.recipe import ModelRecipe

JUNE = datetime.date(2023, 6, 15)
WINDOWS = [Window(10_750_720 + 256 * i, 23_433_472, 256, 18) for i in range(3)]
RECIPE = resolve(
    ModelRecipe,
    {
        "name": "world",
        "system": "ncc",
        "views": {"query_height_px": 128, "query_width_px": 256, "reference_px": 64},
        "options": {"num_yaws": 36},
        "loader": {"workers": 0},
    },
)


@pytest.fixture(scope="module")
def world():
    """Return three tiles of the world and some panoramas in each, taken by cameras that look along their street."""
    simulated, images, references, queries = World(0), {}, [], []
    for window in WINDOWS:
        lon, lat = window.center
        images[window.key] = encode(render_tile(simulated, window.bounds, 128, date=JUNE))
        references.append(
            {"reference_id": window.key, "x": window.x, "y": window.y, "size": window.size, "zoom": window.zoom}
            | {"lon": lon, "lat": lat, "gsd_m": window.gsd_m, "area": "a", "source": "simulated", "release": ""}
            | {"captured": "", "licence": "CC0", "sha256": window.key, "status": "ok"}
        )
        for number, (lon, lat) in enumerate(itertools.islice(simulated.stations(window.bounds, 20.0), 0, 12, 3)):
            name, heading = f"{window.key}-{number}", 37.0 * number
            images[name] = encode(render_panorama(simulated, lon, lat, heading_deg=heading, date=JUNE, width=512))
            queries.append(
                {"query_id": name, "lon": lon, "lat": lat, "heading_deg": heading, "pitch_deg": 0.0, "roll_deg": 0.0}
                | {"upright": True, "captured": "", "area": "a", "source": "simulated", "licence": "CC0", "creator": ""}
                | {"sha256": name, "status": "ok", "split": "test"}
            )
    references = pa.Table.from_pylist(references, without_image(REFERENCES))
    queries = pa.Table.from_pylist(queries, without_image(QUERIES).append(pa.field("split", pa.string())))
    empty = DISTANCE_MAP.empty_table()
    return CrossViewDataset(references, queries, pair(queries, references), empty, images)


def report_of(world, conditions):
    pairs, collected = only_pairs(world, conditions.pairs), Collected()
    system = localizers.NccLocalizer(RECIPE).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Show(pairs, RECIPE, conditions) as show:
            for one in show.batches(in_order(len(show), 8)):
                collected.add(one, localize(system, one.batch, torch.device("cpu"), contextlib.nullcontext))
    finally:
        torch.set_num_threads(threads)
    truth, poses = truth_and_poses(pairs, collected.arrays())
    return truth, poses, localization_report(truth, poses, noise_deg=conditions.heading_noise_deg)


def test_true_places_are_those_of_the_queries(world):
    truth, _, _ = report_of(world, PoseConditions())
    queries, pairs = world.queries, only_pairs(world).pairs.to_pylist()
    assert len(pairs) >= 8
    for row, place in zip(pairs, truth.xy_m, strict=True):
        window = next(each for each in WINDOWS if each.key == row["reference_id"])
        index = queries["query_id"].to_pylist().index(row["query_id"])
        x, y = pixel_from_lonlat(queries["lon"][index].as_py(), queries["lat"][index].as_py(), 18)
        expected = np.array([float(x) - window.x - 128, float(y) - window.y - 128]) * window.gsd_m
        assert place == pytest.approx(expected, abs=1e-3)


def test_places_are_found_without_bias(world):
    truth, poses, report = report_of(world, PoseConditions())
    error = poses.xy_m - truth.xy_m
    near = np.hypot(*error.T) < 3
    assert report.center.median_error_m > 20
    assert report.whole.median_error_m < 1.0  # of 1.6 m per pixel
    assert near.mean() > 0.6
    assert np.abs(np.median(error[near], axis=0)).max() < 0.35


def test_places_and_headings_are_found(world):
    truth, poses, report = report_of(world, PoseConditions(heading_noise_deg=60.0))
    near = np.hypot(*(poses.xy_m - truth.xy_m).T) < 3
    turned = np.abs((poses.yaw_deg - truth.yaw_deg + 180) % 360 - 180)
    assert np.abs(truth.yaw_deg).max() > 30
    assert near.mean() > 0.5
    assert np.median(turned[near]) < 5.5  # every 10 degrees one is tried
    assert report.chance.mean_yaw_error_deg > 30


def test_a_tile_turned_about_is_not_recognized(world):
    """Otherwise the places above could come from anything but the picture."""
    turned = {
        name: image if "-" in name else encode(np.rot90(_decoded(image), 2)) for name, image in world.images.items()
    }
    other = CrossViewDataset(world.references, world.queries, world.pairs, world.distance_map, turned)
    assert report_of(other, PoseConditions())[2].whole.median_error_m > 10


def _decoded(image):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(image)))
