import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cvgl_data.errors import RecipeError, UnknownNameError
from cvgl_models.aggregators import AGGREGATORS, create_aggregator
from cvgl_models.aggregators.netvlad import NetVLAD, kmeans

torch.set_num_threads(1)

SMALL = {"convap": {"out_channels": 4}, "netvlad": {"num_clusters": 3, "channels": 4}, "mixvpr": {"out_channels": 5}}


@pytest.mark.parametrize("name", list(AGGREGATORS))
@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (1, 1)])
def test_every_head_takes_any_grid_and_says_its_length(name, grid):
    torch.manual_seed(0)
    head = create_aggregator(name, 6, (4, 4), SMALL.get(name))
    map_BChw = torch.randn(2, 6, *grid, requires_grad=True)
    embedded = head(map_BChw)
    assert embedded.shape == (2, head.num_features)
    assert embedded.dtype == torch.float32
    embedded.square().sum().backward()
    assert map_BChw.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("name", list(AGGREGATORS))
def test_heads_work_under_autocast(name):
    torch.manual_seed(0)
    head = create_aggregator(name, 6, (4, 4), SMALL.get(name))
    map_BChw = torch.rand(2, 6, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = head(map_BChw.bfloat16())
    torch.testing.assert_close(half.float(), head(map_BChw), rtol=0.1, atol=0.05)


@pytest.mark.parametrize(("channels", "expected"), [(768, 4_994_052), (384, 4_600_836)])
def test_mixvpr_has_the_published_number_of_parameters(channels, expected):
    with torch.device("meta"):
        head = create_aggregator("mixvpr", channels, (32, 32))
    assert sum(p.numel() for p in head.parameters()) == expected
    assert head.num_features == 4096


def test_a_fresh_mixer_adds_nothing_to_a_constant_map():
    head = create_aggregator("mixvpr", 6, (2, 4), {"out_channels": 3, "out_rows": 2})
    ones = torch.ones(1, 6, 2, 4)
    torch.testing.assert_close(head.mixers(ones.flatten(2)), ones.flatten(2))
    channels_d = head.project_channels(torch.ones(6))
    rows_dr = torch.stack([head.project_rows(channel.expand(8)) for channel in channels_d])
    torch.testing.assert_close(head(ones)[0], rows_dr.flatten())
    torch.testing.assert_close(head(ones)[0, 1 * 2 + 1], rows_dr[1, 1])  # index d * out_rows + r


def test_mixvpr_written_out():
    torch.manual_seed(0)
    head = create_aggregator("mixvpr", 5, (2, 3), {"out_channels": 4, "out_rows": 3, "mix_depth": 1})
    map_BChw = torch.randn(2, 5, 2, 3)
    _, first, _, second = head.mixers[0].mix
    x = map_BChw.reshape(2, 5, 6)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    x = x + F.linear(F.relu(F.linear(normed, first.weight, first.bias)), second.weight, second.bias)
    x = torch.einsum("bcn,dc->bdn", x, head.project_channels.weight) + head.project_channels.bias[:, None]
    x = torch.einsum("bdn,rn->bdr", x, head.project_rows.weight) + head.project_rows.bias
    torch.testing.assert_close(head(map_BChw), x.reshape(2, 12), rtol=1e-4, atol=1e-5)


def test_mixvpr_resamples_another_grid():
    torch.manual_seed(0)
    head = create_aggregator("mixvpr", 3, (2, 2), {"out_channels": 4})
    small = torch.randn(1, 3, 2, 2)
    constant = torch.randn(1, 3, 1, 1).expand(-1, -1, 2, 2)
    torch.testing.assert_close(head(constant.repeat(1, 1, 2, 3)), head(constant))
    assert not torch.allclose(head(small.roll(1, 3)), head(small))


def test_gem_of_one_to_four():
    head = create_aggregator("gem", 1, (2, 2))
    value = head(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert value.item() == pytest.approx(25 ** (1 / 3), rel=1e-6)
    assert value.item() == pytest.approx(2.924018, rel=1e-6)


def test_gem_between_mean_and_maximum():
    values = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    mean, largest = values.mean((2, 3)), values.amax((2, 3))
    torch.testing.assert_close(create_aggregator("gem", 3, (4, 4), {"p": 1.0})(values), mean)
    high = create_aggregator("gem", 3, (4, 4), {"p": 60})(values)
    assert (high > mean).all()
    torch.testing.assert_close(high, largest, rtol=0.06, atol=0.0)


def test_gem_and_signs():
    negative = -torch.ones(1, 2, 2, 2)
    found = {sign: create_aggregator("gem", 2, (2, 2), {"sign": sign})(negative) for sign in ("clamp", "abs")}
    torch.testing.assert_close(found["clamp"], torch.full((1, 2), 1e-6))
    torch.testing.assert_close(found["abs"], torch.ones(1, 2))
    soft = create_aggregator("gem", 2, (2, 2), {"sign": "softplus"})(negative)
    torch.testing.assert_close(soft, torch.full((1, 2), math.log1p(math.exp(-1))))


def test_gem_power_is_learned_or_not():
    assert create_aggregator("gem", 2, (2, 2)).p.requires_grad
    assert not create_aggregator("gem", 2, (2, 2), {"learn_p": False}).p.requires_grad


def test_cosplace_does_not_depend_on_the_length_of_features():
    torch.manual_seed(0)
    head, map_BChw = create_aggregator("cosplace", 4, (3, 3), {"out_channels": 5}), torch.rand(2, 4, 3, 3)
    torch.testing.assert_close(head(map_BChw), head(map_BChw * (1 + torch.rand(2, 1, 3, 3))))


def test_convap_is_a_grid_of_projected_means():
    torch.manual_seed(0)
    head, map_BChw = (
        create_aggregator("convap", 3, (4, 6), {"out_channels": 2, "out_columns": 3}),
        torch.rand(1, 3, 4, 6),
    )
    quarter = map_BChw[0, :, 2:, 4:].mean((1, 2))
    expected = head.project.weight[1, :, 0, 0] @ quarter + head.project.bias[1]
    torch.testing.assert_close(head(map_BChw)[0].reshape(2, 2, 3)[1, 1, 2], expected)


def test_average_with_the_class_token():
    head, map_BChw = create_aggregator("average", 3, (2, 2), {"class_token": True}), torch.rand(1, 3, 2, 2)
    class_BC = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(head(map_BChw, class_BC), torch.cat([class_BC, map_BChw.mean((2, 3))], 1))
    with pytest.raises(ValueError, match="class token"):
        head(map_BChw)


@pytest.mark.parametrize("name", ["average", "cosplace", "gem", "netvlad"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_pooling_heads_do_not_see_where_things_are(name, seed):
    torch.manual_seed(seed)
    head, map_BChw = create_aggregator(name, 4, (3, 5), SMALL.get(name)), torch.randn(2, 4, 3, 5)
    shuffled = map_BChw.flatten(2)[:, :, torch.randperm(15)].unflatten(2, (5, 3))
    torch.testing.assert_close(head(shuffled), head(map_BChw), rtol=1e-4, atol=1e-5)


def blobs(per_blob=40, seed=0):
    centers = F.normalize(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0.2]]), dim=1)
    noise = 0.05 * torch.randn(3 * per_blob, 4, generator=torch.Generator().manual_seed(seed))
    return centers, F.normalize(centers.repeat_interleave(per_blob, 0) + noise, dim=1)


def test_kmeans_finds_blobs():
    centers, points = blobs()
    found = kmeans(points, 3, seed=1)
    assert torch.equal(found, kmeans(points, 3, seed=1))
    nearest = torch.cdist(centers, found)
    assert sorted(nearest.argmin(1).tolist()) == [0, 1, 2]
    assert nearest.min(1).values.max() < 0.05
    torch.testing.assert_close(found[nearest.argmin(1)[0]], points[:40].mean(0))


def test_kmeans_needs_distinct_finite_points():
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(5, 1)
    assert sorted(kmeans(points, 2).tolist()) == [[0.0, 1.0], [1.0, 0.0]]
    with pytest.raises(ValueError, match="3 clusters need as many distinct descriptors, found 2"):
        kmeans(points, 3)
    with pytest.raises(ValueError, match="not finite"):
        kmeans(points * math.nan, 2)


def test_netvlad_starts_from_words():
    _, points = blobs()
    head = NetVLAD(4, (2, 2), num_clusters=3, channels=0)
    head.init_from(points)
    share_NK = (points @ head.assign.T).softmax(1)
    best_N2 = share_NK.topk(2, 1).values
    assert (best_N2[:, 1] / best_N2[:, 0]).log().mean().item() == pytest.approx(math.log(0.01), rel=1e-4)
    assert torch.equal(share_NK.argmax(1), torch.cdist(points, head.centroids).argmin(1))


def test_netvlad_written_out():
    torch.manual_seed(0)
    head, map_BChw = NetVLAD(4, (2, 3), num_clusters=3, channels=0), torch.randn(1, 4, 2, 3)
    places = F.normalize(map_BChw[0].flatten(1).T, dim=1)
    expected = torch.zeros(3, 4)
    for place in places:
        share = (head.assign @ place).softmax(0)
        expected += share[:, None] * (place - head.centroids)
    torch.testing.assert_close(head(map_BChw)[0], F.normalize(expected, dim=1).flatten())


def test_netvlad_descriptors_are_places_of_the_map():
    head, map_BChw = NetVLAD(4, (2, 3), num_clusters=3, channels=0), F.normalize(torch.randn(2, 4, 2, 3), dim=1)
    found = head.descriptors(map_BChw, 4, torch.Generator().manual_seed(0))
    assert found.shape == (8, 4)
    places = map_BChw.flatten(2).transpose(1, 2)
    for image, some in enumerate(found.split(4)):
        matches = torch.cdist(some, places[image]) < 1e-5
        assert matches.any(1).all()
        assert matches.any(0).sum() == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixvpr", {"out_chanels": 3}, r"'encoder\.aggregator_options\.out_chanels' .*did you mean 'out_channels'"),
        ("mixvpr", {"out_channels": 3.5}, "must be of type int, not 3.5"),
        ("mixvpr", {"out_channels": True}, "must be of type int, not True"),
        ("mixvpr", {"out_rows": 0}, "aggregator_options': out_rows must be positive, not 0"),
        ("gem", {"p": -1}, "p must be positive"),
        ("gem", {"p": math.nan}, "p must be positive"),
        ("gem", {"sign": "clam"}, "one of clamp, softplus, abs"),
        ("netvlad", {"num_clusters": 1}, "at least 2"),
        ("netvlad", {"channels": -1}, "channels"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(RecipeError, match=message):
        create_aggregator(name, 4, (2, 2), options)


def test_unknown_heads():
    with pytest.raises(UnknownNameError, match="unknown aggregator 'mixvrp'; did you mean 'mixvpr'"):
        create_aggregator("mixvrp", 4, (2, 2))
