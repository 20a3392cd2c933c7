"""From a Hydra configuration to objects."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import nn

from wdro_train.callbacks import DistributionalAdversary
from wdro_train.checkpoint_io import ReplacingCheckpointIO
from wdro_train.dashboards import build_loggers
from wdro_train.data import ImageDataModule, class_folders
from wdro_train.errors import UserError
from wdro_train.models import load_weights
from wdro_train.module import RobustClassifier
from wdro_train.threat import WassersteinBall, parse_number
from wdro_train.trusted import construct


def default_delta(table: Mapping[str, Any], norm: float | str) -> float:
    """The dataset's default radius for a ground norm.

    Args:
        table: Radii under the keys `linf`, `l2`, ...
        norm: The ground norm.

    Raises:
        UserError: Not a norm, or none is known for that norm.
    """
    key = f"l{WassersteinBall(p=1, norm=norm, delta=0).norm:g}"  # type: ignore[arg-type]
    if key not in table:
        raise UserError(f"this dataset has no default radius for attack.norm={norm}; set attack.delta")
    return parse_number(table[key], f"data.delta.{key}")


def count_folders(root: str, *parts: str | None) -> int:
    """The number of classes in the first of some folders of images that exists; see `wdro_train.data.class_folders`.

    Args:
        root: A folder.
        *parts: Folders in it; None is left out.

    Raises:
        UserError: There are none.
    """
    for part in parts:
        if part is not None and (folder := Path(root) / part).is_dir():
            return len(class_folders(folder))
    raise UserError(
        f"data.root={root} has no folder {', '.join(filter(None, parts))}; put one folder a class in train/"
    )


def register_resolvers() -> None:
    """Make `${default_delta:...}` and `${count_folders:...}` known; harmless when called twice."""
    OmegaConf.register_new_resolver("default_delta", default_delta, replace=True)
    OmegaConf.register_new_resolver("count_folders", count_folders, replace=True)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration as dicts, lists, numbers and strings."""
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def require_values(node: DictConfig, group: str) -> None:
    """Refuse a group with an argument that has no default and was not given.

    Args:
        node: The group.
        group: Its name.

    Raises:
        UserError: Names the argument.
    """
    for key in map(str, node):
        if OmegaConf.is_missing(node, key):
            what = {"model": "this model has", "data": "these images have"}.get(group, f"this {group} has")
            raise UserError(f"{what} no default for {group}.{key}; give {group}.{key}=...")


def build_model(node: DictConfig, *, trained_elsewhere: bool = True, only: Collection[str] | None = None) -> nn.Module:
    """The network of a configuration group `model`.

    Args:
        node: `_target_`, its arguments, and `weights`: a file to load into whatever it makes.
        trained_elsewhere: False leaves out weights of files and of model zoos, where a checkpoint's replace them.
        only: See `wdro_train.trusted.construct`.

    Raises:
        UserError: An argument without default is not given, or the weights are another network's.
    """
    require_values(node, "model")
    arguments = plain(node)
    weights = arguments.pop("weights", None)
    if not trained_elsewhere and "pretrained" in arguments:
        arguments["pretrained"] = False
    model: nn.Module = construct(arguments, only=only)
    if trained_elsewhere and weights is not None:
        load_weights(model, weights)
    return model


def build_module(cfg: DictConfig) -> RobustClassifier:
    """The LightningModule of a training configuration."""
    return RobustClassifier(
        build_model(cfg.model),
        objective=construct(cfg.objective),
        optimizer=construct(cfg.optimizer),
        scheduler=construct(cfg.scheduler),
        config=plain(cfg),
    )


def build_data(cfg: DictConfig) -> ImageDataModule:
    """The data module of a configuration."""
    require_values(cfg.data, "data")
    data: ImageDataModule = construct(cfg.data)
    return data


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
    trainer: L.Trainer = construct(cfg.trainer, callbacks=callbacks, logger=loggers, plugins=plugins)
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
        "val/adv_acc": None if adversary is None else adversary.val_attack,
        "val/worst_acc": None if adversary is None else adversary.distances,
    }
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and measured.get(callback.monitor or "", callback) is None:
            raise UserError(
                f"{callback.monitor} chooses the checkpoint but is not measured; use callbacks=no_adversary, "
                "callbacks=default (val/adv_acc) or callbacks=worst_case (val/worst_acc)"
            )
