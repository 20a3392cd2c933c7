"""Radius warm-up: the training attack's budget grows over the first epochs."""

from __future__ import annotations

from dataclasses import replace

import lightning as L

from wdro_train.callbacks.adversary import DistributionalAdversary
from wdro_train.errors import UserError


class RadiusWarmup(L.Callback):
    """In epoch e of the first `epochs` the training attack has the radius (e + 1) / epochs delta.

    Judging is not warmed up.

    Args:
        epochs: Length of the warm-up, >= 1.
    """

    def __init__(self, epochs: int) -> None:
        if epochs < 1:
            raise UserError(f"epochs={epochs} is no warm-up; choose at least 1, or leave the callback out")
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set this epoch's radius."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        share = min(1.0, (trainer.current_epoch + 1) / self.epochs)
        for callback in callbacks:
            if isinstance(callback, DistributionalAdversary):
                callback.attack.ball = replace(callback.ball, delta=share * callback.ball.delta)
