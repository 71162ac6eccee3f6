import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cvgl_models.geometry import ThinPlateSpline, affine_transform, control_points, polar_transform, thin_plate_spline
from cvgl_models.geometry.affine import affine_grid, compose_affine
from cvgl_models.geometry.resampling import pixel_centers, resample

POINTS = control_points()
SPLINE = ThinPlateSpline(POINTS)


def noise(*shape, kind=torch.float64):
    return torch.rand(*shape, dtype=kind, generator=torch.Generator().manual_seed(0))


def test_the_published_lattice():
    assert POINTS.shape == (60, 2)
    assert POINTS[0].tolist() == [-0.9, -0.9]
    assert POINTS[1].tolist() == pytest.approx([-0.7, -0.9])
    assert POINTS[10].tolist() == pytest.approx([-0.9, -0.54])


def test_points_that_stay_leave_the_image():
    expected = pixel_centers(40, 60)
    assert (SPLINE.grid(POINTS[None], (40, 60))[0] - expected).abs().max() < 2e-13
    assert (SPLINE.grid(POINTS[None].float(), (40, 60))[0] - expected).abs().max() < 1.6e-5
    image = noise(2, 3, 40, 60, kind=torch.float32)
    same = thin_plate_spline(image, POINTS[None].float().expand(2, -1, -1), (40, 60))
    torch.testing.assert_close(same, image, atol=1e-5, rtol=0)


def test_affine_points_give_an_affine_map():
    matrix = torch.tensor([[0.6, -0.3, 0.1], [0.2, 0.8, -0.2]], dtype=torch.float64)
    places = POINTS @ matrix[:, :2].T + matrix[:, 2]
    found = SPLINE.coefficients(places[None])[0]
    assert found[:60].abs().max() < 1e-12
    torch.testing.assert_close(found[60:], torch.cat([matrix[:, 2:], matrix[:, :2]], 1).T, atol=1e-12, rtol=0)
    torch.testing.assert_close(SPLINE.grid(places[None], (9, 12)), affine_grid(matrix[None], (9, 12)))
    assert SPLINE.bending_energy(places[None]).abs().item() < 1e-12


@given(index=st.integers(0, 59), dx=st.floats(-0.5, 0.5), dy=st.floats(-0.5, 0.5))
def test_a_moved_point_is_hit(index, dx, dy):
    places = POINTS.clone()
    places[index] += torch.tensor([dx, dy], dtype=torch.float64)
    assert (SPLINE.at(POINTS, places[None])[0] - places).abs().max() < 1e-11
    assert SPLINE.bending_energy(places[None]).item() >= 0


def test_bending_energy():
    places = POINTS.clone()
    places[0, 0] += 0.1
    assert SPLINE.bending_energy(places[None]).item() == pytest.approx(0.07835, abs=5e-6)
    assert SPLINE.bending_energy(places[None].float()).item() == pytest.approx(0.07835, rel=1e-4)
    away = torch.cdist(POINTS, POINTS)
    kernel = torch.where(away > 0, 0.5 * away**2 * (away**2).log(), 0.0)
    weights = SPLINE.coefficients(places[None])[0, :60]
    assert torch.trace(weights.T @ kernel @ weights).item() == pytest.approx(0.07835, abs=5e-6)


def test_a_spline_through_all_points_is_solved_for():
    """Against the textbook's system, solved anew for random places."""
    places = POINTS + 0.2 * torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    away = torch.cdist(POINTS, POINTS)
    kernel = torch.where(away > 0, 0.5 * away**2 * (away**2).log(), 0.0)
    plane = torch.cat([torch.ones(60, 1), POINTS], 1).double()
    system = torch.cat([torch.cat([kernel, plane], 1), torch.cat([plane.T, torch.zeros(3, 3)], 1)])
    solved = torch.linalg.solve(system, torch.cat([places, torch.zeros(3, 2)]))
    torch.testing.assert_close(SPLINE.coefficients(places[None])[0], solved, atol=1e-10, rtol=1e-9)
    # between the points too: the grid is the sum of kernels and the plane
    point = pixel_centers(5, 7)[2, 3]
    d2 = (point - POINTS).square().sum(1)
    by_hand = (0.5 * d2 * d2.log()) @ solved[:60] + solved[60] + point @ solved[61:]
    torch.testing.assert_close(SPLINE.grid(places[None], (5, 7))[0, 2, 3], by_hand, atol=1e-10, rtol=0)


def test_a_spline_comes_near_the_polar_transform():
    image = noise(1, 1, 8, 8)
    smooth = F.interpolate(image, (64, 64), mode="bicubic", align_corners=False)
    angle, inward = POINTS[:, 0] * torch.pi, (1 - POINTS[:, 1]) / 2
    places = torch.stack([inward * angle.sin(), -inward * angle.cos()], 1)
    bent = thin_plate_spline(smooth, places[None], (24, 80))
    target = polar_transform(smooth, (24, 80))
    plain = F.interpolate(smooth, (24, 80), mode="bilinear", align_corners=False)
    assert (bent - target).abs().mean() < 0.25 * (plain - target).abs().mean()


def test_gradients_of_the_places():
    spline = ThinPlateSpline(control_points(2, 3))
    target = noise(1, 1, 5, 6)
    image = F.interpolate(noise(1, 1, 3, 3), (8, 8), mode="bicubic", align_corners=False)
    places = (spline.control_K2 * 0.83 + 0.011)[None].requires_grad_()

    def distance(places_BK2):
        bent = resample(image, spline.grid(places_BK2, (5, 6)))
        return (bent - target).abs().mean() + 0.1 * spline.bending_energy(places_BK2).sum()

    assert torch.autograd.gradcheck(distance, places)


def test_splines_are_precise_under_autocast_and_after_evaluation():
    spline = ThinPlateSpline(control_points(3, 3))
    places = spline.control_K2[None].float()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert (spline.grid(places, (11, 13))[0] - pixel_centers(11, 13)).abs().max() < 1e-5
    places = places.clone().requires_grad_()
    spline.grid(places, (11, 13)).square().sum().backward()
    assert places.grad is not None


def test_too_few_points():
    with pytest.raises(ValueError, match="at least 2x2"):
        control_points(1, 10)


IDENTITY = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])


def test_the_identity_resizes():
    image = noise(2, 3, 16, 16, kind=torch.float32)
    for size in ((16, 16), (8, 30), (40, 12)):
        plain = F.interpolate(image, size, mode="bilinear", align_corners=False)
        resized = affine_transform(image, IDENTITY.expand(2, -1, -1), size)
        torch.testing.assert_close(resized, plain, atol=1e-5, rtol=0)


def test_a_mirror():
    image = noise(1, 3, 6, 8)
    theta = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(affine_transform(image, theta, (6, 8)), image.flip(-1))


def test_maps_in_turn_are_one_map():
    theta = torch.randn(3, 2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point = torch.tensor([0.3, -0.7, 1.0], dtype=torch.float64)
    walked = point
    for then in (theta[2, 1], theta[1, 1], theta[0, 1]):  # the last sampling's output is looked up first
        walked = torch.cat([then @ walked, torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(compose_affine(*theta)[1] @ point, walked[:2])


def test_outside_is_the_edge_or_black():
    image, zoomed_out = torch.ones(1, 1, 4, 4), torch.tensor([[[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]]])
    assert affine_transform(image, zoomed_out, (6, 6)).min() == 1
    assert affine_transform(image, zoomed_out, (6, 6), "zeros")[0, 0, 0, 0] == 0
