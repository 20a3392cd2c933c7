"""Interrupted runs continue, and end where uninterrupted ones end; bad checkpoints and NaN losses say so."""

import csv
import json
import os
import signal
import subprocess
import time
from functools import partial

import pytest
import torch
from lightning import Callback
from shell import Arrays, adversary, classifier, command, network, run, trainer
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from wdro_train.callbacks import OverfittingWarning, RunCheckpoint, SeedEpoch, ValidationHistory
from wdro_train.checkpoint import check_weights, read_checkpoint
from wdro_train.errors import UserError
from wdro_train.objectives import Adversarial

QUICK = ["trainer=cpu", "logger=csv", "model.width=4", "callbacks.images=null", "+trainer.limit_train_batches=20"]


def fit(folder, epochs, ckpt_path=None, workers=0, **kwargs):
    """A run with everything that has a memory: momentum, cosine schedule, dropout, a running scope."""
    torch.manual_seed(99 if ckpt_path else 1)  # a resumed process does not start from the old one's random state
    module = classifier(
        network(dropout=0.5, batch_norm=True),
        objective=Adversarial(),
        optimizer=partial(SGD, lr=0.1, momentum=0.9),
        scheduler=partial(CosineAnnealingLR, T_max=4),
        config={"plain": [1, 2.0, "three"]},
    )
    best = RunCheckpoint(folder, filename="best", monitor="val/adv_acc", mode="max", **kwargs)
    last = RunCheckpoint(folder, filename="last", enable_version_counter=False, **kwargs)
    callbacks = [adversary(scope="running"), SeedEpoch(3), OverfittingWarning(), ValidationHistory(), best, last]
    door = trainer(callbacks, max_epochs=epochs, enable_checkpointing=True)
    data = Arrays(num_workers=workers)
    door.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    logged = {key: float(value) for key, value in door.callback_metrics.items()}
    logged |= door.test(module, datamodule=data, verbose=False)[0]
    return logged, callbacks[3].epochs, door, module


