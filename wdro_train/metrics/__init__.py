"""torchmetrics of robustness over a whole dataset."""

from wdro_train.metrics.robustness import (
    AdversarialAccuracy,
    CleanAccuracy,
    FirstOrderBounds,
    Mean,
    WorstCaseAccuracy,
)

__all__ = ["AdversarialAccuracy", "CleanAccuracy", "FirstOrderBounds", "Mean", "WorstCaseAccuracy"]
