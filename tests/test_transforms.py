import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended import CUDA, pretended_device
from torch._subclasses.fake_tensor import unset_fake_temporarily

from cvgl_data.errors import RecipeError
from cvgl_models.recipe import AugmentRecipe, load_recipe
from cvgl_models.transforms import (
    Augment,
    Batch,
    blur_or_sharpen,
    cut_out,
    flip,
    jitter_color,
    quarter_turn,
    warp,
    warp_uv,
)


def one_hot_batch(u, v, side=384, width=768):
    reference = torch.zeros(1, 3, side, side)
    reference[0, :, v, u] = 1
    return Batch(
        query=torch.arange(float(width)).expand(1, 3, width // 2, width),
        reference=reference,
        uv=torch.tensor([[u + 0.5, v + 0.5]]),
        heading_deg=torch.zeros(1),
    )


def hot_pixel(images):
    v, u = np.unravel_index(int(images[0, 0].argmax()), images.shape[-2:])
    return int(u), int(v)


@pytest.mark.parametrize(("turns", "expected"), [(0, (100, 37)), (1, (37, 283)), (2, (283, 346)), (3, (346, 100))])
def test_quarter_turn_of_a_pixel(turns, expected):
    turned = quarter_turn(one_hot_batch(100, 37), torch.tensor([turns]), "panorama")
    assert hot_pixel(turned.reference) == expected
    assert turned.uv[0].tolist() == [expected[0] + 0.5, expected[1] + 0.5]


def test_flip_of_a_pixel():
    batch = dataclasses.replace(one_hot_batch(100, 37), heading_deg=torch.tensor([30.0]))
    flipped = flip(batch, torch.tensor([True]))
    assert hot_pixel(flipped.reference) == (283, 37)
    assert flipped.uv[0].tolist() == [283.5, 37.5]
    assert flipped.heading_deg.tolist() == [-30.0]


def test_panorama_rolls_left_so_that_east_is_in_the_middle():
    # Column values are their index: north is column 384, east a quarter of the width to the right of it.
    turned = quarter_turn(one_hot_batch(0, 0), torch.tensor([1]), "panorama")
    assert turned.query[0, 0, 0, 384] == 384 + 192
    assert turned.query[0, 0, 0, 0] == 192


@settings(deadline=None)
@given(
    u=st.integers(0, 31),
    v=st.integers(0, 31),
    turns=st.lists(st.integers(-4, 7), min_size=1, max_size=3),
    flips=st.booleans(),
    view=st.sampled_from(["panorama", "bev"]),
)
def test_labels_commute(u, v, turns, flips, view):
    batch = one_hot_batch(u, v, 32, 64)
    if view == "bev":
        batch = dataclasses.replace(batch, query=batch.reference)
    for turn in turns:
        batch = quarter_turn(batch, torch.tensor([turn]), view)
        batch = flip(batch, torch.tensor([flips]))
    assert hot_pixel(batch.reference) == tuple(int(value) for value in batch.uv[0].floor())
    assert view == "panorama" or torch.equal(batch.query, batch.reference)


@settings(deadline=None)
@given(u=st.floats(-0.49, 0.49), v=st.floats(-0.49, 0.49), turn=st.integers(0, 3), mirror=st.booleans())
def test_panorama_and_reference_stay_true_to_each_other(u, v, turn, mirror):
    """What is seen in a column lies, in the reference, in the direction the column stands for."""
    side, width = 32, 720
    azimuth = np.degrees(np.arctan2(u, -v))  # of a landmark seen from the centre of the reference
    column = int((azimuth / 360 + 0.5) * width) % width
    query = torch.zeros(1, 3, 4, width)
    query[..., column] = 1
    landmark = torch.tensor([[side / 2 + u * side, side / 2 + v * side]])
    batch = Batch(query=query, reference=torch.zeros(1, 3, side, side), uv=landmark, heading_deg=torch.zeros(1))
    batch = flip(quarter_turn(batch, torch.tensor([turn]), "panorama"), torch.tensor([mirror]))
    du, dv = (batch.uv[0] - side / 2).tolist()
    seen = (float(batch.query[0, 0, 0].argmax()) + 0.5) / width * 360 - 180
    assert abs((seen - np.degrees(np.arctan2(du, -dv)) + 180) % 360 - 180) <= 0.51 or abs(u) + abs(v) < 1e-3


@settings(deadline=None)
@given(angle=st.floats(-180, 180), zoom=st.floats(0.7, 1.4), shift=st.tuples(st.floats(-5, 5), st.floats(-5, 5)))
def test_warp_takes_points_where_it_says(angle, zoom, shift):
    side, place = 65, torch.tensor([[38.5, 30.5]])
    v, u = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    blob = torch.exp(-((u - place[0, 0]) ** 2 + (v - place[0, 1]) ** 2) / 8).expand(1, 3, -1, -1)
    arguments = torch.tensor([angle]), torch.tensor([zoom]), torch.tensor([shift])
    expected = warp_uv(place, side, *arguments)[0]
    nearby = (u - expected[0]).hypot(v - expected[1]) < 9  # mirror images come into view further away
    moved = warp(blob, *arguments)[0, 0] * nearby
    found = torch.tensor([(moved * u).sum(), (moved * v).sum()]) / moved.sum()
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_warp_by_a_quarter_is_a_quarter_turn():
    images, still = torch.rand(2, 3, 16, 16), torch.zeros(2, 2)
    torch.testing.assert_close(
        warp(images, torch.full((2,), 90.0), torch.ones(2), still), torch.rot90(images, 1, (2, 3))
    )
    torch.testing.assert_close(
        warp_uv(torch.tensor([[3.0, 5.0]]), 16, torch.tensor([90.0]), torch.ones(1), still[:1])[0],
        torch.tensor([5.0, 13.0]),
    )


def test_no_change_of_color_is_no_change():
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(jitter_color(images, torch.zeros(2, 4)), images, atol=2e-4, rtol=0)
    torch.testing.assert_close(blur_or_sharpen(images, torch.zeros(2)), images)
    assert torch.equal(cut_out(images, torch.zeros(2, 3, 4)), images)


def test_color_changes_mean_what_they_say():
    images = 0.25 + 0.5 * torch.rand(1, 3, 8, 8)
    brighter = jitter_color(images, torch.tensor([[0.2, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(brighter, images * 1.2, atol=5e-4, rtol=0)
    gray = jitter_color(images, torch.tensor([[0.0, 0.0, -1.0, 0.0]]))
    torch.testing.assert_close(gray[:, 0], gray[:, 2], atol=5e-4, rtol=0)
    flat = jitter_color(images, torch.tensor([[0.0, -1.0, 0.0, 0.0]]))
    assert flat.std() < 1e-6
    whole_turn = jitter_color(images, torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    torch.testing.assert_close(whole_turn, images, atol=5e-4, rtol=0)


def test_cut_out_fills_the_box():
    images = torch.rand(1, 3, 20, 40)
    cut = cut_out(images, torch.tensor([[[1.0, 0.5, 0.2, 0.1]]]))  # u 18..22, v 9..11
    hole = cut[0, 0, 9:11, 18:22]
    assert torch.equal(hole, hole[0, 0].expand_as(hole))
    assert int((cut != images).any(1).sum()) == 8


@pytest.mark.parametrize("view", ["panorama", "bev"])
def test_augment_is_decided_by_the_generator(view):
    recipe = AugmentRecipe(turn_deg=20 if view == "bev" else 0, zoom=0.1, shift=0.1)
    width = 32 if view == "bev" else 64
    batch = Batch(
        query=torch.rand(6, 3, 32, width),
        reference=torch.rand(6, 3, 32, 32),
        uv=torch.rand(6, 2) * 32,
        heading_deg=torch.zeros(6),
    )
    augment = Augment(recipe, view)
    one, two, other = (augment(batch, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.query, two.query)
    assert torch.equal(one.reference, two.reference)
    assert not torch.equal(one.query, other.query)
    assert one.query.shape == batch.query.shape
    assert 0 <= float(one.query.min()) <= float(one.query.max()) <= 1


def test_nothing_to_augment_changes_nothing():
    recipe = AugmentRecipe(flip=0, rotate=0, color=0, blur=0, cut=0)
    batch = one_hot_batch(3, 4, 32, 64)
    same = Augment(recipe, "panorama")(batch, torch.Generator().manual_seed(0))
    assert torch.equal(same.query.clamp(0, 1), batch.query.clamp(0, 1))
    assert torch.equal(same.uv, batch.uv)


def test_a_panorama_that_cannot_be_rolled_by_a_quarter():
    with pytest.raises(ValueError, match="multiple of 4"):
        quarter_turn(one_hot_batch(0, 0, 32, 66), torch.tensor([1]), "panorama")


def test_colors_can_change_together():
    images = torch.rand(5, 3, 16, 16)
    batch = Batch(query=images, reference=images, uv=torch.zeros(5, 2), heading_deg=torch.zeros(5))
    recipe = AugmentRecipe(flip=0, rotate=0, color=0, blur=0, cut=0, color_together=1.0)
    together = Augment(recipe, "bev")(batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(together.query, together.reference)
    assert (together.query - images).abs().mean() > 0.01
    alone = Augment(AugmentRecipe(flip=0, rotate=0, color=1.0, blur=0, cut=0), "bev")(
        batch, torch.Generator().manual_seed(0)
    )
    assert (alone.query - alone.reference).abs().mean() > 0.01


def headed_batch(size, view):
    """Return pairs whose headings are known, of panoramas to north, of cameras to anywhere."""
    heading = torch.linspace(-170, 170, size) if view == "pinhole" else torch.zeros(size)
    camera = torch.tensor([[40.0, 0, 25], [0, 45, 15], [0, 0, 1]]).expand(size, 3, 3)
    return Batch(
        query=torch.rand(size, 3, 8, 64),
        reference=torch.rand(size, 3, 16, 16),
        uv=torch.rand(size, 2) * 16,
        heading_deg=heading,
        heading_prior_deg=torch.stack([heading, torch.zeros(size)], 1),
        camera_B33=camera if view == "pinhole" else None,
    )


NO_CHANGE = {"flip": 0.0, "rotate": 0.0, "color": 0.0, "blur": 0.0, "cut": 0.0}


def off_deg(batch):
    """Return how far what is told lies clockwise of the true headings."""
    return (batch.heading_prior_deg[:, 0] - batch.heading_deg + 180) % 360 - 180


def test_a_camera_is_told_a_heading_that_is_off():
    """Its picture and its true heading stay: only what is known changes, by as much as at evaluation."""
    batch = headed_batch(2000, "pinhole")
    noisy = Augment(AugmentRecipe(**NO_CHANGE, heading_noise_deg=20.0), "pinhole")(
        batch, torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(noisy.heading_deg, batch.heading_deg)
    torch.testing.assert_close(noisy.query, batch.query)
    assert torch.equal(noisy.uv, batch.uv)
    assert noisy.heading_prior_deg[:, 1].tolist() == [20.0] * 2000
    assert (noisy.heading_prior_deg[:, 0] > -180).all()
    assert (noisy.heading_prior_deg[:, 0] <= 180).all()
    off = off_deg(noisy)
    assert off.abs().max() <= 20.001
    assert off.min() < -19
    assert off.max() > 19
    assert float(off.mean()) == pytest.approx(0, abs=1.0)
    assert float(off.abs().mean()) == pytest.approx(10, abs=0.6)  # uniform
    exact = Augment(AugmentRecipe(**NO_CHANGE), "pinhole")(batch, torch.Generator().manual_seed(3))
    torch.testing.assert_close(exact.heading_prior_deg, batch.heading_prior_deg)


@pytest.mark.parametrize("view", ["pinhole", "panorama"])
def test_what_is_known_of_a_heading_stays_true_through_all_changes(view):
    batch = headed_batch(500, view)
    recipe = AugmentRecipe(flip=0.5, rotate=0.75, heading_noise_deg=15.0, color=0.0, blur=0.0, cut=0.0)
    changed = Augment(recipe, view)(batch, torch.Generator().manual_seed(1))
    assert changed.heading_prior_deg[:, 1].tolist() == [15.0] * 500
    column_deg = 360 / 64 / 2  # a panorama is turned by whole columns
    assert off_deg(changed).abs().max() <= 15 + (column_deg if view == "panorama" else 1e-4)
    assert off_deg(changed).abs().max() > 14
    assert len(changed.heading_deg.round().unique()) > 4


def test_the_error_of_a_heading_is_drawn_before_all_else():
    """So a camera's error is the turn of the panorama of the same number: as much clockwise, seen from the other."""
    recipe = AugmentRecipe(**NO_CHANGE, heading_noise_deg=90.0)
    camera, pano = (
        Augment(recipe, view)(headed_batch(50, view), torch.Generator().manual_seed(2))
        for view in ("pinhole", "panorama")
    )
    torch.testing.assert_close(off_deg(camera), pano.heading_deg, rtol=0, atol=360 / 64 / 2 + 1e-3)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (('views.query="bev"', "augment.heading_noise_deg=10"), "pinhole pictures and for panoramas"),
        (("views.bev_px=32", "augment.heading_noise_deg=10"), "without a top view"),
        (("augment.heading_noise_deg=181",), "at most 180"),
    ],
)
def test_heading_noise_that_does_not_fit_is_refused(overrides, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("sample4geo-smoke", overrides)
    load_recipe("sample4geo-smoke", ['views.query="pinhole"', "augment.heading_noise_deg=180"])


def test_a_camera_that_is_told_an_error_is_not_waited_for(monkeypatch):
    with pretended_device(monkeypatch) as device:
        with unset_fake_temporarily():
            batch = headed_batch(4, "pinhole")
            augment = Augment(AugmentRecipe(flip=1.0, rotate=1.0, heading_noise_deg=10.0), "pinhole")
            generator = torch.Generator().manual_seed(0)
        parts = {item.name: getattr(batch, item.name) for item in dataclasses.fields(batch)}
        moved = Batch(**{name: None if part is None else device.tensor(part) for name, part in parts.items()})
        with device.listed(is_mixed=False) as found:
            changed = augment(moved, generator)
        assert found == []
        assert changed.heading_prior_deg.device == CUDA
