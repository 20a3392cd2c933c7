"""Warm-ups: a training objective, or the budget of the training attack, begins small and grows to its full strength."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import lightning as L

from wdro_train.objectives import WarmsUp
from wdro_train.training.callbacks.adversary import DistributionalAdversary
from wdro_train.utils.errors import UserError


class RadiusWarmup(L.Callback):
    """Lets the radius of the training attack, or of the objective, grow epoch by epoch to its full size.

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

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set this epoch's radius."""
        share = min(1.0, (trainer.current_epoch + 1) / self.epochs)
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, DistributionalAdversary):
                callback.attack.ball = replace(callback.ball, delta=share * callback.ball.delta)
        _warm_up_objective(pl_module, share)


class GradualWarmup(L.Callback):
    """Lets an objective grow to its full strength step by step, linearly over the first part of the run.

    After a share t of the optimizer steps of the run the strength is t / part, and 1 from t = part on. What it is the
    strength of is the objective's matter: of certified training, the radii and the weight of the bound. The training
    attack, which has no part in certified training, is left alone.

    Args:
        part: Length of the warm-up as a share of the run, in (0, 1]. Half the run is what theory, section 11, was
            measured with.
    """

    def __init__(self, part: float = 0.5) -> None:
        if not 0 < part <= 1:
            raise UserError(f"part={part} is no share of the run; choose more than 0 and at most 1, or leave it out")
        self.part = float(part)
        self._steps: float | None = None
        self._begun_with: float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse an objective that has only one strength.

        Raises:
            UserError: It is none that `WarmsUp`.
        """
        objective = getattr(pl_module, "objective", None)
        if stage == "fit" and not isinstance(objective, WarmsUp):
            raise UserError(
                f"objective {type(objective).__name__} has no strength that a gradual warm-up could raise; set "
                "callbacks.warmup=null, or choose RadiusWarmup to let the radius of the training attack grow"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out how long the run is; one that is resumed keeps to the length it began with.

        Raises:
            UserError: Nobody knows.
        """
        total = trainer.estimated_stepping_batches
        if not 0 < total < math.inf:  # -1 where an epoch has no known length
            raise UserError(
                "a gradual warm-up needs the length of the run; set trainer.max_steps, or trainer.max_epochs with data "
                "of known length"
            )
        self._steps = self._begun_with or self.part * total

    def state_dict(self) -> dict[str, Any]:
        """How long the warm-up is, so that a longer run does not begin it again; empty before training."""
        return {} if self._steps is None else {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep to the length that the run began with.

        Raises:
            UserError: It is none.
        """
        if not state_dict:
            return
        steps = state_dict.get("steps")
        if isinstance(steps, bool) or not (isinstance(steps, int | float) and 0 < steps < math.inf):
            raise UserError(f"the checkpoint's warm-up lasts {steps!r} steps; resume a file that train.py wrote")
        self._begun_with = float(steps)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set this step's strength."""
        assert self._steps is not None
        _warm_up_objective(pl_module, min(1.0, trainer.global_step / self._steps))


def _warm_up_objective(module: L.LightningModule, share: float) -> None:
    objective = getattr(module, "objective", None)
    if isinstance(objective, WarmsUp):
        objective.warm_up(share)
