import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safa_pairs import batch, recipe, system
from torch import nn
from torch.nn import functional as F
from toy_dataset import toy_dataset

from cvgl_data.errors import RecipeError
from cvgl_data.recipe import shipped_recipes
from cvgl_models.geometry import polar_transform
from cvgl_models.pictures import write_pictures
from cvgl_models.recipe import load_recipe, system_options
from cvgl_models.systems.safa import Safa
from cvgl_models.systems.safa.mesh import draw_mesh
from cvgl_models.systems.safa.options import FRONT_ENDS, SafaOptions
from cvgl_models.training.gradients import backward
from cvgl_models.transforms import flip, quarter_turn

torch.set_num_threads(1)

LEARNED = [name for name in FRONT_ENDS if name.startswith("stn")]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("shared", ["false", "true"])
def test_the_systems_contract(front_end, shared):
    built = system(front_end, f"encoder.shared={shared}")
    pairs = batch()
    assert built.task == "retrieval"
    for embedded in (built.embed_queries(pairs), built.embed_references(pairs)):
        assert embedded.dtype == torch.float32
        assert embedded.shape == (4, 128 * 8)
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(4))
    terms = built.training_step(pairs)
    assert set(terms) == {"triplet", "guidance"} if front_end in LEARNED else {"triplet"}
    sum(terms.values()).backward()
    without = [name for name, p in built.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert (built.encoder.query is built.encoder.reference) == (shared == "true")


@pytest.mark.parametrize("front_end", ["none", "polar", "stn-tps"])
def test_pairs_in_pieces_are_what_they_are_together(front_end):
    """What micro-batches rely on: embeddings and own terms need no other pair (outside of BatchNorm)."""
    built = system(front_end, "options.bending_weight=0.1" if front_end == "stn-tps" else "seed=0").eval()
    if front_end == "stn-tps":
        nn.init.normal_(built.front_end.localizer.decide[-1].weight, std=0.01)
    pairs = batch(4)
    embedded, terms = built.embed_pairs(pairs)
    halves = [
        built.embed_pairs(dataclasses.replace(pairs, query=pairs.query[rows], reference=pairs.reference[rows]))
        for rows in (slice(0, 2), slice(2, 4))
    ]
    for name in ("query", "reference"):
        torch.testing.assert_close(torch.cat([half[0][name] for half in halves]), embedded[name])
    for name, term in terms.items():
        torch.testing.assert_close((halves[0][1][name] + halves[1][1][name]) / 2, term)
    assert set(built.loss_terms(embedded, pairs)) == {"triplet"}


@pytest.mark.parametrize("front_end", ["polar", "stn-tps"])
def test_micro_batches_give_the_gradients_of_the_whole(front_end):
    found = {}
    for size in (0, 2):
        built = system(front_end, 'encoder.backbone="convnext_atto"').train()
        for module in built.modules():  # statistics of a piece would differ; the trainer refuses to
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        if front_end == "stn-tps":
            nn.init.normal_(built.front_end.localizer.decide[-1].weight, std=0.01)
        pairs = dataclasses.replace(batch(4), query_row=torch.arange(4), reference_row=torch.arange(4))
        terms = backward(built, pairs, micro_batch=size)
        found[size] = terms, {name: p.grad for name, p in built.named_parameters()}
    torch.testing.assert_close(found[2][0], found[0][0], rtol=1e-5, atol=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[2][1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_guidance_is_the_distance_from_the_polar_image_as_the_encoder_sees_it():
    built = system("stn-affine", "options.guidance_weight=3.0")
    pairs = batch()
    polar = polar_transform(pairs.reference, (64, 128))
    plain = F.interpolate(pairs.reference, (64, 128), mode="bilinear", align_corners=False)
    expected = 3.0 * (plain - polar).abs().mean() / 0.25  # the small network's deviation
    torch.testing.assert_close(built.training_step(pairs)["guidance"], expected, rtol=1e-4, atol=0)
    recolored = system("stn-composed", "options.guidance_weight=3.0")
    torch.testing.assert_close(recolored.training_step(pairs)["guidance"], expected, rtol=1e-4, atol=0)


def test_bending_energy_is_a_term():
    built = system("stn-tps", "options.bending_weight=2.0", "options.guidance_weight=0.0", "options.tps_rows=6",
                   "options.tps_columns=10")  # fmt: skip
    with torch.no_grad():
        built.front_end.localizer.decide[-1].bias[0] += 0.1
    terms = built.training_step(batch())
    assert set(terms) == {"triplet", "bending"}
    assert terms["bending"].item() == pytest.approx(2 * 0.07835, rel=1e-3)


def test_guidance_makes_a_spline_polar():
    """A few steps on the guidance alone take a spline most of the way from a mere resizing."""
    built = system("stn-tps", "options.tps_rows=5", "options.tps_columns=10")
    pairs = batch(8)
    optimizer = torch.optim.Adam(built.front_end.parameters(), lr=5e-3)
    found = []
    for _ in range(40):
        term = built._own_terms(pairs, built.front_end(pairs.reference))["guidance"]
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        found.append(term.item())
    assert found[-1] < 0.6 * found[0]


def test_polar_references_turn_as_panoramas_do():
    """The augmentation keeps pairs true: what it does to a reference, the polar transform does to its columns."""
    pairs = batch(4)
    unrolled = dataclasses.replace(pairs, query=polar_transform(pairs.reference, (64, 128)))
    turned = quarter_turn(unrolled, torch.tensor([0, 1, 2, 3]), "panorama")
    torch.testing.assert_close(polar_transform(turned.reference, (64, 128)), turned.query, atol=1e-5, rtol=0)
    mirrored = flip(unrolled, torch.tensor([True, False, True, False]))
    torch.testing.assert_close(polar_transform(mirrored.reference, (64, 128)), mirrored.query, atol=1e-5, rtol=0)


def test_the_share_of_hard_triplets_follows_the_epochs():
    options = SafaOptions()
    shares = [options.mining_share(epoch) for epoch in (0, 19, 20, 39, 40, 59, 60, 1000)]
    assert shares == [1.0, 1.0, 0.1, 0.1, 0.05, 0.05, 0.01, 0.01]
    built = Safa(recipe("none", "options.mining_epochs=[1]", "options.mining_shares=[1.0, 0.1]"))
    pairs = batch(8)
    exhaustive = built.eval().training_step(pairs)["triplet"].item()
    built.begin_epoch(1)
    assert built.training_step(pairs)["triplet"].item() > exhaustive
    built.begin_epoch(0)
    assert built.training_step(pairs)["triplet"].item() == exhaustive


def test_semi_positives_are_left_out():
    built = system("none").eval()
    pairs = batch(4)
    ignore = torch.zeros(4, 4, dtype=torch.bool)
    ignore[0, 1] = True
    without = built.training_step(dataclasses.replace(pairs, ignore=ignore))["triplet"].item()
    assert without != built.training_step(pairs)["triplet"].item()


@pytest.mark.parametrize(
    ("front_end", "override", "message"),
    [
        ("none", 'options.front_end="stn"', "expected one of: none, polar, stn-affine, stn-composed, stn-tps"),
        ("polar", "options.colour=1", r"options\.colour"),
        ("polar", "options.bending_weight=1.0", "needs the front end 'stn-tps'"),
        ("polar", "options.mining_shares=[1.0, 0.5]", "one number more"),
        ("polar", 'options.polar_center="corner"', "pixel, middle, published"),
        ("polar", 'views.query="bev"', "set views.query to 'panorama'"),
        ("stn-affine", "views.reference_px=48", "at least 54 pixels, these are 48x48"),
        ("stn-composed", "views.query_height_px=48", "at least 54 pixels, these are 48x128"),
        ("none", 'encoder.backbone="vit_tiny_patch16_224"', "has no map at a stride of 8"),
        ("stn-tps", "options.tps_rows=1", "must be at least 2"),
    ],
)
def test_recipes_that_do_not_go_together(front_end, override, message):
    with pytest.raises(RecipeError, match=message):
        Safa(recipe(front_end, override))


def test_a_recipe_without_a_head():
    with pytest.raises(RecipeError, match=r"needs an 'encoder\.aggregator'"):
        Safa(load_recipe("sample4geo-smoke", ["system=safa"]))


@pytest.mark.parametrize("name", [name for name in shipped_recipes("models") if name.startswith("safa")])
def test_every_recipe_can_be_made(name):
    with torch.device("meta"):
        built = Safa(load_recipe(name, ["encoder.pretrained=false"]))
    assert built.encoder.query is not built.encoder.reference
    assert system_options(SafaOptions, load_recipe(name)) == built.options


# pictures


def test_pictures_of_a_transformation(tmp_path):
    for front_end in FRONT_ENDS:
        pictures = system(front_end).pictures(batch(3))
        expected = {
            "none": [],
            "polar": ["query", "reference", "places", "transformed"],
        }.get(front_end, ["query", "reference", "places", "transformed", "polar"])
        assert list(pictures) == expected
        assert all(len(images) == 3 and images.min() >= 0 and images.max() <= 1 for images in pictures.values())
    path = write_pictures(pictures, tmp_path / "runs" / "places.png", height_px=64)
    with Image.open(path) as sheet:
        widths = [128, 64, 64, 128, 128]
        assert sheet.size == (8 + sum(width + 8 for width in widths), 8 + 20 + 3 * (64 + 8))
        left, top = 8, 28
        shown = np.asarray(sheet)[top : top + 64, left : left + 128] / 255
    assert np.abs(shown - pictures["query"][0].permute(1, 2, 0).numpy()).max() < 0.01
    assert [item.name for item in path.parent.iterdir()] == ["places.png"]
    with pytest.raises(ValueError, match="at least one"):
        write_pictures({}, path)


def test_a_mesh_lies_where_the_grid_looks():
    image = torch.zeros(1, 3, 64, 64)
    grid = torch.stack(
        torch.meshgrid(torch.linspace(-0.5, 0.5, 20), torch.linspace(-0.5, 0.5, 30), indexing="ij")[::-1], -1
    )
    drawn = draw_mesh(image, grid[None], rows=3, columns=4, side_px=64)[0]
    inked = drawn.amax(0) > 0
    rows, columns = inked.any(1).nonzero()[:, 0], inked.any(0).nonzero()[:, 0]
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 48, 16, 48)
    assert inked[:, 17:47].all(1).nonzero()[:, 0].tolist() == [16, 32, 48]
    assert inked[17:47].all(0).nonzero()[:, 0].tolist() == [16, 26, 37, 48]
    assert image.max() == 0


# training


@pytest.fixture(scope="module")
def toy():
    return toy_dataset(grid=4, per_tile=2, test_grid=2)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_smoke_recipe_learns_the_toy_dataset(toy, tmp_path):
    from cvgl_models.training import train

    changes = ["sampler.batch_size=8", "sampler.neighbor_select=4", "loader.workers=0", "optim.epochs=12"]
    changes += ["augment.rotate=0.0", "augment.color=0.0", "augment.color_together=0.0", "augment.flip=0.0"]
    run = train(recipe("polar", *changes), toy, tmp_path / "run")
    found = losses(run)
    assert math.isfinite(found[-1])
    assert sum(found[-4:]) / 4 < 0.75 * sum(found[:4]) / 4
    assert (run / "best.safetensors").is_file()
