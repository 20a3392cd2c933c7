"""What a finished training has reached: validation values of its best epoch, and the test of that epoch's network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.config.typed_command import typed_command
from wdro_train.data import ImageDataModule
from wdro_train.training import run_output
from wdro_train.training.callbacks import DistributionalAdversary, ValidationHistory
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.training.checkpoint_io import ReplacingCheckpointIO, check_own
from wdro_train.utils import tables
from wdro_train.utils.files import write_json


@dataclass(frozen=True)
class TrainingSummary:
    """The content of `metrics.json`.

    Attributes:
        command: As it was typed; in a sweep with the job behind it.
        seed: Of the run.
        threat: p, norm and radius that were trained and judged against.
        epoch: The best epoch, from 0.
        epochs: Epochs that were trained.
        checkpoint: Path of the best epoch's checkpoint; None if none was written.
        monitor: Key of the value that chose the best epoch; None if nothing chose.
        val: Validation values of the best epoch, without `val/`.
        test: Test values of its network, without `test/`; None if it was not tested.
        wandb_offline: Folders of runs that W&B has not been sent yet.
        effort: What the worst case of the test rests on, in words; None where it was not looked for.
        images: Number of images of `val` and `test`, where all of the set were judged.
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
    effort: str | None = None
    images: Mapping[str, int] = field(default_factory=dict)

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
        return {key: value for key, value in fields.items() if not (key in ("test", "effort") and value is None)}


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
        command=typed_command(),
        seed=cfg.seed,
        threat={key: cfg.attack.get(key) for key in ("p", "norm", "delta")},
        epoch=epoch,
        epochs=trained,
        checkpoint=best or None,
        monitor=chosen.monitor if chosen is not None else None,
        val=values,
        test=tested,
        wandb_offline=[],
        effort=_effort(callbacks, tested),
        images=_images(trainer, data),
    )


def present(summary: TrainingSummary, folder: Path, *, verbose: bool = False) -> None:
    """Write `metrics.json` (undefined values as null, infinity as "inf") and print the table.

    Args:
        summary: Of the run.
        folder: Of the run.
        verbose: Print all values; else those that people publish.
    """
    write_json(folder / METRICS_FILE, summary.content(), indent=2)
    threat, stages = summary.threat, summary.stages
    keys = _published(stages.values())
    if verbose:
        keys += [key for values in stages.values() for key in values if key not in keys]
    rows = [[key, *(tables.logged(key, values.get(key)) for values in stages.values())] for key in dict.fromkeys(keys)]
    run_output.say(
        f"W_{threat['p']} ball, radius {threat['delta']}, l_{threat['norm']} norm; "
        f"best epoch {summary.epoch + 1} of {summary.epochs}",
        tables.table(["metric", *stages], rows),
    )
    if summary.effort is not None:
        run_output.say(summary.effort)
    run_output.say(f"checkpoint  {summary.checkpoint}", f"run folder  {folder}")
    run_output.say(*(f"dashboard   wandb sync {run}" for run in summary.wandb_offline))
    if any(math.isnan(value) for values in stages.values() for value in values.values()):
        run_output.say("nan: undefined on this set; the warning above names the cause")


def _published(stages: Iterable[Mapping[str, float]]) -> list[str]:
    """The keys of the values that people publish: accuracies, and the ratio that goes with the lowest of them."""
    found = {key for values in stages for key in values}
    ratio = "worst_ratio" if "worst_ratio" in found else "ratio"
    return [key for key in ("clean_acc", "adv_acc", "worst_acc", ratio, "certified_acc") if key in found]


def _effort(callbacks: Iterable[L.Callback], tested: Mapping[str, float] | None) -> str | None:
    """What `worst_acc` of the test is, in one line."""
    for callback in callbacks:
        if isinstance(callback, DistributionalAdversary) and tested is not None and "worst_acc" in tested:
            return callback.worst_case_of_the_test
    return None


def _images(trainer: L.Trainer, data: L.LightningDataModule) -> dict[str, int]:
    """Number of images of the sets that were judged as a whole."""
    if not isinstance(data, ImageDataModule):
        return {}
    limits = {"val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    # Lightning's 1.0 is the whole set, and its 1 is one batch.
    whole = [name for name, limit in limits.items() if isinstance(limit, float) and limit == 1]
    return {name: len(data.arrays(name).labels) for name in whole}


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
