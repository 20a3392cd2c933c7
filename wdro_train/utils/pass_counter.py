"""How much work an attack does: passes through a network, counted at the network itself."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from wdro_train.utils.contract import logits_of

_COUNTING: list[PassCounter] = []


def record_passes(model: nn.Module, output: Tensor, images: int) -> None:
    """Count work that goes through a network's layers one by one, and not through the network as a whole.

    Args:
        model: The network.
        output: What was computed; its gradient is the work once more.
        images: As many images through all layers cost as much.
    """
    for counter in _COUNTING:
        if counter.model is model:
            counter.add(output, images)


class PassCounter:
    """Counts the images that go forward and backward through a network inside a `with` block.

    The gradient of a gradient counts as one more backward pass. Bounds of a network count by `record_passes`.

    Args:
        model: Takes one batch of images and returns logits; see `wdro_train.utils.contract.logits_of`.

    Attributes:
        forward: Images that have gone through the network.
        backward: Images whose gradient has come back.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forward = self.backward = 0

    def __enter__(self) -> Self:
        """Start counting."""
        self._handle = self.model.register_forward_hook(self._seen)
        _COUNTING.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting."""
        self._handle.remove()
        _COUNTING.remove(self)

    @property
    def pairs(self) -> float:
        """The work in units of one forward pass and one backward pass of one image, (forward + backward) / 2."""
        return (self.forward + self.backward) / 2

    def add(self, output: Tensor, images: int) -> None:
        """Count images that have gone forward, and will have gone backward when the gradient of `output` is taken.

        Args:
            output: What they were turned into.
            images: How many.
        """
        self.forward += images
        if output.requires_grad:
            output.register_hook(lambda gradient: self._returned(images))  # type: ignore[no-untyped-call]

    def _seen(self, model: nn.Module, inputs: Any, output: Any) -> None:
        logits = logits_of(output, len(inputs[0]))
        self.add(logits, len(logits))

    def _returned(self, images: int) -> None:
        self.backward += images
