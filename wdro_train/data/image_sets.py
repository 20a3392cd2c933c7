"""Labelled images as one thing to index, whether they are held in memory or decoded from files when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wdro_train.data.order import ORDER_SEED, Order, balanced_order


class ImageSet(Protocol):
    """N images, each with one label out of 0..m-1.

    `ImageArrays` and `ImageFiles` are the two kinds that this package has; a data module may return one of its own.
    """

    @property
    def labels(self) -> Tensor:
        """Shape [N], int64."""
        ...

    def batch(self, rows: Tensor) -> Tensor:
        """The images of some rows, with pixels in [0, 1].

        Args:
            rows: Which images, shape [B], integers in 0..N-1.

        Returns:
            Shape [B, C, H, W], floating point.
        """
        ...

    def take(self, rows: Tensor) -> ImageSet:
        """The smaller set of some rows, in their order."""
        ...


class ImageArrays(NamedTuple):
    """A set of images that is held in memory.

    Attributes:
        images: Pixels in [0, scale], shape [N, C, H, W], integers or floating point.
        labels: Shape [N].
        scale: The value of a white pixel; `batch` divides by it.
    """

    images: Tensor
    labels: Tensor
    scale: float = 255.0

    def batch(self, rows: Tensor) -> Tensor:
        """Images in [0, 1], shape [len(rows), C, H, W]; see `ImageSet`."""
        return self.images[rows].float() / self.scale

    def take(self, rows: Tensor) -> ImageArrays:
        """The set of some of the images."""
        return ImageArrays(self.images[rows], self.labels[rows], self.scale)


class ImageFiles(NamedTuple):
    """A set of images that are decoded when they are needed.

    Attributes:
        read: Takes a position in the source and returns one image, shape [C, H, W]: integers in 0..255, or
            floating-point pixels in [0, 1].
        labels: Shape [N].
        positions: Where the images stand in the source, shape [N].
        order: In which order they stand in this set.
    """

    read: Callable[[int], Tensor]
    labels: Tensor
    positions: Tensor
    order: Order = Order.GIVEN

    def batch(self, rows: Tensor) -> Tensor:
        """Images in [0, 1], shape [len(rows), C, H, W]; see `ImageSet`."""
        images = (self.read(int(k)) for k in self.positions[rows])
        return torch.stack([x if x.is_floating_point() else x.float() / 255 for x in images])

    def take(self, rows: Tensor) -> ImageFiles:
        """The set of some of the images."""
        return self._replace(labels=self.labels[rows], positions=self.positions[rows])

    def drawn(self) -> ImageFiles:
        """The set in the order in which it is served: a set that is stored class by class is drawn, others stay."""
        if self.order is not Order.BY_CLASS:
            return self
        return self.take(balanced_order(self.labels))._replace(order=Order.DRAWN)


class KeptInMemory:
    """Decodes an image the first time that it is asked for, and has it in memory from then on.

    Args:
        source: See `ImageFiles.read`.
    """

    def __init__(self, source: Callable[[int], Tensor]) -> None:
        self.source = source
        self._images: dict[int, Tensor] = {}

    def __call__(self, position: int) -> Tensor:
        """The image at a position of the source."""
        if position not in self._images:
            self._images[position] = self.source(position)
        return self._images[position]


def describe_sample(arrays: ImageSet, limit: int | None) -> str:
    """Which images an evaluation has judged, in words for its report.

    Args:
        arrays: The images that were judged, at most `limit`.
        limit: How many were asked for; None for all.
    """
    if limit is None or len(arrays.labels) < limit:
        return "all"
    if getattr(arrays, "order", Order.GIVEN) is Order.DRAWN:
        return f"drawn with seed {ORDER_SEED}, balanced by class"
    return "the first"
