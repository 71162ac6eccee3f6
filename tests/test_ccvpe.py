"""CCVPE: rings, targets and losses against loops and numbers worked out by hand; the system on small pictures."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from pretended import CUDA, Unread, pretended_device
from torch import nn
from torch.nn import functional as F

from cvgl_data.errors import RecipeError
from cvgl_models.backbones.pyramids import FeaturePyramid
from cvgl_models.recipe import EncoderRecipe, ModelRecipe, ViewRecipe
from cvgl_models.systems.ccvpe import CCVPE
from cvgl_models.systems.ccvpe.matching import Ring, columns_by_azimuth, peak_heading_deg, ring_scores
from cvgl_models.systems.ccvpe.network import Matches, QueryDescriptors
from cvgl_models.systems.ccvpe.targets import (
    direction_loss,
    gaussian_at,
    level_labels,
    matching_loss,
    position_loss,
)
from cvgl_models.transforms import Batch, flip, turn_panorama

VIGOR, KITTI = Ring(20), Ring(16, 8, 90.0)
RINGS = [VIGOR, KITTI, Ring(20, 1, 180), Ring(20, 1, 90), Ring(20, 1, 108), Ring(6, 2, 360)]
OPTIONS = {
    "num_bins": 8,
    "query_stride": 8,
    "coarsest_stride": 16,
    "channels": [4, 2],
    "head_channels": 16,
    "direction_channels": [16, 8],
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Maps are tiny here: two threads would mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(**options) -> ModelRecipe:
    views = ViewRecipe(query_height_px=32, query_width_px=64, reference_px=64)
    encoder = EncoderRecipe(backbone="cvgl_small_pyramid", pretrained=False, shared=False)
    return ModelRecipe(name="toy", system="ccvpe", views=views, encoder=encoder, options={**OPTIONS, **options})


def system(**options) -> CCVPE:
    torch.manual_seed(0)
    return CCVPE(recipe(**options)).eval()


def batch(size: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        query=torch.rand(size, 3, 32, 64, generator=generator),
        reference=torch.rand(size, 3, 64, 64, generator=generator),
        uv=torch.rand(size, 2, generator=generator) * 64,
        heading_deg=torch.zeros(size),
        gsd_m=torch.full((size,), 0.5),
    )


# --- rings


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_no_two_bins_see_the_same_window(ring):
    """The published KITTI maps are too narrow: bins half a circle apart see the same there."""
    windows = ring.windows().sort(1).values.tolist() if ring.fov_deg < 360 else ring.windows().tolist()
    assert len({tuple(window) for window in windows}) == ring.num_bins
    assert all(0 <= column < ring.num_columns for window in windows for column in window)


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_one_product_equals_rolling_and_cutting(ring, is_weighted):
    """The loop of the paper: roll the map, cut what the query sees, take the cosine."""
    generator = torch.Generator().manual_seed(0)
    channels = 3
    query = torch.randn(2, ring.num_seen, channels, generator=generator)
    reference = torch.randn(2, ring.num_columns * channels, 4, 5, generator=generator)
    weight = torch.rand(2, ring.num_seen, generator=generator) if is_weighted else None
    found = ring_scores(query, reference, ring, weight)
    assert found.shape == (2, ring.num_bins, 4, 5)
    each = (weight if is_weighted else torch.ones(2, ring.num_seen)).repeat_interleave(channels, 1).sqrt()
    first = (ring.num_columns - ring.num_seen) // 2
    for k in range(ring.num_bins):
        rolled = reference.roll(-(k * ring.columns_per_bin + first) * channels, 1)
        window = rolled[:, : ring.num_seen * channels] * each[:, :, None, None]
        expected = F.cosine_similarity(window, (query.flatten(1) * each)[:, :, None, None], dim=1)
        torch.testing.assert_close(found[:, k], expected, rtol=0, atol=1e-5)


def test_a_ring_that_does_not_close_is_refused():
    with pytest.raises(ValueError, match="no ring of 128 columns"):
        ring_scores(torch.zeros(1, 32, 4), torch.zeros(1, 256, 2, 2), KITTI)
    with pytest.raises(ValueError, match="no whole number of columns"):
        Ring(20, 1, 100)


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_a_query_cut_from_a_ring_is_found_at_its_bearing(ring):
    """Columns of a query are where the reference's own azimuths say: the sign and the zero of the bins."""
    own = torch.randn(ring.num_columns, 4, generator=torch.Generator().manual_seed(1))
    step = 360 / ring.num_columns
    for k in (0, 1, ring.num_bins // 2 + 1):
        heading = float(ring.headings_deg()[k])
        bearings = heading + (torch.arange(ring.num_seen) + 0.5 - ring.num_seen / 2) * step
        # column j of a ring looks at (j + 1/2) * step - 180
        columns = ((bearings + 180) / step - 0.5).round().long() % ring.num_columns
        scores = ring_scores(own[columns][None], own.flatten()[None, :, None, None], ring)[0, :, 0, 0]
        assert int(scores.argmax()) == k
        assert float(scores[k]) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("turned_left_deg", "expected"),
    [(0, {0: 1.0}), (9, {0: 0.5, 19: 0.5}), (27, {19: 0.5, 18: 0.5}), (350, {1: 0.555556, 0: 0.444444})],
)
def test_bin_targets(turned_left_deg, expected):
    """Numbers of the published code, whose angle runs counter-clockwise."""
    shares = VIGOR.shares(torch.tensor([-float(turned_left_deg)]))[0]
    wanted = torch.zeros(20)
    for number, share in expected.items():
        wanted[number] = share
    torch.testing.assert_close(shares, wanted, rtol=0, atol=1e-5)


