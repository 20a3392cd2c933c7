"""Train and judge image classifiers against Wasserstein distributional adversaries."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wdro_train.evaluation import robustness_curve
    from wdro_train.evaluation.trained import load
    from wdro_train.training.adversarial_module import AdversarialModule
    from wdro_train.training.callbacks import DistributionalAdversary
    from wdro_train.training.module import RobustClassifier

# Threads that wait for work sleep instead of spinning. Small networks wait a lot, and on cores that are shared spinning
# makes them ten times slower. torch reads this when it is first imported; set it yourself to choose otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.2.0.dev0"
__all__ = [
    "AdversarialModule",
    "DistributionalAdversary",
    "RobustClassifier",
    "__version__",
    "load",
    "robustness_curve",
]

_HOMES = {
    "AdversarialModule": "wdro_train.training.adversarial_module",
    "DistributionalAdversary": "wdro_train.training.callbacks",
    "RobustClassifier": "wdro_train.training.module",
    "load": "wdro_train.evaluation.trained",
    "robustness_curve": "wdro_train.evaluation",
}


def __getattr__(name: str) -> Any:
    """The short names, imported when they are first asked for (PEP 562): Lightning takes seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """What there is, whether or not it has been imported."""
    return sorted({*globals(), *__all__})
