"""Lightning callbacks: the adversaries of a run, its checkpoints, its memory and its random numbers, one file each."""

from wdro_train.training.callbacks.adversary import DistributionalAdversary
from wdro_train.training.callbacks.checkpoint import RunCheckpoint
from wdro_train.training.callbacks.execution import NetworkExecution
from wdro_train.training.callbacks.history import ValidationHistory
from wdro_train.training.callbacks.images import AdversarialImages
from wdro_train.training.callbacks.keep_listening import KeepListening
from wdro_train.training.callbacks.learning_rate import LearningRate
from wdro_train.training.callbacks.overfitting import OverfittingWarning
from wdro_train.training.callbacks.progress import ProgressBar
from wdro_train.training.callbacks.pruning import TrialPruning
from wdro_train.training.callbacks.seeding import SeedEpoch
from wdro_train.training.callbacks.warmup import GradualWarmup, RadiusWarmup
from wdro_train.training.callbacks.weight_perturbation import AdversarialWeightPerturbation

__all__ = [
    "AdversarialImages",
    "AdversarialWeightPerturbation",
    "DistributionalAdversary",
    "GradualWarmup",
    "KeepListening",
    "LearningRate",
    "NetworkExecution",
    "OverfittingWarning",
    "ProgressBar",
    "RadiusWarmup",
    "RunCheckpoint",
    "SeedEpoch",
    "TrialPruning",
    "ValidationHistory",
]
