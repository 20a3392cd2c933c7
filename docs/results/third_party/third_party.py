"""Networks and images of other authors, as `evaluate.py` takes them: functions that make networks, and a data module.

    PYTHONPATH=docs/results/third_party python evaluate.py model._target_=third_party.mlp model.weights=FILE ...

The commands are in the README beside this file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wdro_train.data import ImageArrays, ImageDataModule
from wdro_train.models import Normalize


def mlp() -> nn.Sequential:
    """784 pixels, two hidden layers of 100, 10 classes (Salman et al. 2019)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def conv(
    channels: int = 1,
    widths: Sequence[int] = (16, 32),
    side: int = 28,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Sequential:
    """Two 4x4 convolutions of stride 2 and two linear layers (Wong and Kolter 2018, and others after them).

    Args:
        channels: Of the images.
        widths: Channels of the two convolutions.
        side: Height and width of the images.
        mean: Of the normalisation; None for images in [0, 1] as they are.
        std: Of the normalisation.
    """
    first, second = widths
    layers = nn.Sequential(
        nn.Conv2d(channels, first, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * (side // 4) ** 2, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    return layers if mean is None or std is None else nn.Sequential(Normalize(mean, std), layers)


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
        """Images to images."""
        z = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(z + x)


class ResNet20(nn.Module):
    """The ResNet-20 of He et al. for images of 32x32 pixels, in [0, 1]."""

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


def resnet20(
    mean: Sequence[float] = (0.485, 0.456, 0.406), std: Sequence[float] = (0.229, 0.224, 0.225)
) -> nn.Sequential:
    """ResNet-20 with its normalisation."""
    return nn.Sequential(Normalize(mean, std), ResNet20())


class NumpyImages(ImageDataModule):
    """Images and labels out of two .npy files, [N, H, W], [N, C, H, W] or [N, H, W, C] in [0, 1]."""

    def __init__(self, images: str, labels: str, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.images, self.labels = Path(images), Path(labels)

    def load(self) -> dict[str, ImageArrays]:
        """The test set, which is all there is."""
        images = torch.from_numpy(np.load(self.images)).float()
        channels, height, width = self.shape
        if images.dim() == 4 and images.shape[-1] == channels and images.shape[1] != channels:
            images = images.movedim(-1, 1)
        labels = torch.from_numpy(np.load(self.labels)).long().flatten()
        return {"test": ImageArrays(images.reshape(-1, channels, height, width).contiguous(), labels, scale=1.0)}


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "mnist_mlp_lpd_0.1.pth": mlp,
    "mnist_mlp_adv_0.1.pth": mlp,
    "mnist_mlp_adv_0.03.pth": mlp,
    "mnist_conv_kw_0.1.pth": conv,
    "fashion_conv_kw_0.1.pth": conv,
    "mnist_cnn_a_adv.pt": conv,
    "cifar_cnn_a_mix.pt": lambda: conv(
        3, side=32, mean=[v / 255 for v in (125.3, 123.0, 113.9)], std=[v / 255 for v in (63.0, 62.1, 66.7)]
    ),
    "cifar_oval_base.pth": lambda: conv(3, (8, 16), 32, (0.485, 0.456, 0.406), (0.225, 0.225, 0.225)),
    "cifar_resnet20.th": resnet20,
}
"""How each file's network is made."""
