import copy
import logging

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from cvgl_data.errors import CheckpointError, RecipeError, UnknownNameError
from cvgl_models.backbones import SmallCnn, create_backbone
from cvgl_models.backbones.freezing import blocks_of
from cvgl_models.backbones.maps import grid_of, map_and_class
from cvgl_models.embedding import DualEncoder, create_encoder
from cvgl_models.recipe import EncoderRecipe, ViewRecipe

torch.set_num_threads(1)

VIT = "vit_tiny_patch16_224"
DINOV2 = "vit_base_patch14_dinov2.lvd142m"
MASK_TOKEN = 768  # the published model counts one, which nothing uses and timm leaves out


def recipe(backbone=VIT, **other):
    return EncoderRecipe(**{"backbone": backbone, "pretrained": False, "aggregator": "average", **other})


def trained(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "grid", "classes"),
    [
        (VIT, (4, 6), True),
        ("vit_small_patch16_dinov3", (4, 6), True),
        ("resnet10t", (2, 3), False),
        ("convnext_atto", (2, 3), False),
        ("mobilenetv3_small_050", (2, 3), False),
        ("cvgl_small_cnn", (8, 12), False),
    ],
)
def test_maps_of_views_that_are_not_square(name, grid, classes):
    torch.manual_seed(0)
    encoder = create_encoder(recipe(name, aggregator="mixvpr", aggregator_options={"out_channels": 8}), (64, 96))
    assert encoder.aggregator.grid == grid_of(encoder.backbone, (64, 96)) == grid
    map_BChw, class_BC = map_and_class(encoder.backbone, torch.rand(2, 3, 64, 96))
    assert map_BChw.shape[2:] == grid
    assert (class_BC is not None) == classes
    embedded_BD = encoder(torch.rand(2, 3, 64, 96))
    torch.testing.assert_close(embedded_BD.norm(dim=1), torch.ones(2))
    embedded_BD[:, 0].sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_tokens_lie_where_their_patches_are():
    backbone = create_backbone(VIT).eval()
    backbone.blocks, backbone.norm = torch.nn.Identity(), torch.nn.Identity()
    with torch.no_grad():
        backbone.pos_embed.zero_()
        image = torch.zeros(1, 3, 64, 96)
        blank, _ = map_and_class(backbone, image)
        image[:, :, 16:32, 80:96] = 1.0
        map_BChw, class_BC = map_and_class(backbone, image)
    assert (map_BChw - blank).abs().sum(1)[0].nonzero().tolist() == [[1, 5]]
    assert torch.equal(class_BC, backbone.cls_token[:, 0])


def test_the_map_of_a_vit_with_and_without_its_norm():
    image = torch.rand(1, 3, 64, 64)
    encoders = []
    for final_norm in (True, False):
        torch.manual_seed(0)
        encoders.append(create_encoder(recipe(final_norm=final_norm), (64, 64)).eval())
    normed, raw = (map_and_class(encoder.backbone, image)[0].flatten(2).transpose(1, 2) for encoder in encoders)
    torch.testing.assert_close(normed, encoders[0].backbone.norm(raw))
    assert sum(p.numel() for p in encoders[0].parameters()) - sum(p.numel() for p in encoders[1].parameters()) == 384


def test_the_class_token_reaches_a_head_that_wants_it():
    encoder = create_encoder(recipe(aggregator_options={"class_token": True}), (64, 64)).eval()
    image = torch.rand(2, 3, 64, 64)
    tokens = encoder.backbone.forward_features((image - encoder.mean) / encoder.std)
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
    torch.testing.assert_close(encoder(image), F.normalize(expected, dim=1))


def test_a_positional_embedding_is_interpolated_to_the_view():
    backbone = create_backbone(VIT)
    assert backbone.pos_embed.shape == (1, 1 + 14 * 14, 192)
    backbone.blocks = backbone.norm = torch.nn.Identity()
    with torch.no_grad():
        backbone.patch_embed.proj.weight.zero_()
        backbone.patch_embed.proj.bias.zero_()
        columns = torch.arange(14.0).repeat(14)
        backbone.pos_embed[:, 1:] = columns[None, :, None]
        map_BChw, _ = map_and_class(backbone, torch.rand(1, 3, 14 * 16, 28 * 16))
    rising = map_BChw[0, 0, 5]
    assert rising.shape == (28,)
    torch.testing.assert_close(rising[4:24], (torch.arange(28.0)[4:24] - 0.5) / 2, rtol=0, atol=0.03)