def test_shares_sum_to_one_and_point_where_they_should():
    for ring in RINGS:
        heading = torch.linspace(-400, 400, 101)
        shares = ring.shares(heading)
        torch.testing.assert_close(shares.sum(1), torch.ones(101), rtol=0, atol=1e-4)
        unit = torch.polar(torch.ones(ring.num_bins), ring.headings_deg().deg2rad())
        found = (shares * unit).sum(1).angle().rad2deg()
        away = (found - heading + 180) % 360 - 180
        assert away.abs().max() < 2.0 * (ring.bin_deg / 60) ** 3 + 1e-3  # a chord is no arc


def test_priors_leave_the_bins_they_meet():
    prior = torch.tensor([[0.0, 0.0], [0.0, 45.0], [180.0, 20.0], [0.0, 180.0], [9.0, 0.0]])
    allowed = [set(row.nonzero()[:, 0].tolist()) for row in VIGOR.allowed(prior)]
    assert allowed[0] == {0}
    assert allowed[1] == {0, 1, 2, 3, 19, 18, 17}
    assert allowed[2] == {9, 10, 11}
    assert allowed[3] == set(range(20))
    assert allowed[4] == {0, 1}


# --- circular padding


def rolled_scores(name: str, *, azimuth: bool) -> list[torch.Tensor]:
    """Scores of a panorama, and of the same one turned by 18 degrees; normalized by the batch, or all would be tiny."""
    torch.manual_seed(0)
    pyramid = FeaturePyramid(name, 8, azimuth=azimuth).train()
    descriptors = QueryDescriptors(pyramid.channels[8], 2, [3], VIGOR)
    pano = Batch(query=torch.rand(1, 3, 16, 160), heading_deg=torch.zeros(1))
    reference = torch.randn(1, 60, 4, 4)
    turned = turn_panorama(pano, torch.tensor([18.0]))
    assert float(turned.heading_deg) == pytest.approx(18.0)
    with torch.no_grad():
        return [ring_scores(descriptors(pyramid(view.query)[8])[0], reference, VIGOR) for view in (pano, turned)]


