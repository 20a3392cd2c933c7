"""A network of the user's own on the command line: it takes what it takes, and what does not fit is one sentence."""

import json
import textwrap

import pytest
import torch
from omegaconf import OmegaConf
from shell import run
from test_bad_input import composed
from torch import nn

from wdro_train.cli import schemas
from wdro_train.cli.own_network import own_network
from wdro_train.config.build import build_model
from wdro_train.config.own_networks import take_from_images
from wdro_train.models import Normalize, load_weights
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.utils.errors import UserError

PACKAGE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Takes nothing that the networks of wdro_train take."""

    def __init__(self, classes=10, sizes=(64, 16)):
        super().__init__()
        assert isinstance(sizes, (list, tuple)), type(sizes)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(*sizes), nn.ReLU(), nn.Linear(sizes[-1], classes))

    def forward(self, x):
        return self.body(x)


def of_images(num_classes, shape, depth, std=3.0):
    if depth > 3:
        raise ValueError("too deep")
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes))


def ready(path="ready.pt"):
    network = Net()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


def no_network():
    return {"a": 1}
'''
NET = "model._target_=own_package.Net"


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    """A package of the user's, on Python's path."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "own_package.py").write_text(textwrap.dedent(PACKAGE))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def checked(door, *typed):
    """The configuration that a run would have, checked as before a run."""
    cfg = composed(door, *own_network(list(typed), door))
    take_from_images(cfg)
    schemas.check(cfg, door)
    return cfg


def network(*typed):
    cfg = checked("train", *typed)
    return build_model(OmegaConf.create(OmegaConf.to_container(cfg, resolve=False, throw_on_missing=False)).model)


def test_it_gets_what_was_typed_and_nothing_else():
    cfg = checked("train", NET, "model.classes=7", "model.sizes=[64,8]")
    assert set(cfg.model) - {"weights", "normalize"} == {"_target_", "classes", "sizes"}
    assert network(NET, "model.classes=7", "model.sizes=[64,8]")(torch.rand(2, 1, 8, 8)).shape == (2, 7)
    assert network(NET)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_an_experiment_does_not_bring_its_own_network():
    cfg = checked("train", "experiment=cifar10_resnet18", NET)
    assert set(cfg.model) == {"_target_", "weights", "normalize"}


def test_what_it_needs_of_the_images_it_gets_and_defaults_stay():
    cfg = checked("train", "model._target_=own_package.of_images", "model.depth=2")
    assert (cfg.model.num_classes, list(cfg.model.shape)) == (10, [1, 8, 8])
    assert "std" not in cfg.model
    assert checked("train", "model._target_=own_package.of_images", "model.depth=2", "model.num_classes=3").model == {
        **cfg.model,
        "num_classes": 3,
    }


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([NET, "model.clases=7"], "model.clases is not a setting of Net; did you mean classes?"),
        ([NET, "model.width=7"], "model.width is not a setting of Net; it takes classes=10, sizes=(64, 16)"),
        (["model._target_=own_package.of_images"], "needs depth; give model.depth=... (it takes num_classes, shape, "),
        (["model._target_=own_package.Nett"], "cannot be imported (own_package has no Nett)"),
        (["model._target_=nowhere.Net"], "cannot be imported (No module named 'nowhere')"),
        ([NET, "model.normalize=0.5"], "model.normalize=0.5 is no normalisation; give [mean,std], as [0.5,0.25]"),
        ([NET, "model.normalize=[0.5,0]"], "model.normalize=[0.5,0] is no normalisation"),
        ([NET, "model.normalize=[[0.1,0.2,0.3],0.5]"], "is for 3 channels, but data.shape=[1, 8, 8] has 1"),
        (["model=own"], "model._target_=??? is not a name; give package.module.Constructor"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_made(typed, said):
    with pytest.raises(UserError) as refused:
        checked("train", *typed)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            [NET, "model.classes=many"],
            r"own_package.Net cannot be made with classes='many' \(TypeError: .*line 12\); it",
        ),
        (["model._target_=own_package.of_images", "model.depth=4"], r"ValueError: too deep .*takes num_classes, shape"),
        (["model._target_=own_package.no_network"], "makes a dict, not a torch.nn.Module; name a class or function"),
        ([NET, "model.weights=nowhere.pt"], "there is no file model.weights=nowhere.pt"),
        (["model=small_cnn", "model.normalize=[0.5,0.5]"], "begins with its own normalisation"),
    ],
)
def test_what_fails_when_it_is_made_is_said_too(typed, said):
    with pytest.raises(UserError, match=said) as refused:
        network(*typed)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.covers
