"""Weights of other programs find their place in a network, or what does not fit is named."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
    with pytest.raises(UserError, match=r"several networks that fit, under state_dict.0, state_dict.1; choose one"):
        load_weights(model, tmp_path / "cascade.pt")
    load_weights(model, tmp_path / "cascade.pt", "state_dict.1")
    assert same(model, cnn(2))


# What programs keep beside the weights; none of it fits the network.
BESIDE = {
    "epoch": 3,
    "best_acc1": 0.5,
    "args": {"lr": 0.1, "arch": ["cnn", "small"]},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "exp_avg": cnn(7).state_dict(), "param_groups": [{}]},
    "losses": torch.zeros(3),
}
KEYS = ["state_dict", "model_state_dict", "model", "net", "network", "ema", "params", "weights", "last", "0"]
PREFIXES = ["module.", "model.", "_orig_mod.", "net.", "network.", "backbone.", "module.model.", "1.", "0.module."]


@st.composite
def wrapped(draw):
    """The weights of a network as programs save them, and the keys that lead to them."""
    names = cnn(1).state_dict()
    prefix = "".join(draw(st.lists(st.sampled_from(PREFIXES), max_size=3)))
    inner = draw(st.sampled_from(["", "_orig_mod.", "module."]))  # of a part that was wrapped by itself
    content = {prefix + name[:2] + inner + name[2:]: value for name, value in names.items()}
    path = []
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            key = draw(st.sampled_from(KEYS))
            path.insert(0, key)
            beside = draw(st.lists(st.sampled_from(sorted(BESIDE)), unique=True, max_size=3))
            content = {**{name: BESIDE[name] for name in beside if name != "losses" or path}, key: content}
        else:
            path.insert(0, "0")
            content = draw(st.sampled_from([list, tuple]))([content])
    return content, path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saved=wrapped())
def test_whatever_is_wrapped_around_weights_they_are_found(saved, tmp_path):
    torch.save(saved[0], tmp_path / "weights.pt")
    model = cnn(2)
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, cnn(1))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    saved=wrapped(),
    name=st.sampled_from(list(cnn(1).state_dict())),
    damage=st.sampled_from(["lost", "renamed", "longer", "whole numbers", "more"]),
)
def test_whatever_is_wrapped_around_weights_that_do_not_fit_they_are_refused(saved, name, damage, tmp_path):
    """One weight is lost, renamed, of another shape or kind, or there is one more: it is named, and nothing changes."""
    content, path = saved
    inner = content
    for key in path:
        inner = inner[0] if isinstance(inner, list | tuple) else inner[key]
    full = next(one for one in inner if one.endswith(name.split(".")[1]) and f"{name[:2]}" in one)
    if damage == "more":
        inner[full + "_2"] = torch.zeros(2)
    value = inner.pop(full) if damage in ("lost", "renamed") else inner[full]
    if damage == "renamed":
        inner[full.replace("bias", "shift").replace("weight", "kernel")] = value
    if damage == "longer":
        inner[full] = torch.cat([value, value])
    if damage == "whole numbers":
        inner[full] = value.to(torch.int8)
    torch.save(content, tmp_path / "weights.pt")
    model, before = cnn(2), cnn(2)
    with pytest.raises(UserError) as refused:
        load_weights(model, tmp_path / "weights.pt")
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert same(model, before)


def test_two_networks_in_a_file_are_told_apart_by_the_user(tmp_path):
    """Averaged weights beside the last ones: whichever were taken, it would be a guess."""
    torch.save({"model": cnn(1).state_dict(), "model_ema": cnn(2).state_dict()}, tmp_path / "both.pt")
    model = cnn(3)
    with pytest.raises(UserError, match=r"under model, model_ema; choose one with model.weights_key="):
        load_weights(model, tmp_path / "both.pt")
    for number, key in ((1, "model"), (2, "model_ema")):
        load_weights(model, tmp_path / "both.pt", key)
        assert same(model, cnn(number))
    with pytest.raises(UserError, match=r"nothing under model.weights_key=ema; it has model, model_ema"):
        load_weights(model, tmp_path / "both.pt", "ema")
    torch.save({"model": cnn(1).state_dict(), "again": cnn(1).state_dict()}, tmp_path / "twice.pt")
    load_weights(model, tmp_path / "twice.pt")
    assert same(model, cnn(1))


def test_what_lies_beside_the_network_is_left_out_by_request_only(tmp_path):
    """A normalisation outside the network would change every number."""
    weights = {f"module.model.{name}": value for name, value in cnn(1).state_dict().items()}
    torch.save({"model": weights | {"module.normalizer.mean": torch.zeros(3)}}, tmp_path / "more.pt")
    model = cnn(2)
    with pytest.raises(UserError, match=r"under model.model and, beside it, module.normalizer.mean; if"):
        load_weights(model, tmp_path / "more.pt")
    load_weights(model, tmp_path / "more.pt", "model.model")
    assert same(model, cnn(1))


def test_checkpoints_of_lightning(tmp_path):
    """Of a LightningModule of one's own: its losses are left out with a warning, averaging's copies without."""
    weights = {f"backbone.{name}": value for name, value in cnn(1).state_dict().items()}
    saved = {"state_dict": weights | {"criterion.weight": torch.ones(10)}, "current_model_state": cnn(2).state_dict()}
    torch.save({**saved, "pytorch-lightning_version": "2.6.0"}, tmp_path / "own.ckpt")
    model = cnn(3)
    with pytest.warns(UserWarning, match="left out criterion.weight"):
        load_weights(model, tmp_path / "own.ckpt")
    assert same(model, cnn(1))


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


def test_weights_of_a_training_that_diverged_are_one_network(tmp_path):
    weights = cnn(1).state_dict()
    weights["8.bias"][3] = float("nan")
    torch.save({"model": weights, "half": {name: value.half() for name, value in weights.items()}}, tmp_path / "two.pt")
    torch.save(weights, tmp_path / "weights.pt")
    model = cnn(2)
    load_weights(model, tmp_path / "weights.pt")
    assert model[8].bias.isnan().tolist() == [k == 3 for k in range(10)]
    with pytest.raises(UserError, match="several networks that fit, under model, half"):
        load_weights(model, tmp_path / "two.pt")


@pytest.mark.parametrize(
    ("form", "kind"), [(torch.Tensor.to_sparse, "sparse"), (lambda values: values.to("meta"), "without values")]
)
def test_tensors_that_are_not_numbers_in_full_are_named(form, kind, tmp_path):
    weights = cnn(1).state_dict()
    torch.save(weights | {"8.weight": form(weights["8.weight"])}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=f"8.weight is {kind}, not a tensor of numbers in full"):
        load_weights(cnn(2), tmp_path / "weights.pt")


def test_unreadable_weights(tmp_path):
    with pytest.raises(UserError, match=r"no file model.weights="):
        load_weights(cnn(1), tmp_path / "none.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"whole.pt cannot be read .*; save it as"):
        load_weights(cnn(1), tmp_path / "whole.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678{")
    (tmp_path / "words.pt").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"words.pt cannot be read \(it is damaged, or was not written by torch.save"):
        load_weights(cnn(1), tmp_path / "words.pt")
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
