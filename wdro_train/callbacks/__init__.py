"""Lightning callbacks."""

from wdro_train.callbacks.adversary import DistributionalAdversary
from wdro_train.callbacks.checkpoint import RunCheckpoint
from wdro_train.callbacks.history import ValidationHistory
from wdro_train.callbacks.images import AdversarialImages
from wdro_train.callbacks.overfitting import OverfittingWarning
from wdro_train.callbacks.progress import ProgressBar
from wdro_train.callbacks.seeding import SeedEpoch
from wdro_train.callbacks.warmup import RadiusWarmup
from wdro_train.callbacks.weight_perturbation import AdversarialWeightPerturbation

__all__ = [
    "AdversarialImages",
    "AdversarialWeightPerturbation",
    "DistributionalAdversary",
    "OverfittingWarning",
    "ProgressBar",
    "RadiusWarmup",
    "RunCheckpoint",
    "SeedEpoch",
    "ValidationHistory",
]
