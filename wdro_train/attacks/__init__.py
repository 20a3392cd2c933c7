"""Attacks on image classifiers inside Wasserstein balls, one file an attack, one protocol."""

from wdro_train.attacks.base import Attack, AttackResult
from wdro_train.attacks.boundary import BoundaryAttack
from wdro_train.attacks.kl_pgd import KLPGD
from wdro_train.attacks.lagrangian import Lagrangian
from wdro_train.attacks.marginal import DualAscent, Fixed, Marginal
from wdro_train.attacks.minimal_distance import Distances, MinimalDistance
from wdro_train.attacks.pool import Pool
from wdro_train.attacks.w_fgsm import WFGSM
from wdro_train.attacks.w_pgd import WPGD

__all__ = [
    "KLPGD",
    "WFGSM",
    "WPGD",
    "Attack",
    "AttackResult",
    "BoundaryAttack",
    "Distances",
    "DualAscent",
    "Fixed",
    "Lagrangian",
    "Marginal",
    "MinimalDistance",
    "Pool",
]
