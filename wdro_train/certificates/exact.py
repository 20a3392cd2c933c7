"""Whether a small ReLU network is robust at a radius, decided by mixed-integer linear programming.

A relaxation answers "robust" or nothing, an attack "not robust" or nothing. This decides what both leave open, and so
narrows the interval [r_i, d_i] that holds an image's true distance from both ends (Tjeng, Xiao and Tedrake 2019,
arXiv 1711.07356).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.certificates.affine_pieces import AffinePieces
from wdro_train.certificates.base import Radii
from wdro_train.certificates.exact_questions import Bisection, Question
from wdro_train.certificates.reading import require_readable
from wdro_train.certificates.relaxation import AGREEMENT, LinearRelaxation
from wdro_train.certificates.relaxed_network import RelaxedNetwork
from wdro_train.certificates.relu_program import ReluProgram
from wdro_train.certificates.rounding import Arithmetic, ComputedIntervals
from wdro_train.theory.ground_norm import DISTANCE_ROUNDING, GroundNorm
from wdro_train.theory.losses import correct
from wdro_train.utils.errors import UserError
from wdro_train.utils.float32_precision import full_float32


@dataclass(frozen=True)
class Intervals:
    """What is known of the distances of a batch, after questions were asked.

    Attributes:
        low: Certified radii r_i, float64, shape [N].
        high: Distances d_i to flips, float64, shape [N].
        flips: The misclassified images at distance `high` where a question found one; the clean image elsewhere.
        proven: Number of questions that were answered by a proof, shape [N].
        flipped: Number of questions that were answered by a misclassified image, shape [N].
        unanswered: Number of questions without an answer, shape [N]: the time was up, or the least margin lay within
            the solver's tolerance and the rounding of the network, where neither proof nor misclassified image counts.
    """

    low: Tensor
    high: Tensor
    flips: Tensor
    proven: Tensor
    flipped: Tensor
    unanswered: Tensor


class _Answer(NamedTuple):
    """Robust, or a misclassified image, or neither."""

    robust: bool
    flip: Tensor | None = None


class ExactRobustness:
    """The certified radii of a relaxation, enlarged to the true distances as far as the time for an image allows.

    The solver HiGHS is asked for a misclassified x' with ||x' - x||_inf <= r, rival by rival, only for rivals
    whose margin CROWN leaves open, over its bounds at that radius. A proof must exceed the solver's tolerance
    (see `SOLVER_TOLERANCE`) and the rounding of a float32 forward pass; a counterexample counts only if the network
    itself misclassifies it. What the solver does in the time is repeatable, how far it gets depends on the processor.

    Args:
        norm: Ground norm; only inf.
        budget: Seconds an image.
        relaxation: Its radii are enlarged; None for those of `crown`.
        tolerance: Relative width of an interval that is not narrowed further.
    """

    def __init__(
        self,
        *,
        norm: float | str,
        budget: float = 10.0,
        relaxation: LinearRelaxation | None = None,
        tolerance: float = 0.01,
    ) -> None:
        self.norm = GroundNorm(norm).order
        if self.norm != float("inf"):
            raise UserError(f"certificate.method=exact is for attack.norm=inf, not {self.norm:g}; choose crown")
        if not budget > 0 or not 0 < tolerance < 1:
            raise UserError(f"budget={budget:g}, tolerance={tolerance:g}: choose a time > 0, and a share in (0, 1)")
        self.budget, self.tolerance = float(budget), float(tolerance)
        self.relaxation = LinearRelaxation(norm=self.norm) if relaxation is None else relaxation

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Radii:
        """Certify a batch; see `Certificate`. Nothing is random here, but for what the time allows."""
        found = self.relaxation(model, x, y, generator=generator)
        high = torch.where(found.correct, torch.inf, torch.zeros_like(found.radii))
        largest = GroundNorm(self.norm).diameter(x)
        narrowed = self.narrow(model, x, y, found.radii, high, Bisection(largest, self.tolerance))
        return Radii(narrowed.low, found.correct, self.norm, 1.0, found.about)

    def narrow(
        self, model: nn.Module, x: Tensor, y: Tensor, low: Tensor, high: Tensor, question: Question
    ) -> Intervals:
        """Narrow the intervals that hold the distances of a batch.

        Args:
            model: See `Certificate`.
            x: Images in [0, 1], shape [N, C, H, W].
            y: Labels, shape [N].
            low: Certified radii, shape [N].
            high: Distances to known flips, shape [N]; inf where none is known, 0 where the image is misclassified.
            question: Chooses at which radius to ask next.

        Raises:
            UserError: A layer that has no encoding, named; or the network computes something else than its layers.
        """
        require_readable(model)
        full = torch.autocast(x.device.type, enabled=False)
        with batch_under_attack(model, x, y) as (x, y, _), full_float32(), full, torch.no_grad():
            network = _ReadNetwork(model, x, self.relaxation.arithmetic)
            low, high, flips = low.double().clone(), high.double().clone(), x.clone()
            counts = torch.zeros(3, len(x), dtype=torch.int64)
            for i in range(len(x)):
                network.require_agreement(x[i])
                known = _Interval(float(low[i]), float(high[i]))
                flip = known.narrow(network, x[i], y[i], question, self.budget)
                low[i], high[i] = known.low, known.high
                counts[:, i] = torch.tensor(known.counts)
                flips[i] = x[i] if flip is None else flip
            return Intervals(low, high, flips, *counts.to(x.device))


class _Interval:
    """[r, d] of one image, while questions are asked about it."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.counts = [0, 0, 0]  # proven, flipped, unanswered

    def narrow(self, network: _ReadNetwork, x: Tensor, y: Tensor, question: Question, budget: float) -> Tensor | None:
        """Ask until the time is up or nothing is left to ask; returns the nearest flip that was found."""
        deadline, ceiling, nearest = time.monotonic() + budget, float("inf"), None
        while (radius := question(self.low, min(self.high, ceiling))) is not None:
            left = deadline - time.monotonic()
            if left <= (1 - question.share) ** 4 * budget:
                break
            answer = network.decide(x, y, radius, question.share * left)
            if answer.robust:
                self.low = min(radius * DISTANCE_ROUNDING, self.high)
                self.counts[0] += 1
            elif answer.flip is not None:
                nearest = answer.flip
                self.high = float((nearest.double() - x.double()).abs().amax())
                self.counts[1] += 1
            else:
                ceiling = radius
                self.counts[2] += 1
        return nearest