@pytest.mark.parametrize("on_train_epoch_end", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_run_ends_like_the_uninterrupted_one(tmp_path, on_train_epoch_end, workers):
    options = {"workers": workers, "save_on_train_epoch_end": on_train_epoch_end}
    whole, history, door, module = fit(tmp_path / "whole", 4, **options)
    fit(tmp_path / "half", 2, **options)
    resumed, resumed_history, again, same = fit(tmp_path / "rest", 4, tmp_path / "half/last.ckpt", **options)
    assert again.global_step == door.global_step == 4 * (105 // 16)
    assert resumed.keys() == whole.keys() >= {"val/adv_acc", "test/ratio_upper", "train/loss"}
    assert resumed == pytest.approx(whole, rel=1e-6, abs=1e-6, nan_ok=True)
    assert list(resumed_history) == list(history) == [0, 1, 2, 3]
    assert resumed_history[1] == pytest.approx(history[1], nan_ok=True)
    torch.testing.assert_close(dict(same.state_dict()), dict(module.state_dict()), rtol=1e-6, atol=1e-6)
    assert again.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_command_line_resumes_at_an_epoch_boundary(tmp_path):
    """The same through `train.py`, with dropout in the network."""
    common = [*QUICK, "model._target_=shell.dropout_cnn", "attack.scope=running", "scheduler.T_max=3"]
    runs = {
        "whole": ["trainer.max_epochs=3"],
        "half": ["trainer.max_epochs=2", "test=false"],
        "rest": ["trainer.max_epochs=3", "ckpt_path=half/checkpoints/last.ckpt"],
    }
    for name, arguments in runs.items():
        done = run("train.py", *common, *arguments, f"hydra.run.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    whole, rest = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "rest"))
    for stage in ("val", "test"):
        assert rest[stage] == pytest.approx(whole[stage], rel=1e-6, abs=1e-6)


class Ruin(Callback):
    def on_train_epoch_end(self, trainer, module):
        for parameter in module.parameters():
            parameter.data.zero_()


def test_resumed_run_remembers_the_best_epoch(tmp_path):
    """In another folder, whose predecessor it leaves alone; unless that is gone."""

    def go(name, epochs, callbacks=(), ckpt_path=None):
        best = RunCheckpoint(tmp_path / name, filename="best", monitor="val/clean_acc", mode="max")
        last = RunCheckpoint(tmp_path / name, filename="last", enable_version_counter=False)
        door = trainer([*callbacks, best, last], max_epochs=epochs, enable_checkpointing=True)
        module = classifier(network(), optimizer=partial(SGD, lr=0.5), config={})
        door.fit(module, datamodule=Arrays(), ckpt_path=ckpt_path, weights_only=True)
        assert {p.name for p in (tmp_path / name).iterdir()} >= {"last.ckpt"}
        return best

    first = go("first", 2)
    second = go("second", 4, [Ruin()], ckpt_path=first.dirpath + "/last.ckpt")
    third = go("third", 5, [Ruin()], ckpt_path=second.dirpath + "/last.ckpt")
    assert second.best_model_path != first.best_model_path  # the epoch before the ruin is better still
    assert third.best_model_path == second.best_model_path
    assert third.best_model_score == second.best_model_score
    assert read_checkpoint(second.best_model_path)["epoch"] == 2
    assert read_checkpoint(second.dirpath + "/last.ckpt")["epoch"] == 3
    assert {p.name for p in (tmp_path / "first").iterdir()} == {"best.ckpt", "last.ckpt"}
    (tmp_path / "first/best.ckpt").unlink()
    with pytest.warns(UserWarning, match=r"first/best\.ckpt, is gone"):
        fourth = go("fourth", 3, ckpt_path=first.dirpath + "/last.ckpt")
    assert fourth.best_model_path == str(tmp_path / "fourth/best.ckpt")


def test_killed_run_resumes(tmp_path):
    """kill -9 in the middle of an epoch."""
    common = [*QUICK, "test=false"]
    last = tmp_path / "killed/checkpoints/last.ckpt"
    process = subprocess.Popen(
        **command("train.py", *common, "trainer.max_epochs=1000", "hydra.run.dir=killed", cwd=tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        while not last.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    seen = read_checkpoint(last)["epoch"] + 1
    more = [f"trainer.max_epochs={seen + 1}", f"ckpt_path={last}", "hydra.run.dir=resumed"]
    done = run("train.py", *common, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "resumed/csv/metrics.csv").open()))
    assert {row["epoch"] for row in rows} == {str(seen)}
    assert read_checkpoint(tmp_path / "resumed/checkpoints/last.ckpt")["epoch"] == seen


def test_nan_loss_stops_the_run(tmp_path):
    """One sentence with epoch and batch; the last good checkpoint stays and can be resumed."""
    arguments = [*QUICK, "model._target_=shell.breaking_cnn", "trainer.max_epochs=3", "hydra.run.dir=nan"]
    done = run("train.py", *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert "the training loss became nan in epoch 1, batch 19" in done.stderr
    assert "Traceback" not in done.stderr
    checkpoint = read_checkpoint(tmp_path / "nan/checkpoints/last.ckpt")
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_exploding_weights_stop_the_run():
    module = classifier(optimizer=partial(SGD, lr=1e38))
    with pytest.raises(UserError, match=r"training loss became (nan|inf) in epoch 0, batch \d"):
        trainer([adversary()], max_epochs=2).fit(module, datamodule=Arrays())


def saved(tmp_path, model, config):
    module = classifier(model, config=config)
    door = trainer([adversary()], max_epochs=1, limit_train_batches=1)
    door.fit(module, datamodule=Arrays())
    door.save_checkpoint(tmp_path / "some.ckpt")
    return tmp_path / "some.ckpt"


def test_good_checkpoint_loads_with_weights_only(tmp_path):
    path = saved(tmp_path, network(), {"a": [1, {"b": None}]})
    content = torch.load(path, weights_only=True)
    assert content["wdro_train_config"] == {"a": [1, {"b": None}]}
    check_weights(classifier(network()), read_checkpoint(path), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no checkpoint at"),
        (b"", "cannot be read as a checkpoint"),
        (bytes(range(256)) * 40, "cannot be read as a checkpoint"),
        (b"PK\x03\x04" + bytes(400), "cannot be read as a checkpoint"),
        ({"model": torch.ones(2)}, "was not written by wdro_train"),
        ([1, 2], "was not written by wdro_train"),
        ({"state_dict": {}}, "was not written by wdro_train"),
        ({"state_dict": Arrays, "wdro_train_config": {}}, "cannot be read as a checkpoint"),
    ],
)
def test_unusable_files(tmp_path, content, message):
    path = tmp_path / "file.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_directory_is_not_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint at"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (partial(network, width=7), r"model\.1\.weight has shape \(12, 64\), not \(7, 64\)"),
        (partial(network, batch_norm=True), r"it lacks weight model\."),
        (lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 12)), r"has the extra weight model\.4"),
    ],
)
def test_checkpoint_of_another_network(tmp_path, model, message):
    path = saved(tmp_path, network(), {})
    with pytest.raises(UserError, match=message) as caught:
        check_weights(classifier(model()), read_checkpoint(path), path)
    assert "holds another network" in str(caught.value)
    assert "\n" not in str(caught.value)
