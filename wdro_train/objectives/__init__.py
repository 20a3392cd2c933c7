"""What training minimises: one protocol (`Objective`), one file an objective."""

from wdro_train.objectives.adversarial import Adversarial
from wdro_train.objectives.base import ChecksNetwork, Objective, ObjectiveResult, WarmsUp, unlearning
from wdro_train.objectives.crown_ibp import CrownIbp
from wdro_train.objectives.first_order_penalty import FirstOrderPenalty
from wdro_train.objectives.gaussian_noise import GaussianNoise
from wdro_train.objectives.ibp import Ibp
from wdro_train.objectives.lipschitz_dual import LipschitzDual
from wdro_train.objectives.mart import Mart
from wdro_train.objectives.sabr import Sabr
from wdro_train.objectives.standard import Standard
from wdro_train.objectives.statistically_robust import StatisticallyRobust
from wdro_train.objectives.training_radii import OneRadius, RadiusOfImage, TrainingRadii
from wdro_train.objectives.w_trades import WTrades

__all__ = [
    "Adversarial",
    "ChecksNetwork",
    "CrownIbp",
    "FirstOrderPenalty",
    "GaussianNoise",
    "Ibp",
    "LipschitzDual",
    "Mart",
    "Objective",
    "ObjectiveResult",
    "OneRadius",
    "RadiusOfImage",
    "Sabr",
    "Standard",
    "StatisticallyRobust",
    "TrainingRadii",
    "WTrades",
    "WarmsUp",
    "unlearning",
]
