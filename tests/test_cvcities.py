import json

import pytest
import torch
from toy_dataset import toy_dataset

from cvgl_data.errors import RecipeError
from cvgl_data.recipe import shipped_recipes
from cvgl_models.embedding import DualEncoder
from cvgl_models.recipe import load_recipe
from cvgl_models.systems import create_system
from cvgl_models.systems.cvcities import CVCities
from cvgl_models.training import train
from cvgl_models.transforms import Batch

torch.set_num_threads(1)

NAMES = [name for name in shipped_recipes("models") if name.startswith(("cvcities", "sample4geo"))]


def smoke(*overrides):
    small = ["sampler.batch_size=8", "sampler.neighbor_select=4", "loader.workers=0", "optim.warmup_epochs=1.0"]
    return load_recipe("cvcities-smoke", [*small, *overrides])


def test_recipes_of_both_systems_are_there():
    sets = {"cvusa", "cvact", "vigor", "dress", "cvcities", "simulated", "smoke"}
    assert {"cvcities", "cvcities-smoke", "cvcities-simulated", *(f"sample4geo-{name}" for name in sets)} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_of_every_recipe_can_be_made(name):
    recipe = load_recipe(name, ["encoder.pretrained=false"])
    with torch.device("meta"):
        encoder = DualEncoder(recipe.encoder, recipe.views)
    assert encoder.query is encoder.reference


def test_the_published_network():
    recipe = load_recipe("cvcities", ["encoder.pretrained=false"])
    with torch.device("meta"):
        system = create_system(recipe)
    assert isinstance(system, CVCities)
    backbone, aggregator = system.encoder.query.backbone, system.encoder.query.aggregator
    assert sum(p.numel() for p in aggregator.parameters()) == 4_994_052
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) + 768 == 86_126_592  # with a mask token
    assert aggregator.grid == (32, 32)
    assert aggregator.num_features == 4096
    assert system.loss.logit_scale.shape == ()


def test_the_systems_contract():
    torch.manual_seed(0)
    recipe = smoke()
    system = create_system(recipe)
    batch = Batch(query=torch.rand(4, 3, *recipe.views.query_size_px), reference=torch.rand(4, 3, 64, 64))
    assert system.task == "retrieval"
    for embedded in (system.embed_queries(batch), system.embed_references(batch)):
        assert embedded.dtype == torch.float32
        assert embedded.shape == (4, 256)
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(4))
    terms = system.training_step(batch)
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())


def test_a_recipe_without_a_head_or_with_two_encoders():
    with pytest.raises(RecipeError, match=r"needs an 'encoder\.aggregator'"):
        create_system(load_recipe("sample4geo-smoke", ["system=cvcities"]))
    with pytest.raises(RecipeError, match=r"set encoder\.shared to true"):
        create_system(smoke("encoder.shared=false"))


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=4, per_tile=2, test_grid=2)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_smoke_recipe_learns_the_toy_dataset(toy, tmp_path):
    plain = ["augment.turn_deg=0.0", "augment.rotate=0.0", "augment.color_together=0.0", "augment.shift=0.0"]
    run = train(smoke("optim.epochs=20", *plain), toy, tmp_path / "run")
    found = losses(run)
    assert sum(found[-4:]) / 4 < 0.75 * sum(found[:4]) / 4
    assert (run / "best.safetensors").is_file()


@pytest.mark.parametrize("aggregator", ["gem", "netvlad"])
def test_other_heads_train_too(toy, tmp_path, aggregator):
    tables = ["optim.epochs=1", "optim.warmup_epochs=0.0", f"encoder.aggregator={aggregator}"]
    run = train(smoke(*tables, "encoder.aggregator_options={}"), toy, tmp_path / "run")
    assert len(losses(run)) > 0


def test_a_partly_frozen_vit_trains_and_goes_on_from_its_checkpoint(toy, tmp_path):
    vit = ["encoder.backbone=vit_tiny_patch16_224", "encoder.train_blocks=1", "views.reference_px=48"]
    recipe = smoke(*vit, "views.query_height_px=32", "optim.epochs=1", "optim.warmup_epochs=0.0")
    torch.manual_seed(recipe.seed)
    before = create_system(recipe).state_dict()
    whole = train(recipe, toy, tmp_path / "whole")
    train(recipe, toy, tmp_path / "parts", max_steps=1)
    parts = train(recipe, toy, tmp_path / "parts")
    weights = [(run / "best.safetensors").read_bytes() for run in (whole, parts)]
    assert weights[0] == weights[1]
    from safetensors.torch import load_file

    after = load_file(whole / "best.safetensors")
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    prefix = "encoder.query.backbone."
    assert not any(
        key.startswith((f"{prefix}blocks.10.", f"{prefix}patch_embed", f"{prefix}pos_embed")) for key in changed
    )
    assert f"{prefix}blocks.11.attn.qkv.weight" in changed
    assert "encoder.query.aggregator.project_rows.weight" in changed
