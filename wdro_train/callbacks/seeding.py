"""Random numbers that do not depend on how often a run was interrupted."""

from __future__ import annotations

import lightning as L


class SeedEpoch(L.Callback):
    """Seeds Python, NumPy and torch at the start of every epoch from (seed, epoch, rank).

    Dropout and augmentation of epoch e are then the same whether the run got there in one go or was resumed.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed this epoch."""
        epoch_seed = self.seed + 10_007 * (trainer.current_epoch + 1) + trainer.global_rank
        L.seed_everything(epoch_seed % 2**32, verbose=False)
