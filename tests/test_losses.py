import math

import pytest
import torch
from torch.nn import functional as F

from cvgl_models.losses import SoftMarginTriplet, SymmetricInfoNCE, mined


def info_nce(query, reference, scale, smoothing=0.0, ignore=None):
    loss = SymmetricInfoNCE(smoothing, math.log(scale))
    return loss(torch.tensor(query), torch.tensor(reference), ignore).item()


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 1.8746e-6), (0.1, 1.0714304)])
def test_identity(smoothing, expected):
    eye = torch.eye(4, dtype=torch.float64).tolist()
    assert info_nce(eye, eye, 1 / 0.07, smoothing) == pytest.approx(expected, rel=0.06 if smoothing == 0 else 1e-6)


@pytest.mark.parametrize(
    ("pairs", "smoothed", "plain"),
    [(2, 0.714286, 6.2e-7), (4, 1.071430, 1.9e-6), (16, 1.339295, 9.4e-6), (128, 1.417490, 7.9e-5)],
)
def test_perfect_embeddings_of_a_batch(pairs, smoothed, plain):
    """What is left of the loss when all similarities are 0 or 1 is the smoothing, and grows with the batch."""
    eye = torch.eye(pairs).tolist()
    assert info_nce(eye, eye, 1 / 0.07, 0.1) == pytest.approx(smoothed, abs=1e-6)
    # the golden has two digits, and float32 beside a logit of 14 has steps of 1e-6
    assert info_nce(eye, eye, 1 / 0.07) == pytest.approx(plain, rel=0.01, abs=1.5e-7)
    exact = math.log(math.exp(1 / 0.07) + pairs - 1) - (0.9 + 0.1 / pairs) / 0.07
    assert smoothed == pytest.approx(exact, abs=5e-7)


@pytest.mark.parametrize(("smoothing", "expected"), [(0.1, 1.419862), (0.0, 1.191290)])
def test_two_pairs_of_which_one_is_taken_for_the_other(smoothing, expected):
    """Similarities [[.8, 0], [.96, .8]]: an asymmetric matrix, whose rows and columns lose alike."""
    query, reference = [[1.0, 0.0], [0.6, 0.8]], [[0.8, 0.6], [0.0, 1.0]]
    assert info_nce(query, reference, 1 / 0.07, smoothing) == pytest.approx(expected, abs=1e-6)
    assert info_nce(reference, query, 1 / 0.07, smoothing) == pytest.approx(expected, abs=1e-6)


def test_the_scale_begins_at_that_of_the_papers():
    loss = SymmetricInfoNCE()
    assert loss.logit_scale.item() == pytest.approx(2.659260, abs=5e-7)
    assert loss.logit_scale.exp().item() == pytest.approx(14.2857, abs=5e-5)
    assert loss.label_smoothing == 0.1


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equal_features_of_16_pairs(smoothing):
    assert info_nce([[0.5, -2.0]] * 16, [[0.5, -2.0]] * 16, 1 / 0.07, smoothing) == pytest.approx(2.772589, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equal_features(smoothing):
    assert info_nce([[1.0, 2.0]] * 4, [[1.0, 2.0]] * 4, 1 / 0.07, smoothing) == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize(
    ("reference", "smoothing", "expected"),
    [
        ([[0.8, 0.6], [0.6, 0.8]], 0.0, 0.1269280),
        ([[0.8, 0.6], [0.6, 0.8]], 0.1, 0.2269280),
        ([[0.8, 0.6], [-0.6, 0.8]], 0.1, 0.4634644),
    ],
)
def test_two_pairs(reference, smoothing, expected):
    eye = [[1.0, 0.0], [0.0, 1.0]]
    assert info_nce(eye, reference, 10.0, smoothing) == pytest.approx(expected, rel=1e-5)
    assert info_nce(reference, eye, 10.0, smoothing) == pytest.approx(expected, rel=1e-5)
    assert info_nce([[3.0, 0.0], [0.0, 0.2]], reference, 10.0, smoothing) == pytest.approx(expected, rel=1e-5)


def test_equals_cross_entropy_written_out():
    torch.manual_seed(0)
    query, reference = F.normalize(torch.randn(9, 5)), F.normalize(torch.randn(9, 5))
    logits, target = 14 * query @ reference.T, torch.arange(9)
    expected = (
        F.cross_entropy(logits, target, label_smoothing=0.1) + F.cross_entropy(logits.T, target, label_smoothing=0.1)
    ) / 2
    torch.testing.assert_close(SymmetricInfoNCE(0.1, math.log(14))(query, reference), expected)


def test_ignored_references_are_as_if_absent():
    torch.manual_seed(0)
    query, reference = F.normalize(torch.randn(3, 5)), F.normalize(torch.randn(3, 5))
    ignore = torch.zeros(3, 3, dtype=torch.bool)
    ignore[0, 2] = ignore[2, 0] = True
    logits = 10 * query @ reference.T
    smooth = [
        F.cross_entropy(part[[row]][:, keep], torch.tensor([keep.index(row)]), label_smoothing=0.1)
        for part in (logits, logits.T)
        for row, keep in enumerate([[0, 1], [0, 1, 2], [1, 2]])
    ]
    loss = SymmetricInfoNCE(0.1, math.log(10))
    torch.testing.assert_close(loss(query, reference, ignore), torch.stack(smooth).mean())
    everything = torch.ones(3, 3, dtype=torch.bool)
    assert loss(query, reference, everything).item() == pytest.approx(0.0, abs=1e-6)


def test_gradients_stay_finite_with_ignored_references():
    query = torch.randn(4, 3, requires_grad=True)
    loss = SymmetricInfoNCE()
    loss(query, torch.randn(4, 3), torch.rand(4, 4) < 0.5).backward()
    assert bool(query.grad.isfinite().all())
    assert loss.logit_scale.grad.isfinite()


def test_scale_is_bounded_and_can_come_back():
    loss = SymmetricInfoNCE(0.0, math.log(1e6))
    value = loss(torch.eye(2), torch.tensor([[0.8, 0.6], [0.9, 0.1]]))
    assert loss.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)
    value.backward()
    assert loss.logit_scale.grad.item() > 0


