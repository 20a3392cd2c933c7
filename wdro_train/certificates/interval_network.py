"""Lower bounds of a network's margins over l_inf balls around images, by interval arithmetic."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from wdro_train.attacks.mode import attack_mode
from wdro_train.certificates.box_interpreter import BoxInterpreter, traced
from wdro_train.certificates.intervals import Box
from wdro_train.theory.ground_norm import per_image
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import record_passes


class IntervalNetwork:
    """A network that is run on boxes of images instead of on images (IBP, Gowal et al. 2018, arXiv 1810.12715).

    One call costs about two forward passes. The last linear layer is merged into the margins: f_y - f_j is bounded with
    the difference of the two rows of weights, which is tighter than the difference of the bounds of f_y and f_j.

    Args:
        model: Any network whose operations have interval bounds; see `wdro_train.certificates.intervals`.
        dtype: Type to compute in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._read(copy.deepcopy(model).eval().to(dtype), dtype)

    @classmethod
    def live(cls, model: nn.Module) -> Self:
        """A network on its present weights, with their gradients, however they change: to train on its bounds.

        Nothing is copied, and the graph is read once. BatchNorm is bounded with its running statistics and dropout is
        left out, as in evaluation mode.

        Args:
            model: See the class; its mode is as before afterwards.
        """
        network = cls.__new__(cls)
        with attack_mode(model):
            network._read(model, next(model.parameters()).dtype)
        return network

    def _read(self, model: nn.Module, dtype: torch.dtype) -> None:
        graph = traced(model)
        self._model, self._interpreter, self.dtype = model, BoxInterpreter(graph), dtype
        last = self._interpreter.last
        self._last = None if last is None else graph.get_submodule(str(last.target))

    def margins(self, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
        """Lower bounds of the margin min over j != y of f_y - f_j over ||x' - x||_inf <= radius, x' in [0, 1]^n.

        Args:
            x: Images in [0, 1], shape [B, ...].
            y: Labels, shape [B].
            radii: Shape [B].

        Returns:
            Shape [B], float64, in logit units.

        Raises:
            UserError: See `differences`.
        """
        bounds = self.differences(x, y, radii)
        margins: Tensor = bounds.scatter(1, y[:, None], torch.inf).amin(1).double()
        return margins

    def differences(self, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
        """Lower bounds of f_y - f_j for each class j over ||x' - x||_inf <= radius, x' in [0, 1]^n.

        Args:
            x: Images in [0, 1], shape [B, ...].
            y: Labels, shape [B].
            radii: Shape [B].

        Returns:
            Shape [B, m], in logit units; 0 for j = y.

        Raises:
            UserError: An operation without interval bounds, named, or an output that is more than logits.
        """
        x = x.to(self.dtype)
        reach = per_image(radii.to(self.dtype), x)
        box = self._interpreter.run(Box.between((x - reach).clamp(min=0), (x + reach).clamp(max=1)))
        if not isinstance(box, Box):
            raise UserError(
                f"the network returns {type(box).__name__}, of which no interval bounds are found; certify one that "
                "returns its logits alone"
            )
        if isinstance(self._last, nn.Linear):
            bounds = self._merged(self._last, box, y)
        else:
            bounds = (box.low.gather(1, y[:, None]) - box.high).scatter(1, y[:, None], 0.0)
        record_passes(self._model, bounds, 2 * len(x))  # center and radius go through every layer
        return bounds

    def _merged(self, layer: nn.Linear, box: Box, y: Tensor) -> Tensor:
        """Lower bounds of f_y - f_j over a box of the last layer's input, shape [B, m]; 0 for j = y."""
        differences = layer.weight[:, None] - layer.weight  # [m, m, F]: row y, column j
        logits = functional.linear(box.center, layer.weight, layer.bias)  # without hooks: see `_through_layer`
        spread = torch.einsum("bjf,bf->bj", differences.abs()[y], box.radius)
        return torch.sub(logits.gather(1, y[:, None]) - logits, spread)
