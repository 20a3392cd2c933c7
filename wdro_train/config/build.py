"""From a Hydra configuration to objects."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from wdro_train.config.constructors import CONSTRUCTORS, construct
from wdro_train.config.own_networks import NOT_FOR_CONSTRUCTORS, OWN_WEIGHTS, refusals_of_own
from wdro_train.data import ImageDataModule
from wdro_train.models import load_weights, normalized
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
        node: `_target_` and its arguments; beside them `weights` and `weights_key`, a file to load into whatever it
            makes and the place in that file (`wdro_train.models.load_weights`), or `weights: own` where the
            constructor loads them; and `normalize`, [mean, std] of a normalisation before it.
        trained_elsewhere: False leaves out weights of files and of model zoos, where a checkpoint's replace them.
        only: See `wdro_train.config.constructors.construct`.

    Raises:
        UserError: An argument without default is not given, the constructor refuses those given, or the weights are
            another network's.
    """
    require_values(node, "model")
    arguments = plain(node)
    weights, key, normalisation = (arguments.pop(name, None) for name in NOT_FOR_CONSTRUCTORS)
    if not trained_elsewhere and "pretrained" in arguments:
        arguments["pretrained"] = False
    with refusals_of_own(arguments, known=only is not None or arguments["_target_"] in CONSTRUCTORS["model"]):
        model = construct({"_convert_": "all"} | arguments, only=only)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model._target_={arguments['_target_']} makes a {type(model).__name__}, not a torch.nn.Module; name a "
            "class or function that makes the network"
        )
    if trained_elsewhere and weights not in (None, OWN_WEIGHTS):
        load_weights(model, weights, key)
    if normalisation is None:
        return model
    shape = arguments.get("shape")
    mean, std = normalisation
    return normalized(model, mean, std, channels=None if shape is None else shape[0])


def build_data(cfg: DictConfig) -> ImageDataModule:
    """The data module of a configuration."""
    require_values(cfg.data, "data")
    data: ImageDataModule = construct(cfg.data)
    return data
