"""Stops trials of a search that are bound to lose, by the pruners of Optuna."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from wdro_train.training import run_output
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import write_json
from wdro_train.utils.optional_imports import optional

CURVE_FILE = "validation_curve.json"


class TrialPruning(L.Callback):
    """Ends a training whose validation values fall behind those that other trials of the search had at the same epoch.

    Hydra's sweeper keeps Optuna's trials to itself, and knows no pruned ones. So every job leaves its values, epoch by
    epoch, in a file of its folder; the files of the finished jobs become the trials of a study that exists in memory
    only, and Optuna's pruner is asked about the present one. A pruned job returns the value of its best epoch, as any
    other job does, and for the sweeper it is a finished trial: its search learns from a value that was measured, but of
    a shorter training.

    Jobs of any sweep can be pruned, also those that run side by side. Each job looks at those that have finished when
    its epoch ends.

    Args:
        folder: Of the search; all files below it count.
        run_dir: Of the job.
        monitor: The value that decides.
        mode: `max` or `min`.
        pruner: One of `optuna.pruners`; by default the median of the trials at the same epoch, after five trials.
    """

    def __init__(
        self, folder: str, run_dir: str, monitor: str = "val/worst_acc", mode: str = "max", pruner: Any = None
    ) -> None:
        if mode not in ("max", "min"):
            raise UserError(f"callbacks.pruning.mode={mode} is no direction; choose min or max")
        self._optuna = optional("optuna", "sweep")
        self.folder, self.run_dir = Path(folder), Path(run_dir)
        self.monitor, self.direction = monitor, "maximize" if mode == "max" else "minimize"
        self.pruner = self._optuna.pruners.MedianPruner() if pruner is None else pruner
        self.values: dict[int, float] = {}
        self.pruned = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask the pruner about this epoch, on the first rank, and end the training on all of them.

        Raises:
            UserError: The value is not measured.
        """
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            raise UserError(f"{self.monitor} decides about pruning but is not measured; choose another monitor")
        value = float(trainer.callback_metrics[self.monitor])
        self.values[trainer.current_epoch] = value
        prune = trainer.is_global_zero and self._is_behind()
        self.pruned = bool(trainer.strategy.broadcast(prune))
        if self.pruned:
            trainer.should_stop = True
            if trainer.is_global_zero:
                run_output.say(f"pruned after epoch {trainer.current_epoch + 1}: {self.monitor} {value:.4f} is behind")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the values for the jobs to come."""
        if trainer.is_global_zero:
            write_json(self.run_dir / CURVE_FILE, self._content())

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far."""
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.values = dict(state_dict["values"])

    def _is_behind(self) -> bool:
        """What the pruner says of this trial after its last epoch."""
        if not math.isfinite(self.values[max(self.values)]):
            return True
        optuna = self._optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            # Optuna says of the two calls that make a study of finished trials that their form may change.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._asked()

    def _asked(self) -> bool:
        """The same, of finite values."""
        optuna = self._optuna
        study = optuna.create_study(direction=self.direction, pruner=self.pruner)
        for curve in self._other_curves():
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.PRUNED if curve["pruned"] else optuna.trial.TrialState.COMPLETE,
                    value=curve["values"][-1][1],
                    intermediate_values={int(epoch): value for epoch, value in curve["values"]},
                )
            )
        trial = study.ask()
        for epoch, value in self.values.items():
            trial.report(value, epoch)
        return bool(trial.should_prune())

    def _other_curves(self) -> list[dict[str, Any]]:
        """Of the finished jobs, in an order that does not depend on the file system."""
        found = []
        for file in sorted(self.folder.rglob(CURVE_FILE)):
            if file.parent.resolve() != self.run_dir.resolve():
                curve = json.loads(file.read_text(encoding="utf-8"))
                finite = [(epoch, value) for epoch, value in curve["values"] if value is not None]
                if curve["monitor"] == self.monitor and finite:
                    found.append({**curve, "values": finite})
        return found

    def _content(self) -> dict[str, Any]:
        values = [[epoch, value] for epoch, value in self.values.items()]
        return {"monitor": self.monitor, "pruned": self.pruned, "values": values}
