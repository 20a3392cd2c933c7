"""Interrupted runs continue, and end where uninterrupted ones end; bad checkpoints and NaN losses say so."""

import copy
import csv
import json
import re
import shutil
import time
import warnings
from functools import partial

import pytest
import torch
from datafiles import write_folder
from hydra.utils import instantiate
from lightning import Callback
from omegaconf import OmegaConf
from shell import PATIENCE, ROOT, Arrays, adversary, classifier, loader, network, run, start, trainer
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from wdro_train.objectives import Adversarial
from wdro_train.training.callbacks import OverfittingWarning, RunCheckpoint, SeedEpoch, ValidationHistory
from wdro_train.training.checkpoint import check_weights, read_checkpoint
from wdro_train.training.csv_logger import RunCSVLogger
from wdro_train.training.resuming import Resumption, forget
from wdro_train.utils.errors import UserError

pytestmark = pytest.mark.slow

QUICK = ["trainer=cpu", "logger=csv", "model.width=4", "callbacks.images=null", "+trainer.limit_train_batches=20"]
QUICK += ["data.eval_batch_size=64", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]


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
    common = [
        *QUICK,
        "model=small_cnn",
        "model._target_=shell.dropout_cnn",
        "attack.scope=running",
        "scheduler.T_max=3",
    ]
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
    with start("train.py", *common, "trainer.max_epochs=1000", "hydra.run.dir=killed", cwd=tmp_path) as process:
        deadline = time.monotonic() + PATIENCE
        while not last.exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr
            time.sleep(0.02)
        time.sleep(0.3)
        process.kill()
    seen = read_checkpoint(last)["epoch"] + 1
    more = [f"trainer.max_epochs={seen + 1}", f"ckpt_path={last}", "hydra.run.dir=resumed"]
    done = run("train.py", *common, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "resumed/csv/metrics.csv").open()))
    assert {row["epoch"] for row in rows} == {str(seen)}
    assert read_checkpoint(tmp_path / "resumed/checkpoints/last.ckpt")["epoch"] == seen


