"""HC-Net: top views, corners and losses against numbers worked out by hand; the system on small pictures."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from pretended import Unread
from torch import nn
from torch.nn import functional as F

from cvgl_data.errors import RecipeError
from cvgl_data.geo import distance_m, pixel_from_lonlat
from cvgl_models.geometry.ground import panorama_places
from cvgl_models.geometry.homography import apply_homography, homography_from_corners
from cvgl_models.recipe import EncoderRecipe, ModelRecipe, ViewRecipe
from cvgl_models.systems.hcnet import HCNet, losses
from cvgl_models.systems.hcnet.network import Estimate
from cvgl_models.systems.hcnet.views import TopView, panorama_top_view, pinhole_top_view
from cvgl_models.transforms import Batch, turn_panorama

OPTIONS = {"top_view_px": 32, "stride": 4, "hidden": 32, "iterations": 2, "normalize": True, "temperature": 0.1}


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
    return ModelRecipe(name="toy", system="hcnet", views=views, encoder=encoder, options={**OPTIONS, **options})


def system(**options) -> HCNet:
    torch.manual_seed(0)
    return HCNet(recipe(**options)).eval()


def batch(size: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        query=torch.rand(size, 3, 32, 64, generator=generator),
        reference=torch.rand(size, 3, 64, 64, generator=generator),
        uv=16 + torch.rand(size, 2, generator=generator) * 32,
        heading_deg=torch.zeros(size),
        heading_prior_deg=torch.zeros(size, 2),
        gsd_m=torch.full((size,), 1.0),
    )


# --- the spherical transform


@pytest.mark.parametrize(
    ("row", "column", "x", "y"),
    [
        (0, 256, 0, 0.055556),
        (256, 511, 0.5, 0.055772),
        (256, 0, -0.5, 0.055556),
        (256, 256, None, 1),
        (200, 256, 0, 0.242209),
        (128, 128, -0.25, 0.078369),
    ],
)
def test_spherical_transform_numbers(row, column, x, y):
    """Published coordinates of a 512 px view of 170 degrees, to all their digits.

    They are angles of the panorama: x of half a turn from its centre, y of a quarter below the horizon. The published
    index k is the corner between two of 512 pixels, so the centre of pixel k of 513 of the same size: that view is
    looked at, of a panorama that holds its own angles. Straight down there is no bearing.
    """
    height, camera_m = 1024, 2.0
    angles = (torch.arange(2 * height, dtype=torch.float64) + 0.5) / height - 1
    below = (torch.arange(height, dtype=torch.float64) + 0.5) / height * 2 - 1
    pano = torch.stack(
        [
            (angles * math.pi).sin().expand(height, -1),
            (angles * math.pi).cos().expand(height, -1),
            below[:, None].expand(-1, 2 * height),
        ]
    )[None]
    one_more_deg = 2 * math.degrees(math.atan(513 / 512 * math.tan(math.radians(85))))
    view = panorama_top_view(pano, torch.zeros(1), 513, one_more_deg, camera_m)
    assert camera_m / view.meters_per_px == pytest.approx(22.3971, abs=5e-5)
    assert view.meters_per_px * 256 == pytest.approx(11.43 * camera_m, abs=0.01)
    sin, cos, looked_y = (float(value) for value in view.image_BCSS[0, :, row, column])
    u_BSS, v_BSS = panorama_places(513, torch.tensor([view.meters_per_px]), camera_m)
    if x is not None:
        assert math.atan2(sin, cos) / math.pi == pytest.approx(x, abs=1e-6)
        assert 2 * float(u_BSS[0, row, column]) - 1 == pytest.approx(x, abs=1e-6)
    # an image ends half a pixel above its lower edge
    assert looked_y == pytest.approx(min(y, 1 - 1 / height), abs=1e-6)
    assert 2 * float(v_BSS[0, row, column]) - 1 == pytest.approx(y, abs=1e-6)


def test_the_view_that_is_trained_with_has_its_centre_between_pixels():
    """512 px: the published formula, with the half pixel between an index and the centre of its pixel."""
    height = 256
    below = ((torch.arange(height, dtype=torch.float64) + 0.5) / height * 2 - 1)[:, None].expand(1, 1, -1, 2 * height)
    view = panorama_top_view(below, torch.zeros(1), 512, 170.0, 2.0)
    assert view.camera_B2.tolist() == [[256.0, 256.0]]
    offset_px = 255.5 - torch.arange(512, dtype=torch.float64)
    away_px = torch.hypot(offset_px[:, None], offset_px)
    expected = 2 / math.pi * torch.atan2(torch.tensor(256 / math.tan(math.radians(85))), away_px)
    torch.testing.assert_close(view.image_BCSS[0, 0], expected.clamp(max=1 - 1 / height), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("turned_deg", "ray"), [(0, "up"), (90, "left"), (-90, "right"), (180, "down")])
def test_bright_column_becomes_a_ray(turned_deg, ray):
    """The centre column is up; a panorama rolled so that its centre looks 90 degrees to the right has it at left."""
    pano = torch.zeros(1, 3, 64, 128)
    pano[..., 62:66] = 1
    rolled = turn_panorama(Batch(query=pano, heading_deg=torch.zeros(1)), torch.tensor([float(turned_deg)]))
    image = panorama_top_view(rolled.query, torch.zeros(1), 65, 170.0, 2.0).image_BCSS[0, 0]
    places = {"up": (8, 32), "down": (56, 32), "left": (32, 8), "right": (32, 56)}
    assert image[places[ray]] > 0.9
    assert all(image[place] < 0.1 for name, place in places.items() if name != ray)
    # laid out at its true bearing, it is up again, whatever the roll
    upright = panorama_top_view(rolled.query, -rolled.heading_deg, 65, 170.0, 2.0).image_BCSS[0, 0]
    assert upright[8, 32] > 0.9


def test_rotated_pair_decodes_to_its_heading():
    """The label of a rolled panorama is the heading of the homography that lays its top view over the old one."""
    pano = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    pano = F.interpolate(pano, (128, 256), mode="bicubic", align_corners=False)
    straight = panorama_top_view(pano, torch.zeros(1), 64, 170.0, 2.0)
    for angle in (-90.0, 45.0, 22.5):
        rolled = turn_panorama(Batch(query=pano, heading_deg=torch.zeros(1)), torch.tensor([angle]))
        view = panorama_top_view(rolled.query, torch.zeros(1), 64, 170.0, 2.0)
        matrix = view.pose(straight.camera_B2, rolled.heading_deg, torch.tensor([straight.meters_per_px]))
        rows, columns = torch.meshgrid(torch.arange(20, 44) + 0.5, torch.arange(20, 44) + 0.5, indexing="ij")
        points = torch.stack([columns, rows], -1).view(1, -1, 2)

        def values(image, places):
            return F.grid_sample(image, places[:, None] / 32 - 1, align_corners=False)

        here, there = values(view.image_BCSS, points), values(straight.image_BCSS, apply_homography(matrix, points))
        wrong = values(straight.image_BCSS, apply_homography(matrix.transpose(1, 2) * 0 + torch.eye(3), points))
        assert (here - there).abs().mean() < 0.02
        assert (here - wrong).abs().mean() > 0.05
        found = losses.heading_terms(matrix[None], view.camera_B2, view.arm_px, torch.tensor([angle]))
        assert float(found) == pytest.approx(0, abs=1e-3)


def test_pinhole_top_view_has_the_camera_below():
    """A marking straight ahead is straight up; one to the right is at the right; what is not seen is black."""
    camera = torch.tensor([[100.0, 0, 64], [0, 100, 32], [0, 0, 1]])[None]
    image = torch.zeros(1, 3, 64, 128)
    # 10 m ahead, 1.65 m below: v = 32 + 16.5; 3 m to the right of it: u = 64 + 30
    image[..., 46:51, 60:68] = 1
    image[:, 0, 46:51, 89:99] = 0.5
    view = pinhole_top_view(image, camera, 40, 20.0, 1.65)
    assert view.camera_B2.tolist() == [[20.0, 40.0]]
    found = view.image_BCSS[0]
    assert found[1, 19:21, 19:21].max() > 0.5  # 10 m are 20 of the pixels
    assert found[0, 19:21, 25:27].max() > 0.2
    assert found[1, :, 25:27].max() == 0
    assert not found[:, 38:, :15].any()  # beside the camera


# --- losses


def test_iteration_weights():
    weights = losses.iteration_weights(6, 0.85)
    expected = torch.tensor([0.443705, 0.522006, 0.614125, 0.7225, 0.85, 1.0])
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    assert weights.sum().item() == pytest.approx(4.152337, abs=1e-6)


def test_terms_by_hand():
    """A shift by (6, -2) instead of (0, 0) in a 256 px reference, turned by 350 instead of 5 degrees."""
    view = TopView(torch.zeros(1, 3, 256, 256), torch.full((1, 2), 128.0), 1.0, torch.zeros(1))
    matrix = view.pose(torch.tensor([[134.0, 126.0]]), torch.tensor([350.0]), torch.ones(1))[None]
    truth, px = torch.tensor([[128.0, 128.0]]), 0.5
    squared = losses.position_terms(matrix, view.camera_B2, truth, px, squared=True)
    assert float(squared) == pytest.approx((12**2 + 4**2) / 2, rel=1e-5)
    plain = losses.position_terms(matrix, view.camera_B2, truth, px, squared=False)
    assert float(plain) == pytest.approx(8, rel=1e-5)
    turned = losses.heading_terms(matrix, view.camera_B2, view.arm_px, torch.tensor([5.0]))
    assert float(turned) == pytest.approx(15, abs=1e-3)
    corners = apply_homography(matrix[0], view.corners())
    shifted = corners + torch.tensor([3.0, -1.0])
    assert float(losses.corner_terms(shifted[None], corners, px)) == pytest.approx(4, rel=1e-5)


def test_heading_loss_goes_the_short_way_round():
    view = TopView(torch.zeros(1, 3, 64, 64), torch.full((1, 2), 32.0), 1.0, torch.zeros(1))
    matrix = view.pose(view.camera_B2, torch.tensor([179.0]), torch.ones(1))[None]
    found = losses.heading_terms(matrix, view.camera_B2, view.arm_px, torch.tensor([-179.0]))
    assert float(found) == pytest.approx(2.0, abs=1e-3)


def test_place_loss_reads_between_cells():
    """The middle of a map of 16 cells lies between cells 7 and 8: index 7.5, where the published code takes 8."""
    log_p = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0)).flatten(1).log_softmax(1).view(1, 16, 16)
    found = losses.place_loss(log_p, torch.tensor([[8.0, 8.0]]))
    assert float(found) == pytest.approx(-float(log_p[0, 7:9, 7:9].mean()), abs=1e-5)
    at_centre = losses.place_loss(log_p, torch.tensor([[3.5, 9.5]]))
    assert float(at_centre) == pytest.approx(-float(log_p[0, 9, 3]), abs=1e-5)
    at_edge = losses.place_loss(log_p, torch.tensor([[15.9, 3.5]]))  # no free zero beyond the last centre
    assert float(at_edge) == pytest.approx(-float(log_p[0, 3, 15]), abs=1e-5)


def test_place_map_is_a_mixture():
    """All trust: a Gaussian about the place; none: the appearance map; both sum to 1 and are mixed in between."""
    camera_map = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0)).flatten(1).log_softmax(1)
    camera_map = camera_map.view(1, 8, 8)
    place = torch.tensor([[5.0, 2.0]])
    maps = {
        trust: losses.place_map(camera_map, place, torch.tensor([[0.0, trust]]), 4).exp() for trust in (-30.0, 0, 30)
    }
    for image in maps.values():
        assert image.shape == (1, 32, 32)
        assert float(image.sum()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(maps[0], (maps[-30.0] + maps[30]) / 2)
    near = maps[30][0]
    cells = (torch.arange(32) + 0.5) / 4
    mean = torch.stack([(near.sum(0) * cells).sum(), (near.sum(1) * cells).sum()])
    torch.testing.assert_close(mean, torch.tensor([5.0, 2.0]), rtol=0, atol=0.1)
    spread = (near.sum(0) * (cells - mean[0]).square()).sum().sqrt()
    assert float(spread) == pytest.approx(1.0, abs=0.05)
    fine = F.interpolate(camera_map[:, None], scale_factor=4, mode="bilinear")[0, 0].flatten().softmax(0)
    torch.testing.assert_close(maps[-30.0].flatten(), fine)


def test_cell_loss_reads_the_cell_and_skips_what_is_outside():
    log_p = torch.arange(16.0).view(1, 4, 4).expand(2, 4, 4)
    assert float(losses.cell_loss(log_p, torch.tensor([[2.9, 1.1], [7.0, 1.0]]))) == pytest.approx(-6.0)
    assert float(losses.cell_loss(log_p, torch.full((2, 2), -1.0))) == 0


def test_mercator_truth_numbers():
    """Where the panorama lies in the 640 px tile about a satellite image's centre, and how far from it."""
    satellite, pano = (-122.32484011, 47.58619123), (-122.324936, 47.586118)
    for origin, other, expected in (
        (satellite, pano, (248.49923, 400.95745)),
        (pano, satellite, (391.50077, 239.04255)),
    ):
        here, there = (pixel_from_lonlat(*place, 20) for place in (origin, other))
        found = [float(b - a) + 320 for a, b in zip(here, there, strict=True)]
        assert found == pytest.approx(expected, abs=2e-4)
    assert float(distance_m(*satellite, *pano)) == pytest.approx(10.86394, abs=2e-4)


