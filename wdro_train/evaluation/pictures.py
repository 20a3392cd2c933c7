"""Pictures of chosen images before and after the attack, without the whole set in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wdro_train.evaluation.store import PieceStore
from wdro_train.threat import image_norms


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


def flipped_pairs(
    store: PieceStore,
    batches: Iterable[tuple[Tensor, Tensor]],
    indices: Sequence[int],
    *,
    norm: float,
    stage: str = "distances",
) -> Pairs | None:
    """Chosen images and what the minimum-norm attack made of them.

    Args:
        store: With the stage's `points`, one piece a batch.
        batches: Those the stage ran over, in the same order.
        indices: Positions in the set.
        norm: Ground norm of the distances.
        stage: Of the store.

    Returns:
        The pairs in the order of `indices`; None if there are none.
    """
    if not indices:
        return None
    found: dict[int, tuple[Tensor, Tensor]] = {}
    wanted, start = set(indices), 0
    for piece, (x, _) in enumerate(batches):
        here = sorted(i for i in wanted if start <= i < start + len(x))
        if here:
            points = torch.from_numpy(store.load(stage, piece, ("points",))["points"]).movedim(-1, 0)
            found |= {i: (x[i - start].clone().float(), points[i - start].clone()) for i in here}
        start += len(x)
        if len(found) == len(wanted):
            break
    clean, adversarial = (torch.stack([found[i][k] for i in indices]) for k in (0, 1))
    return Pairs(clean, adversarial, image_norms(adversarial - clean, norm))
