"""Signs that an attack was weak rather than a network strong.

Each check returns a warning with its figure, or None. A warning changes no number; it says why not to believe one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.evaluation.autoattack import ReferenceResult
from wdro_train.evaluation.certified_curve import CertifiedCurve
from wdro_train.evaluation.distances import FoundDistances
from wdro_train.evaluation.first_order import FirstOrderRow, RowWithWorstCase
from wdro_train.models import ExpectedLogits
from wdro_train.theory.enclosure import Enclosure
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.written import WrittenRadii

_SHARE = 0.01  # of the images: a hundredth is more than chance in any set worth judging
_PLAIN = WrittenRadii()  # decimals
_POINT = 0.005  # of accuracy: half a point, less than half of what 10,000 images can be off by (theory, section 7)
_ROUNDING = 1e-9  # of a ratio, far above what the sums of float64 lose


@dataclass(frozen=True)
class WarningSign:
    """One reason not to believe a number.

    Attributes:
        check: Name of the check that raised it.
        figure: The number that it found.
        text: What it means and what to do, in a sentence.
    """

    check: str
    figure: float
    text: str


def zero_gradients(found: FoundDistances) -> WarningSign | None:
    """Many correct images have no gradient at all: saturated or quantised networks hide from gradient attacks.

    Args:
        found: What the minimum-norm attack found.
    """
    share = found.zero_gradients / max(int(found.correct.sum()), 1)
    if share <= _SHARE:
        return None
    text = f"the gradient of {share:.1%} of the correct images vanishes, so gradient attacks cannot move them"
    return WarningSign("zero_gradients", share, text)


def nonfinite_gradients(found: FoundDistances) -> WarningSign | None:
    """Some gradients are NaN or infinite."""
    count = found.nonfinite_gradients
    return WarningSign("nonfinite_gradients", count, f"{count} gradients were not finite") if count else None


def never_flipped(found: FoundDistances) -> WarningSign | None:
    """Accuracy above zero at a radius that covers the whole box: the attack never found what must be there."""
    share = float(np.isinf(found.distances).mean())
    if share == 0:
        return None
    text = (
        f"{share:.1%} of the images were flipped nowhere in [0, 1]^n; either the network says the same everywhere "
        "or the attack does not see it: raise distances.steps, distances.restarts and distances.targets"
    )
    return WarningSign("never_flipped", share, text)


def cheaper_elsewhere(
    found: FoundDistances, curve: RobustnessCurve, p: float, delta: float, written: WrittenRadii = _PLAIN
) -> WarningSign | None:
    """Another attack of the pool found much cheaper flips than the minimum-norm attack."""
    gap = found.curve.accuracy(delta, p) - curve.accuracy(delta, p)
    if gap <= _POINT:
        return None
    text = (
        f"other attacks lower the worst-case accuracy at W_{p:g}, radius {written(delta)}, by {100 * gap:.1f} points; "
        "the minimum-norm attack was too weak: raise distances.steps, distances.restarts and distances.targets"
    )
    return WarningSign("cheaper_elsewhere", gap, text)


def stronger_does_worse(rows: Sequence[FirstOrderRow], written: WrittenRadii = _PLAIN) -> WarningSign | None:
    """W-PGD, of many steps, leaves more accuracy than one step of W-FGSM.

    With CE or DLR and p < inf this says nothing: the budget goes where the loss grows, which is on images that are
    wrong already. Those rows are left out.
    """
    rows = [row for row in rows if math.isinf(row.ball.p) or row.loss == "redlr"]
    gaps = [row.pgd_acc - row.quantities.fgsm_acc for row in rows]
    if not gaps or max(gaps) <= _POINT:
        return None
    row = rows[int(np.argmax(gaps))]
    text = (
        f"W-PGD leaves {100 * max(gaps):.1f} points more than W-FGSM ({row.loss}, W_{row.ball.p:g}, radius "
        f"{written(row.ball.delta)}): the gradients mislead"
    )
    return WarningSign("stronger_does_worse", max(gaps), text)


def bound_above_ratio(rows: Sequence[RowWithWorstCase]) -> WarningSign | None:
    """The asymptotic lower bound lies above the ratio: it is a first-order estimate, and does not hold there."""
    gaps = [one.row.quantities.ratio_lower - one.ratio for one in rows]
    above = [gap for gap in gaps if not math.isnan(gap)]  # an undefined bound says nothing
    broken = sum(gap > _ROUNDING for gap in above)
    if not broken:
        return None
    text = (
        f"R^l exceeds R at {broken} of {len(rows)} grid points (by up to {max(above):.3f}): it is asymptotic, not a "
        "certificate, and does not hold at these radii"
    )
    return WarningSign("bound_above_ratio", max(above), text)


def randomness(model: nn.Module, x: Tensor) -> WarningSign | None:
    """The network is random: two forward passes on the same images differ.

    Args:
        model: Maps images to logits.
        x: A batch of images.
    """
    with attack_mode(model), torch.no_grad():
        gap = (forward(model, x) - forward(model, x)).abs().max().item()
    if gap == 0:
        return None
    looks = model.n if isinstance(model, ExpectedLogits) else 1
    advice = f"raise expectation={looks}, for instance to {4 * looks}" if looks > 1 else "judge it with expectation=20"
    text = f"the network is random (logits differ by up to {gap:.3g} between two looks): {advice}"
    return WarningSign("randomness", gap, text)


def certificate_contradicted(certificate: CertifiedCurve | None, curve: RobustnessCurve) -> WarningSign | None:
    """Images are flipped nearer than they are certified: the certificate is wrong, or a flip is.

    Args:
        certificate: The certified curve; None if there is none. One of another classifier cannot be contradicted.
        curve: Of the nearest flip that any attack found.
    """
    if certificate is None or not certificate.of_the_network:
        return None
    count = Enclosure(certificate.curve, curve).contradictions
    if not count:
        return None
    text = (
        f"{count} images are flipped nearer than {certificate.method} certifies them, so its curve is no lower bound "
        "and encloses nothing; use another certificate.method, and report it"
    )
    return WarningSign("certificate_contradicted", count, text)


def black_box_wins(curve: RobustnessCurve, flips: Sequence[float], delta: float) -> WarningSign | None:
    """The black-box Square attack flips images the white-box attacks could not, at the same pointwise radius.

    Args:
        curve: Of the white-box attacks, on the whole set.
        flips: For the first images of the set, the distance of Square's flip (inf for none).
        delta: The radius that Square was given.
    """
    sample = curve.distances[: len(flips)]
    missed = float(np.mean((sample > delta) & np.isfinite(np.asarray(flips))))
    if missed <= _SHARE:
        return None
    text = f"the black-box attack flips {missed:.1%} of {len(flips)} images that the white-box attacks could not"
    return WarningSign("black_box_wins", missed, text)


def peer_wins(curve: RobustnessCurve, reference: ReferenceResult, written: WrittenRadii = _PLAIN) -> WarningSign | None:
    """A reference attack leaves less accuracy than the curve did without it.

    Args:
        curve: Without the flips of the reference attack.
        reference: What the reference attack left.
        written: How to write its radius.
    """
    gap = curve.accuracy(reference.ball.delta, math.inf) - reference.accuracy
    if gap <= _POINT:
        return None
    radius = written(reference.ball.delta)
    text = f"{reference.name} leaves {100 * gap:.1f} points less than the curve at radius {radius}"
    return WarningSign("peer_wins", gap, text)
