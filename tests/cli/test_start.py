"""What needs no network is answered at once: commands that only print, and imports of the lower floors."""

import os
import re
import resource
import signal
import subprocess
import sys

import pytest
from shell import ROOT, command

HEAVY = {"torch", "torchvision", "lightning", "torchmetrics", "wandb", "matplotlib", "sklearn", "pydantic"}
SECONDS = 4.0  # of CPU; about one on an idle machine, while torch alone takes four
ANSWERS = {
    "train.py --help": "method: awp, crown_ibp, ",
    "train.py --cfg job": "_target_: wdro_train.attacks.WPGD",
    "train.py --cfg hydra": "sweeper:",
    "train.py attack.stepz=3": "error: attack.stepz is not a key; did you mean attack.steps?",
    "train.py model=resnet8": "error: model=resnet8 is not an option; did you mean model=resnet18?",
    "evaluate.py --help": "protocol: paper_bounds_cifar100, ",
    "evaluate.py distances.step=3": "error: distances.step is not a key; did you mean distances.steps?",
}


def fresh(arguments, cwd):
    """Output, names of the imported top-level packages and seconds of CPU of a new interpreter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=cwd,
        env=command("train.py", cwd=cwd)["env"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = re.findall(r"^import time: .*\| +(\w+)", done.stderr, re.MULTILINE)
    said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
    return done.stdout + said, set(imported), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("typed", ANSWERS)
def test_commands_that_only_print(typed, tmp_path):
    script, *arguments = typed.split()
    said, imported, seconds = fresh([str(ROOT / script), *arguments], tmp_path)
    assert ANSWERS[typed] in said
    assert "Traceback" not in said
    assert "omegaconf" in imported
    assert not imported & HEAVY
    assert seconds < SECONDS
    assert not list(tmp_path.iterdir())


def test_help_ends_when_nobody_reads_on(tmp_path):
    """As in `train.py --help | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"],
        cwd=tmp_path,
        env=command("train.py", cwd=tmp_path)["env"],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(writing)
    assert done.returncode == -signal.SIGPIPE
    assert not done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("room", ["attacks", "certificates", "models", "objectives"])
def test_rooms_that_need_torch_alone(tmp_path, room):
    _, imported, _ = fresh(["-c", f"import wdro_train.{room}"], tmp_path)
    assert "torch" in imported
    assert not imported & (HEAVY - {"torch"})


@pytest.mark.slow
def test_a_configuration_is_checked_without_wandb(tmp_path):
    _, imported, _ = fresh(["-c", "import wdro_train.cli.schemas, wdro_train.evaluation.run"], tmp_path)
    assert "lightning" in imported
    assert "wandb" not in imported


@pytest.mark.slow
def test_short_names_are_imported_when_they_are_asked_for(tmp_path):
    program = """
import sys
import wdro_train
assert wdro_train.__version__ and "torch" not in sys.modules
assert {"RobustClassifier", "DistributionalAdversary", "robustness_curve"} <= set(dir(wdro_train))
from wdro_train import DistributionalAdversary, RobustClassifier, robustness_curve
from wdro_train.evaluation.curve import robustness_curve as curve
from wdro_train.training.callbacks.adversary import DistributionalAdversary as Adversary
from wdro_train.training.module import RobustClassifier as Classifier
assert (DistributionalAdversary, RobustClassifier, robustness_curve) == (Adversary, Classifier, curve)
try:
    wdro_train.robustness_curves
except AttributeError as error:
    print(error)
"""
    said, imported, _ = fresh(["-c", program], tmp_path)
    assert said == "module 'wdro_train' has no attribute 'robustness_curves'\n"
    assert "lightning" in imported


def test_help_shows_options_of_the_users_own(tmp_path):
    (tmp_path / "mine/attack").mkdir(parents=True)
    (tmp_path / "mine/attack/shake.yaml").write_text("_target_: my_package.Shake\n")
    said, _, _ = fresh([str(ROOT / "train.py"), "--config-dir", "mine", "--help"], tmp_path)
    assert "attack: kl_pgd, lagrangian, margin, shake, w_fgsm" in said
    assert "base:" not in said
    assert "hydra:" not in said