@pytest.mark.parametrize("name", ["cvgl_small_pyramid", "efficientnet_b0", "resnet18"])
def test_turning_a_panorama_moves_the_best_bin_by_one(name):
    """By one column of the last map; what a bin gives for a place, the next one gives after the turn."""
    before, after = rolled_scores(name, azimuth=True)
    torch.testing.assert_close(after, before.roll(1, 1), rtol=0, atol=1e-4)
    best = [int(score.flatten(2).amax(2).argmax()) for score in (before, after)]
    assert best[1] == (best[0] + 1) % 20


def test_zero_padding_does_see_the_seam():
    """Without this the test above could not fail."""
    before, after = rolled_scores("cvgl_small_pyramid", azimuth=False)
    assert (after - before.roll(1, 1)).abs().max() > 1e-2


# --- targets and losses


def test_gaussian_stands_at_the_true_place():
    """512 px, sigma 4: no offset is index 255.5 (centre of the view), 10 px to the left 245.5.

    The published grid is 512/511 too wide and has 245.52 there.
    """
    columns = torch.arange(512.0)
    published = torch.linspace(0, 512, 512)
    for left, published_index in ((0.0, 255.5), (10.0, 245.52)):
        image = gaussian_at(torch.tensor([[256.0 - left, 256.0]]), (512, 512), 4.0)[0]
        share = image / image.sum()
        assert float((share.sum(0) * columns).sum()) == pytest.approx(255.5 - left, abs=1e-3)
        assert float((share.sum(1) * columns).sum()) == pytest.approx(255.5, abs=1e-3)
        theirs = torch.softmax(-((published - (256 - left)) ** 2) / 32, 0)
        assert float((theirs * columns).sum()) == pytest.approx(published_index, abs=5e-3)


def test_matching_loss_number():
    scores, labels = torch.tensor([0.5, 0.2, -0.1, 0.0]), torch.tensor([1, 0.5, 0.005, 0])
    assert float(matching_loss(scores.view(1, 1, 2, 2), labels.view(1, 1, 2, 2))) == pytest.approx(1.0573286, abs=1e-6)


def test_position_loss_is_the_entropy_at_best():
    place, size = torch.tensor([[3.2, 5.1]]), (9, 8)
    target = gaussian_at(place, size, 1.0)
    target = target / target.sum()
    best = -(target * target.log()).sum()
    assert float(position_loss(target.log(), place, 1.0)) == pytest.approx(float(best), abs=1e-5)
    assert float(position_loss(torch.zeros(1, 9, 8), place, 1.0)) == pytest.approx(math.log(72), abs=1e-5)


def test_direction_loss_by_hand():
    direction = torch.zeros(1, 2, 2, 2)
    direction[:, 0] = 1.0  # all cells say 0 degrees
    weight = torch.tensor([[[1.0, 0], [3, 0]]])
    assert float(direction_loss(direction, torch.tensor([60.0]), weight)) == pytest.approx(1.0, abs=1e-5)
    assert float(direction_loss(direction, torch.tensor([0.0]), weight)) == pytest.approx(0.0, abs=1e-6)


def test_level_labels_are_pooled_volumes():
    place = gaussian_at(torch.tensor([[5.0, 9.0]]), (16, 16), 2.0)
    shares = VIGOR.shares(torch.tensor([-9.0]))
    volume = place[:, None] * shares[:, :, None, None]
    torch.testing.assert_close(level_labels(place, shares, 4), F.max_pool2d(volume, 4))


# --- the system


@pytest.mark.parametrize(
    ("options", "views", "levels"),
    [
        ({}, (320, 640, 512), [1280, 640, 320, 160, 80, 40]),
        (
            {"num_bins": 16, "columns_per_bin": 8, "query_fov_deg": 90.0, "channels": [16, 8, 4, 2, 1, 1]},
            (256, 1024, 512),
            [2048, 1024, 512, 256, 128, 128],
        ),
    ],
)
def test_published_geometries_close_their_rings(options, views, levels):
    """Every map has as many channels as bins times the shift of one bin; the published KITTI maps have not."""
    height, width, side = views
    sized = ModelRecipe(
        name="x",
        views=ViewRecipe(query_height_px=height, query_width_px=width, reference_px=side),
        encoder=EncoderRecipe(backbone="cvgl_small_pyramid", pretrained=False, shared=False),
        options={"head_channels": 32, **options},
    )
    with torch.device("meta"):
        network = CCVPE(sized).network
    ring = network.ring
    found = [network.reference_ring.out_channels, *(stage.convs[-1].out_channels for stage in network.place)]
    assert found == levels
    for size, channels in zip(found, network.descriptors.reduce, strict=True):
        assert size == ring.num_bins * ring.columns_per_bin * channels.out_channels


