"""`AdversarialModule`: what a LightningModule needs to be attacked and judged, whatever its training step does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import lightning as L
from torch import Tensor, nn

from wdro_train.attacks.network_check import check_logits
from wdro_train.training.adversary import Attacker, BatchEvidence, CleanJudge, Judge
from wdro_train.training.batches import BatchInspector, StepBatch, is_last_batch
from wdro_train.training.divergence import diverged
from wdro_train.training.epoch_metrics import JudgedMetrics
from wdro_train.utils.contract import NonFiniteLogitsError, images_of
from wdro_train.utils.errors import UserError


@dataclass(frozen=True)
class AttackedBatch:
    """A training batch and what the adversary has made of it.

    Attributes:
        batch: Images that keep the contract, labels, and which of them count.
        x_adv: The images to train on, shape [B, C, H, W]; without an adversary the clean ones.
        importance: Weight of each image in the training loss, shape [B]; None for equal ones.
        terms: What is worth logging about the attack, as scalars.
    """

    batch: StepBatch
    x_adv: Tensor
    importance: Tensor | None
    terms: dict[str, Tensor]

    @property
    def x(self) -> Tensor:
        """Clean images in [0, 1], shape [B, C, H, W]."""
        return self.batch.x

    @property
    def y(self) -> Tensor:
        """Labels, int64, shape [B]."""
        return self.batch.y


class AdversarialModule(L.LightningModule):
    """A LightningModule that `DistributionalAdversary` can attack and judge; losses, optimizers and logging are yours.

    Inherit from it in place of `lightning.LightningModule`, or before another LightningModule
    (`class Mine(AdversarialModule, Theirs)`). Write `forward` (images in [0, 1] to logits), `training_step` and
    `configure_optimizers`; in the training step `attacked` gives the adversary's images. Validation, test and
    prediction are here: they log what the adversary's judge finds out (`val/clean_acc`, `val/adv_acc` and the others).
    A certificate reads the network operation by operation, from a property `trained_network` that you add.

    Attributes:
        attacker: Finds the images to train on; None without an adversary.
        judge: Looks at validation and test batches.
        inspector: Checks every batch once, and the network with the first one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inspector = BatchInspector()
        self.attach(None, CleanJudge())

    def attach(self, attacker: Attacker | None, judge: Judge) -> None:
        """Train on the attacker's images and listen to this judge from now on; its metrics are logged."""
        self.attacker, self.judge = attacker, judge
        self.judged = nn.ModuleDict({stage: JudgedMetrics(stage, judge).to(self.device) for stage in ("val", "test")})

    def attacked(self, batch: Any, batch_idx: int) -> AttackedBatch:
        """A training batch under attack, jointly with the other ranks; every rank has to ask for it.

        Args:
            batch: (images, labels, ...) or a dictionary; see `wdro_train.utils.contract.unpack`.
            batch_idx: The batch's number in the epoch.

        Raises:
            UserError: The batch, or what the network makes of it, is not what `wdro_train.utils.contract` says, or the
                training has diverged.
        """
        return self.attack_received(self.inspector.receive(self, batch, batch_idx, self.trainer))

    def attack_received(self, batch: StepBatch) -> AttackedBatch:
        """The same for a batch that `inspector` has received."""
        if self.attacker is None:
            return AttackedBatch(batch, batch.x, None, {})
        try:
            found = self.attacker.perturb(self, batch)
        except NonFiniteLogitsError as error:
            raise diverged(math.nan, self.trainer, batch.index) from error
        return AttackedBatch(batch, found.x_adv, found.importance, self.attacker.terms(found, batch))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, BatchEvidence]:
        """Judge a validation batch."""
        return self._evaluate("val", batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, BatchEvidence]:
        """Judge a test batch."""
        return self._evaluate("test", batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits of a batch, with labels or without, [B, m]."""
        return self(self.inspector.receive_images(self, images_of(batch)))  # type: ignore[no-any-return]

    def on_validation_epoch_end(self) -> None:
        """Log the values of the whole set."""
        self._log_judged("val")

    def on_test_epoch_end(self) -> None:
        """Log the values of the whole set."""
        self._log_judged("test")

    def _evaluate(self, stage: str, batch: Any, batch_idx: int, dataloader_idx: int) -> dict[str, BatchEvidence]:
        if dataloader_idx:
            raise UserError("several evaluation sets are not supported; pass a single dataloader")
        here = self.inspector.receive(self, batch, batch_idx, self.trainer)
        evidence = self.judge.judge(self, here)
        check_logits(self, here.x, evidence.clean_logits, here.checked.labels)
        metrics = self._judged_metrics(stage)
        metrics.update(evidence)
        if is_last_batch(self.trainer):  # a callback may exchange the weights before the epoch's end, as averaging does
            metrics.certify(self.judge.rest(self))
        return {"evidence": evidence}

    def _log_judged(self, stage: str) -> None:
        metrics = self._judged_metrics(stage)
        on_the_bar, others = metrics.take()
        self.log_dict(on_the_bar, prog_bar=True)
        self.log_dict(others)

    def _judged_metrics(self, stage: str) -> JudgedMetrics:
        metrics = self.judged[stage]
        assert isinstance(metrics, JudgedMetrics)
        return metrics
