"""A two-layer convolutional network for small images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from wdro_train.models.layers import Normalize
from wdro_train.utils.errors import UserError

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU}
"""The nonlinearities of `small_cnn`: ReLU, and ELU, whose derivative is continuous."""


def small_cnn(
    shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    width: int = 16,
    activation: str = "relu",
) -> nn.Sequential:
    """Normalise, two 4x4 convolutions of stride 2, two linear layers.

    Args:
        shape: (C, H, W) of the images; H and W divisible by 4.
        num_classes: Number of logits.
        mean: Channel means for the normalisation.
        std: Channel standard deviations.
        width: Channels of the first convolution; the second has twice as many.
        activation: `relu`; or `elu`, with which the loss has a Lipschitz gradient in the images, as the theory of WRM
            asks (Sinha et al. 2018, arXiv 1710.10571), and which no certificate here but smoothing reads.

    Raises:
        UserError: Sides that are not divisible by 4, or another activation.
    """
    channels, height, breadth = shape
    if height % 4 or breadth % 4:
        raise UserError(f"small_cnn needs sides divisible by 4, got {height}x{breadth}; use model=resnet18")
    if activation not in ACTIVATIONS:
        raise UserError(f"model.activation={activation!r} is unknown; choose {' or '.join(ACTIVATIONS)}")
    nonlinear = ACTIVATIONS[activation]
    return nn.Sequential(
        Normalize(mean, std),
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nonlinear(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nonlinear(),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (breadth // 4), 100),
        nonlinear(),
        nn.Linear(100, num_classes),
    )
