"""A run that is asked to stop while Lightning fits ends in order, and says how to go on with it."""

from __future__ import annotations

import lightning as L

from wdro_train.utils.interruption import listen_again


class KeepListening(L.Callback):
    """Puts the program's handlers of SIGTERM and SIGINT back in their place.

    Lightning puts a handler of its own before them when it starts to fit. That one asks all ranks for a broadcast,
    which ranks that were not told to stop never join, so that the run would hang.
    """

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back when the sanity check starts: before it Lightning has set its own handlers."""
        listen_again()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back when training starts, which is the first call if there is no sanity check."""
        listen_again()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back when a test starts."""
        listen_again()
