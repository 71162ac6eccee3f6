import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from toy_dataset import encode, render_panorama, toy_dataset

from cvgl_data.errors import DatasetError, SchemaError
from cvgl_models.batches import (
    PairRows,
    PairViews,
    Views,
    data_loader,
    decode,
    fits_in_memory,
    in_memory,
    view_of,
)
from cvgl_models.geometry import bev_from_panorama
from cvgl_models.loading import decoding
from cvgl_models.recipe import LoaderRecipe, ViewRecipe
from cvgl_models.transforms import flip, quarter_turn

PANORAMA = ViewRecipe(query_height_px=32, query_width_px=64, reference_px=32)
BEV = ViewRecipe(query="bev", query_height_px=16, bev_m=40.0, reference_px=32)
HERE = LoaderRecipe(workers=0)


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=3, test_grid=1)


def smooth_image(height, width):
    v, u = np.mgrid[:height, :width]
    return np.stack([u / width, v / height, (u + v) / (width + height)], -1) * 255


@pytest.mark.parametrize("has_simplejpeg", [True, False])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decode(monkeypatch, has_simplejpeg, kind):
    if not has_simplejpeg:
        monkeypatch.setattr(decoding, "simplejpeg", None)
    image = encode(smooth_image(128, 256), kind)
    assert decode(image).shape == (128, 256, 3)
    small = decode(image, 32, 64)
    assert small.shape == ((32, 64, 3) if kind == "JPEG" else (128, 256, 3))
    np.testing.assert_allclose(small, smooth_image(*small.shape[:2]), atol=6)


def test_a_panorama_is_scaled_by_three_eighths():
    assert decode(encode(smooth_image(1024, 2048), "JPEG"), 384, 768).shape == (384, 768, 3)


@pytest.mark.parametrize("image", [b"", b"\xff\xd8 nonsense", b"not an image"])
def test_broken_images(image):
    with pytest.raises(ValueError):  # noqa: PT011 - the decoder's own words
        decode(image)


def test_view_of_a_reference():
    view = view_of(encode(smooth_image(64, 64)), "reference", ViewRecipe(reference_px=32))
    assert view.shape == (3, 32, 32)
    assert view.dtype == torch.uint8
    np.testing.assert_allclose(
        view.permute(1, 2, 0), smooth_image(64, 64).reshape(32, 2, 32, 2, 3).mean((1, 3)), atol=4
    )


@pytest.mark.parametrize("heading_deg", [0.0, 90.0, -135.0, 212.5])
@pytest.mark.parametrize("views", [PANORAMA, BEV])
def test_queries_are_rolled_to_north(heading_deg, views):
    place = (2**25 + 100.0, 2**25 + 60.0)
    north = view_of(encode(render_panorama(*place, 128)), "query", views)
    turned = view_of(encode(render_panorama(*place, 128, heading_deg)), "query", views, heading_deg)
    assert turned.shape == (3, *views.query_size_px)
    assert (turned.float() - north.float()).abs().mean() < 2.0
    assert (
        view_of(encode(render_panorama(*place, 128, 90.0)), "query", views).float() - north.float()
    ).abs().mean() > 10


def test_bev_view_is_the_top_view():
    image = encode(render_panorama(2**25 + 50.0, 2**25 + 50.0, 128))
    pano = torch.from_numpy(decode(image).copy()).permute(2, 0, 1)[None].float()
    expected = bev_from_panorama(pano, 16, 40 / 16, 2.5, oversample=4)[0]
    torch.testing.assert_close(view_of(image, "query", BEV).float(), expected, atol=0.51, rtol=0)


