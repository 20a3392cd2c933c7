"""Which rounds of further search `distances.effort=auto` and `publish` go through, turn by turn.

docs/results/distances_effort.md compares them with AutoAttack, with exact values and with others that were tried.
"""

from __future__ import annotations

import math

from wdro_train.attacks.elimination import Elimination, Heat, RandomHeat
from wdro_train.attacks.marginal_rounds import BeyondReach, WithinReach
from wdro_train.attacks.minimum_norm_rounds import MinimumNorm
from wdro_train.attacks.nearby_rounds import Nearby
from wdro_train.attacks.random_search import RandomSearch
from wdro_train.attacks.rounds import AdaptiveRound, AnyRival, FurtherSearch, OneRival, OneRun, Round
from wdro_train.attacks.starts import AroundTheFlip, AtRandom, AtStripes, AtTheFlip, AtTheImage, Start
from wdro_train.theory.ball import WassersteinBall

_RANKS = ("1st", "2nd", "3rd")

Turns = tuple[tuple[FurtherSearch, ...], ...]


def turns(steps: int, ball: WassersteinBall) -> Turns:
    """The turns for the worst case in a ball.

    Args:
        steps: Of a round of middle length.
        ball: The threat.
    """
    if math.isfinite(ball.p):
        return marginal_turns(steps)
    return pointwise_turns(steps) if math.isinf(ball.norm) else equal_turns(steps)


def marginal_turns(steps: int) -> Turns:
    """At p < inf: most rounds for the images that the worst case moves, and eliminations of rivals for the others.

    Short rounds bring most distances down; what is left to find then takes longer ones.

    Args:
        steps: Of a round of middle length in the first turn; in the others they are twice as long.
    """
    again, short, long = _again(steps), _within(_brief(steps)), _within(_thorough(2 * steps))
    image, noise = (
        BeyondReach(
            f"elimination of rivals, from {what}, images out of reach", Elimination("elimination", _heats(start, steps))
        )
        for what, start in (("the image", AtTheImage()), ("random points", AtRandom()))
    )
    return (again, image, *short), (*long, again), (*long, noise), long


def _brief(steps: int) -> tuple[OneRun, ...]:
    again, around, (first, second, _) = _again(steps), _around(steps), _aimed(steps)
    return around, _flip(steps), again, _small(steps), around, first, around, second


def _thorough(steps: int) -> tuple[OneRun, ...]:
    """Most runs start a random way from the image or from the flip: those straight from the flip end where they did.

    docs/results/distances_effort.md has what each kind finds.
    """
    again, around, near, (first, second, _) = _again(steps), _around(steps), _near(steps), _aimed(steps)
    return around, again, near, first, _small(steps), around, again, near, second


def _within(runs: tuple[OneRun, ...]) -> tuple[WithinReach, ...]:
    return tuple(WithinReach(f"{one.kind}, images that are moved", one) for one in runs)


def equal_turns(steps: int) -> Turns:
    """At p = inf in l_2 and l_1: rounds of all images that are asked for, one after the other.

    Further runs of the minimum-norm attack, which lower the worst case most, come first.

    Args:
        steps: Of each round.
    """
    again, aimed = _again(steps), _aimed(steps)
    flip, image, noise = _flip(steps), _image(steps), _noise(steps)
    first, second, third = (_rival(k, steps) for k in range(3))
    entropy, ratio = _random("cross-entropy", "ce", steps), _random("DLR", "dlr", steps)
    return (
        (again, *aimed),
        (flip, again, again, again),
        (flip, image, second, noise),
        (flip, first, third, entropy),
        (flip, ratio, second, noise),
    )


def pointwise_turns(steps: int) -> Turns:
    """At p = inf in l_inf, where few of the images can be flipped yet: most steps for those that came closest.

    Args:
        steps: Of a round of middle length.
    """
    kinds: list[FurtherSearch] = [_flip(steps), _image(steps), *(_rival(k, steps) for k in range(3)), _noise(steps)]
    kinds += [_random("cross-entropy", "ce", steps), _random("DLR", "dlr", steps)]
    kinds += [Round("from a random point, margin", AtRandom(), AnyRival("margin"), steps, 1.0)]
    kinds += [Round("from a random point, 3rd rival", AtRandom(), OneRival(2), steps, 3.0)]
    kinds += [
        AdaptiveRound(f"Auto-PGD, {name}", AtRandom(), AnyRival(name), 10 * steps // 3) for name in ("ce", "margin")
    ]
    near = Nearby("just beyond the radius, twelve kinds", tuple(kinds))
    return tuple(
        (near, _flip(steps), Elimination(f"elimination of rivals, from {what}", _heats(start, steps), _last(steps)))
        for what, start in (("the image", AtTheImage()), ("random points", AtRandom()))
    )


def _again(steps: int) -> MinimumNorm:
    return MinimumNorm("minimum norm, from a random point", AtRandom(), AnyRival("soft_margin"), steps)


def _around(steps: int) -> MinimumNorm:
    return MinimumNorm("minimum norm, from around the flip", AroundTheFlip(), AnyRival("soft_margin"), steps)


def _aimed(steps: int) -> list[MinimumNorm]:
    return [MinimumNorm(f"minimum norm, {_RANKS[k]} rival", AtRandom(), OneRival(k), steps) for k in range(3)]


def _heats(start: Start, steps: int) -> tuple[Heat, ...]:
    """109 steps an image where `steps` are 30, 45 of them towards all rivals; small ones find what large ones miss."""
    noise = AtRandom()
    return (
        Heat(1.0, steps // 6, start),
        Heat(0.06, steps, start),
        Heat(0.04, steps, noise),
        Heat(0.04, steps, noise, 1.0),
        Heat(0.03, steps, noise, 1.0),
        Heat(0.02, 2 * steps, noise, 1.0),
        *(Heat(0.005, 2 * steps, noise, size) for size in (3.0, 1.0, 1.0)),
    )


def _last(steps: int) -> tuple[RandomHeat, ...]:
    """Forward passes worth 40 steps an image where `steps` are 30, as no gradient leads to some of the last flips."""
    queries = 200 * steps // 3
    return (
        RandomHeat(0.02, RandomSearch(queries, 0.05), AtTheFlip()),
        RandomHeat(0.02, RandomSearch(queries, 0.8), AtStripes()),
    )


def _flip(steps: int) -> Round:
    return Round("from the flip, margin", AtTheFlip(), AnyRival("margin"), steps, 3.0)


def _small(steps: int) -> Round:
    return Round("from the flip, margin, small steps", AtTheFlip(), AnyRival("margin"), steps, 1.0)


def _near(steps: int) -> Round:
    return Round("from around the flip, margin, small steps", AroundTheFlip(), AnyRival("margin"), steps, 1.0)


def _image(steps: int) -> Round:
    return Round("from the image, softened margin", AtTheImage(), AnyRival("soft_margin"), steps, 3.0)


def _noise(steps: int) -> Round:
    return _random("softened margin", "soft_margin", steps)


def _random(name: str, loss: str, steps: int) -> Round:
    return Round(f"from a random point, {name}", AtRandom(), AnyRival(loss), steps, 3.0)


def _rival(rank: int, steps: int) -> Round:
    return Round(f"from the image, {_RANKS[rank]} rival", AtTheImage(), OneRival(rank), steps, 3.0)
