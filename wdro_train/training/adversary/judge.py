"""Judging validation and test batches: against the attacks of a threat, or on clean images alone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from wdro_train.attacks import WFGSM, Attack, AttackResult, MinimalDistance
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.certificates import Certificate
from wdro_train.metrics import (
    AdversarialAccuracy,
    CertifiedAccuracy,
    CleanAccuracy,
    FirstOrderBounds,
    MeanLoss,
    WorstCaseAccuracy,
)
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.sensitivity import WholeSetScope
from wdro_train.training.adversary.certified_groups import CertifiedGroups
from wdro_train.training.adversary.evidence import (
    AttackEvidence,
    BatchEvidence,
    CertifiedEvidence,
    FirstOrderEvidence,
)
from wdro_train.training.adversary.random_numbers import batch_generator
from wdro_train.training.batches import StepBatch
from wdro_train.utils.contract import already_checked
from wdro_train.utils.distributed import default_reducer


class Judge(Protocol):
    """Looks at validation and test batches."""

    def metrics(self) -> list[Metric]:
        """New metrics, which sum the evidence of this judge over a set."""
        ...

    def certified_metrics(self) -> list[Metric]:
        """New metrics, which sum its certified evidence."""
        ...

    def rest(self, model: nn.Module) -> CertifiedEvidence | None:
        """The certified evidence on images of the set that was still to come when its last batch was judged.

        Args:
            model: Maps images in [0, 1] to logits.
        """
        ...

    def judge(self, model: nn.Module, batch: StepBatch) -> BatchEvidence:
        """The evidence on one batch.

        Args:
            model: Maps images in [0, 1] to logits.
            batch: This rank's share of the global batch.
        """
        ...


class CleanJudge:
    """Looks at the clean images only, for a run without an adversary."""

    def metrics(self) -> list[Metric]:
        """Accuracy and mean cross-entropy, as fresh metrics."""
        return [CleanAccuracy(), MeanLoss()]

    def certified_metrics(self) -> list[Metric]:
        """None."""
        return []

    def rest(self, model: nn.Module) -> CertifiedEvidence | None:
        """None."""
        return None

    def judge(self, model: nn.Module, batch: StepBatch) -> BatchEvidence:
        """The logits of one batch.

        Args:
            model: Maps images in [0, 1] to logits.
            batch: This rank's share of the global batch.
        """
        return BatchEvidence(batch.y, batch.weight, clean_logits=model(batch.x))


@dataclass(frozen=True)
class AdversarialJudge:
    """Looks at each batch under up to three attacks, and finds the nearest misclassified points on the way.

    Images are certified in groups that are larger than batches, one set after the other: see `fresh`.

    Attributes:
        ball: The threat that is judged against.
        val_attack: Finds the images of `adv_acc`; None for none.
        first_order: W-FGSM, whose images are Q_delta, for the bounds; None for none.
        distances: Minimum-norm attack, for `worst_acc`; None for none.
        certificate: Gives radii that nothing flips within, for `certified_acc`; None for none.
        seed: Seeds the random starts.
    """

    ball: WassersteinBall
    val_attack: Attack | None
    first_order: WFGSM | None
    distances: MinimalDistance | None
    certificate: Certificate | None = None
    seed: int = 0
    _groups: CertifiedGroups | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """No images wait to be certified yet."""
        if self.certificate is not None:
            object.__setattr__(self, "_groups", CertifiedGroups(self.certificate, self.seed))

    def fresh(self) -> AdversarialJudge:
        """The same judge for another set, without what may be held of a set that was not judged to its end."""
        return replace(self)

    def metrics(self) -> list[Metric]:
        """New metrics, which sum the evidence of this judge over a set: one for each attack, and clean accuracy."""
        metrics: list[Metric] = [CleanAccuracy()]
        if self.val_attack is not None:
            metrics.append(AdversarialAccuracy(self.ball))
        if self.first_order is not None:
            metrics.append(FirstOrderBounds(self.ball))
        if self.distances is not None:
            metrics.append(WorstCaseAccuracy(self.ball))
        return metrics

    def certified_metrics(self) -> list[Metric]:
        """New metrics, which sum its certified evidence."""
        return [] if self.certificate is None else [CertifiedAccuracy(self.ball)]

    def with_upsilon(self, gradient_moment: Tensor) -> AdversarialJudge:
        """The same judge, whose Q_delta moves every batch as a part of one whole set.

        Args:
            gradient_moment: Moment of the set's ||grad J||_*, from `gradient_moment_of_set`, shape [3].
        """
        if self.first_order is None:
            return self
        first_order = copy.copy(self.first_order)
        first_order.scope = WholeSetScope(gradient_moment)
        return replace(self, first_order=first_order)

    def judge(self, model: nn.Module, batch: StepBatch) -> BatchEvidence:
        """One batch under all attacks.

        Args:
            model: Maps images in [0, 1] to logits.
            batch: This rank's share of the global batch.
        """
        with already_checked(batch.checked):
            first_order, clean_logits = None, None
            if self.first_order is not None:
                first_order, clean_logits = self._push_forward(self.first_order, model, batch)
            else:
                with attack_mode(model), torch.no_grad():
                    clean_logits = forward(model, batch.x.clone().float())
            attacked = self._attack(model, batch, clean_logits)
        certified = None if self._groups is None else self._groups.add(model, batch, clean_logits)
        return BatchEvidence(batch.y, batch.weight, clean_logits, first_order, attacked, certified)

    def rest(self, model: nn.Module) -> CertifiedEvidence | None:
        """The certified evidence on the images that are still held.

        Args:
            model: Maps images in [0, 1] to logits.
        """
        return None if self._groups is None else self._groups.rest(model)

    def _push_forward(self, attack: WFGSM, model: nn.Module, batch: StepBatch) -> tuple[FirstOrderEvidence, Tensor]:
        """The batch under Q_delta, and the logits of the clean images, which are found on the way."""
        q = self._run(attack, model, batch)
        with torch.no_grad():
            logits = forward(model, q.x_adv)
        losses = attack.loss(logits, batch.y)
        return FirstOrderEvidence(q.losses, q.dual_norms, logits, losses, q.distances), q.logits

    def _attack(self, model: nn.Module, batch: StepBatch, clean_logits: Tensor) -> AttackEvidence:
        """The batch under the minimum-norm attack, the validation attack, both or neither."""
        x_adv, adv_logits, spent = batch.x, None, None
        flips = torch.full((len(x_adv),), math.inf, dtype=torch.float64, device=x_adv.device)
        if self.distances is not None:
            found = self.distances(model, batch.x, batch.y, generator=batch_generator(self.seed, batch))
            x_adv, flips = found.x_adv, found.distances
        if self.val_attack is not None:
            adv = self._run(self.val_attack, model, batch)
            x_adv, adv_logits, spent = adv.x_adv, adv.adv_logits, adv.distances
        with torch.no_grad():
            adv_logits = forward(model, x_adv) if adv_logits is None else adv_logits
        if spent is not None:
            flips = torch.where(~correct(adv_logits, batch.y), torch.minimum(flips, spent), flips)
        flips = torch.where(correct(clean_logits, batch.y), flips, 0.0)
        return AttackEvidence(x_adv, adv_logits, spent, flips)

    def _run(self, attack: Attack, model: nn.Module, batch: StepBatch) -> AttackResult:
        generator = batch_generator(self.seed, batch)
        return attack(model, batch.x, batch.y, weight=batch.weight, reducer=default_reducer(), generator=generator)
