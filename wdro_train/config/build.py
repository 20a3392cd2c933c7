"""From a Hydra configuration to objects."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from wdro_train.config.constructors import construct
from wdro_train.data import ImageDataModule
from wdro_train.models import load_weights
from wdro_train.utils.errors import UserError


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
        only: See `wdro_train.config.constructors.construct`.

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


def build_data(cfg: DictConfig) -> ImageDataModule:
    """The data module of a configuration."""
    require_values(cfg.data, "data")
    data: ImageDataModule = construct(cfg.data)
    return data
