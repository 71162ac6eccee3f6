import dataclasses
import tomllib

import pytest
import torch
from safetensors.torch import save_file

from cvgl_data.errors import CheckpointError, RecipeError, UnknownNameError
from cvgl_data.recipe import resolve, shipped_recipes, to_toml
from cvgl_models.backbones import BACKBONES, SmallCnn, create_backbone
from cvgl_models.recipe import ModelRecipe, load_recipe
from cvgl_models.recipe.checks import unchanged
from cvgl_models.systems import SYSTEMS, create_system
from cvgl_models.transforms import Batch


@pytest.mark.parametrize("name", shipped_recipes("models"))
def test_shipped_recipes_resolve_and_come_back_from_toml(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.system in SYSTEMS
    assert resolve(ModelRecipe, tomllib.loads(to_toml(recipe))) == recipe


def test_shipped_recipes_are_there():
    assert {"demo", "sample4geo", "sample4geo-smoke"} <= set(shipped_recipes("models"))


@pytest.mark.parametrize("name", ["demo", "sample4geo-smoke"])
def test_small_recipes_make_a_system_that_keeps_its_contract(name):
    recipe = load_recipe(name)
    system = create_system(recipe)
    side = recipe.views.reference_px
    batch = Batch(query=torch.rand(4, 3, *recipe.views.query_size_px), reference=torch.rand(4, 3, side, side))
    assert system.task == "retrieval"
    for embedded in (system.embed_queries(batch), system.embed_references(batch)):
        assert embedded.dtype == torch.float32
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(4))
    terms = system.training_step(batch)
    assert all(term.ndim == 0 for term in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"unknown recipe key 'optim\.lrr'.*did you mean 'optim\.lr'"),
        ('views.query="bve"', r"'views\.query' is 'bve', expected one of: panorama, bev"),
        ("views.query_width_px=70", "multiple of 4"),
        ("sampler.batch_size=1", "at least 2"),
        ("sampler.semi_positive_policy=no", "negative, ignore, soft"),
        ("optim.epochs=0", r"'optim\.epochs' must be positive"),
        ("optim.epochs=many", r"'optim\.epochs'"),
        ("optim.precision=fp8", "auto, fp32, bf16"),
        ("optim.schedule=step", "cosine, linear, constant"),
        ("optim.betas=[0.9,1.0]", r"'optim\.betas' must lie in \[0, 1\)"),
        ("optim.eps=0", r"'optim\.eps' must be positive"),
        ("augment.turn_deg=10.0", "turn_deg"),
        ("seed=-1", "'seed' must be at least 0"),
        ("augment.flip=1.5", r"'augment\.flip' must lie in \[0, 1\], not 1\.5"),
        ("augment.cut=-0.1", r"'augment\.cut' must lie in"),
        ("augment.blur=nan", r"'augment\.blur' must lie in"),
        ("augment.zoom=1.0", r"'augment\.zoom' must lie in \[0, 1\)"),
        ("augment.cut_holes=-1", r"'augment\.cut_holes' must be at least 0"),
        ("sampler.neighbor_select=-1", r"'sampler\.neighbor_select' must be at least 0"),
        ("sampler.neighbor_range=-1", r"'sampler\.neighbor_range' must be at least 0"),
        ("optim.lr=inf", r"'optim\.lr' must be positive and finite"),
        ("optim.lr=nan", r"'optim\.lr' must be positive and finite"),
        ("optim.label_smoothing=1.0", r"'optim\.label_smoothing' must lie in \[0, 1\)"),
        ("optim.weight_decay=-0.1", r"'optim\.weight_decay' must be at least 0"),
        ("optim.warmup_epochs=inf", r"'optim\.warmup_epochs' must be at least 0"),
        ("optim.max_grad_norm=-1.0", r"'optim\.max_grad_norm' must be at least 0"),
        ("loader.workers=-2", r"'loader\.workers' must be at least -1"),
        ("loader.memory_mb=-1", r"'loader\.memory_mb' must be at least 0"),
        ("validation.max_queries=0", r"'validation\.max_queries' must be positive"),
    ],
)
def test_wrong_values(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("sample4geo", [override])


def test_overrides():
    assert (
        load_recipe("sample4geo", ["optim.lr=3e-4", "encoder.pretrained=weights.pth"]).encoder.pretrained
        == "weights.pth"
    )


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="did you mean 'cvgl_small_cnn'"):
        create_backbone("cvgl_smal_cnn")
    with pytest.raises(UnknownNameError, match="did you mean 'convnext_base'"):
        create_backbone("convnext_bas")
    with pytest.raises(UnknownNameError, match="convnext_base"):
        create_backbone("convnext_base.no_such_weights")
    with pytest.raises(UnknownNameError, match="did you mean 'sample4geo'"):
        create_system(load_recipe("demo", ["system=sample4go"]))


def test_an_unknown_backbone_does_not_list_all_of_timm():
    with pytest.raises(UnknownNameError, match=r"; known: .*cvgl_small_cnn.*, …$") as raised:
        create_backbone("zzzzqqqq")
    assert str(raised.value).count(",") == 8


def test_every_listed_backbone_has_what_an_encoder_needs():
    for name in BACKBONES:
        backbone = create_backbone(name)
        assert backbone(torch.rand(2, 3, 64, 64)).shape == (2, backbone.num_features)
        assert len(backbone.mean) == len(backbone.std) == 3


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_backbones_of_timm(name):
    backbone = create_backbone(name, image_size=(64, 96)).eval()
    for size in [(64, 96), (64, 64)]:
        assert backbone(torch.rand(1, 3, *size)).shape == (1, backbone.num_features)


def test_published_weights_without_a_network():
    with pytest.raises(CheckpointError, match=r"set encoder\.pretrained to a local file, or to false"):
        create_backbone("resnet10t.c3_in1k", pretrained=True)
    with pytest.raises(CheckpointError, match="has no published weights"):
        create_backbone("cvgl_small_cnn", pretrained=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path, suffix):
    source = SmallCnn()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        save_file(source.state_dict(), path)
    loaded = create_backbone("cvgl_small_cnn", pretrained=str(path))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_a_classifier_in_the_file_is_left_out(tmp_path):
    import timm

    torch.save(timm.create_model("resnet10t", num_classes=7).state_dict(), tmp_path / "full.pth")
    create_backbone("resnet10t", pretrained=str(tmp_path / "full.pth"))


def test_weights_that_do_not_fit(tmp_path):
    weights = SmallCnn().state_dict()
    cases = {
        "they lack head.bias": {key: value for key, value in weights.items() if key != "head.bias"},
        "they have unknown tail": {**weights, "tail": torch.zeros(1)},
        "they have another shape of head.bias": {**weights, "head.bias": torch.zeros(7)},
    }
    for message, content in cases.items():
        save_file(content, tmp_path / "weights.safetensors")
        with pytest.raises(CheckpointError, match=message):
            create_backbone("cvgl_small_cnn", pretrained=str(tmp_path / "weights.safetensors"))
    with pytest.raises(CheckpointError, match="no weights file"):
        create_backbone("cvgl_small_cnn", pretrained=str(tmp_path / "missing.pth"))


def test_weights_with_pickled_objects_are_refused(tmp_path):
    torch.save({"recipe": load_recipe("demo")}, tmp_path / "objects.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        create_backbone("cvgl_small_cnn", pretrained=str(tmp_path / "objects.pth"))


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe("demo").seed = 1


@pytest.mark.parametrize(
    ("name", "override", "said"),
    [
        ("sample4geo-smoke", "options.temperature=1", r"'options.temperature': system 'sample4geo' has no options"),
        ("cvcities-smoke", "options.heads=2", r"'options.heads': system 'cvcities' has no options"),
        ("sample4geo-smoke", "sampler.min_distance_m=50", r"'sampler.min_distance_m' is 50.0, but system 'sample4geo'"),
        ("safa-smoke", "views.bev_px=64", r"'views.bev_px' is 64, but system 'safa' does not read it"),
        ("hcnet-smoke", "encoder.aggregator=gem", r"'encoder.aggregator' is 'gem', but system 'hcnet'"),
        ("ccvpe-smoke", "optim.label_smoothing=0.2", r"'optim.label_smoothing' is 0.2, but system 'ccvpe'"),
        ("g2sweakly-smoke", "optim.channels_last=false", r"'optim.channels_last' is False, but system 'g2sweakly'"),
        ("geodistill-smoke", "sampler.semi_positive_policy=soft", r"'sampler.semi_positive_policy' is 'soft', but"),
    ],
)
def test_what_a_system_does_not_read_is_refused(name, override, said):
    with pytest.raises(RecipeError, match=said):
        create_system(load_recipe(name, [override, "encoder.pretrained=false"]))


@pytest.mark.parametrize("name", shipped_recipes("models"))
def test_shipped_recipes_set_nothing_that_is_not_read(name):
    recipe = load_recipe(name)
    unchanged(recipe, recipe.system, SYSTEMS.load(recipe.system).unread)
