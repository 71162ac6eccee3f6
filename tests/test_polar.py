import math

import pytest
import torch

from cvgl_models.geometry import polar_transform
from cvgl_models.geometry.polar import CENTERS, CVUSA_SIZE_PX, VIGOR_SIZE_PX, polar_map

CVUSA, VIGOR = (750, CVUSA_SIZE_PX), (640, VIGOR_SIZE_PX)


@pytest.mark.parametrize(
    ("dataset", "place", "row", "column"),
    [
        (CVUSA, (0, 0), 746.6518, 375),
        (CVUSA, (0, 154), 375, 3.3482),
        (CVUSA, (0, 308), 3.3482, 375),
        (CVUSA, (0, 462), 375, 746.6518),
        (CVUSA, (56, 308), 190.8482, 375),
        (CVUSA, (111, 0), 375, 375),
        (CVUSA, (111, 500), 375, 375),
        (VIGOR, (0, 0), 639, 320),
        (VIGOR, (0, 320), 1, 320),
        (VIGOR, (160, 320), 161, 320),
    ],
)
def test_published_places(dataset, place, row, column):
    rows, columns = polar_map(*dataset, center="published")
    assert rows[place].item() == pytest.approx(row, abs=5e-5)
    assert columns[place].item() == pytest.approx(column, abs=5e-5)


@pytest.mark.parametrize(("dataset", "center"), [(CVUSA, "published"), (CVUSA, "middle"), (CVUSA, "pixel")])
def test_a_radial_image_has_constant_rows(dataset, center):
    side, (height, width) = dataset
    origin = side / 2 if center == "published" else (side - 1) / 2
    index = torch.arange(side, dtype=torch.float64) - origin
    image = torch.hypot(index[:, None], index)[None, None]
    polar = polar_transform(image, (height, width), center=center)[0, 0]
    radius = side / 2 / height * (height - 1 + (0.5 if center == "pixel" else 0) - torch.arange(height))
    outer = radius > 2
    assert (polar.mean(1) - radius)[outer].abs().max() < 0.038
    assert polar[outer].std(1).max() < 0.009


@pytest.mark.parametrize("center", CENTERS)
def test_an_image_of_the_azimuth_has_constant_columns(center):
    side, (height, width) = 750, (112, 616)
    origin = side / 2 if center == "published" else (side - 1) / 2
    index = torch.arange(side, dtype=torch.float64) - origin
    away = torch.hypot(index[:, None], index).clamp(min=1e-9)
    image = (-index[:, None] / away)[None, None].expand(-1, -1, side, side)  # cosine of the azimuth from north
    polar = polar_transform(image, (height, width), center=center)[0, 0]
    half = 0.5 if center == "pixel" else 0.0
    expected = torch.cos(math.pi + 2 * math.pi / width * (torch.arange(width) + half)).double()
    assert (polar[0] - expected).abs().max() < 1.3e-6  # linear interpolation, 370 px from the centre


def picture(side=64, kind=torch.float64):
    return torch.rand(2, 3, side, side, dtype=kind, generator=torch.Generator().manual_seed(0))


def test_mirrors_and_quarter_turns_commute():
    image, size = picture(), (20, 48)
    polar = polar_transform(image, size)
    torch.testing.assert_close(polar_transform(image.flip(-1), size), polar.flip(-1), atol=1e-11, rtol=0)
    for turns in (1, 2, 3):
        turned = polar_transform(torch.rot90(image, turns, (-2, -1)), size)
        torch.testing.assert_close(turned, polar.roll(-turns * 12, -1), atol=1e-11, rtol=0)


def test_they_do_with_the_middle_as_centre_and_not_with_the_published_one():
    image, size = picture(), (20, 48)
    mirrored = (-torch.arange(48)) % 48
    errors = {}
    for center in ("middle", "published"):
        polar = polar_transform(image, size, center=center)
        flipped = polar_transform(image.flip(-1), size, center=center)
        turned = polar_transform(torch.rot90(image, 1, (-2, -1)), size, center=center)
        errors[center] = max(
            (flipped - polar[..., mirrored]).abs().max().item(), (turned - polar.roll(-12, -1)).abs().max().item()
        )
    assert errors["middle"] < 1e-11
    assert errors["published"] > 0.1


def test_the_published_centre_is_one_pixel_off_in_a_mirror():
    """It lies half a pixel right of the middle, so a mirrored image is seen from one pixel further left."""
    image = picture()
    image[..., [0, 1, -2, -1]] = image[..., [0, 1, -2, -1], :] = 0  # no edge to look beyond
    mirrored = (-torch.arange(48)) % 48
    flipped = polar_transform(image.flip(-1), (20, 48), center="published")
    beside = polar_transform(image.roll(1, -1), (20, 48), center="published")
    torch.testing.assert_close(flipped, beside[..., mirrored], atol=1e-11, rtol=0)


def test_north_is_in_the_middle_and_the_outside_on_top():
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, :8] = 1
    polar = polar_transform(image, (16, 64))[0, 0]
    assert polar[0, 32] == 1
    assert polar[0, 0] == polar[0, 16] == polar[15].max() == 0


def test_types_and_gradients():
    image = picture(32, torch.bfloat16)
    polar = polar_transform(image, (8, 16))
    assert polar.dtype == torch.bfloat16
    torch.testing.assert_close(polar, polar_transform(image.float(), (8, 16)).bfloat16())
    small = torch.rand(1, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda image: polar_transform(image, (3, 8)), small)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="square"):
        polar_transform(torch.rand(1, 3, 8, 9), (4, 8))
    with pytest.raises(ValueError, match="one of pixel, middle, published"):
        polar_transform(torch.rand(1, 3, 8, 8), (4, 8), center="corner")