# --- the system


def told(model: HCNet, matrix: torch.Tensor) -> list[torch.Tensor]:
    """Let the network know where the camera is, and return a list that will hold the starts it is given."""
    starts = []

    def forward(query, reference, start, iterations) -> Estimate:
        del query, reference, iterations
        starts.append(start)
        return Estimate(matrix[None], start[None], torch.zeros(len(start), 2))

    model.network.forward = forward
    return starts


def views_of(model: HCNet, views: Batch) -> TopView:
    return model._estimate(views, views.heading_prior_deg, None)[0]


@pytest.mark.parametrize("expected_deg", [0.0, 100.0])
def test_perfect_homographies_decode_to_the_pose(expected_deg):
    model = system()
    uv, heading = torch.tensor([[32.0, 32.0], [40.0, 20.0], [9.5, 50.0]]), torch.tensor([100.0, 90.0, 130.0])
    prior = torch.tensor([[expected_deg, 180.0]]).expand(3, 2)
    views = dataclasses.replace(batch(), uv=torch.empty(0), heading_deg=torch.empty(0), heading_prior_deg=prior)
    told(model, views_of(model, views).pose(uv, heading, views.gsd_m))
    pose = model.localize(views)
    torch.testing.assert_close(pose.xy_m_B2, uv - 32, rtol=0, atol=1e-4)
    torch.testing.assert_close(pose.yaw_deg_B, heading, rtol=0, atol=1e-3)
    assert pose.score_map_BHW.shape == (3, 64, 64)
    torch.testing.assert_close(pose.cell_size_m_B, torch.ones(3))
    assert pose.origin == (31.5, 31.5)
    assert (pose.radius95_m_B > 0).all()


