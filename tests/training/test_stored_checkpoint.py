"""A checkpoint of version 0.1.0, whose classes have other names today, is judged, resumed and fine-tuned from.

`tests/reference/checkpoint_0.1.0.ckpt` was written by that version, with
`train.py experiment=worst_case model.width=4 trainer.max_epochs=2 trainer.limit_train_batches=10 logger=csv`.
"""

import csv
import functools
import importlib
import json
import shutil

import pytest
import torch
from in_process import call
from shell import ROOT, run

from wdro_train.attacks import BoundaryAttack
from wdro_train.evaluation.networks import load_network
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.utils.renamed import RENAMED, present_name, with_present_names

STORED = ROOT / "tests/reference/checkpoint_0.1.0.ckpt"
SAME = [
    "method=worst_case",
    "data.eval_batch_size=512",  # the default of the time
    "model.width=4",
    "trainer.limit_train_batches=10",
    "logger=csv",
    "callbacks.images=null",
]


def stored_names(tree):
    """Every `_target_` of a configuration."""
    if isinstance(tree, dict):
        own = {tree["_target_"]} if "_target_" in tree else set()
        return own.union(*map(stored_names, tree.values()))
    return set().union(*map(stored_names, tree)) if isinstance(tree, list) else set()


def imported(name):
    """What a dotted name means today."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[split:], module)
    raise AssertionError(name)


def test_every_stored_name_is_that_of_something():
    config = torch.load(STORED, weights_only=True)["wdro_train_config"]
    names = stored_names(config)
    assert len(names & RENAMED.keys()) >= 6
    for name in {*names, *RENAMED}:
        assert callable(imported(present_name(name)))


@pytest.mark.parametrize("name", RENAMED)
def test_a_renamed_constructor_has_left_its_old_place(name):
    """Otherwise the line says nothing; and its new name is no old one, so that one look is enough."""
    with pytest.raises((AssertionError, AttributeError)):
        imported(name)
    assert present_name(name) not in RENAMED


def test_only_constructors_are_renamed():
    name = next(iter(RENAMED))
    tree = {"text": name, "list": [name], "_target_": name, "inside": {"_target_": [name]}}
    assert with_present_names(tree) == {**tree, "_target_": present_name(name)}


def test_a_stored_checkpoint_brings_its_attack():
    """`wdro_train.attacks.WorstCase` is in the file, and what a file may run is listed by present names."""
    attack = load_network(STORED).construct("attack")
    assert isinstance(attack, BoundaryAttack)
    assert attack.steps == 8


@pytest.mark.slow
def test_a_stored_checkpoint_is_judged(tmp_path):
    quick = ["limit=20", "distances.steps=5", "poster=null", "pictures=0", "hydra.run.dir=judged"]
    done = run("evaluate.py", f"ckpt_path={STORED}", *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads((tmp_path / "judged/report.json").read_text())["models"]
    assert 0 < model["clean_accuracy"] < 1


@pytest.mark.slow
def test_a_stored_checkpoint_is_resumed_as_the_same_configuration(tmp_path):
    """Scores and history go on: a new name is no change of the measurement. So does what the attack has learnt."""
    path = tmp_path / "old/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    shutil.copy(STORED, path)
    done = run(
        "train.py", *SAME, "trainer.max_epochs=4", f"ckpt_path={path}", "hydra.run.dir=resumed", "test=false",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "afresh" not in done.stdout + done.stderr
    assert "resume  at epoch 3" in done.stdout
    resumed = read_checkpoint(tmp_path / "resumed/checkpoints/last.ckpt")
    assert resumed["epoch"] == 3
    assert list(resumed["callbacks"]["ValidationHistory"]["epochs"]) == [0, 1, 2, 3]
    before = read_checkpoint(STORED)["callbacks"]
    assert resumed["callbacks"]["ValidationHistory"]["epochs"][1] == before["ValidationHistory"]["epochs"][1]
    assert resumed["callbacks"].keys() == before.keys()
    with (tmp_path / "resumed/csv/metrics.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"2", "3"}


@pytest.mark.slow
@pytest.mark.covers
def test_a_run_starts_from_a_stored_checkpoint(tmp_path):
    done = call(
        "train", *SAME, "trainer.max_epochs=1", f"finetune.ckpt_path={STORED}", "optimizer.lr=0",
        "hydra.run.dir=tuned", "test=false", "trainer.limit_val_batches=1", "data.eval_batch_size=64", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tuned = read_checkpoint(tmp_path / "tuned/checkpoints/last.ckpt")
    assert tuned["epoch"] == 0
    for key, value in read_checkpoint(STORED)["state_dict"].items():
        assert torch.equal(tuned["state_dict"][key], value)