class Says(nn.Module):
    """A network that knows."""

    def __init__(self, place_cells: torch.Tensor, heading_deg: torch.Tensor, size: int, bins: int) -> None:
        super().__init__()
        logits = gaussian_at(place_cells, (size, size), 1.5).clamp(min=1e-30).log()
        radians = heading_deg.deg2rad()
        direction = torch.stack([radians.cos(), radians.sin()], 1)[:, :, None, None].expand(-1, 2, size, size)
        self.found = Matches([torch.zeros(len(logits), bins, 2, 2)], logits, direction)

    def forward(self, *_: object, **__: object) -> Matches:
        return self.found


def test_perfect_maps_decode_to_the_place():
    """The camera in the middle of the reference is (0, 0) m; elsewhere it is where it is, between cells too."""
    model = system()
    cell_px = model.options.output_stride
    uv = torch.tensor([[32.0, 32.0], [40.0, 20.0], [33.0, 30.5]])
    headings = torch.tensor([0.0, 170.0, -170.0])
    model.network = Says(uv / cell_px, headings, 64 // cell_px, 8)
    pose = model.localize(dataclasses.replace(batch(), uv=torch.empty(0), heading_deg=torch.empty(0)))
    torch.testing.assert_close(pose.xy_m_B2, (uv - 32) * 0.5, rtol=0, atol=1e-3)
    assert torch.equal(pose.xy_m_B2[0], torch.zeros(2))
    torch.testing.assert_close(pose.yaw_deg_B, headings, rtol=0, atol=1e-3)
    assert (pose.radius95_m_B > 0).all()


def test_headings_from_bins():
    """Bins that fall off as a parabola about a bearing give it back, round the circle too; all levels count."""
    truth = torch.tensor([40.0, -10.0, 171.0])
    away = (truth[:, None] - VIGOR.headings_deg() + 180) % 360 - 180
    torch.testing.assert_close(
        (peak_heading_deg(-away.square(), VIGOR) - truth + 180) % 360 - 180, torch.zeros(3), rtol=0, atol=1e-3
    )
    barred = torch.full((1, 20), -torch.inf)
    barred[0, 4] = 0.3
    assert float(peak_heading_deg(barred, VIGOR)) == pytest.approx(72)
    model = system(heading="bins")
    place = torch.tensor([[4.0, 12.0], [8.0, 8.0], [13.0, 5.0]])
    said = Says(place, torch.zeros(3), 16, 8)
    headings = torch.tensor([90.0, -45.0, 30.0])
    bins = -((headings[:, None] - model.ring.headings_deg() + 180) % 360 - 180).square() / 1e4
    coarse, fine = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 8, 8, 8)
    for b, (u, v) in enumerate((place / 2).tolist()):
        rows, columns = (slice(math.floor(x - 0.5), math.ceil(x + 0.5)) for x in (v, u))
        fine[b, :, rows, columns] = bins[b, :, None, None]
    said.found.volumes[:] = [0 * coarse, fine]
    model.network = said
    torch.testing.assert_close(model.localize(batch()).yaw_deg_B, headings, rtol=0, atol=0.5)