def test_one_vit_serves_views_of_two_sizes():
    views = ViewRecipe(query_height_px=64, query_width_px=128, reference_px=96)
    encoder = DualEncoder(recipe(aggregator="mixvpr", aggregator_options={"out_channels": 8}), views)
    assert encoder.query is encoder.reference
    query_BD, reference_BD = encoder.query(torch.rand(2, 3, 64, 128)), encoder.reference(torch.rand(2, 3, 96, 96))
    assert query_BD.shape == reference_BD.shape == (2, 32)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((384, 768), "378x756 and 392x784"), ((384, 384), "378x378 and 392x392"), ((448, 450), "448x448 and 448x476")],
)
def test_sizes_that_are_no_multiple_of_the_patch(size, nearest):
    with torch.device("meta"), pytest.raises(RecipeError, match=f"multiples of 14, not {size[0]}x{size[1]}") as raised:
        create_encoder(recipe("vit_small_patch14_dinov2"), (448, 448), size)
    assert f"the nearest are {nearest}" in str(raised.value)
    for height, width in (text.split("x") for text in nearest.split(" and ")):
        assert int(height) % 14 == int(width) % 14 == 0


def test_a_backbone_of_one_size_only():
    views = ViewRecipe(query_height_px=64, query_width_px=128, reference_px=64)
    with pytest.raises(RecipeError, match=r"one size only.*encoder\.shared"):
        DualEncoder(recipe("beit_base_patch16_224"), views)


@pytest.mark.parametrize(
    ("train_blocks", "published"), [(12, 86_126_592), (9, 64_858_368), (4, 29_411_328)], ids=["all", "9", "4"]
)
def test_trained_parameters_of_cv_cities(train_blocks, published):
    options = {"aggregator": "mixvpr", "final_norm": False, "train_blocks": train_blocks}
    with torch.device("meta"):
        encoder = create_encoder(recipe(DINOV2, train_tokens=True, **options), (448, 448))
        frozen = create_encoder(recipe(DINOV2, **options), (448, 448))
    assert trained(encoder.backbone) + MASK_TOKEN == published
    assert trained(frozen.backbone) == train_blocks * 7_089_408
    assert sum(p.numel() for p in encoder.backbone.patch_embed.parameters() if not p.requires_grad) == 452_352
    assert trained(encoder.aggregator) == 4_994_052


def saved_elements(encoder, images):
    """Return how many numbers a forward pass keeps for the backward pass, parameters left out."""
    own, kept = {p.data_ptr() for p in encoder.parameters()}, {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(images)
    return sum(kept.values())


def test_frozen_blocks_keep_no_activations():
    images, kept = torch.rand(1, 3, 64, 64), {}
    for blocks in (-1, 12, 6, 1, 0):
        torch.manual_seed(0)
        kept[blocks] = saved_elements(create_encoder(recipe(train_blocks=blocks), (64, 64)), images)
    assert kept[-1] >= kept[12] > kept[6] > kept[1] > kept[0]
    per_block = (kept[12] - kept[6]) / 6
    assert kept[6] - kept[1] == pytest.approx(5 * per_block, rel=0.05)
    assert kept[0] < per_block


@pytest.mark.parametrize("name", [VIT, "convnext_atto", "resnet10t"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_last_blocks_learn(name, checkpointing):
    torch.manual_seed(0)
    encoder = create_encoder(recipe(name, train_blocks=2, grad_checkpointing=checkpointing), (64, 64)).train()
    last = {id(p) for block in blocks_of(encoder.backbone)[-2:] for p in block.parameters()}
    encoder(torch.rand(2, 3, 64, 64))[:, 0].sum().backward()
    learning = [p for p in encoder.parameters() if p.requires_grad]
    assert last <= {id(p) for p in learning}
    assert all(p.grad is not None for p in learning)
    assert sum(p.grad.abs().sum() for p in learning) > 0
    assert all(p.grad is None for p in encoder.parameters() if not p.requires_grad)
    first = blocks_of(encoder.backbone)[0]
    assert not any(p.requires_grad for p in first.parameters())


def test_frozen_parts_stay_in_evaluation_mode():
    torch.manual_seed(0)
    encoder = create_encoder(recipe("resnet10t", train_blocks=1), (64, 64))
    for one in (encoder, copy.deepcopy(encoder)):
        one.train()
        assert one.backbone.layer4.training
        assert not any(module.training for module in one.backbone.layer1.modules())
        before = one.backbone.bn1.running_mean.clone()
        one(torch.rand(4, 3, 64, 64))
        assert torch.equal(one.backbone.bn1.running_mean, before)
        assert one.backbone.layer4[-1].bn1.num_batches_tracked == 1
    vit = create_encoder(recipe(train_blocks=1), (64, 64))
    vit.backbone.blocks[0].attn.proj_drop.p = 0.5
    vit.train()
    assert not vit.backbone.blocks[0].attn.proj_drop.training
    assert vit.backbone.blocks[-1].attn.proj_drop.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_blocks": 13}, "'encoder.train_blocks' is 13, but backbone 'vit_tiny_patch16_224' has 12 blocks"),
        ({"backbone": "cvgl_small_cnn", "train_blocks": 1}, "has no list of blocks"),
        ({"backbone": "cvgl_small_cnn", "final_norm": False}, "has no final norm"),
    ],
)
def test_what_a_backbone_cannot_do(options, message):
    with pytest.raises(RecipeError, match=message):
        create_encoder(recipe(**options), (64, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregator": "", "aggregator_options": {"p": 2.0}}, r"aggregator_options' needs an 'encoder\.aggregator'"),
        ({"aggregator": "", "final_norm": False}, "final_norm' needs"),
        ({"train_tokens": True}, "train_tokens' needs"),
        ({"train_blocks": -2}, "train_blocks' must be at least -1"),
    ],
)
def test_recipes_that_make_no_sense(options, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**options)


def test_unknown_aggregator():
    with pytest.raises(UnknownNameError, match="did you mean 'gem'"):
        create_encoder(recipe("cvgl_small_cnn", aggregator="gemm"), (64, 64))


def test_netvlad_is_started_from_images_of_both_views():
    torch.manual_seed(0)
    options = {"num_clusters": 4, "channels": 0}
    encoder = create_encoder(recipe("cvgl_small_cnn", aggregator="netvlad", aggregator_options=options), (64, 64))
    before = encoder.aggregator.centroids.clone()
    images = [torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 128)]
    assert encoder.train().init_aggregator(images, per_image=20) == 80
    assert encoder.training
    found = encoder.aggregator.centroids.clone()
    assert not torch.allclose(found, before)
    assert encoder.init_aggregator(images, per_image=20) == 80
    assert torch.equal(encoder.aggregator.centroids, found)
    assert create_encoder(recipe("cvgl_small_cnn"), (64, 64)).init_aggregator(images) == 0


