"""A set of images as batches that can be iterated as often as needed, and their copies on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from wdro_train.data import ImageSet

_PART_OF_FREE_MEMORY = 4  # a quarter: 3 GB of a small GPU hold 5,000 images of ImageNet's size


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


class MovedBatches:
    """The batches of a set on the device where the network computes, each moved there once as long as there is room.

    Args:
        device: Where to. On the CPU nothing is kept, as nothing has to be moved.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._room = _room(device)
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, digest: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device.

        Args:
            digest: Of its images and labels, by which it is known again.
            x: Images.
            y: Labels.
        """
        if digest in self._kept:
            return self._kept[digest]
        moved = x.to(self.device), y.to(self.device)
        size = sum(part.numel() * part.element_size() for part in moved)
        if size <= self._room:
            self._room -= size
            self._kept[digest] = moved
        return moved

    def kept(self, digests: Sequence[str]) -> list[tuple[Tensor, Tensor]] | None:
        """These batches, if the device keeps all of them; else None."""
        return [self._kept[one] for one in digests] if all(one in self._kept for one in digests) else None


def _room(device: torch.device) -> int:
    """Bytes of the device's memory that batches may take: a part of what is free, as the network needs the most."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free // _PART_OF_FREE_MEMORY
