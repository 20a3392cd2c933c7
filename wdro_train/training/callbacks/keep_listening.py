"""Signals go on ending a run in order while Lightning fits."""

from __future__ import annotations

import lightning as L

from wdro_train.utils.interruption import listen_again


class KeepListening(L.Callback):
    """Lightning puts a handler of its own before ours: it asks all ranks for a broadcast that they may never join."""

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first call after Lightning has put its handler there."""
        listen_again()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The same without a sanity check."""
        listen_again()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The same for a test."""
        listen_again()