def test_headings_are_kept_within_the_prior():
    model = system()
    model.network = Says(torch.full((3, 2), 8.0), torch.tensor([50.0, -175.0, 20.0]), 16, 8)
    prior = torch.tensor([[0.0, 0.0], [170.0, 10.0], [0.0, 180.0]])
    pose = model.localize(dataclasses.replace(batch(), heading_prior_deg=prior))
    torch.testing.assert_close(pose.yaw_deg_B, torch.tensor([0.0, 180.0, 20.0]), rtol=0, atol=1e-3)


def test_places_depend_on_the_prior_and_volumes_do_not():
    model = system()
    views = batch()
    open_, closed = (model._match(views, torch.tensor([[0.0, width]]).expand(3, 2), None) for width in (180.0, 0.0))
    torch.testing.assert_close(open_.volumes[0], closed.volumes[0])
    assert not torch.allclose(open_.logits_BHW, closed.logits_BHW)


def test_shapes_of_everything():
    model = system()
    found = model._match(batch(), torch.tensor([[0.0, 180.0]]).expand(3, 2), None)
    assert [tuple(volume.shape) for volume in found.volumes] == [(3, 8, 4, 4), (3, 8, 8, 8)]
    assert found.logits_BHW.shape == (3, 16, 16)
    torch.testing.assert_close(found.direction_B2HW.norm(dim=1), torch.ones(3, 16, 16))
    pose = model.localize(batch())
    assert pose.score_map_BHW.shape == (3, 16, 16)
    torch.testing.assert_close(pose.cell_size_m_B, torch.full((3,), 2.0))


def test_localize_reads_no_labels():
    model = system()
    told = model.localize(batch())
    untold = model.localize(dataclasses.replace(batch(), uv=torch.empty(0), heading_deg=torch.empty(0)))
    assert torch.equal(told.score_map_BHW, untold.score_map_BHW)


def test_training_step_has_gradients_everywhere():
    model = system().train()
    terms = model.training_step(batch())
    assert set(terms) == {"matching", "position", "direction"}
    sum(terms.values()).backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    # a layer followed by a batch normalization has no use for its bias; these have none, so all must move
    assert missing == []


def test_a_few_steps_overfit_two_pairs():
    torch.manual_seed(0)
    model = CCVPE(recipe(matching_weight=1.0, position_weight=1.0, direction_weight=1.0)).train()
    pairs = dataclasses.replace(batch(2), heading_deg=torch.tensor([0.0, 90.0]))
    pairs = dataclasses.replace(pairs, uv=torch.tensor([[12.0, 20.0], [50.0, 44.0]]))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model.training_step(pairs).values()).backward()
        optimizer.step()
    pose = model.localize(pairs)  # in training mode: two pairs are too few for running statistics
    error_m = (pose.xy_m_B2 - (pairs.uv - 32) * 0.5).norm(dim=1)
    assert error_m.max() < 2.5  # a cell is 2 m, the centre 11 m and more away
    assert ((pose.yaw_deg_B - pairs.heading_deg + 180) % 360 - 180).abs().max() < 20


def test_masked_columns_do_not_count():
    """Whatever the features of the masked half are, volumes stay the same; a full mask changes nothing."""
    model = system()
    rings, _ = model.network.describe(batch().query, None, None)
    reference = torch.randn(3, 8 * 4, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 1, 32, 64)
    full, _ = model.network.describe(batch().query, None, mask)
    torch.testing.assert_close(full[0], rings[0])
    mask[..., 16:40] = 0
    _, weight = model.network.describe(batch().query, None, mask)
    torch.testing.assert_close(weight, torch.tensor([1.0, 1, 0, 0, 0, 1, 1, 1]).expand(3, 8))
    changed = rings[0].clone()
    changed[:, 2:5] += 5.0
    torch.testing.assert_close(
        ring_scores(changed, reference, model.ring, weight), ring_scores(rings[0], reference, model.ring, weight)
    )
    assert not torch.allclose(ring_scores(changed, reference, model.ring), ring_scores(rings[0], reference, model.ring))
    logits, cell_m = model.score_map(batch(), mask)
    plain, _ = model.score_map(batch())
    assert not torch.allclose(logits, plain)
    torch.testing.assert_close(model.score_map(batch(), torch.ones(3, 1, 4, 8))[0], plain)
    assert model.score_map(batch(), torch.zeros(3, 1, 4, 8))[0].isfinite().all()
    torch.testing.assert_close(cell_m, torch.full((3,), 2.0))


