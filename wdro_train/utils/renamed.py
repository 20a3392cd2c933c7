"""Names of earlier versions, and the names they have now: of stored constructors, and of arguments.

A checkpoint keeps the configuration of its run, and that names classes and functions by where they were when it was
written. Whoever reads one asks here, so that moving a class makes no checkpoint unreadable and is no change of what was
configured. The list is exact: a name that is not in it means what it says.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Returned = TypeVar("Returned")

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

FORMER_POSTER: Mapping[str, str] = {"pgd_steps": "steps"}
"""Keys of `poster`, as `first_order` of evaluate.py was called, that have another name now."""


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


DEFAULTS_OF_0_1_0: Mapping[str, Mapping[str, Any]] = {
    "wdro_train.attacks.WPGD": {"steps": 50, "random_start": False},
    "wdro_train.attacks.KLPGD": {"steps": 50},  # which hands its arguments to WPGD
}
"""Arguments whose default was another one in version 0.1.0, by the constructor's present name."""


def with_present_names(tree: Any) -> Any:
    """A copy of a stored configuration that means today what it meant when it was written.

    Every `_target_` has its present name. Where version 0.1.0 has written the configuration, which its names tell, the
    arguments that it left to defaults which have changed since are spelt out.

    Args:
        tree: Dictionaries, lists and plain values.

    >>> with_present_names({"callbacks": [{"_target_": "wdro_train.callbacks.SeedEpoch", "seed": 0}]})
    {'callbacks': [{'_target_': 'wdro_train.training.callbacks.SeedEpoch', 'seed': 0}]}
    """
    return _present(tree, DEFAULTS_OF_0_1_0 if _has_former_names(tree) else {})


def _has_former_names(tree: Any) -> bool:
    if isinstance(tree, Mapping):
        named = tree.get("_target_")
        return (isinstance(named, str) and named in RENAMED) or any(map(_has_former_names, tree.values()))
    return isinstance(tree, list | tuple) and any(map(_has_former_names, tree))


def _present(tree: Any, defaults: Mapping[str, Mapping[str, Any]]) -> Any:
    if isinstance(tree, list | tuple):
        return [_present(part, defaults) for part in tree]
    if not isinstance(tree, Mapping):
        return tree
    parts = {key: _present(value, defaults) for key, value in tree.items()}
    if isinstance(named := tree.get("_target_"), str):
        parts["_target_"] = present_name(named)
        parts |= {key: value for key, value in defaults.get(parts["_target_"], {}).items() if key not in parts}
    return parts


def renamed_arguments(**names: str) -> Callable[[Callable[P, Returned]], Callable[P, Returned]]:
    """Let a function be called by former names of its arguments too, with a warning that says the present ones.

    Former names stand in its signature, so that whoever hands on only what a signature names, as
    `torchmetrics.MetricCollection` does, hands them on as well.

    Args:
        **names: Present name by former name.

    >>> @renamed_arguments(labels="target")
    ... def count(target):
    ...     return len(target)
    >>> count([1, 2])
    2
    """

    def decorate(function: Callable[P, Returned]) -> Callable[P, Returned]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Returned:
            former = names.keys() & kwargs.keys()
            if not former:
                return function(*args, **kwargs)
            told = ", ".join(f"{name} is {names[name]}" for name in names if name in former)
            warnings.warn(f"arguments have the names of torchmetrics now: {told}", FutureWarning, stacklevel=3)
            return function(*args, **{names.get(key, key): value for key, value in kwargs.items()})  # type: ignore[arg-type]

        signature = inspect.signature(function)
        kept = list(signature.parameters.values())
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
        call.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        return call

    return decorate
