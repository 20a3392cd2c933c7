"""The command that a report or a model card gives is what somebody has typed, and says which job of a sweep it was."""

import os
import sys

import pytest

from wdro_train.cli.run import run_command_line
from wdro_train.config import sweep_job
from wdro_train.config.sweep_job import SweepJob
from wdro_train.config.typed_command import typed_command

OWN = ["train.py", "model._target_=my_package.Net", "model.hidden=64", "model.normalize=[0.3,0.4]"]


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setenv("WDRO_TRAIN_COMMAND", "")
    monkeypatch.delenv("WDRO_TRAIN_COMMAND")
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_it_is_not_what_hydra_is_given(monkeypatch):
    given = []
    monkeypatch.setattr(sys, "argv", [*OWN])
    run_command_line(lambda: given.extend(sys.argv), "train")
    assert "model=own" in given
    assert typed_command() == " ".join(OWN)


def test_a_job_of_a_sweep_says_which(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1"])
    run_command_line(lambda: None, "train")
    sweep_job.announce(SweepJob(2, 2, "seed=1", alone=True))
    assert typed_command() == "train.py -m seed=0,1  # job 2/2  seed=1"
    sweep_job.forget()
    assert typed_command() == "train.py -m seed=0,1"


def test_without_a_command_of_this_package(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["judge.py", "a.ckpt"])
    assert typed_command() == "judge.py a.ckpt"
