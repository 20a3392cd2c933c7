"""Lower bounds of any network's margins over balls around images, by linear relaxation over interval bounds."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from wdro_train.certificates.box_interpreter import BoxInterpreter
from wdro_train.certificates.boxes import around
from wdro_train.certificates.interval_network import IntervalNetwork, interval_differences
from wdro_train.certificates.margin_bounds import difference_rows
from wdro_train.certificates.tape import Relaxed, Tape, Tighten, as_it_is
from wdro_train.theory.box import free_gradient
from wdro_train.theory.ground_norm import conjugate, per_image


class RelaxedGraph(IntervalNetwork):
    """A network whose margins are carried back to the image once (CROWN-IBP, Zhang et al. 2020, arXiv 1906.06316).

    Boxes of all values come from interval arithmetic; each margin is then an affine function of the logits that is
    carried back to the image, every nonlinear operation replaced by linear bounds over its box. The better of this
    bound and that of interval arithmetic counts. One call costs a forward pass, interval arithmetic, and a backward
    pass for each class. The arguments are those of `IntervalNetwork`.
    """

    def differences(self, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
        """See `DifferentiableBounds`."""
        x = x.to(self.dtype or x.dtype)
        logits, by_intervals = relaxed_logits(self._network, x, y, radii, self.norm)
        rows = difference_rows(y, logits.value.shape[1], x)
        bounds = logits.tape.lower_bounds(logits.value, rows).T
        return torch.maximum(bounds, by_intervals)


def relaxed_logits(
    network: BoxInterpreter, x: Tensor, y: Tensor, radii: Tensor, norm: float, tighten: Tighten = as_it_is
) -> tuple[Relaxed, Tensor]:
    """Run a network on balls around images.

    Args:
        network: It.
        x: Images in [0, 1], shape [B, ...].
        y: Labels, shape [B].
        radii: Shape [B].
        norm: Ground norm s.
        tighten: See `Tape`.

    Returns:
        The logits; and the lower bounds of f_y - f_j by the last boxes alone, shape [B, m].
    """
    tape = Tape(x, partial(fall, x, radii, norm), tighten)
    features = network.features(Relaxed(around(x, radii, norm), tape.image, tape))
    assert isinstance(features, Relaxed)
    layer = network.last_layer
    by_intervals = interval_differences(features.box, layer, y)
    if layer is None:
        return features, by_intervals
    bias = 0.0 if layer.bias is None else layer.bias
    return features.weighted(functional.linear, layer.weight, bias), by_intervals


def fall(x: Tensor, radii: Tensor, norm: float, coefficients: Tensor) -> Tensor:
    """Lower bounds of <coefficients, x' - x> over all x' in [0, 1]^n with ||x' - x||_s <= radius.

    The better of the minimum over the box around the ball, and of -radius ||a_free||_*, with a_free the coefficients
    but for 0 where a pixel on the edge of [0, 1] would have to leave it to lower the product.

    Args:
        x: Images, shape [B, ...].
        radii: Shape [B].
        norm: s.
        coefficients: Shape [M, B, ...].

    Returns:
        Shape [M, B].
    """
    reach = per_image(radii, x)
    down, up = (x - reach).clamp(0, 1) - x, (x + reach).clamp(0, 1) - x
    least = coefficients.clamp(min=0) * down + coefficients.clamp(max=0) * up
    in_box = least.flatten(2).sum(2)
    if math.isinf(norm):
        return in_box
    free = free_gradient(-coefficients, x.expand_as(coefficients)).flatten(2)
    lengths = torch.linalg.vector_norm(free, ord=conjugate(norm), dim=2)
    return torch.maximum(in_box, -radii.to(x) * lengths)
