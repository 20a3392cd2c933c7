"""What an evaluation measures beside the distances, one object a measurement behind a common shape.

A measurement takes the network with its images and the evidence so far, and returns the evidence with what it adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from omegaconf import DictConfig

from wdro_train.certificates import Certificate, ExactRobustness
from wdro_train.evaluation import warning_signs
from wdro_train.evaluation.autoattack import ReferenceResult, run_reference_attack
from wdro_train.evaluation.certified_curve import certified_curve, make_certificate
from wdro_train.evaluation.choices import parsed
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.exact_intervals import exact_intervals
from wdro_train.evaluation.first_order import first_order_rows
from wdro_train.evaluation.warning_signs import WarningSign
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve


class Measurement(Protocol):
    """One measurement of a network."""

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """The evidence so far with the result of this measurement added.

        Args:
            engine: The set and the network.
            evidence: What was measured before.

        Returns:
            The evidence with what this measurement adds.
        """
        ...


@dataclass(frozen=True)
class FirstOrder:
    """The poster's values by W-FGSM and W-PGD, on a grid.

    Attributes:
        losses: Any of `ce`, `dlr`, `redlr`.
        orders: Wasserstein orders p > 1.
        deltas: Radii > 0.
        steps: Steps of W-PGD.
        box: See `WFGSM` and `WPGD`.
    """

    losses: tuple[str, ...]
    orders: tuple[float, ...]
    deltas: tuple[float, ...]
    steps: int
    box: bool

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Add a row for each loss, order and radius."""
        rows = first_order_rows(
            engine,
            norm=evidence.ball.norm,
            losses=self.losses,
            orders=self.orders,
            deltas=self.deltas,
            steps=self.steps,
            box=self.box,
        )
        return replace(evidence, first_order=tuple(rows))


@dataclass(frozen=True)
class Certified:
    """The certified lower bound of the robustness curve, from a radius for each image within which no flip exists.

    Attributes:
        certificate: Finds them.
        method: Its name, for the report.
    """

    certificate: Certificate
    method: str

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Add the certified curve."""
        return replace(evidence, certificate=certified_curve(engine, self.certificate, self.method))


@dataclass(frozen=True)
class Narrowed:
    """Proofs and counterexamples for the images that attacks and relaxation leave open and that matter at the threat.

    It comes after everything else that finds flips.

    Attributes:
        exact: Finds them.
    """

    exact: ExactRobustness

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Raise certified radii, and add flips."""
        sure = evidence.certificate
        if sure is None:
            return evidence
        found = exact_intervals(engine, self.exact, evidence.ball, sure.curve.distances, evidence.curve.distances)
        return replace(evidence, certificate=replace(sure, curve=RobustnessCurve(found.radii)), exact=found)


@dataclass(frozen=True)
class Randomness:
    """Whether the network answers twice alike, on the first batch."""

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Run the network twice on the first batch, and add a warning if its logits differ."""
        x, _ = next(iter(engine.batches))
        return _warned(evidence, warning_signs.randomness(engine.model, x.to(engine.device)))


@dataclass(frozen=True)
class AutoAttack:
    """The standard version of AutoAttack on every image, at p = inf."""

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Add its flips, and a warning if it is stronger than the attacks of this package."""
        found = run_reference_attack(engine, evidence.ball, attacks=None, name="AutoAttack")
        return _with_reference(evidence, found, warning_signs.peer_wins(evidence.curve_of_own_attacks, found))


@dataclass(frozen=True)
class Square:
    """The black-box attack Square on the first batch, at p = inf, as a check on the gradients."""

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Add its flips, and a warning if it flips what the attacks with gradients could not."""
        found = run_reference_attack(engine, evidence.ball, attacks=["square"], name="Square", batches=1)
        sign = warning_signs.black_box_wins(evidence.curve_of_own_attacks, found.flips.tolist(), evidence.ball.delta)
        return _with_reference(evidence, found, sign)


def chosen_measurements(
    cfg: DictConfig, ball: WassersteinBall, images: int, tell: Callable[[str], None]
) -> list[Measurement]:
    """What `poster`, `certificate` and `peers` of `conf/evaluate.yaml` ask for, in the order in which it is measured.

    Args:
        cfg: The composed configuration.
        ball: The threat.
        images: Number of images of the set.
        tell: Gets a sentence where something that was asked for does not exist.

    Raises:
        UserError: A number that cannot be read, or a certificate that does not exist.
    """
    chosen: list[Measurement] = []
    if cfg.poster is not None:
        orders = [p for p in parsed(cfg.poster.p, "poster.p", [ball.p]) if p > 1]
        deltas = parsed(cfg.poster.deltas, "deltas", [ball.delta / 4, ball.delta / 2, ball.delta])
        if orders:
            steps, box = cfg.poster.pgd_steps, cfg.poster.box
            chosen.append(FirstOrder(tuple(cfg.poster.losses), tuple(orders), tuple(deltas), steps, box))
        else:
            tell(
                "no first-order values and no W-PGD: under W_1 the first-order worst case is not unique; "
                "poster.p=[2] shows those of another order"
            )
    sure: Certificate | None = None
    if cfg.certificate is not None and cfg.certificate.method is not None:
        radii = cfg.certificate.radii
        given = {**cfg.certificate, "radii": None if radii is None else parsed(radii, "certificate.radii", [])}
        sure = make_certificate(**given, norm=ball.norm, images=images, batch_size=cfg.batch_size)
        first = sure.relaxation if isinstance(sure, ExactRobustness) else sure
        chosen.append(Certified(first, cfg.certificate.method))
    chosen.append(Randomness())
    if cfg.peers.autoattack:
        chosen.append(AutoAttack())
    if cfg.peers.square:
        chosen.append(Square())
    if isinstance(sure, ExactRobustness):
        chosen.append(Narrowed(sure))
    return chosen


def concluded(evidence: NetworkEvidence) -> NetworkEvidence:
    """The evidence with the warnings that need all of it.

    Args:
        evidence: After the last measurement.
    """
    found, ball = evidence.found, evidence.ball
    return _warned(
        evidence,
        warning_signs.zero_gradients(found),
        warning_signs.nonfinite_gradients(found),
        warning_signs.never_flipped(found),
        warning_signs.cheaper_elsewhere(found, evidence.curve, ball.p, ball.delta),
        warning_signs.stronger_does_worse(evidence.first_order),
        warning_signs.bound_above_ratio(evidence.rows),
        warning_signs.certificate_contradicted(evidence.certificate, evidence.curve),
    )


def _with_reference(evidence: NetworkEvidence, found: ReferenceResult, sign: WarningSign | None) -> NetworkEvidence:
    return _warned(replace(evidence, references=(*evidence.references, found)), sign)


def _warned(evidence: NetworkEvidence, *signs: WarningSign | None) -> NetworkEvidence:
    raised = (sign for sign in signs if sign is not None)
    return replace(evidence, warnings=(*evidence.warnings, *raised))
