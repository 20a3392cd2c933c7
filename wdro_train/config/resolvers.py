"""What `${default_delta:...}`, `${count_folders:...}` and their like mean in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from wdro_train.config import slurm
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_norm, parse_number


def default_delta(table: Mapping[str, Any], norm: float | str) -> float | str:
    """The dataset's default radius for a ground norm, as it is written there (`8/255`).

    Args:
        table: Radii under the keys `linf`, `l2`, ...
        norm: The ground norm.

    Raises:
        UserError: Not a norm, or none is known for that norm.
    """
    key = f"l{parse_norm(norm):g}"
    if key not in table:
        raise UserError(f"this dataset has no default radius for attack.norm={norm}; set attack.delta")
    parse_number(table[key], f"data.delta.{key}")
    return cast(float | str, table[key])


def count_folders(root: str, *parts: str | None) -> int:
    """The number of classes in the first of some folders of images that exists; see `wdro_train.data.class_folders`.

    Args:
        root: A folder.
        *parts: Folders in it; None is left out.

    Raises:
        UserError: There are none.
    """
    from wdro_train.data import class_folders  # and with it torch, which only this one question needs

    for part in parts:
        if part is not None and (folder := Path(root) / part).is_dir():
            return len(class_folders(folder))
    raise UserError(
        f"data.root={root} has no folder {', '.join(filter(None, parts))}; put one folder a class in train/"
    )


def network_name(option: str, target: str, name: str | None) -> str:
    """What a run's name says of its network.

    Args:
        option: Of the group `model`.
        target: The constructor.
        name: Of a library's network, or of one on a hub; empty for none.

    >>> network_name("wrn_28_10", "wdro_train.models.wide_resnet", None)
    'wrn_28_10'
    >>> network_name("huggingface", "wdro_train.models.huggingface_model", "microsoft/resnet-50")
    'resnet-50'
    >>> network_name("small_cnn", "my_package.Net", None)
    'Net'
    """
    if name:
        return str(name).rpartition("/")[2]
    return option if target.startswith("wdro_train.") else target.rpartition(".")[2]


def register_resolvers() -> None:
    """Make the resolvers of the configuration files known to OmegaConf; harmless when called twice."""
    for name, resolver in (
        ("default_delta", default_delta),
        ("count_folders", count_folders),
        ("run_folder", slurm.run_folder),
        ("network_name", network_name),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True)
