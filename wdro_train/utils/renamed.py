"""Names under which earlier versions stored this package's constructors, and the names they have now.

A checkpoint keeps the configuration of its run, and that names classes and functions by where they were when it was
written. Whoever reads one asks here, so that moving a class makes no checkpoint unreadable and is no change of what was
configured. The list is exact: a name that is not in it means what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CALLBACKS = (
    "AdversarialImages",
    "AdversarialWeightPerturbation",
    "DistributionalAdversary",
    "OverfittingWarning",
    "ProgressBar",
    "RadiusWarmup",
    "RunCheckpoint",
    "SeedEpoch",
    "ValidationHistory",
)

RENAMED: Mapping[str, str] = {
    # Stored by version 0.1.0.
    **{f"wdro_train.callbacks.{name}": f"wdro_train.training.callbacks.{name}" for name in _CALLBACKS},
    "wdro_train.csv_logger.RunCSVLogger": "wdro_train.training.csv_logger.RunCSVLogger",
    "wdro_train.attacks.WorstCase": "wdro_train.attacks.BoundaryAttack",
}
"""Stored name -> present name. A class that is moved or renamed adds a line here, and no line is ever taken out."""


def present_name(name: str) -> str:
    """The name that a constructor has now.

    Args:
        name: As it was stored.

    >>> present_name("wdro_train.callbacks.SeedEpoch")
    'wdro_train.training.callbacks.SeedEpoch'
    >>> present_name("torch.optim.Adam")
    'torch.optim.Adam'
    """
    return RENAMED.get(name, name)


def with_present_names(tree: Any) -> Any:
    """A copy of a stored configuration in which every `_target_` has its present name.

    Args:
        tree: Dictionaries, lists and plain values.

    >>> with_present_names({"callbacks": [{"_target_": "wdro_train.callbacks.SeedEpoch", "seed": 0}]})
    {'callbacks': [{'_target_': 'wdro_train.training.callbacks.SeedEpoch', 'seed': 0}]}
    """
    if isinstance(tree, Mapping):
        return {
            key: present_name(value) if key == "_target_" and isinstance(value, str) else with_present_names(value)
            for key, value in tree.items()
        }
    return [with_present_names(part) for part in tree] if isinstance(tree, list | tuple) else tree
