"""Training on published layouts as they lie on disk, through the command."""

from __future__ import annotations

import json

import pytest
import torch
from cvgl_cli import train
from published import make
from typer.testing import CliRunner

from cvgl_data.layouts import import_layout

torch.set_num_threads(1)

SMALL = ["optim.epochs=1", "sampler.batch_size=2", "sampler.neighbor_select=1", "loader.workers=0"]


def typed(*words):
    done = CliRunner().invoke(train.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.stdout


@pytest.mark.parametrize(
    ("layout", "size", "options", "references"),
    [
        ("vigor", {"cities": ("NewYork", "Seattle"), "grid": 4}, "?protocol=cross-area&train=NewYork&test=Seattle", 16),
        ("dress", {"cities": ("London", "Rio"), "grid": 3}, "?cities=London,Rio&neighbors=4", 18),
        ("cvcities", {"cities": ("london", "maynila")}, "?train=manila&test=london", 8),
        ("cvglobal", {"train": 8, "test": 8}, "?maps=map", 8),
    ],
)
def test_an_epoch_and_a_test(layout, size, options, references, tmp_path):
    if "grid" in size or "cities" in size:
        size = {**size, "queries": 8}
    make(layout, tmp_path / "data", pixels=32, width=64, **size)
    overrides = [word for item in SMALL for word in ("--set", item)]
    location = f"{layout}:{tmp_path / 'data'}{options}"
    typed("run", "sample4geo-smoke", "--data", location, "--out", tmp_path / "run", *overrides, "-q")
    found = json.loads(typed("evaluate", tmp_path / "run", "--data", location, "--split", "test", "--json", "-q"))
    assert (found["num_references"], found["num_queries"], found["num_uncovered"]) == (references, 8, 0)
    assert 0 <= found["recall_at_1"] <= found["recall_at_10"] <= 1


def test_a_linked_import_trains_like_the_layout(tmp_path):
    make("dress", tmp_path / "data", cities=("London", "Rio"), grid=3, queries=8, pixels=32, width=64)
    location = f"dress:{tmp_path / 'data'}?cities=London,Rio"
    import_layout(location, tmp_path / "linked", link=True, neighbors=4)
    overrides = [word for item in SMALL for word in ("--set", item)]
    typed("run", "sample4geo-smoke", "--data", tmp_path / "linked", "--out", tmp_path / "run", *overrides, "-q")
    assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize(
    ("layout", "options", "views", "counts"),
    [
        ("cvusa", "", ("views.query=panorama", "views.query_height_px=16", "views.query_width_px=64"), (4, 4)),
        (
            "cvact",
            "?protocol=val",
            ("views.query=panorama", "views.query_height_px=32", "views.query_width_px=64"),
            (4, 4),
        ),
        ("kitti", "", ("views.query=pinhole", "views.query_height_px=16", "views.query_width_px=64"), (3, 3)),
    ],
)
def test_an_epoch_on_centred_layouts(layout, options, views, counts, tmp_path):
    """Cut panoramas, the ones of CVACT, and pictures of a car's camera before references that are cut when read."""
    make(layout, tmp_path / "data")
    overrides = [word for item in (*SMALL, *views) for word in ("--set", item)]
    location = f"{layout}:{tmp_path / 'data'}{options}"
    typed("run", "sample4geo-smoke", "--data", location, "--out", tmp_path / "run", *overrides, "-q")
    found = json.loads(typed("evaluate", tmp_path / "run", "--data", location, "--split", "test", "--json", "-q"))
    assert (found["num_references"], found["num_queries"]) == counts
    assert found["num_uncovered"] == 0


def test_the_top_view_of_a_cut_panorama_trains(tmp_path):
    """Angles of CVUSA's panoramas come from the dataset; nothing in the recipe says them."""
    make("cvusa", tmp_path / "data")
    views = ("views.query=bev", "views.query_height_px=32", "views.bev_m=40.0")
    overrides = [word for item in (*SMALL, *views) for word in ("--set", item)]
    typed(
        "run", "sample4geo-smoke", "--data", f"cvusa:{tmp_path / 'data'}", "--out", tmp_path / "run", *overrides, "-q"
    )
    assert (tmp_path / "run" / "best.safetensors").is_file()
