"""What a finished training has reached: validation values of its best epoch, and the test of that epoch's network."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from rich.console import Console

from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.training.callbacks import ValidationHistory
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.training.checkpoint_io import ReplacingCheckpointIO, check_own
from wdro_train.utils import tables
from wdro_train.utils.files import write_json


@dataclass(frozen=True)
class TrainingSummary:
    """The content of `metrics.json`.

    Attributes:
        command: As it was typed.
        seed: Of the run.
        threat: p, norm and radius that were trained and judged against.
        epoch: The best epoch, from 0.
        epochs: Epochs that were trained.
        checkpoint: Path of the best epoch's checkpoint; None if none was written.
        monitor: Key of the value that chose the best epoch; None if nothing chose.
        val: Validation values of the best epoch, without `val/`.
        test: Test values of its network, without `test/`; None if it was not tested.
        wandb_offline: Folders of runs that W&B has not been sent yet.
    """

    command: str
    seed: int
    threat: Mapping[str, Any]
    epoch: int
    epochs: int
    checkpoint: str | None
    monitor: str | None
    val: Mapping[str, float]
    test: Mapping[str, float] | None
    wandb_offline: list[str]

    @property
    def score(self) -> float | None:
        """The value that chose the best epoch, for sweepers that optimise it; None if there is none."""
        return self.val.get(str(self.monitor).removeprefix("val/"))

    @property
    def stages(self) -> dict[str, Mapping[str, float]]:
        """The values by the name of their set."""
        return {"validation": self.val} | ({} if self.test is None else {"test": self.test})

    def content(self) -> dict[str, Any]:
        """The fields as they stand in the file: a run that was not tested has no entry `test`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: value for key, value in fields.items() if not (key == "test" and value is None)}


def conclude(
    cfg: DictConfig, trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule
) -> TrainingSummary:
    """The best epoch's validation values, and the test of its checkpoint if the configuration asks for it.

    Args:
        cfg: Of the run.
        trainer: Has fitted.
        module: What it fitted; holds the best epoch's weights afterwards.
        data: Its images.

    Raises:
        UserError: Another run has replaced the best checkpoint.
    """
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    chosen = next((c for c in callbacks if isinstance(c, ModelCheckpoint)), None)
    best = chosen.best_model_path if chosen is not None else ""
    checkpoint = _own_checkpoint(trainer, best) if best else None
    trained = trainer.current_epoch
    epoch = checkpoint["epoch"] if checkpoint is not None else trained - 1
    history = next((c.epochs for c in callbacks if isinstance(c, ValidationHistory)), {})
    values = history.get(epoch)
    if values is None:  # nobody wrote down the past: the present values are those of the last epoch
        values = _values(trainer, "val/") if epoch == trained - 1 else {}
    tested = None
    if cfg.test:
        if checkpoint is not None:
            # Not by the trainer, whose weight averaging would restore the weights that it averages.
            module.load_state_dict(checkpoint["state_dict"])
        trainer.test(module, datamodule=data, verbose=False)
        tested = _values(trainer, "test/")
    return TrainingSummary(
        command=" ".join(sys.argv),
        seed=cfg.seed,
        threat={key: cfg.attack.get(key) for key in ("p", "norm", "delta")},
        epoch=epoch,
        epochs=trained,
        checkpoint=best or None,
        monitor=chosen.monitor if chosen is not None else None,
        val=values,
        test=tested,
        wandb_offline=[],
    )


def present(summary: TrainingSummary, folder: Path) -> None:
    """Write `metrics.json` (undefined values as null, infinity as "inf") and print the table.

    Args:
        summary: Of the run.
        folder: Of the run.
    """
    write_json(folder / METRICS_FILE, summary.content(), indent=2)
    threat, stages = summary.threat, summary.stages
    tables.show(
        f"W_{threat['p']} ball, radius {threat['delta']}, l_{threat['norm']} norm; best epoch {summary.epoch}",
        ["metric", *stages],
        tables.metric_rows(*stages.values()),
    )
    console = Console()
    console.print(f"checkpoint  {summary.checkpoint}", soft_wrap=True)
    console.print(f"run folder  {folder}", soft_wrap=True)
    for run in summary.wandb_offline:
        console.print(f"dashboard   wandb sync {run}", soft_wrap=True)
    if any(math.isnan(value) for values in stages.values() for value in values.values()):
        console.print("nan: undefined on this set; the warning above names the cause")


def _own_checkpoint(trainer: L.Trainer, path: str) -> dict[str, Any]:
    """A checkpoint of this run, or of the run that it continues; ranks other than the first have no names of runs."""
    content = read_checkpoint(path)
    if isinstance(writer := trainer.strategy.checkpoint_io, ReplacingCheckpointIO):
        check_own(content, trainer.strategy.broadcast(writer.lineage), path)
    return content


def _values(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """What was logged under a prefix, without it."""
    metrics = trainer.callback_metrics.items()
    return {key.removeprefix(prefix): float(value) for key, value in metrics if key.startswith(prefix)}