def test_bev_of_what_is_no_panorama():
    with pytest.raises(ValueError, match="twice as wide"):
        view_of(encode(smooth_image(64, 64)), "query", BEV)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_memory_is_in_row_order(toy, workers):
    views = Views(toy, "query", PANORAMA)
    told = []
    cache = in_memory(views, LoaderRecipe(workers=workers), told.append)
    assert sum(told) == len(views) == toy.queries.num_rows
    for row in (0, 7, len(views) - 1):
        assert torch.equal(cache[row], views[row])
    some = in_memory(Views(toy, "query", PANORAMA, np.array([4, 2])), HERE)
    assert torch.equal(some, cache[[4, 2]])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_image_names_its_row(toy, workers):
    name = toy.queries["query_id"][5].as_py()
    broken = dataclasses.replace(toy, images={**toy.images, name: b"\xff\xd8 broken"})
    with pytest.raises(DatasetError, match=rf"^image of query '{name}' \(row 5\) cannot be decoded"):
        in_memory(Views(broken, "query", PANORAMA), LoaderRecipe(workers=workers))


def test_fits_in_memory(toy):
    sides = [Views(toy, "query", PANORAMA), Views(toy, "reference", PANORAMA)]
    num_bytes = 30 * 3 * 32 * 64 + 10 * 3 * 32 * 32
    assert sum(len(side) * int(np.prod(side.shape)) for side in sides) == num_bytes
    assert fits_in_memory(sides, LoaderRecipe(memory_mb=1))
    assert not fits_in_memory(sides, LoaderRecipe(memory_mb=0))


def test_pairs(toy):
    train = toy.select("train")
    pairs = PairRows.of(train)
    assert len(pairs) == train.queries.num_rows
    assert np.array_equal(pairs.reference_row, train.positives()[pairs.query_row])
    assert bool(((pairs.uv > 0.1) & (pairs.uv < 0.9)).all())
    chosen = np.array([3, 0])
    images = {"query": torch.zeros(2, 3, 32, 64), "reference": torch.zeros(2, 3, 32, 32)}
    batch = pairs.batch(chosen, images, ignore_semi_positives=False)
    assert batch.ignore is None
    window = train.references.slice(int(batch.reference_row[0]), 1).to_pylist()[0]
    assert float(batch.gsd_m[0]) == pytest.approx(window["gsd_m"] * window["size"] / 32, rel=1e-6)
    np.testing.assert_allclose(batch.uv, pairs.uv[chosen] * 32)
    assert batch.query_row.tolist() == pairs.query_row[chosen].tolist()


def test_the_middle_of_a_reference():
    """A crop shows the same pixels as cropping by hand, and places in it move accordingly."""
    image = encode(smooth_image(64, 64))
    views = ViewRecipe(reference_px=32, reference_crop=0.5)
    by_hand = decode(image)[16:48, 16:48]
    assert np.array_equal(view_of(image, "reference", views).permute(1, 2, 0).numpy(), by_hand)
    assert view_of(image, "reference", ViewRecipe(reference_px=64)).shape == (3, 64, 64)


def test_places_in_the_middle_of_a_reference(toy):
    train = toy.select("train")
    whole, half = PairRows.of(train), PairRows.of(train, ViewRecipe(reference_crop=0.5))
    np.testing.assert_allclose(half.uv - 0.5, 2 * (whole.uv - 0.5), atol=1e-6)
    np.testing.assert_allclose(half.side_m, whole.side_m / 2)


