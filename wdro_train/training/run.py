"""One training run, from configuration to table."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from wdro_train.config import slurm
from wdro_train.config.build import build_data, plain
from wdro_train.config.loggers import closing_wandb, offline_runs, quiet_offline_wandb
from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.data import ImageDataModule, content_digest
from wdro_train.training import cost
from wdro_train.training.build import build_callbacks, build_module, build_trainer, check_adversary
from wdro_train.training.callbacks import KeepListening, ValidationHistory
from wdro_train.training.checkpoint import check_weights, read_checkpoint
from wdro_train.training.checkpoint_io import ReplacingCheckpointIO, check_own
from wdro_train.training.finetuning import start_from
from wdro_train.training.module import CONFIG_KEY, RobustClassifier
from wdro_train.training.resuming import DATA_DIGEST, Kind, Resumption
from wdro_train.utils import tables
from wdro_train.utils.files import write_json

Report = dict[str, Any]
_LOOKED_AT = 16  # images


def train(cfg: DictConfig) -> float | None:
    """Fit, then judge the best checkpoint on the test set; writes `metrics.json` beside the checkpoints.

    Args:
        cfg: The composed configuration of `conf/train.yaml`.

    Returns:
        What chose the best epoch (`val/adv_acc`, `val/worst_acc`), for sweepers that optimise it.
    """
    _quiet(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    module = build_module(cfg)
    ckpt_path = slurm.interrupted_checkpoint(cfg.run_dir) or cfg.ckpt_path
    past = None if ckpt_path is None else _past(cfg, module, ckpt_path)
    start_from(module, **cfg.finetune)
    data.prepare_data()
    data.setup()
    _examine(module, data)
    assert module.config is not None
    module.config[DATA_DIGEST] = content_digest(data.arrays("val"))  # the same name may hold other images tomorrow
    if cfg.dry_run:
        print(OmegaConf.to_yaml(cfg, resolve=True))
        callbacks = build_callbacks(cfg)
        check_adversary(callbacks, module)
        cost.show(cost.estimate(module, data, callbacks))
        return None
    with closing_wandb():
        trainer = build_trainer(cfg)
        check_adversary(trainer.callbacks, module)  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            _introduce(cfg, data, module, past)
        slurm.requeue_on_signal()
        trainer.callbacks.append(KeepListening())  # type: ignore[attr-defined]
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        report = _conclude(cfg, trainer, module, data)
        if trainer.is_global_zero:
            report["wandb_offline"] = offline_runs(trainer.loggers)
    if trainer.is_global_zero:
        _present(cfg, report)
    result: float | None = report["val"].get(str(report["monitor"]).removeprefix("val/"))
    return result


def _quiet(cfg: DictConfig) -> None:
    """Silence advice that does not apply here."""
    quiet_offline_wandb(cfg.logger)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Padding has weight 0 in every metric, and logged values are already joined over ranks.
    warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders")
    warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist=True")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "The number of training batches")
    if cfg.finetune.freeze:
        warnings.filterwarnings("ignore", "Found .* in eval mode at the start of training")
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")


def _past(cfg: DictConfig, module: RobustClassifier, ckpt_path: str) -> Resumption:
    """The checkpoint to go on from, once it is clear that this is possible.

    Raises:
        UserError: No checkpoint, that of another network, or one that cannot go on under this configuration.
    """
    checkpoint = read_checkpoint(ckpt_path)
    check_weights(module, checkpoint, ckpt_path)
    past = Resumption.of(checkpoint, checkpoint[CONFIG_KEY], plain(cfg), ckpt_path)
    past.refuse_impossible(cfg.trainer.get("max_epochs"), cfg.trainer.get("max_steps"))
    return past


def _examine(module: RobustClassifier, data: ImageDataModule) -> None:
    """Look at the network with the first training images before anything is written."""
    arrays = data.arrays("train")
    rows = torch.arange(min(_LOOKED_AT, len(arrays.labels)))
    module.examine(arrays.batch(rows), arrays.labels[rows])


def _introduce(cfg: DictConfig, data: ImageDataModule, module: L.LightningModule, past: Resumption | None) -> None:
    """What is about to happen, in three lines; in four, if a run is resumed."""
    sizes = ", ".join(f"{len(data.arrays(name).labels)} {name}" for name in ("train", "val", "test"))
    weights = sum(p.numel() for p in module.parameters())
    console = Console()
    console.print(f"data    {HydraConfig.get().runtime.choices.get('data')}: {sizes} images")
    console.print(f"model   {HydraConfig.get().runtime.choices.get('model')}: {weights:,} parameters")
    console.print(f"threat  W_{cfg.attack.p} ball of radius {cfg.attack.delta} in the l_{cfg.attack.norm} norm")
    if past is not None:
        settings = ", ".join(map(str, past.of_kind(Kind.OPTIMIZER, Kind.SCHEDULE)))
        console.print(f"resume  at epoch {past.epochs}{', with ' if settings else ''}{settings}", soft_wrap=True)


def _conclude(cfg: DictConfig, trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule) -> Report:
    """The report: validation values of the best epoch, and the test of its checkpoint."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    chosen = next((c for c in callbacks if isinstance(c, ModelCheckpoint)), None)
    best = chosen.best_model_path if chosen is not None else ""
    checkpoint = _own_checkpoint(trainer, best) if best else None
    epoch = checkpoint["epoch"] if checkpoint is not None else trainer.current_epoch - 1
    history = next((c.epochs for c in callbacks if isinstance(c, ValidationHistory)), {})
    values = history.get(epoch)
    if values is None:  # nobody wrote down the past: the present values are those of the last epoch
        values = _values(trainer, "val/") if epoch == trainer.current_epoch - 1 else {}
    report: Report = {
        "command": " ".join(sys.argv),
        "seed": cfg.seed,
        "threat": {key: cfg.attack.get(key) for key in ("p", "norm", "delta")},
        "epoch": epoch,
        "epochs": trainer.current_epoch,
        "checkpoint": best or None,
        "monitor": chosen.monitor if chosen is not None else None,
        "val": values,
    }
    if cfg.test:
        if checkpoint is not None:
            # Not by the trainer, whose weight averaging would restore the weights that it averages.
            module.load_state_dict(checkpoint["state_dict"])
        trainer.test(module, datamodule=data, verbose=False)
        report["test"] = _values(trainer, "test/")
    return report


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


def _present(cfg: DictConfig, report: Report) -> None:
    """Write `metrics.json` (undefined values as null, infinity as "inf") and print the table."""
    folder = Path(cfg.run_dir)
    stages = {name: report[key] for name, key in (("validation", "val"), ("test", "test")) if key in report}
    write_json(folder / METRICS_FILE, report, indent=2)
    threat = report["threat"]
    tables.show(
        f"W_{threat['p']} ball, radius {threat['delta']}, l_{threat['norm']} norm; best epoch {report['epoch']}",
        ["metric", *stages],
        tables.metric_rows(*stages.values()),
    )
    console = Console()
    console.print(f"checkpoint  {report['checkpoint']}", soft_wrap=True)
    console.print(f"run folder  {folder}", soft_wrap=True)
    for run in report["wandb_offline"]:
        console.print(f"dashboard   wandb sync {run}", soft_wrap=True)
    if any(math.isnan(v) for values in stages.values() for v in values.values()):
        console.print("nan: undefined on this set; the warning above names the cause")
