"""Wide residual networks (Zagoruyko and Komodakis 2016) as the robustness literature trains them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wdro_train.models.layers import Normalize
from wdro_train.utils.errors import UserError

_STEM = 16  # channels of the first convolution in the paper


class WideBlock(nn.Module):
    """Batch norm, ReLU, convolution, twice, beside the identity or a 1x1 convolution.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution.
        dropout: Probability between the convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of `outputs` channels."""
        active = torch.relu(self.bn1(x))
        identity = x if self.convShortcut is None else self.convShortcut(active)
        inner = torch.relu(self.bn2(self.conv1(active)))
        out: Tensor = identity + self.conv2(self.dropout(inner))
        return out


class WideGroup(nn.Module):
    """A group of residual blocks of one width; its first block changes channels and resolution.

    Args:
        blocks: How many.
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first block.
        dropout: See `WideBlock`.
    """

    def __init__(self, blocks: int, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        rest = [WideBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride, dropout), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Features of `outputs` channels."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """A 3x3 stem, three groups of blocks, batch norm, global average pooling, a linear layer.

    Parameters are named as in the checkpoints of TRADES and of RobustBench.

    Args:
        channels: Of the images.
        num_classes: Number of logits.
        depth: 6 n + 4 for n blocks a group.
        width: Factor on the channels 16, 32, 64 of the groups.
        dropout: Probability inside the blocks.
    """

    # Some published checkpoints carry a group that their own forward pass never uses.
    unused_weights = ("sub_block1.",)

    def __init__(self, channels: int, num_classes: int, depth: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise UserError(f"model.depth={depth} is no depth of a wide ResNet; choose 10, 16, 22, 28, 34, ...")
        wide = [_STEM * width, 2 * _STEM * width, 4 * _STEM * width]
        self.conv1 = nn.Conv2d(channels, _STEM, 3, padding=1, bias=False)
        self.block1 = WideGroup(blocks, _STEM, wide[0], 1, dropout)
        self.block2 = WideGroup(blocks, wide[0], wide[1], 2, dropout)
        self.block3 = WideGroup(blocks, wide[1], wide[2], 2, dropout)
        self.bn1 = nn.BatchNorm2d(wide[2])
        self.fc = nn.Linear(wide[2], num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        features = torch.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def wide_resnet(
    shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    depth: int = 28,
    width: int = 10,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Normalise, then a wide ResNet.

    Args:
        shape: (C, H, W) of the images.
        num_classes: Number of logits.
        mean: Channel means; checkpoints trained on images in [0, 1] have 0.
        std: Channel standard deviations; such checkpoints have 1.
        depth: 28 and 34 are usual.
        width: 10 is usual.
        dropout: Probability inside the blocks.
    """
    return nn.Sequential(Normalize(mean, std), WideResNet(shape[0], num_classes, depth, width, dropout))
