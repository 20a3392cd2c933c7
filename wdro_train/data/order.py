"""In which order the images of a set are served, so that its first few hundred stand for the whole.

An evaluation often judges the first k images only. A set that is stored class by class would then show one class; such
a set is brought into a random order that is always the same and of which every beginning is balanced by class.
"""

from __future__ import annotations

from enum import Enum

import numpy as np
import torch
from torch import Tensor

# A fixed seed, no setting: two evaluations of the same k images can be compared only if these are the same images.
ORDER_SEED = 0


class Order(Enum):
    """In which order the images of a set stand."""

    GIVEN = "that of the source, or of a list"
    BY_CLASS = "class by class"
    DRAWN = "drawn at random, every beginning balanced by class"


def balanced_order(labels: Tensor, seed: int = ORDER_SEED) -> Tensor:
    """A random order of which the first k images hold the classes in the proportions of the whole set, for every k.

    The images of a class are shuffled, and the j-th of its n images (counted from 0) gets a place that is drawn
    uniformly from [j/n, (j + 1)/n). All images are then sorted by their places, so that every class is spread evenly.

    Args:
        labels: Shape [N], integers >= 0.
        seed: Decides the order.

    Returns:
        A permutation of 0..N-1, shape [N].
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    sizes = np.unique(labels.numpy(), return_counts=True)[1]
    rank = np.concatenate([np.arange(size) for size in sizes])
    place = (rank + rng.random(len(rank))) / np.repeat(sizes, sizes)
    return torch.as_tensor(by_class[np.argsort(place, kind="stable")])
