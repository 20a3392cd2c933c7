"""What an evaluation measures beside the distances, one object a measurement behind a common shape.

A measurement takes the network with its images and the evidence so far, and returns the evidence with what it adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from omegaconf import DictConfig

from wdro_train.certificates import Certificate, ExactRobustness
from wdro_train.evaluation import warning_signs
from wdro_train.evaluation.autoattack import ReferenceResult, run_reference_attack
from wdro_train.evaluation.certified_curve import certified_curve, make_certificate
from wdro_train.evaluation.choices import chosen_first_order, parsed
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.exact_intervals import exact_intervals
from wdro_train.evaluation.first_order import first_order_rows
from wdro_train.evaluation.first_order_effort import FEWEST_STEPS, AllSteps, FirstOrderEffort, WithinPasses
from wdro_train.evaluation.passes import counted
from wdro_train.evaluation.warning_signs import WarningSign
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError


class Measurement(Protocol):
    """One measurement of a network.

    Attributes:
        name: What the report calls it where it says how many passes each took.
    """

    @property
    def name(self) -> str:
        """See above."""
        ...

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """The evidence so far with the result of this measurement added.

        Args:
            engine: The set and the network.
            evidence: What was measured before.

        Returns:
            The evidence with what this measurement adds.
        """
        ...

    def sign(self, evidence: NetworkEvidence) -> WarningSign | None:
        """What this measurement says against the others, once all of them are made.

        Args:
            evidence: After the last measurement.
        """
        return None


@dataclass(frozen=True)
class FirstOrder(Measurement):
    """The paper's values by W-FGSM and W-PGD, on a grid.

    Attributes:
        losses: Any of `ce`, `dlr`, `redlr`.
        orders: Wasserstein orders p > 1.
        deltas: Radii > 0.
        effort: Says which of the losses are run, and with how many steps of W-PGD.
        box: See `WFGSM` and `WPGD`.
        tell: Gets a sentence where nothing is run.
    """

    losses: tuple[str, ...]
    orders: tuple[float, ...]
    deltas: tuple[float, ...]
    effort: FirstOrderEffort
    box: bool
    tell: Callable[[str], None]
    name: str = "first-order rows"

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Add a row for each loss, order and radius."""
        spent, images = evidence.passes[0][1].pairs, len(evidence.curve)
        balls = len(self.orders) * len(self.deltas)
        plan = self.effort(self.losses, balls, images, spent)
        if not plan.losses:
            self.tell(
                f"no first-order values and no W-PGD: the distances took {spent / images:.3g} passes an image, which "
                f"are not enough for {FEWEST_STEPS} steps; first_order.passes=null runs them all the same"
            )
        rows = first_order_rows(
            engine,
            norm=evidence.ball.norm,
            losses=plan.losses,
            orders=self.orders,
            deltas=self.deltas,
            steps=plan.steps,
            box=self.box,
        )
        return replace(evidence, first_order=tuple(rows))


@dataclass(frozen=True)
class Certified(Measurement):
    """The certified lower bound of the robustness curve, from a radius for each image within which no flip exists.

    Attributes:
        certificate: Finds them.
        method: Its name, for the report.
    """

    certificate: Certificate
    method: str

    @property
    def name(self) -> str:
        """With the certificate's own name."""
        return f"certificate {self.method}"

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Add the certified curve."""
        return replace(evidence, certificate=certified_curve(engine, self.certificate, self.method))


@dataclass(frozen=True)
class Narrowed(Measurement):
    """Proofs and counterexamples for the images that attacks and relaxation leave open and that matter at the threat.

    It comes after everything else that finds flips.

    Attributes:
        exact: Finds them.
    """

    exact: ExactRobustness
    name: str = "exact"

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Raise certified radii, and add flips."""
        sure = evidence.certificate
        if sure is None:
            return evidence
        found = exact_intervals(engine, self.exact, evidence.ball, sure.curve.distances, evidence.curve.distances)
        return replace(evidence, certificate=replace(sure, curve=RobustnessCurve(found.radii)), exact=found)


@dataclass(frozen=True)
class Randomness(Measurement):
    """Whether the network answers twice alike, on the first batch."""

    name: str = "two looks at the first batch"

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Run the network twice on the first batch, and add a warning if its logits differ."""
        x, _ = next(iter(engine.batches))
        sign, passes = counted(engine.model, lambda: warning_signs.randomness(engine.model, x.to(engine.device)))
        engine.ledger.add(passes)
        return _warned(evidence, sign)


@dataclass(frozen=True)
class AutoAttack(Measurement):
    """The standard version of AutoAttack on every image, at p = inf."""

    name: str = "AutoAttack"

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Add its flips."""
        found = run_reference_attack(engine, evidence.ball, attacks=None, name=self.name)
        return replace(evidence, references=(*evidence.references, found))

    def sign(self, evidence: NetworkEvidence) -> WarningSign | None:
        """A warning if it is stronger than the attacks of this package."""
        reference = _reference(evidence, self.name)
        return warning_signs.peer_wins(evidence.curve_of_own_attacks, reference, evidence.written)


