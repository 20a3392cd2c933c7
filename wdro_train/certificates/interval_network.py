"""Lower bounds of a network's margins over balls around images, by interval arithmetic."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from wdro_train.certificates.box_interpreter import BoxInterpreter
from wdro_train.certificates.boxes import Ball, Box, around
from wdro_train.certificates.margin_bounds import smallest


class IntervalNetwork:
    """A network that is run on boxes of images instead of on images (IBP, Gowal et al. 2018, arXiv 1810.12715).

    One call costs about two forward passes. The last linear layer is merged into the margins: f_y - f_j is bounded with
    the difference of the two rows of weights, which is tighter than the difference of the bounds of f_y and f_j. In l_1
    and l_2 the first affine layer uses the ball itself.

    Args:
        model: Any network whose operations have interval bounds; see `wdro_train.certificates.intervals`.
        dtype: Type to compute in, on a copy of the weights; None for the network's own weights as they are at each
            call, with gradients: see `BoxInterpreter`.
        norm: Ground norm s, one of 1, 2, inf.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, norm: float = float("inf")) -> None:
        self._network, self.dtype, self.norm = BoxInterpreter(model, dtype), dtype, norm

    @classmethod
    def live(cls, model: nn.Module, norm: float = float("inf")) -> Self:
        """A network on its present weights, with their gradients, however they change: to train on its bounds.

        Nothing is copied, and the graph is read once, on the device where the network is. BatchNorm is bounded with its
        running statistics and dropout is left out, as in evaluation mode.

        Args:
            model: See the class; its mode is as before afterwards.
            norm: Ground norm s.
        """
        return cls(model, None, norm)

    def differences(self, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
        """See `DifferentiableBounds`."""
        box = self._network.features(around(x.to(self.dtype or x.dtype), radii, self.norm))
        assert isinstance(box, Box)
        return interval_differences(box, self._network.last_layer, y)

    def margins(self, x: Tensor, y: Tensor, radii: Tensor, enough: Tensor | None = None) -> Tensor:
        """See `MarginBounds`."""
        return smallest(self.differences(x, y, radii), y).double()


def interval_differences(box: Box, layer: nn.Linear | None, y: Tensor) -> Tensor:
    """Lower bounds of f_y - f_j from a box.

    Args:
        box: Of what goes into the last layer; of the logits if there is none.
        layer: The last layer, whose values are the logits.
        y: Labels, shape [B].

    Returns:
        Shape [B, m]; 0 for j = y.
    """
    if layer is None:
        return (box.low.gather(1, y[:, None]) - box.high).scatter(1, y[:, None], 0.0)
    differences = layer.weight[:, None] - layer.weight  # [m, m, F]: row y, column j
    if isinstance(box, Ball):
        shift = 0.0 if layer.bias is None else (layer.bias[:, None] - layer.bias).flatten()
        low = box.weighted(functional.linear, differences.flatten(0, 1), shift).low
        return low.view(len(y), *differences.shape[:2])[torch.arange(len(y), device=y.device), y]
    logits = functional.linear(box.center, layer.weight, layer.bias)  # without hooks: see `through_layer`
    spread = torch.einsum("bjf,bf->bj", differences.abs()[y], box.radius)
    return torch.sub(logits.gather(1, y[:, None]) - logits, spread)
