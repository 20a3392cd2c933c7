"""Which choice has the last word: experiment, method, study, search, this machine, debugging or the command line."""

import contextlib
import re

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from in_process import call
from shell import ROOT

from wdro_train.cli import did_you_mean

CONF = ROOT / "conf"


@contextlib.contextmanager
def hydra():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


def composed(*overrides):
    with hydra():
        return compose("train", list(overrides), return_hydra_config=True)


def chosen(cfg, *groups):
    return [cfg.hydra.runtime.choices[group] for group in groups]


def test_a_method_goes_with_a_set_up():
    cfg = composed("experiment=cifar10_resnet18", "method=worst_case")
    assert chosen(cfg, "data", "model", "optimizer", "attack", "callbacks") == [
        "cifar10", "resnet18", "sgd", "worst_case", "worst_case",
    ]  # fmt: skip
    assert cfg.trainer.max_epochs == 100
    assert cfg.callbacks.checkpoint.monitor == "val/worst_acc"


def test_the_command_line_has_the_last_word():
    cfg = composed("attack=w_fgsm", "method=worst_case", "attack.p=1.5", "callbacks=default")
    assert chosen(cfg, "attack", "callbacks") == ["w_fgsm", "default"]
    assert composed("method=pgd_at").attack.p == "inf"
    assert composed("attack.p=1.5", "method=pgd_at").attack.p == 1.5
    assert composed("study=fashion_l2", "method=pgd_at", "trainer.max_epochs=7").trainer.max_epochs == 7


def test_a_study_sweeps_over_methods():
    """Its folders are `<method>_<seed>`, as `wdro_train.tools.compare_methods` reads them."""
    cfg = composed("study=digits_resnet18")
    assert cfg.hydra.sweeper.params == {"seed": "0,1,2", "method": "standard,pgd_at,worst_case"}
    one = composed("study=digits_resnet18", "method=pgd_at", "seed=2")
    assert chosen(one, "method", "data", "model", "callbacks") == ["pgd_at", "digits", "resnet18", "worst_case"]
    assert one.attack.p == "inf"
    raw = re.search(r"subdir: (\S+)", (CONF / "base/study.yaml").read_text())[1]
    assert raw == "${hydra:runtime.choices.method}_${seed}"


def test_this_machine_comes_after_methods_and_before_the_command_line(tmp_path):
    """`conf/local/default.yaml`; here from a folder of the test's own."""
    (tmp_path / "mine/local").mkdir(parents=True)
    text = (
        "# @package _global_\ndefaults:\n  - override /logger: none\ndata: {root: /scratch}\nattack: {p: 3}\nseed: 5\n"
    )
    (tmp_path / "mine/local/default.yaml").write_text(text)
    done = call(
        "train", "--config-dir", "mine", "--cfg", "job", "method=pgd_at", "data=cifar10", "seed=6", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "  p: 3\n" in done.stdout
    assert "  root: /scratch\n" in done.stdout
    assert "\nseed: 6\n" in done.stdout
    assert "wandb" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["experiment=pgd_at"], "experiment=pgd_at is now method=pgd_at"),
        (["experiment=pgd_at,mart"], "experiment=pgd_at,mart is now method=pgd_at,mart"),
        (
            ["+study=fashion_linf", "experiment=mma"],
            "+study=fashion_linf is now study=fashion_linf, and experiment=mma is now method=mma",
        ),
        (["experiment=cifar10"], "experiment=cifar10 is now experiment=cifar10_resnet18"),
        (["experiment=cifar10_sm"], "experiment=cifar10_sm is not an option; did you mean experiment=cifar10_small?"),
        (["hydra=default"], "hydra=default is now hydra=train"),
        (["experiment=standard", "atack.steps=3"], "experiment=standard is now method=standard"),
        (["hydra/launcher=slurm"], "hydra/launcher=slurm is not an option;"),
    ],
)
def test_old_names_say_their_new_ones(arguments, said):
    with hydra(), pytest.raises(ConfigCompositionException) as caught:
        compose("train", [argument.partition(",")[0] for argument in arguments])
    sentence = did_you_mean.sentence(caught.value, "train", arguments)
    assert sentence.startswith(said)
    assert "\n" not in sentence


def test_an_experiment_of_the_users_own_may_have_an_old_name(tmp_path):
    """What Hydra complains about is the misspelt key, so that is what the sentence is about."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/standard.yaml").write_text("# @package _global_\nseed: 5\n")
    arguments = ["experiment=standard", "atack.steps=3"]
    with hydra(), pytest.raises(ConfigCompositionException) as caught:
        compose("train", [f"hydra.searchpath=[file://{tmp_path}]", *arguments])
    assert did_you_mean.sentence(caught.value, "train", arguments).startswith("atack.steps is not a key")


def test_every_method_was_an_experiment_once():
    """A method that is added later has no old name."""
    assert {path.stem for path in (CONF / "method").glob("*.yaml")} >= did_you_mean._METHODS
    assert not {path.stem for path in (CONF / "experiment").glob("*.yaml")} & did_you_mean._METHODS


def test_a_plugin_that_is_not_installed_names_the_extra():
    sentence = did_you_mean._no_option("hydra/launcher/joblib", ["basic"])
    assert sentence == "hydra/launcher=joblib needs a plugin of Hydra; run pip install -e '.[sweep]' to have it"
