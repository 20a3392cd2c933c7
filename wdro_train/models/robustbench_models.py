"""Networks of RobustBench's model zoo."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import nn

from wdro_train.utils.errors import UserError
from wdro_train.utils.optional_imports import optional
from wdro_train.utils.tensor_files import load_failure

# Number of classes -> name of the data in the model zoo.
_ZOOS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}


def robustbench_model(
    num_classes: int, name: str, threat: str = "Linf", pretrained: bool = True, root: str = "models"
) -> nn.Module:
    """A network as its authors defined it: it takes images in [0, 1] and normalises by itself.

    Args:
        num_classes: 10 (CIFAR-10), 100 (CIFAR-100) or 1000 (ImageNet): tells the zoo.
        name: As on RobustBench's leaderboard, `Carmon2019Unlabeled` for instance.
        threat: `Linf` or `L2`: what it was trained against.
        pretrained: Read `<root>/<data>/<threat>/<name>.pt`, downloaded if it is not there; false for random weights.
        root: Folder of the downloaded files.

    Raises:
        UserError: robustbench is not installed, or knows no such network.
    """
    if num_classes not in _ZOOS:
        raise UserError(
            f"RobustBench has networks of 10, 100 and 1000 classes, not {num_classes}; choose another model"
        )
    data = _ZOOS[num_classes]
    with _importable():
        utils, enums = (optional(f"robustbench.{part}", "robustbench") for part in ("utils", "model_zoo.enums"))
    if threat not in ("Linf", "L2"):
        raise UserError(f"model.threat={threat} is no threat of RobustBench's networks here; choose Linf or L2")
    zoo: dict[str, Any] = utils.all_models[enums.BenchmarkDataset(data)].get(enums.ThreatModel(threat), {})
    if name not in zoo:
        raise UserError(
            f"RobustBench has no network model.name={name} for {data} and model.threat={threat}; "
            f"it has {', '.join(sorted(zoo)) or 'none'}"
        )
    network: nn.Module
    if not pretrained:
        network = zoo[name]["model"]()
        return network
    try:
        network = utils.load_model(name, model_dir=root, dataset=data, threat_model=threat)
    except Exception as error:  # what its download, torch.load and load_state_dict raise has no common base
        raise UserError(
            f"model.name={name} could not be loaded from {root}/{data}/{threat}/{name}.pt ({load_failure(error)}); "
            "put the network's own file there"
        ) from error
    return network


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Stand-ins for what robustbench imports under names that its dependencies do not have.

    Its requirement pyautoattack is AutoAttack under another import name; `pkg_resources` is gone from setuptools, and
    only needed for its ImageNet loader, which is not used here.
    """
    names: list[str] = []
    try:
        if not _found("autoattack"):
            for name in ("autoattack", "autoattack.state"):
                sys.modules[name] = optional(f"py{name}", "robustbench")
                names.append(name)
        if not _found("pkg_resources"):
            sys.modules["pkg_resources"] = ModuleType("pkg_resources")
            names.append("pkg_resources")
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _found(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True
