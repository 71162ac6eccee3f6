"""Masked normalized cross-correlation: against loops, planted templates, masks, and what hangs over the edge."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvgl_models.geometry.ncc import (
    Correlate,
    _fast_length,
    correlate_direct,
    correlate_fft,
    normalized_cross_correlation,
)


def by_loops(reference: torch.Tensor, template: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
    """One pair, float64, straight from the formula."""
    (channels, height, width), (rows, columns) = reference.shape, template.shape[-2:]
    out = torch.zeros(height + 2 * padding - rows + 1, width + 2 * padding - columns + 1, dtype=torch.float64)
    for p in range(out.shape[0]):
        for q in range(out.shape[1]):
            product = under = own = 0.0
            for i in range(rows):
                for j in range(columns):
                    y, x = p - padding + i, q - padding + j
                    if not (0 <= y < height and 0 <= x < width):
                        continue
                    square = float(weight[i, j]) ** 2
                    for c in range(channels):
                        f, g = float(reference[c, y, x]), float(template[c, i, j])
                        product += f * g * square
                        under += f * f * square
                        own += g * g * square
            out[p, q] = product / max(math.sqrt(under * own), 1e-6)
    return out


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("correlate", [correlate_fft, correlate_direct])
def test_it_is_the_formula(padding: int, correlate: Correlate) -> None:
    torch.manual_seed(0)
    reference, template, weight = torch.randn(2, 3, 7, 6), torch.randn(3, 3, 4, 3), torch.rand(3, 4, 3)
    found = normalized_cross_correlation(reference, template, weight, padding=padding, correlate=correlate)
    for m in range(2):
        for n in range(3):
            expected = by_loops(reference[m], template[n], weight[n], padding)
            assert torch.allclose(found[m, n].double(), expected, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6), st.integers(6, 14), st.integers(6, 14), st.data())
def test_both_ways_of_summing_agree(seed: int, rows: int, columns: int, height: int, width: int, data: object) -> None:
    padding = data.draw(st.integers(0, min(rows, columns) - 1))  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    reference, template = torch.randn(2, 2, height, width), torch.randn(2, 2, rows, columns)
    fft, direct = (correlate(reference, template, padding) for correlate in (correlate_fft, correlate_direct))
    assert fft.shape == direct.shape == (2, 2, height + 2 * padding - rows + 1, width + 2 * padding - columns + 1)
    assert torch.allclose(fft, direct, atol=1e-4)


def test_gradients_of_both_ways_agree() -> None:
    torch.manual_seed(1)
    grads = []
    for correlate in (correlate_fft, correlate_direct):
        torch.manual_seed(1)
        reference, template = (torch.randn(2, 3, side, side, requires_grad=True) for side in (12, 5))
        normalized_cross_correlation(reference, template, padding=2, correlate=correlate).amax((2, 3)).sum().backward()
        grads.append((reference.grad, template.grad))
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_pairs_are_the_diagonal_of_all() -> None:
    torch.manual_seed(2)
    reference, template, weight = torch.randn(3, 2, 10, 10), torch.randn(3, 2, 5, 5), torch.rand(3, 5, 5)
    for each in (None, weight):
        for padding in (0, 2):
            every = normalized_cross_correlation(reference, template, each, padding=padding)
            pairs = normalized_cross_correlation(reference, template, each, padding=padding, paired=True)
            direct = normalized_cross_correlation(
                reference, template, each, padding=padding, paired=True, correlate=correlate_direct
            )
            assert torch.allclose(every.diagonal().permute(2, 0, 1), pairs, atol=1e-6)
            assert torch.allclose(direct, pairs, atol=1e-4)


def test_a_planted_template_is_found() -> None:
    torch.manual_seed(3)
    reference = torch.randn(1, 4, 30, 40)
    template = 7.5 * reference[:, :, 7:17, 15:24]
    found = normalized_cross_correlation(reference, template)[0, 0]
    assert divmod(int(found.argmax()), found.shape[1]) == (7, 15)
    assert found.max() == pytest.approx(1.0, abs=1e-5)


def test_a_template_that_hangs_over_is_found() -> None:
    torch.manual_seed(4)
    world = torch.randn(1, 4, 30, 30)
    reference, template = world[:, :, 5:25, 5:25], world[:, :, 1:9, 20:28]
    found = normalized_cross_correlation(reference, template, padding=4)[0, 0]
    assert found.shape == (21, 21)
    assert divmod(int(found.argmax()), 21) == (0, 19)
    assert found.max() == pytest.approx(1.0, abs=1e-4)


def test_what_lies_under_the_mask_does_not_count() -> None:
    torch.manual_seed(5)
    reference, template, mask = torch.randn(2, 3, 12, 12), torch.randn(2, 3, 6, 6), (torch.rand(2, 6, 6) > 0.4).float()
    garbage = template + 100 * torch.randn_like(template) * (1 - mask)[:, None]
    clean, dirty = (normalized_cross_correlation(reference, each, mask) for each in (template, garbage))
    assert torch.allclose(clean, dirty, atol=1e-5)


def test_scale_does_not_count() -> None:
    torch.manual_seed(6)
    reference, template = torch.randn(1, 3, 12, 12), torch.randn(1, 3, 6, 6)
    plain = normalized_cross_correlation(reference, template)
    for factor in (1e-3, 1e3):
        assert torch.allclose(plain, normalized_cross_correlation(factor * reference, template / factor), atol=1e-4)


@pytest.mark.parametrize("padding", [0, 3])
def test_empty_masks_and_maps_give_finite_zeros_and_gradients(padding: int) -> None:
    reference = torch.randn(2, 3, 10, 10, requires_grad=True)
    template = torch.randn(2, 3, 4, 4, requires_grad=True)
    found = normalized_cross_correlation(reference, template, torch.zeros(2, 4, 4), padding=padding)
    assert found.abs().max() == 0
    zero = normalized_cross_correlation(torch.zeros_like(reference) * reference, template, padding=padding)
    assert zero.abs().max() == 0
    (found.sum() + zero.sum()).backward()
    assert reference.grad is not None
    assert reference.grad.isfinite().all()
    assert template.grad is not None
    assert template.grad.isfinite().all()


@pytest.mark.parametrize("correlate", [correlate_fft, correlate_direct])
def test_it_stays_a_cosine_under_autocast(correlate: Correlate) -> None:
    torch.manual_seed(7)
    reference, template = torch.randn(1, 3, 12, 12), torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = normalized_cross_correlation(reference, template, correlate=correlate)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, normalized_cross_correlation(reference, template, correlate=correlate))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be laid"):
        correlate_fft(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 5, 5))
    with pytest.raises(ValueError, match="padding of 3"):
        correlate_direct(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3), 3)


def test_lengths_of_transforms() -> None:
    assert [_fast_length(length) for length in (1, 7, 11, 97, 121, 256)] == [1, 8, 12, 100, 125, 256]