def test_start_is_the_centre_at_true_scale():
    """57 m of ground in a reference of 64 m: the corners start 28.6 px from its middle; published: pixel on pixel."""
    for known, half in ((True, 2.5 * math.tan(math.radians(85))), (False, 32.0)):
        model = system(known_scale=known)
        starts = told(model, torch.eye(3).expand(3, 3, 3))
        model.localize(batch())
        expected = 32 + half * torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])
        torch.testing.assert_close(starts[0], expected.expand(3, 4, 2), rtol=0, atol=1e-3)


def test_appearance_moves_the_start():
    """With that option the camera begins at the peak of its map, wherever the corners were."""
    model = system(start="appearance")
    peak = torch.full((3, 16, 16), -9.0)
    peak[:, 3, 10] = 9.0
    model.network.camera_scores = lambda *_: peak
    starts = told(model, torch.eye(3).expand(3, 3, 3))
    model.localize(batch())
    torch.testing.assert_close(starts[0].mean(1), torch.tensor([42.0, 14.0]).expand(3, 2), rtol=0, atol=1e-2)


def test_several_headings_are_tried():
    """The view whose camera fits goes on, with its own "up"; those beyond the prior are left out."""
    model = system(headings=4, start="appearance")
    scores = torch.zeros(2, 4, 16, 16)
    scores[0, 3, 5, 6] = 30.0
    scores[1, 3, 5, 6] = 30.0
    scores[1, 0, 9, 2] = 20.0
    model.network.camera_scores = lambda *_: scores.flatten(0, 1)
    views = dataclasses.replace(batch(2), heading_prior_deg=torch.tensor([[10.0, 180.0], [10.0, 45.0]]))
    starts = told(model, torch.eye(3).expand(2, 3, 3))
    view, _, found, number = model._estimate(views, views.heading_prior_deg, None)
    assert number.tolist() == [3, 0]
    torch.testing.assert_close(view.up_deg_B, torch.tensor([-280.0, -10.0]))
    assert found.isfinite().flatten(2).all(2).tolist() == [[True] * 4, [True, False, False, False]]
    expected = torch.tensor([[26.0, 22.0], [10.0, 38.0]])
    torch.testing.assert_close(starts[0].mean(1), expected, rtol=0, atol=1e-2)
    # at the heading it was laid out for, a view stands upright, whichever it is
    assert (starts[0][:, 1, 1] - starts[0][:, 0, 1]).abs().max() < 1e-3
    chosen = model._estimate(views, views.heading_prior_deg, torch.tensor([-70.0, 40.0]))[3]
    assert chosen.tolist() == [3, 0]


