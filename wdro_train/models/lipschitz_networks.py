"""Networks that are 1-Lipschitz in l_2 by construction, up to the scale of their last layer's rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from wdro_train.models.layers import Normalize
from wdro_train.models.lipschitz_layers import OrthogonalLinear, PadChannels, ResidualConvolution, SortPairs
from wdro_train.utils.errors import UserError


def lipschitz_mlp(
    shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    width: int = 256,
    depth: int = 4,
) -> nn.Sequential:
    """Centre the pixels, then dense orthogonal layers with sorted pairs between them.

    The whole network is 1-Lipschitz: ||f(x) - f(x')||_2 <= ||x - x'||_2. Pixels are not divided by `std`, which would
    stretch distances.

    Args:
        shape: (C, H, W) of the images.
        num_classes: Number of logits.
        mean: Channel means, subtracted.
        std: Not used.
        width: Values of each hidden layer, even, >= num_classes.
        depth: Hidden layers, >= 1.
    """
    _check(width, depth, num_classes)
    layers: list[nn.Module] = [Normalize(mean, [1.0] * len(mean)), nn.Flatten()]
    layers += _dense(math.prod(shape), width, depth)
    return nn.Sequential(*layers, OrthogonalLinear(width, num_classes))


def lipschitz_cnn(
    shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    channels: int = 16,
    blocks: int = 2,
    width: int = 256,
    depth: int = 2,
) -> nn.Sequential:
    """Centre the pixels, then residual convolutions at half and at a quarter of the resolution, then dense layers.

    Resolution is traded for channels, four for one, which moves pixels and loses nothing. The whole network is
    1-Lipschitz, as `lipschitz_mlp` is.

    Args:
        shape: (C, H, W) of the images; H and W divisible by 4.
        num_classes: Number of logits.
        mean: Channel means, subtracted.
        std: Not used.
        channels: At half the resolution, >= 4 C; there are four times as many at a quarter of it.
        blocks: Residual convolutions at each resolution.
        width: Values of each dense hidden layer, even, >= num_classes.
        depth: Dense hidden layers, >= 1.
    """
    colours, height, breadth = shape
    if height % 4 or breadth % 4:
        raise UserError(f"lipschitz_cnn needs sides divisible by 4, got {height}x{breadth}; use model=lipschitz_mlp")
    if channels < 4 * colours:
        raise UserError(f"model.channels={channels} is less than the images bring; choose at least {4 * colours}")
    _check(width, depth, num_classes)
    layers: list[nn.Module] = [Normalize(mean, [1.0] * len(mean)), nn.PixelUnshuffle(2), PadChannels(channels)]
    layers += [ResidualConvolution(channels, 2 * channels) for _ in range(blocks)]
    layers += [nn.PixelUnshuffle(2)]
    layers += [ResidualConvolution(4 * channels, 4 * channels) for _ in range(blocks)]
    layers += [nn.Flatten(), *_dense(channels * height * breadth // 4, width, depth)]
    return nn.Sequential(*layers, OrthogonalLinear(width, num_classes))


def _dense(inputs: int, width: int, depth: int) -> list[nn.Module]:
    sizes = [inputs, *[width] * depth]
    return [layer for before, after in pairwise(sizes) for layer in (OrthogonalLinear(before, after), SortPairs())]


def _check(width: int, depth: int, num_classes: int) -> None:
    if width % 2 or width < num_classes or depth < 1:
        raise UserError(
            f"model.width={width}, model.depth={depth}: choose an even width of at least {num_classes} and a depth of "
            "at least 1"
        )
