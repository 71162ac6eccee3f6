"""Where in a reference a template fits best: masked normalized cross-correlation of feature maps.

Shapes: M references with C channels and H x W cells, N templates of h x w cells, P x Q places. All references are
compared with all templates, or, as ``paired`` has it, each with its own: then M = N, and one of the two may be 1. A
template may hang over the edge of a reference by ``padding`` cells; what lies outside counts neither for the product
nor for the norms.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Correlate(Protocol):
    """A way to compute plain cross-correlations: `correlate_fft` or `correlate_direct`."""

    def __call__(
        self, reference_MCHW: Tensor, template_NChw: Tensor, padding: int = 0, *, paired: bool = False
    ) -> Tensor:
        """Return sums of products at every place."""


_EPSILON = 1e-6


def correlate_fft(reference_MCHW: Tensor, template_NChw: Tensor, padding: int = 0, *, paired: bool = False) -> Tensor:
    """Return the plain cross-correlation by FFT, float32.

    The zeros beyond the right edge serve as those beyond the left one too, so the transforms are no larger than
    H + padding, rounded up to a length without large factors.

    Args:
        reference_MCHW: Reference maps.
        template_NChw: Template maps, in no direction larger than the padded reference.
        padding: Cells by which a template may hang over.
        paired: Compare each reference with its own template only.

    Returns:
        (M, N, P, Q), or (N, P, Q) if paired, with P = H + 2 padding - h + 1 and Q likewise: element (p, q) has the
        template's first cell at (p - padding, q - padding).

    Raises:
        ValueError: If a template does not fit.
    """
    places = _places(reference_MCHW, template_NChw, padding)
    size = [_fast_length(side + padding) for side in reference_MCHW.shape[-2:]]
    with torch.autocast(reference_MCHW.device.type, enabled=False):  # there is no FFT of half precision
        reference_MCf = torch.fft.rfft2(reference_MCHW.float(), s=size).flatten(2)
        template_NCf = torch.fft.rfft2(template_NChw.float(), s=size).flatten(2)
        if paired:
            product = (reference_MCf * template_NCf.conj()).sum(1)
        else:
            product = (reference_MCf.permute(2, 0, 1) @ template_NCf.conj().permute(2, 1, 0)).permute(1, 2, 0)
        half = product.unflatten(-1, (size[0], -1))
        whole: Tensor = torch.fft.irfft2(half, s=size)
    if padding:
        whole = whole.roll((padding, padding), (-2, -1))
    return whole[..., : places[0], : places[1]]


def correlate_direct(
    reference_MCHW: Tensor, template_NChw: Tensor, padding: int = 0, *, paired: bool = False
) -> Tensor:
    """Return what `correlate_fft` returns, by convolution: for tests, comparison, and templates of a few cells."""
    _places(reference_MCHW, template_NChw, padding)
    reference_MCHW, template_NChw = reference_MCHW.float(), template_NChw.float()
    with torch.autocast(reference_MCHW.device.type, enabled=False):
        if not paired:
            return F.conv2d(reference_MCHW, template_NChw, padding=padding)
        size = max(len(reference_MCHW), len(template_NChw))
        stacked = reference_MCHW.expand(size, -1, -1, -1).flatten(0, 1)[None]
        kernels = template_NChw.expand(size, -1, -1, -1)
        return F.conv2d(stacked, kernels, padding=padding, groups=size)[0]


def normalized_cross_correlation(
    reference_MCHW: Tensor,
    template_NChw: Tensor,
    weight_Nhw: Tensor | None = None,
    *,
    padding: int = 0,
    paired: bool = False,
    correlate: Correlate = correlate_fft,
) -> Tensor:
    """Return the cosine between each template and the part of each reference it lies on, at every place.

    With weights c, template G and reference F, of which only cells inside the reference count::

        S(p) = sum F(p + q) G(q) c(q)^2 / max(sqrt(sum F(p + q)^2 c(q)^2  sum G(q)^2 c(q)^2), epsilon)

    Args:
        reference_MCHW: Reference maps.
        template_NChw: Template maps.
        weight_Nhw: Weights or a mask of the templates' cells; None: 1.
        padding: Cells by which a template may hang over the edge.
        paired: Compare each reference with its own template only.
        correlate: How sums of products are computed.

    Returns:
        (M, N, P, Q), or (N, P, Q) if paired, float32 in [-1, 1]; 0 where nothing remains to be compared.

    Raises:
        ValueError: If a template does not fit.

    Source:
        G2SWeakly (ECCV 2024), with a bound of the denominator that masks cannot undercut, and with overhang.
    """
    reference_MCHW, template_NChw = reference_MCHW.float(), template_NChw.float()
    if weight_Nhw is None:
        weight_N1hw = template_NChw.new_ones(1, 1, *template_NChw.shape[-2:])
    else:
        weight_N1hw = weight_Nhw.float()[:, None]
    template_NChw = template_NChw * weight_N1hw
    energy_M1HW = reference_MCHW.square().sum(1, keepdim=True)
    energy_N1hw = template_NChw.square().sum(1, keepdim=True)
    product = correlate(reference_MCHW, template_NChw * weight_N1hw, padding, paired=paired)
    under = correlate(energy_M1HW, weight_N1hw.square(), padding, paired=paired)
    if padding:
        own = correlate(torch.ones_like(energy_M1HW[:1]), energy_N1hw, padding, paired=paired)
    else:
        own = energy_N1hw.sum((2, 3))[None, :, :, None] if not paired else energy_N1hw.sum((2, 3))[:, :, None]
    # Sums by FFT are exact to a share of the whole, so what is smaller than that share is rounding, not energy.
    bound_M11 = _EPSILON * energy_M1HW.sum((2, 3))[..., None] + _EPSILON**2
    bound_N11 = _EPSILON * energy_N1hw.sum((2, 3))[..., None] + _EPSILON**2
    if not paired:
        bound_M11, bound_N11 = bound_M11[:, None], bound_N11[None]
    norm = (under.clamp(min=bound_M11) * own.clamp(min=bound_N11)).sqrt()
    return (product / norm).clamp(-1.0, 1.0)


def _places(reference_MCHW: Tensor, template_NChw: Tensor, padding: int) -> tuple[int, int]:
    (height, width), (rows, columns) = reference_MCHW.shape[-2:], template_NChw.shape[-2:]
    places = height + 2 * padding - rows + 1, width + 2 * padding - columns + 1
    if min(places) < 1 or padding < 0 or padding >= min(rows, columns):
        raise ValueError(
            f"a template of {rows}x{columns} cells with a padding of {padding} cannot be laid on a reference of "
            f"{height}x{width} cells"
        )
    return places


def _fast_length(length: int) -> int:
    """Return the next length whose only prime factors are 2, 3 and 5."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1
