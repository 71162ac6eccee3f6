"""Correlation volumes and look-ups against loops."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cvgl_models.geometry.correlation import correlation_pyramid, correlation_volume, look_up, sample_at


def test_volume_is_all_products():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 5, 3, 4, generator=generator), torch.randn(2, 5, 6, 2, generator=generator)
    volume = correlation_volume(one, other)
    assert volume.shape == (2, 3, 4, 6, 2)
    expected = (one[1, :, 2, 1] @ other[1, :, 5, 0]).clamp(min=0)
    torch.testing.assert_close(volume[1, 2, 1, 5, 0], expected)
    cosine = correlation_volume(one, other, normalize=True)[0, 0, 3, 4, 1]
    torch.testing.assert_close(cosine, F.cosine_similarity(one[0, :, 0, 3], other[0, :, 4, 1], dim=0))


def test_one_hot_features_match_themselves_alone():
    """Every cell has a feature of its own: the volume of a map with itself is the identity."""
    features = torch.eye(16).view(1, 16, 4, 4)
    volume = correlation_volume(features, features).flatten(3).flatten(1, 2)[0]
    assert torch.equal(volume, torch.eye(16))
    assert torch.equal(volume.argmax(1), torch.arange(16))


def test_coarser_levels_are_means_of_cells():
    volume = torch.randn(1, 2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    pyramid = correlation_pyramid(volume, 3)
    assert [level.shape[3:] for level in pyramid] == [(8, 4), (4, 2), (2, 1)]
    torch.testing.assert_close(pyramid[2][0, 1, 2, 1, 0], volume[0, 1, 2, 4:, :].mean())
    with pytest.raises(ValueError, match="halved 3 times"):
        correlation_pyramid(volume, 4)


def test_look_up_at_centres_reads_the_cells_around():
    """A place at a cell's centre is exact at level 0; at level 1 a coarse cell's centre is a corner of fine cells."""
    volume = torch.randn(1, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    place = torch.tensor([[[[3.5, 4.5], [0.5, 0.5]], [[3.0, 5.0], [7.5, 7.5]]]])
    found = look_up(correlation_pyramid(volume, 2), place, 1)
    assert found.shape == (1, 18, 2, 2)
    torch.testing.assert_close(found[0, :9, 0, 0].view(3, 3), volume[0, 0, 0, 3:6, 2:5])
    inside = found[0, :9, 0, 1].view(3, 3)
    assert torch.equal(inside[0], torch.zeros(3))
    assert torch.equal(inside[:, 0], torch.zeros(3))
    torch.testing.assert_close(inside[1:, 1:], volume[0, 0, 1, :2, :2])
    coarse = F.avg_pool2d(volume[0, 1, 0][None], 2)[0]
    torch.testing.assert_close(found[0, 9:, 1, 0].view(3, 3), coarse[1:4, 0:3], rtol=1e-4, atol=1e-5)


def test_look_up_is_bilinear_and_differentiable():
    volume = torch.randn(1, 1, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    place = torch.tensor([[[[2.25, 3.1]]]], dtype=torch.float64)
    found = look_up([volume], place, 0)[0, 0, 0, 0]
    cells = volume[0, 0, 0, 2:4, 1:3]
    expected = torch.tensor([0.4, 0.6], dtype=torch.float64) @ cells @ torch.tensor([0.25, 0.75], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    volume.requires_grad_()
    place.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, p: look_up(correlation_pyramid(v, 2), p, 1), [volume, place])


def test_identity_places_find_themselves():
    """Perfect features, looked up where they are: the middle of every window is 1, all else 0."""
    features = torch.eye(64).view(1, 64, 8, 8)
    rows, columns = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    found = look_up([correlation_volume(features, features)], torch.stack([columns, rows], -1)[None], 4)
    assert torch.equal(found[0, 40], torch.ones(8, 8))
    assert found.sum() == 64


def test_sample_at_a_centre_and_beyond_the_edge():
    values = torch.arange(12.0).view(1, 1, 3, 4)
    assert sample_at(values, torch.tensor([[2.5, 1.5]])).item() == pytest.approx(6.0)
    assert sample_at(values, torch.tensor([[2.0, 1.5]])).item() == pytest.approx(5.5)
    assert sample_at(values, torch.tensor([[9.0, 1.5]])).item() == pytest.approx(7.0)
