"""Weights of other programs find their place in a network, or what does not fit is named."""

import json

import pytest
import torch
from safetensors.torch import save_file
from shell import run
from torch import nn
from torchvision.models import resnet18 as plain_resnet18

from wdro_train.models import (
    load_weights,
    small_cnn,
    torchvision_model,
)
from wdro_train.utils.errors import UserError

COLOUR = {"shape": (3, 32, 32), "mean": [0.0] * 3, "std": [1.0] * 3}
SMALL = {"shape": (1, 8, 8), "num_classes": 10, "mean": [0.3], "std": [0.4]}


def cnn(seed):
    torch.manual_seed(seed)
    return small_cnn(**SMALL, width=4)


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.model.", "model._orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_weights_are_found_behind_wrappers(prefix, wrapper, tmp_path):
    weights = {prefix + name: value for name, value in cnn(1).state_dict().items()}
    torch.save(weights if wrapper is None else {wrapper: weights, "epoch": 3}, tmp_path / "weights.pt")
    model = cnn(2)
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, cnn(1))


def test_the_only_network_in_a_list_is_read(tmp_path):
    torch.save({"state_dict": [cnn(1).state_dict()], "epoch": 3}, tmp_path / "weights.pt")
    model = cnn(2)
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, cnn(1))
    torch.save({"state_dict": [cnn(1).state_dict(), cnn(2).state_dict()]}, tmp_path / "cascade.pt")
    with pytest.raises(UserError, match="holds no named weights"):
        load_weights(model, tmp_path / "cascade.pt")


def test_safetensors(tmp_path):
    save_file(cnn(1).state_dict(), tmp_path / "weights.safetensors")
    model = cnn(2)
    load_weights(model, tmp_path / "weights.safetensors")
    assert same(model, cnn(1))


@pytest.mark.slow
def test_real_wrappers(tmp_path):
    for wrap in (nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile):
        torch.save(wrap(cnn(1)).state_dict(), tmp_path / "weights.pt")
        model = cnn(2)
        load_weights(model, tmp_path / "weights.pt")
        assert same(model, cnn(1)), wrap


def test_a_bare_network_fits_behind_the_normalisation(tmp_path):
    """torchvision's own state dict, for a network that this project normalises first."""
    torch.manual_seed(0)
    inner = plain_resnet18(num_classes=10)
    torch.save({"state_dict": inner.state_dict()}, tmp_path / "weights.pth")
    model = torchvision_model(**COLOUR, num_classes=10, name="resnet18")
    load_weights(model, tmp_path / "weights.pth")
    assert same(model[1], inner)


def test_what_does_not_fit_is_named(tmp_path):
    weights = cnn(1).state_dict()
    weights["8.weight"] = torch.zeros(3, 100)
    weights["9.weight"] = weights.pop("1.bias")
    torch.save(weights, tmp_path / "weights.pt")
    model, before = cnn(2), cnn(2)
    message = "lacks 1.bias; it has the unexpected 9.weight; in it 8.weight has shape .3, 100., not .10, 100.; choose"
    with pytest.raises(UserError, match=message):
        load_weights(model, tmp_path / "weights.pt")
    assert same(model, before)


def test_unreadable_weights(tmp_path):
    with pytest.raises(UserError, match=r"no file model.weights="):
        load_weights(cnn(1), tmp_path / "none.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"whole.pt cannot be read .*; save it as"):
        load_weights(cnn(1), tmp_path / "whole.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678{")
    with pytest.raises(UserError, match=r"bad.safetensors cannot be read"):
        load_weights(cnn(1), tmp_path / "bad.safetensors")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds no named weights"):
        load_weights(cnn(1), tmp_path / "list.pt")


QUICK = ["logger=none", "callbacks.images=null", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
QUICK += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "trainer.accelerator=cpu"]
QUICK += ["data.eval_batch_size=16", "attack.steps=2"]
JUDGE = ["poster=null", "limit=16", "distances.steps=2", "pictures=0", "accelerator=cpu"]


@pytest.mark.slow
def test_own_weights_train_on_and_are_not_needed_again(tmp_path):
    """A run started from a file leaves a checkpoint that stands alone; the file is judged without a run."""
    save_file(cnn(1).state_dict(), tmp_path / "start.safetensors")
    model = ["model=small_cnn", "model.width=4", "model.weights=start.safetensors"]
    trained = run("train.py", *model, *QUICK, "optimizer.lr=0", "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    checkpoint = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(checkpoint[f"model.{name}"], value) for name, value in cnn(1).state_dict().items())
    alone = run("evaluate.py", *model, "data=digits", *JUDGE, "hydra.run.dir=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    (tmp_path / "start.safetensors").unlink()
    judged = run("evaluate.py", "ckpt_path=run/checkpoints/best.ckpt", *JUDGE, "hydra.run.dir=out", cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    one, other = (json.loads((tmp_path / f / "report.json").read_text()) for f in ("alone", "out"))
    assert one["threat"] == other["threat"] == {"p": 2.0, "norm": "inf", "delta": 0.1}
    assert one["models"][0]["distances"]["values"] == other["models"][0]["distances"]["values"]
    missing = run("evaluate.py", "model=small_cnn", "data=digits", *JUDGE, cwd=tmp_path)
    assert missing.returncode == 1
    assert "has no weights; give model.weights=" in missing.stderr