FOCAL, WIDTH = 145.745, 256  # KITTI at a quarter of the size, 82.6 degrees


def camera_at(center: float) -> torch.Tensor:
    """Return the intrinsics of a camera whose optical axis meets the picture in a column."""
    return torch.tensor([[FOCAL, 0, center], [0, FOCAL, 32], [0, 0, 1]])[None]


def in_cells(camera: torch.Tensor) -> torch.Tensor:
    """Return the intrinsics for a picture that is one pixel for each cell of the map, 64 wide."""
    return camera * torch.tensor([0.25, 1, 1])[:, None]


def azimuths_deg(center: float) -> torch.Tensor:
    """Return where the 64 cells of a map look, clockwise of the optical axis."""
    return torch.atan((torch.arange(64) * 4 + 2.0 - center) / FOCAL).rad2deg()


@pytest.mark.parametrize(("center", "seen_from", "seen_to"), [(130.0, 1, 31), (60.0, 8, 32), (196.0, 0, 24)])
def test_pinhole_columns_are_spread_by_azimuth(center, seen_from, seen_to):
    """A map that holds its own azimuth comes out evenly spaced about the optical axis, wherever that is in the picture.

    Columns beyond the picture weigh nothing.
    """
    own = azimuths_deg(center).expand(1, 1, 5, 64)
    columns, seen = columns_by_azimuth(own, camera_at(center), WIDTH, 32, 90.0)
    expected = (torch.arange(32) + 0.5 - 16) * 90 / 32
    in_picture = [0 <= center + FOCAL * math.tan(math.radians(angle)) <= WIDTH for angle in expected.tolist()]
    assert seen[0].tolist() == [float(inside) for inside in in_picture]
    assert [seen_from <= column < seen_to for column in range(32)] == in_picture
    inner = slice(seen_from + 1, seen_to - 1)  # the outermost may lie beyond the middle of the last cell
    torch.testing.assert_close(columns[0, 0, 2, inner], expected[inner], rtol=0, atol=0.05)
    assert not columns[0, 0, :, seen[0] == 0].any()


def test_pinhole_columns_of_a_mirrored_picture_are_mirrored():
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 5, 64, generator=generator)
    before = Batch(
        query=picture, reference=torch.zeros(1, 3, 8, 8), uv=torch.zeros(1, 2), heading_deg=torch.tensor([30.0]),
        camera_B33=in_cells(camera_at(60.0)),
    )  # fmt: skip
    after = flip(before, torch.tensor([True]))
    (one, seen), (other, seen_other) = (
        columns_by_azimuth(b.query, b.camera_B33, 64, 32, 90.0) for b in (before, after)
    )
    assert not torch.equal(seen, seen.flip(1))
    assert torch.equal(seen_other, seen.flip(1))
    torch.testing.assert_close(other, one.flip(3), rtol=0, atol=1e-4)


