"""Deterministic certificates for piecewise-linear networks, by interval arithmetic or linear relaxation.

The margins f_y - f_j are bounded from below over the ball by carrying them backwards through the network, every ReLU
replaced by a linear bound (Zhang et al. 2018, CROWN, arXiv 1811.00866; Singh et al. 2019, DeepPoly). The bounds of the
values before each ReLU, which the next relaxation needs, come from the same pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.network_check import check_logits
from wdro_train.certificates.base import Radii, full_float32
from wdro_train.certificates.forms import Form
from wdro_train.certificates.layers import Segment, segments
from wdro_train.theory.ground_norm import GroundNorm, conjugate, per_image
from wdro_train.theory.losses import correct, margin
from wdro_train.utils.errors import UserError

Method = Literal["crown", "ibp"]
_ROUNDING = 1e-5
_AGREEMENT = 1e-4
_EVALUATIONS, _PATIENCE = 30, 15
_EDGE = 0.02
_GROWTH = 2.0
_RETREAT = (0.0, 1e-4, 1e-3, 1e-2, 0.1)


class LinearRelaxation:
    """The largest radius at which the relaxed margins stay positive, image by image.

    Radii are searched in float32; what is returned was checked in float64. Margins must exceed 1e-5 of the largest
    logit, so the certificate covers the rounding of a float32 forward pass too.

    Args:
        norm: Ground norm: 1, 2 or inf.
        method: `crown`, or `ibp` (interval arithmetic above the first ReLU: a fraction of the cost, and of the
            radius).
        tolerance: Relative precision of the radius.
        batch_size: Images at a time.
    """

    def __init__(self, *, norm: float, method: Method = "crown", tolerance: float = 5e-3, batch_size: int = 16) -> None:
        self.ground = GroundNorm(norm)
        self.norm = self.ground.order
        if self.norm not in (1, 2, float("inf")):
            raise UserError(f"norm={self.norm:g} has no linear relaxation here; choose 1, 2 or inf")
        if method not in get_args(Method):
            raise UserError(f"method={method!r} is unknown; choose crown or ibp")
        if not 0 < tolerance < 1 or batch_size < 1:
            raise UserError(f"tolerance={tolerance:g}, batch_size={batch_size}: choose one in (0, 1), and at least 1")
        self.method, self.tolerance, self.batch_size = method, float(tolerance), int(batch_size)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Radii:
        """Certify a batch; see `Certificate`. Nothing is random here.

        Raises:
            UserError: A layer without linear relaxation, named.
        """
        with batch_under_attack(model, x, y) as (x, y, labels), full_float32():
            fast, exact = (RelaxedNetwork(model, x, dtype, self.method) for dtype in (torch.float32, torch.float64))
            with torch.no_grad():
                logits = forward(model, x, self.batch_size).float()
            check_logits(model, x, logits, labels)
            self._check_parsed(exact, x[:1], y[:1], logits[:1])
            robust = correct(logits, y)
            radii = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            for rows in torch.split(robust.nonzero().squeeze(1), self.batch_size):
                slack = _ROUNDING * logits[rows].abs().amax(1).double()
                clean = margin(logits[rows], y[rows]).double() - slack
                steepness = self.ground.dual_norms(input_gradient(model, x[rows], y[rows], margin).gradient)
                guess = clean / torch.where(steepness > 0, steepness, 1.0)
                with torch.no_grad():
                    radii[rows] = self._certify((fast, exact), x[rows], y[rows], slack, clean, guess)
            radii = torch.where(radii < self.ground.diameter(x), radii, torch.inf)
            return Radii(radii, robust, self.norm, 1.0, "the network itself")

    def _certify(
        self, networks: tuple[RelaxedNetwork, ...], x: Tensor, y: Tensor, slack: Tensor, clean: Tensor, guess: Tensor
    ) -> Tensor:
        """Radii of correct images, [N]: searched with the fast network, checked with the exact one."""
        fast, exact = networks

        def spare(rows: Tensor, radii: Tensor, network: RelaxedNetwork = fast) -> Tensor:
            return network.margins(x[rows], y[rows], radii, self.norm) - slack[rows]

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
    def _check_parsed(self, network: RelaxedNetwork, x: Tensor, y: Tensor, logits: Tensor) -> None:
        """At radius 0 the bound is the margin itself."""
        bound = network.margins(x, y, torch.zeros(1, dtype=torch.float64, device=x.device), self.norm)
        gap = float((bound - margin(logits, y)).abs())
        if not gap <= _AGREEMENT * float(logits.abs().amax()):
            raise UserError(
                f"the network's layers, one after another, miss its margin by {gap:g}; certify a float32 network "
                "without hooks that change what it computes"
            )


class RelaxedNetwork:
    """Lower bounds of a network's margins over balls around images.

    Args:
        model: See `segments`.
        like: Images, whose shape is the network's input.
        dtype: Type to compute in.
        method: `crown` or `ibp`.
    """

    def __init__(self, model: nn.Module, like: Tensor, dtype: torch.dtype, method: Method = "crown") -> None:
        channels, height, width = like.shape[1:] if like.dim() == 4 else (like[0].numel(), 1, 1)
        self.segments: list[Segment] = segments(model, (channels, height, width), like.new_empty(0, dtype=dtype))
        self.shape, self.dtype, self.method = (channels, height, width), dtype, method
        classes, *flat = self.segments[-1].shape
        if flat != [1, 1]:
            raise UserError(f"the network ends in a map of shape {list(self.segments[-1].shape)}; end it in logits")
        self.classes = classes

    def margins(self, x: Tensor, y: Tensor, radii: Tensor, norm: float) -> Tensor:
        """A lower bound of min over j != y of f_y - f_j over ||x' - x||_s <= radius, x' in [0, 1]^n.

        Args:
            x: Images, shape [B, ...].
            y: Labels, shape [B].
            radii: Shape [B].
            norm: Ground norm s.

        Returns:
            Shape [B], float64, in logit units.
        """
        x = x.to(self.dtype).view(-1, *self.shape)
        everywhere = self._region(x, radii.to(self.dtype), norm)
        boxes: list[tuple[Tensor, Tensor]] = []
        for k, segment in enumerate(self.segments[:-1]):
            bounds = self._lower(k, Form.both_signs(segment.shape[0], x), boxes, everywhere)
            low, minus_high = bounds.transpose(1, 2).reshape(len(x), -1, *segment.shape[1:]).chunk(2, dim=1)
            boxes.append((low, torch.maximum(low, -minus_high)))
        eye = torch.eye(self.classes, dtype=x.dtype, device=x.device)
        own = torch.nn.functional.one_hot(y, self.classes).bool()
        rivals = eye.expand(len(x), -1, -1)[~own].view(len(x), self.classes - 1, self.classes)
        coefficients = (own.to(eye)[:, None] - rivals)[:, None, :, :, None, None]
        form = Form(coefficients, coefficients.new_zeros(1, 1, 1))
        return self._lower(len(boxes), form, boxes, everywhere).flatten(1).amin(1).double()

    def _lower(
        self, k: int, form: Form, boxes: list[tuple[Tensor, Tensor]], everywhere: Callable[[Form], Tensor]
    ) -> Tensor:
        """Lower bounds of a form of segment k's output: from the nearest ReLU's box, and from the images."""
        form = self.segments[k].pull_back(form)
        if k == 0:
            return everywhere(form)
        low, high = boxes[k - 1]
        nearest = form.over_box(low.clamp(min=0), high.clamp(min=0))
        if self.method == "ibp":
            return nearest
        for segment, box in zip(self.segments[k - 1 :: -1], boxes[k - 1 :: -1], strict=True):
            form = segment.pull_back(form.through_relu(*box))
        return torch.maximum(nearest, everywhere(form))

    def _region(self, x: Tensor, radii: Tensor, norm: float) -> Callable[[Form], Tensor]:
        """The bound over all images within the radius: of the box around x, and for other norms of the ball."""
        dual = conjugate(norm)
        reach = per_image(radii, x)
        low, high = (x - reach).clamp(0, 1), (x + reach).clamp(0, 1)
        if norm == float("inf"):
            return lambda form: form.over_box(low, high)
        return lambda form: torch.maximum(form.over_box(low, high), form.over_ball(x, radii, dual))


def largest_root(
    spare: Callable[[Tensor, Tensor], Tensor], at_zero: Tensor, guess: Tensor, limit: float, tolerance: float
) -> Tensor:
    """Where falling functions cross zero, from below: false position, then bisection.

    Relaxed margins plunge once the relaxation of the deeper layers gives way, so negative values enter as
    -log(1 - value / value at 0). Each step aims beyond the chord's root by half the tolerance, to the side of the
    end that is further behind, so that both ends of the bracket close in.

    Args:
        spare: Takes indices [k] and radii [k] and gives the functions' values [k].
        at_zero: The functions' values at 0, shape [N].
        guess: First radii to try, positive, shape [N].
        limit: The largest radius to try.
        tolerance: Relative precision.

    Returns:
        Radii at which the functions were seen to be positive, float64, shape [N]; 0 where none was.
    """
    low, high = torch.zeros_like(guess), torch.full_like(guess, torch.inf)
    at_low, at_high = torch.ones_like(guess), torch.zeros_like(guess)
    trial = guess.clamp(max=limit)
    rows = (at_zero > 0).nonzero().squeeze(1)
    for step in range(_EVALUATIONS):
        if not len(rows):
            break
        value = spare(rows, trial[rows]) / at_zero[rows]
        fits = value > 0
        inside, outside = rows[fits], rows[~fits]
        low[inside], at_low[inside] = trial[inside], value[fits]
        high[outside], at_high[outside] = trial[outside], -torch.log1p(-value[~fits])
        wide = (high[rows] - low[rows] > tolerance * low[rows]) & (low[rows] < limit)
        rows, fits = rows[wide], fits[wide]
        a, b = low[rows], high[rows]
        share = at_low[rows] / (at_low[rows] - at_high[rows])
        beyond = 1 + torch.where(fits, 0.45, -0.45) * tolerance
        share = torch.where(b < torch.inf, (beyond * (a + (b - a) * share) - a) / (b - a), 0.0).clamp(_EDGE, 1 - _EDGE)
        inner = a + (b - a) * (share if step < _PATIENCE else 0.5)
        trial[rows] = torch.where(b < torch.inf, inner, (_GROWTH * a).clamp(max=limit))
    return low
