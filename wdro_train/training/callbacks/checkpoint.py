"""Checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from wdro_train.training.resuming import set_aside


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` whose best epoch is the best one, also with several files and in resumed runs.

    With `save_top_k` > 1 (or -1) each of the best epochs has a file of its own, `best_epoch_3_step_120.ckpt`, and
    `best.ckpt` is the best of them.

    When a run is resumed in another folder, the file of the best epoch stays where it is; only files in this run's own
    folder are ever replaced. Where the best so far was measured otherwise, and so is not this run's, its file is given
    another name before this run writes one. Use one callback with `monitor` for the best epoch and one without for the
    last: Lightning's `save_last` skips epochs that are not among the best.

    While an accuracy that chooses is 0, as certified accuracies are at first, every epoch is as good, and the latest is
    kept, not the one that was trained least.

    Args:
        dirpath: The folder.
        filename: Without `.ckpt`.
        monitor: What chooses the best epochs; None keeps the last one.
        save_top_k: How many epochs to keep.
        **kwargs: Of `ModelCheckpoint`.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        *,
        save_top_k: int = 1,
        **kwargs: Any,
    ) -> None:
        self._best_name: str | None = None
        if monitor is not None and filename is not None and "{" not in filename and save_top_k not in (0, 1):
            self._best_name = filename
            filename += "_epoch_{epoch}_step_{step}"
            kwargs["auto_insert_metric_name"] = False
        super().__init__(dirpath, filename, monitor, save_top_k=save_top_k, **kwargs)
        self._restored = False
        self._best_epoch: int | None = None
        self._written: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning keeps, and the epoch of the best file, which tells it where it holds weights only."""
        return super().state_dict() | {"best_epoch": self._best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, if the best one so far is still there."""
        best = state_dict["best_model_path"]
        if self.monitor is None:
            if Path(best).is_file():
                super().load_state_dict(state_dict | {"dirpath": self.dirpath})
        elif best:
            reason = self._missing(best, state_dict)
            if reason is None:
                kept = {path: score for path, score in state_dict["best_k_models"].items() if Path(path).is_file()}
                super().load_state_dict(state_dict | {"dirpath": self.dirpath, "best_k_models": kept})
                self._restored, self._best_epoch = True, state_dict.get("best_epoch")
            else:
                rank_zero_warn(f"the best checkpoint so far, {best}, {reason}; the best epoch from now on is kept")

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether an epoch is to be kept.

        Args:
            trainer: Of the run.
            current: The value that chooses, of this epoch.
        """
        if super().check_monitor_top_k(trainer, current):
            return True
        nothing_yet = self.mode == "max" and self.save_top_k == 1 and self.best_model_score is not None
        return nothing_yet and current is not None and float(current) == float(self.best_model_score or 0.0) == 0.0

    def _missing(self, best: str, state_dict: dict[str, Any]) -> str | None:
        """Why a file is not the epoch that was the best one; None if it is."""
        if not Path(best).is_file():
            return "is gone"
        try:
            content = torch.load(best, map_location="cpu", weights_only=True)
            if "callbacks" not in content:  # written with `save_weights_only`, which leaves out the scores too
                same = content["epoch"] == state_dict.get("best_epoch")
                return None if same else "has been replaced by another epoch"
            score = content["callbacks"][self.state_key]["best_model_score"]
        except Exception:  # whatever is wrong with it, it is not the one
            return "cannot be read"
        if not torch.equal(torch.as_tensor(score), torch.as_tensor(state_dict["best_model_score"]).cpu()):
            return "has been replaced by another epoch"
        return None

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Write a file, and the best one under its own name too."""
        self._make_room(trainer, filepath)
        if filepath == self.best_model_path:
            self._best_epoch = trainer.current_epoch
        super()._save_checkpoint(trainer, filepath)
        if self._best_name is not None and filepath == self.best_model_path:
            best = str(Path(filepath).with_name(f"{self._best_name}{self.FILE_EXTENSION}"))
            self._make_room(trainer, best)
            trainer.save_checkpoint(best, self.save_weights_only)

    def _make_room(self, trainer: L.Trainer, filepath: str) -> None:
        """Before a resumed run replaces the best file of a measurement that is not its own."""
        foreign = trainer.ckpt_path is not None and self.monitor is not None and not self._restored
        if foreign and trainer.is_global_zero and filepath not in self._written:
            kept = set_aside(filepath, trainer.current_epoch)
            if kept is not None:
                rank_zero_warn(f"{filepath} was chosen by another measurement; it is {kept} now")
        self._written.add(filepath)
