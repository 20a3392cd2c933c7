"""Layers that are 1-Lipschitz in l_2 by how they are built, whatever their parameters, and say so (`KnownLipschitz`).

Networks of these layers can be trained on their own certificate (theory, section 11).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wdro_train.theory.lipschitz import (
    LipschitzBound,
    Shape,
    convolution_norm,
    magnitude_norm,
    matrix_norm,
)
from wdro_train.theory.rounding import accumulated
from wdro_train.utils.errors import UserError

# Added to V V^T in units of its mean diagonal, so that its Cholesky factor exists in float32 as well. Singular values
# of the weights become a little less than 1, never more.
_RIDGE = 1e-4


class OrthogonalLinear(nn.Module):
    """x -> W x + b with orthonormal rows (or columns, where there are more outputs than inputs) of W.

    W = C^-1 V with V V^T = C C^T: Gram-Schmidt on the rows of V by a Cholesky factor.
    All singular values of W are 1, so gradients neither vanish nor grow.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.free = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.orthogonal_(self.free)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """W, shape [outputs, inputs], computed in the precision of the parameters or the one that is given."""
        with torch.autocast(self.free.device.type, enabled=False):
            free = self.free if dtype is None else self.free.to(dtype)
            if torch.finfo(free.dtype).bits < 32:
                raise UserError(
                    f"orthogonal weights cannot be computed in {free.dtype}; choose trainer.precision=bf16-mixed, "
                    "which keeps the weights in float32"
                )
            tall = free.shape[0] > free.shape[1]
            rows = free.T if tall else free
            gram = rows @ rows.T
            gram = gram + _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            factor, failed = torch.linalg.cholesky_ex(gram)
            factor = factor.masked_fill(failed != 0, math.nan)  # a run that has diverged says so where the loss is seen
            orthonormal: Tensor = torch.linalg.solve_triangular(factor, rows, upper=False)
        return orthonormal.T if tall else orthonormal

    def forward(self, x: Tensor) -> Tensor:
        """Shape [..., outputs] of [..., inputs]."""
        return functional.linear(x, self.weight(), self.bias)

    @torch.no_grad()
    def lipschitz_bound(self, shape: Shape) -> LipschitzBound:
        """See `KnownLipschitz`: the true W is that of float64, from which float32 strays by what is measured here."""
        true, computed = self.weight(torch.float64), self.weight().double()
        rounding = accumulated(true.shape[1] + 1)
        strayed = float(torch.linalg.matrix_norm(true - computed))
        bias = float(torch.linalg.vector_norm(self.bias.double())) * math.prod(shape[:-1]) ** 0.5
        constant = max(1.0, matrix_norm(true))  # 1 by construction, whatever the weights: training relies on it
        return LipschitzBound(constant, strayed + rounding * magnitude_norm(computed), rounding * bias)


class SortPairs(nn.Module):
    """Sorts pairs of channels, c and c + C/2: their larger values first, their smaller ones after.

    GroupSort of size 2 (Anil et al. 2019, arXiv 1811.05381): a permutation of the values, so gradients keep their norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Same shape, [B, C, ...], C even."""
        self._require_pairs(x.shape[1])
        first, second = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)

    def lipschitz_bound(self, shape: Shape) -> LipschitzBound:
        """See `KnownLipschitz`: sorting rounds nothing."""
        self._require_pairs(shape[0])
        return LipschitzBound(1.0)

    def _require_pairs(self, channels: int) -> None:
        if channels % 2:
            raise UserError(f"{channels} channels cannot be sorted in pairs; choose an even number")


class PadChannels(nn.Module):
    """Appends channels of zeros, an isometry.

    Args:
        channels: How many there are afterwards.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Shape [B, channels, ...] of [B, C, ...]."""
        missing = self.channels - x.shape[1]
        return torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)

    def lipschitz_bound(self, shape: Shape) -> LipschitzBound:
        """See `KnownLipschitz`."""
        return LipschitzBound(1.0)


class ResidualConvolution(nn.Module):
    """x -> x - 2 K^T T^-1 relu(K x + b), with K a convolution and T a diagonal matrix that is no less than K K^T.

    The SDP-based Lipschitz layer (Araujo et al. 2023, arXiv 2303.03169): T_i = sum_j |K K^T|_ij q_j / q_i
    for any q > 0. The zero padding of K cuts a larger convolution without padding to size, so T is taken from that
    one, whose K K^T is the convolution with the correlations of the kernel: a part of what T dominates is dominated.

    Args:
        channels: Of input and output.
        hidden: Rows of K for each position.
        kernel: Side of the kernel, odd.
    """

    def __init__(self, channels: int, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(hidden, channels, kernel, kernel))
        nn.init.xavier_normal_(self.kernel)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.log_q = nn.Parameter(torch.zeros(hidden))
        self.padding = kernel // 2

    def dominating(self, dtype: torch.dtype | None = None) -> Tensor:
        """T, one number for each hidden channel, computed in the precision of the parameters or the one given."""
        with torch.autocast(self.kernel.device.type, enabled=False):
            kernel = self.kernel if dtype is None else self.kernel.to(dtype)
            correlations = functional.conv2d(kernel, kernel, padding=kernel.shape[-1] - 1)
            q = self.log_q.to(kernel).exp()
            return (correlations.abs().sum((2, 3)) @ q) / q

    def forward(self, x: Tensor) -> Tensor:
        """Same shape, [B, channels, H, W]."""
        hidden = torch.relu(functional.conv2d(x, self.kernel, self.bias, padding=self.padding))
        scaled = hidden / self.dominating().to(hidden)[:, None, None]
        return x - 2 * functional.conv_transpose2d(scaled, self.kernel, padding=self.padding)

    @torch.no_grad()
    def lipschitz_bound(self, shape: Shape) -> LipschitzBound:
        """See `KnownLipschitz`: the true T is that of float64, from which float32 strays by what is measured here."""
        true, computed = self.dominating(torch.float64), self.dominating().double()
        kernel, places = self.kernel.double(), shape[1] * shape[2]
        norm = convolution_norm(kernel, (shape[1], shape[2]), padding=(self.padding, self.padding))
        magnitude = magnitude_norm(kernel.abs().sum((2, 3)))  # of |K|, as no frequency exceeds that of constant images
        bias = float(torch.linalg.vector_norm(self.bias.double())) * places**0.5
        inner, outer = accumulated(kernel[0].numel() + 1), accumulated(kernel[:, 0].numel())
        scaling = float((true / computed - 1).abs().max()) + accumulated(1)
        # relu(K x + b) is at most P = norm ||x|| + bias long, and float32 is off by inner (magnitude ||x|| + bias). The
        # scaling adds its share of P, the transposed convolution and the difference theirs.
        reach = 2 * (1 + scaling) * float((1 / true).max()) * magnitude
        first, second = inner * (1 + 2 * outer), scaling + outer + accumulated(3)
        relative = reach * (first * magnitude + second * norm) + accumulated(1)
        return LipschitzBound(1.0, relative, reach * (first + second) * bias)
