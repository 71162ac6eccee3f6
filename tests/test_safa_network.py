import pytest
import torch
from safa_pairs import batch, system
from torch import nn
from torch.nn import functional as F

from cvgl_data.errors import RecipeError
from cvgl_models.aggregators.spatial_attention import SpatialAttention
from cvgl_models.backbones import create_backbone
from cvgl_models.backbones.shallow import Shallow
from cvgl_models.geometry import control_points, polar_transform
from cvgl_models.recipe import load_recipe
from cvgl_models.systems.safa import Safa
from cvgl_models.systems.safa.front_ends import Localizer, ResidualBlock, _cells, polar_places

torch.set_num_threads(1)


def test_attention_written_out():
    torch.manual_seed(0)
    head = SpatialAttention(5, (2, 3), heads=2)
    map_BChw = torch.randn(2, 5, 2, 3)
    expected = []
    for image in map_BChw.flatten(2):
        for k in range(2):
            weight = (image.amax(0) @ head.down[k] + head.down_bias[k, 0]) @ head.up[k] + head.up_bias[k, 0]
            expected.append((image * weight).sum(1))
    torch.testing.assert_close(head(map_BChw), torch.stack(expected).reshape(2, 10))
    assert head.down.shape == (2, 6, 3)
    wide = torch.randn(1, 5, 4, 9)
    torch.testing.assert_close(head(wide), head(F.interpolate(wide, (2, 3), mode="bilinear", antialias=True)))


def test_the_published_network():
    with torch.device("meta"):
        built = Safa(load_recipe("safa-cvusa", ["encoder.pretrained=false"]))
    assert built.encoder.query is not built.encoder.reference
    for branch in (built.encoder.query, built.encoder.reference):
        assert branch.aggregator.grid == (14, 77)
        assert branch.aggregator.num_features == 2048
        assert sum(p.numel() for p in branch.aggregator.parameters()) == 8 * (2 * 1078 * 539 + 1078 + 539)
        assert sum(p.numel() for p in branch.backbone.parameters()) == 8_170_304
    with torch.device("meta"):
        built = Safa(load_recipe("safa-vigor", ["encoder.pretrained=false"]))
    assert built.encoder.query.aggregator.grid == (20, 40)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 256), ("convnext_atto", 80), ("cvgl_small_cnn", 128)])
def test_any_convolutional_network_gives_a_map_at_stride_8(name, channels):
    backbone = Shallow(create_backbone(name), 8, name)
    images = torch.rand(2, 3, 64, 96)
    assert backbone.forward_features(images).shape == (2, channels, 8, 12)
    assert backbone.map_channels == backbone.num_features == channels
    backbone(images).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters()), "a layer that is not used was left in"


def test_networks_without_such_a_map():
    with pytest.raises(RecipeError, match="at a stride of 5, but at 4, 8, 16, 32"):
        Shallow(create_backbone("convnext_atto"), 5, "convnext_atto")
    with pytest.raises(RecipeError, match="'vit_tiny_patch16_224' has no map at a stride of 8"):
        Shallow(create_backbone("vit_tiny_patch16_224"), 8, "vit_tiny_patch16_224")
    with pytest.raises(RecipeError, match="'cvgl_small_cnn' has no map at a stride of 4"):
        Shallow(create_backbone("cvgl_small_cnn"), 4, "cvgl_small_cnn")


@pytest.mark.parametrize(("side", "cells"), [(256, 13), (160, 7), (112, 4), (616, 36), (54, 1), (53, 0)])
def test_cells_that_are_left_of_a_side(side, cells):
    assert _cells(side) == cells
    if 54 <= side < 300:
        look = Localizer(3, (side, 54), 4, torch.zeros(2)).look
        assert look(torch.rand(2, 3, side, 54)).shape == (2, 10, cells, 1)


@pytest.mark.parametrize("name", ["stn-affine", "stn-tps"])
def test_a_fresh_transformer_only_resizes(name):
    front_end = system(name).front_end
    reference = batch().reference
    transformed = front_end(reference)
    plain = F.interpolate(reference, (64, 128), mode="bilinear", align_corners=False)
    torch.testing.assert_close(transformed.image, plain, atol=1e-5, rtol=0)
    assert transformed.grid_BHW2.shape == (4, 64, 128, 2)


