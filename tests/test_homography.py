"""Homographies against exact constructions, linear solves and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvgl_models.geometry.homography import apply_homography, heading_of, homography_from_corners, similarity

BOX = torch.tensor([[[0.0, 0.0], [511.0, 0.0], [0.0, 511.0], [511.0, 511.0]]], dtype=torch.float64)


def turned(heading_deg: float, scale: float, shift: tuple[float, float], center: float) -> torch.Tensor:
    """The matrix written out, to compare with."""
    cos, sin = scale * math.cos(math.radians(heading_deg)), scale * math.sin(math.radians(heading_deg))
    u, v = center + shift[0], center + shift[1]
    return torch.tensor(
        [[cos, -sin, u - cos * center + sin * center], [sin, cos, v - sin * center - cos * center], [0, 0, 1]],
        dtype=torch.float64,
    )[None]


def test_similarity_is_recovered_from_its_corners():
    truth = turned(20, 0.8, (30, -12), 255.5)
    found = homography_from_corners(BOX, apply_homography(truth, BOX))
    assert (found - truth).abs().max() < 1e-12  # of entries as large as 243 px
    center = apply_homography(found, torch.tensor([[[256.0, 256.0]]], dtype=torch.float64))[0, 0]
    torch.testing.assert_close(center, torch.tensor([285.739069, 244.012685], dtype=torch.float64), rtol=0, atol=1e-6)
    # clockwise here, counter-clockwise in the paper, whose formula gives -20 for it
    for arm in (10.0, 64.0):
        heading = heading_of(found, torch.tensor([[256.0, 256.0]], dtype=torch.float64), arm)
        torch.testing.assert_close(heading, torch.tensor([20.0], dtype=torch.float64), rtol=0, atol=1e-10)


def test_similarity_about_a_point():
    one = torch.ones(1, dtype=torch.float64)
    center = torch.full((1, 2), 255.5, dtype=torch.float64)
    shifted = center + torch.tensor([30.0, -12.0], dtype=torch.float64)
    torch.testing.assert_close(similarity(center, shifted, 0.8 * one, 20 * one), turned(20, 0.8, (30, -12), 255.5))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_random_homographies_are_recovered(dtype, bound):
    """Points of a grid, in pixels relative to the side: 8 degrees of freedom, against the matrix that made them."""
    generator = torch.Generator().manual_seed(0)
    change = torch.rand(200, 4, 2, generator=generator, dtype=torch.float64) * 180 - 90
    target = BOX + change
    grid = torch.rand(200, 50, 2, generator=generator, dtype=torch.float64) * 511
    expected = apply_homography(solved(BOX.expand(200, 4, 2), target), grid)
    found = apply_homography(homography_from_corners(BOX.expand(200, 4, 2).to(dtype), target.to(dtype)), grid.to(dtype))
    assert found.dtype == dtype
    assert ((found - expected) / 511).abs().max() < bound


def solved(source, target):
    """Eight linear equations, as textbooks have them."""
    rows, right = [], []
    for k in range(4):
        u, v = source[:, k].unbind(1)
        x, y = target[:, k].unbind(1)
        one, zero = torch.ones_like(u), torch.zeros_like(u)
        rows += [
            torch.stack([u, v, one, zero, zero, zero, -u * x, -v * x], 1),
            torch.stack([zero, zero, zero, u, v, one, -u * y, -v * y], 1),
        ]
        right += [x, y]
    entries = torch.linalg.solve(torch.stack(rows, 1), torch.stack(right, 1))
    return torch.cat([entries, torch.ones_like(entries[:, :1])], 1).view(-1, 3, 3)


@given(st.floats(-179, 179), st.floats(0.3, 3), st.floats(-200, 200), st.floats(-200, 200))
def test_headings_come_back(heading, scale, east, south):
    truth = turned(heading, scale, (east, south), 255.5)
    found = homography_from_corners(BOX, apply_homography(truth, BOX))
    center = torch.full((1, 2), 255.5, dtype=torch.float64)
    assert abs((float(heading_of(found, center, 64.0)) - heading + 180) % 360 - 180) < 1e-7
    moved = apply_homography(found, center[:, None])[0, 0]
    torch.testing.assert_close(moved, center[0] + torch.tensor([east, south], dtype=torch.float64))


def test_inverse_takes_points_back():
    target = BOX + torch.tensor([[[10.0, -30], [5, 20], [-40, 0], [25, 60]]], dtype=torch.float64)
    there, back = homography_from_corners(BOX, target), homography_from_corners(target, BOX)
    points = torch.rand(1, 20, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 511
    torch.testing.assert_close(apply_homography(back, apply_homography(there, points)), points)


def test_gradients():
    target = (BOX / 100 + torch.tensor([[[0.1, -0.3], [0.2, 0.2], [-0.4, 0], [0.1, 0.6]]])).requires_grad_()
    points = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=torch.float64)
    torch.autograd.gradcheck(lambda t: apply_homography(homography_from_corners(BOX / 100, t), points), [target])
    torch.autograd.gradcheck(lambda t: heading_of(homography_from_corners(BOX / 100, t), points[:, 0], 0.5), [target])


def test_degenerate_corners_stay_finite():
    flat = torch.tensor([[[0.0, 0], [1, 0], [2, 0], [3, 0]]])
    found = homography_from_corners(BOX.float(), flat)
    assert found.isfinite().all()
    assert apply_homography(found, BOX.float()).isfinite().all()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(B, 4, 2\)"):
        homography_from_corners(torch.zeros(2, 3, 2), torch.zeros(2, 3, 2))


def test_autocast_rounds_nothing():
    """Mixed precision would put corners whole pixels off."""
    truth = turned(20, 0.8, (30, -12), 255.5).float()
    box = BOX.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = homography_from_corners(box, apply_homography(truth, box))
        center, one = torch.full((1, 2), 255.5), torch.ones(1)
        made = similarity(center, center + torch.tensor([30.0, -12.0]), 0.8 * one, 20 * one)
    assert ((apply_homography(found, box) - apply_homography(truth, box)).abs() < 1e-3).all()
    assert ((apply_homography(made, box) - apply_homography(truth, box)).abs() < 1e-3).all()
