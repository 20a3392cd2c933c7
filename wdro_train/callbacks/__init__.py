"""Lightning callbacks."""

from wdro_train.callbacks.adversary import DistributionalAdversary
from wdro_train.callbacks.checkpoint import RunCheckpoint
from wdro_train.callbacks.history import ValidationHistory
from wdro_train.callbacks.images import AdversarialImages
from wdro_train.callbacks.overfitting import OverfittingWarning
from wdro_train.callbacks.progress import ProgressBar
from wdro_train.callbacks.seeding import SeedEpoch

__all__ = [
    "AdversarialImages",
    "DistributionalAdversary",
    "OverfittingWarning",
    "ProgressBar",
    "RunCheckpoint",
    "SeedEpoch",
    "ValidationHistory",
]
