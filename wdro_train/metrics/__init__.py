"""torchmetrics of robustness over a whole dataset."""

from wdro_train.metrics.robustness import AdversarialAccuracy, CleanAccuracy, FirstOrderBounds

__all__ = ["AdversarialAccuracy", "CleanAccuracy", "FirstOrderBounds"]
