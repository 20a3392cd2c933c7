"""Deterministic certificates of the network itself: radii at which lower bounds of its margins are positive.

How the margins f_y - f_j are bounded over a ball is one object (`MarginBounds`), and which radii are tried another
(`RadiusSearch`). `BOUNDS` lists the first by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.network_check import check_logits
from wdro_train.certificates.base import THE_NETWORK, Radii
from wdro_train.certificates.optimised_network import OptimisedNetwork
from wdro_train.certificates.radius_search import LargestRadius, RadiusSearch
from wdro_train.certificates.reading import require_readable
from wdro_train.certificates.relaxed_graph import RelaxedGraph
from wdro_train.certificates.relaxed_network import RelaxedNetwork
from wdro_train.certificates.rounding import (
    ARITHMETICS,
    Arithmetic,
    ComputedBounds,
    ComputedIntervals,
    ComputedRelaxation,
)
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.losses import correct, margin
from wdro_train.utils.errors import UserError
from wdro_train.utils.float32_precision import full_float32

# By how much the margin of the operations one after another may be more than its rounding away from the network's own,
# in units of the image's largest logit. Far less than what a layer that was missed would do.
AGREEMENT = 1e-4


Read = Callable[[nn.Module, Tensor, torch.dtype, float, Arithmetic], ComputedBounds]
"""From a network, images that give the shape of its input, a type to compute in, a ground norm and the arithmetic in
which the network is computed to the bounds of its margins."""


@dataclass(frozen=True)
class Bounding:
    """A way to bound margins.

    Attributes:
        read: Makes the bounds of a network.
        batch_size: Images at a time, by what is held of each: two values for each of the network's for intervals,
            functions of all of them for a relaxation.
    """

    read: Read
    batch_size: int


def _intervals(model: nn.Module, x: Tensor, dtype: torch.dtype, norm: float, how: Arithmetic) -> ComputedBounds:
    return ComputedIntervals(model, dtype, norm, how)


def _over_intervals(model: nn.Module, x: Tensor, dtype: torch.dtype, norm: float, how: Arithmetic) -> ComputedBounds:
    return ComputedRelaxation(RelaxedGraph(model, dtype, norm), model, dtype, norm, how)


def _relaxed(model: nn.Module, x: Tensor, dtype: torch.dtype, norm: float, how: Arithmetic) -> ComputedBounds:
    return ComputedRelaxation(RelaxedNetwork(model, x, dtype, norm=norm), model, dtype, norm, how)


def _optimised(model: nn.Module, x: Tensor, dtype: torch.dtype, norm: float, how: Arithmetic) -> ComputedBounds:
    return ComputedRelaxation(OptimisedNetwork(model, x, dtype, norm), model, dtype, norm, how)


BOUNDS = {
    "ibp": Bounding(_intervals, 256),
    "crown_ibp": Bounding(_over_intervals, 64),
    "crown": Bounding(_relaxed, 16),
    "alpha_crown": Bounding(_optimised, 16),
}
"""The ways to bound margins, by the names that configurations use, cheapest first."""


class LinearRelaxation:
    """For each image, the largest radius r such that min over j != y of f_y - f_j stays positive in all of its ball.

    "Positive" is what a lower bound of the margins shows, so r is at most the true distance. Radii are searched in
    float32, and those that are returned were checked in float64. Margins must exceed what rounding can do to them (see
    `wdro_train.certificates.rounding`), so that the certificate holds for the network as it is computed.

    Args:
        norm: Ground norm: 1, 2 or inf.
        method: How margins are bounded, a name of `BOUNDS`. `ibp` (interval arithmetic), `crown_ibp` (one backward pass
            of linear relaxation over interval bounds) and `alpha_crown` (relaxation with optimised slopes) read a
            network from the graph of its forward pass, see `wdro_train.certificates.intervals`; `crown` (all bounds
            by relaxation) an `nn.Sequential` of the layers that `wdro_train.certificates.layers` knows.
        tolerance: Relative precision of the radius.
        batch_size: Images at a time; None for the method's own.
        search: Which radii are tried; None for the largest one, to within the tolerance.
        arithmetic: In which the network that is certified is computed: `float32`, `tf32`, or `exact` for the network in
            exact arithmetic, as most certificates have it.
    """

    def __init__(
        self,
        *,
        norm: float | str,
        method: str = "crown",
        tolerance: float = 5e-3,
        batch_size: int | None = None,
        search: RadiusSearch | None = None,
        arithmetic: str = "float32",
    ) -> None:
        self.ground = GroundNorm(norm)
        self.norm = self.ground.order
        if self.norm not in (1, 2, float("inf")):
            raise UserError(f"norm={self.norm:g} has no linear relaxation here; choose 1, 2 or inf")
        if method not in BOUNDS:
            raise UserError(f"method={method!r} is unknown; choose {', '.join(BOUNDS)}")
        if arithmetic not in ARITHMETICS:
            raise UserError(f"arithmetic={arithmetic!r} is unknown; choose {', '.join(ARITHMETICS)}")
        self.arithmetic = ARITHMETICS[arithmetic]
        size = BOUNDS[method].batch_size if batch_size is None else int(batch_size)
        if size < 1:
            raise UserError(f"batch_size={batch_size} holds no image; choose at least 1")
        self.method, self.tolerance, self.batch_size = method, float(tolerance), size
        self.search = LargestRadius(tolerance) if search is None else search

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Radii:
        """Certify a batch; see `Certificate`. Nothing is random here.

        Raises:
            UserError: A layer or an operation without bounds, named.
        """
        require_readable(model)
        full = torch.autocast(x.device.type, enabled=False)
        with batch_under_attack(model, x, y) as (x, y, labels), full_float32(), full:
            fast, exact = (
                BOUNDS[self.method].read(model, x, dtype, self.norm, self.arithmetic)
                for dtype in (torch.float32, torch.float64)
            )
            with torch.no_grad():
                logits = forward(model, x, self.batch_size).float()
            check_logits(model, x, logits, labels)
            self._clean_margins(exact, x[:1], y[:1], logits[:1])
            robust = correct(logits, y)
            radii = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            share = 1.0  # how much of the first guess the radii of earlier images were
            for rows in torch.split(robust.nonzero().squeeze(1), self.batch_size):
                if not len(rows):  # no image is correct: what is split is one empty part then
                    break
                clean = self._clean_margins(fast, x[rows], y[rows], logits[rows])
                steepness = self.ground.dual_norms(input_gradient(model, x[rows], y[rows], margin).gradient)
                guess = clean / torch.where(steepness > 0, steepness, 1.0)
                with torch.no_grad():
                    found = self._certify((fast, exact), x[rows], y[rows], clean, share * guess)
                radii[rows] = found
                share = float((found / guess)[found > 0].median()) if bool((found > 0).any()) else share
            radii = radii.masked_fill(radii >= self.ground.diameter(x), torch.inf)
            return Radii(radii, robust, self.norm, 1.0, THE_NETWORK)

    def _certify(
        self, networks: tuple[ComputedBounds, ComputedBounds], x: Tensor, y: Tensor, clean: Tensor, guess: Tensor
    ) -> Tensor:
        """Radii of correct images, searched with the fast network and checked with the exact one.

        Args:
            networks: The bounds of the margins in float32 and in float64.
            x: Images, shape [N, ...].
            y: Their labels, shape [N].
            clean: The bounds at radius 0, shape [N].
            guess: First radii to try, shape [N].

        Returns:
            Shape [N], float64.
        """
        fast, exact = networks

        def spare(rows: Tensor, radii: Tensor, bounds: ComputedBounds = fast) -> Tensor:
            margins, errors = bounds.parts(x[rows], y[rows], radii)
            return margins - errors

        found = self.search(spare, clean, guess, self.ground.diameter(x))
        certified = torch.zeros_like(found)
        rows = (found > 0).nonzero().squeeze(1)
        for radii in self.search.retreats(found):
            rows = rows[radii[rows] > 0]
            if not len(rows):
                break
            holds = spare(rows, radii[rows], exact) > 0
            certified[rows[holds]] = radii[rows[holds]]
            rows = rows[~holds]
        return certified

    @torch.no_grad()
    def _clean_margins(self, computed: ComputedBounds, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        """The bounds of the margins at the images themselves, where they are the margins but for rounding.

        Raises:
            UserError: They are not: the network computes something else than what it was read as.
        """
        nowhere = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        margins, errors = computed.parts(x, y, nowhere)
        gap = (margins - margin(logits, y)).abs()
        if not bool((gap <= errors + AGREEMENT * logits.abs().amax(1)).all()):
            raise UserError(
                f"the network's operations, one after another, miss its margin by {float(gap.amax()):g}; certify a "
                "float32 network without hooks that change what it computes"
            )
        return margins - errors