@pytest.mark.parametrize("center", [60.0, 130.0, 196.0])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_pinhole_camera_is_found_where_its_axis_looks(center, mirror):
    """Its heading is that of the optical axis, as everywhere else, not of the picture's middle 25 degrees beside."""
    phase = torch.tensor([0.0, 1.0, 2.5, 4.0])

    def looks(bearing_deg: torch.Tensor) -> torch.Tensor:
        """Return what is seen in a direction, (..., 4)."""
        return (bearing_deg.deg2rad()[..., None] * torch.tensor([1.0, 2.0, 3.0, 5.0]) + phase).sin()

    sign = -1.0 if mirror else 1.0
    around = looks(sign * ((torch.arange(128) + 0.5) * (360 / 128) - 180))
    for k in (0, 5, 12):
        heading = float(KITTI.headings_deg()[k])
        seen = looks(heading + azimuths_deg(center)).T[None, :, None].expand(-1, -1, 3, -1)
        pair = Batch(
            query=seen, reference=torch.zeros(1, 3, 8, 8), uv=torch.zeros(1, 2), heading_deg=torch.tensor([heading]),
            camera_B33=in_cells(camera_at(center)),
        )  # fmt: skip
        pair = flip(pair, torch.tensor([mirror]))
        columns, weight = columns_by_azimuth(pair.query, pair.camera_B33, 64, 32, 90.0)
        scores = ring_scores(columns[:, :, 1].transpose(1, 2), around.flatten()[None, :, None, None], KITTI, weight)
        found = peak_heading_deg(scores[:, :, 0, 0], KITTI)
        assert int(scores.argmax()) == (-k % 16 if mirror else k)
        assert float((found - pair.heading_deg + 180) % 360 - 180) == pytest.approx(0, abs=3.0)
        assert float(scores.max()) > 0.999


def test_half_precision_does_not_move_columns():
    """A place in bfloat16 would be off by a sixth of a cell here; only the values may be rounded."""
    own = torch.linspace(-1, 1, 64).expand(1, 1, 5, 64).bfloat16()
    exact, _ = columns_by_azimuth(own.float(), camera_at(60.0), WIDTH, 32, 90.0)
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", torch.bfloat16)):
        with context:
            half, seen = columns_by_azimuth(own, camera_at(60.0), WIDTH, 32, 90.0)
        assert half.dtype == seen.dtype == torch.bfloat16
        assert torch.equal(half, exact.bfloat16())


def test_pinhole_queries_are_located():
    model = system(num_bins=8, columns_per_bin=4, query_fov_deg=90.0)
    camera = torch.tensor([[36.0, 0, 32], [0, 36, 16], [0, 0, 1]]).expand(3, 3, 3)
    pose = model.localize(dataclasses.replace(batch(), camera_B33=camera))
    assert pose.xy_m_B2.isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_bins": 9}, "8 columns"),
        ({"channels": [4, 2, 1, 1, 1]}, "can be halved 4 times"),
        ({"direction_channels": [4]}, "must have 2 numbers"),
        ({"query_stride": 12}, "power of 2"),
        ({"query_fov_deg": 100.0}, "no whole number of columns"),
        ({"bins": 3}, "options.bins"),
    ],
)
def test_options_that_do_not_fit_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        system(**options)


def test_one_encoder_for_both_views_is_refused():
    wanted = dataclasses.replace(recipe(), encoder=EncoderRecipe(backbone="cvgl_small_pyramid", pretrained=False))
    with pytest.raises(RecipeError, match=r"encoder\.shared to false"):
        CCVPE(wanted)


def test_a_training_step_waits_for_nothing():
    model, pairs = system().train(), batch()
    with Unread():
        sum(model.training_step(pairs).values()).backward()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Unread():
        pairs.uv.max().item()


def test_mixed_precision_stays_finite():
    """bf16 autocast, training and inference; the loss is that of full precision within its rounding."""
    model = system().train()
    plain = sum(model.training_step(batch()).values())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sum(model.training_step(batch()).values())
        pose = model.eval().localize(batch())
    assert float(mixed.detach()) == pytest.approx(float(plain.detach()), rel=0.1)
    mixed.backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    assert pose.xy_m_B2.isfinite().all()
    assert pose.score_map_BHW.dtype == torch.float32


def test_pinhole_columns_are_not_waited_for(monkeypatch):
    maps, cameras = torch.zeros(2, 3, 5, 64), camera_at(60.0).repeat(2, 1, 1)
    with pretended_device(monkeypatch) as device:
        maps, cameras = device.tensor(maps), device.tensor(cameras)
        with device.listed() as found:
            columns, seen = columns_by_azimuth(maps, cameras, WIDTH, 32, 90.0)
        assert found == []
        assert columns.shape == (2, 3, 5, 32)
        assert columns.device == seen.device == CUDA
