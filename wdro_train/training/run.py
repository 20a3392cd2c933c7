"""One training run, from configuration to table."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from wdro_train.attacks.network_check import PROBED_IMAGES
from wdro_train.config import slurm
from wdro_train.config.build import build_data, plain
from wdro_train.config.loggers import closing_wandb, offline_runs, quiet_offline_wandb, summarize
from wdro_train.data import ImageDataModule, content_digest
from wdro_train.training import cost, run_output
from wdro_train.training.build import build_callbacks, build_module, build_trainer, check_adversary, check_certificate
from wdro_train.training.callbacks import KeepListening
from wdro_train.training.checkpoint import check_weights, read_checkpoint
from wdro_train.training.finetuning import start_from
from wdro_train.training.module import CONFIG_KEY, RobustClassifier
from wdro_train.training.resuming import CLASS_NAMES, DATA_DIGEST, Kind, Resumption
from wdro_train.training.summary import conclude, present


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
    images, labels = _examine(module, data)
    assert module.config is not None
    module.config[DATA_DIGEST] = content_digest(data.arrays("val"))  # the same name may hold other images tomorrow
    module.config |= _names_of_classes(data)
    if cfg.dry_run:
        callbacks = build_callbacks(cfg)
        check_adversary(callbacks, module)
        check_certificate(callbacks, module, images, labels)
        print(*_introduction(cfg, data, module, past), sep="\n")  # not `say`: the folder may be another run's
        found = cost.measure(module, data, callbacks, cfg.trainer, test=cfg.test)
        print(f"cost    {found}", *cost.details(found), "", OmegaConf.to_yaml(cfg, resolve=True), sep="\n")
        return None
    with closing_wandb(), run_output.warnings_in_the_log():
        trainer = build_trainer(cfg)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        check_adversary(callbacks, module)
        check_certificate(callbacks, module, images, labels)
        if trainer.is_global_zero:
            run_output.say(*_introduction(cfg, data, module, past))
        slurm.requeue_on_signal()
        callbacks.append(KeepListening())
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        summary = conclude(cfg, trainer, module, data)
        if trainer.is_global_zero:
            summarize(trainer.loggers, summary.epoch, summary.val)
            summary = replace(summary, wandb_offline=offline_runs(trainer.loggers))
    if trainer.is_global_zero:
        present(summary, Path(cfg.run_dir), verbose=cfg.verbose)
    return summary.score


def _quiet(cfg: DictConfig) -> None:
    """Silence advice that does not apply here."""
    quiet_offline_wandb(cfg.logger)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Padding has weight 0 in every metric, and logged values are already joined over ranks.
    warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders")
    warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist=True")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "The number of training batches")
    # Whose folder it is has been settled when it was claimed.
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
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


def _examine(module: RobustClassifier, data: ImageDataModule) -> tuple[Tensor, Tensor]:
    """Look at the network with the first training images, which are returned, before anything is written."""
    arrays = data.arrays("train")
    rows = torch.arange(min(PROBED_IMAGES, len(arrays.labels)))
    images, labels = arrays.batch(rows), arrays.labels[rows]
    module.inspector.examine(module, images, labels)
    return images, labels


def _names_of_classes(data: ImageDataModule) -> dict[str, list[str]]:
    """What the classes are called, to be kept in checkpoints; nothing where a name would be refused by their reader."""
    names = data.class_names or []
    readable = all("${" not in name and name != "???" for name in names)
    return {CLASS_NAMES: [str(name) for name in names]} if names and readable else {}


def _introduction(
    cfg: DictConfig, data: ImageDataModule, module: L.LightningModule, past: Resumption | None
) -> list[str]:
    """What is about to happen, in three lines; in four, if a run is resumed."""
    sizes = ", ".join(f"{len(data.arrays(name).labels)} {name}" for name in ("train", "val", "test"))
    weights = sum(p.numel() for p in module.parameters())
    choices = HydraConfig.get().runtime.choices
    lines = [
        f"data    {choices.get('data')}: {sizes} images",
        f"model   {choices.get('model')}: {weights:,} parameters",
        f"threat  W_{cfg.attack.p} ball of radius {cfg.attack.delta} in the l_{cfg.attack.norm} norm",
    ]
    if past is not None:
        settings = ", ".join(map(str, past.of_kind(Kind.OPTIMIZER, Kind.SCHEDULE)))
        lines.append(f"resume  at epoch {past.epochs + 1}{', with ' if settings else ''}{settings}")
    return lines
