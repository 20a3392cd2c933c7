"""Pictures of chosen images before and after the attack, without the whole set in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wdro_train.evaluation.distances import FoundDistances, flipped_points
from wdro_train.evaluation.engine import Engine, Place
from wdro_train.theory.ground_norm import GroundNorm


class Pairs(NamedTuple):
    """Images and their flipped versions.

    Attributes:
        clean: In [0, 1], shape [k, C, H, W].
        adversarial: Same shape; the clean image where no flip was found.
        distances: ||adversarial - clean||_s, float64, shape [k].
    """

    clean: Tensor
    adversarial: Tensor
    distances: Tensor


def flipped_pairs(engine: Engine, found: FoundDistances, ground: GroundNorm, indices: Sequence[int]) -> Pairs | None:
    """Chosen images and what the minimum-norm attack made of them.

    Args:
        engine: The set and the network; its store has what the search for distances left.
        found: What the search found.
        ground: The norm of the distances.
        indices: Positions in the set.

    Returns:
        The pairs in the order of `indices`; None if there are none.
    """
    if not indices or found.stage is None:
        return None
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    wanted, start = set(indices), 0
    for piece, (x, y) in enumerate(engine.batches):
        here = sorted(i for i in wanted if start <= i < start + len(x))
        if here:
            points = flipped_points(engine, found.stage, Place.of(piece, x, y), x, y)
            pairs |= {i: (x[i - start].clone().float(), points[i - start].clone()) for i in here}
        start += len(x)
        if len(pairs) == len(wanted):
            break
    clean, adversarial = (torch.stack([pairs[i][k] for i in indices]) for k in (0, 1))
    return Pairs(clean, adversarial, ground.distances(adversarial - clean))
