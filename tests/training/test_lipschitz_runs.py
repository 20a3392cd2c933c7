"""Training on the certificate of Lipschitz constants inside a trainer, and from the command line."""

import json
import math
from functools import partial

import pytest
import torch
from shell import SMALL, Arrays, adversary, classifier, run, trainer

from wdro_train.models import lipschitz_mlp
from wdro_train.objectives import LipschitzDual
from wdro_train.training.callbacks import RunCheckpoint, SeedEpoch
from wdro_train.training.module import OBJECTIVE_KEY

LIPSCHITZ = ["method=lipschitz_dual", "model=lipschitz_mlp", "attack.norm=2", "attack.delta=0.3"]


def fit(folder, epochs, ckpt_path=None, **kwargs):
    """A run on l_2 radii of a small network, with a checkpoint at the end of each epoch."""
    torch.manual_seed(0)
    module = classifier(
        lipschitz_mlp((1, 8, 8), 10, [0.3], [0.3], width=16, depth=1),
        objective=LipschitzDual(p=2, norm=2, delta=0.3),
        optimizer=partial(torch.optim.Adam, lr=0.01),
        config={"attack": {"p": 2, "norm": 2, "delta": 0.3}},
    )
    last = RunCheckpoint(folder, filename="last", enable_version_counter=False)
    judge = adversary(norm=2, delta=0.3, val_attack=None, first_order=None, certificate="lipschitz")
    door = trainer([judge, SeedEpoch(3), last], max_epochs=epochs, enable_checkpointing=True, **kwargs)
    door.fit(module, datamodule=Arrays(num_workers=0), ckpt_path=ckpt_path, weights_only=True)
    return module, door


@pytest.mark.slow
@pytest.mark.covers
def test_resumed_run_ends_like_the_uninterrupted_one(tmp_path):
    whole, door = fit(tmp_path / "whole", 6)
    half, _ = fit(tmp_path / "half", 3)
    kept = torch.load(tmp_path / "half/last.ckpt", weights_only=True)[OBJECTIVE_KEY]
    assert kept["distance"] == half.objective.state_dict()["distance"] > 0.3
    resumed, again = fit(tmp_path / "rest", 6, tmp_path / "half/last.ckpt")
    assert resumed.objective.state_dict()["distance"] == pytest.approx(whole.objective.state_dict()["distance"])
    torch.testing.assert_close(dict(resumed.state_dict()), dict(whole.state_dict()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.callback_metrics["train/loss"], door.callback_metrics["train/loss"])
    values = door.callback_metrics
    assert 0 < values["val/certified_acc"] < values["val/clean_acc"]
    assert values["val/certified_ratio"] == pytest.approx(float(values["val/certified_acc"] / values["val/clean_acc"]))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision(tmp_path, precision):
    _, full = fit(tmp_path / "full", 1)
    _, other = fit(tmp_path / "other", 1, precision=precision)
    for key in ("train/loss", "val/certified_acc"):
        assert other.callback_metrics[key] == pytest.approx(float(full.callback_metrics[key]), rel=0.05, abs=0.03)


@pytest.mark.slow
def test_one_process_and_two_agree(tmp_path):
    options = [
        "trainer.max_epochs=2",
        "trainer.limit_train_batches=6",
        "optimizer.lr=0.05",
        "trainer.precision=64-true",
    ]
    for name in ("cpu", "ddp_sim"):
        quick = [f"trainer={name}", "model.width=16", "model.depth=1", "logger=csv", "attack.delta=0.02"]
        done = run("train.py", *LIPSCHITZ, *quick, *options, f"hydra.run.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("cpu", "ddp_sim"))
    assert one["monitor"] == "val/certified_acc"
    for stage in ("val", "test"):
        assert 0 < one[stage]["certified_acc"] < one[stage]["clean_acc"]
        assert two[stage] == pytest.approx(one[stage], rel=1e-6, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("p", ["1", "inf"])
def test_every_order_from_the_command_line(tmp_path, p):
    quick = [*SMALL, "model.width=16", "model.depth=1", "trainer.max_epochs=2"]
    done = run("train.py", *LIPSCHITZ, *quick, f"attack.p={p}", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert math.isfinite(found["test"]["certified_acc"])
    assert found["monitor"] == "val/certified_acc"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model=small_cnn"], "layer 1 (Conv2d) has a Lipschitz constant that training changes"),
        (["model=resnet18"], "layer 1 (ResNet) has a Lipschitz constant that training changes"),
        (["attack.norm=inf"], "choose attack.norm=2"),
        (["model.width=7"], "model.width=7"),
        (["callbacks.adversary.certificate=lipshitz"], "lipshitz is no certificate"),
    ],
)
def test_what_cannot_be_trained_on_its_certificate_is_refused_before_any_epoch(tmp_path, options, message):
    quick = [option for option in SMALL if not option.startswith("model.")]
    done = run("train.py", *LIPSCHITZ, *quick, *options, "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "out/checkpoints").exists()
