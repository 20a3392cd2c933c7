"""Which network a command works on: a checkpoint, or one that was trained elsewhere, with the keys of `evaluate.py`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from wdro_train.cli import CONF
from wdro_train.config.resolvers import register_resolvers
from wdro_train.evaluation.networks import JudgedNetwork, load_network, network_trained_elsewhere
from wdro_train.evaluation.typed_radii import trained_radii
from wdro_train.tools import command_line
from wdro_train.tools.loading import add_loading_options, chosen_network
from wdro_train.utils.devices import resolve_device
from wdro_train.utils.errors import UserError
from wdro_train.utils.written import WrittenRadii


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command its network, and the options of `add_loading_options`.

    Args:
        parser: Of the command line.
    """
    parser.add_argument(
        "network",
        nargs="*",
        help="A checkpoint, as train.py writes it, by default the best one of the newest run; or keys of evaluate.py "
        "for a network that was trained elsewhere, such as model=resnet18 model.weights=net.pt data=cifar10.",
    )
    parser.add_argument(
        "--config-dir", type=command_line.folder, help="A folder of groups of your own, as for evaluate.py."
    )
    add_loading_options(parser)


def add_threat_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command the options `--norm`, `--p` and `--delta`, in place of the threat of the training.

    Args:
        parser: Of the command line.
    """
    parser.add_argument(
        "--norm",
        type=command_line.ball("norm"),
        choices=(1.0, 2.0, math.inf),
        help="The ground norm is 1, 2 or inf. By default it is the one that the network was trained for.",
    )
    parser.add_argument(
        "--p",
        type=command_line.ball("p"),
        help="The Wasserstein order of the threat. By default it is the one of the training.",
    )
    parser.add_argument("--delta", type=_radius, help="The radius. By default it is the one of the training.")


def given_network(given: argparse.Namespace) -> tuple[JudgedNetwork, WrittenRadii]:
    """Load what the command line names.

    Args:
        given: The parsed command line.

    Returns:
        The network, and how radii are written: as they were typed here, for its training or for its data.

    Raises:
        UserError: No such checkpoint, several, or keys that do not fit.
    """
    keys = [one for one in given.network if "=" in one and not Path(one).is_file()]
    checkpoints = [one for one in given.network if one not in keys]
    if len(checkpoints) > 1:
        raise UserError(f"{' '.join(checkpoints)} are several checkpoints; give one")
    for one in checkpoints:
        if not Path(one).is_file():
            raise UserError(f"there is no checkpoint at {one}")
    cfg = composed(keys, given.config_dir) if keys else None
    typed: list[Any] = [given.delta, *([] if cfg is None else [cfg.attack.delta])]
    if cfg is None:
        network = chosen_network(given, *checkpoints)
    elif checkpoints:
        parts = {"model": cfg.get("model"), "data": cfg.get("data"), "device": resolve_device(given.device)}
        network = load_network(checkpoints[0], **parts, allowed=given.allow)
    elif cfg.get("model") is None:
        raise UserError(f"{' '.join(keys)} names no network; give model=... and data=..., or a checkpoint")
    else:
        network = network_trained_elsewhere(cfg, resolve_device(given.device))
    return network, WrittenRadii(None, [*typed, *trained_radii(network.config)])


def composed(keys: list[str], folder: Path | None = None) -> DictConfig:
    """The configuration of `evaluate.py` with these keys.

    Args:
        keys: As they are typed.
        folder: Of configuration groups of the user's own; None for none.

    Raises:
        UserError: They do not fit.
    """
    register_resolvers()
    more = [] if folder is None else [f"hydra.searchpath=['file://{folder.resolve()}']"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            return compose("evaluate", [*keys, *more])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{' '.join(keys)} does not fit ({str(error).splitlines()[0]})") from error


def _radius(text: str) -> str:
    """A radius as it was typed."""
    command_line.ball("delta")(text)
    return text