def triplet(distance, **options):
    return SoftMarginTriplet(**options).of_distances(torch.tensor(distance, dtype=torch.float64)).item()


def test_soft_margin_golden():
    assert triplet([[0.2, 0.9], [1.0, 0.3]]) == pytest.approx(0.00115851, abs=5e-9)


def test_soft_margin_of_embeddings():
    """Every triplet written out, for embeddings that are not normalized."""
    query, reference = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = [side / side.norm(dim=1, keepdim=True) for side in (query, reference)]
    away = [[float((q - r).square().sum()) for r in unit[1]] for q in unit[0]]
    one_way = [math.log1p(math.exp(10 * (away[i][i] - away[i][j]))) for i in range(5) for j in range(5) if i != j]
    other = [math.log1p(math.exp(10 * (away[j][j] - away[i][j]))) for i in range(5) for j in range(5) if i != j]
    expected = (sum(one_way) + sum(other)) / 40
    assert SoftMarginTriplet()(query, reference).item() == pytest.approx(expected, rel=1e-5)
    assert SoftMarginTriplet()(reference, query).item() == pytest.approx(expected, rel=1e-5)
    hardest = (sum(sorted(one_way)[-6:]) + sum(sorted(other)[-6:])) / 12
    assert SoftMarginTriplet(share=0.3)(query, reference).item() == pytest.approx(hardest, rel=1e-5)


def test_soft_margin_leaves_semi_positives_out():
    distance = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    ignore = torch.tensor([[False, True, True], [True, False, True], [True, False, False]])
    one, two = (F.softplus(10 * (distance[k, k] - distance[2, 1])) for k in (2, 1))
    assert SoftMarginTriplet().of_distances(distance, ignore).item() == pytest.approx(float(one + two) / 2)
    half = SoftMarginTriplet().of_distances(distance, 0.5 * (1 - torch.eye(3)))
    assert half.item() == pytest.approx(SoftMarginTriplet().of_distances(distance).item() / 2)


@pytest.mark.parametrize(("share", "count"), [(1.0, 992), (0.1, 99), (0.05, 49), (0.01, 9)])
def test_number_of_hard_triplets_in_a_batch_of_32(share, count):
    assert int(mined(share, torch.tensor(32 * 31))) == count
    distance = torch.zeros(32, 32, dtype=torch.float64) + 4 * (1 - torch.eye(32))  # all terms are next to nothing ...
    hard = torch.arange(32 * 31)[:count]
    rows = hard // 31
    columns = hard % 31 + (hard % 31 >= rows)
    distance[rows, columns] = 0  # ... but as many as are mined
    one_way = SoftMarginTriplet(share=share)._mean(
        F.softplus(10 * (distance.diagonal()[:, None] - distance)), 1 - torch.eye(32, dtype=torch.float64)
    )
    assert one_way.item() == pytest.approx(math.log(2))


def test_at_least_one_triplet_is_mined():
    assert triplet([[0.2, 0.9], [1.0, 0.3]], share=0.01) > triplet([[0.2, 0.9], [1.0, 0.3]])


def test_soft_margin_is_finite_where_it_could_overflow():
    query = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = SoftMarginTriplet(scale=1000.0)(query, -query.detach())
    loss.backward()
    assert loss.item() == pytest.approx(4000.0)
    assert query.grad.isfinite().all()
