"""The learning rate, logged once an epoch."""

from __future__ import annotations

from typing import Any

import lightning as L


class LearningRate(L.Callback):
    """Logs `train/learning_rate`, that of the optimizer's first group of parameters in the last step of each epoch.

    Lightning's own monitor names the key after the optimizer, so that runs with different ones have no curve in common,
    and refuses runs without a logger.
    """

    def __init__(self) -> None:
        self._rate: float | None = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        """Note the rate of the step that follows: after an epoch's last one Lightning has set that of the next."""
        if trainer.optimizers:
            self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the rate of the epoch's last step."""
        if self._rate is not None:
            pl_module.log("train/learning_rate", self._rate)
