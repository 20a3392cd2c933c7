"""Both doors under bad input and signals: one sentence, the right exit code, nothing left behind, nothing accepted."""

import copy
import csv
import math
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from shell import ROOT, run, start
from torch.utils.data import DataLoader, Dataset

from wdro_train import doors, interruption, places, schemas
from wdro_train.attacks import WPGD
from wdro_train.checkpoint import read_checkpoint
from wdro_train.configuration import register_resolvers
from wdro_train.errors import UserError, sentence
from wdro_train.schemas.check import refusal, resolve
from wdro_train.schemas.trial import try_out

QUICK = ["trainer=cpu", "logger=csv", "callbacks.images=null", "callbacks.progress=null", "model.width=4"]
QUICK += ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "attack.steps=1", "test=false"]
ENDLESS = [*QUICK, "trainer.max_epochs=100000"]
CONF = ROOT / "conf"

# Wrong for a value of that type, whatever the key: of another type, not a number, out of every range.
BAD = {
    bool: ["maybe", 1.5, -1, math.nan, [True], None, ""],
    int: [1.5, -3, "abc", math.nan, math.inf, [1], {"a": 1}, True, "", "1"],
    float: [-3.0, "abc", math.nan, [0.5], {"a": 1}, True, ""],
    str: ["", ["abc"], {"a": 1}, True, math.nan],
    list: [5, "abc!", {"a": 1}, True, math.nan],
    dict: [5, "abc", ["abc"], True, ""],
}
# What is null by default says nothing about its type.
LIMIT = [1.5, -1, 0, "abc", [1], math.nan, ""]
RADII = [5, "abc", [], [-1], [math.nan], [math.inf], [None]]
OPTIONAL = {
    "ckpt_path": ["", 5, {"a": 1}],
    "finetune.ckpt_path": ["", 5, ["a.ckpt"]],
    "data.augment": [5, "flip", ["flip"], {"flip": 5}],
    "model.weights": ["", 5, ["a"]],
    "trainer.limit_train_batches": LIMIT,
    "trainer.limit_val_batches": LIMIT,
    "trainer.limit_test_batches": [one for one in LIMIT if one != 0],
    "trainer.gradient_clip_val": [-1, "abc", math.nan, [1], ""],
    "attack.p": [0.5, 0, -1, "abc", math.nan, [2], ""],
    "attack.norm": [0.5, 0, 3, "abc", math.nan, [2], ""],
    "attack.delta": [-1, "abc", math.nan, math.inf, [0.1], "1/0", ""],
    "curve.deltas": RADII,
    "poster.deltas": [*RADII, [0]],
    "poster.p": [5, "abc", [], [0.5], [math.nan]],
    "certificate.method": ["foo", 5, "", ["crown"]],
    "limit": LIMIT,
}
# A choice, a number in a range, a list: what the type alone does not tell.
FURTHER = {
    "train": {
        "attack.p": [0.5, 0, 1], "attack.norm": [0.5, 0], "attack.delta": [-1, math.inf, "8/0"],
        "attack.steps": [0], "attack.step_size": [0], "attack.keep": ["chepest"], "attack.loss": ["mse"],
        "attack.scope": ["set"], "attack.batch_norm": ["off"], "attack._target_": ["foo.Bar", "wdro_train.attacks.Nope"],
        "data.batch_size": [0], "data.eval_batch_size": [0], "data.val_fraction": [0, 1, 2], "data.num_classes": [0, 1],
        "data.shape": [[8, 8], [1, 8], [0, 8, 8], [1, 8.5, 8], [1, 9, 9]], "data.std": [[0], [-1], [], [math.nan]],
        "data.mean": [[], ["a"], [0.1, 0.2]], "data.delta": [{"linf": -1}, {"linf": "abc"}],
        "model.width": [0], "model.num_classes": [0], "optimizer.lr": [math.inf], "optimizer._target_": ["torch.optim.Adan"],
        "scheduler.T_max": [0, None], "trainer.devices": [0, [], "0", "abc", None], "trainer.max_epochs": [0],
        "trainer.accelerator": ["foo"], "trainer.precision": ["foo", 31, "16"[:1]], "trainer.accumulate_grad_batches": [0],
        "callbacks.adversary.attack": [None], "callbacks.adversary.val_attack.attacks": [[], [5]],
        "callbacks.adversary": [None], "callbacks.checkpoint.mode": ["up"], "callbacks.checkpoint.save_top_k": [-2],
        "callbacks.images.number": [0], "callbacks.images.every_n_epochs": [0], "callbacks.checkpoint": [5, [1]],
        "finetune.init": ["new"], "finetune.freeze": [[5], 5], "seed": [2**32], "callbacks": [None], "scheduler": [None],
        "logger.wandb.log_model": ["some"], "attack.stepz": [3], "data.batchsize": [3], "callbacks.history.seeds": [3],
    },
    "evaluate": {
        "attack.p": [None][:0], "distances.steps": [0], "distances.restarts": [0],
        "curve.p": [[], [0.5], ["abc"], [math.nan], None], "curve.alpha": [0, 1, math.inf], "curve.sided": ["both"],
        "poster.losses": [[], ["mse"], [5]], "poster.pgd_steps": [0], "certificate.sigma": [0], "certificate.samples": [0],
        "certificate.alpha": [0, 1], "split": ["dev"], "batch_size": [0], "limit": [0], "expectation": [0],
        "accelerator": ["foo"], "devices": [0, [], "abc", None], "seed": [2**32], "distances": [None], "peers": [None],
    },
}  # fmt: skip
# Typed as a number or a word, and right as another: orders, radii and fractions; names; what may be a list or a word.
FINE = {
    "train": {
        ("finetune.noise", "0.5"), ("finetune.freeze", "abc!"), ("trainer.devices", "1"), ("data.num_workers", 0),
        ("attack.norm", "1"), ("attack.p", "1"),
    },
    "evaluate": {("devices", "1")},
}  # fmt: skip
# Any number of devices, of either kind.
NUMBERS = {"attack.p", "attack.norm", "attack.delta"}
FREE = {"logger.csv.name", "logger.csv.version", "callbacks.progress.theme.metrics_text_delimiter", "logger.wandb.name"}


