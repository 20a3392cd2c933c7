"""A two-layer convolutional network for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from wdro_train.models.layers import Normalize
from wdro_train.utils.errors import UserError


def small_cnn(
    shape: Sequence[int], num_classes: int, mean: Sequence[float], std: Sequence[float], width: int = 16
) -> nn.Sequential:
    """Normalise, two 4x4 convolutions of stride 2, two linear layers.

    Args:
        shape: (C, H, W) of the images; H and W divisible by 4.
        num_classes: Number of logits.
        mean: Channel means for the normalisation.
        std: Channel standard deviations.
        width: Channels of the first convolution; the second has twice as many.
    """
    channels, height, breadth = shape
    if height % 4 or breadth % 4:
        raise UserError(f"small_cnn needs sides divisible by 4, got {height}x{breadth}; use model=resnet18")
    return nn.Sequential(
        Normalize(mean, std),
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (breadth // 4), 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )
