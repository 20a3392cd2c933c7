"""The distance of every image of a set to its nearest misclassified point, found by the minimum-norm attack.

One vector of distances gives the worst-case accuracy for every radius and every order (theory, section 5).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.evaluation.engine import Engine, Stage
from wdro_train.evaluation.piece_store import Arrays
from wdro_train.theory.robustness_curve import RobustnessCurve


class FoundDistances(NamedTuple):
    """What the minimum-norm attack found on a whole set.

    Attributes:
        distances: ||x' - x||_s to the nearest flip that was found, shape [N], float64: 0 for misclassified images,
            inf where no flip was found.
        labels: The label of each image, shape [N].
        correct: Whether the clean image is classified correctly, shape [N].
        rivals: The class that each image was flipped to, shape [N]; its label where it was not flipped.
        zero_gradients: Number of correct images whose first gradient vanished.
        nonfinite_gradients: Number of (image, step) pairs whose gradient was not finite.
    """

    distances: NDArray[np.float64]
    labels: NDArray[np.int64]
    correct: NDArray[np.bool_]
    rivals: NDArray[np.int64]
    zero_gradients: int
    nonfinite_gradients: int

    @property
    def curve(self) -> RobustnessCurve:
        """A_delta for all delta and p, an upper bound on the exact one."""
        return RobustnessCurve(self.distances)


def distance_stage(engine: Engine, attack: MinimalDistance) -> Stage:
    """The stage that runs the minimum-norm attack on every batch.

    Its pieces hold the distances and, as `points`, the flipped images, whose last axis is the batch.

    Args:
        engine: Gives the network.
        attack: Finds the distances.
    """

    def work(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        found = attack(engine.model, x, y, generator=generator)
        with attack_mode(engine.model), torch.no_grad():
            logits = forward(engine.model, found.x_adv, attack.effort.batch_size)
        others = logits.scatter(1, y[:, None], -math.inf).argmax(1)  # in a tie the label would come first
        rivals = torch.where(found.distances.isfinite(), others, y)
        return {
            "distances": found.distances.cpu().numpy(),
            "labels": y.cpu().numpy(),
            "correct": found.clean_correct.cpu().numpy(),
            "rivals": rivals.cpu().numpy(),
            "counts": np.asarray([found.zero_gradients, found.nonfinite_gradients])[:, None],
            "points": np.moveaxis(found.x_adv.cpu().numpy(), 0, -1),
        }

    return Stage("distances", attack, work)


def find_distances(engine: Engine, attack: MinimalDistance) -> FoundDistances:
    """The distances of the whole set; the flipped images stay in the store (see `distance_stage`).

    Args:
        engine: The set and the network.
        attack: Finds the distances.
    """
    joined = engine.run(distance_stage(engine, attack), ("distances", "labels", "correct", "rivals", "counts"))
    zero, nonfinite = (int(row.sum()) for row in joined.pop("counts"))
    return FoundDistances(**joined, zero_gradients=zero, nonfinite_gradients=nonfinite)
