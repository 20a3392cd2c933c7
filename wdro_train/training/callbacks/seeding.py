"""Random numbers that do not depend on how often a run was interrupted."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np


class SeedEpoch(L.Callback):
    """Seeds Python, NumPy and torch in every epoch from the run's seed, the epoch and the rank.

    Dropout and augmentation of an epoch are then the same whether the run got there in one go or was resumed.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed this epoch, for the loader."""
        self._seed(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the epoch again, for the network.

        A loader draws random numbers when its iterator is made. That is before the first epoch of a process starts, but
        after the start of all later ones, so that the network would otherwise find other numbers in a resumed run.
        """
        if batch_idx == 0:
            self._seed(trainer)

    def _seed(self, trainer: L.Trainer) -> None:
        sequence = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        L.seed_everything(int(sequence.generate_state(1)[0]), verbose=False)