@pytest.fixture(scope="module")
def published():
    """A ViT as somebody else saves it: at another size than we build it, with its classifier."""
    torch.manual_seed(1)
    return timm.create_model(VIT, img_size=(96, 96), num_classes=7).eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_another_grid_are_interpolated(published, tmp_path, suffix, caplog):
    path = tmp_path / f"vit{suffix}"
    if suffix == ".pth":
        torch.save({"model": published.state_dict()}, path)
    else:
        save_file(published.state_dict(), path)
    with caplog.at_level(logging.INFO, "cvgl_models"):
        loaded = create_backbone(VIT, pretrained=str(path)).eval()
    assert "interpolated from 37 to 197 places" in caplog.text
    for key, value in loaded.state_dict().items():
        if key != "pos_embed":
            assert torch.equal(value, published.state_dict()[key])
    assert loaded.pos_embed.shape == (1, 197, 192)
    assert torch.equal(loaded.pos_embed[:, 0], published.pos_embed[:, 0])
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():  # interpolated twice, so nearly the same
        ours, theirs = loaded.forward_features(image), published.forward_features(image)
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_published_layout_of_dinov2(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model("vit_small_patch14_dinov2", img_size=70, num_classes=0, depth=2)
    weights = model.state_dict() | {"mask_token": torch.zeros(1, 384)}  # as published; timm has no use for it
    save_file(weights, tmp_path / "dinov2.safetensors")
    from cvgl_models.backbones import load_published, read_weights

    target = timm.create_model("vit_small_patch14_dinov2", img_size=98, num_classes=0, depth=2, dynamic_img_size=True)
    load_published(target, read_weights(tmp_path / "dinov2.safetensors"), "dinov2")
    assert torch.equal(target.blocks[1].ls2.gamma, model.blocks[1].ls2.gamma)
    assert target.pos_embed.shape == (1, 50, 384)


def test_weights_that_do_not_fit_a_vit(published, tmp_path):
    weights = published.state_dict()
    cases = {
        "they lack blocks.3.attn.qkv.bias": {k: v for k, v in weights.items() if k != "blocks.3.attn.qkv.bias"},
        "they have unknown tail": {**weights, "tail": torch.zeros(1)},
        "they have another shape of norm.bias": {**weights, "norm.bias": torch.zeros(7)},
        r"they lack blocks\.0\..* and \d+ more": {f"model.{key}": value for key, value in weights.items()},
        "another shape of patch_embed.proj.weight": {**weights, "patch_embed.proj.weight": torch.zeros(192, 3, 14, 14)},
    }
    for message, content in cases.items():
        save_file(content, tmp_path / "weights.safetensors")
        with pytest.raises(CheckpointError, match=message):
            create_backbone(VIT, pretrained=str(tmp_path / "weights.safetensors"))


def test_the_small_network_as_a_map():
    torch.manual_seed(0)
    cnn = SmallCnn().eval()
    image = torch.rand(1, 3, 64, 64)
    last_map = cnn.forward_features(image)
    assert last_map.shape == (1, cnn.map_channels, 8, 8)
    torch.testing.assert_close(cnn(image), cnn.head(torch.cat([last_map.mean((2, 3)), last_map.amax((2, 3))], 1)))
