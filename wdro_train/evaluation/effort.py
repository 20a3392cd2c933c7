"""How long the search for distances goes on: a given number of steps, or until the worst case no longer moves.

A shorter distance changes the worst case in the ball of the threat only for some images (theory, section 5). At p = inf
for those that are correct at radius delta: 1 - A = #{d_i <= delta} / N. At p < inf for those that the worst case moves,
and for others if they can be flipped nearer than D, the distance of the marginal image, as the derivative of A with
respect to d_i is lambda p d_i^(p-1) / N for d_i < D and 0 beyond. Rounds of further search ask for these images only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.rounds import Wanted
from wdro_train.evaluation.distances import FoundDistances, find_distances, go_on
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.turns import Turns, turns
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError

TOLERANCE = 1e-3  # 0.1 points of accuracy
# With the 40 passes or so of the first search a tenth of the 4,900 that AutoAttack, standard, takes on an image that it
# cannot flip: 1,000 steps of APGD, 900 of FAB with as many looks, 5,000 forward passes of Square, and others
# (docs/results/distances_effort.md). The first search asks all images, and would use up the budget of few.
BUDGET = 450.0
# At p < inf AutoAttack has no figure to be held against, and longer rounds find more.
MARGINAL_BUDGET = 600.0
# The images that are moved at the least cost, up to this share of what the worst case pays for all, are cheap: rounds
# cannot save more than this share on all of them together.
_CHEAP = 0.02


def budget_for(ball: WassersteinBall, times: float = 1.0) -> float:
    """Passes of the rounds for each image that is still asked for.

    Args:
        ball: The threat.
        times: So many times what `auto` has.
    """
    return times * (BUDGET if math.isinf(ball.p) else MARGINAL_BUDGET)


class Effort(Protocol):
    """How long the search for distances goes on."""

    def __call__(self, engine: Engine, attack: MinimalDistance, ball: WassersteinBall) -> FoundDistances:
        """The distances of the whole set.

        Args:
            engine: The set and the network.
            attack: The first search, of every image.
            ball: The threat in whose ball the worst case is wanted.
        """
        ...


@dataclass(frozen=True)
class FirstSearch:
    """The minimum-norm attack and nothing more."""

    def __call__(self, engine: Engine, attack: MinimalDistance, ball: WassersteinBall) -> FoundDistances:
        """See `Effort`."""
        return _with_accuracy(find_distances(engine, attack), ball)


@dataclass(frozen=True)
class UntilConverged:
    """Rounds of different kinds after the first search, until two turns of them hardly move the worst case.

    A turn is one round of each kind. The search ends after two turns in a row each of which lowered the accuracy in the
    ball of the threat by less than the tolerance, when no image is left to ask about, or when the budget is too small
    for the next round.

    Attributes:
        turns: The kinds of each turn, for a threat; after the last one they begin again, with other random numbers.
        tolerance: In units of accuracy.
        budget: Passes of the rounds for each image that is still asked for, for a threat. A round that would exceed it
            does not begin.
    """

    turns: Callable[[WassersteinBall], Turns]
    tolerance: float = TOLERANCE
    budget: Callable[[WassersteinBall], float] = budget_for

    def __call__(self, engine: Engine, attack: MinimalDistance, ball: WassersteinBall) -> FoundDistances:
        """See `Effort`."""
        found = _with_accuracy(find_distances(engine, attack), ball)
        kinds, budget = self.turns(ball), self.budget(ball)
        turn, quiet = 0, 0
        while quiet < 2:
            before = found.rounds[-1].accuracy
            for kind in kinds[turn % len(kinds)]:
                wanted = still_wanted(found.curve, ball)
                distances = torch.from_numpy(found.distances)
                left = int(wanted.asked(distances).sum())
                if wanted.reach <= 0 or not left:
                    return found
                one = kind.of_set(wanted, distances)
                asked = int(one.asked(wanted, distances).sum())
                if not asked:
                    continue
                cost = one.passes(_classes(found)) * asked
                spent = (found.passes - found.rounds[0].passes) * len(found.distances)
                if spent + cost > budget * left:
                    return replace(found, capped=True)
                found = _with_accuracy(go_on(engine, attack, found, one, wanted), ball)
            # Accuracies are sums of N numbers: a difference of exactly the tolerance must not be less by rounding.
            quiet = quiet + 1 if before - found.rounds[-1].accuracy < self.tolerance * (1 - 1e-9) else 0
            turn += 1
        return found


def still_wanted(curve: RobustnessCurve, ball: WassersteinBall) -> Wanted:
    """Which flips would lower the worst-case accuracy of a set.

    Args:
        curve: Of the distances so far.
        ball: The threat.

    Returns:
        At p = inf flips within delta of images that have none; none at delta = 0, which moves nothing. At p < inf flips
        nearer than the known ones and nearer than the marginal distance D. Where all flips that are known are paid for
        and budget is left, any flip of an image that has none.
    """
    if math.isinf(ball.p) or ball.delta == 0:
        return Wanted(reach=ball.delta, goal=ball.delta)
    worst = curve.worst_case(ball.delta, ball.p)
    if math.isfinite(worst.marginal_distance):
        return Wanted(reach=worst.marginal_distance, goal=0.0, cheap=_cheap(curve, worst.marginal_distance, ball.p))
    finite = curve.distances[curve.distances < math.inf]
    return Wanted(reach=math.inf, goal=float(finite.max(initial=0.0)))


def _cheap(curve: RobustnessCurve, reach: float, p: float) -> float:
    """The distance below which all images that the worst case moves cost no more than a small share of its budget."""
    moved = np.sort(curve.distances[(curve.distances > 0) & (curve.distances <= reach)])
    if reach == 0 or not len(moved):
        return 0.0
    paid = np.cumsum((moved / reach) ** p)
    return float(moved[min(np.searchsorted(paid, _CHEAP * paid[-1], side="right"), len(moved) - 1)])


@dataclass(frozen=True)
class ChosenEffort:
    """An effort by its name, or by numbers.

    Attributes:
        name: As chosen; `by hand` for numbers.
        search: Settings of `MinimalDistance`.
        effort: How long the search goes on.
    """

    name: str
    search: dict[str, int]
    effort: Effort

    def described(self, ball: WassersteinBall) -> dict[str, Any]:
        """What the report says of it.

        Args:
            ball: The threat.
        """
        limits = {}
        if isinstance(self.effort, UntilConverged):
            limits = {"tolerance": self.effort.tolerance, "budget": self.effort.budget(ball)}
        return {"name": "MinimalDistance", "effort": self.name, **self.search, **limits}


_FIRST = {"steps": 30, "restarts": 1, "targets": 0}
_EFFORTS = {
    "auto": ChosenEffort("auto", _FIRST, UntilConverged(partial(turns, 30))),
    "quick": ChosenEffort("quick", _FIRST, FirstSearch()),
    "publish": ChosenEffort(
        "publish",
        {"steps": 50, "restarts": 2, "targets": 3},
        UntilConverged(partial(turns, 100), tolerance=TOLERANCE / 5, budget=partial(budget_for, times=10)),
    ),
}


def chosen_effort(
    effort: str, steps: int | None = None, restarts: int | None = None, targets: int | None = None
) -> ChosenEffort:
    """The effort that `distances` of `conf/evaluate.yaml` asks for.

    Args:
        effort: `auto`, `quick` or `publish`.
        steps: Steps of `MinimalDistance`; any number means effort by hand, without further rounds.
        restarts: Its restarts.
        targets: Its targets.

    Raises:
        UserError: Unknown name.
    """
    if effort not in _EFFORTS:
        raise UserError(f"distances.effort={effort!r} is unknown; choose {', '.join(_EFFORTS)}, or numbers by hand")
    given = {"steps": steps, "restarts": restarts, "targets": targets}
    by_hand = {key: value for key, value in given.items() if value is not None}
    if not by_hand:
        return _EFFORTS[effort]
    return ChosenEffort("by hand", {**_EFFORTS[effort].search, **by_hand}, FirstSearch())


def _classes(found: FoundDistances) -> int:
    """How many classes were seen, as labels or as what images flip to."""
    return 1 + int(max(found.labels.max(), found.rivals.max()))


def _with_accuracy(found: FoundDistances, ball: WassersteinBall) -> FoundDistances:
    last = found.rounds[-1]._replace(accuracy=found.curve.accuracy(ball.delta, ball.p))
    return replace(found, rounds=(*found.rounds[:-1], last))
