"""The architectures of networks that other authors published, to put their state dicts into.

They take what their authors fed them, images in [0, 1] or normalised ones; `model.normalize=[mean,std]` puts the
normalisation before them, as `evaluate.py` does for any network:
`model._target_=wdro_train.tools.third_party_networks.mlp model.weights=FILE`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


def mlp() -> nn.Sequential:
    """784 pixels, two hidden layers of 100, 10 classes (Salman et al. 2019, arXiv 1902.08722)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def conv(channels: int = 1, widths: Sequence[int] = (16, 32), side: int = 28) -> nn.Sequential:
    """Two 4x4 convolutions of stride 2 and two linear layers (Wong and Kolter 2018, and others after them).

    Args:
        channels: Of the images.
        widths: Channels of the two convolutions.
        side: Height and width of the images, divisible by 4.
    """
    first, second = widths
    return nn.Sequential(
        nn.Conv2d(channels, first, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * (side // 4) ** 2, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


class Block(nn.Module):
    """Two convolutions and a shortcut that subsamples and pads with zero channels (option A of He et al. 2015)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.stride, self.padding = (1, 0) if inner == outer else (2, (outer - inner) // 2)
        self.conv1 = nn.Conv2d(inner, outer, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps to feature maps."""
        z = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(z + x)


class ResNet20(nn.Module):
    """The ResNet-20 of He et al. (2015, arXiv 1512.03385) for images of 32x32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images to logits."""
        z = functional.relu(self.bn1(self.conv1(x)))
        z = self.layer3(self.layer2(self.layer1(z)))
        logits: Tensor = self.linear(z.mean((2, 3)))
        return logits
