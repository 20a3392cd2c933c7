"""What one measurement has found, in lines for the terminal, so that nobody waits for the others to read it."""

from __future__ import annotations

import math

from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.report.fields import at_least, at_most, percent
from wdro_train.theory.ball import WassersteinBall


def worst_case(name: str, evidence: NetworkEvidence) -> str:
    """The accuracy that is left in the ball of the threat, as known from the distances alone.

    Args:
        name: The network.
        evidence: With the distances.
    """
    where, left = _ball(evidence, evidence.ball), at_most(evidence.worst_case.accuracy)
    return (
        f"{name}: accuracy left under {where} is at most {left} "
        f"(attack), clean {percent(evidence.curve.clean_accuracy)}, {len(evidence.curve):,} images"
    )


def news(before: NetworkEvidence, after: NetworkEvidence) -> list[str]:
    """What a measurement has added.

    Args:
        before: The evidence without it.
        after: The evidence with it.
    """
    ball = after.ball
    lines = []
    if after.certificate is not None and (before.certificate is None or after.exact is not before.exact):
        sure = after.certificate
        least = at_least(sure.curve.accuracy(ball.delta, ball.p))
        lines.append(f"certified ({sure.method}): at least {least} of {sure.about} under {_ball(after, ball)}")
    for reference in after.references[len(before.references) :]:
        ends = f"leaves {percent(reference.accuracy)} of {len(reference.flips):,} images"
        lines.append(f"{reference.name} {ends} under W_inf {after.written(reference.ball.delta)}")
    for row in after.first_order[len(before.first_order) :]:
        lines.append(
            f"W-PGD ({row.loss}, {row.steps} steps) leaves {percent(row.pgd_acc)} under {_ball(after, row.ball)}, "
            f"W-FGSM {percent(row.quantities.fgsm_acc)}"
        )
    if after.worst_case.accuracy < before.worst_case.accuracy:
        lines.append(f"so at most {at_most(after.worst_case.accuracy)} is left under {_ball(after, ball)} (attack)")
    return lines


def _ball(evidence: NetworkEvidence, ball: WassersteinBall) -> str:
    order = "inf" if math.isinf(ball.p) else f"{ball.p:g}"
    return f"W_{order} {evidence.written(ball.delta)}"