def test_a_fresh_spline_of_the_same_size_is_the_identity():
    front_end = system("stn-tps", "views.query_height_px=64", "views.query_width_px=64").front_end
    reference = batch().reference
    torch.testing.assert_close(front_end(reference).image, reference, atol=1e-5, rtol=0)


def test_an_affine_transformer_can_mirror():
    front_end = system("stn-affine").front_end
    with torch.no_grad():
        front_end.localizer.decide[-1].bias.copy_(torch.tensor([-1.0, 0, 0, 0, 1, 0]))
    reference = batch().reference
    plain = F.interpolate(reference, (64, 128), mode="bilinear", align_corners=False)
    torch.testing.assert_close(front_end(reference).image, plain.flip(-1), atol=1e-5, rtol=0)


def test_three_transformers_look_where_all_maps_together_look():
    front_end = system("stn-composed").front_end.eval()
    turned = torch.tensor([0.0, 1.0, 0.1, -1.0, 0.0, 0.0])
    smaller = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.5, 0.2])
    with torch.no_grad():
        for transformer, numbers in zip(front_end.transformers, (turned, smaller, turned), strict=True):
            transformer.localizer.decide[-1].bias.copy_(numbers)
    transformed = front_end(batch().reference)
    assert transformed.recolored
    assert transformed.image.shape == (4, 3, 64, 128)
    x, y = 0.3, -0.7  # of the result; the last transformer looks first
    for a, b, c, d, e, f in (turned.tolist(), smaller.tolist(), turned.tolist()):
        x, y = a * x + b * y + c, d * x + e * y + f
    column, row = (0.3 + 1) / 2 * 128 - 0.5, (-0.7 + 1) / 2 * 64 - 0.5
    grid = F.grid_sample(
        transformed.grid_BHW2.permute(0, 3, 1, 2),
        torch.tensor([[[[2 * (column + 0.5) / 128 - 1, 2 * (row + 0.5) / 64 - 1]]]]).expand(4, -1, -1, -1),
        align_corners=False,
    )
    assert grid[0, :, 0, 0].tolist() == pytest.approx([x, y], abs=1e-5)


def test_a_residual_block_fills_up_or_cuts_its_input():
    for channels, out in ((3, 8), (8, 3)):
        block = ResidualBlock(channels, out).eval()
        for layer in block.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
        image = torch.rand(2, channels, 5, 6)
        found = block(image)
        kept = min(channels, out)
        torch.testing.assert_close(found[:, :kept], image[:, :kept], atol=1e-4, rtol=1e-4)
        assert found.shape == (2, out, 5, 6)
        assert not found[:, kept:].any()


def test_a_spline_can_start_near_the_polar_transform():
    reference = F.interpolate(torch.rand(2, 3, 6, 6), (64, 64), mode="bicubic", align_corners=False)
    target = polar_transform(reference, (64, 128))
    wider = ["options.tps_rows=6", "options.tps_columns=12"]
    away = {
        start: (system("stn-tps", f'options.tps_start="{start}"', *wider).front_end(reference).image - target).abs()
        for start in ("identity", "polar")
    }
    assert away["polar"].mean() < 0.2 * away["identity"].mean()
    corners = polar_places(torch.tensor([[0.0, -1.0], [0.5, -1.0], [0.0, 1.0]]))
    torch.testing.assert_close(corners, torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.0, 0.0]]), atol=1e-6, rtol=0)


def test_bounded_places_start_at_the_same_points_and_stay_inside():
    front_end = system("stn-tps", "options.tps_bounded=true").front_end
    reference = batch().reference
    torch.testing.assert_close(front_end(reference).place_BK2[0], control_points(4, 8).float(), atol=1e-6, rtol=0)
    with torch.no_grad():
        front_end.localizer.decide[-1].bias.add_(5.0)
    assert front_end(reference).place_BK2.max() <= 1
