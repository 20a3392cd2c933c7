"""torchvision's ResNet-18, with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from wdro_train.models.layers import Normalize

_LARGEST_SMALL_IMAGE = 64  # pixels a side: Tiny ImageNet; the usual stem would leave 2x2 features of such images


def resnet18(
    shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    small_stem: bool | None = None,
) -> nn.Sequential:
    """Normalise, then ResNet-18.

    Args:
        shape: (C, H, W) of the images.
        num_classes: Number of logits.
        mean: Channel means for the normalisation.
        std: Channel standard deviations.
        small_stem: Replace the 7x7 stride-2 stem and its pooling by one 3x3 convolution; by default for images
            of at most 64 pixels a side.
    """
    from torchvision import models  # takes two seconds, which other networks need not wait for

    network = models.resnet18(weights=None, num_classes=num_classes)
    small = max(shape[1:]) <= _LARGEST_SMALL_IMAGE if small_stem is None else small_stem
    if small:
        network.conv1 = nn.Conv2d(shape[0], 64, 3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif shape[0] != 3:
        network.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(Normalize(mean, std), network)
