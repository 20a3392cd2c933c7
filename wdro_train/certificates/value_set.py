"""What a set of values of one tensor of a network must be able to do, so that a network can be run on sets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

from torch import Tensor


class ValueSet(ABC):
    """A set that holds every value which a tensor of the network takes while the images run through their balls.

    Each method gives such a set for what an operation makes of the tensor. All operations of a network that have
    bounds are put together from these, see `wdro_train.certificates.intervals`.
    """

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the same shape, type and device."""

    @abstractmethod
    def scaled(self, factor: Any) -> ValueSet:
        """After the multiplication with constants."""

    @abstractmethod
    def moved(self, constant: Any) -> ValueSet:
        """After the addition of constants."""

    @abstractmethod
    def plus(self, other: Self) -> ValueSet:
        """After the addition of another tensor of the network."""

    @abstractmethod
    def joined(self, others: Sequence[Any], dim: int) -> ValueSet:
        """All of `others`, this one among them, one after the other along a dimension; some may be constants."""

    @abstractmethod
    def rearranged(self, function: Callable[[Tensor], Tensor]) -> ValueSet:
        """After a function that is linear with non-negative weights, such as a mean or a change of shape."""

    @abstractmethod
    def reordered(self, function: Callable[[Tensor], Tensor]) -> ValueSet:
        """After a function that only moves entries around."""

    @abstractmethod
    def weighted(self, function: Callable[[Tensor, Tensor], Tensor], weight: Tensor, bias: Any = 0.0) -> ValueSet:
        """After an affine map.

        Args:
            function: The map without its bias, of a tensor and of weights; linear in each.
            weight: Its weights; those of one value each come first.
            bias: Added to its values.
        """

    @abstractmethod
    def monotone(self, function: Callable[[Tensor], Tensor]) -> ValueSet:
        """After a function that falls nowhere."""

    @abstractmethod
    def activated(self, function: Callable[[Tensor], Tensor]) -> ValueSet:
        """After a function entry by entry that falls nowhere and whose slope rises up to a point and falls beyond."""

    @abstractmethod
    def rectified(self, slope: float) -> ValueSet:
        """After the leaky ReLU max(z, 0) + slope min(z, 0), slope >= 0; slope 0 is the ReLU."""

    @abstractmethod
    def max_pooled(self, *options: Any) -> ValueSet:
        """After max-pooling, with the arguments of `torch.nn.functional.max_pool2d` in their order."""