@dataclass(frozen=True)
class Square(Measurement):
    """The black-box attack Square on the first batch, at p = inf, as a check on the gradients."""

    name: str = "Square"

    def __call__(self, engine: Engine, evidence: NetworkEvidence) -> NetworkEvidence:
        """Add its flips."""
        found = run_reference_attack(engine, evidence.ball, attacks=["square"], name=self.name, batches=1)
        return replace(evidence, references=(*evidence.references, found))

    def sign(self, evidence: NetworkEvidence) -> WarningSign | None:
        """A warning if it flips what the attacks with gradients could not."""
        flips = _reference(evidence, self.name).flips.tolist()
        return warning_signs.black_box_wins(evidence.curve_of_own_attacks, flips, evidence.ball.delta)


def chosen_certificate(cfg: DictConfig, ball: WassersteinBall, images: int) -> Certificate | None:
    """What `certificate` of `conf/evaluate.yaml` asks for; None for nothing.

    Args:
        cfg: The composed configuration.
        ball: The threat.
        images: Number of images of the set.

    Raises:
        UserError: Radii that cannot be read, or a certificate that does not exist.
    """
    if cfg.certificate is None or cfg.certificate.method is None:
        return None
    radii = cfg.certificate.radii
    given = {**cfg.certificate, "radii": None if radii is None else parsed(radii, "certificate.radii", [])}
    return make_certificate(**given, norm=ball.norm, images=images, batch_size=cfg.batch_size)


def chosen_measurements(
    cfg: DictConfig, ball: WassersteinBall, images: int, tell: Callable[[str], None]
) -> list[Measurement]:
    """What `certificate`, `peers` and `first_order` of `conf/evaluate.yaml` ask for, in the order of the measurements.

    What encloses the worst case comes first, and what says more about the network after it. The exact method, which may
    take the longest and asks about what all attacks leave open, comes last.

    Args:
        cfg: The composed configuration.
        ball: The threat.
        images: Number of images of the set.
        tell: Gets a sentence where something that was asked for does not exist.

    Raises:
        UserError: A number that cannot be read, a grid without entries, or a certificate that does not exist.
    """
    chosen: list[Measurement] = []
    sure = chosen_certificate(cfg, ball, images)
    if sure is not None:
        first = sure.relaxation if isinstance(sure, ExactRobustness) else sure
        chosen.append(Certified(first, cfg.certificate.method))
    chosen.append(Randomness())
    if cfg.peers.autoattack:
        chosen.append(AutoAttack())
    if cfg.peers.square:
        chosen.append(Square())
    first_order = chosen_first_order(cfg)
    if first_order is not None:
        shares = parsed(first_order["shares"], "first_order.shares", [])
        losses = tuple(first_order["losses"])
        orders = parsed(first_order["p"], "first_order.p", [ball.p])
        deltas = parsed(first_order["deltas"], "deltas", [share * ball.delta for share in shares])
        for key, entries in (("losses", losses), ("p", orders), ("deltas", deltas)):
            if not entries:
                raise UserError(f"first_order.{key} is empty; give at least one entry, or no rows by first_order=none")
        unique = tuple(p for p in orders if p > 1)
        steps, share, box = (first_order[key] for key in ("steps", "passes", "box"))
        effort = AllSteps(steps) if share is None else WithinPasses(steps, share)
        if unique:
            chosen.append(FirstOrder(losses, unique, tuple(deltas), effort, box, tell))
        else:
            tell(
                "no first-order values and no W-PGD: under W_1 the first-order worst case is not unique; "
                "first_order.p=[2] shows those of another order"
            )
    if isinstance(sure, ExactRobustness):
        chosen.append(Narrowed(sure))
    return chosen


def concluded(evidence: NetworkEvidence, made: Iterable[Measurement]) -> NetworkEvidence:
    """The evidence with the warnings that need all of it.

    Args:
        evidence: After the last measurement.
        made: The measurements.
    """
    found, ball = evidence.found, evidence.ball
    return _warned(
        evidence,
        *(measurement.sign(evidence) for measurement in made),
        warning_signs.zero_gradients(found),
        warning_signs.nonfinite_gradients(found),
        warning_signs.never_flipped(found),
        warning_signs.cheaper_elsewhere(found, evidence.curve, ball.p, ball.delta, evidence.written),
        warning_signs.stronger_does_worse(evidence.first_order, evidence.written),
        warning_signs.bound_above_ratio(evidence.rows),
        warning_signs.certificate_contradicted(evidence.certificate, evidence.curve),
    )


def _reference(evidence: NetworkEvidence, name: str) -> ReferenceResult:
    """The result of a reference attack, whose name in the report may go on with the parts that were run."""
    return next(found for found in evidence.references if found.name.startswith(name))


def _warned(evidence: NetworkEvidence, *signs: WarningSign | None) -> NetworkEvidence:
    raised = (sign for sign in signs if sign is not None)
    return replace(evidence, warnings=(*evidence.warnings, *raised))
