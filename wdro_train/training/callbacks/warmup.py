"""Radius warm-up: the training attack's budget grows over the first epochs."""

from __future__ import annotations

from dataclasses import replace

import lightning as L

from wdro_train.objectives import FirstOrderPenalty
from wdro_train.theory.ball import WassersteinBall
from wdro_train.training.callbacks.adversary import DistributionalAdversary
from wdro_train.utils.errors import UserError


class RadiusWarmup(L.Callback):
    """Lets the radius of the training attack, or of the first-order penalty, grow linearly to its full size.

    In epoch e = 0, 1, ... of the first `epochs` it is (e + 1) / epochs times delta. Networks that do not begin to learn
    against the full radius do so against a small one. Judging is not warmed up, nor is a fixed reach
    (`attack=margin`), which does not follow from the radius.

    Args:
        epochs: Length of the warm-up, >= 1.
    """

    def __init__(self, epochs: int = 5) -> None:
        if epochs < 1:
            raise UserError(f"epochs={epochs} is no warm-up; choose at least 1, or leave the callback out")
        self.epochs = epochs
        self._penalty: tuple[FirstOrderPenalty, WassersteinBall] | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set this epoch's radius."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        share = min(1.0, (trainer.current_epoch + 1) / self.epochs)
        for callback in callbacks:
            if isinstance(callback, DistributionalAdversary):
                callback.attack.ball = replace(callback.ball, delta=share * callback.ball.delta)
        objective = getattr(pl_module, "objective", None)
        if isinstance(objective, FirstOrderPenalty):
            if self._penalty is None or self._penalty[0] is not objective:
                self._penalty = objective, objective.ball
            full = self._penalty[1]
            objective.ball = replace(full, delta=share * full.delta)