def test_views_at_several_headings_are_turned_panoramas():
    model = system(headings=4)
    views = dataclasses.replace(batch(1), heading_prior_deg=torch.tensor([[0.0, 180.0]]))
    for number in range(4):
        turned = model._estimate(views, views.heading_prior_deg, torch.tensor([90.0 * number]))[0]
        plain = panorama_top_view(views.query, torch.zeros(1), 32, 170.0, 2.5).image_BCSS
        # the ground of a camera that looks east has its centre column at the right
        torch.testing.assert_close(turned.image_BCSS, plain.rot90(-number, (-2, -1)), rtol=0, atol=1e-4)


def test_iterations_look_where_the_homography_says():
    """A mover that steps one cell to the right each time moves everything by one cell."""

    class Right(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[torch.Tensor] = []

        def forward(self, found):
            self.seen.append(found)
            return torch.tensor([1.0, 0.0]).expand(len(found), 4, 2), torch.zeros(len(found), 2)

    model = system(iterations=3)
    model.network.mover = Right()
    views = batch()
    view, estimate, _, _ = model._estimate(views, views.heading_prior_deg, None)
    placed = apply_homography(estimate.matrices_IB33[-1], view.camera_B2[:, None])[:, 0]
    torch.testing.assert_close(placed, torch.full((3, 2), 32.0) + torch.tensor([12.0, 0.0]), rtol=0, atol=1e-3)
    # the correlation at the middle of the next window is that one to the right of the middle before
    first, second = model.network.mover.seen[:2]
    torch.testing.assert_close(second[:, 40], first[:, 41], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(second[:, -2], first[:, -2] + 1 / 8, rtol=0, atol=1e-4)


def test_localize_reads_no_labels_and_keeps_a_known_heading():
    model = system()
    labeled = model.localize(batch())
    untold = model.localize(dataclasses.replace(batch(), uv=torch.empty(0), heading_deg=torch.empty(0)))
    assert torch.equal(labeled.xy_m_B2, untold.xy_m_B2)
    assert torch.equal(labeled.yaw_deg_B, torch.zeros(3))


def test_training_step_has_gradients_everywhere():
    model = system(corner_weight=0.1).train()
    terms = model.training_step(batch())
    assert set(terms) == {"homography", "appearance", "spread"}
    sum(terms.values()).backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None]
    assert missing == []


def test_both_views_can_share_an_encoder():
    own, shared = system(), recipe()
    shared = HCNet(dataclasses.replace(shared, encoder=dataclasses.replace(shared.encoder, shared=True)))
    assert shared.network.query is shared.network.reference
    assert own.network.query is not own.network.reference
    encoder = sum(parameter.numel() for parameter in own.network.query.parameters())
    assert sum(map(torch.numel, own.parameters())) - sum(map(torch.numel, shared.parameters())) == encoder


def test_spread_trains_nothing_else():
    model = system(position_weight=0.0, heading_weight=0.0, appearance_weight=0.0).train()
    sum(model.training_step(batch()).values()).backward()
    moved = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved == {"network.mover.spread.weight", "network.mover.spread.bias"}


def test_a_few_steps_overfit_two_pairs():
    torch.manual_seed(0)
    model = HCNet(recipe(squared=False)).train()
    pairs = dataclasses.replace(
        batch(2), uv=torch.tensor([[20.0, 24.0], [42.0, 38.0]]), heading_deg=torch.tensor([0.0, 30.0]),
        heading_prior_deg=torch.tensor([[0.0, 180.0]]).expand(2, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model.training_step(pairs).values()).backward()
        optimizer.step()
    pose = model.localize(pairs)
    assert (pose.xy_m_B2 - (pairs.uv - 32)).norm(dim=1).max() < 3  # 12 and 14 m from the centre
    assert (pose.yaw_deg_B - pairs.heading_deg).abs().max() < 8


def test_pinhole_queries_are_located():
    model = system(top_view_m=30.0)
    camera = torch.tensor([[36.0, 0, 32], [0, 36, 16], [0, 0, 1]]).expand(3, 3, 3)
    prior = torch.tensor([[90.0, 10.0]]).expand(3, 2)
    views = dataclasses.replace(batch(), camera_B33=camera, heading_prior_deg=prior)
    pose = model.localize(views)
    assert ((pose.yaw_deg_B - 90).abs() <= 10.001).all()
    told(model, views_of(model, views).pose(torch.full((3, 2), 40.0), torch.full((3,), 95.0), views.gsd_m))
    pose = model.localize(views)
    torch.testing.assert_close(pose.yaw_deg_B, torch.full((3,), 95.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(pose.xy_m_B2, torch.full((3, 2), 8.0), rtol=0, atol=1e-3)


def test_corner_displacements_are_the_parametrization():
    """What the network moves are corners: all by the same is a shift."""
    box = torch.tensor([[[0.0, 0], [32, 0], [0, 32], [32, 32]]])
    matrix = homography_from_corners(box, box + torch.tensor([3.0, -2.0]))
    expected = torch.tensor([[[1.0, 0, 3], [0, 1, -2], [0, 0, 1]]])
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_view_px": 48}, "powers of 2"),
        ({"hidden": 20}, "multiple of 16"),
        ({"start": "somewhere"}, "expected one of: center, appearance"),
        ({"num_levels": 6}, "multiple of 128"),
        ({"levels": 3}, "options.levels"),
        ({"headings": 0}, "at least 1"),
    ],
)
def test_options_that_do_not_fit_are_named(options, said):
    with pytest.raises(RecipeError, match=said):
        system(**options)


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
