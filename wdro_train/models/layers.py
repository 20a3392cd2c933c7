"""The first layer of every network: the normalisation, so that images outside the network are in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wdro_train.utils.errors import UserError


class Normalize(nn.Module):
    """(x - mean) / std for each channel, inside the network: attacks and distances see pixels in [0, 1].

    Args:
        mean: One number per channel, or one for all of them.
        std: The same, positive.

    Raises:
        UserError: Not so many of the one as of the other, or a number that is not finite or not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        lists = [list(values) if isinstance(values, Sequence) else [values] for values in (mean, std)]
        channels = max(map(len, lists))
        means, deviations = (
            given if isinstance(values, Sequence) else given * channels
            for given, values in zip(lists, (mean, std), strict=True)
        )
        finite = all(map(math.isfinite, [*means, *deviations])) and all(s > 0 for s in deviations)
        if not means or len(means) != len(deviations) or not finite:
            raise UserError(f"mean={mean}, std={std}: give one mean and one positive std per channel, or one for all")
        self.register_buffer(
            "mean", torch.tensor(means, dtype=torch.get_default_dtype()).view(-1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(deviations, dtype=torch.get_default_dtype()).view(-1, 1, 1), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, same shape."""
        return (x - self.mean) / self.std


def normalized(
    network: nn.Module, mean: float | Sequence[float], std: float | Sequence[float], channels: int | None = None
) -> nn.Sequential:
    """A network that takes images in [0, 1], around one that takes normalised images.

    Args:
        network: Takes (x - mean) / std.
        mean: One number per channel, or one for all of them.
        std: The same, positive.
        channels: Of the images; None if it is not known.

    Raises:
        UserError: See `Normalize`; the network normalises by itself already; or the numbers are for other channels,
            which would make colours of grey images.
    """
    if isinstance(network, nn.Sequential) and len(network) > 0 and isinstance(network[0], Normalize):
        raise UserError(
            f"the network begins with its own normalisation, so that mean={mean}, std={std} would be a second one; "
            "leave one of them out"
        )
    first = Normalize(mean, std)
    given = first.mean.numel()
    if channels is not None and given not in (1, channels):
        raise UserError(
            f"mean={mean}, std={std} are for {given} channels, but the images have {channels}; give one number a "
            "channel"
        )
    return nn.Sequential(first, network)
