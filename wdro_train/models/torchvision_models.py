"""Any classification network of torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from wdro_train.models.layers import Normalize
from wdro_train.utils.errors import UserError

_IMAGENET = 1000  # classes of torchvision's pretrained weights
# Networks with auxiliary classifiers at inner layers: in training they return more than logits. Nothing here uses them.
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def torchvision_model(
    shape: Sequence[int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    name: str,
    pretrained: bool = False,
    small_stem: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Sequential:
    """Normalise, then a network of `torchvision.models`.

    Args:
        shape: (C, H, W) of the images.
        num_classes: Number of logits.
        mean: Channel means; with pretrained weights those they were trained with are used.
        std: Channel standard deviations; the same.
        name: As `torchvision.models.list_models` gives it.
        pretrained: Download torchvision's best weights; another number of classes gets a new last layer.
        small_stem: First convolution 3x3 with stride 1 and no pooling after it, for small images.
        options: More arguments of the constructor, such as `image_size` of a vision transformer.

    Raises:
        UserError: Unknown name, or a network that cannot be changed as asked.
    """
    from torchvision import models  # takes two seconds, which other networks need not wait for

    if name not in models.list_models(module=models):
        raise UserError(f"model.name={name} is not a classifier of torchvision; see torchvision.models.list_models()")
    weights = models.get_model_weights(name).DEFAULT if pretrained else None
    classes = _IMAGENET if pretrained else num_classes
    arguments = dict(options or {})
    if name in _AUXILIARY and weights is None:
        arguments.setdefault("init_weights", True)  # the default, about which the constructor warns
    try:
        network = models.get_model(name, weights=weights, num_classes=classes, **arguments)
    except TypeError as error:
        raise UserError(f"{name} does not take model.options={dict(options or {})} ({error}); see its docs") from error
    if weights is not None:
        preset = weights.transforms()
        mean, std = preset.mean, preset.std
    if name in _AUXILIARY and not arguments.get("aux_logits", False):
        _drop_auxiliary(network, _AUXILIARY[name])
    if classes != num_classes:
        _replace_last(network, name, num_classes)
    if small_stem or shape[0] != 3:
        _replace_first(network, name, shape[0], small_stem)
        if shape[0] != 3 and name in _AUXILIARY:
            network.transform_input = False  # it renormalises three colours
    if small_stem and hasattr(network, "maxpool"):
        network.maxpool = nn.Identity()
    return nn.Sequential(Normalize(mean, std), network)


def _drop_auxiliary(network: nn.Module, parts: Sequence[str]) -> None:
    """Leave the auxiliary classifiers out, and their weights out of files that have them (see `load_weights`)."""
    network.aux_logits = False  # type: ignore[assignment]
    for part in parts:
        setattr(network, part, None)
    network.unused_weights = tuple(f"{part}." for part in parts)  # type: ignore[assignment]


def _replace_first(network: nn.Module, name: str, channels: int, small: bool) -> None:
    """Replace the first convolution by one for other channels or small images."""
    path, old = next(
        ((path, part) for path, part in network.named_modules() if isinstance(part, nn.Conv2d)), ("", None)
    )
    if old is None or (small and max(old.kernel_size) > 7):
        raise UserError(f"model.small_stem=true is not for {name}, whose first layer cuts patches; use model.options")
    new = nn.Conv2d(
        channels,
        old.out_channels,
        3 if small else old.kernel_size,  # type: ignore[arg-type]
        stride=1 if small else old.stride,  # type: ignore[arg-type]
        padding=1 if small else old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    _put(network, path, new)


def _replace_last(network: nn.Module, name: str, num_classes: int) -> None:
    """Replace the last layer by one for another number of classes."""
    linear = [(path, part) for path, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not linear or linear[-1][1].out_features != _IMAGENET:
        raise UserError(f"model.pretrained=true of {name} has 1000 classes, not {num_classes}; use another network")
    path, old = linear[-1]
    _put(network, path, nn.Linear(old.in_features, num_classes))


def _put(network: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, part)
