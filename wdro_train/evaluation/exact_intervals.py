"""Narrowing the enclosure from both ends by an exact method, on the images that still matter to the headline.

With certified radii r_i and attack distances d_i the worst-case accuracy lies between two knapsacks (theory, section
12). Only images whose interval [r_i, d_i] changes one of them at the threat are worth the exact method's time: at
p = inf those with r_i <= delta < d_i; at p < inf those with r_i < D, where D is the marginal distance of a knapsack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.certificates import ExactRobustness
from wdro_train.certificates.exact_questions import AtRadius, Bisection, Question
from wdro_train.evaluation.digests import batch_digest
from wdro_train.evaluation.engine import Batches, Engine, Stage
from wdro_train.evaluation.piece_store import Arrays
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import Floats, RobustnessCurve


@dataclass(frozen=True, eq=False)
class ExactIntervals:
    """The intervals that hold the distances of a set, after an exact method was asked about some images.

    Attributes:
        radii: Certified radii r_i, shape [N], float64.
        before: Those of the certificate whose radii were enlarged, shape [N]: each of them depends on its image alone.
        distances: Distances to the flips that the exact method found, shape [N]; inf elsewhere.
        rivals: The classes they were flipped to, shape [N]; -1 elsewhere.
        asked: Number of images that were asked about.
        decided: How many of them have no question left: decided at the radius, or an interval narrow enough.
        proven: Images whose certified radius grew.
        flipped: Images whose distance fell.
        budget: Seconds an image.
    """

    radii: Floats
    before: Floats
    distances: Floats
    rivals: NDArray[np.int64]
    asked: int
    decided: int
    proven: int
    flipped: int
    budget: float


def chosen_question(
    radii: RobustnessCurve, distances: RobustnessCurve, ball: WassersteinBall, tolerance: float
) -> Question:
    """What to ask about each image so that the enclosure at the threat shrinks.

    Args:
        radii: The curve of the certified radii.
        distances: The curve of the nearest flips.
        ball: The threat.
        tolerance: See `Bisection`.
    """
    if math.isinf(ball.p):
        return AtRadius(ball.delta)
    ends = [curve.worst_case(ball.delta, ball.p).marginal_distance for curve in (radii, distances)]
    return Bisection(min(max(ends), 1.0), tolerance)  # 1 is the largest distance in the box


def exact_intervals(
    engine: Engine, exact: ExactRobustness, ball: WassersteinBall, radii: Floats, distances: Floats
) -> ExactIntervals:
    """Ask the exact method about every image that matters.

    Every image is a piece of its own, so that a killed run loses at most one image's time.

    Args:
        engine: The set and the network.
        exact: The method.
        ball: The threat; its ground norm is that of the method.
        radii: r_i, shape [N].
        distances: d_i, shape [N].
    """
    question = chosen_question(RobustnessCurve(radii), RobustnessCurve(distances), ball, exact.tolerance)
    open_ = [
        i for i, (r, d) in enumerate(zip(radii, distances, strict=True)) if question(float(r), float(d)) is not None
    ]
    low, high, rivals = radii.copy(), distances.copy(), np.full(len(radii), -1)
    flips = np.full(len(radii), math.inf)
    if open_:
        alone = replace(
            engine,
            batches=_Alone(engine.batches, open_),
            progress=partial(engine.progress, total=len(open_)),
        )
        stage = _stage(engine, exact, question, alone.batches, radii[open_], distances[open_])
        found = alone.run(stage, ("low", "high", "rivals"))
        low[open_], high[open_], rivals[open_] = found["low"], found["high"], found["rivals"]
        flips[open_] = np.where(found["rivals"] >= 0, found["high"], math.inf)
    left = sum(question(float(low[i]), float(high[i])) is not None for i in open_)
    proven, flipped = int((low > radii).sum()), int((high < distances).sum())
    return ExactIntervals(low, radii, flips, rivals, len(open_), len(open_) - left, proven, flipped, exact.budget)


@dataclass(frozen=True)
class _Alone:
    """Chosen images of a set, each a batch of its own."""

    batches: Batches
    rows: list[int]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, wanted = 0, iter(self.rows)
        row = next(wanted, None)
        for x, y in self.batches:
            while row is not None and row < start + len(y):
                yield x[row - start : row - start + 1], y[row - start : row - start + 1]
                row = next(wanted, None)
            start += len(y)


def _stage(
    engine: Engine, exact: ExactRobustness, question: Question, images: Batches, radii: Floats, distances: Floats
) -> Stage:
    """The stage that asks about each image; equal images have equal intervals, so a digest finds an image's interval.

    Args:
        engine: Gives the network.
        exact: The method.
        question: What to ask.
        images: One image at a time.
        radii: Their certified radii.
        distances: Their distances.
    """
    known = {batch_digest(x, y): k for k, (x, y) in enumerate(images)}

    def work(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        k = known[batch_digest(x.cpu(), y.cpu())]
        low, high = (torch.tensor([values[k]], dtype=torch.float64, device=x.device) for values in (radii, distances))
        found = exact.narrow(engine.model, x, y, low, high, question)
        with attack_mode(engine.model), torch.no_grad():
            others = forward(engine.model, found.flips).scatter(1, y[:, None], -math.inf).argmax(1)
        rivals = torch.where(found.flipped > 0, others, -1)
        arrays = {"low": found.low, "high": found.high, "rivals": rivals}
        return {name: value.cpu().numpy() for name, value in arrays.items()}

    return Stage("exact", (exact, question, radii, distances), work)
