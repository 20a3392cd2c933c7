"""How every certificate reads a network: layer by layer, and only if its layers say what it computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

Pair = tuple[int, int]
Network = TypeVar("Network", bound=nn.Module)
PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
"""Layers that in evaluation mode pass everything on."""


def network_of(module: nn.Module) -> nn.Module:
    """The network itself where the module that trains it is given: bounds are read from it operation by operation.

    Args:
        module: A network, or a module that has one as its `trained_network`.
    """
    network = getattr(module, "trained_network", module)
    return network if isinstance(network, nn.Module) else module


def require_readable(model: nn.Module) -> None:
    """Refuse a network of which a certificate would read something else than what it computes.

    A hook, or a forward method of a layer's own, may act far from the images at which both can be compared. Weights of
    fewer bits than float32 round more than a certificate allows for.

    Args:
        model: Any network.

    Raises:
        UserError: Names the layer.
    """
    for name, module in model.named_modules():
        if _altered(module):
            raise UserError(
                f"{called(name, module)} has a hook or a replaced forward method, so that its class does not say what "
                "it computes; certify the network without"
            )
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if values.is_floating_point() and torch.finfo(values.dtype).bits < 32:
            raise UserError(
                f"{name} is of type {values.dtype}, whose rounding is not covered; certify model.float(), and train "
                "with trainer.precision=bf16-mixed instead of bf16-true"
            )


def copied(model: Network, dtype: torch.dtype) -> Network:
    """A copy of a network whose weights are of another type.

    Weights that are computed from others, such as those of `torch.nn.utils.parametrizations`, are computed before, in
    the network's own type, as its forward pass has them.

    Args:
        model: In evaluation mode.
        dtype: Of the copy.
    """
    own = copy.deepcopy(model)
    for module in list(own.modules()):
        if parametrize.is_parametrized(module):
            weights = {weight: getattr(module, weight).detach() for weight in module.parametrizations}  # type: ignore[union-attr]
            # torch's own removal would delete the weights of the class, which the copy shares with the original
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for weight, value in weights.items():
                module.register_parameter(weight, nn.Parameter(value))
    return own.to(dtype)


def flattened(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of an `nn.Sequential`, nested at will, in the order in which they run, with their names.

    A layer that stands in several places comes as often.

    Args:
        model: It, or one layer.
        name: What its names begin with.
    """
    if computes(model, nn.Sequential):
        for key, child in model._modules.items():  # named_children names a shared layer only once
            if child is not None:
                yield from flattened(child, f"{name}.{key}" if name else key)
    else:
        yield name, model


def computes(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is of a kind, and not of a subclass that computes something else.

    Args:
        layer: The layer.
        kind: The kind.
    """
    return isinstance(layer, kind) and type(layer).forward is kind.forward


def computing_class(layer: nn.Module) -> type[nn.Module]:
    """The class whose forward method a layer has: its own, or the parent that it inherits from.

    Args:
        layer: The layer.
    """
    return next((kind for kind in type(layer).__mro__ if "forward" in vars(kind)), nn.Module)


def called(name: str, layer: nn.Module) -> str:
    """What a refusal calls a layer.

    Args:
        name: Inside the network; empty for the network itself.
        layer: The layer.
    """
    return f"layer {name or 'model'} ({type(layer).__name__})"


def described(name: str, layer: nn.Module) -> str:
    """What a refusal calls a layer whose options matter: with them, but a network of layers by its class alone.

    Args:
        name: Inside the network; empty for the network itself.
        layer: The layer.
    """
    if next(layer.children(), None) is not None:
        return called(name, layer)
    return f"layer {name or 'model'} ({layer})"


def pair(value: int | tuple[int, ...]) -> Pair:
    """Height and width of an option of a layer.

    Args:
        value: Both, or one number for both.
    """
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _altered(module: nn.Module) -> bool:
    """Whether a module may compute something else than its class says; who counts passes only looks."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    changing = [hook for hook in hooks if not isinstance(getattr(hook, "__self__", None), PassCounter)]
    return bool(changing) or not vars(module).keys().isdisjoint({"forward", "_conv_forward", "__call__"})
