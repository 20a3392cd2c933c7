"""What a network's operations make of boxes: interval arithmetic on the graph of its forward pass.

Every value is a box, all tensors z with |z - center| <= radius entry by entry. An affine operation maps the center by
itself and the radius by the absolute values of its weights; a monotone one maps both ends (IBP, Gowal et al. 2018,
arXiv 1810.12715). Operations that only move entries around move those of center and radius alike.

To cover another operation, add its function to one of the tables below, or its layer to `_LAYERS`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from wdro_train.utils.errors import UserError


@dataclass(frozen=True)
class Box:
    """All tensors z with |z - center| <= radius, entry by entry.

    Attributes:
        center: Any shape.
        radius: Same shape, non-negative.
    """

    center: Tensor
    radius: Tensor

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> Box:
        """All tensors low <= z <= high."""
        return cls((low + high) / 2, (high - low) / 2)

    @property
    def low(self) -> Tensor:
        """The least value of each entry."""
        return self.center - self.radius

    @property
    def high(self) -> Tensor:
        """The largest value of each entry."""
        return self.center + self.radius

    def monotone(self, function: Callable[[Tensor], Tensor]) -> Box:
        """The image under a function that falls nowhere."""
        return Box.between(function(self.low), function(self.high))

    def scaled(self, factor: Any) -> Box:
        """The image under the multiplication with constants."""
        return Box(self.center * factor, self.radius * abs(factor))

    def rearranged(self, function: Callable[[Tensor], Tensor]) -> Box:
        """The image under a function that is linear with non-negative weights, such as a mean or a change of shape."""
        return Box(function(self.center), function(self.radius))


def _add(a: Any, b: Any) -> Box:
    if isinstance(a, Box) and isinstance(b, Box):
        return Box(a.center + b.center, a.radius + b.radius)
    box, constant = (a, b) if isinstance(a, Box) else (b, a)
    center = box.center + constant
    return Box(center, box.radius.expand_as(center))


def _negative(a: Box) -> Box:
    return Box(-a.center, a.radius)


def _subtract(a: Any, b: Any) -> Box:
    return _add(a, _negative(b) if isinstance(b, Box) else -b)


def _multiply(a: Any, b: Any) -> Box:
    if isinstance(a, Box) and isinstance(b, Box):
        raise NotImplementedError
    return a.scaled(b) if isinstance(a, Box) else b.scaled(a)


def _divide(a: Any, b: Any) -> Box:
    if isinstance(b, Box):
        raise NotImplementedError
    center = a.center / b
    return Box(center, a.radius / abs(b))


def _concatenate(boxes: Any, dim: int = 0) -> Box:
    parts = [box if isinstance(box, Box) else Box(box, torch.zeros_like(box)) for box in boxes]
    return Box(torch.cat([box.center for box in parts], dim), torch.cat([box.radius for box in parts], dim))


def _pad(a: Box, pad: Any, mode: str = "constant", value: float | None = None) -> Box:
    if mode != "constant":
        return a.rearranged(lambda z: functional.pad(z, pad, mode))
    return Box(functional.pad(a.center, pad, mode, value), functional.pad(a.radius, pad))


def _leaky_relu(a: Box, negative_slope: float = 0.01, inplace: bool = False) -> Box:
    if negative_slope < 0:
        raise NotImplementedError
    return a.monotone(lambda z: functional.leaky_relu(z, negative_slope))


_ARITHMETIC: dict[Any, Callable[..., Box]] = {
    operator.add: _add, operator.iadd: _add, torch.add: _add, "add": _add, "add_": _add,
    operator.sub: _subtract, operator.isub: _subtract, torch.sub: _subtract, "sub": _subtract,
    operator.mul: _multiply, operator.imul: _multiply, torch.mul: _multiply, "mul": _multiply,
    operator.truediv: _divide, torch.div: _divide, "div": _divide,
    operator.neg: _negative, torch.neg: _negative, "neg": _negative,
    torch.cat: _concatenate, torch.concat: _concatenate, functional.pad: _pad, functional.leaky_relu: _leaky_relu,
}  # fmt: skip
"""Operations with a rule of their own, by function or by the name of the method."""

_MONOTONE = {
    functional.relu, functional.relu_, torch.relu, torch.relu_, "relu", "relu_", functional.relu6, functional.hardtanh,
    torch.sigmoid, "sigmoid", functional.sigmoid, torch.tanh, "tanh", functional.tanh, functional.elu,
    functional.softplus, torch.clamp, "clamp", functional.max_pool2d, functional.adaptive_max_pool2d,
}  # fmt: skip
"""Operations of one box that fall nowhere; their other arguments are constants."""

_REARRANGING = {
    operator.getitem, torch.flatten, "flatten", "view", "reshape", torch.reshape, "permute", torch.permute,
    "transpose", torch.transpose, "squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze, "contiguous", "expand",
    "mean", torch.mean, "sum", torch.sum, functional.avg_pool2d, functional.adaptive_avg_pool2d, "float", "to",
}  # fmt: skip
"""Operations of one box that move entries around or weigh them with non-negative weights."""

_QUESTIONS = {"size", "dim", getattr}
"""Operations that ask for the shape of a value."""

_MONOTONE_LAYERS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.MaxPool2d)
_REARRANGING_LAYERS = (nn.Flatten, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Unflatten)
_PASSING_LAYERS = (nn.Identity, nn.Dropout, nn.Dropout2d)


def _through_layer(layer: nn.Module, box: Box) -> Box:
    """The image of a box under a layer in evaluation mode.

    Raises:
        NotImplementedError: A layer of another kind.
    """
    kind = next((kind for kind in type(layer).__mro__ if "forward" in vars(kind)), nn.Module)
    if kind in _PASSING_LAYERS:
        return box
    if kind in _MONOTONE_LAYERS:
        return box.monotone(layer)
    if kind in _REARRANGING_LAYERS:
        return box.rearranged(layer)
    match layer:
        case nn.LeakyReLU() if kind is nn.LeakyReLU:
            return _leaky_relu(box, layer.negative_slope)
        case nn.Linear() if kind is nn.Linear:
            return Box(layer(box.center), functional.linear(box.radius, layer.weight.abs()))
        case nn.Conv2d(padding_mode="zeros") if kind is nn.Conv2d:
            options = (layer.stride, layer.padding, layer.dilation, layer.groups)
            radius: Tensor = torch.conv2d(box.radius, layer.weight.abs(), None, *options)  # type: ignore[arg-type]
            return Box(layer(box.center), radius)
        case nn.BatchNorm1d() | nn.BatchNorm2d() if layer.running_var is not None:
            scale = (layer.running_var + layer.eps).rsqrt()
            scale = (scale if layer.weight is None else scale * layer.weight.abs()).view(
                -1, *[1] * (box.radius.dim() - 2)
            )
            return Box(layer(box.center), box.radius * scale)
    raise NotImplementedError


class BoxInterpreter(fx.Interpreter):
    """Runs a traced network on a box of images instead of on images.

    Args:
        graph: The network, in evaluation mode, traced by `traced`.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.last = _last_linear(graph)

    def run_node(self, n: fx.Node) -> Any:
        """One operation.

        Args:
            n: Of the graph.

        Raises:
            UserError: An operation that has no rule, named.
        """
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        boxes = [a for a in (*args, *kwargs.values()) if isinstance(a, Box)]
        listed = bool(args) and isinstance(args[0], list | tuple) and any(isinstance(a, Box) for a in args[0])
        if n.op in ("placeholder", "output", "get_attr") or not (boxes or listed):
            return super().run_node(n)
        if n is self.last:  # the margins are bounded from what goes into the last layer, together with its weights
            return args[0]
        try:
            if n.op == "call_module":
                return _through_layer(self.fetch_attr(str(n.target)), args[0])
            return self._through_operation(n.target, args, kwargs)
        except NotImplementedError:
            what = self.fetch_attr(str(n.target)) if n.op == "call_module" else getattr(n.target, "__name__", n.target)
            raise UserError(
                f"{n.name} ({what}) of the network has no interval bounds; certify a network of affine layers, "
                "monotone activations, pooling, additions and changes of shape"
            ) from None

    def _through_operation(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in _ARITHMETIC:
            return _ARITHMETIC[target](*args, **kwargs)
        if target in _QUESTIONS:
            call = getattr if target is getattr else getattr(torch.Tensor, target)
            return call(args[0].center, *args[1:], **kwargs)
        if target in _MONOTONE or target in _REARRANGING:
            call = getattr(torch.Tensor, target) if isinstance(target, str) else target

            def work(z: Tensor) -> Tensor:
                result: Tensor = call(z, *args[1:], **kwargs)
                return result

            return args[0].monotone(work) if target in _MONOTONE else args[0].rearranged(work)
        raise NotImplementedError


def traced(model: nn.Module) -> fx.GraphModule:
    """The graph of a network's forward pass.

    Args:
        model: In evaluation mode.

    Raises:
        UserError: Its forward pass depends on values, or does what cannot be traced.
    """
    try:
        return fx.symbolic_trace(model)
    except Exception as error:  # whatever a forward pass does with a symbol in place of its images
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the forward pass of {type(model).__name__} has no fixed graph ({reason}); certify a network whose "
            "operations do not depend on the values of its images"
        ) from error


def _last_linear(graph: fx.GraphModule) -> fx.Node | None:
    """The linear layer whose values are the network's logits, if it ends in one."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    node = output.args[0]
    if isinstance(node, fx.Node) and node.op == "call_module":
        layer = graph.get_submodule(str(node.target))
        if type(layer) is nn.Linear:
            return node
    return None