def test_pinhole_pictures_keep_their_bearing_and_their_camera(toy):
    """A picture at half its size has half the focal length; what is known of the bearing turns with it."""
    train = toy.select("train")
    count = train.queries.num_rows
    values = {"fx": 80.0, "fy": 90.0, "cx": 50.0, "cy": 30.0}
    columns = {f"camera_{name}_px": value for name, value in values.items()}
    columns |= {"image_width_px": 128.0, "image_height_px": 64.0, "camera_height_m": 1.6}
    queries = train.queries
    for name, value in columns.items():
        queries = queries.append_column(name, pa.array([value] * count))
    index = queries.schema.get_field_index("heading_deg")
    queries = queries.set_column(index, "heading_deg", pa.array(np.arange(count, dtype=np.float64)))
    pictures = dataclasses.replace(train, queries=queries)
    views = ViewRecipe(query="pinhole", query_height_px=32, query_width_px=64, reference_px=32)
    images = {"query": torch.zeros(2, 3, 32, 64), "reference": torch.zeros(2, 3, 32, 32)}
    batch = PairRows.of(pictures, views).batch(np.array([3, 1]), images, ignore_semi_positives=False)
    assert batch.heading_deg.tolist() == batch.query_row.tolist()
    assert batch.heading_prior_deg.tolist() == [[row, 0.0] for row in batch.query_row.tolist()]
    assert batch.camera_B33[0].tolist() == [[40.0, 0.0, 25.0], [0.0, 45.0, 15.0], [0.0, 0.0, 1.0]]
    turned = quarter_turn(batch, torch.tensor([1, 0]), "pinhole")
    assert turned.heading_deg.tolist() == [batch.query_row[0] - 90.0, float(batch.query_row[1])]
    assert torch.equal(turned.heading_prior_deg[:, 0], turned.heading_deg)
    flipped = flip(batch, torch.tensor([True, False]))
    assert flipped.camera_B33[:, 0, 2].tolist() == [39.0, 25.0]
    assert flipped.heading_prior_deg[0].tolist() == [-batch.query_row[0].item(), 0.0]
    with pytest.raises(SchemaError, match="camera_fx_px"):
        PairRows.of(train, views)


def test_the_top_view_of_a_partial_panorama(toy):
    """The lower part of a panorama, with its angles given, has the top view of the whole one where it reaches."""
    name = toy.queries["query_id"][0].as_py()
    whole = decode(toy.images[name])
    height = len(whole)
    part = encode(whole[height // 4 :])  # from 45 degrees above the horizon down
    queries = toy.queries
    for column, angle in (("zenith_top_deg", 45.0), ("zenith_bottom_deg", 180.0)):
        queries = queries.append_column(column, pa.array([angle] * queries.num_rows))
    partial = dataclasses.replace(toy, queries=queries, images={**toy.images, name: part})
    shown = [Views(dataset, "query", BEV)[0].float() for dataset in (toy, partial)]
    assert (shown[0] - shown[1]).abs().mean() < 3  # but for being encoded once more
    with pytest.raises(DatasetError, match="twice as wide as high"):
        Views(dataclasses.replace(toy, images={**toy.images, name: part}), "query", BEV)[0]


def test_semi_positives_are_marked():
    pairs = PairRows(
        query_row=np.array([0, 1, 2]),
        reference_row=np.array([4, 5, 6]),
        uv=np.zeros((3, 2), np.float32),
        side_m=np.full(3, 100.0, np.float32),
        heading_deg=np.zeros(3, np.float32),
        covering=(np.array([0, 2, 3, 6]), np.array([4, 6, 5, 6, 4, 9])),
    )
    images = {"query": torch.zeros(3), "reference": torch.zeros(3, 3, 8, 8)}
    batch = pairs.batch(np.arange(3), images, ignore_semi_positives=True)
    assert batch.ignore.tolist() == [[False, False, True], [False, False, False], [True, False, False]]


def test_nothing_to_train_on(toy):
    alone = dataclasses.replace(toy, pairs=toy.pairs.slice(0, 0))
    with pytest.raises(DatasetError, match="nothing to train on"):
        PairRows.of(alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_pair_batches_come_in_the_order_asked_for(toy, workers):
    pairs = PairRows.of(toy)
    query, reference = Views(toy, "query", PANORAMA), Views(toy, "reference", PANORAMA)
    wanted = [[4, 1], [0, 9], [7, 3]]
    loaded = list(data_loader(PairViews(pairs, query, reference), wanted, LoaderRecipe(workers=workers)))
    for chosen, (query_B3HW, reference_B3SS) in zip(wanted, loaded, strict=True):
        assert torch.equal(query_B3HW[1], query[pairs.query_row[chosen[1]]])
        assert torch.equal(reference_B3SS[0], reference[pairs.reference_row[chosen[0]]])
