"""What the commands load: the network of a checkpoint, and the images of a split on the device of the network."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from wdro_train.config.resolvers import register_resolvers
from wdro_train.data import ImageSet
from wdro_train.evaluation.networks import JudgedNetwork, load_arrays, load_network, newest_checkpoint
from wdro_train.utils.devices import resolve_device

BATCH_SIZE = 512
"""Images of a forward pass, as in `conf/evaluate.yaml`."""


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Give a command the options `--allow` and `--device`, which `chosen_network` reads.

    Args:
        parser: Of the command line.
    """
    parser.add_argument(
        "--allow",
        type=lambda text: frozenset(filter(None, text.split(","))),
        default=frozenset(),
        metavar="NAMES",
        help="A checkpoint may use these constructors of yours, such as my_package.models.mlp,my_package.data.Mine.",
    )
    parser.add_argument(
        "--device", help="Compute on this device, such as cpu or cuda:1. By default it is the best one there is."
    )


def chosen_network(given: argparse.Namespace, checkpoint: str | Path | None = None) -> JudgedNetwork:
    """Load the network of a checkpoint.

    Args:
        given: The parsed command line, with `allow` and `device`.
        checkpoint: Path of the checkpoint; None for the best one of the newest run.

    Raises:
        UserError: See `load_network`; or there is no such device.
    """
    register_resolvers()
    device = resolve_device(given.device)
    return load_network(checkpoint or newest_checkpoint(), device=device, allowed=given.allow)


def split_on_device(network: JudgedNetwork, split: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """The images and labels of a split of the network's data, on its device.

    Args:
        network: The network.
        split: `train`, `val` or `test`.
        limit: First so many images only; None for all.

    Returns:
        Images [N, C, H, W] in [0, 1] and labels [N].
    """
    return on_device(load_arrays(network.config, split, limit), network)


def on_device(arrays: ImageSet, network: JudgedNetwork) -> tuple[Tensor, Tensor]:
    """All images [N, C, H, W] and labels [N] of a set, on the device of the network.

    Args:
        arrays: The set; it has to fit into memory.
        network: The network.
    """
    device = next(network.model.parameters()).device
    return arrays.batch(torch.arange(len(arrays.labels))).to(device), arrays.labels.to(device)
