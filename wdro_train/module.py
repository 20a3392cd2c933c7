"""`RobustClassifier`: the LightningModule around any classifier of [0, 1] images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection

from wdro_train.attacks.base import AttackResult, check_batch, check_labels
from wdro_train.distributed import default_reducer
from wdro_train.errors import UserError
from wdro_train.losses import ce
from wdro_train.metrics import AdversarialAccuracy, CleanAccuracy, FirstOrderBounds
from wdro_train.objectives import Objective, Standard
from wdro_train.threat import WassersteinBall

Batch = tuple[Tensor, Tensor]
CONFIG_KEY = "wdro_train_config"


@dataclass(frozen=True)
class Evidence:
    """What one evaluation batch looked like to the adversary.

    Attributes:
        measures: Arguments of the metrics' `update`, by name.
        x_adv: The validation attack's images, shape [B, C, H, W].
        adv_logits: Their logits, shape [B, m].
    """

    measures: dict[str, Tensor]
    x_adv: Tensor
    adv_logits: Tensor


class Adversary(Protocol):
    """What the module asks of an attached adversary."""

    @property
    def ball(self) -> WassersteinBall:
        """The threat that is trained and judged against."""
        ...

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, batch_idx: int) -> AttackResult:
        """The Q_delta images of a training batch."""
        ...

    def judge(self, model: nn.Module, x: Tensor, y: Tensor, batch_idx: int) -> Evidence:
        """Evidence on a validation or test batch."""
        ...

    def weight(self, size: int, batch_idx: int, device: torch.device) -> Tensor:
        """1 for real images of the current batch, 0 for padding, shape [size]."""
        ...


class RobustClassifier(L.LightningModule):
    """Trains a classifier on an objective; with an adversary attached, on and against its images.

    Args:
        model: Maps images in [0, 1] to logits (normalisation is its first layer).
        objective: What is minimised; standard training by default.
        optimizer: Takes the parameters; Adam(1e-3) by default.
        scheduler: Takes the optimizer, steps once an epoch; none by default.
        config: Plain data (dicts, lists, numbers, strings) to keep in checkpoints, for `evaluate.py`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: Objective | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective: Objective = objective if objective is not None else Standard()
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.config = config
        self.adversary: Adversary | None = None
        self.train_clean = CleanAccuracy()
        self.train_adv = CleanAccuracy()
        self.metrics = nn.ModuleDict({stage: _collection(stage, None) for stage in ("val", "test")})

    def attach(self, adversary: Adversary | None) -> None:
        """Train and judge against this adversary from now on; None detaches.

        Metrics follow: `val/adv_acc` and the bounds exist only with an adversary.
        """
        self.adversary = adversary
        ball = None if adversary is None else adversary.ball
        for stage in ("val", "test"):
            self.metrics[stage] = _collection(stage, ball).to(self.device)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, m] of images [B, C, H, W] in [0, 1]."""
        logits: Tensor = self.model(x.to(self.dtype))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Attack the batch if the objective asks for it, and evaluate the objective."""
        x, y = batch
        x_adv, log = x, {}
        if self.objective.needs_adversary and self.adversary is not None:
            attack = self.adversary.perturb(self, x, y, batch_idx)
            x_adv = attack.x_adv
            log = {
                "upsilon": attack.upsilon,
                "spent": self.adversary.ball.spent(attack.distances),
                "zero_gradients": attack.zero_gradients.float(),
                "nonfinite_gradients": attack.nonfinite_gradients.float(),
            }
        else:
            labels = check_batch(x, y)
        result = self.objective(self, x, x_adv, y, reducer=default_reducer())
        logits = result.adv_logits if result.clean_logits is None else result.clean_logits
        if x_adv is x and logits is not None:
            check_labels(labels, logits.shape[1])
        self._refuse_nonfinite(result.loss, batch_idx)
        self._log_training(result.loss.detach(), result.clean_logits, result.adv_logits, y, log | result.terms)
        return result.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Evidence] | None:
        """Judge a validation batch."""
        return self._judge("val", batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Evidence] | None:
        """Judge a test batch."""
        return self._judge("test", batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the whole-set values."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the whole-set values."""
        self._log_metrics("test")

    def configure_optimizers(self) -> Any:
        """The optimizer, and the scheduler if there is one."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        make = self.make_optimizer or (lambda params: torch.optim.Adam(params, lr=1e-3))
        optimizer = make(parameters)
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration beside the weights, as plain data."""
        if self.config is not None:
            checkpoint[CONFIG_KEY] = self.config

    def _judge(self, stage: str, batch: Batch, batch_idx: int) -> dict[str, Evidence] | None:
        x, y = batch
        metrics = self.metrics[stage]
        assert isinstance(metrics, MetricCollection)
        if self.adversary is None:
            labels = check_batch(x, y)
            logits = self(x)
            check_labels(labels, logits.shape[1])
            metrics.update(clean_logits=logits, labels=y, weight=torch.ones_like(y))
            self.log(f"{stage}/loss", ce(logits, y).mean(), batch_size=len(x), sync_dist=True)
            return None
        evidence = self.adversary.judge(self, x, y, batch_idx)
        metrics.update(**evidence.measures)
        return {"evidence": evidence}

    def _log_metrics(self, stage: str) -> None:
        metrics = self.metrics[stage]
        assert isinstance(metrics, MetricCollection)
        values = metrics.compute()
        metrics.reset()
        shown = {f"{stage}/{key}" for key in ("clean_acc", "adv_acc", "ratio", "ratio_upper", "ratio_lower")}
        self.log_dict({k: v for k, v in values.items() if k in shown}, prog_bar=True)
        self.log_dict({k: v for k, v in values.items() if k not in shown})

    def _log_training(
        self,
        loss: Tensor,
        clean_logits: Tensor | None,
        adv_logits: Tensor | None,
        y: Tensor,
        extra: dict[str, Tensor],
    ) -> None:
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True, batch_size=len(y))
        terms = {f"train/{key}": value.float() for key, value in extra.items()}
        self.log_dict(terms, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(y))
        for metric, logits in ((self.train_clean, clean_logits), (self.train_adv, adv_logits)):
            if logits is not None:
                metric.update(logits, y, torch.ones_like(y))

    def on_train_epoch_end(self) -> None:
        """Log the accuracy of the images that were trained on, as they were when they were trained on."""
        for name, metric in (("clean_acc", self.train_clean), ("adv_acc", self.train_adv)):
            if metric.update_called:
                self.log(f"train/{name}", metric.compute()["clean_acc"])
                metric.reset()

    def _refuse_nonfinite(self, loss: Tensor, batch_idx: int) -> None:
        """Stop before a NaN reaches the weights. One scalar to the host a step.

        Raises:
            UserError: Names epoch and batch.
        """
        value = loss.item()
        if value - value != 0:
            raise UserError(
                f"the training loss became {value} in epoch {self.current_epoch}, batch {batch_idx}; "
                "the last good checkpoint is kept: resume it with a smaller optimizer.lr or trainer.gradient_clip_val"
            )


def _collection(stage: str, ball: WassersteinBall | None) -> MetricCollection:
    """The metrics of a stage; the adversarial ones only when there is a threat to measure."""
    metrics: list[Any] = [CleanAccuracy()]
    if ball is not None:
        metrics += [AdversarialAccuracy(ball), FirstOrderBounds(ball)]
    return MetricCollection(metrics, prefix=f"{stage}/", compute_groups=False)
