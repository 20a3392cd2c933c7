"""What is not said means the same on the command line and in Python, but where there is a reason."""

import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from shell import ROOT

from wdro_train.cli.schemas.constructors import _PARTS
from wdro_train.config.signatures import located

CONF = ROOT / "conf"
GROUPS = ("attack", "objective", "callbacks")
REASONS = {
    "Margin maximisation leaves alone what does not flip; the worst case, the default of the class, does not.": {
        "attack=margin attack.beyond",
    },
    "Each epoch is judged by fewer steps than a report.": {
        "callbacks=worst_case callbacks.adversary.distances.steps",
    },
    "These are the two attacks of Pool that `DistributionalAdversary` itself makes by default.": {
        f"callbacks=default callbacks.adversary.{key}"
        for key in (
            "first_order.loss", "val_attack.attacks.0.loss", "val_attack.attacks.0.steps",
            "val_attack.attacks.0.random_start", "val_attack.attacks.0.keep", "val_attack.attacks.1.steps",
            "val_attack.attacks.1.random_start", "val_attack.attacks.1.keep",
        )
    },
    "The option is there to judge by the worst case alone.": {
        "callbacks=worst_case callbacks.adversary.val_attack",
        "callbacks=worst_case callbacks.adversary.first_order",
    },
    "Certified training is judged by its guarantee alone.": {
        f"callbacks=certified callbacks.adversary.{key}" for key in ("val_attack", "first_order", "certificate")
    },
    "Certified radii begin smaller than the flips of an attack, and D is held back further.": {
        f"objective={option} objective.radius.marginal.{key}"
        for option in ("ibp", "crown_ibp", "sabr")
        for key in ("rate", "limit", "start")
    }
    | {"objective=lipschitz_dual objective.marginal.rate"},
    "A run keeps its best and its last epoch by these names; a callback made by hand is Lightning's own.": {
        f"callbacks={option} callbacks.{key}"
        for option in ("certified", "default", "no_adversary", "worst_case")
        for key in (
            "checkpoint.filename", "checkpoint.monitor", "checkpoint.mode", "checkpoint.save_on_train_epoch_end",
            "checkpoint.enable_version_counter", "last_checkpoint.filename",
            "last_checkpoint.save_on_train_epoch_end", "last_checkpoint.enable_version_counter",
        )
    },
    "A run of many epochs leaves few pictures.": {
        "callbacks=default callbacks.images.every_n_epochs",
        "callbacks=worst_case callbacks.images.every_n_epochs",
    },
}  # fmt: skip


def nodes(value, path):
    """Everything with a `_target_`, by its dotted place."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, part in value.items():
            yield from nodes(part, f"{path}.{key}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from nodes(part, f"{path}.{number}")


def defaults(made):
    """Name and default of every argument, those that are handed on to base classes included."""
    classes = made.__mro__ if isinstance(made, type) else (made,)
    found = {}
    for one in classes:
        if not isinstance(one, type) or "__init__" in vars(one):
            parameters = inspect.signature(one.__init__ if isinstance(one, type) else one).parameters.values()
            found = {p.name: p.default for p in parameters if p.default is not p.empty} | found
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return found


def differences():
    """Values of the options that are written there and are no defaults of the constructor."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for group in GROUPS:
            for option in sorted(path.stem for path in Path(CONF / group).glob("*.yaml")):
                raw = OmegaConf.to_container(compose("train", [f"{group}={option}"])[group], resolve=False)
                for path, node in nodes(raw, group):
                    known = defaults(located(node["_target_"])) if node["_target_"].startswith("wdro_train.") else {}
                    for key, value in node.items():
                        if key in known and not isinstance(value, dict) and "${" not in str(value):
                            same = value == known[key] or (key in ("p", "norm") and float(value) == known[key])
                            if not same:
                                yield f"{group}={option} {path}.{key}"
    GlobalHydra.instance().clear()


@pytest.mark.slow
def test_defaults_are_the_same_but_for_a_reason():
    expected = set().union(*REASONS.values())
    assert set(differences()) == expected


def test_schemas_of_one_attack_have_its_defaults():
    compared = 0
    for schema, (made, *others) in _PARTS.items():
        if others or not made.__module__.startswith("wdro_train.attacks"):
            continue
        for name, parameter in inspect.signature(made).parameters.items():
            if name in schema.model_fields and parameter.default is not parameter.empty:
                assert schema.model_fields[name].default == parameter.default, f"{made.__name__}.{name}"
                compared += 1
    assert compared > 20
