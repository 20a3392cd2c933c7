"""Certified training inside a trainer: what it learns is kept, warm-ups, averaged and perturbed weights, precision."""

import copy
import math
from functools import partial

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from shell import Arrays, adversary, classifier, digits, trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from wdro_train.attacks import Fixed
from wdro_train.certificates import LinearRelaxation
from wdro_train.objectives import Ibp, OneRadius
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.training.adversary.certified_groups import CertifiedGroups
from wdro_train.training.callbacks import (
    AdversarialWeightPerturbation,
    GradualWarmup,
    RadiusWarmup,
    RunCheckpoint,
    SeedEpoch,
)
from wdro_train.training.module import OBJECTIVE_KEY
from wdro_train.utils.errors import UserError

THREAT = {"p": 2, "norm": math.inf, "delta": 0.1}


def relu_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


def fit(folder, epochs, ckpt_path=None, delta=0.1, **kwargs):
    """A run on interval bounds, with a checkpoint at the end of each epoch."""
    module = classifier(
        relu_network(),
        objective=Ibp(p=2, norm="inf", delta=delta),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        config={"attack": {"p": 2, "norm": "inf", "delta": delta}},
    )
    last = RunCheckpoint(folder, filename="last", enable_version_counter=False)
    judge = adversary(val_attack=None, first_order=None, certificate="ibp", delta=delta)
    door = trainer([judge, SeedEpoch(3), last], max_epochs=epochs, enable_checkpointing=True, **kwargs)
    door.fit(module, datamodule=Arrays(num_workers=0), ckpt_path=ckpt_path, weights_only=True)
    return module, door


@pytest.mark.slow
@pytest.mark.covers
def test_resumed_run_ends_like_the_uninterrupted_one(tmp_path):
    whole, door = fit(tmp_path / "whole", 4)
    half, _ = fit(tmp_path / "half", 2)
    kept = torch.load(tmp_path / "half/last.ckpt", weights_only=True)[OBJECTIVE_KEY]
    assert kept["distance"] == half.objective.state_dict()["distance"] > 0.005
    resumed, again = fit(tmp_path / "rest", 4, tmp_path / "half/last.ckpt")
    assert resumed.objective.state_dict()["distance"] == pytest.approx(whole.objective.state_dict()["distance"])
    torch.testing.assert_close(dict(resumed.state_dict()), dict(whole.state_dict()), rtol=1e-6, atol=1e-6)
    assert 0 <= door.callback_metrics["val/certified_acc"] <= door.callback_metrics["val/clean_acc"]
    torch.testing.assert_close(again.callback_metrics["train/radius"], door.callback_metrics["train/radius"])


def test_what_was_learnt_of_another_threat_is_forgotten(tmp_path):
    before, _ = fit(tmp_path / "first", 3)
    with pytest.warns(UserWarning, match="the threat changed"):
        after, _ = fit(tmp_path / "second", 4, tmp_path / "first/last.ckpt", delta=0.001)
    assert before.objective.state_dict()["distance"] > 0.005
    assert after.objective.state_dict()["distance"] == pytest.approx(0.00005 * math.exp(6 * 0.02), rel=1e-3)