def test_normalisation_and_weights_of_any_network(tmp_path):
    one = network(NET)
    torch.save({"net": {f"module.{name}": value for name, value in one.state_dict().items()}}, tmp_path / "net.pt")
    two = network(NET, f"model.weights={tmp_path / 'net.pt'}", "model.normalize=[0.25,[0.5]]")
    x = torch.rand(3, 1, 8, 8)
    assert isinstance(two[0], Normalize)
    assert torch.equal(two(x), one((x - 0.25) / 0.5))
    torch.save({"a": one.state_dict(), "b": network(NET).state_dict()}, tmp_path / "two.pt")
    three = network(NET, f"model.weights={tmp_path / 'two.pt'}", "model.weights_key=a")
    assert torch.equal(three(x), one(x))


QUICK = ["logger=none", "callbacks.images=null", "callbacks.progress=null", "trainer.max_epochs=1", "trainer=cpu"]
QUICK += ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
QUICK += ["data.eval_batch_size=16", "attack.steps=1"]
JUDGE = ["poster=null", "limit=16", "distances.steps=2", "pictures=0", "accelerator=cpu"]


@pytest.mark.slow
def test_it_is_trained_and_judged_from_the_users_folder(package, tmp_path):
    """Beside nothing of this project, and not on Python's path: as after `pip install` of it."""
    (tmp_path / "own_package.py").write_text((package / "own_package.py").read_text())
    own = [NET, "model.sizes=[64,8]", "model.normalize=[0.3,0.4]"]
    trained = run("train.py", *own, *QUICK, "hydra.run.dir=runs/own", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    checkpoint = "ckpt_path=runs/own/checkpoints/best.ckpt"
    refused = run("evaluate.py", checkpoint, *JUDGE, cwd=tmp_path)
    assert refused.returncode == 1
    assert f"name it yourself, with {NET} (evaluate.py)" in refused.stderr
    alone = read_checkpoint(tmp_path / "runs/own/checkpoints/best.ckpt")["state_dict"]
    bare = {name.removeprefix("model.1."): value for name, value in alone.items() if name.startswith("model.1.")}
    torch.save({"state_dict": bare}, tmp_path / "net.pt")
    found = []
    for number, typed in enumerate(
        (
            [checkpoint, NET],
            [NET],  # the newest run
            [*own, "data=digits", "model.weights=net.pt"],
            [*own, "data=digits", "model.weights=runs/own/checkpoints/best.ckpt"],
        )
    ):
        judged = run("evaluate.py", *typed, *JUDGE, f"hydra.run.dir=out{number}", cwd=tmp_path)
        assert judged.returncode == 0, f"{typed}\n{judged.stderr}"
        found.append(json.loads((tmp_path / f"out{number}/report.json").read_text())["models"][0])
    assert all(one["distances"]["values"] == found[0]["distances"]["values"] for one in found)
    assert [one["name"] for one in found] == ["runs/own", "runs/own", "net", "best"]
    both = run("evaluate.py", checkpoint, NET, "+model.weights=net.pt", *JUDGE, cwd=tmp_path)
    assert "leave out model.weights=net.pt" in both.stderr


@pytest.mark.slow
def test_weights_of_its_own_are_judged_and_random_ones_are_not(package, tmp_path):
    (tmp_path / "own_package.py").write_text((package / "own_package.py").read_text())
    import own_package

    torch.save(own_package.Net().state_dict(), tmp_path / "ready.pt")
    ready = ["model._target_=own_package.ready", "data=digits", *JUDGE]
    without = run("evaluate.py", *ready, cwd=tmp_path)
    assert without.returncode == 1
    assert "ready has no weights; give model.weights=FILE, model.weights=own if its constructor" in without.stderr
    judged = run("evaluate.py", *ready, "model.weights=own", "hydra.run.dir=out", cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    network = json.loads((tmp_path / "out/report.json").read_text())["models"][0]
    assert (network["name"], network["checkpoint"]) == ("ready", "own_package.ready (its own weights)")
    random = run("evaluate.py", NET, "data=digits", "model.weights=own", *JUDGE, cwd=tmp_path)
    assert random.returncode == 1
    assert "two calls of it gave different ones, so they are random" in random.stderr


def test_the_weights_of_a_file_are_those_of_the_network(tmp_path):
    """`load_weights` by itself, around a normalisation as `model.normalize` puts it."""
    torch.manual_seed(0)
    inner, outer = nn.Linear(4, 2), nn.Sequential(Normalize(0.5, 0.5), nn.Linear(4, 2))
    torch.save(inner.state_dict(), tmp_path / "inner.pt")
    load_weights(outer, tmp_path / "inner.pt")
    assert torch.equal(outer[1].weight, inner.weight)
