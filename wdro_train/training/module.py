"""`RobustClassifier`: the LightningModule around any classifier of [0, 1] images."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from wdro_train.attacks.base import AttackResult
from wdro_train.attacks.network_check import check_logits, check_network
from wdro_train.data.padding import batch_weight
from wdro_train.metrics import CleanAccuracy, Mean
from wdro_train.objectives import Objective, ObjectiveResult, Standard
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import ce
from wdro_train.training.optimizer_state import carry_over
from wdro_train.training.resuming import Resumption
from wdro_train.utils.contract import (
    LabelRange,
    NonFiniteLogitsError,
    check_batch,
    check_images,
    check_labels,
    images_of,
    logits_of,
    unpack,
)
from wdro_train.utils.distributed import default_reducer
from wdro_train.utils.errors import UserError

Batch = Any  # what `wdro_train.utils.contract.unpack` takes
CONFIG_KEY = "wdro_train_config"
_SHOWN = ("clean_acc", "adv_acc", "worst_acc", "ratio", "ratio_upper", "ratio_lower")


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

    def metrics(self) -> list[Metric]:
        """What is measured on the evidence, as fresh metrics."""
        ...

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, batch_idx: int) -> AttackResult:
        """The Q_delta images of a training batch."""
        ...

    def judge(self, model: nn.Module, x: Tensor, y: Tensor, batch_idx: int) -> Evidence:
        """Evidence on a validation or test batch."""
        ...


class WeightAdversary(Protocol):
    """Moves the weights up the loss before its gradient is taken, and back afterwards."""

    def perturb(self, module: RobustClassifier, loss: Callable[[], Tensor]) -> None:
        """Perturb the weights."""
        ...


@runtime_checkable
class Continuable(Protocol):
    """A logger that can go on in the file of the run that is resumed."""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        ...

    def continue_at(self, epoch: int, *, same_measure: bool) -> None:
        """What is logged from now on begins with this epoch."""
        ...


class RobustClassifier(L.LightningModule):
    """Trains a classifier on an objective; with an adversary attached, on and against its images.

    Args:
        model: Maps images in [0, 1] to logits (normalisation is its first layer).
        objective: What is minimised; standard training by default.
        optimizer: Takes the parameters; Adam(1e-3) by default.
        scheduler: Takes the optimizer, steps once an epoch; one that also takes `total_steps` (OneCycleLR) is given
            the run's number of steps, unless it has one, and steps after each. None by default.
        config: Plain data (dicts, lists, numbers, strings) to keep in checkpoints: for `evaluate.py`, and to find out
            what still holds when training is resumed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: Objective | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective: Objective = objective if objective is not None else Standard()
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.config = config
        self.adversary: Adversary | None = None
        self.weight_adversary: WeightAdversary | None = None
        self.train_clean = CleanAccuracy()
        self.train_adv = CleanAccuracy()
        self.train_means = nn.ModuleDict()
        self.mean_loss = Mean()
        self._labels: LabelRange | None = None
        self._resumed: tuple[Resumption, dict[str, Any]] | None = None
        self._examined: torch.Size | None = None
        self.metrics = nn.ModuleDict({stage: _collection(stage, None) for stage in ("val", "test")})

    def attach(self, adversary: Adversary | None) -> None:
        """Train and judge against this adversary from now on; None detaches.

        Metrics follow: `val/adv_acc` and the bounds exist only with an adversary.
        """
        self.adversary = adversary
        for stage in ("val", "test"):
            self.metrics[stage] = _collection(stage, adversary).to(self.device)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, m] of images [B, C, H, W] in [0, 1]."""
        logits = logits_of(self.model(x.to(self.dtype)), len(x))
        if self._labels is not None:
            check_labels(self._labels, logits.shape[1])
        return logits

    def examine(self, x: Tensor, y: Tensor | None = None) -> None:
        """Look at what the network makes of a batch, unless it has been seen with such images.

        Args:
            x: Images, shape [B, C, H, W].
            y: Labels, shape [B]; None where there are none.

        Raises:
            UserError: The batch or what the network makes of it is not what `wdro_train.utils.contract` says.
        """
        if self._examined != x.shape[1:]:
            check_network(self, x, y)
            self._examined = x.shape[1:]

    def receive(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and int64 labels of a batch; with the first one the network is looked at too.

        Args:
            batch: (images, labels, ...) or a dictionary; see `wdro_train.utils.contract.unpack`.

        Raises:
            UserError: The batch or what the network makes of it is not what `wdro_train.utils.contract` says.
        """
        x, y, self._labels = check_batch(*unpack(batch))
        self.examine(x, y)
        return x, y

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Attack the batch if the objective asks for it, and evaluate the objective."""
        x, y = self.receive(batch)
        weight = batch_weight(self.trainer, len(x), batch_idx, x.device)
        reducer = default_reducer()
        x_adv, importance, log = x, None, {}
        if self.objective.needs_adversary and self.adversary is not None:
            try:
                attack = self.adversary.perturb(self, x, y, batch_idx)
            except NonFiniteLogitsError as error:
                raise self._diverged("nan", batch_idx) from error
            x_adv, importance = attack.x_adv, attack.importance
            # Means over ranks are logged: a rank's share of a count times the number of ranks.
            log = {
                "upsilon": attack.upsilon,
                "spent": self.adversary.ball.spent(attack.distances, weight, reducer),
                "zero_gradients": attack.zero_gradients * reducer.world_size,
                "nonfinite_gradients": attack.nonfinite_gradients * reducer.world_size,
            } | attack.terms
        evaluate = partial(self.objective, self, x, x_adv, y, importance=importance, reducer=reducer)
        if self.weight_adversary is not None:
            self.weight_adversary.perturb(self, lambda: evaluate().loss)
        result = evaluate()
        self._labels = None
        self._refuse_nonfinite(result.loss, batch_idx)
        self._log_training(result, y, weight, log)
        return result.loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Evidence] | None:
        """Judge a validation batch."""
        return self._judge("val", batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Evidence] | None:
        """Judge a test batch."""
        return self._judge("test", batch, batch_idx, dataloader_idx)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Logits of a batch, with labels or without, [B, m]."""
        x = check_images(images_of(batch))
        self._labels = None
        self.examine(x)
        return self(x)  # type: ignore[no-any-return]

    def on_validation_epoch_end(self) -> None:
        """Log the whole-set values."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the whole-set values."""
        self._log_metrics("test")

    def configure_optimizers(self) -> Any:
        """The optimizer, and the scheduler if there is one; in a resumed run with the checkpoint's buffers to come."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        make = self.make_optimizer or (lambda params: torch.optim.Adam(params, lr=1e-3))
        optimizer = make(parameters)
        scheduler, interval = self._schedule(optimizer)
        if self._resumed is not None:
            resumption, checkpoint = self._resumed
            self._resumed = None
            carry_over(checkpoint, make, optimizer, scheduler, self._position(resumption, interval))
        if scheduler is None:
            return optimizer
        timed = scheduler if interval == "epoch" else {"scheduler": scheduler, "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": timed}

    def _schedule(self, optimizer: Optimizer) -> tuple[LRScheduler | None, str]:
        """The scheduler, and after what it steps: `epoch`, or `step` if it knows the number of steps."""
        if self.make_scheduler is None:
            return None, "epoch"
        counted = inspect.signature(self.make_scheduler).parameters.get("total_steps")
        if counted is None:
            return self.make_scheduler(optimizer), "epoch"
        given = None if counted.default is inspect.Parameter.empty else counted.default
        if given is not None and self._trainer is None:
            return self.make_scheduler(optimizer), "step"  # outside a run there is no length to compare with
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise UserError("scheduler needs the length of the run; set trainer.max_epochs or trainer.max_steps")
        if given is not None and given < total:
            raise UserError(
                f"scheduler.total_steps={given} ends before the {int(total)} steps of the run; leave it out, and it is "
                "the run's"
            )
        try:
            return self.make_scheduler(optimizer, total_steps=int(total) if given is None else given), "step"
        except (ValueError, ZeroDivisionError) as error:
            raise UserError(
                f"a run of {int(total)} steps does not suit this scheduler ({error}); train longer or use "
                "scheduler=constant"
            ) from error

    def _position(self, resumption: Resumption, interval: str) -> int:
        """How often the schedule has stepped where the checkpoint was written, in a run like the present one."""
        if interval == "epoch":
            return resumption.epochs
        batches = self.trainer.num_training_batches
        if not resumption.whole_epochs or self.trainer.max_steps != -1 or math.isinf(batches):
            return resumption.steps
        return resumption.epochs * math.ceil(batches / self.trainer.accumulate_grad_batches)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration beside the weights, as plain data."""
        if self.config is not None:
            checkpoint[CONFIG_KEY] = self.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before training is resumed: let go of what does not hold under the present configuration, and say so.

        Raises:
            UserError: The checkpoint cannot go on under this configuration.
        """
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        path = self.trainer.ckpt_path or "the checkpoint"
        resumption = Resumption.of(checkpoint, checkpoint.get(CONFIG_KEY), self.config, path)
        resumption.refuse_impossible(self.trainer.max_epochs, self.trainer.max_steps)
        if sentence := resumption.sentence():
            rank_zero_warn(sentence)
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        resumption.forget(checkpoint, callbacks)
        for logger in self.trainer.loggers:
            if isinstance(logger, Continuable) and resumption.continues_in(logger.save_dir):
                logger.continue_at(resumption.epochs, same_measure=resumption.measures_the_same)
        self._resumed = resumption, checkpoint

    def _judge(self, stage: str, batch: Batch, batch_idx: int, dataloader_idx: int) -> dict[str, Evidence] | None:
        if dataloader_idx:
            raise UserError("several evaluation sets are not supported; pass a single dataloader")
        x, y = self.receive(batch)
        metrics = self.metrics[stage]
        assert isinstance(metrics, MetricCollection)
        if self.adversary is None:
            logits = self(x)
            check_logits(self, x, logits, self._labels)
            self._labels = None
            weight = batch_weight(self.trainer, len(x), batch_idx, x.device)
            metrics.update(clean_logits=logits, labels=y, weight=weight)
            self.mean_loss.update(ce(logits, y), weight)
            return None
        evidence = self.adversary.judge(self, x, y, batch_idx)
        check_logits(self, x, evidence.measures["clean_logits"], self._labels)
        self._labels = None
        metrics.update(**evidence.measures)
        return {"evidence": evidence}

    def _log_metrics(self, stage: str) -> None:
        metrics = self.metrics[stage]
        assert isinstance(metrics, MetricCollection)
        values = metrics.compute()
        metrics.reset()
        shown = {f"{stage}/{key}" for key in _SHOWN}
        self.log_dict({k: v for k, v in values.items() if k in shown}, prog_bar=True)
        self.log_dict({k: v for k, v in values.items() if k not in shown})
        if self.mean_loss.update_called:
            self.log(f"{stage}/loss", self.mean_loss.compute())
            self.mean_loss.reset()

    def _log_training(self, result: ObjectiveResult, y: Tensor, weight: Tensor, extra: dict[str, Tensor]) -> None:
        self.log("train/loss_step", result.loss.detach(), prog_bar=True, sync_dist=True)
        for key, value in ({"loss": result.loss} | extra | result.terms).items():
            if key not in self.train_means:
                self.train_means[key] = Mean().to(self.device)
            mean = self.train_means[key]
            assert isinstance(mean, Mean)
            mean.update(value, weight.sum())
        for metric, logits in ((self.train_clean, result.clean_logits), (self.train_adv, result.adv_logits)):
            if logits is not None:
                metric.update(logits, y, weight)

    def on_train_epoch_end(self) -> None:
        """Log means over the epoch, and the accuracy of the images that were trained on, as they then were.

        All ranks meet here. Nothing is left for Lightning to join when a value is read, since progress bars and
        loggers read on one rank only.
        """
        for key, mean in self.train_means.items():
            assert isinstance(mean, Mean)
            if mean.update_called:
                self.log(f"train/{key}", mean.compute())
                mean.reset()
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
            raise self._diverged(value, batch_idx)

    def _diverged(self, loss: float | str, batch_idx: int) -> UserError:
        """The sentence for a loss that is not a number, with the checkpoint to go on from."""
        saved = [one.best_model_path for one in self.trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
        last = next(filter(None, reversed(saved)), None)
        kept = f"the last good checkpoint is kept: resume it, ckpt_path={last},"
        return UserError(
            f"the training loss became {loss} in epoch {self.current_epoch}, batch {batch_idx}; "
            f"{'start again' if last is None else kept} with a smaller optimizer.lr or trainer.gradient_clip_val"
        )


def _collection(stage: str, adversary: Adversary | None) -> MetricCollection:
    """The metrics of a stage; the adversarial ones only when there is a threat to measure."""
    metrics: list[Any] = [CleanAccuracy(), *(adversary.metrics() if adversary is not None else [])]
    return MetricCollection(metrics, prefix=f"{stage}/", compute_groups=False)
