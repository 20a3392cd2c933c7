"""What is known of a network's layers: Lipschitz constants in l_2 and rounding errors, layer by layer.

Layers that say it themselves (`KnownLipschitz`) are asked; the others are those of `layer_bound`. To cover another one
of PyTorch's, add a case there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wdro_train.certificates.reading import PASSING, called, computes, computing_class, pair
from wdro_train.models import Normalize
from wdro_train.theory.lipschitz import (
    KnownLipschitz,
    LipschitzBound,
    Shape,
    convolution_norm,
    magnitude_norm,
    matrix_norm,
)
from wdro_train.theory.rounding import accumulated
from wdro_train.utils.errors import UserError

_ISOMETRIES = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d)
_KINDS = (
    *_ISOMETRIES,
    *PASSING,
    *(nn.ReLU, nn.LeakyReLU, nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d, nn.BatchNorm1d, nn.BatchNorm2d),
    Normalize,
)
# Roundings between a pixel and its value after a Normalize or a BatchNorm, whose scale is itself rounded a few times.
_SCALING = 8


def layer_bound(name: str, layer: nn.Module, shape: Shape) -> LipschitzBound:
    """What is known of one layer.

    Args:
        name: Of the layer, for a refusal.
        layer: In evaluation mode, with the float32 parameters that are run.
        shape: Of one input, without the batch.

    Raises:
        UserError: Nothing is.
    """
    if isinstance(layer, KnownLipschitz) and "lipschitz_bound" in vars(
        computing_class(layer)
    ):  # of what is computed, not of a parent
        return layer.lipschitz_bound(shape)
    if any(computes(layer, kind) for kind in _KINDS):
        places = math.prod(shape[1:])
        match layer:
            case nn.Linear():
                rounding = accumulated(layer.in_features + 1)
                relative = rounding * magnitude_norm(layer.weight)
                copies = math.prod(shape[:-1])
                return LipschitzBound(matrix_norm(layer.weight), relative, rounding * _length(layer.bias, copies))
            case nn.Conv2d(padding_mode="zeros") if not isinstance(layer.padding, str):
                return _convolution(layer, shape)
            case Normalize():
                scale = (1 / layer.std.double()).flatten()
                mean = (layer.mean.double().flatten() * scale).expand(shape[0])
                rounding, largest = accumulated(_SCALING), float(scale.max())
                return LipschitzBound(largest, rounding * largest, rounding * _length(mean, places))
            case nn.BatchNorm1d() | nn.BatchNorm2d() if (
                layer.running_mean is not None and layer.running_var is not None
            ):
                scale = (layer.running_var.double() + layer.eps).rsqrt()
                scale = (scale if layer.weight is None else scale * layer.weight.double()).abs()
                shift = _length(layer.running_mean.double() * scale, places) + _length(layer.bias, places)
                rounding, largest = accumulated(_SCALING), float(scale.max())
                return LipschitzBound(largest, rounding * largest, rounding * shift)
            case nn.AvgPool2d(ceil_mode=False, divisor_override=None, count_include_pad=True):
                # Each output is a mean, and each input takes part in so many of them, 1 / k of each (Schur's test).
                constant = math.sqrt(_windows(layer) / math.prod(pair(layer.kernel_size)))
                return LipschitzBound(constant, accumulated(math.prod(pair(layer.kernel_size)) + 1) * constant)
            case nn.MaxPool2d(ceil_mode=False, return_indices=False) if pair(layer.dilation) == (1, 1):
                return LipschitzBound(math.sqrt(_windows(layer)))
            case nn.LeakyReLU():
                constant = max(1.0, abs(layer.negative_slope))
                return LipschitzBound(constant, accumulated(2) * constant)  # of the slope, and of the product
            case nn.ReLU():
                return LipschitzBound(1.0)
            case nn.Flatten() | nn.Unflatten():
                if (layer.start_dim if isinstance(layer, nn.Flatten) else layer.dim) in (1, 2, 3):
                    return LipschitzBound(1.0)
            case _ if isinstance(layer, _ISOMETRIES + PASSING):
                return LipschitzBound(1.0)
    raise UserError(
        f"{called(name, layer)} has no known Lipschitz constant; certify an nn.Sequential of Linear, Conv2d, ReLU, "
        "LeakyReLU, pooling, BatchNorm, Normalize, changes of shape and layers with a lipschitz_bound, such as "
        "model=lipschitz_mlp"
    )


def _convolution(layer: nn.Conv2d, shape: Shape) -> LipschitzBound:
    padding, stride = pair(layer.padding), pair(layer.stride)  # type: ignore[arg-type]
    norm = convolution_norm(
        *(layer.weight, (shape[1], shape[2])),
        stride=stride,
        padding=padding,
        dilation=pair(layer.dilation),
        groups=layer.groups,
    )
    # |K| takes non-negative images to non-negative ones and is at most the matrix of its sums over the kernel.
    blocks = layer.weight.double().abs().sum((2, 3)).chunk(layer.groups)
    magnitude = max(magnitude_norm(block) for block in blocks)
    rounding = accumulated(layer.weight[0].numel() + 1)
    sides = [(shape[1 + i] + 2 * padding[i]) // stride[i] + 1 for i in (0, 1)]  # at least as large as the output
    return LipschitzBound(norm, rounding * magnitude, rounding * _length(layer.bias, math.prod(sides)))


def _length(values: Tensor | None, copies: int) -> float:
    """The norm of so many copies of some values; 0 for none."""
    return 0.0 if values is None else float(torch.linalg.vector_norm(values.double())) * math.sqrt(copies)


def _windows(layer: nn.AvgPool2d | nn.MaxPool2d) -> int:
    """How many windows a pixel is in, at most."""
    kernel, stride = pair(layer.kernel_size), pair(layer.stride)
    return math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))