def composed(door, *overrides):
    """The configuration as `hydra.main` has it before a run."""
    register_resolvers()
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(door, list(overrides), return_hydra_config=True)
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def values():
    """The plain values of both doors."""
    found = {}
    before = HydraConfig.instance().cfg
    for door in ("train", "evaluate"):
        cfg = composed(door)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = "."
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        found[door] = resolve(cfg)[0]
    HydraConfig.instance().cfg = before
    return found


def leaves(node, path=""):
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        where = f"{path}.{key}" if path else str(key)
        yield where, value
        if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            yield from leaves(value, where)


def changed(values, path, value):
    """The same values with another one at a dotted key."""
    found = copy.deepcopy(values)
    *above, last = path.split(".")
    node = found
    for key in above:
        node = node[int(key) if isinstance(node, list) else key]
    node[int(last) if isinstance(node, list) else last] = value
    return found


def cases(door, values):
    for path, value in leaves(values):
        key = path.rpartition(".")[2]
        if key == "_partial_":
            continue
        bad = OPTIONAL.get(path, []) if value is None else BAD[type(value)]
        if path in FREE:
            bad = [one for one in bad if isinstance(one, dict)]
        if key in ("p", "norm", "delta", "noise") and not isinstance(value, dict | list | None):
            bad = ["abc", math.nan, [2], True, "", -3]
        if value is None:
            bad = OPTIONAL.get(path, [])
        for one in bad:
            if not any(path == p and one == v and type(one) is type(v) for p, v in FINE[door]):
                yield path, one
    for path, several in FURTHER[door].items():
        for one in several:
            yield path, one


@pytest.mark.parametrize("door", ["train", "evaluate"])
def test_generated_bad_values(door, values):
    """Every key of the door with values that cannot work: each is refused in one sentence that names the key."""
    assert refusal(values[door], door) is None
    try_out(values[door], door)
    accepted, unclear, count = [], [], 0
    for path, value in cases(door, values[door]):
        count += 1
        bad = changed(values[door], path, value)
        said = refusal(bad, door)
        if said is None:
            try:
                try_out(bad, door)
            except UserError as error:
                said = str(error)
        if said is None:
            accepted.append((path, value))
        elif "\n" in said or not re.search(r"[;(]", said) or path.split(".")[0].rstrip("s") not in said:
            unclear.append((path, value, said))
    assert not accepted
    assert not unclear
    assert count >= {"train": 500, "evaluate": 180}[door]
