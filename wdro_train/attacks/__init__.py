"""Attacks on image classifiers inside Wasserstein balls: one protocol (`Attack`), one file an attack.

`MinimalDistance` is the exception: it looks for each image's nearest flip, whatever the ball, and returns `Distances`.
The functions are what attacks and certificates are made of: `batch_under_attack` puts network and batch in the state
in which they work, and `forward` and `input_gradient` ask the network.
"""

from wdro_train.attacks.base import Attack, Attacked, AttackResult
from wdro_train.attacks.boundary import BoundaryAttack
from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.kl_pgd import KLPGD
from wdro_train.attacks.lagrangian import Lagrangian
from wdro_train.attacks.marginal import DualAscent, Fixed, Marginal
from wdro_train.attacks.minimal_distance import Distances, MinimalDistance
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.network_check import check_logits
from wdro_train.attacks.pool import Pool
from wdro_train.attacks.w_fgsm import WFGSM
from wdro_train.attacks.w_pgd import WPGD
from wdro_train.attacks.wrm import WRM

__all__ = [
    "KLPGD",
    "WFGSM",
    "WPGD",
    "WRM",
    "Attack",
    "AttackResult",
    "Attacked",
    "BoundaryAttack",
    "Distances",
    "DualAscent",
    "Fixed",
    "Lagrangian",
    "Marginal",
    "MinimalDistance",
    "Pool",
    "batch_under_attack",
    "check_logits",
    "forward",
    "input_gradient",
]
