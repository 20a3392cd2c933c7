"""From a Hydra configuration to objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from wdro_train.data import ImageDataModule
from wdro_train.errors import UserError
from wdro_train.module import RobustClassifier
from wdro_train.threat import parse_number


def default_delta(table: Mapping[str, Any], norm: float | str) -> float:
    """The dataset's default radius for a ground norm.

    Args:
        table: Radii under the keys `linf`, `l2`, ...
        norm: The ground norm.

    Raises:
        UserError: None is known for that norm.
    """
    key = f"l{parse_number(norm, 'attack.norm'):g}"
    if key not in table:
        raise UserError(f"this dataset has no default radius for attack.norm={norm}; set attack.delta")
    return parse_number(table[key], f"data.delta.{key}")


def register_resolvers() -> None:
    """Make `${default_delta:...}` known; harmless when called twice."""
    OmegaConf.register_new_resolver("default_delta", default_delta, replace=True)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as dicts, lists, numbers and strings."""
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def build_module(cfg: DictConfig) -> RobustClassifier:
    """The LightningModule of a training configuration."""
    return RobustClassifier(
        instantiate(cfg.model),
        objective=instantiate(cfg.objective),
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        config=plain(cfg),
    )


def build_data(cfg: DictConfig) -> ImageDataModule:
    """The data module of a configuration."""
    data: ImageDataModule = instantiate(cfg.data)
    return data


def build_trainer(cfg: DictConfig) -> L.Trainer:
    """The Trainer with its callbacks and loggers."""
    callbacks = [instantiate(node) for node in cfg.callbacks.values() if node is not None]
    loggers: list[Logger] = [instantiate(node) for node in cfg.logger.values() if node is not None]
    for logger in loggers:
        logger.log_hyperparams(plain(cfg))
    trainer: L.Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers)
    return trainer