class Watch(Callback):
    """Remembers how far each step asked for, and what it weighed the bound with."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, door, module, *_):
        self.seen.append((module.objective._share, module.objective.radius.marginal.reach(THREATENED, torch.zeros(1))))


THREATENED = Ibp(**THREAT).ball


@pytest.mark.parametrize(
    ("warmup", "accumulate", "expected"),
    [
        (GradualWarmup(0.5), 1, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
        (GradualWarmup(0.5), 2, [0, 0, 0.5, 0.5, 1, 1, 1, 1]),
        (RadiusWarmup(2), 1, [0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1]),
    ],
)
def test_warm_ups(warmup, accumulate, expected):
    watch = Watch()
    module = classifier(relu_network(), objective=Ibp(**THREAT, radius=OneRadius(Fixed(0.2))))
    options = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 0}
    door = trainer([warmup, watch], accumulate_grad_batches=accumulate, **options)
    door.fit(module, datamodule=Arrays(num_workers=0))
    assert [share for share, _ in watch.seen] == pytest.approx(expected)
    assert [float(reach) for _, reach in watch.seen] == pytest.approx([0.2 * share for share in expected])


def test_warm_ups_that_are_none():
    for part in (0, 1.5):
        with pytest.raises(UserError, match="is no share of the run"):
            GradualWarmup(part)
    door = trainer([GradualWarmup()], max_epochs=-1, max_steps=-1)
    with pytest.raises(UserError, match=r"set trainer\.max_steps"):
        door.fit(classifier(relu_network(), objective=Ibp(**THREAT)), datamodule=Arrays(num_workers=0))
    module, (x, y) = classifier(relu_network(), objective=Ibp(**THREAT)), digits(16)
    with pytest.raises(UserError, match=r"set trainer\.max_steps.*known length"):
        trainer([GradualWarmup()]).fit(module, DataLoader(Unsized(x, y), batch_size=None))
    with pytest.raises(UserError, match=r"Standard has no strength.*callbacks\.warmup=null"):
        trainer([GradualWarmup()]).fit(classifier(relu_network()), datamodule=Arrays(num_workers=0))


class Unsized(IterableDataset):
    """Batches that nobody has counted."""

    def __init__(self, *batch):
        self.batch = batch

    def __iter__(self):
        yield self.batch


def test_a_longer_run_does_not_warm_up_again(tmp_path):
    options = {"limit_train_batches": 4, "limit_val_batches": 0, "enable_checkpointing": True}

    def shares(epochs, ckpt_path=None):
        watch, last = Watch(), RunCheckpoint(tmp_path, filename="last", enable_version_counter=False)
        door = trainer([GradualWarmup(0.5), watch, last], max_epochs=epochs, **options)
        module = classifier(relu_network(), objective=Ibp(**THREAT))
        door.fit(module, datamodule=Arrays(num_workers=0), ckpt_path=ckpt_path, weights_only=True)
        return [share for share, _ in watch.seen]

    assert shares(2) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert shares(4, tmp_path / "last.ckpt") == [1] * 8


def test_a_warm_up_of_another_file_is_refused():
    for steps in ("many", -1, math.nan, math.inf, None, True):
        with pytest.raises(UserError, match="warm-up lasts"):
            GradualWarmup().load_state_dict({"steps": steps})


def test_perturbed_weights_teach_the_marginal_distance_nothing():
    options = {"max_epochs": 1, "limit_train_batches": 5, "limit_val_batches": 0}
    distances = []
    for callbacks in ([], [AdversarialWeightPerturbation(gamma=1e-9)]):
        module = classifier(relu_network(), objective=Ibp(**THREAT))
        trainer([SeedEpoch(0), *callbacks], **options).fit(module, datamodule=Arrays(num_workers=0))
        distances.append(float(module.objective.state_dict()["distance"]))
    assert distances[0] == pytest.approx(distances[1], rel=1e-6)
    assert distances[0] == pytest.approx(0.005 * math.exp(5 * 0.02), rel=1e-3)


class KeepWeights(Callback):
    """Keeps the network as the last step left it."""

    def on_train_batch_end(self, door, module, *_):
        self.network = copy.deepcopy(module.model).eval()


@pytest.mark.parametrize("group", [512, 20])
@pytest.mark.slow
@pytest.mark.covers
def test_certified_accuracy_is_that_of_the_averaged_weights(monkeypatch, group):
    monkeypatch.setattr(CertifiedGroups.__init__, "__defaults__", (group,))
    module = classifier(relu_network(), objective=Ibp(**THREAT), optimizer=partial(torch.optim.Adam, lr=0.01))
    judge = adversary(val_attack=None, first_order=None, certificate="ibp", delta=0.01)
    averaging = EMAWeightAveraging(decay=0.95)
    own = KeepWeights()
    door = trainer([averaging, judge, SeedEpoch(0), own], max_epochs=8)
    data = Arrays(num_workers=0)
    door.fit(module, datamodule=data)
    assert door.callback_metrics["train/loss"].isfinite()
    found = door.callback_metrics["val/certified_acc"]
    expected = {}
    averaged = averaging._average_model.module.model
    for name, network in (("averaged", averaged), ("last", own.network)):
        radii = [LinearRelaxation(norm="inf", method="ibp")(network, x, y).radii for x, y in data.val_dataloader()]
        expected[name] = RobustnessCurve(torch.cat(radii)).accuracy(0.01, 2)
    assert found == pytest.approx(expected["averaged"], abs=1e-3)
    assert abs(expected["averaged"] - expected["last"]) > 0.01


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precision(precision):
    module = classifier(relu_network(), objective=Ibp(**THREAT, radius=OneRadius(Fixed(0.1))))
    door = trainer([SeedEpoch(0)], precision=precision, limit_val_batches=0)
    door.fit(module, datamodule=Arrays(num_workers=0))
    other = classifier(relu_network(), objective=Ibp(**THREAT, radius=OneRadius(Fixed(0.1))))
    full = trainer([SeedEpoch(0)], limit_val_batches=0)
    full.fit(other, datamodule=Arrays(num_workers=0))
    assert door.callback_metrics["train/bound"] == pytest.approx(float(full.callback_metrics["train/bound"]), rel=0.03)


@pytest.mark.parametrize("limit", [1, 2, 1.0])
@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_every_image_is_certified_however_many_batches_there_are(limit, command):
    counted, certificate = [], LinearRelaxation(norm="inf", method="ibp")

    class Counting:
        norm = math.inf

        def __call__(self, model, x, y, *, generator=None):
            counted.append(len(x))
            return certificate(model, x, y, generator=generator)

    judge = adversary(val_attack=None, first_order=None, certificate=Counting())
    limits = {f"limit_{stage}_batches": limit for stage in ("val", "test")} | {"num_sanity_val_steps": 0}
    door = trainer([judge], limit_train_batches=1, **limits)
    module, loader = classifier(relu_network()), DataLoader(TensorDataset(*digits(40)), batch_size=16)
    if command == "fit":
        door.fit(module, loader, loader)
    else:
        getattr(door, command)(module, loader, verbose=False)
    assert sum(counted) == (16 * limit if isinstance(limit, int) else 40)
