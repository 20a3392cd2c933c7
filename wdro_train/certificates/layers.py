"""A feed-forward network as affine segments between ReLUs, each of which pulls a form of its output back to its input.

To cover another kind of layer, add it to `_KINDS` and give its pullback and output shape in `_affine`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from wdro_train.certificates.forms import Form, Pair, flat
from wdro_train.certificates.reading import PASSING, computes, described, flattened, pair
from wdro_train.models.layers import Normalize
from wdro_train.utils.errors import UserError

Pullback = Callable[[Form], Form]
Shape = tuple[int, int, int]
# Windows of at most so many values are pulled back by one matrix product, larger ones by a transposed convolution. On a
# network of tests/reference this took 0.8 of the time of convolutions alone, and half that of products alone.
_SMALL_WINDOW = 1024
_KINDS = (nn.ReLU, nn.Flatten, nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, Normalize, *PASSING)


@dataclass(frozen=True)
class Segment:
    """A part of the network without ReLU, an affine map, as the list of its layers.

    Attributes:
        layers: Pull a form of a layer's output back to its input; first layer first.
        shape: [C, H, W] of the output; a flat output of F values is [F, 1, 1].
    """

    layers: list[Pullback]
    shape: Shape

    def pull_back(self, form: Form) -> Form:
        """The form of the segment's input, given that of its output."""
        for layer in reversed(self.layers):
            form = layer(form)
        return form


def segments(model: nn.Module, shape: Shape, like: Tensor) -> list[Segment]:
    """The affine segments of a network; there is a ReLU between each and the next.

    Args:
        model: `nn.Sequential`, nested at will, of the layers this module knows, or one such layer.
        shape: [C, H, W] of the images.
        like: Gives dtype and device to compute in.

    Raises:
        UserError: A layer of another kind, or with options that are not covered.
    """
    found: list[Segment] = []
    layers: list[Pullback] = []
    for name, layer in flattened(model):
        if not any(computes(layer, kind) for kind in _KINDS):
            raise _unknown(name, layer, shape)
        if isinstance(layer, nn.ReLU):
            found.append(Segment(layers, shape))
            layers = []
        elif not isinstance(layer, PASSING):
            pullback, shape = _affine(name, layer, shape, like)
            layers.append(pullback)
    return [*found, Segment(layers, shape)]


def _unknown(name: str, layer: nn.Module, shape: Shape) -> UserError:
    return UserError(
        f"{described(name, layer)} on input of shape {list(shape)} has no linear relaxation; certify an "
        "nn.Sequential of Linear, Conv2d, ReLU, Flatten, AvgPool2d, BatchNorm, Dropout, Identity and Normalize, or "
        "choose alpha_crown, crown_ibp or ibp, which read a network from its graph"
    )


def _affine(name: str, layer: nn.Module, shape: Shape, like: Tensor) -> tuple[Pullback, Shape]:
    """The pullback of an affine layer, and its output shape.

    Raises:
        UserError: The layer has options that are not covered.
    """

    def fixed(value: Tensor) -> Tensor:
        return value.detach().to(like)

    match layer:
        case nn.Flatten(start_dim=1, end_dim=-1):
            return _Reshape(shape), (math.prod(shape), 1, 1)
        case nn.Linear() if shape == (layer.in_features, 1, 1):
            return _Linear(fixed(layer.weight), _optional(layer.bias, fixed)), (layer.out_features, 1, 1)
        case nn.Conv2d(padding_mode="zeros") if not isinstance(layer.padding, str):
            options = (pair(layer.stride), pair(layer.padding), pair(layer.dilation), layer.groups)
            return _convolution(shape, fixed(layer.weight), _optional(layer.bias, fixed), *options)
        case nn.AvgPool2d(ceil_mode=False, divisor_override=None) if layer.count_include_pad or not any(
            pair(layer.padding)
        ):
            kernel = pair(layer.kernel_size)
            mean = like.new_full((shape[0], 1, *kernel), 1 / math.prod(kernel))
            return _convolution(shape, mean, None, pair(layer.stride), pair(layer.padding), (1, 1), shape[0])
        case nn.BatchNorm1d() | nn.BatchNorm2d() if layer.running_mean is not None and layer.running_var is not None:
            scale = (fixed(layer.running_var) + layer.eps).rsqrt()
            scale = scale if layer.weight is None else scale * fixed(layer.weight)
            shift = -fixed(layer.running_mean) * scale
            return _Scale(scale, shift if layer.bias is None else shift + fixed(layer.bias)), shape
        case Normalize():
            scale = 1 / fixed(layer.std).flatten().expand(shape[0])
            return _Scale(scale, -fixed(layer.mean).flatten() * scale), shape
    raise _unknown(name, layer, shape)