class _ReadNetwork:
    """A network with its relaxation and its encoding.

    Args:
        model: In evaluation mode.
        like: Images.
        arithmetic: In which the network is computed.
    """

    def __init__(self, model: nn.Module, like: Tensor, arithmetic: Arithmetic) -> None:
        self._model, self._pieces = model, AffinePieces(model)
        self._relaxed = RelaxedNetwork(model, like, torch.float64)
        self._intervals = ComputedIntervals(model, arithmetic=arithmetic)

    def require_agreement(self, x: Tensor) -> None:
        """Refuse a network that computes something else than its layers one after another.

        Args:
            x: An image at which both are compared, shape [C, H, W].

        Raises:
            UserError: The logits differ by more than rounding.
        """
        logits = forward(self._model, x[None])
        gap = float((self._pieces.logits(x[None]) - logits.double().cpu()).abs().amax())
        if gap > AGREEMENT * float(logits.abs().amax()):
            raise UserError(
                f"the network's layers, one after another, miss its logits by {gap:g}; certify a float32 network "
                "without hooks that change what it computes"
            )

    def decide(self, x: Tensor, y: Tensor, radius: float, limit: float) -> _Answer:
        """Whether an image is robust within a radius, in the sense of <= and a little beyond it.

        Args:
            x: The image, shape [C, H, W].
            y: Its label, a scalar.
            radius: In l_inf.
            limit: Seconds.
        """
        deadline = time.monotonic() + limit
        reach = radius * DISTANCE_ROUNDING
        radii = x.new_full((1,), reach, dtype=torch.float64)
        rounding = float(self._intervals.parts(x[None], y[None], radii)[1])
        bounded = self._relaxed.bounded(x[None], y[None], radii, float("inf"))
        label, margins = int(y), bounded.margins[0].tolist()
        rivals = [j for j in range(len(margins) + 1) if j != label]
        left = sorted((bound, rival) for bound, rival in zip(margins, rivals, strict=True) if bound <= rounding)
        if not left:
            return _Answer(robust=True)
        if time.monotonic() > deadline:
            return _Answer(robust=False)
        image, robust = x.double().cpu(), True
        low, high = (image - reach).clamp(0, 1), (image + reach).clamp(0, 1)
        program = ReluProgram(
            self._pieces, low, high, [(lower[0].cpu(), upper[0].cpu()) for lower, upper in bounded.boxes]
        )
        for _, rival in left:
            found = program.least_margin(label, rival, rounding, deadline - time.monotonic())
            if found.bound > rounding:
                continue
            robust = False
            flip = None if found.point is None else self._flip(found.point, x, y, radius)
            if flip is not None or time.monotonic() > deadline:
                return _Answer(robust=False, flip=flip)
        return _Answer(robust)

    def _flip(self, point: Tensor, x: Tensor, y: Tensor, radius: float) -> Tensor | None:
        """The solver's point as a float32 image within the radius, if the network misclassifies it."""
        image = x.double().cpu()
        near = torch.minimum(torch.maximum(point, image - radius), image + radius).clamp(0, 1).to(x)
        beyond = (near.double() - x.double()).abs() > radius  # by rounding to float32
        near = torch.where(beyond, torch.nextafter(near, x), near)
        flipped = not bool(correct(forward(self._model, near[None]), y[None]))
        return near if flipped else None
