"""Between which numbers the truth lies: of one network in the ball of the threat, and of the difference of two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.report.schema import DifferenceRow, DifferencesBlock, IntervalBlock, Number
from wdro_train.metrics.functional import accuracy_ratio
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.band import Band, Interval
from wdro_train.theory.enclosure import Enclosure, nothing_certified
from wdro_train.theory.paired_differences import (
    difference_width,
    enclosed_difference,
    enclosed_difference_of_distribution,
    paired_difference,
)
from wdro_train.theory.robustness_curve import RobustnessCurve


def interval(evidence: NetworkEvidence, band: Band) -> IntervalBlock:
    """The worst-case accuracy of one network and its ratio R = A_delta / A, in the ball of the threat.

    On the images the attacked end is that of all attacks. On their distribution it is that of the attacks on each image
    by itself, plus the band's width.

    Args:
        evidence: What was measured of the network.
        band: Gives the ends for the distribution.
    """
    ball, both = evidence.ball, evidence.enclosure
    clean, attacked = evidence.curve.clean_accuracy, evidence.worst_case.accuracy
    alone = evidence.curve_under_the_band.accuracy(ball.delta, ball.p)
    least = 0.0 if both is None else both.certified.accuracy(ball.delta, ball.p)
    ratio = band.ratio(Interval(least, alone), clean)
    known = both is not None
    ended = known and band.sided != "upper"
    return {
        "p": ball.p,
        "delta": ball.delta,
        "certified": least if known else None,
        "attacked": attacked,
        "lower_end": band.lower_end(least) if ended else None,
        "upper_end": band.upper_end(alone),
        "ratio_certified": accuracy_ratio(least, clean) if known else None,
        "ratio_attacked": accuracy_ratio(attacked, clean),
        "ratio_lower_end": ratio.low if ended else None,
        "ratio_upper_end": ratio.high,
    }


def differences(
    evidence: Sequence[NetworkEvidence], names: Sequence[str], ball: WassersteinBall, alpha: float
) -> DifferencesBlock | None:
    """Every network against every other one that was judged on the same images; None for one network.

    The intervals of a column hold jointly: each gets alpha over the number of pairs.

    Args:
        evidence: What was measured of each network.
        names: Their names in the report.
        ball: The threat.
        alpha: Probability of error.
    """
    pairs = list(combinations(range(len(evidence)), 2))
    if not pairs:
        return None
    rows, left_out = [], []
    for a, b in pairs:
        if evidence[a].images != evidence[b].images:
            left_out.append(
                f"no difference between {names[a]} and {names[b]}: they were not judged on the same images in the same "
                f"order ({_described(evidence[a])}; {_described(evidence[b])}), so their images cannot be paired"
            )
            continue
        rows.append(_row(evidence[a], evidence[b], names[a], names[b], ball, alpha / len(pairs)))
    images = min(len(one.curve) for one in evidence)
    width = difference_width(images, alpha, len(evidence))
    return {
        "p": ball.p,
        "delta": ball.delta,
        "alpha": alpha,
        "level": 1 - alpha,
        "width": width,
        "rows": rows,
        "left_out": left_out,
    }


def _row(
    first: NetworkEvidence, second: NetworkEvidence, one: str, other: str, ball: WassersteinBall, alpha: float
) -> DifferenceRow:
    attacked = paired_difference(first.curve_image_by_image, second.curve_image_by_image, ball.delta, ball.p, alpha)
    found: list[Number] = [None] * 4
    if first.enclosure is not None or second.enclosure is not None:
        sample = enclosed_difference(
            _enclosed(first.enclosure, first.curve), _enclosed(second.enclosure, second.curve), ball.delta, ball.p
        )
        distribution = enclosed_difference_of_distribution(
            _enclosed(first.enclosure_image_by_image, first.curve_image_by_image),
            _enclosed(second.enclosure_image_by_image, second.curve_image_by_image),
            ball.delta,
            ball.p,
            alpha,
        )
        found = [*sample, *distribution]
    return {
        "first": one,
        "second": other,
        "attacked": attacked.value,
        "attacked_low": attacked.interval.low,
        "attacked_high": attacked.interval.high,
        "enclosed_low": found[0],
        "enclosed_high": found[1],
        "lower_end": found[2],
        "upper_end": found[3],
    }


def _enclosed(both: Enclosure | None, attacked: RobustnessCurve) -> Enclosure:
    """The enclosure; without certificate the accuracy is at least 0."""
    return Enclosure(nothing_certified(len(attacked)), attacked) if both is None else both


def _described(evidence: NetworkEvidence) -> str:
    return f"{len(evidence.curve)} images, {evidence.sample}"
