"""Any network of timm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from wdro_train.models.layers import Normalize
from wdro_train.utils.errors import UserError
from wdro_train.utils.optional_imports import optional


def timm_model(
    shape: Sequence[int],
    num_classes: int,
    name: str,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Sequential:
    """Normalise as the network's own configuration says, then the network.

    Args:
        shape: (C, H, W) of the images.
        num_classes: Number of logits.
        name: As `timm.list_models` gives it.
        pretrained: Download its weights; another number of classes gets a new last layer.
        options: More arguments of `timm.create_model`, such as `img_size` of a vision transformer.

    Raises:
        UserError: timm is not installed, or knows no such network.
    """
    timm = optional("timm", "models")
    if not timm.is_model(name.removeprefix("timm/")):
        close = timm.list_models(f"*{name}*")[:3]
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"model.name={name} is not a network of timm; {hint}")
    network = timm.create_model(
        name, pretrained=pretrained, num_classes=num_classes, in_chans=shape[0], **(options or {})
    )
    config = network.pretrained_cfg
    mean, std = (_channels(config[key], shape[0]) for key in ("mean", "std"))
    return nn.Sequential(Normalize(mean, std), network)


def _channels(values: Sequence[float], channels: int) -> list[float]:
    """One number a channel: colours are averaged where there are others."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels
