"""How much work an attack does: passes through a network, counted at the network itself."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from wdro_train.utils.contract import logits_of


class PassCounter:
    """Counts the images that go forward and backward through a network inside a `with` block.

    The gradient of a gradient counts as one more backward pass.

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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop counting."""
        self._handle.remove()

    @property
    def pairs(self) -> float:
        """The work in units of one forward pass and one backward pass of one image, (forward + backward) / 2."""
        return (self.forward + self.backward) / 2

    def _seen(self, model: nn.Module, inputs: Any, output: Any) -> None:
        logits = logits_of(output, len(inputs[0]))
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._returned)  # type: ignore[no-untyped-call]

    def _returned(self, gradient: Tensor) -> None:
        self.backward += len(gradient)