def _optional(bias: Tensor | None, fixed: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if bias is None else fixed(bias)


@dataclass(frozen=True)
class _Reshape:
    shape: Shape

    def __call__(self, form: Form) -> Form:
        return Form(form.coefficients.reshape(*form.coefficients.shape[:3], *self.shape), form.constant)


@dataclass(frozen=True)
class _Scale:
    scale: Tensor
    shift: Tensor

    def __call__(self, form: Form) -> Form:
        return form.through_scale(self.scale, self.shift)


@dataclass(frozen=True)
class _Linear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, form: Form) -> Form:
        rows = form.coefficients.flatten(3)
        constant = form.constant if self.bias is None else form.constant + rows @ self.bias
        return Form((rows @ self.weight)[..., None, None], constant)


@dataclass(frozen=True)
class _Convolution:
    """The transposed convolution, window by window."""

    shape: Shape
    output: Shape
    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def __call__(self, form: Form) -> Form:
        coefficients = form.coefficients
        window = coefficients.shape[3:]
        constant = form.constant
        if self.bias is not None:
            constant = constant + flat(coefficients) @ self.bias.repeat(window[1:].numel())
        if len(coefficients) > 1 and window == self.output and form.padding == (0, 0):
            # Channels last: half the time on the networks of tests/reference.
            rows = coefficients.flatten(0, 2).contiguous(memory_format=torch.channels_last)
            weight = self.weight.contiguous(memory_format=torch.channels_last)
            size, kernel = zip(self.shape[1:], window[1:], strict=True), self.weight.shape[2:]
            extra = [
                n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
                for (n, m), s, p, d, k in zip(size, self.stride, self.padding, self.dilation, kernel, strict=True)
            ]
            pulled = functional.conv_transpose2d(
                rows, weight, None, self.stride, self.padding, extra, self.groups, self.dilation
            )
            return Form(pulled.view(*coefficients.shape[:3], *self.shape), constant)
        if window.numel() <= _SMALL_WINDOW:
            eye = torch.eye(window.numel(), dtype=coefficients.dtype, device=coefficients.device)
            matrix = self._transpose(eye.view(-1, *window))
            larger = matrix.shape[1:]
            pulled = coefficients.flatten(3) @ matrix.flatten(1)
        else:
            pulled = self._transpose(coefficients.flatten(0, 2))
            larger = pulled.shape[1:]
        pulled = pulled.view(*coefficients.shape[:3], *larger)
        stride = (form.stride[0] * self.stride[0], form.stride[1] * self.stride[1])
        padding = tuple(f * s + p for f, s, p in zip(form.padding, self.stride, self.padding, strict=True))
        return Form(pulled, constant, stride, pair(padding)).clipped(self.shape)

    def _transpose(self, windows: Tensor) -> Tensor:
        return functional.conv_transpose2d(
            windows, self.weight, stride=self.stride, groups=self.groups, dilation=self.dilation
        )


def _convolution(
    shape: Shape, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> tuple[Pullback, Shape]:
    height, width = (
        (shape[1 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    output = (weight.shape[0], height, width)
    return _Convolution(shape, output, weight, bias, stride, padding, dilation, groups), output
