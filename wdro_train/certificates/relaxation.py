"""Deterministic certificates for piecewise-linear networks, by linear relaxation or interval arithmetic.

The margins f_y - f_j are bounded from below over the ball by carrying them backwards through the network, every ReLU
replaced by a linear bound (CROWN, Zhang et al. 2018, arXiv 1811.00866; DeepPoly, Singh et al. 2019). The bounds on the
values before each ReLU, which its linear bound needs, are found in the same way, layer after layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.network_check import check_logits
from wdro_train.certificates.base import THE_NETWORK, Radii
from wdro_train.certificates.interval_network import IntervalNetwork
from wdro_train.certificates.largest_root import largest_root
from wdro_train.certificates.precision import full_float32
from wdro_train.certificates.relaxed_network import Method, RelaxedNetwork
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.losses import correct, margin
from wdro_train.utils.errors import UserError

# What a margin must exceed, in units of the image's largest logit: twenty times the error of float32 logits, which was
# at most 5e-7 of the largest one for the networks of tests/reference, small_cnn and preact_resnet18.
ROUNDING = 1e-5
# How far, in the same units, the margin of the layers one after another may be from the network's own.
AGREEMENT = 1e-4
# Shares by which a radius is shortened, one after the other, until it holds in float64; on the two networks of
# tests/reference (41 images, l_2 and l_inf, both methods) all held as they were.
_RETREAT = (0.0, 1e-4, 1e-3, 1e-2, 0.1)
# Images at a time: a relaxation holds functions of all values of an image, interval arithmetic two values for each.
_BATCH_SIZES = {"crown": 16, "ibp": 256}

Margins = Callable[[Tensor, Tensor, Tensor], Tensor]  # images, labels and radii to lower bounds of the margins


class LinearRelaxation:
    """For each image, the largest radius r such that min over j != y of f_y - f_j stays positive in all of its ball.

    "Positive" is what a lower bound of the margins shows, so r is at most the true distance. Radii are searched in
    float32, and those that are returned were checked in float64. Margins must exceed 1e-5 of the image's largest logit,
    so that the certificate also holds for a float32 forward pass with its rounding.

    Args:
        norm: Ground norm: 1, 2 or inf.
        method: `crown`, for an `nn.Sequential` of the layers that `wdro_train.certificates.layers` knows; or `ibp`,
            interval arithmetic: a fraction of the cost, and of the radius. In l_inf it reads the network from the graph
            of its forward pass, see `wdro_train.certificates.intervals`; in l_1 and l_2 it needs layers as `crown`.
        tolerance: Relative precision of the radius.
        batch_size: Images at a time; None for 16 with `crown` and 256 with `ibp`.
    """

    def __init__(
        self, *, norm: float, method: Method = "crown", tolerance: float = 5e-3, batch_size: int | None = None
    ) -> None:
        self.ground = GroundNorm(norm)
        self.norm = self.ground.order
        if self.norm not in (1, 2, float("inf")):
            raise UserError(f"norm={self.norm:g} has no linear relaxation here; choose 1, 2 or inf")
        if method not in get_args(Method):
            raise UserError(f"method={method!r} is unknown; choose crown or ibp")
        size = _BATCH_SIZES[method] if batch_size is None else int(batch_size)
        if not 0 < tolerance < 1 or size < 1:
            raise UserError(f"tolerance={tolerance:g}, batch_size={batch_size}: choose one in (0, 1), and at least 1")
        self.method, self.tolerance, self.batch_size = method, float(tolerance), size

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Radii:
        """Certify a batch; see `Certificate`. Nothing is random here.

        Raises:
            UserError: A layer or an operation without bounds, named.
        """
        full = torch.autocast(x.device.type, enabled=False)
        with batch_under_attack(model, x, y) as (x, y, labels), full_float32(), full:
            fast, exact = (self._margins(model, x, dtype) for dtype in (torch.float32, torch.float64))
            with torch.no_grad():
                logits = forward(model, x, self.batch_size).float()
            check_logits(model, x, logits, labels)
            self._check_parsed(exact, x[:1], y[:1], logits[:1])
            robust = correct(logits, y)
            radii = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            for rows in torch.split(robust.nonzero().squeeze(1), self.batch_size):
                self._check_parsed(exact, x[rows], y[rows], logits[rows])
                slack = ROUNDING * logits[rows].abs().amax(1).double()
                clean = margin(logits[rows], y[rows]).double() - slack
                steepness = self.ground.dual_norms(input_gradient(model, x[rows], y[rows], margin).gradient)
                guess = clean / torch.where(steepness > 0, steepness, 1.0)
                with torch.no_grad():
                    radii[rows] = self._certify((fast, exact), x[rows], y[rows], slack, clean, guess)
            radii = torch.where(radii < self.ground.diameter(x), radii, torch.inf)
            return Radii(radii, robust, self.norm, 1.0, THE_NETWORK)

    def _margins(self, model: nn.Module, x: Tensor, dtype: torch.dtype) -> Margins:
        """The bounds of the margins of a network in a precision."""
        if self.method == "ibp" and self.norm == float("inf"):
            return IntervalNetwork(model, dtype).margins
        return partial(RelaxedNetwork(model, x, dtype, self.method).margins, norm=self.norm)

    def _certify(
        self, networks: tuple[Margins, Margins], x: Tensor, y: Tensor, slack: Tensor, clean: Tensor, guess: Tensor
    ) -> Tensor:
        """Radii of correct images, searched with the fast network and checked with the exact one.

        Args:
            networks: The bounds of the margins in float32 and in float64.
            x: Images, shape [N, ...].
            y: Their labels, shape [N].
            slack: What a margin must exceed, shape [N].
            clean: By how much the margin at the image exceeds it, shape [N].
            guess: First radii to try, shape [N].

        Returns:
            Shape [N], float64.
        """
        fast, exact = networks

        def spare(rows: Tensor, radii: Tensor, margins: Margins = fast) -> Tensor:
            return margins(x[rows], y[rows], radii) - slack[rows]

        found = largest_root(spare, clean, guess, self.ground.diameter(x), self.tolerance)
        certified = torch.zeros_like(found)
        open_rows = (found > 0).nonzero().squeeze(1)
        for retreat in _RETREAT:
            if len(open_rows):
                radii = found[open_rows] * (1 - retreat)
                holds = spare(open_rows, radii, exact) > 0
                certified[open_rows[holds]] = radii[holds]
                open_rows = open_rows[~holds]
        return certified

    @torch.no_grad()
    def _check_parsed(self, margins: Margins, x: Tensor, y: Tensor, logits: Tensor) -> None:
        """Refuse a network that computes something else than what it was read as, by its margins at the images.

        At radius 0 the bound is the margin itself.

        Raises:
            UserError: It is not.
        """
        bound = margins(x, y, torch.zeros(len(x), dtype=torch.float64, device=x.device))
        gap = (bound - margin(logits, y)).abs()
        agree = gap <= AGREEMENT * logits.abs().amax(1)
        if not bool(agree.all()):
            raise UserError(
                f"the network's operations, one after another, miss its margin by {float(gap.amax()):g}; certify a "
                "float32 network without hooks that change what it computes"
            )
