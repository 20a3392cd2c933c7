"""From a training configuration to the module, the callbacks and the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from omegaconf import DictConfig
from torch import Tensor

from wdro_train.config.build import build_model, plain
from wdro_train.config.constructors import construct
from wdro_train.config.loggers import build_loggers
from wdro_train.objectives import ChecksNetwork
from wdro_train.training.callbacks import DistributionalAdversary
from wdro_train.training.checkpoint_io import ReplacingCheckpointIO
from wdro_train.training.module import RobustClassifier
from wdro_train.utils.errors import UserError


def build_module(cfg: DictConfig) -> RobustClassifier:
    """The LightningModule of a training configuration."""
    return RobustClassifier(
        build_model(cfg.model),
        objective=construct(cfg.objective),
        optimizer=construct(cfg.optimizer),
        scheduler=construct(cfg.scheduler),
        config=plain(cfg),
    )


def build_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """The callbacks of a configuration; null leaves one out."""
    return [construct(node) for node in cfg.callbacks.values() if node is not None]


def build_trainer(cfg: DictConfig) -> L.Trainer:
    """The Trainer with its callbacks and loggers."""
    callbacks = build_callbacks(cfg)
    loggers = build_loggers(cfg.logger)
    for logger in loggers:
        logger.log_hyperparams(plain(cfg))
    asked = cfg.trainer.get("plugins")
    plugins = [*(construct(asked) if asked else []), ReplacingCheckpointIO()]
    options: dict[str, Any] = {"callbacks": callbacks, "logger": loggers, "plugins": plugins}
    if "enable_progress_bar" not in cfg.trainer:  # without one of ours Lightning would put its own in its place
        options["enable_progress_bar"] = any(isinstance(callback, ProgressBar) for callback in callbacks)
    trainer: L.Trainer = construct(cfg.trainer, **options)
    return trainer


def check_adversary(callbacks: Sequence[L.Callback], module: RobustClassifier) -> None:
    """Refuse to train without an adversary what needs one, before any work is done.

    Args:
        callbacks: Of the run.
        module: What it trains.

    Raises:
        UserError: The objective, or the choice of the best checkpoint, needs an adversary.
    """
    adversary = next((callback for callback in callbacks if isinstance(callback, DistributionalAdversary)), None)
    if adversary is None and module.objective.needs_adversary:
        raise UserError(
            f"the objective {type(module.objective).__name__} needs an adversary in training; "
            "use objective=standard callbacks=no_adversary, or keep callbacks=default"
        )
    measured = {
        "val/adv_acc": None if adversary is None else adversary.judge.val_attack,
        "val/worst_acc": None if adversary is None else adversary.judge.distances,
        "val/certified_acc": None if adversary is None else adversary.judge.certificate,
    }
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and measured.get(callback.monitor or "", callback) is None:
            raise UserError(
                f"{callback.monitor} chooses the checkpoint but is not measured; use callbacks=no_adversary, "
                "callbacks=default (val/adv_acc), callbacks=worst_case (val/worst_acc) or "
                "callbacks.adversary.certificate=ibp (val/certified_acc)"
            )


def check_certificate(callbacks: Sequence[L.Callback], module: RobustClassifier, x: Tensor, y: Tensor) -> None:
    """Refuse a certificate or an objective that does not cover the network, before any work is done.

    Args:
        callbacks: Of the run.
        module: What it trains.
        x: Images in [0, 1], shape [B, C, H, W].
        y: Labels, shape [B].

    Raises:
        UserError: An operation of the network that has no bounds, named.
    """
    if isinstance(module.objective, ChecksNetwork):
        module.objective.check_network(module.model, x[:1])
    for callback in callbacks:
        if isinstance(callback, DistributionalAdversary) and callback.judge.certificate is not None:
            callback.judge.certificate(module.model, x[:1], y[:1])
