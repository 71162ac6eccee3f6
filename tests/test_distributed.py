"""Two processes (gloo) against one."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_gradcache import CONVNEXT
from test_training import final_weights, log, recipe

from cvgl_data.errors import RecipeError
from cvgl_models.samplers import deal
from cvgl_models.systems import create_system
from cvgl_models.training.preparing import check_normalization
from cvgl_models.training.ranks import Ranks, _buckets

SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_gradcache import pairs, system_with
from test_training import recipe
from toy_dataset import toy_dataset
from cvgl_models.semi_positives import SemiPositives
from cvgl_models.training import train
from cvgl_models.training.gradients import backward
from cvgl_models.training.ranks import joined
from cvgl_models.transforms import Batch

what, out, options = sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
if what == "gradients":
    with joined(torch.device("cpu")) as ranks:
        whole, half = pairs(), slice(ranks.rank * 5, ranks.rank * 5 + 5)
        fields = ("query", "reference", "uv", "heading_deg", "query_row", "reference_row")
        share = Batch(**{name: getattr(whole, name)[half] for name in fields}, ignore=whole.ignore)
        system = system_with()
        if ranks.rank:  # weights that differ are put right
            torch.nn.init.zeros_(system.net[1].bias)
        ranks.share_weights(system)
        found = {}
        for micro_batch in (0, 2):
            system.zero_grad()
            terms = backward(system, share, micro_batch=micro_batch, ranks=ranks)
            found[str(micro_batch)] = {
                "terms": {name: term.item() for name, term in terms.items()},
                "gradients": {name: p.grad.tolist() for name, p in system.named_parameters()},
            }
        assert ranks.any(ranks.rank == 1) and not ranks.any(False)
        assert ranks.of_first(ranks.rank) == 0
        rows = torch.full((1 + ranks.rank, 2), float(ranks.rank))
        assert ranks.concatenate(rows).tolist() == [[0, 0], [1, 1], [1, 1]]
        (out / f"{ranks.rank}.json").write_text(json.dumps(found))
else:
    train(recipe(*options), toy_dataset(grid=4, test_grid=2), out)
"""


def two_processes(tmp_path, *arguments):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    command += [str(script), tests, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    return done.returncode, done.stderr


def test_loss_and_gradients_are_those_of_one_process_with_the_double_batch(tmp_path):
    from test_gradcache import gradients, pairs, system_with

    from cvgl_models.training.gradients import backward

    code, errors = two_processes(tmp_path, "gradients", tmp_path)
    assert code == 0, errors
    terms, expected = gradients(system_with(), lambda system: backward(system, pairs()))
    for rank in (0, 1):
        for found in json.loads((tmp_path / f"{rank}.json").read_text()).values():
            assert found["terms"] == pytest.approx({name: term.item() for name, term in terms.items()}, rel=1e-5)
            for name, gradient in expected.items():
                np.testing.assert_allclose(found["gradients"][name], gradient.numpy(), rtol=1e-4, atol=1e-7)


def test_a_run_of_two_processes_is_a_run_of_one(tmp_path):
    """Everything in turn: mined neighbors, semi-positives, validation, averaged weights, the writing of one process."""
    from toy_dataset import toy_dataset

    from cvgl_models.training import train

    options = [*CONVNEXT, "encoder.shared=true", "optim.epochs=2", "optim.lr=1e-4", "optim.ema_decay=0.9"]
    options += ["sampler.similarity_every_n_epochs=1", "sampler.semi_positive_policy=soft"]
    options += [f"augment.{name}=0.0" for name in ("flip", "rotate", "color", "blur", "cut")]
    code, errors = two_processes(tmp_path, "run", tmp_path / "two", *options)
    assert code == 0, errors
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    train(recipe(*options), toy_dataset(grid=4, test_grid=2), tmp_path / "one")
    torch.set_num_threads(before)
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for key in ("loss", "grad_norm"):
        values = [[line[key] for line in lines if key in line] for lines in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=2e-3)
    assert [line.get("validation_recall_at_1") for line in one] == [line.get("validation_recall_at_1") for line in two]
    for path in ("one", "two"):
        assert (tmp_path / path / "best.safetensors").is_file()
    ones, twos = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    assert all(torch.allclose(ones[name], twos[name], atol=1e-3) for name in ones)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    assert load_file(tmp_path / "two" / "best.safetensors").keys() == twos.keys()


def test_equal_shares():
    batch = np.arange(12)
    assert np.concatenate([deal(batch, rank, 4) for rank in range(4)]).tolist() == batch.tolist()
    assert deal(batch, 2, 4).tolist() == [6, 7, 8]
    with pytest.raises(RecipeError, match=r"is 12, of which 5 processes cannot have equal shares; .* multiple of 5"):
        deal(batch, 0, 5)


def test_batchnorm_between_processes_without_gpus_is_refused():
    system = create_system(recipe())
    check_normalization(system, 0, Ranks(), torch.device("cpu"))
    with pytest.raises(RecipeError, match="BatchNorm cannot be trained by several processes without GPUs"):
        check_normalization(system, 0, Ranks(0, 2), torch.device("cpu"))


def test_gradients_are_summed_in_buckets(monkeypatch):
    import cvgl_models.training.ranks as module

    monkeypatch.setattr(module, "_BUCKET_ELEMENTS", 10)
    tensors = [torch.zeros(4), torch.zeros(5), torch.zeros(3), torch.zeros(20), torch.zeros(2, dtype=torch.float64)]
    assert [[len(each) for each in bucket] for bucket in _buckets(tensors)] == [[4, 5], [3], [20], [2]]
