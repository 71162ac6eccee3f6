import dataclasses

import pytest
import torch
from test_training import final_weights, log, recipe, same, toy, without_time  # noqa: F401
from torch import nn

from cvgl_data.errors import RecipeError
from cvgl_models.losses import SymmetricInfoNCE
from cvgl_models.recipe import ModelRecipe
from cvgl_models.systems import RetrievalModule, SystemModule
from cvgl_models.training import train
from cvgl_models.training.gradients import backward
from cvgl_models.transforms import Batch

CONVNEXT = ("encoder.backbone=test_convnext", "views.query_height_px=32", "views.reference_px=32")


class Tiny(RetrievalModule):
    """Two layers for both views, no BatchNorm."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 8))
        self.loss = SymmetricInfoNCE()

    def embed_pairs(self, batch):
        embedded, _ = super().embed_pairs(batch)
        return embedded, {"alone": (self.net(batch.query + batch.reference)[:, 0] * batch.uv[:, 0]).mean()}

    def loss_terms(self, embedded, batch):
        return {
            "info_nce": self.loss(embedded["query"], embedded["reference"], batch.ignore),
            "heading": (embedded["query"][:, 0] * batch.heading_deg).mean(),
        }

    def embed_queries(self, batch):
        return nn.functional.normalize(self.net(batch.query), dim=1)

    def embed_references(self, batch):
        return nn.functional.normalize(self.net(batch.reference), dim=1)


def pairs(count=10, seed=0):
    draw = torch.Generator().manual_seed(seed)
    ignore = torch.rand(count, count, generator=draw) < 0.2
    return Batch(
        query=torch.rand(count, 3, 4, 4, generator=draw),
        reference=torch.rand(count, 3, 4, 4, generator=draw),
        uv=torch.rand(count, 2, generator=draw),
        heading_deg=torch.rand(count, generator=draw),
        query_row=torch.arange(count),
        reference_row=torch.arange(count),
        ignore=ignore.fill_diagonal_(False),
    )


def system_with(dropout=0.0):
    torch.manual_seed(0)
    return Tiny(dropout).train()


def gradients(system, take):
    system.zero_grad()
    torch.manual_seed(7)
    terms = take(system)
    return terms, {name: parameter.grad.clone() for name, parameter in system.named_parameters()}


def close(one, two):
    return all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-7) for name in one)


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 10, 64])
def test_micro_batches_give_the_gradients_of_the_plain_step(micro_batch):
    system, batch = system_with(), pairs()
    terms, plain = gradients(system, lambda system: backward(system, batch))
    cached_terms, cached = gradients(system, lambda system: backward(system, batch, micro_batch=micro_batch))
    assert cached_terms.keys() == terms.keys() == {"info_nce", "heading", "alone"}
    assert all(torch.allclose(cached_terms[name], terms[name], rtol=1e-5) for name in terms)
    assert close(cached, plain)
    assert plain["net.1.weight"].abs().max() > 1e-4
    assert plain["loss.logit_scale"].abs() > 1e-6


def test_dropout_is_the_same_in_both_passes():
    batch, size = pairs(), 4

    def in_one_graph(system):
        """The same masks, drawn piece by piece, but every activation kept."""
        parts, alone = [], 0.0
        for start in range(0, 10, size):
            rows = {name: getattr(batch, name)[start : start + size] for name in ("query", "reference", "uv")}
            embedded, terms = system.embed_pairs(Batch(**rows))
            parts.append(embedded)
            alone = alone + terms["alone"] * len(rows["uv"]) / 10
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        terms = {**system.loss_terms(whole, batch), "alone": alone}
        sum(terms.values()).backward()
        return terms

    system = system_with(dropout=0.5)
    _, kept = gradients(system, in_one_graph)
    _, cached = gradients(system, lambda system: backward(system, batch, micro_batch=size))
    assert close(cached, kept)
    _, other = gradients(system_with(), lambda system: backward(system, batch, micro_batch=size))
    assert not close(cached, other)  # the masks were there


def test_random_numbers_go_on_as_if_there_had_been_one_pass():
    def after(micro_batch):
        torch.manual_seed(3)
        backward(system_with(dropout=0.5), pairs(), micro_batch=micro_batch)
        return torch.rand(1)

    torch.manual_seed(0)
    assert torch.equal(after(5), after(5))


def test_the_loss_may_be_scaled():
    system, batch = system_with(), pairs()
    _, plain = gradients(system, lambda system: backward(system, batch))
    _, scaled = gradients(system, lambda system: backward(system, batch, micro_batch=3, scale=lambda loss: loss * 8))
    assert close({name: gradient / 8 for name, gradient in scaled.items()}, plain)


def test_activations_of_one_piece_at_a_time():
    """At no time is more than a micro-batch embedded with activations."""
    sizes = []

    class Watched(Tiny):
        def embed_queries(self, batch):
            if torch.is_grad_enabled():
                sizes.append(len(batch.query))
            return super().embed_queries(batch)

    torch.manual_seed(0)
    backward(Watched().train(), pairs(), micro_batch=4)
    assert sizes == [4, 4, 2]


def test_a_system_that_compares_no_pairs():
    class Other(SystemModule):
        task = "localization"

        def training_step(self, batch):
            return {"mean": batch.query.mean()}

    with pytest.raises(RecipeError, match=r"Other compares no pairs of a batch; set optim\.micro_batch to 0"):
        backward(Other(), pairs(), micro_batch=4)


def test_batchnorm_is_refused(toy, tmp_path):  # noqa: F811
    with pytest.raises(RecipeError, match=r"'optim\.micro_batch' needs a network without BatchNorm"):
        train(recipe("optim.micro_batch=4"), toy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_in_micro_batches_is_a_run(toy, tmp_path):  # noqa: F811
    """As good as equal to the plain run, and bit for bit equal to itself when stopped and resumed."""
    augment = [f"augment.{name}=0.0" for name in ("flip", "rotate", "color", "blur", "cut")]
    options = [*CONVNEXT, *augment, "optim.epochs=2", "optim.lr=1e-4"]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = train(recipe(*options), toy, tmp_path / "plain")
    cached = recipe(*options, "optim.micro_batch=3")
    whole = train(cached, toy, tmp_path / "whole")
    parts = train(cached, toy, tmp_path / "parts", max_steps=4)
    train(cached, toy, parts)
    torch.set_num_threads(before)
    losses = [[line["loss"] for line in log(run) if "loss" in line] for run in (plain, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert without_time(log(parts)) == without_time(log(whole))
    assert same(final_weights(parts), final_weights(whole))


def test_the_recipe_key():
    with pytest.raises(RecipeError, match=r"optim\.micro_batch' must be at least 0"):
        dataclasses.replace(ModelRecipe(name="a").optim, micro_batch=-1)
