"""From the name of a class or function in a configuration to the object that it makes.

What the user types may name any constructor: naming it on the command line is how a user trusts it. What a checkpoint
names is built only if it is listed here, by its exact name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

CONSTRUCTORS: Mapping[str, frozenset[str]] = {
    "model": frozenset(
        {
            "wdro_train.models.huggingface_model",
            "wdro_train.models.lipschitz_cnn",
            "wdro_train.models.lipschitz_mlp",
            "wdro_train.models.onnx_model",
            "wdro_train.models.preact_resnet18",
            "wdro_train.models.resnet18",
            "wdro_train.models.robustbench_model",
            "wdro_train.models.small_cnn",
            "wdro_train.models.timm_model",
            "wdro_train.models.torchvision_model",
            "wdro_train.models.wide_resnet",
        }
    ),
    "data": frozenset(
        {
            "wdro_train.data.Digits",
            "wdro_train.data.GzipDataModule",
            "wdro_train.data.HuggingFaceDataModule",
            "wdro_train.data.ImageFolderDataModule",
            "wdro_train.data.NumpyDataModule",
            "wdro_train.data.TorchvisionDataModule",
        }
    ),
    "attack": frozenset(
        {
            "wdro_train.attacks.DualAscent",
            "wdro_train.attacks.Fixed",
            "wdro_train.attacks.KLPGD",
            "wdro_train.attacks.Lagrangian",
            "wdro_train.attacks.MinimalDistance",
            "wdro_train.attacks.Pool",
            "wdro_train.attacks.WFGSM",
            "wdro_train.attacks.WPGD",
            "wdro_train.attacks.WRM",
            "wdro_train.attacks.BoundaryAttack",
        }
    ),
    "objective": frozenset(
        {
            "wdro_train.attacks.DualAscent",
            "wdro_train.attacks.Fixed",
            "wdro_train.objectives.Adversarial",
            "wdro_train.objectives.CrownIbp",
            "wdro_train.objectives.FirstOrderPenalty",
            "wdro_train.objectives.GaussianNoise",
            "wdro_train.objectives.Ibp",
            "wdro_train.objectives.LipschitzDual",
            "wdro_train.objectives.Mart",
            "wdro_train.objectives.OneRadius",
            "wdro_train.objectives.RadiusOfImage",
            "wdro_train.objectives.Sabr",
            "wdro_train.objectives.Standard",
            "wdro_train.objectives.StatisticallyRobust",
            "wdro_train.objectives.WTrades",
        }
    ),
}
"""What a file may ask to run, by the group of the configuration; no other group is built from a file."""

# Networks are callable, and Hydra asks of everything callable that a constructor returns whether it may run.
_RETURNED = frozenset({"torch.nn.modules.container.Sequential", "robustbench.*"})
_WHITELIST = "_execution_whitelist_"  # of `instantiate`, from Hydra 1.4 on


def construct(node: Mapping[str, Any] | DictConfig, *, only: Collection[str] | None = None, **arguments: Any) -> Any:
    """The object that a configuration names, by Hydra's `instantiate`.

    Args:
        node: What the user typed, or what `wdro_train.config.trusted.checked` has let pass.
        only: From `permitted`, for what comes from a file: a Hydra that can be told what may run (from 1.4 on) then
            runs nothing else. None for what the user typed.
        **arguments: Further arguments, as objects.
    """
    if only is not None and _WHITELIST in inspect.signature(instantiate).parameters:
        arguments[_WHITELIST] = sorted(only)
    return instantiate(node, **arguments)


def permitted(group: str, allowed: Collection[str] = ()) -> frozenset[str]:
    """What may run while a group of a file is built, for Hydra: constructors, and the classes of what they return.

    Args:
        group: A key of `CONSTRUCTORS`.
        allowed: Further constructors that the user has named; what they return is of their own package.
    """
    packages = {f"{name.partition('.')[0]}.*" for name in allowed}
    return CONSTRUCTORS[group] | {_defined_as(name) for name in CONSTRUCTORS[group]} | {*allowed} | packages | _RETURNED


def _defined_as(name: str) -> str:
    """The name of one of `CONSTRUCTORS` in the module that defines it: attacks are callable, and of that class."""
    package, _, last = name.rpartition(".")
    made = getattr(importlib.import_module(package), last)
    return f"{made.__module__}.{made.__qualname__}"
