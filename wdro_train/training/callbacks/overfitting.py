"""A warning when robustness turns into gradient masking (catastrophic overfitting)."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from wdro_train.utils.contract import unpack


class OverfittingWarning(L.Callback):
    """Warns when the accuracy under one step of attack rises while that under many steps falls.

    Both are compared with the epoch of the best multi-step accuracy so far. A network that withstands W-FGSM ever more
    often but loses to W-PGD has learnt to hide its gradients: catastrophic overfitting (Wong, Rice, Kolter 2020, "Fast
    is better than free").

    Args:
        tolerance: How far the multi-step accuracy may fall without a warning: 0.02 is 2 points. With n validation
            images it may always fall by two standard errors of an accuracy near one half, 1 / sqrt(n).
        one_step: Key of the one-step accuracy.
        multi_step: Key of the multi-step accuracy.
    """

    def __init__(
        self, tolerance: float = 0.02, one_step: str = "val/fgsm_acc", multi_step: str = "val/adv_acc"
    ) -> None:
        self.tolerance = tolerance
        self.one_step = one_step
        self.multi_step = multi_step
        self._images = 0
        self._best = -math.inf
        self._one_step_at_best = math.inf

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count the images."""
        self._images = 0

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the images of a batch."""
        self._images += len(unpack(batch)[1]) * trainer.world_size

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare this epoch with the best one."""
        if trainer.sanity_checking or not {self.one_step, self.multi_step} <= trainer.callback_metrics.keys():
            return
        one = float(trainer.callback_metrics[self.one_step])
        many = float(trainer.callback_metrics[self.multi_step])
        epoch, noise = trainer.current_epoch + 1, 1 / math.sqrt(self._images) if self._images else 0.0
        if many > self._best:
            self._best, self._one_step_at_best = many, one
        elif many < self._best - max(self.tolerance, noise) and one > self._one_step_at_best:
            rank_zero_warn(
                f"epoch {epoch}: {self.one_step} rose from {self._one_step_at_best:.3f} to {one:.3f} "
                f"while {self.multi_step} fell from {self._best:.3f} to {many:.3f}; the network is hiding its "
                "gradients (catastrophic overfitting): use attack.random_start=true and more attack.steps"
            )

    def state_dict(self) -> dict[str, float]:
        """The best epoch so far."""
        return {"best": self._best, "one_step_at_best": self._one_step_at_best}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Continue from a checkpoint."""
        self._best, self._one_step_at_best = state_dict["best"], state_dict["one_step_at_best"]
