"""Checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn


class RunCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint` that remembers the best epoch when a run is resumed in another folder.

    The file of that epoch stays where it is; only files in this run's own folder are ever replaced. Use one with
    `monitor` for the best epoch and one without for the last: Lightning's `save_last` skips epochs that are not
    among the best.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, if the best one so far is still there."""
        best = state_dict["best_model_path"]
        if Path(best).is_file():
            super().load_state_dict(state_dict | {"dirpath": self.dirpath})
        elif best and self.monitor is not None:
            rank_zero_warn(f"the best checkpoint so far, {best}, is gone; the best epoch from now on is kept")
