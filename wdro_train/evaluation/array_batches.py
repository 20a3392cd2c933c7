"""A set of images as batches that can be iterated as often as needed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wdro_train.data import ImageSet


class ArrayBatches:
    """Batches of images in [0, 1] in the order of their set, decoded when they are needed.

    Args:
        arrays: The set.
        batch_size: Images per batch; the last one may be smaller.
    """

    def __init__(self, arrays: ImageSet, batch_size: int) -> None:
        self.arrays, self.batch_size = arrays, batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self.arrays.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, C, H, W] with labels [B]."""
        for start in range(0, len(self.arrays.labels), self.batch_size):
            rows = torch.arange(start, min(start + self.batch_size, len(self.arrays.labels)))
            yield self.arrays.batch(rows), self.arrays.labels[rows]