def test_nan_loss_stops_the_run(tmp_path):
    """One sentence with epoch and batch; the last good checkpoint stays and can be resumed."""
    arguments = [
        *QUICK,
        "model=small_cnn",
        "model._target_=shell.breaking_cnn",
        "trainer.max_epochs=3",
        "hydra.run.dir=nan",
    ]
    done = run("train.py", *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert "the training loss became nan in epoch 2, batch 19" in done.stderr
    assert "Traceback" not in done.stderr
    checkpoint = read_checkpoint(tmp_path / "nan/checkpoints/last.ckpt")
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_exploding_weights_stop_the_run():
    module = classifier(optimizer=partial(SGD, lr=1e38))
    with pytest.raises(UserError, match=r"training loss became (nan|inf) in epoch 1, batch \d"):
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


LIKE = {"limit_val_batches": 0, "enable_checkpointing": True}


class Rates(Callback):
    """The settings of the optimizer at every step, and its momentum buffers at the first."""

    def __init__(self):
        self.seen, self.buffers = [], None

    def on_train_batch_start(self, trainer, *_):
        optimizer = trainer.optimizers[0]
        group = optimizer.param_groups[0]
        if self.buffers is None:
            self.buffers = [dict(state) for state in copy.deepcopy(optimizer.state_dict()["state"]).values()]
        self.seen.append({key: group.get(key) for key in ("lr", "momentum", "betas", "weight_decay")})


def optimized(folder, optimizer, scheduler, epochs, ckpt_path=None, **settings):
    """A run of two steps an epoch with the configurations that are shipped; a checkpoint of every epoch."""
    node = OmegaConf.create({"trainer": {"max_epochs": epochs}})
    for group, option in (("optimizer", optimizer), ("scheduler", scheduler)):
        node[group] = OmegaConf.load(ROOT / f"conf/{group}/{option}.yaml")
    if scheduler == "multistep":
        node.scheduler.milestones = [1, 3, 4]
    node.optimizer.update(settings)
    watch = Rates()
    saved = RunCheckpoint(folder, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    module = classifier(
        network(), optimizer=instantiate(node.optimizer), scheduler=instantiate(node.scheduler), config={}
    )
    door = trainer([watch, saved], max_epochs=epochs, **LIKE)
    door.fit(module, loader(32, 16), ckpt_path=ckpt_path, weights_only=True)
    return watch


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("scheduler", ["constant", "cosine", "multistep", "one_cycle"])
def test_resumed_rates_are_those_of_an_uninterrupted_run(tmp_path, optimizer, scheduler):
    """Of one with the present configuration: of the same length, a longer one, another rate."""
    base = optimized(tmp_path / "base", optimizer, scheduler, 2)
    ends = {epoch: torch.load(tmp_path / f"base/{epoch}.ckpt", weights_only=True) for epoch in (0, 1)}
    other = {"lr": 1e-6, "weight_decay": 0.3}
    for epoch, epochs, settings in ((0, 2, {}), (1, 4, {}), (1, 3, other)):
        fresh = base if (epochs, settings) == (2, {}) else optimized(tmp_path, optimizer, scheduler, epochs, **settings)
        path = tmp_path / f"base/{epoch}.ckpt"
        resumed = optimized(tmp_path, optimizer, scheduler, epochs, path, **settings)
        assert resumed.seen == fresh.seen[2 * (epoch + 1) :]
        assert len(resumed.seen) == 2 * (epochs - epoch - 1)
        kept = ends[epoch]["optimizer_states"][0]["state"]
        torch.testing.assert_close(resumed.buffers, list(kept.values()))
        assert resumed.buffers[0]


def test_resumed_schedule_counts_the_steps_of_the_present_run(tmp_path):
    """Batches of another size: a schedule that steps after each stands where it would in such a run."""

    def go(batch_size, epochs, ckpt_path=None, **kwargs):
        watch = Rates()
        saved = RunCheckpoint(tmp_path, filename="last", enable_version_counter=False)
        schedule = partial(OneCycleLR, max_lr=0.1, **kwargs)
        module = classifier(network(), optimizer=partial(SGD, lr=0.1, momentum=0.9), scheduler=schedule, config={})
        door = trainer([watch, saved], max_epochs=epochs, **LIKE)
        door.fit(module, loader(64, batch_size), ckpt_path=ckpt_path, weights_only=True)
        return watch.seen

    fresh = go(16, 4)
    go(32, 2)
    assert go(16, 4, tmp_path / "last.ckpt") == fresh[8:]
    with pytest.raises(UserError, match=r"scheduler\.total_steps=4 ends before the 8 steps of the run"):
        go(32, 4, total_steps=4)
    with pytest.raises(UserError, match=r"trained for 4 epochs already, more than trainer\.max_epochs=3"):
        go(16, 3, tmp_path / "last.ckpt")


def test_optimizer_without_the_buffers_it_needs(tmp_path):
    """Also where a class alone does not tell: there are no KeyErrors in the middle of a step."""
    optimized(tmp_path, "adam", "constant", 1)
    for name, settings, message in (
        ("sgd", {}, "SGD needs momentum_buffer"),
        ("adam", {"amsgrad": True}, r"optimizer\.amsgrad=True: Adam needs max_exp_avg_sq"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            optimized(tmp_path, name, "constant", 2, tmp_path / "0.ckpt", **settings)
        assert "finetune.ckpt_path=" in str(caught.value)
        assert "\n" not in str(caught.value)


def judged(folder, scores, config, ckpt_path=None, monitor="val/score", **kwargs):
    """A run whose validation score is known beforehand, with all that remembers scores."""

    class Scored(Callback):
        def on_validation_epoch_end(self, door, module):
            module.log("val/score", scores[door.current_epoch])

    best = RunCheckpoint(
        folder / "checkpoints", filename="best", monitor=monitor, mode="max", enable_version_counter=False, **kwargs
    )
    last = RunCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False)
    history, warning = ValidationHistory(), OverfittingWarning(one_step="val/score", multi_step="val/score")
    attacker = adversary(scope="running", val_attack=None, first_order=None)
    module = classifier(network(), objective=Adversarial(), config=config)
    logger = RunCSVLogger(folder, name="csv", version="")
    callbacks = [Scored(), attacker, history, warning, best, last]
    door = trainer(callbacks, max_epochs=len(scores), enable_checkpointing=True, logger=logger)
    door.fit(module, loader(32, 16), loader(16, 16), ckpt_path=ckpt_path, weights_only=True)
    with (folder / "csv/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/score"]]
    return best, history, [(row["epoch"], pytest.approx(float(row["val/score"]))) for row in rows]


CONFIG = {
    "attack": {"p": 2, "norm": "inf", "delta": 0.03},
    "callbacks": {"adversary": {"val_attack": {"steps": 10}}, "checkpoint": {"monitor": "val/score", "mode": "max"}},
    "data": {"split_seed": 0, "num_workers": 0, "batch_size": 16, "root": "data"},
    "trainer": {"limit_val_batches": None, "devices": 1},
    "optimizer": {"lr": 0.001},
}


def changed(key, value):
    """`CONFIG` with another value."""
    config = OmegaConf.create(copy.deepcopy(CONFIG))
    OmegaConf.update(config, key, value, force_add=True)
    return OmegaConf.to_container(config)


@pytest.mark.parametrize(
    ("where", "key", "value", "said"),
    [
        ("same folder", "attack.delta", 0.15, "the threat changed"),
        ("same folder", "data.num_workers", 4, None),
        (
            "another folder",
            "attack.delta",
            0.15,
            r"the threat changed \(attack\.delta 0\.03 -> 0\.15\): best epoch and history start",
        ),
        ("another folder", "callbacks.adversary.val_attack.steps", 20, "the validation attack changed"),
        ("another folder", "callbacks.checkpoint.mode", "min", "the choice of the best epoch changed"),
        ("another folder", "data.split_seed", 1, "the data changed"),
        ("another folder", "trainer.limit_val_batches", 1, "the configuration changed"),
        ("another folder", "never.heard.of", 1, r"never\.heard\.of none -> 1"),
        ("another folder", "data.num_workers", 4, None),
        ("another folder", "optimizer.lr", 0.1, None),
    ],
)
def test_scores_of_another_measurement_are_forgotten(tmp_path, key, value, said, where):
    """The best epoch is one that was measured under the present configuration, and the old files stay."""
    first, second = tmp_path / "first", tmp_path / ("first" if where == "same folder" else "second")
    judged(first, [0.5, 0.9], CONFIG)
    before = (first / "checkpoints/best.ckpt").read_bytes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        best, history, rows = judged(second, [0.5, 0.9, 0.1, 0.2], changed(key, value), first / "checkpoints/last.ckpt")
    told = [str(one.message) for one in caught if "start afresh" in str(one.message)]
    if said is None:
        assert told == []
        assert best.best_model_score == pytest.approx(0.9)
        assert best.best_model_path == str(first / "checkpoints/best.ckpt")
        assert list(history.epochs) == [0, 1, 2, 3]
        assert read_checkpoint(first / "checkpoints/best.ckpt")["epoch"] == 1
    else:
        assert len(told) == 1
        assert re.search(said, told[0])
        assert best.best_model_score == pytest.approx(0.2)
        assert best.best_model_path == str(second / "checkpoints/best.ckpt")
        assert read_checkpoint(best.best_model_path)["epoch"] == 3
        assert list(history.epochs) == [2, 3]
        old = first / ("checkpoints/best_before_epoch_2.ckpt" if where == "same folder" else "checkpoints/best.ckpt")
        assert old.read_bytes() == before
    new = [("2", 0.1), ("3", 0.2)]
    assert rows == ([("0", 0.5), ("1", 0.9), *new] if said is None and where == "same folder" else new)
    if said is not None and where == "same folder":
        assert "0.89999" in (first / "csv/metrics_before_epoch_2.csv").read_text()


def test_epochs_that_are_trained_again_have_one_row(tmp_path):
    judged(tmp_path, [0.5, 0.6], CONFIG)
    shutil.copy(tmp_path / "checkpoints/last.ckpt", tmp_path / "second.ckpt")
    judged(tmp_path, [0.5, 0.6, 0.7, 0.8], CONFIG, tmp_path / "checkpoints/last.ckpt")
    with (tmp_path / "csv/metrics.csv").open("a") as file:
        file.write("0.5,4")  # the last row of a killed run
    _, _, rows = judged(tmp_path, [0.5, 0.6, 0.3], CONFIG, tmp_path / "second.ckpt")
    assert rows == [("0", 0.5), ("1", 0.6), ("2", 0.3)]


def test_best_file_of_another_epoch_is_not_the_best(tmp_path):
    """A copy of an earlier checkpoint is resumed after `best.ckpt` has moved on."""
    judged(tmp_path / "a", [0.5, 0.6], CONFIG)
    shutil.copy(tmp_path / "a/checkpoints/last.ckpt", tmp_path / "second.ckpt")
    judged(tmp_path / "a", [0.5, 0.6, 0.7], CONFIG, tmp_path / "a/checkpoints/last.ckpt")
    with pytest.warns(UserWarning, match=r"best\.ckpt, has been replaced by another epoch"):
        best, _, _ = judged(tmp_path / "b", [0.5, 0.6, 0.1], CONFIG, tmp_path / "second.ckpt")
    assert best.best_model_path == str(tmp_path / "b/checkpoints/best.ckpt")
    assert best.best_model_score == pytest.approx(0.1)


@pytest.mark.parametrize("k", [1, 3, -1])
def test_best_file_is_the_best_epoch(tmp_path, k):
    """Whatever is kept beside it, and in a resumed run too."""
    scores = [0.1, 0.9, 0.3, 0.2]
    best, _, _ = judged(tmp_path, scores, CONFIG, save_top_k=k)
    for resumed in (False, True):
        if resumed:
            last = tmp_path / "checkpoints/last.ckpt"
            best, _, _ = judged(tmp_path, [*scores, 0.8], CONFIG, last, save_top_k=k)
        assert read_checkpoint(best.best_model_path)["epoch"] == 1
        assert read_checkpoint(tmp_path / "checkpoints/best.ckpt")["epoch"] == 1
        assert best.best_model_score == pytest.approx(0.9)
    kept = sorted(read_checkpoint(path)["epoch"] for path in (tmp_path / "checkpoints").glob("best_epoch_*.ckpt"))
    assert kept == {1: [], 3: [1, 2, 4], -1: [0, 1, 2, 3, 4]}[k]


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [("attack.delta", 0.15, False), ("attack.steps", 3, False), ("optimizer.lr", 0.1, True)],
)
def test_what_an_attack_has_learnt_belongs_to_it(tmp_path, key, value, kept):
    judged(tmp_path, [0.5], CONFIG)
    path = tmp_path / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    callbacks = [adversary(scope="running"), ValidationHistory()]
    assert checkpoint["callbacks"][callbacks[0].state_key]["scope"]
    forget(checkpoint, callbacks, Resumption.of(checkpoint, CONFIG, changed(key, value), path).changed)
    assert (callbacks[0].state_key in checkpoint["callbacks"]) == kept
    assert (callbacks[1].state_key in checkpoint["callbacks"]) == (key != "attack.delta")


def test_command_line_resumes_under_another_configuration(tmp_path):
    """A larger radius, a smaller rate, another optimizer, the same folder: each does what its command says."""
    base = [*QUICK, "callbacks.progress=null", "test=false", "attack.steps=1"]
    base[base.index("+trainer.limit_train_batches=20")] = "trainer.limit_train_batches=2"
    base.append("attack.delta=0.01")
    last = "ckpt_path=r0/checkpoints/last.ckpt"

    def go(folder, *arguments):
        return run("train.py", *base, f"hydra.run.dir={folder}", *arguments, cwd=tmp_path)

    done = go("r0", "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    done = go("r1", "trainer.max_epochs=3", "attack.delta=0.5", last)
    assert done.returncode == 0, done.stderr
    assert "the threat changed (attack.delta 0.01 -> 0.5): best epoch and history start afresh" in done.stderr
    report = json.loads((tmp_path / "r1/metrics.json").read_text())
    assert report["epoch"] == 2
    with (tmp_path / "r1/csv/metrics.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["val/adv_acc"])
    assert report["val"]["adv_acc"] == pytest.approx(float(row["val/adv_acc"]))

    done = go("r0", "trainer.max_epochs=3", "optimizer.lr=1e-6", last)
    assert done.returncode == 0, done.stderr
    assert "optimizer.lr 0.002 -> 1e-06" in done.stdout
    after = read_checkpoint(tmp_path / "r0/checkpoints/last.ckpt")
    assert after["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 1e-6
    with (tmp_path / "r0/csv/metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["val/adv_acc"]] == ["0", "1", "2"]

    done = go("refused", "optimizer=sgd", "trainer.max_epochs=4", last)
    assert done.returncode == 1
    assert "finetune.ckpt_path=r0/checkpoints/last.ckpt" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_replaced_images_start_the_history_afresh(tmp_path):
    """The configuration is the same, but what it names is not."""
    write_folder(tmp_path / "images", size=(8, 8), n=10)
    common = [*QUICK, "data=image_folder", "data.root=images", "data.shape=[3,8,8]", "data.val_fraction=0.3"]
    common += ["data.batch_size=4", "test=false", "attack.delta=0.05"]
    first = run("train.py", *common, "trainer.max_epochs=1", "hydra.run.dir=first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    again = ["train.py", *common, "trainer.max_epochs=2", "ckpt_path=first/checkpoints/last.ckpt"]
    same = run(*again, "hydra.run.dir=same", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    assert "afresh" not in same.stdout + same.stderr
    cats, dogs = (tmp_path / "images/train" / name for name in ("cat", "dog"))
    cats.rename(tmp_path / "swap")
    dogs.rename(cats)
    (tmp_path / "swap").rename(dogs)
    other = run(*again, "hydra.run.dir=other", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert "the data changed (data_digest" in other.stdout + other.stderr
    assert json.loads((tmp_path / "other/metrics.json").read_text())["epoch"] == 1
