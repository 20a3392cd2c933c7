"""The learning rate, logged once an epoch."""

from __future__ import annotations

import lightning as L


class LearningRate(L.Callback):
    """Logs `train/learning_rate`, that of the optimizer's first group of parameters at the end of each epoch.

    Lightning's own monitor names the key after the optimizer, so that runs with different ones have no curve in common,
    and refuses runs without a logger.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the rate of the epoch's last step; a schedule that steps once an epoch steps afterwards."""
        if trainer.optimizers:
            pl_module.log("train/learning_rate", float(trainer.optimizers[0].param_groups[0]["lr"]))
