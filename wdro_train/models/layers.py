"""The first layer of every network: the normalisation, so that images outside the network are in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wdro_train.utils.errors import UserError


class Normalize(nn.Module):
    """(x - mean) / std for each channel, inside the network: attacks and distances see pixels in [0, 1].

    Args:
        mean: One number per channel.
        std: One positive number per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise UserError(f"mean={list(mean)}, std={list(std)}: give one mean and one positive std per channel")
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, same shape."""
        return (x - self.mean) / self.std
