"""The pre-activation ResNet-18 (He et al. 2016) of fast adversarial training and its successors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wdro_train.models.layers import Normalize


class PreActBlock(nn.Module):
    """Batch norm, ReLU, convolution, twice, beside the identity or a 1x1 convolution.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution.
        active_shortcut: The 1x1 convolution sees the activations rather than the block's input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, active_shortcut: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.active_shortcut = active_shortcut
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Features of `outputs` channels."""
        active = torch.relu(self.bn1(x))
        identity = x if self.shortcut is None else self.shortcut(active if self.active_shortcut else x)
        out: Tensor = identity + self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return out


class PreActResNet(nn.Module):
    """A 3x3 stem, four groups of blocks, global average pooling, a linear layer; named as in RobustBench.

    Args:
        channels: Of the images.
        num_classes: Number of logits.
        blocks: Blocks of each group.
        width: Channels of the first group; each next one has twice as many.
        final_bn: Batch norm and ReLU before the pooling.
        active_shortcut: See `PreActBlock`.
    """

    def __init__(
        self, channels: int, num_classes: int, blocks: Sequence[int], width: int, final_bn: bool, active_shortcut: bool
    ) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(4)]
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                *(
                    PreActBlock(before if k == 0 else after, after, stride if k == 0 else 1, active_shortcut)
                    for k in range(number)
                )
            )
            for number, before, after, stride in zip(blocks, [width, *widths[:-1]], widths, (1, 2, 2, 2), strict=True)
        )
        self.bn = nn.BatchNorm2d(widths[-1]) if final_bn else None
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            features = torch.relu(self.bn(features))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


def preact_resnet18(
    shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    width: int = 64,
    final_bn: bool = True,
    active_shortcut: bool = False,
) -> nn.Sequential:
    """Normalise, then a pre-activation ResNet-18.

    Args:
        shape: (C, H, W) of the images.
        num_classes: Number of logits.
        mean: Channel means; checkpoints trained on images in [0, 1] have 0.
        std: Channel standard deviations; such checkpoints have 1.
        width: Channels of the first group.
        final_bn: Batch norm before the pooling; some published networks have none.
        active_shortcut: The 1x1 shortcuts see the activations; they do in some published networks.
    """
    network = PreActResNet(shape[0], num_classes, (2, 2, 2, 2), width, final_bn, active_shortcut)
    return nn.Sequential(Normalize(mean, std), network)
